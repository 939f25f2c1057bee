"""The log on standard error: it holds up no call, grows within bounds, tells who called, and not what is in cells."""

import fcntl
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import table_pb2
import tally_pb2
from conftest import Server, table, tally, wait_until

ANSWER_SECONDS_MAX = 60
SECRET = "cell-that-nobody-may-see"


class StuckPipe:
    """A pipe, full to the brim, that nobody reads."""

    def __init__(self, path: Path):
        os.mkfifo(path)
        self.path = path
        self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        self.filled_bytes = fcntl.fcntl(self._writer, fcntl.F_GETPIPE_SZ)
        assert os.write(self._writer, b"\n" * self.filled_bytes) == self.filled_bytes

    def read(self) -> str:
        """What came so far, but for what filled it."""
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
        os.close(self._reader)
        os.close(self._writer)


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
    lost = metric(server, "tally_stderr_lines_lost_total")
    assert 0 < lost <= 2003
    assert server.anonymous_bytes() < 100 * 1024 * 1024

    # Who reads again sees what was kept, and is told what was not.
    log = []
    wait_until(lambda: log.append(pipe.read()) or "log lines were lost" in "".join(log), "the loss is told")
    told = re.search(r"log lines were lost: .* lines=(\d+)", "".join(log))
    assert int(told[1]) >= lost
    column_sum(server)
    wait_until(lambda: log.append(pipe.read()) or "Table/ColumnSum" in "".join(log), "the log goes on")
    server.stop()


def test_a_stop_does_not_wait_for_who_reads_standard_error(start_server, tmp_path, pipe):
    server = pipe.server(start_server, tmp_path / "data")
    upload(server, 1)
    server.stop()


def test_standard_error_that_is_closed_ends_nothing(start_server, tmp_path):
    closed = ("bash", "-c", 'exec "$@" 2>&-', "bash")
    server = start_server(tmp_path / "data", prefix=closed)
    for number in range(30):
        upload(server, number)
    assert column_sum(server) == sum(range(30))
    server.stop()
