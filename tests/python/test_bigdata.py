"""clients/bigdata.py, run as a user runs it: it uploads random rows and checks their sums."""

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
import table_pb2
from conftest import CLIENTS, KIB, clean_environment, run_client, table
from stand_in_server import failed_with, running_stand_in

FILE1 = b"x,y,z\n1,2,3\n4,5,6\n"


@pytest.fixture
def stand_in():
    with running_stand_in() as servicer:
        yield servicer


@pytest.mark.parametrize("flag", ["--rows=0", "--batches=-1", "--clients=x", "--seed=1.5", "--unknown"])
def test_bigdata_refuses_what_makes_no_sense(flag, nobody):
    result = run_client("bigdata.py", flag, server=nobody)
    assert (result.returncode, result.stdout) == (2, "")


def last_line(result) -> str:
    """The last line of standard error, after the progress lines."""
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


def bigdata_table(stdout: str) -> dict:
    """column -> (csv sum, parquet sum, expected) of what bigdata.py prints."""
    lines = [line.strip() for line in stdout.splitlines() if line != "uploaded"]
    head, *rows = [re.split(r" {2,}", line) for line in lines]
    assert head == ["column", "csv sum", "parquet sum", "expected", "csv ms", "parquet ms"]
    return {row[0]: tuple(map(int, row[1:4])) for row in rows}


def csv_files(server) -> list:
    """The stored CSV files, in an order that does not depend on the order of the uploads."""
    return sorted(path.read_bytes() for path in (server.data / "parts").glob("*.csv"))


def test_bigdata_fills_the_table_and_checks_it(server):
    table(server).Upload(table_pb2.UploadReq(csv_data=FILE1))
    arguments = ("--batches=5", "--rows=25000", "--clients=2")
    result = run_client("bigdata.py", *arguments, server=server)
    assert result.returncode == 0, result.stderr
    sums = bigdata_table(result.stdout)
    assert sums["x"] == (125_005,) * 3  # 5 x 25,000 ones, and the 1 and 4 that were there
    for column in ("y", "z"):
        assert len(set(sums[column])) == 1
        assert run_client("csvsum.py", column, server=server).stdout.splitlines()[-1] == str(sums[column][0])
    assert result.stdout.splitlines()[:5] == ["uploaded"] * 5
    assert "5/5 batches, 125,000 rows, 2 MB" in result.stderr
    assert [receipt["rows"] for receipt in server.parts()] == [2] + [25_000] * 5
    for receipt in server.parts()[1:]:
        assert [(column["name"], column["type"]) for column in receipt["columns"]] == [
            ("x", "int64"),
            ("y", "int64"),
            ("z", "int64"),
        ]
        assert 14.5 < receipt["csv"]["bytes"] / receipt["rows"] < 15.5


def test_bigdatas_files_depend_on_the_seed_alone(start_server, tmp_path):
    files = {}
    for name, arguments in {
        "one client": ("--seed=7", "--clients=1"),
        "three clients": ("--seed=7", "--clients=3"),
        "another seed": ("--seed=8", "--clients=1"),
    }.items():
        server = start_server(tmp_path / name)
        result = run_client("bigdata.py", "--batches=4", "--rows=15001", *arguments, server=server)
        assert result.returncode == 0, result.stderr
        files[name] = csv_files(server)
    assert files["one client"] == files["three clients"]
    assert len(set(files["one client"]) | set(files["another seed"])) == 8  # no two batches are alike
    for file in files["one client"]:
        header, *rows = file.decode().splitlines()
        assert header == "x,y,z" and len(rows) == 15001
        assert all(re.fullmatch(r"1,-?[0-9]+,[0-9]+", row) for row in rows)
        assert len(set(rows)) > 14_000


def test_bigdata_sends_nothing_where_it_could_not_check(server):
    table(server).Upload(table_pb2.UploadReq(csv_data=b"x,y\n1,maybe\n"))
    (receipt,) = server.parts()
    message = failed_with(run_client("bigdata.py", "--batches=2", "--rows=10", server=server))
    assert message == (
        "nothing sent: what the table holds already does not sum:"
        f' part {receipt["part"]}, row 1, column "y": "maybe" is not an integer'
    )
    assert len(server.parts()) == 1


def test_bigdata_says_which_batch_failed(stand_in):
    stand_in.abort_streams_with = (grpc.StatusCode.RESOURCE_EXHAUSTED, "the disk is full")
    result = run_client("bigdata.py", "--batches=3", "--rows=10", "--clients=1", server=stand_in.address)
    assert (result.returncode, result.stdout) == (1, "")
    assert last_line(result) == f"batch 0: {stand_in.address}: the disk is full (RESOURCE_EXHAUSTED)"


def test_bigdata_believes_no_receipt(stand_in):
    stand_in.receipt_rows_too_many = 1
    result = run_client("bigdata.py", "--batches=3", "--rows=10", "--clients=1", server=stand_in.address)
    assert (result.returncode, result.stdout) == (1, "")
    message = r"batch 0: sent 10 rows in (\d+) bytes, the receipt says 11 rows in \1 bytes"
    assert re.fullmatch(message, last_line(result))


def test_bigdata_fails_when_a_sum_differs(stand_in):
    result = run_client("bigdata.py", "--batches=3", "--rows=10", server=stand_in.address)
    assert result.returncode == 1
    assert bigdata_table(result.stdout)["x"] == (0, 0, 30)
    assert last_line(result) == "not what was sent, or somebody else uploaded meanwhile: column x, y, z"


def test_bigdata_notices_that_a_client_process_was_killed(stand_in):
    stand_in.stream_goes_on.clear()
    process = subprocess.Popen(
        [sys.executable, CLIENTS / "bigdata.py", "--batches=2", "--rows=10", "--clients=1"],
        env=clean_environment(TALLY_SERVER=stand_in.address),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert stand_in.stream_began.wait(60)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (client,) = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(client), signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (1, "")
    assert stderr.splitlines()[-1] == "a client process ended with exit code -9"


def test_bigdata_rewrites_one_line_on_a_terminal(stand_in):
    terminal, terminal_of_client = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, CLIENTS / "bigdata.py", "--batches=20", "--rows=1000"],
        env=clean_environment(TALLY_SERVER=stand_in.address, COLUMNS="120"),
        stdout=subprocess.PIPE,
        stderr=terminal_of_client,
    )
    os.close(terminal_of_client)
    process.communicate(timeout=60)
    with open(terminal, "rb", buffering=0) as screen:
        lines = read_to_end(screen).decode().split("\r\n")
    (progress,) = [line for line in lines if "\r" in line]
    states = progress.split("\r")[1:]
    assert [state.split(" ")[0] for state in states] == [f"{count}/20" for count in range(1, 21)]
    assert re.fullmatch(r"20/20 batches, 20,000 rows, \d+ MB, [\d,]+ rows/s, 0 s left", states[-1].strip())
    assert all(len(state) == 119 for state in states)


def read_to_end(terminal) -> bytes:
    """Reads until the other side is closed, which a terminal reports as an error."""
    blocks = []
    while True:
        try:
            block = terminal.read(64 * KIB)
        except OSError:
            return b"".join(blocks)
        if not block:
            return b"".join(blocks)
        blocks.append(block)
