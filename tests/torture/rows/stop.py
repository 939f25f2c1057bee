"""Row 12: SIGTERM under load, clocks that jump, clients that never close, standard error that nobody reads."""

import os
import signal
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List, Optional

import tally_pb2
import tally_pb2_grpc
import grpc
from conftest import CHANNEL_OPTIONS, Server
from core import Row, Run
from invariants import check, check_alive, check_no_leftovers, check_verify
from model import Model
from test_stderr_log import StuckPipe

CLIENTS = 16
LOAD_SECONDS_MAX = 1.2
# A call whose client neither sends nor reads gets 5 s; the rest is for a machine that does much else.
STOP_SECONDS_MAX = 20
FAKETIME = [Path(folder) / "faketime/libfaketimeMT.so.1" for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib")]
# In seconds. Less than what a removed part or a result is kept.
JUMPS = (0, -3600, 7200, -86_000, 40_000, 1, -1)
FLAGS = ("--pack-above", "20", "--undo-s", "10000000", "--jobs-age-s", "10000000", "--jobs-sweep-s", "86400", "--log", "info")


def faketime() -> Optional[Path]:
    return next((path for path in FAKETIME if path.exists()), None)


class Clock:
    """What the server's clock shows, through libfaketime. Its monotonic clock goes on as it should."""

    def __init__(self, folder: Path):
        self.file = folder / "clock"
        self.set(0)

    def set(self, seconds: int) -> None:
        beside = self.file.with_suffix(".new")
        beside.write_text(f"{seconds:+d}\n")
        beside.rename(self.file)

    def environment(self) -> dict:
        return {
            "LD_PRELOAD": str(faketime()),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }


@contextmanager
def never_closing(server: Server) -> Iterator[None]:
    """Connections that stay open and say no more: none at all, half a head, half an upload, half a form."""
    sockets: List[socket.socket] = []
    host, port = server.http_addresses[0].rsplit(":", 1)
    for sent in (b"", b"GET /livez HTTP/1.1\r\nHost: lo", b"POST /api/v1/table/parts HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\nx\n"):
        sockets.append(socket.create_connection((host, int(port)), timeout=10))
        sockets[-1].sendall(sent)
    host, port = server.address.rsplit(":", 1)
    sockets.append(socket.create_connection((host, int(port)), timeout=10))
    over = threading.Event()

    def chunks():
        yield tally_pb2.UploadChunk(data=b"x\n1\n")
        over.wait(120)

    channel = grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS)
    upload = tally_pb2_grpc.TallyStub(channel).Upload.future(chunks(), timeout=120)
    try:
        yield
    finally:
        over.set()
        upload.cancel()
        channel.close()
        for each in sockets:
            each.close()


class Rounds:
    """A table that is served, stopped and started again in several ways."""

    def __init__(self, run: Run):
        self.run = run
        self.model = Model(CLIENTS, f"seed{run.seed}")
        self.data = run.folder / "data"
        self.clock = Clock(run.folder) if faketime() else None
        if self.clock is None:
            run.note("no clock jumped: libfaketime is not there")

    def one(self, number: int) -> None:
        way = ["load", "clients that never close", "stderr unread", "clock jumps"][number % 4]
        if way == "clock jumps" and self.clock is None:
            way = "load"
        pipe, options = None, {}
        if way == "stderr unread":
            path = self.run.folder / f"stderr-{number}"
            pipe = StuckPipe(path)
            options = {"prefix": ("bash", "-c", 'exec "$@" 2>"$STUCK"', "bash"), "env": {"STUCK": str(path)}}
        elif way == "clock jumps":
            options = {"env": self.clock.environment()}
        try:
            with Server(self.data, *FLAGS, **options) as server:
                self.model.settle(server, self.run.choices)
                self.load_and_stop(server, way)
        finally:
            if pipe:
                pipe.close()
        self.run.figures[way] += 1

    def load_and_stop(self, server: Server, way: str) -> None:
        is_over = threading.Event()
        threads = self.model.start(server, self.run.choices, is_over)
        if way == "clients that never close":
            with never_closing(server):
                self.stop_after_a_while(server, way)
        else:
            self.stop_after_a_while(server, way)
        is_over.set()
        for thread in threads:
            thread.join()
        self.model.check_no_failure()

    def stop_after_a_while(self, server: Server, way: str) -> None:
        choices = self.run.choices
        ends = time.monotonic() + choices.uniform(0.05, LOAD_SECONDS_MAX)
        while time.monotonic() < ends:
            if way == "clock jumps":
                self.clock.set(choices.choice(JUMPS))
            time.sleep(0.1)  # the load is the subject
        check_alive(server)
        if self.run.is_sabotaged:
            server.process.send_signal(signal.SIGSTOP)
            threading.Timer(STOP_SECONDS_MAX + 1, lambda: os.kill(server.pid, signal.SIGCONT)).start()
        begun = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        code = server.wait()
        seconds = time.monotonic() - begun
        check(code == 0, f"{way}: exit code {code}:\n{server.stderr[-4000:]}")
        check(seconds < STOP_SECONDS_MAX, f"{way}: the stop took {seconds:.1f} s")
        check("panicked" not in server.stderr, server.stderr[-4000:])
        self.run.most("longest stop in ms", round(1000 * seconds))


def stop(run: Run) -> None:
    rounds = Rounds(run)
    for number in run.rounds():
        rounds.one(number)
    with Server(rounds.data, *FLAGS) as server:
        rounds.model.settle(server, run.choices)
        check_no_leftovers(server)
        server.stop()
    check_verify(rounds.data)
    run.figures["acknowledged"] = rounds.model.acknowledged()


ROW = Row(12, "stop", "SIGTERM under load, clock jumps, clients that never close, standard error unread", "rounds", 5, 100, 20, stop, 4)
