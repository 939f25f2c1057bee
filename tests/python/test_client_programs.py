"""clients/upload.py, csvsum.py and parquetsum.py, run as a user runs them: what they print, where, and how they end."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import table_pb2
from conftest import CLIENTS, INPUTS, KIB, binary, clean_environment, run_client, table, wait_until
from stand_in_server import failed_with, one_line, running_stand_in

MIB = 1024 * KIB
MESSAGE_BYTES_MAX = 16 * MIB  # up to here upload.py sends one message
CHUNK_BYTES_MAX = 256 * KIB
PROGRAMS = {
    "upload.py": INPUTS / "simple.csv",
    "csvsum.py": "x",
    "parquetsum.py": "x",
    "bigdata.py": "--rows=1",
}
FILE1 = b"x,y,z\n1,2,3\n4,5,6\n"
FILE2 = b"x,y\n5,10\n0,20\n"


def test_tally_sum_does_not_wait_for_the_names_of_the_columns(stand_in):
    command = [binary(), "sum", "x", "--server", stand_in.address]
    run = subprocess.run(command, env=clean_environment(), capture_output=True, encoding="utf-8", timeout=60)
    assert (run.returncode, run.stdout, run.stderr) == (0, "0\n", "")


@pytest.fixture
def stand_in():
    with running_stand_in() as servicer:
        yield servicer


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def printed_sum(program: str, *args, **options) -> int:
    """The last line that csvsum.py or parquetsum.py prints."""
    return int(run_client(program, *args, **options).stdout.splitlines()[-1])


# --- uploading and summing -----------------------------------------------------------------------------------


def test_p3s_example(server, tmp_path):
    assert (INPUTS / "simple.csv").read_bytes() == FILE1
    for path in (INPUTS / "simple.csv", write(tmp_path / "file2.csv", FILE2)):
        result = run_client("upload.py", path, server=server)
        assert (result.returncode, result.stdout, result.stderr) == (0, "success\n", "")
    for column, total in (("x", 10), ("z", 9), ("w", 0)):
        for program in ("csvsum.py", "parquetsum.py"):
            result = run_client(program, column, server=server)
            assert result.returncode == 0, result.stderr
            assert re.fullmatch(rf"\d+\.\d ms\n{total}\n", result.stdout), result.stdout


def test_the_servers_address_may_be_a_url(server):
    for url in (f"http://{server.address}", f"http://{server.address}/"):
        assert run_client("upload.py", INPUTS / "simple.csv", server=url).stdout == "success\n"
    assert printed_sum("csvsum.py", "x", server=f"http://{server.address}") == 10


def test_the_programs_work_from_any_folder(server, tmp_path):
    write(tmp_path / "here.csv", FILE1)
    assert run_client("upload.py", "here.csv", server=server, cwd=tmp_path).stdout == "success\n"
    assert printed_sum("csvsum.py", "y", server=server, cwd=tmp_path) == 7


def test_both_names_of_the_call_answer_the_same(server):
    table(server).Upload(table_pb2.UploadReq(csv_data=FILE1))
    for column, format in (("x", "csv"), ("x", "parquet"), ("none", "csv"), ("x", "xml")):
        question = table_pb2.ColSumReq(column=column, format=format)
        assert table(server).ColSum(question) == table(server).ColumnSum(question)


def test_an_unknown_format_is_an_error_that_names_both(server):
    for format in ("xml", "", "CSV"):
        reply = table(server).ColSum(table_pb2.ColSumReq(column="x", format=format))
        assert "csv" in reply.error and "parquet" in reply.error
        assert reply.total == 0


@pytest.mark.parametrize("column", ["", "a b", "-n", 'say "hi"', "\u00e4\u20ac\U0001f642"])
def test_any_column_name_can_be_asked(server, column, tmp_path):
    quoted = '"' + column.replace('"', '""') + '"'
    path = write(tmp_path / "names.csv", f"k,{quoted}\n1,20\n2,22\n".encode())
    assert run_client("upload.py", path, server=server).stdout == "success\n"
    for program in ("csvsum.py", "parquetsum.py"):
        assert printed_sum(program, "--", column, server=server) == 42


# --- columns that no part has ----------------------------------------------------------------------------------


def test_a_sum_of_a_column_that_no_part_has_names_the_columns(server, tally_binary):
    def said(column: str) -> str:
        """What all three programs say on standard error. Their sum is 0, and they succeed."""
        texts = set()
        for program in ("csvsum.py", "parquetsum.py"):
            result = run_client(program, "--", column, server=server)
            assert (result.returncode, result.stdout.splitlines()[-1]) == (0, "0")
            texts.add(result.stderr)
        command = [tally_binary, "sum", "--server", server.address, "--", column]
        result = subprocess.run(command, env=clean_environment(), capture_output=True, encoding="utf-8")
        assert (result.returncode, result.stdout) == (0, "0\n")
        (text,) = texts | {result.stderr}
        return text

    assert said("n") == 'no part has a column "n"; the table has no columns\n'
    for csv in (b'id, n ,"a,b",zero\n1,2,3,0\n', b"id,Number\n1,x\n", b"id\n4\n"):
        assert table(server).Upload(table_pb2.UploadReq(csv_data=csv)).error == ""
    assert said("n") == 'no part has a column "n"; the table has " n ", id, "a,b", zero, Number\n'
    assert said("NUMBR") == 'no part has a column "NUMBR"; the table has Number, " n ", "a,b", id, zero\n'
    assert said("zero") == ""
    wide = b",".join(b"column_%d" % number for number in range(3000)) + b"\n" + b"1," * 2999 + b"1\n"
    assert table(server).Upload(table_pb2.UploadReq(csv_data=wide)).error == ""
    text = said("colunm_2999")
    assert text.startswith('no part has a column "colunm_2999"; the table has column_2999, column_') and " and 3000 more" in text
    reply = table(server).ColSum(table_pb2.ColSumReq(column="n", format="csv"))
    assert (reply.total, reply.error) == (0, "")


def test_names_in_a_hint_cannot_act_on_a_terminal(server):
    assert table(server).Upload(table_pb2.UploadReq(csv_data="\x1b[31m\u202e\x7f\n1\n".encode())).error == ""
    hint = one_line(run_client("csvsum.py", "x\x1b[0m", server=server).stderr)
    assert hint.isprintable(), hint


def test_the_programs_say_nothing_if_the_server_cannot_list_columns(stand_in):
    for program in ("csvsum.py", "parquetsum.py"):
        result = run_client(program, "n", server=stand_in.address)
        assert (result.returncode, result.stdout.splitlines()[-1], result.stderr) == (0, "0", "")


# --- errors in the file or the question ----------------------------------------------------------------------


@pytest.mark.parametrize("padding_bytes", [0, MESSAGE_BYTES_MAX], ids=["one message", "stream"])
def test_a_bad_file_is_refused_with_the_servers_words(server, tmp_path, padding_bytes):
    good_row = b"1,2\n"
    good_rows_count = padding_bytes // len(good_row) + 6
    path = write(tmp_path / "bad.csv", b"a,b\n" + good_row * good_rows_count + b"1,2,3\n")
    message = failed_with(run_client("upload.py", path, server=server))
    assert message == f"row {good_rows_count + 1} (line {good_rows_count + 2}) has 3 cells, the header has 2"
    assert server.parts() == []


def test_a_file_that_cannot_be_read(server, tmp_path):
    reasons = {tmp_path / "missing.csv": "No such file or directory", tmp_path: "Is a directory"}
    for path, reason in reasons.items():
        assert failed_with(run_client("upload.py", path, server=server)) == f"{path}: {reason}"
    assert server.parts() == []


@pytest.mark.parametrize("program", ["csvsum.py", "parquetsum.py"])
def test_a_cell_that_is_no_integer(server, program):
    table(server).Upload(table_pb2.UploadReq(csv_data=b"qty\n1\n2\nx\n"))
    (receipt,) = server.parts()
    message = failed_with(run_client(program, "qty", server=server))
    assert message == f'part {receipt["part"]}, row 3, column "qty": "x" is not an integer'


@pytest.mark.parametrize("program", ["upload.py", "csvsum.py", "parquetsum.py"])
def test_a_missing_argument_is_a_usage_error(program, nobody):
    result = run_client(program, server=nobody)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"usage: {program}")


# --- a server that is not there, and Ctrl-C ------------------------------------------------------------------


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_server_that_is_not_there(program, nobody):
    message = failed_with(run_client(program, PROGRAMS[program], server=nobody))
    assert message == f"no server at {nobody}: Connection refused"


def test_a_large_file_and_no_server(tmp_path, nobody):
    path = write(tmp_path / "large.csv", b"x\n" + b"1\n" * (10 * MIB))
    assert failed_with(run_client("upload.py", path, server=nobody)).startswith(f"no server at {nobody}")


def test_an_address_that_is_none():
    message = failed_with(run_client("csvsum.py", "x", server="not/an:address"))
    assert message == "no server at not/an:address: not a known host and a port"


@pytest.mark.parametrize(
    "setting, address",
    [
        (None, "localhost:5440"),
        ("", "localhost:5440"),
        ("example.org", "example.org:5440"),
        ("example.org:81", "example.org:81"),
        ("[::1]", "[::1]:5440"),
        ("[::1]:81", "[::1]:81"),
        ("http://example.org:81", "example.org:81"),
        ("http://example.org:81/", "example.org:81"),
        ("http://example.org/", "example.org:5440"),
        ("http://[::1]", "[::1]:5440"),
        ("example.org:81/", "example.org:81"),
    ],
)
def test_the_servers_address(setting, address):
    environment = clean_environment() if setting is None else clean_environment(TALLY_SERVER=setting)
    code = "import connection; print(connection.server_address())"
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, cwd=CLIENTS, env=environment, text=True) == address + "\n"


@pytest.mark.parametrize("program", ["upload.py", "bigdata.py"])
def test_ctrl_c_ends_a_program_and_all_its_processes_without_a_traceback(stand_in, tmp_path, program):
    stand_in.stream_goes_on.clear()
    large = write(tmp_path / "large.csv", b"x\n" + b"1\n" * (10 * MIB))
    argument = large if program == "upload.py" else "--rows=1"
    process = subprocess.Popen(
        [sys.executable, CLIENTS / program, argument],
        env=clean_environment(TALLY_SERVER=stand_in.address),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a terminal sends Ctrl-C to the whole process group
        text=True,
    )
    assert stand_in.stream_began.wait(60)
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert stdout == ""
    assert "Traceback" not in stderr and "Error" not in stderr
    wait_until(lambda: not group_exists(process.pid), "the program's processes are gone")


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
        return True
    except ProcessLookupError:
        return False


# --- small files as one message, large ones as a stream ------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, MESSAGE_BYTES_MAX])
def test_a_small_file_is_one_message(stand_in, tmp_path, size):
    path = write(tmp_path / "small.csv", b"x" * size)
    assert run_client("upload.py", path, server=stand_in.address).stdout == "success\n"
    assert (stand_in.unary, stand_in.streams) == ([size], [])


@pytest.mark.parametrize("size", [MESSAGE_BYTES_MAX + 1, MESSAGE_BYTES_MAX + CHUNK_BYTES_MAX])
def test_a_large_file_is_a_stream_of_chunks(stand_in, tmp_path, size):
    path = write(tmp_path / "large.csv", b"x" * size)
    assert run_client("upload.py", path, server=stand_in.address).stdout == "success\n"
    (chunks,) = stand_in.streams
    assert stand_in.unary == []
    assert sum(chunks) == size
    assert max(chunks) == CHUNK_BYTES_MAX and min(chunks) > 0


@pytest.mark.parametrize("rows_count", [3, 5_000_000], ids=["one message", "stream"])
def test_what_is_piped_in_can_be_sent(server, rows_count):
    data = "n\n" + "1234\n" * rows_count
    result = run_client("upload.py", "/dev/stdin", server=server, stdin_text=data)
    assert (result.returncode, result.stdout, result.stderr) == (0, "success\n", "")
    (receipt,) = server.parts()
    assert (server.data / "parts" / f"{receipt['part']}.csv").read_bytes() == data.encode()
    for program in ("csvsum.py", "parquetsum.py"):
        assert printed_sum(program, "n", server=server) == 1234 * rows_count


def test_a_large_file_is_never_held_in_memory(stand_in, tmp_path):
    file_bytes = 400 * MIB
    path = tmp_path / "large.csv"
    with open(path, "wb") as file:
        file.truncate(file_bytes)
    # The kernel's own peak for this process; its parent's view of it (rusage) would include the parent.
    code = (
        "import atexit, runpy, sys\n"
        "status = lambda: [line for line in open('/proc/self/status') if line.startswith('VmHWM')][0]\n"
        "atexit.register(lambda: print(status(), end=''))\n"
        "sys.path.insert(0, '.')\n"
        "runpy.run_path('upload.py', run_name='__main__')\n"
    )
    output = subprocess.check_output(
        [sys.executable, "-c", code, str(path)],
        cwd=CLIENTS,
        env=clean_environment(TALLY_SERVER=stand_in.address),
        text=True,
    )
    success, peak = output.splitlines()
    assert success == "success"
    assert int(peak.split()[1]) * KIB < 150 * MIB
    assert sum(stand_in.streams[0]) == file_bytes


def test_a_file_that_breaks_while_it_is_read_is_not_uploaded_in_part(server):
    """What is sent before the error is a valid CSV file: only the end of the call shows that it is incomplete."""
    code = (
        "import connection, tally_pb2_grpc, upload\n"
        "class Broken:\n"
        "    def read(self, size): raise OSError(5, 'Input/output error')\n"
        "def program():\n"
        "    with connection.open_channel() as channel:\n"
        "        try: upload.stream(tally_pb2_grpc.TallyStub(channel), b'x,y\\n', Broken())\n"
        "        except OSError as error: raise connection.Failure(error.strerror)\n"
        "connection.run(program)\n"
    )
    environment = clean_environment(TALLY_SERVER=server.address)
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=CLIENTS, env=environment, capture_output=True, text=True)
    assert failed_with(result) == "Input/output error"
    server.stop()  # it would finish a running upload first
    assert server.parts() == [] and server.leftovers() == []


def test_400_mb_in_one_message_from_a_client_without_settings(server):
    """grpcio as installed: no option is set. It limits what it receives (4 MB), not what it sends."""
    code = (
        "import sys, grpc, table_pb2, table_pb2_grpc\n"
        "stub = table_pb2_grpc.TableStub(grpc.insecure_channel(sys.argv[1]))\n"
        "rows = (b'1,-250,' + b'text' * 23 + b'\\n') * 4_000_000\n"
        "print(repr(stub.Upload(table_pb2.UploadReq(csv_data=b'x,y,t\\n' + rows)).error))\n"
    )
    # In a separate process, because its memory holds several copies of the message.
    output = subprocess.check_output([sys.executable, "-c", code, server.address], cwd=CLIENTS, text=True)
    assert output == "''\n"
    (receipt,) = server.parts()
    assert (receipt["rows"], receipt["csv"]["bytes"]) == (4_000_000, 400_000_006)
    for program in ("csvsum.py", "parquetsum.py"):
        assert printed_sum(program, "x", server=server) == 4_000_000
        assert printed_sum(program, "y", server=server) == -1_000_000_000
