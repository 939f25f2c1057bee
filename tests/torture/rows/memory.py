"""Row 6: many clients with large files, wide files, long rows, unread answers and held headers, into 512 MiB."""

import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Dict, Iterator

import grpc
import tally_pb2
import tally_pb2_grpc
from attackers import ATTACKS as UNREAD
from conftest import CHANNEL_OPTIONS, Server, tally
from core import ROOT, CannotRun, Row, Run
from invariants import ANONYMOUS_BYTES_MAX, MIB, check, check_alive, check_idle, check_no_leftovers
from rows.protocol import Honest
from test_grpc_call_limits import Peak, control_group
from test_idle_after_calls import tasks_count

CLIENTS = 64
ATTACK_SECONDS = 4
CALL_SECONDS_MAX = 600
CHUNK_BYTES = 256 * 1024
WIDE_COLUMNS = 4096
LONG_CELL_BYTES = MIB - 1


def uploaded(channel: grpc.Channel, chunks: Iterator[bytes]) -> int:
    stub = tally_pb2_grpc.TallyStub(channel)
    return stub.Upload((tally_pb2.UploadChunk(data=chunk) for chunk in chunks), timeout=CALL_SECONDS_MAX).part


def integers(size: int) -> Iterator[bytes]:
    yield b"a,b,c\n"
    rows = b"".join(b"%d,%d,%d\n" % (row, row * 7919 % 10**9, row % 10) for row in range(15_000))
    for _ in range(max(1, size // len(rows))):
        yield from (rows[at : at + CHUNK_BYTES] for at in range(0, len(rows), CHUNK_BYTES))


def texts(size: int) -> Iterator[bytes]:
    yield b"t,u\n"
    rows = b"".join(b'"%x, %x",%d.5\n' % (row * 7919**4, row * 104729**4, row) for row in range(10_000))
    for _ in range(max(1, size // len(rows))):
        yield from (rows[at : at + CHUNK_BYTES] for at in range(0, len(rows), CHUNK_BYTES))


def wide(size: int) -> Iterator[bytes]:
    yield ",".join(f"w{column}" for column in range(WIDE_COLUMNS)).encode() + b"\n"
    row = b",".join(b"%d" % (column * 977) for column in range(WIDE_COLUMNS)) + b"\n"
    for _ in range(max(1, size // len(row))):
        yield row


def long_rows(size: int) -> Iterator[bytes]:
    yield b"p,q,r\n"
    cell = b"l" * LONG_CELL_BYTES
    row = b",".join([cell] * 3) + b"\n"
    for _ in range(max(1, size // len(row))):
        yield from (row[at : at + CHUNK_BYTES] for at in range(0, len(row), CHUNK_BYTES))


KINDS: Dict[str, Callable[[int], Iterator[bytes]]] = {"integers": integers, "texts": texts, "wide": wide, "long rows": long_rows}


def storm(server: Server, run: Run, kind: str, mib: int) -> None:
    """64 clients that upload at once. What does not fit is refused, and nothing else is."""
    refused = []

    def one(_index: int) -> int:
        with grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
            try:
                return uploaded(channel, KINDS[kind](mib * MIB))
            except grpc.RpcError as error:
                check(error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE), f"{kind}: {error}")
                refused.append(error.code())
                return 0

    with ThreadPoolExecutor(CLIENTS) as pool:
        parts = [part for part in pool.map(one, range(CLIENTS)) if part]
    check(parts, f"{kind}: all uploads were refused: {refused[:3]}")
    run.figures["refused"] += len(refused)
    run.figures["MiB uploaded"] += len(parts) * mib
    # Room for the next ones.
    for part in parts:
        tally(server).RemovePart(tally_pb2.RemovePartRequest(part=part, purge=True), timeout=CALL_SECONDS_MAX)


def unread(server: Server, name: str) -> None:
    """Calls whose answers are not read, and headers that are held (`tests/python/attackers.py`)."""
    words = [sys.executable, ROOT / "tests" / "python" / "attackers.py", name, server.address, ATTACK_SECONDS]
    subprocess.run([str(word) for word in words], check=True, timeout=ATTACK_SECONDS + 60)


class Beside(threading.Thread):
    """An honest client beside all of it."""

    def __init__(self, server: Server):
        super().__init__(daemon=True)
        self.honest = Honest(server)
        self.is_over = threading.Event()
        self.failure = None

    def run(self) -> None:
        # Only its uploads: a storm's parts come and go, so sums of its own column tell enough.
        while not self.is_over.wait(0.2):
            try:
                self.honest.ask_own_column()
            except Exception as error:
                self.failure = error
                return


def memory(run: Run) -> None:
    # On a disk: a file system in memory counts as the server's memory.
    folder = ROOT / "target" / "torture" / "memory"
    with control_group() as group:
        if group is None:
            raise CannotRun("no control group can be made here")
        prefix = ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
        run.folder.rmdir()
        shutil.rmtree(folder, ignore_errors=True)
        try:
            with Server(folder, "--durability", "none", "--log", "error", prefix=prefix) as server:
                storms(server, run)
                server.stop()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def storms(server: Server, run: Run) -> None:
    peak, beside = Peak(server), Beside(server)
    beside.honest.ask_own_column()
    server.close_channel()
    tasks_before = tasks_count(server)
    peak.start()
    beside.start()
    # Of each client: less if the time is short, so that each kind and attack has its turn.
    mib = 4 if run.amount < run.row.full else 64 if run.deadline is None else 16
    kinds, attacks = list(KINDS), list(UNREAD)
    number = 0
    while number == 0 or (run.figures["MiB uploaded"] < run.amount * 1024 and not run.is_late()):
        storm(server, run, kinds[number % len(kinds)], mib)
        unread(server, attacks[number % len(attacks)])
        check_alive(server)
        number += 1
    beside.is_over.set()
    beside.join()
    peak.is_stopped.set()
    peak.join()
    if beside.failure:
        raise beside.failure
    run.done = run.figures["MiB uploaded"] // 1024
    run.most("most anonymous MiB", peak.bytes // MIB)
    run.figures["honest rounds"] = len(beside.honest.seconds)
    check(peak.bytes < ANONYMOUS_BYTES_MAX, f"{peak.bytes // MIB} MiB of anonymous memory at the most")
    server.close_channel()
    check_idle(server, tasks_before, 60)
    check_no_leftovers(server)


ROW = Row(6, "memory", "64 clients with large, wide and long files, unread answers and held headers, into 512 MiB", "GiB", 2, 20, 20, memory, 7, "blocks-kept")
