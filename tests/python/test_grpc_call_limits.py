"""The memory that clients can make the server use is limited: open calls, headers, unread answers, waiting sums.

Each attack runs against a real server in a control group of 512 MiB without swap, where this machine lets us make one.
Beside it honest clients are answered, the anonymous memory stays below its bound, and it is back soon after.
TALLY_ATTACK_SECONDS sets how long each attack lasts.
"""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Iterator, List, Optional

import grpc
import h2.exceptions
import pytest
import table_pb2
import table_pb2_grpc
import tally_pb2
import tally_pb2_grpc
from attackers import ATTACKS
from conftest import CHANNEL_OPTIONS, Server, table, tally, wait_until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from h2.settings import SettingCodes
from raw_grpc import OK, Connection, message

MIB = 1024 * 1024
ATTACK_SECONDS = float(os.environ.get("TALLY_ATTACK_SECONDS", "4"))
CONTAINER_BYTES = 512 * MIB
ANONYMOUS_BYTES_MAX = 256 * MIB
BACK_BYTES_MAX = 20 * MIB
BACK_SECONDS_MAX = 10
HONEST_SECONDS_MAX = 30
HONEST_CALLS_MIN = 3
COLUMNS = 1000
ROWS_OF_A_LARGE_PART = 2_000_000
LARGE_SUM = table_pb2.ColSumReq(column="x", format="csv")
WORKERS = 8


@contextmanager
def control_group() -> Iterator[Optional[Path]]:
    """A fresh memory control group of 512 MiB without swap, of either version; `None` if it cannot be made."""
    root = Path("/sys/fs/cgroup")
    version_1 = (root / "memory" / "memory.limit_in_bytes").exists()
    group = (root / "memory" if version_1 else root) / f"tally-test-{os.getpid()}"
    limits = ["memory.limit_in_bytes"] if version_1 else ["memory.max"]
    limits += ["memory.memsw.limit_in_bytes"] if version_1 else []
    try:
        group.mkdir()
    except OSError:
        yield None
        return
    try:
        for name in limits:
            if (group / name).exists():
                (group / name).write_text(str(CONTAINER_BYTES))
        if (group / "memory.swap.max").exists():
            (group / "memory.swap.max").write_text("0")
        yield group if (group / limits[0]).exists() else None
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "the server's process is gone")
        group.rmdir()


@pytest.fixture
def contained_server(tmp_path):
    """A server in a control group, with one part that has 1 MB of column names and one that takes a while to sum."""
    with control_group() as group:
        prefix = ()
        if group is not None:
            prefix = ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
        with Server(tmp_path / "data", "--durability", "none", "--log", "error", prefix=prefix) as server:
            names = ",".join(f"{index:04}" + "n" * 1000 for index in range(COLUMNS))
            assert upload(server, names.encode() + b"\n" + b"1," * (COLUMNS - 1) + b"1\n") == ""
            rows = b"".join(b"%d,%d\n" % (index % 1000, index) for index in range(1000))
            assert upload(server, b"key,x\n" + rows * (ROWS_OF_A_LARGE_PART // 1000)) == ""
            yield server
            assert server.is_running(), "the server was ended"
            server.stop()


def upload(server: Server, csv: bytes) -> str:
    return table(server).Upload(table_pb2.UploadReq(csv_data=csv), timeout=HONEST_SECONDS_MAX).error


class Honest(threading.Thread):
    """A client that asks, one thing after the other and each on a new connection, until it is stopped."""

    def __init__(self, server: Server):
        super().__init__(daemon=True)
        self.server = server
        self.is_stopped = threading.Event()
        self.failures: List[str] = []
        self.seconds: List[float] = []

    def ask(self) -> None:
        with grpc.insecure_channel(self.server.address, options=CHANNEL_OPTIONS) as channel:
            ready = {"timeout": HONEST_SECONDS_MAX, "wait_for_ready": True}
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), **ready)
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            stub = table_pb2_grpc.TableStub(channel)
            assert stub.Upload(table_pb2.UploadReq(csv_data=b"honest\n1\n"), **ready).error == ""
            total = stub.ColSum(table_pb2.ColSumReq(column="honest", format="csv"), **ready).total
            assert total >= 1
            listed = tally_pb2_grpc.TallyStub(channel).ListParts(tally_pb2.ListPartsRequest(after=2, limit=3), **ready)
            assert len(list(listed)) >= 1

    def run(self) -> None:
        while not self.is_stopped.is_set():
            started = time.monotonic()
            try:
                self.ask()
            except (grpc.RpcError, AssertionError) as error:
                self.failures.append(repr(error))
            else:
                self.seconds.append(time.monotonic() - started)


class Peak(threading.Thread):
    """The most anonymous memory that a server had."""

    def __init__(self, server: Server):
        super().__init__(daemon=True)
        self.server = server
        self.bytes = 0
        self.is_stopped = threading.Event()

    def run(self) -> None:
        while not self.is_stopped.wait(0.01) and self.server.is_running():
            try:
                self.bytes = max(self.bytes, self.server.anonymous_bytes())
            except (OSError, AssertionError):
                return  # the server has ended, which the test notices


@pytest.mark.parametrize("name", list(ATTACKS))
def test_attack(contained_server, name):
    server = contained_server
    honest, peak = Honest(server), Peak(server)
    # The first calls of each kind allocate memory that workers keep. It is part of the baseline.
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(lambda _: table(server).ColSum(LARGE_SUM, timeout=HONEST_SECONDS_MAX), range(2 * WORKERS)))
    honest.ask()
    before = server.anonymous_bytes()
    honest.start()
    peak.start()
    command = [sys.executable, Path(__file__).with_name("attackers.py"), name, server.address, str(ATTACK_SECONDS)]
    subprocess.run([str(part) for part in command], check=True, timeout=ATTACK_SECONDS + 60)
    for watcher in (honest, peak):
        watcher.is_stopped.set()
        watcher.join()
    assert server.is_running(), f"the server was ended at {peak.bytes / MIB:.0f} MiB"
    print(f"{name}: from {before / MIB:.0f} MiB to {peak.bytes / MIB:.0f} MiB")
    print(f"{len(honest.seconds)} honest rounds, the longest took {max(honest.seconds, default=0):.2f} s")
    assert honest.failures == []
    assert len(honest.seconds) >= HONEST_CALLS_MIN
    assert peak.bytes < ANONYMOUS_BYTES_MAX
    wait_until(
        lambda: server.anonymous_bytes() - before < BACK_BYTES_MAX,
        f"{before / MIB:.0f} MiB as before, not {server.anonymous_bytes() / MIB:.0f} MiB",
        BACK_SECONDS_MAX,
    )
    print(f"{(server.anonymous_bytes() - before) / MIB:.0f} MiB more than before are left")


# --- what each single call meets ----------------------------------------------------------------------------

SUM = "/Table/ColumnSum"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
CONNECTIONS = 40
DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


def sum_of_honest() -> bytes:
    return message(table_pb2.ColSumReq(column="honest", format="csv").SerializeToString())


def test_one_call_too_many_is_refused_and_a_new_connection_is_served(server):
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            connection = stack.enter_context(Connection(server))
            calls = [connection.start(SUM) for _ in range(120)]
            connection.round_trip()
            refused = next((call for call in calls if call.ended), None)
            if refused is not None:
                break
        assert refused is not None, "the server takes any number of calls"
        assert refused.status == RESOURCE_EXHAUSTED
        assert "open%20calls%20and%20answers%20that%20are%20not%20read%20yet" in refused.headers["grpc-message"]
        assert upload(server, b"honest\n1\n") == ""
        with Connection(server) as modest:
            assert modest.call(SUM, sum_of_honest()).response(table_pb2.ColSumResp).total == 1


def test_a_question_that_stops_coming_ends(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--call-timeout-s", "1")
    with Connection(server) as connection:
        calls = [connection.start(path) for path in (SUM, "/tally.v1.Tally/GroupSum", "/grpc.health.v1.Health/Check")]
        for call in calls:
            connection.send(call, sum_of_honest()[:-1])
        for call in calls:
            connection.finish(call)
            assert call.status == DEADLINE_EXCEEDED
            assert call.headers["grpc-message"] == "nothing%20of%20the%20call%20came%20for%201%20s"
        # The connection still works.
        assert connection.call(SUM, sum_of_honest()).response(table_pb2.ColSumResp).total == 0


def test_an_upload_that_moves_is_not_ended_by_it(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--call-timeout-s", "1")

    def slowly():
        for piece in (b"x\n", b"1\n", b"2\n", b"3\n"):
            yield tally_pb2.UploadChunk(data=piece)
            time.sleep(0.6)  # in all it takes more than twice what a question may

    assert tally(server).Upload(slowly()).rows == 3


def test_the_clients_deadline_ends_an_answer(server):
    """A stream of answers to questions that are never sent. tonic checks a deadline only until the head of the
    answer.
    """
    with Connection(server) as connection:
        call = connection.finish(connection.start(REFLECTION, grpc_timeout="300m"))
        assert call.status == DEADLINE_EXCEEDED


def test_an_answer_that_is_not_read_costs_the_connection(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--call-timeout-s", "1")
    names = ",".join(f"{index:04}" + "n" * 1000 for index in range(COLUMNS))
    assert upload(server, names.encode() + b"\n") == ""
    with Connection(server) as connection, Connection(server) as reader:
        connection.http2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        connection.round_trip()
        call = connection.start("/tally.v1.Tally/ListParts")
        connection.send(call, message(b""), end=True)
        server.log_line("not read: the connection is closed")
        assert is_closed(connection)
        # Its memory is free for others again.
        path = "/tally.v1.Tally/ListParts"
        listed = wait_until(lambda: ok_or_none(reader.call(path, message(b""))), "room for another answer")
        assert len(listed.response(tally_pb2.Receipt).columns) == COLUMNS


def ok_or_none(call):
    assert call.status in (OK, RESOURCE_EXHAUSTED)
    return call if call.status == OK else None


def is_closed(connection: Connection) -> bool:
    try:
        while True:
            connection.round_trip()
    except (AssertionError, OSError, h2.exceptions.ProtocolError):
        return True
