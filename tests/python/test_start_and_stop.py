"""Starts and stops: the lock of the data folder, what a start removes, sets aside or refuses, and stops that lose
nothing.
"""

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Dict, List

import grpc
import pytest
import table_pb2
import tally_pb2
import xxhash
from conftest import (
    Server,
    ServerDidNotStart,
    binary,
    clean_environment,
    step_aside,
    table,
    tally,
    wait_until,
)

# Three parts whose sums tell them apart: a sum says which of them are in it.
CSVS = [b"x,y\n1,10\n1,10\n", b"x,y\n100,2000\n", b"x,y\n10000,300000\n10000,\n"]
X_OF_PART = {1: 2, 2: 100, 3: 20000}
Y_OF_PART = {1: 20, 2: 2000, 3: 300000}
LATER_CSV = b"x,y\n1000000,7\n"
DEFAULT_PORT = 5440
ANSWER_SECONDS_MAX = 60


def upload(server: Server, csv: bytes) -> int:
    """Uploads by the stream, whose answer has the part."""
    return tally(server).Upload(iter([tally_pb2.UploadChunk(data=csv)])).part


def column_sum(server: Server, column: str) -> int:
    """The sum from both formats, which must agree."""
    totals = set()
    for file_format in ("csv", "parquet"):
        answer = table(server).ColumnSum(table_pb2.ColSumReq(column=column, format=file_format))
        assert answer.error == ""
        totals.add(answer.total)
    assert len(totals) == 1
    return totals.pop()


def check_serves(server: Server, parts: List[int]) -> None:
    """Exactly these of the three parts are served."""
    assert server.parts_count_at_start == len(parts)
    assert [receipt.part for receipt in tally(server).ListParts(tally_pb2.ListPartsRequest())] == parts
    assert column_sum(server, "x") == sum(X_OF_PART[part] for part in parts)
    assert column_sum(server, "y") == sum(Y_OF_PART[part] for part in parts)


def check_refuses(server: Server, missing: List[int]) -> None:
    """Sums are refused, in both formats, and the error names the first of the missing parts."""
    for file_format in ("csv", "parquet"):
        with pytest.raises(grpc.RpcError) as failure:
            table(server).ColumnSum(table_pb2.ColSumReq(column="x", format=file_format))
        assert failure.value.code() == grpc.StatusCode.DATA_LOSS
        assert re.search(rf"\bpart {missing[0]}\b", failure.value.details()), failure.value.details()
    quarantine = tally(server).ListQuarantine(tally_pb2.ListQuarantineRequest())
    assert (list(quarantine.parts), quarantine.count) == (missing, len(missing))


def fails_to_start(data: Path, *flags, **options) -> str:
    """A start that must end with exit code 1 and without a ready line; returns what it said."""
    with pytest.raises(ServerDidNotStart) as failure:
        Server(data, *flags, **options)
    assert failure.value.exit_code == 1, failure.value.stderr
    assert "panicked" not in failure.value.stderr
    return failure.value.stderr


def tree(folder: Path) -> Dict[str, tuple]:
    """What is in a folder: content and time of change by relative path. The lock file may change."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path != folder / "lock"
    }


@pytest.fixture
def data(tmp_path) -> Path:
    """A folder with the three parts, whose server has stopped."""
    folder = tmp_path / "data"
    with Server(folder) as server:
        assert [upload(server, csv) for csv in CSVS] == [1, 2, 3]
        server.stop()
    return folder


# --- the lock -----------------------------------------------------------------------------------------------


def test_a_second_server_on_the_folder_names_the_folder_and_the_holder(start_server, data):
    first = start_server(data)
    (data / "tmp" / "upload-under-way").write_bytes(b"x\n1")  # only the process that holds the lock may remove it
    message = fails_to_start(data)
    assert str(data) in message
    assert re.search(rf"\b{first.pid}\b", message), message
    assert (data / "tmp" / "upload-under-way").exists()
    check_serves(first, [1, 2, 3])


def test_the_lock_ends_with_its_holder(start_server, data):
    start_server(data).kill()
    check_serves(start_server(data), [1, 2, 3])


# --- what a start finds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_restart_serves_the_same(start_server, data, signal_number):
    first = start_server(data)
    check_serves(first, [1, 2, 3])
    assert first.terminate(signal_number) == 0, first.stderr
    before = tree(data)
    second = start_server(data)
    check_serves(second, [1, 2, 3])
    assert second.quarantine_count_at_start == 0
    assert not second.ready_line.endswith("in quarantine")
    second.stop()
    assert tree(data) == before


def test_a_folder_that_is_not_there_is_made(start_server, tmp_path):
    server = start_server(tmp_path / "not" / "yet" / "there")
    check_serves(server, [])
    assert upload(server, LATER_CSV) == 1


def test_leftovers_are_removed(start_server, data):
    for leftover in (
        "tmp/1",
        "tmp/upload-17.csv",
        "tmp/4.json",
        "parts/4.csv",
        "parts/9.csv",
        "parts/9.parquet",
    ):
        (data / leftover).write_bytes(b"x,y\n5,5\n")
    server = start_server(data)
    assert server.leftovers() == []
    server.log_line('files=6 parts="4 9"')
    assert sorted(path.name for path in (data / "parts").iterdir()) == sorted(
        f"{part}.{kind}" for part in (1, 2, 3) for kind in ("csv", "parquet", "json")
    )
    assert server.quarantine_count_at_start == 0
    check_serves(server, [1, 2, 3])
    assert upload(server, LATER_CSV) > 3


# --- damaged parts ------------------------------------------------------------------------------------------


def remove(path: Path) -> None:
    path.unlink()


def cut_last_byte(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def add_a_byte(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"\n")


def empty(path: Path) -> None:
    os.truncate(path, 0)


def write_garbage(path: Path) -> None:
    path.write_bytes(b'{"format":1,"part":\x00\xff')


def write_other_json(path: Path) -> None:
    path.write_text('{"format": 1, "rows": "many"}')


DAMAGES = [
    ("csv", remove),
    ("csv", cut_last_byte),
    ("csv", add_a_byte),
    ("csv", empty),
    ("parquet", remove),
    ("parquet", cut_last_byte),
    ("parquet", add_a_byte),
    ("json", empty),
    ("json", cut_last_byte),
    ("json", write_garbage),
    ("json", write_other_json),
]


@pytest.mark.parametrize(
    "kind, damage", DAMAGES, ids=[f"{kind}-{damage.__name__}" for kind, damage in DAMAGES]
)
def test_a_damaged_part_is_set_aside(start_server, data, kind, damage):
    damage(data / "parts" / f"2.{kind}")
    files = {path.name: path.read_bytes() for path in (data / "parts").glob("2.*")}

    server = start_server(data)
    assert server.quarantine_count_at_start == 1
    assert server.ready_line.endswith(", 1 in quarantine")
    assert re.search(r"\b2\b.*quarantine|quarantine.*\b2\b", server.stderr), server.stderr
    check_refuses(server, [2])
    assert not list((data / "parts").glob("2.*"))
    set_aside = {path.name: path.read_bytes() for path in (data / "quarantine").rglob("*") if path.is_file()}
    assert set_aside == files, "all that was left of the part is kept for a look at it"
    server.stop()

    # It stays there, and is neither served nor lost by later starts.
    server = start_server(data)
    check_refuses(server, [2])
    server.stop()
    server = start_server(data, "--incomplete", "answer")
    check_serves(server, [1, 3])
    assert {path.name for path in (data / "quarantine").rglob("*") if path.is_file()} == set(files)


def test_several_damaged_parts_are_counted(start_server, data):
    remove(data / "parts" / "1.csv")
    add_a_byte(data / "parts" / "3.parquet")
    server = start_server(data, "--incomplete", "answer")
    assert server.quarantine_count_at_start == 2
    assert server.ready_line.endswith(", 2 in quarantine")
    check_serves(server, [2])
    server.stop()
    check_refuses(start_server(data), [1, 3])


@pytest.mark.parametrize("kind", ["csv", "parquet", "json"])
def test_the_id_of_a_part_set_aside_is_not_used_again(start_server, data, kind):
    (remove if kind != "json" else write_garbage)(data / "parts" / f"3.{kind}")
    start_server(data).stop()
    # The start after the next one finds id 3 only in quarantine/.
    server = start_server(data, "--incomplete", "answer")
    check_serves(server, [1, 2])
    part = upload(server, LATER_CSV)
    assert part > 3
    assert column_sum(server, "x") == X_OF_PART[1] + X_OF_PART[2] + 1_000_000
    server.stop()
    server = start_server(data)
    assert [receipt["part"] for receipt in server.parts()] == [1, 2, part]
    assert upload(server, LATER_CSV) > part


def sealed(record):
    """A record with its checksum, as the server writes it."""
    record = {key: value for key, value in record.items() if key != "record_xxh3"}
    text = json.dumps(record, separators=(",", ":"))[:-1].encode()
    return text + b',"record_xxh3":"%s"}' % xxhash.xxh3_64_hexdigest(text).encode()


def test_a_receipt_of_a_newer_format_is_refused_and_nothing_touched(data):
    path = data / "parts" / "2.json"
    path.write_bytes(sealed({**json.loads(path.read_text()), "format": 999}))
    # Things that a successful start would remove or set aside.
    remove(data / "parts" / "1.csv")
    (data / "parts" / "9.csv").write_bytes(b"x\n1\n")
    (data / "tmp" / "1").write_bytes(b"x\n1")
    before = tree(data)
    message = fails_to_start(data)
    assert "format" in message and "999" in message, message
    assert "2.json" in message or re.search(r"\bpart 2\b", message), message
    assert tree(data) == before


def test_a_receipt_whose_version_is_damaged_is_set_aside(data, start_server):
    path = data / "parts" / "2.json"
    path.write_bytes(path.read_bytes().replace(b'"format":2', b'"format":6'))
    server = start_server(data, "--incomplete", "answer")
    check_serves(server, [1, 3])


# --- a stop -------------------------------------------------------------------------------------------------


def spooled_bytes(server: Server) -> int:
    return sum(spool.stat().st_size for spool in (server.data / "tmp").iterdir())


class HeldUpload:
    """A stream upload whose client sends the rest only when it is told to."""

    # The first half is 4 MB: more than any buffer between the connection and the disk.
    ROWS_COUNT = 800_009
    CSV = b"x,y\n" + b"1,10\n" * ROWS_COUNT
    FIRST_HALF, SECOND_HALF = CSV[:4_000_000], CSV[4_000_000:]
    CHUNK_BYTES = 50_000

    def __init__(self, server: Server):
        self._go_on = threading.Event()
        self.call = tally(server).Upload.future(self._chunks())
        # It runs when some of it is on the server's disk.
        wait_until(lambda: spooled_bytes(server) > 0, "the upload's first half arrives")

    def _chunks(self):
        for start in range(0, len(self.FIRST_HALF), self.CHUNK_BYTES):
            yield tally_pb2.UploadChunk(data=self.FIRST_HALF[start : start + self.CHUNK_BYTES])
        self._go_on.wait()
        yield tally_pb2.UploadChunk(data=self.SECOND_HALF)

    def complete(self) -> tally_pb2.Receipt:
        self._go_on.set()
        return self.call.result(timeout=ANSWER_SECONDS_MAX)

    def abandon(self) -> None:
        self.call.cancel()
        self._go_on.set()


def accepts_connections(server: Server) -> bool:
    host, port = server.address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS_MAX).close()
    except ConnectionError:  # refused, or reset when the listener closed with this one in its queue
        return False
    return True


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_running_upload_is_finished_and_new_connections_are_refused(start_server, data, signal_number):
    server = start_server(data)
    held = HeldUpload(server)
    server.process.send_signal(signal_number)
    wait_until(lambda: not accepts_connections(server), "new connections are refused")
    assert server.is_running()
    receipt = held.complete()
    assert receipt.rows == HeldUpload.ROWS_COUNT
    assert server.wait() == 0, server.stderr

    server = start_server(data)
    assert server.parts_count_at_start == 4
    assert column_sum(server, "x") == sum(X_OF_PART.values()) + HeldUpload.ROWS_COUNT
    assert (data / "parts" / f"{receipt.part}.csv").read_bytes() == HeldUpload.CSV


def test_an_upload_that_never_ends_does_not_hold_up_a_stop_for_ever(start_server, data):
    """Takes the 30 s that a stopping server waits. The upload that it then ends leaves nothing behind."""
    server = start_server(data)
    held = HeldUpload(server)
    assert server.terminate() == 0, server.stderr
    with pytest.raises(grpc.RpcError):
        held.call.result(timeout=ANSWER_SECONDS_MAX)
    held.abandon()
    server = start_server(data)
    assert server.leftovers() == []
    check_serves(server, [1, 2, 3])


# --- starts that cannot succeed -----------------------------------------------------------------------------


def test_a_data_folder_that_is_a_file(tmp_path):
    path = tmp_path / "a-file"
    path.write_bytes(b"precious")
    assert str(path) in fails_to_start(path)
    assert path.read_bytes() == b"precious"


def test_a_data_folder_below_a_file(tmp_path):
    (tmp_path / "a-file").write_bytes(b"precious")
    path = tmp_path / "a-file" / "data"
    assert str(path) in fails_to_start(path)


def without_root() -> tuple:
    """A command prefix under which permission bits count for root, too: it goes without capabilities."""
    if os.geteuid() != 0:
        return ()
    if not shutil.which("setpriv"):
        step_aside("root writes anywhere, and setpriv is not there to take that from it")
    return ("setpriv", "--bounding-set=-all")


@pytest.mark.parametrize("folder", ["new", "used", "parts"])
def test_a_data_folder_that_cannot_be_written(data, tmp_path, folder):
    if folder == "new":
        path = tmp_path / "read-only" / "data"
        closed = path.parent
        closed.mkdir()
    else:
        path = data
        closed = data if folder == "used" else data / "parts"
        (data / "lock").unlink(missing_ok=True)
        for leftover in ("tmp/1", "parts/9.csv"):
            (data / leftover).write_bytes(b"x\n1\n")
    closed.chmod(0o555)
    before = tree(tmp_path)
    try:
        message = fails_to_start(path, prefix=without_root())
    finally:
        closed.chmod(0o755)
    assert str(path) in message and "ermission denied" in message, message
    if folder != "parts":  # with only parts/ closed, tmp/ may have been cleared before that was found out
        assert tree(tmp_path) == before


def test_a_port_in_use(start_server, data, tmp_path):
    first = start_server(data)
    message = fails_to_start(tmp_path / "other", "--grpc", first.address)
    assert first.address in message, message
    check_serves(first, [1, 2, 3])


# Arguments, environment, and a word that the message must contain.
WRONG_COMMAND_LINES = [
    (["serve", "--no-such-flag"], {}, "--no-such-flag"),
    (["serve", "--durability", "perhaps"], {}, "perhaps"),
    (["serve", "--grpc", "nonsense"], {}, "nonsense"),
    (["serve", "--grpc", "127.0.0.1:70000"], {}, "70000"),
    (["serve", "--http", "nonsense"], {}, "nonsense"),
    (["serve", "--http", "none", "--http", "127.0.0.1:0"], {}, "none must be the only value"),
    (["serve", "--data"], {}, "--data"),
    (["no-such-command"], {}, "no-such-command"),
    ([], {}, "serve"),
    (["serve"], {"TALLY_DURABILITY": "perhaps"}, "perhaps"),
    (["serve"], {"TALLY_GRPC": "127.0.0.1:0,nonsense"}, "nonsense"),
    (["serve"], {"TALLY_HTTP": "127.0.0.1:0,none"}, "none must be the only value"),
]


@pytest.mark.parametrize(
    "arguments, environment, named",
    WRONG_COMMAND_LINES,
    ids=[
        " ".join([*environment, *arguments]) or "nothing" for arguments, environment, _ in WRONG_COMMAND_LINES
    ],
)
def test_a_wrong_command_line_is_exit_code_2(tmp_path, arguments, environment, named):
    done = subprocess.run(
        [str(binary()), *arguments],
        cwd=tmp_path,
        env=clean_environment(**environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        timeout=ANSWER_SECONDS_MAX,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert named in done.stderr and "panicked" not in done.stderr
    assert list(tmp_path.iterdir()) == [], "a wrong command line makes no folder"


def test_by_default_only_this_machine_can_connect(start_server, tmp_path):
    try:
        server = start_server(tmp_path / "data", grpc_flag=False)
    except ServerDidNotStart as failure:
        if f":{DEFAULT_PORT}" in failure.stderr and "in use" in failure.stderr:
            step_aside(f"port {DEFAULT_PORT} is taken")
        raise
    assert server.ready_line.startswith(f"ready: grpc 127.0.0.1:{DEFAULT_PORT}")
    # The second is left out on a machine without IPv6.
    assert set(server.addresses) <= {f"127.0.0.1:{DEFAULT_PORT}", f"[::1]:{DEFAULT_PORT}"}
    # 127.0.0.2 is this machine, too, but another address: only a server that listens on all of them has it.
    with socket.socket() as elsewhere:
        assert elsewhere.connect_ex(("127.0.0.2", DEFAULT_PORT)) == errno.ECONNREFUSED
