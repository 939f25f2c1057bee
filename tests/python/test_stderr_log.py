"""The log on standard error: it delays no call, its size is limited, it names the client of a call, and shows no
cells.
"""

import fcntl
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import List

import grpc
import numstore_pb2
import pytest
import requests
import table_pb2
import tally_pb2
from conftest import KIB, Server, numstore, start_with, table, tally, wait_until
from uploads import stream_error, unary_error

ANSWER_SECONDS_MAX = 60
CSV = b"x,y\n1,2\n"
HOSTILE_NAME = "\n\x1b[31m2026-01-01 INFO forged" + "x" * 10_000
SECRET = "cell-that-nobody-may-see"


class StuckPipe:
    """A full pipe that nobody reads."""

    def __init__(self, path: Path):
        os.mkfifo(path)
        self.path = path
        self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        self._ends = [self._reader, self._writer]
        self.filled_bytes = fcntl.fcntl(self._writer, fcntl.F_GETPIPE_SZ)
        assert os.write(self._writer, b"\n" * self.filled_bytes) == self.filled_bytes

    def read(self) -> str:
        """Everything that was written to it so far, without the bytes that filled it."""
        text = b""
        while True:
            try:
                text += os.read(self._reader, 1 << 20)
            except BlockingIOError:
                return text.decode().lstrip("\n")

    def server(self, start_server, data, *flags) -> Server:
        redirected = ("bash", "-c", 'exec "$@" 2>"$STUCK"', "bash")
        return start_server(data, *flags, prefix=redirected, env={"STUCK": str(self.path)})

    def close(self) -> None:
        while self._ends:
            os.close(self._ends.pop())


@pytest.fixture
def pipe(tmp_path):
    stuck = StuckPipe(tmp_path / "stderr")
    yield stuck
    stuck.close()


def metric(server: Server, name: str) -> float:
    text = requests.get(server.http + "/metrics", timeout=ANSWER_SECONDS_MAX).text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(name + " "))


def upload(server: Server, number: int) -> None:
    request = table_pb2.UploadReq(csv_data=b"x\n%d\n" % number)
    assert table(server).Upload(request, timeout=ANSWER_SECONDS_MAX).error == ""


def column_sum(server: Server) -> int:
    request = table_pb2.ColSumReq(column="x", format="csv")
    return table(server).ColumnSum(request, timeout=ANSWER_SECONDS_MAX).total


def test_standard_error_that_nobody_reads_holds_up_nobody(start_server, tmp_path, pipe):
    server = pipe.server(start_server, tmp_path / "data", "--durability", "none")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: upload(server, number), range(2000)))
    assert requests.get(server.http + "/livez", timeout=ANSWER_SECONDS_MAX).text == "alive\n"
    assert requests.get(server.http + "/readyz", timeout=ANSWER_SECONDS_MAX).text == "ready\n"
    assert column_sum(server) == sum(range(2000))
    lost = metric(server, "tally_stderr_lines_dropped_total")
    assert 0 < lost <= 2003
    assert server.anonymous_bytes() < 100 * 1024 * 1024

    # A reader that returns gets the lines that were kept, and the number of those that were lost.
    log = []
    wait_until(lambda: log.append(pipe.read()) or "log lines were dropped" in "".join(log), "the loss is told")
    told = re.search(r"log lines were dropped: .* lines=(\d+)", "".join(log))
    assert int(told[1]) >= lost
    column_sum(server)
    wait_until(lambda: log.append(pipe.read()) or "Table/ColumnSum" in "".join(log), "the log goes on")
    server.stop()


def test_a_stop_does_not_wait_for_who_reads_standard_error(start_server, tmp_path, pipe):
    server = pipe.server(start_server, tmp_path / "data")
    upload(server, 1)
    server.stop()


def test_standard_error_whose_reader_is_gone_ends_nothing(start_server, tmp_path, pipe):
    pipe.read()
    server = pipe.server(start_server, tmp_path / "data")
    pipe.close()
    for number in range(5):
        upload(server, number)
    assert column_sum(server) == sum(range(5))
    wait_until(lambda: metric(server, "tally_stderr_lines_dropped_total") >= 6, "its lines are counted")
    server.stop()


def lines_of(server: Server) -> list:
    """All lines; the server must run with --log-format json."""
    return [json.loads(line) for line in server.stderr.splitlines()]


def test_many_lines_of_one_client_and_call_are_summed_up(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--durability", "none", "--log-format", "json")
    for number in range(300):
        upload(server, number)
    for _ in range(5):
        column_sum(server)
    summed = metric(server, "tally_stderr_lines_suppressed_total")
    server.stop()
    lines = lines_of(server)
    kept = [line for line in lines if line["message"] == "uploaded"]
    sums = [line for line in lines if "more lines like this" in line["message"]]
    more = [re.fullmatch(r"(\d+) more lines like this in the last 10 s", line["message"])[1] for line in sums]
    # A new count begins every 10 s, however slow this machine is.
    assert len(kept) + sum(map(int, more)) == 300 and len(kept) <= 20 * len(sums) + 20
    assert sum(map(int, more)) == summed > 200
    assert {line["similar_to"] for line in sums} == {"uploaded: Table/Upload of 127.0.0.1"}
    assert {line["level"] for line in sums} == {"INFO"}
    assert len([line for line in lines if line["message"] == "summed"]) == 5, "another kind has its own count"


def test_each_call_is_logged_with_its_clients_address(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--log-format", "json", "--log", "debug")
    upload(server, 1)
    assert table(server).Upload(table_pb2.UploadReq(csv_data=b"")).error != ""
    column_sum(server)
    tally(server).Upload(iter([tally_pb2.UploadChunk(data=b"x\n2\n")]))
    list(tally(server).ListParts(tally_pb2.ListPartsRequest()))
    list(tally(server).GroupSum(tally_pb2.GroupSumRequest(by=["x"], sum=["y"])))
    numstore(server).SetNum(numstore_pb2.SetNumRequest(key="a", value=5))
    numstore(server).Fact(numstore_pb2.FactRequest(key="a"))
    requests.get(server.http + "/livez", timeout=ANSWER_SECONDS_MAX)
    requests.post(server.http + "/api/states_mean", json={"question": "q"}, timeout=ANSWER_SECONDS_MAX)
    server.stop()
    lines = lines_of(server)
    calls = [line for line in lines if line["target"].startswith("tally::api::grpc") and "call" in line]
    assert [line["call"] for line in calls] == [
        "Table/Upload",
        "Table/Upload",
        "Table/ColumnSum",
        "Tally/Upload",
        "Tally/ListParts",
        "Tally/GroupSum",
        "NumStore/SetNum",
        "NumStore/Fact",
    ]
    assert len({line["peer"] for line in calls}) == 1, "they came over one connection"
    exits = [line for line in lines if line["message"] == "exit"]
    assert [line["span"]["target"] for line in exits] == ['"/livez"', '"/api/states_mean"']
    for line in [*calls, *exits]:
        assert re.fullmatch(r"127\.0\.0\.1:\d+", line["peer"]), line


@pytest.mark.parametrize("path", ["/api/v1/file-processing/tasks/", "/api/states_mean"])
def test_a_failure_over_http_is_logged_with_its_clients_address(start_server, tmp_path, path):
    server = start_server(tmp_path / "data", "--log-format", "json", "--log", "error")
    jobs = server.data / "jobs"
    jobs.rename(server.data / "jobs-elsewhere")
    jobs.write_text("no folder")  # nothing can be written into it, whoever runs this
    url, form = server.http + path, {"file": ("a.csv", b"Song,Date,Number of Plays\na,2024-01-01,1\n")}
    question = {"files": form} if path.startswith("/api/v1/") else {"json": {"question": "q"}}
    answer = requests.post(url, timeout=ANSWER_SECONDS_MAX, **question)
    assert answer.status_code == 500, answer.text
    jobs.unlink()
    (server.data / "jobs-elsewhere").rename(jobs)
    server.stop()
    [failed] = [line for line in lines_of(server) if line["message"] == "a request failed"]
    assert re.fullmatch(r"127\.0\.0\.1:\d+", failed["peer"]), failed


@pytest.mark.parametrize("flags, env", [([], {}), (["--log-values"], {}), ([], {"TALLY_LOG_VALUES": "true"})])
def test_what_is_in_cells_is_logged_on_request_only(start_server, tmp_path, flags, env):
    server = start_server(tmp_path / "data", "--log", "trace", *flags, env=env)
    largest = 2**63 - 1
    for csv in (f"x,y\n{SECRET},1\n", f"g,n\n{SECRET},{largest}\n{SECRET},{largest}\n"):
        assert table(server).Upload(table_pb2.UploadReq(csv_data=csv.encode())).error == ""
    for file_format in ("csv", "parquet"):
        error = table(server).ColumnSum(table_pb2.ColSumReq(column="x", format=file_format)).error
        assert SECRET in error, "the client is told"
    for by, sum_of in (("y", "x"), ("g", "n")):
        with pytest.raises(grpc.RpcError) as failure:
            list(tally(server).GroupSum(tally_pb2.GroupSumRequest(by=[by], sum=[sum_of])))
        assert SECRET in failure.value.details()
    server.stop()
    if flags or env:
        assert server.stderr.count(SECRET) == 4
    else:
        assert SECRET not in server.stderr
        assert server.stderr.count(f'column "x": a cell of {len(SECRET)} bytes is not an integer') == 3
        assert server.stderr.count('column "n": the sum of a group does not fit in 64 bits') == 1


def call_lines(server: Server) -> List[dict]:
    """The log lines about calls. The server must run with --log-format json, so every line is an object."""
    lines = [json.loads(line) for line in server.stderr.splitlines()]
    assert all(isinstance(line, dict) for line in lines)
    return [line for line in lines if "call" in line]


@pytest.mark.parametrize("way", ["flag", "environment"])
def test_each_call_is_one_line_of_json(start_server, tmp_path, way):
    server = start_with(start_server, tmp_path / "data", way, log_format="json")
    expected = []

    def check_next(call: str, level: str) -> dict:
        """Exactly one line was logged since the last call."""
        expected.append((call, level))
        wait_until(lambda: len(call_lines(server)) >= len(expected), f"a line on {call}")
        assert [(line["call"], line["level"]) for line in call_lines(server)] == expected
        return call_lines(server)[-1]

    assert unary_error(server, CSV) == ""
    line = check_next("Table/Upload", "INFO")
    assert (line["rows"], line["columns"], line["bytes"]) == (1, 2, len(CSV))
    refusal = unary_error(server, b"x,y\n1\n")
    assert check_next("Table/Upload", "WARN")["error"] == refusal == "row 1 (line 2) has 1 cell, the header has 2"
    assert stream_error(server, CSV) == ""
    check_next("Tally/Upload", "INFO")
    refusal = stream_error(server, b"x,x\n")
    assert check_next("Tally/Upload", "WARN")["error"] == refusal != ""

    for ask in (table(server).ColumnSum, table(server).ColSum):
        assert ask(table_pb2.ColSumReq(column="x", format="csv")).total == 2
        line = check_next("Table/ColumnSum", "INFO")
        assert (line["column"], line["format"], line["total"]) == ('"x"', '"csv"', 2)
        refusal = ask(table_pb2.ColSumReq(column="x", format="xml")).error
        assert check_next("Table/ColumnSum", "WARN")["error"] == refusal != ""

    assert len(list(tally(server).ListParts(tally_pb2.ListPartsRequest()))) == 2
    check_next("Tally/ListParts", "INFO")
    server.stop()
    assert len(call_lines(server)) == len(expected)


def test_hostile_text_is_one_short_harmless_line(start_server, tmp_path):
    """In the text format, where the server must escape newlines itself."""
    server = start_server(tmp_path / "data")
    lines_before = server.stderr.count("\n")
    answer = table(server).ColumnSum(table_pb2.ColSumReq(column=HOSTILE_NAME, format="csv"))
    assert (answer.total, answer.error) == (0, "")  # no part has such a column
    assert table(server).ColumnSum(table_pb2.ColSumReq(column="x", format=HOSTILE_NAME)).error != ""
    name = HOSTILE_NAME[:500]  # a header takes names of 1 KiB
    assert unary_error(server, f'"{name}","{name}"\n'.encode()) != ""
    wait_until(lambda: server.stderr.count("\n") >= lines_before + 3, "three lines in the log")
    lines = server.stderr.split("\n")[lines_before:-1]
    assert len(lines) == 3
    for line in lines:
        assert "forged" in line and "\\n" in line and "\\u{1b}" in line
        assert line.isprintable() and len(line) < KIB
