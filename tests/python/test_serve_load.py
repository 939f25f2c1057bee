"""`tally serve --load FILE...`: files that are uploaded before the server is ready."""

import os
import signal
import subprocess

import pytest
import table_pb2
import tally_pb2
from conftest import INPUTS, ServerDidNotStart, binary, clean_environment, table, tally, wait_until


def sum_of(server, column: str) -> int:
    answer = table(server).ColSum(table_pb2.ColSumReq(column=column, format="parquet"))
    assert answer.error == ""
    return answer.total


def test_files_are_in_the_table_once_however_often_it_starts(start_server, tmp_path):
    data = tmp_path / "data"
    files = [INPUTS / "simple.csv", INPUTS / "second.csv"]
    first = start_server(data, "--load", *files)
    assert first.parts_count_at_start == 2
    assert sum_of(first, "x") == 10
    # Uploading the same bytes by a client makes another part.
    with open(files[0], "rb") as file:
        table(first).Upload(table_pb2.UploadReq(csv_data=file.read()))
    first.stop()

    changed = tmp_path / "simple.csv"
    changed.write_bytes(files[0].read_bytes().replace(b"1", b"2"))  # of the same size
    again = start_server(data, "--load", *files, "--load", changed)
    assert again.parts_count_at_start == 4
    # 1 + 4 and 5 + 0 by --load, 1 + 4 by the client, 2 + 4 of the changed file.
    assert sum_of(again, "x") == 10 + 5 + 6
    receipts = list(tally(again).ListParts(tally_pb2.ListPartsRequest()))
    assert [receipt.part for receipt in receipts] == [1, 2, 3, 4]
    again.stop()


def test_a_file_may_have_a_comma_in_its_name(start_server, tmp_path):
    file = tmp_path / "a,b.csv"
    file.write_bytes((INPUTS / "simple.csv").read_bytes())
    server = start_server(tmp_path / "data", "--load", file, INPUTS / "second.csv")
    assert server.parts_count_at_start == 2
    assert sum_of(server, "x") == 10


def test_commas_separate_the_files_in_the_environment_variable(start_server, tmp_path):
    files = f"{INPUTS / 'simple.csv'},{INPUTS / 'second.csv'}"
    server = start_server(tmp_path / "data", env={"TALLY_LOAD": files})
    assert server.parts_count_at_start == 2
    assert sum_of(server, "x") == 10


@pytest.mark.parametrize("damaged", ["csv", "json"])
def test_a_file_whose_part_is_in_quarantine_is_not_loaded_again(start_server, tmp_path, damaged):
    """If it were, its rows would be counted twice once the part is restored."""
    data, file = tmp_path / "data", INPUTS / "simple.csv"
    other = tmp_path / "other.csv"
    other.write_bytes(b"x,y\n100,1\n")
    start_server(data, "--load", file).stop()
    path = data / "parts" / f"1.{damaged}"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])

    server = start_server(data, "--load", file, other, "--incomplete", "answer")
    # Without a receipt nobody knows which file the part was.
    assert sum_of(server, "x") == (0 if damaged == "json" else 100)
    server.log_line(f"part=1 file={file}", "tally forget")
    server.stop()

    for moved in (data / "quarantine").glob("1.*"):
        moved.rename(data / "parts" / moved.name)
    path.write_bytes(whole)
    server = start_server(data, "--load", file, other)
    assert server.parts_count_at_start == 2 and sum_of(server, "x") == 5 + 100


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"a,b\n1\n", "row 1 (line 2) has 1 cell, the header has 2"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_loaded_ends_the_start(start_server, tmp_path, content, reason):
    bad = tmp_path / "bad.csv"
    if content is not None:
        bad.write_bytes(content)
    with pytest.raises(ServerDidNotStart) as failure:
        start_server(tmp_path / "data", "--load", INPUTS / "simple.csv", bad)
    assert failure.value.exit_code == 1
    last = failure.value.stderr.splitlines()[-1]
    assert last.startswith(f"error: --load {bad}: ") and reason in last and last.count(str(bad)) == 1
    # Files loaded before the error stay, and the next start does not load them again.
    server = start_server(tmp_path / "data", "--load", INPUTS / "simple.csv")
    assert server.parts_count_at_start == 1


def test_a_pipe_is_refused(start_server, tmp_path):
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    with pytest.raises(ServerDidNotStart) as failure:
        start_server(tmp_path / "data", "--load", pipe)
    assert failure.value.exit_code == 1
    assert failure.value.stderr.splitlines()[-1] == f"error: --load {pipe}: cannot read: not a regular file"


def test_a_signal_ends_the_start_while_files_are_loaded(start_server, tmp_path):
    files = [tmp_path / f"{index}.csv" for index in range(2000)]
    for index, file in enumerate(files):
        file.write_bytes(b"x,y\n%d,1\n" % index)
    data = tmp_path / "data"
    command = [binary(), "serve", "--data", data, "--grpc", "127.0.0.1:0", "--http", "none", "--load", *files]
    with open(tmp_path / "stderr", "wb") as stderr:
        process = subprocess.Popen(command, env=clean_environment(), stdout=subprocess.PIPE, stderr=stderr)
    try:
        wait_until(lambda: list((data / "parts").glob("*.json")), "the first files are loaded")
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, output) == (0, b""), "it ends before its ready line"
    server = start_server(data)
    assert 1 <= server.parts_count_at_start < len(files)
