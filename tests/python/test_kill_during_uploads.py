"""SIGKILL at random moments while eight clients upload: no acknowledged upload is lost, and no half of one is visible.

The data folder grows through all rounds, so that each restart also proves what earlier rounds left. The seed
of a run is printed when it fails; TALLY_TEST_SEED=N makes the same choices again (the threads still race as
they like).
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional

import grpc
import table_pb2
import table_pb2_grpc
import tally_pb2
import tally_pb2_grpc
import xxhash
from conftest import CHANNEL_OPTIONS, Server, binary, clean_environment, table, tally

ROUNDS = 25
CLIENTS = 8
CHUNK_BYTES = 64 * 1024
ACKNOWLEDGED_AT_KILL_MAX = 20
KILL_DELAY_MS_MAX = 120
START_KILL_DELAY_MS_MAX = 40
CHANGES_AT_KILL_MAX = 60
KILL_SECONDS_MAX = 60
KILL_ON_CHANGE = Path(__file__).with_name("kill_on_change.py")
SUMMED_COLUMNS = ("x", "y", "z")
LOST_CONNECTION_CODES = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.CANCELLED,
)

# Rows of a file and how often that size is drawn: many small files make many commits, and the larger ones are
# what a kill finds half written.
SIZES = ((10, 40), (1_000, 25), (20_000, 20), (200_000, 15))


class Body(NamedTuple):
    """The rows that many files share; the first row of each file is its own."""

    header: bytes
    first_row: str  # %d takes the number that no two files have in common; it counts into y
    rows: bytes
    rows_count: int  # with the first row
    sums: Dict[str, int]  # without the number in the first row


class Sent(NamedTuple):
    """What a file must look like once it is a part."""

    rows_count: int
    columns: List[str]
    sums: Dict[str, int]


def make_bodies(random_numbers: random.Random) -> List[List[Body]]:
    """Every size in three shapes: two columns, three, and three with quoted text and rows ending in CRLF."""
    bodies = []
    for rows_count, _ in SIZES:
        y = [random_numbers.randrange(-(10**12), 10**12) for _ in range(rows_count - 1)]
        z = [random_numbers.randrange(-999, 1000) for _ in range(rows_count - 1)]
        shapes = []
        two = {"x": rows_count, "y": sum(y)}
        three = {**two, "z": sum(z) + 7}
        rows = "".join(f"1,{b}\n" for b in y).encode()
        shapes.append(Body(b"x,y\n", "1,%d\n", rows, rows_count, two))
        rows = "".join(f"{c},1,{b}\n" for b, c in zip(y, z)).encode()
        shapes.append(Body(b"z,x,y\n", "7,1,%d\n", rows, rows_count, three))
        rows = "".join(f'"line {c}\nand ""more"", here",{b},1\r\n' for b, c in zip(y, z)).encode()
        shapes.append(Body(b"note,y,x\r\n", "first,%d,1\r\n", rows, rows_count, two))
        bodies.append(shapes)
    return bodies


class Clients:
    """Eight clients that upload until their server is gone, and what they know when it is."""

    def __init__(self, bodies: List[List[Body]]):
        self.bodies = bodies
        # Kept over all rounds, by digest: a file's content is all that the unary call says about it.
        self.sent: Dict[str, Sent] = {}
        self.acknowledged: Dict[str, Optional[tally_pb2.Receipt]] = {}  # None: acknowledged by the unary call
        self.changed = threading.Condition()
        self.acknowledged_count = 0  # in this round
        self.kill_is_due = False  # from now on a lost connection is expected
        self.failures: List[str] = []

    def run_until_killed(self, server: Server, choices: random.Random) -> None:
        """One round: uploads from eight threads until a SIGKILL at a moment that `choices` picks."""
        self.acknowledged_count = 0
        at_a_change = choices.random() < 0.5
        self.kill_is_due = at_a_change  # such a kill comes from outside, at any time from now on
        seeds = [choices.getrandbits(64) for _ in range(CLIENTS)]
        threads = [
            threading.Thread(target=self._upload, args=(server.address, random.Random(s))) for s in seeds
        ]
        try:
            if at_a_change:
                self._kill_at_a_change(server, choices, threads)
            else:
                self._kill_after_acknowledgements(server, choices, threads)
        finally:
            server.kill()
            for thread in threads:
                thread.join()
        assert not self.failures, self.failures
        assert server.process.returncode == -signal.SIGKILL, "the server ended before it was killed"

    def _kill_after_acknowledgements(self, server: Server, choices: random.Random, threads: list) -> None:
        """Kills when a random number of uploads is acknowledged, or a few milliseconds after the first."""
        if choices.random() < 0.5:
            count, delay_ms = choices.randint(1, ACKNOWLEDGED_AT_KILL_MAX), 0.0
        else:
            count, delay_ms = 1, choices.uniform(0, KILL_DELAY_MS_MAX)
        for thread in threads:
            thread.start()
        with self.changed:
            enough = self.changed.wait_for(
                lambda: self.failures or self.acknowledged_count >= count, KILL_SECONDS_MAX
            )
            assert enough, f"{self.acknowledged_count} uploads in {KILL_SECONDS_MAX} s, not {count}"
            # The moment of the kill is the subject, so a clock chooses it; the time proves nothing.
            self.changed.wait_for(lambda: self.failures, delay_ms / 1000)
            self.kill_is_due = True
        server.process.kill()

    def _kill_at_a_change(self, server: Server, choices: random.Random, threads: list) -> None:
        """Kills when the server has just made, moved or removed a file: the steps of a commit are
        microseconds apart, and a clock alone would hardly ever stop one between them."""
        count = choices.randint(1, CHANGES_AT_KILL_MAX)
        folders = [server.data / "parts"]
        if choices.random() < 0.3:
            folders.append(server.data / "tmp")
        command = [sys.executable, "-S", KILL_ON_CHANGE, server.pid, count, *folders]
        with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE) as killer:
            try:
                assert killer.stdout.readline() == b"watching\n"
                for thread in threads:
                    thread.start()
                server.process.wait(KILL_SECONDS_MAX)
            finally:
                killer.kill()  # before the server's process id can be anybody else's

    def _upload(self, address: str, choices: random.Random) -> None:
        with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            unary = table_pb2_grpc.TableStub(channel)
            stream = tally_pb2_grpc.TallyStub(channel)
            while True:  # until the server is gone
                csv, digest = self._next_file(choices)
                try:
                    if choices.random() < 0.5:
                        error, receipt = unary.Upload(table_pb2.UploadReq(csv_data=csv)).error, None
                    else:
                        error, receipt = "", stream.Upload(chunks(csv))
                except grpc.RpcError as refused:
                    with self.changed:
                        if not (self.kill_is_due and is_lost_connection(refused)):
                            self.failures.append(f"{refused.code()}: {refused.details()}")
                        self.changed.notify_all()
                    return
                with self.changed:
                    if error:
                        self.failures.append(error)
                    self.acknowledged[digest] = receipt
                    self.acknowledged_count += 1
                    self.changed.notify_all()

    def _next_file(self, choices: random.Random):
        body = choices.choice(choices.choices(self.bodies, [weight for _, weight in SIZES])[0])
        with self.changed:
            number = len(self.sent)
            csv = body.header + (body.first_row % number).encode() + body.rows
            digest = digest_of(csv)
            sums = {**body.sums, "y": body.sums["y"] + number}
            # Noted before a byte leaves: what is complete in the server's folder may be unacknowledged.
            self.sent[digest] = Sent(body.rows_count, body.header.decode().strip().split(","), sums)
        return csv, digest


def is_lost_connection(error: grpc.RpcError) -> bool:
    """Whether gRPC made this status up on the client's side, its connection being lost.

    Which code a call under way then gets depends on its state. What the server itself answers has metadata, a
    date at least, and is never what a kill looks like.
    """
    return error.code() in LOST_CONNECTION_CODES and not error.trailing_metadata()


def chunks(csv: bytes) -> Iterator[tally_pb2.UploadChunk]:
    for start in range(0, len(csv), CHUNK_BYTES):
        yield tally_pb2.UploadChunk(data=csv[start : start + CHUNK_BYTES])


def digest_of(csv: bytes) -> str:
    return hashlib.blake2b(csv).hexdigest()


def kill_during_start(data, choices: random.Random) -> None:
    """Starts a server and kills it at once: the clean-up at start may be cut short, too."""
    command = [binary(), "serve", "--data", data, "--grpc", "127.0.0.1:0", "--http", "none"]
    process = subprocess.Popen(
        command, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(choices.uniform(0, START_KILL_DELAY_MS_MAX) / 1000)  # the moment is the subject, as above
    process.kill()
    process.wait()


def check_receipt_and_files(server: Server, receipt: dict) -> str:
    """Asserts that a part's two files are what its receipt says; returns the digest of its CSV."""
    part = receipt["part"]
    for kind in ("csv", "parquet"):
        content = (server.data / "parts" / f"{part}.{kind}").read_bytes()
        assert receipt[kind]["bytes"] == len(content), f"part {part}, {kind}"
        assert receipt[kind]["xxh3"] == xxhash.xxh3_64_hexdigest(content), f"part {part}, {kind}"
        if kind == "csv":
            digest = digest_of(content)
    return digest


def check_after_restart(server: Server, clients: Clients, digests_before: Dict[int, str]) -> Dict[int, str]:
    """Everything that must hold after a kill. Returns the parts' digests, for the next round to find."""
    quarantine = server.data / "quarantine"
    assert server.quarantine_count_at_start == 0 and not (quarantine.exists() and any(quarantine.iterdir()))
    assert server.leftovers() == []

    receipts = server.parts()
    digests = {receipt["part"]: check_receipt_and_files(server, receipt) for receipt in receipts}
    assert len(digests) == len(receipts) == server.parts_count_at_start
    assert {path.name for path in (server.data / "parts").glob("*.json")} == {
        f"{part}.json" for part in digests
    }
    assert digests_before.items() <= digests.items(), "a part that had survived a restart changed or vanished"

    # No half uploads, none twice, none lost.
    part_of = {digest: part for part, digest in digests.items()}
    assert len(part_of) == len(digests), "an upload is there twice"
    assert part_of.keys() <= clients.sent.keys(), "a part that no client sent"
    lost = clients.acknowledged.keys() - part_of.keys()
    assert not lost, f"{len(lost)} of {len(clients.acknowledged)} acknowledged uploads are lost"

    for receipt in receipts:
        sent = clients.sent[digests[receipt["part"]]]
        assert receipt["rows"] == sent.rows_count
        assert [column["name"] for column in receipt["columns"]] == sent.columns

    # The receipt a client got is the one that the restarted server has.
    listed = {receipt.part: receipt for receipt in tally(server).ListParts(tally_pb2.ListPartsRequest())}
    assert sorted(listed) == sorted(digests)
    for digest, receipt in clients.acknowledged.items():
        if receipt is not None:
            assert receipt == listed[part_of[digest]]

    for column in SUMMED_COLUMNS:
        expected = sum(clients.sent[digest].sums.get(column, 0) for digest in part_of)
        for file_format in ("csv", "parquet"):
            answer = table(server).ColumnSum(table_pb2.ColSumReq(column=column, format=file_format))
            assert (answer.error, answer.total) == ("", expected), f"{column} from {file_format}"
    return digests


def test_sigkill_loses_no_acknowledged_upload_and_shows_no_half_one(tmp_path):
    seed = int(os.environ.get("TALLY_TEST_SEED") or random.SystemRandom().getrandbits(32))
    print(f"seed {seed}; run again with TALLY_TEST_SEED={seed}")
    choices = random.Random(seed)
    clients = Clients(make_bodies(choices))
    data = tmp_path / "data"
    digests: Dict[int, str] = {}

    server = Server(data)
    try:
        for round_number in range(1, ROUNDS + 1):
            clients.run_until_killed(server, choices)
            if choices.random() < 0.3:
                kill_during_start(data, choices)
            server = Server(data)
            print(
                f"round {round_number}: {clients.acknowledged_count} acknowledged; "
                f"in all {len(clients.sent)} sent, {len(clients.acknowledged)} acknowledged, "
                f"{server.parts_count_at_start} kept"
            )
            digests = check_after_restart(server, clients, digests)
        server.stop()
    finally:
        server.kill()
        print(server.stderr)
    # The rounds were meaningful: uploads succeeded, and some were running when the server was killed.
    assert len(clients.acknowledged) >= ROUNDS
    assert len(clients.sent) > len(clients.acknowledged)
