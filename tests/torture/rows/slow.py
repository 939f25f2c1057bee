"""Row 7: slow and idle clients, half-open connections, 10,000 connections and 64 file descriptors, beside honest clients."""

import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import Dict, Iterator, List, NamedTuple, Optional

from attacks import HELD, OPENING, call, frame, setting
from conftest import Server
from core import TORTURE, Row, Run
from invariants import check, check_alive, check_idle, check_no_leftovers
from rows.protocol import Honest, add_large_part, p99
from test_idle_after_calls import tasks_count

# The short form runs in `make test`, with a debug build on machines that do other things: it asserts that nobody is shut out.
P99_SECONDS_MAX = {"full": 1.0, "short": 30.0}
SCENARIO_SECONDS = {"full": 10.0, "short": 2.0}
HALF_HEAD = b"POST /api/v1/table/parts HTTP/1.1\r\nHost: localhost\r\nContent-Le"
HALF_BODY = b"POST /api/v1/table/parts HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\nx\n1"
DOWNLOAD = b"GET /api/v1/table/parts/1/csv HTTP/1.1\r\nHost: localhost\r\n\r\n"
NO_WINDOW = frame(4, 0, 0, setting(4, 0))
PLAIN, SECOND = "grpc", "http"


class Scenario(NamedTuple):
    """So many connections to a port that send this, a byte a second after that, and read nothing."""

    connections: int
    port: str
    first: bytes
    trickle: bytes = b""
    prefix: tuple = ()
    # Whether they leave with a reset and come again at once.
    resets: bool = False
    # The most time for an honest round, if it is not that of the form.
    seconds_max: Optional[float] = None


# With so few files the server takes 8 connections at once. A client that comes after 300 others waits until those were tried.
FEW_FILES_SECONDS_MAX = 30.0
FEW_FILES = ("prlimit", "--nofile=64:64")
SCENARIOS: Dict[str, Scenario] = {
    "idle gRPC connections": Scenario(300, PLAIN, b""),
    "idle connections with a preface": Scenario(300, PLAIN, OPENING),
    "half a preface": Scenario(300, PLAIN, OPENING[:12]),
    "connections that have called once": Scenario(300, PLAIN, OPENING + call(1)),
    "uploads that stop": Scenario(200, PLAIN, OPENING + HELD + frame(0, 0, 1, b"\0\0\0\xff\xffx\n")),
    "uploads of a byte a second": Scenario(200, PLAIN, OPENING + HELD + frame(0, 0, 1, b"\0\0\0\xff\xffx\n"), frame(0, 0, 1, b"1")),
    "answers without a window": Scenario(100, PLAIN, OPENING + NO_WINDOW + b"".join(call(turn) for turn in range(1, 20))),
    "idle HTTP connections": Scenario(300, SECOND, b""),
    "half a head": Scenario(300, SECOND, HALF_HEAD),
    "a head of a byte a second": Scenario(300, SECOND, HALF_HEAD, b"x"),
    "half a body": Scenario(200, SECOND, HALF_BODY),
    "a body of a byte a second": Scenario(200, SECOND, HALF_BODY, b"1"),
    "downloads that are not read": Scenario(200, SECOND, DOWNLOAD * 4),
    "connections that are reset": Scenario(500, SECOND, DOWNLOAD, resets=True),
    "10,000 connections": Scenario(10_000, PLAIN, OPENING),
    "64 file descriptors": Scenario(300, PLAIN, OPENING + call(1), prefix=FEW_FILES, seconds_max=FEW_FILES_SECONDS_MAX),
}


@contextmanager
def attacked(server: Server, scenario: Scenario) -> Iterator[None]:
    address = server.address if scenario.port == PLAIN else server.http_addresses[0]
    words = [sys.executable, "-S", TORTURE / "slow_clients.py", address, scenario.connections, scenario.first.hex() or "-"]
    words += [scenario.trickle.hex() or "-", int(scenario.resets)]
    with subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE) as process:
        try:
            check(process.stdout.readline() == b"open\n", "the slow clients did not start")
            yield
            check(process.poll() is None, "the slow clients have ended")
        finally:
            process.kill()


def one(run: Run, name: str, form: str) -> List[float]:
    scenario = SCENARIOS[name]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if scenario.connections + 200 > hard:
        run.note(f"{name}: left out, this process may open only {hard} files")
        return []
    with Server(run.folder / f"data-{run.done}", "--log", "error", "--durability", "none", prefix=scenario.prefix) as server:
        honest = Honest(server)
        add_large_part(server, honest)
        tasks_before = tasks_count(server)
        with attacked(server, scenario):
            if run.is_sabotaged:
                server.process.send_signal(signal.SIGSTOP)
            ends = time.monotonic() + SCENARIO_SECONDS[form]
            while time.monotonic() < ends or len(honest.seconds) < 3:
                honest.ask()
            check_alive(server)
        honest.ask()
        check_idle(server, tasks_before, 60)
        check_no_leftovers(server)
        server.stop()
    slowest = p99(honest.calls)
    check(slowest < (scenario.seconds_max or P99_SECONDS_MAX[form]), f"{name}: p99 of honest calls is {slowest:.2f} s")
    if max(honest.calls) > 1:
        run.note(f"{name}: the slowest of {len(honest.calls)} honest calls took {max(honest.calls):.1f} s")
    return [] if scenario.seconds_max is not None else honest.calls


def slow(run: Run) -> None:
    form = "short" if run.amount <= run.row.short else "full"
    names = list(SCENARIOS)
    run.choices.shuffle(names)
    calls: List[float] = []
    for number in run.rounds():
        calls += one(run, names[(number - 1) % len(names)], form)
    run.figures["honest calls"] = len(calls)
    if calls:
        run.figures["p99 of an honest call in ms"] = round(1000 * p99(calls))


ROW = Row(7, "slow", "slow and idle clients, half-open connections, 10,000 connections, 64 file descriptors", "scenarios", 4, len(SCENARIOS), 20, slow, 6)
