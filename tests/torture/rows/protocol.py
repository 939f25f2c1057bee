"""Row 8: attacks on HTTP/2 and HTTP/1, each named after its CVE or the section of the RFC that it breaks (`attacks.py`).

Each is made on several connections at once, again and again for a while, with an honest client beside. It is served, no attack adds or
removes a part, and memory stays within its bound.
"""

import subprocess
import sys
import time
from contextlib import contextmanager
from typing import Callable, Iterator, List

import grpc
import requests
import table_pb2
import table_pb2_grpc
import tally_pb2
import tally_pb2_grpc
from attacks import ATTACKS, GRPC, Attack
from conftest import CHANNEL_OPTIONS, Server
from core import TORTURE, Breach, Row, Run
from invariants import ANONYMOUS_BYTES_MAX, check, check_alive, check_idle, check_no_leftovers
from test_idle_after_calls import tasks_count

CONNECTIONS = 8
ATTACK_SECONDS = 0.7
HONEST_SECONDS_MAX = 40


@contextmanager
def attacked(server: Server, attack: Attack) -> Iterator[dict]:
    """The server under attack."""
    counts = {"connections": 0}
    address = server.address if attack.port == GRPC else server.http_addresses[0]
    words = [sys.executable, "-S", TORTURE / "attacks.py", ATTACKS.index(attack), address, CONNECTIONS]
    with subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE) as process:
        try:
            counts["connections"] += len(process.stdout.read(1))  # the first connection is there
            yield counts
            check(process.poll() is None, f"{attack.name}: the attacker has ended")
        finally:
            process.kill()
            counts["connections"] += len(process.stdout.read())


class Honest:
    """A client that knows how many parts there are, and their sum."""

    def __init__(self, server: Server):
        self.server = server
        self.parts = 0
        self.total = 0
        # Of whole rounds, and of single calls.
        self.seconds: List[float] = []
        self.calls: List[float] = []

    def ask(self) -> None:
        """An upload, both sums, the list and a probe, on a new connection."""
        self._ask(is_alone=True)

    def ask_own_column(self) -> None:
        """The same beside others who add parts."""
        self._ask(is_alone=False)

    def _ask(self, is_alone: bool) -> None:
        begun = time.monotonic()
        ready = {"timeout": HONEST_SECONDS_MAX, "wait_for_ready": True}
        with grpc.insecure_channel(self.server.address, options=CHANNEL_OPTIONS) as channel:
            stub, table = tally_pb2_grpc.TallyStub(channel), table_pb2_grpc.TableStub(channel)
            self.parts += 1
            self.total += self.parts
            chunk = tally_pb2.UploadChunk(data=b"x\n%d\n" % self.parts)
            # With a key, because a connection may be closed for an attack and the upload made again.
            key = (("idempotency-key", f"honest-{self.parts}"),)
            part = self._timed(lambda: stub.Upload(iter([chunk]), metadata=key, **ready)).part
            for file_format in ("csv", "parquet"):
                request = table_pb2.ColSumReq(column="x", format=file_format)
                answer = self._timed(lambda asked=request: table.ColumnSum(asked, **ready))
                check((answer.total, answer.error) == (self.total, ""), f"{file_format}: {answer} instead of {self.total}")
            # Beside others only the own part: a list of theirs may be longer than what calls of one connection may hold.
            request = tally_pb2.ListPartsRequest() if is_alone else tally_pb2.ListPartsRequest(after=part - 1, limit=1)
            listed = self._timed(lambda: [found.part for found in stub.ListParts(request, **ready)])
            check(len(listed) == self.parts if is_alone else listed == [part], f"{len(listed)} parts, {self.parts} uploaded")
        answer = self._timed(lambda: requests.get(f"{self.server.http}/livez", timeout=HONEST_SECONDS_MAX))
        check(answer.status_code == 200, f"/livez: {answer.status_code}")
        self.seconds.append(time.monotonic() - begun)

    def _timed(self, call: Callable):
        """A call, whose time counts with that of its connection, if that is new."""
        begun = time.monotonic()
        answer = call()
        self.calls.append(time.monotonic() - begun)
        return answer


def p99(seconds: List[float]) -> float:
    return sorted(seconds)[len(seconds) * 99 // 100]


def one(server: Server, honest: Honest, attack: Attack, run: Run) -> None:
    before = len(honest.seconds)
    try:
        with attacked(server, attack) as counts:
            ends = time.monotonic() + ATTACK_SECONDS
            time.sleep(ATTACK_SECONDS / 4)  # the attack takes effect
            while True:
                honest.ask()
                run.most("most anonymous MiB", server.anonymous_bytes() >> 20)
                if time.monotonic() > ends:
                    break
        honest.ask()
        check_alive(server)
        if max(honest.seconds[before:]) > 1:
            run.note(f"{attack.name}: an honest round took {max(honest.seconds[before:]):.1f} s")
    except (grpc.RpcError, requests.exceptions.RequestException) as error:
        raise Breach(f"{attack.name}: an honest client is not served: {error}") from None
    except Breach as breach:
        raise Breach(f"{attack.name}: {breach}") from None
    run.figures["connections"] += counts["connections"]
    check(run.figures["most anonymous MiB"] < ANONYMOUS_BYTES_MAX >> 20, f"{attack.name}: memory")


def add_large_part(server: Server, honest: Honest) -> None:
    """For answers of some size, which attacks do not read."""
    large = b"y,z\n" + b"1,22222222\n" * 200_000
    with grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
        stub = tally_pb2_grpc.TallyStub(channel)
        stub.Upload(tally_pb2.UploadChunk(data=large[at : at + 2**18]) for at in range(0, len(large), 2**18))
    honest.parts += 1


def protocol(run: Run) -> None:
    chosen = list(ATTACKS)
    run.choices.shuffle(chosen)
    with Server(run.folder / "data", "--log", "error", "--durability", "none") as server:
        honest = Honest(server)
        add_large_part(server, honest)
        tasks_before = tasks_count(server)
        honest.ask()
        if run.is_sabotaged:
            requests.delete(f"{server.http}/api/v1/table/parts/2", timeout=HONEST_SECONDS_MAX)
        for number in run.rounds():
            one(server, honest, chosen[(number - 1) % len(chosen)], run)
        check_idle(server, tasks_before)
        check_no_leftovers(server)
        server.stop()
    run.figures["honest calls"] = len(honest.calls)
    run.figures["p99 of an honest call in ms"] = round(1000 * p99(honest.calls))


ROW = Row(8, "protocol", f"{len(ATTACKS)} attacks on HTTP/2 and HTTP/1 beside an honest client", "attacks", 15, len(ATTACKS), 20, protocol, 4)
