"""Clients that change a table, and what each knows of it; after whatever has happened, the table is compared with that.

Each client has a column of its own. So it knows the sum of that column at any time, whatever the others do.
"""

import hashlib
import random
import threading
from typing import Dict, List, NamedTuple, Optional, Set

import grpc
import requests
import table_pb2
import table_pb2_grpc
import tally_pb2
import tally_pb2_grpc
from conftest import CHANNEL_OPTIONS, KIB, Server, wait_until
from core import Breach
from http_calls import PARTS, TASKS
from invariants import check

CALL_SECONDS_MAX = 60
CHUNK_BYTES = 64 * KIB
# Rows of a file, and how often this many are drawn: most files are small enough to be packed.
SIZES = ((1, 30), (4, 40), (300, 20), (8_000, 8), (60_000, 2))
ACTIONS = {"stream": 46, "http": 12, "unary": 12, "repeat": 6, "remove": 12, "sum": 8, "task": 4}
NOT_CALLERS_FAULT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED)
DOWNLOADED_AGAIN = 20


class Csv(NamedTuple):
    """A file. No two have the same content."""

    number: int
    content: bytes
    # Of x, and of the client's own column, which has the same values.
    total: int
    rows: int

    @property
    def digest(self) -> bytes:
        return digest_of(self.content)


def digest_of(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def make_csv(number: int, column: str, choices: random.Random) -> Csv:
    rows_count = choices.choices([rows for rows, _ in SIZES], [weight for _, weight in SIZES])[0]
    values = [number] + [choices.randrange(-(10**9), 10**9) for _ in range(rows_count - 1)]
    end = choices.choice(["\n", "\n", "\r\n"])
    shape = choices.randrange(4)
    if shape == 0:
        lines = [f"x,{column}", *(f"{value},{value}" for value in values)]
    elif shape == 1:
        lines = [f"{column},t,x", *(f'{value},"a, ""{value % 7}""",{value}' for value in values)]
    elif shape == 2:
        lines = [f"k,x,{column},w{number % 40}", *(f"{value % 5},{value},{value},1.5" for value in values)]
    else:
        lines = [f"x,{column},t", *(f"{value},{value},{'z' * (value % 50)}" for value in values)]
    return Csv(number, (end.join(lines) + end).encode(), sum(values), rows_count)


def chunks_of(content: bytes):
    for start in range(0, len(content), CHUNK_BYTES):
        yield tally_pb2.UploadChunk(data=content[start : start + CHUNK_BYTES])


class Client:
    """One client: what it has been told, and what it has asked for without having had an answer."""

    def __init__(self, index: int, prefix: str):
        self.column = f"c{index}"
        self.prefix = prefix
        self.index = index
        self.count = 0
        self.live: Dict[int, Csv] = {}
        self.keys: Dict[int, str] = {}
        # Acknowledged without the part's number.
        self.unnumbered: Dict[bytes, Csv] = {}
        # Sent, without an answer: with a key, and without.
        self.pending: Dict[str, Csv] = {}
        self.loose: Dict[bytes, Csv] = {}
        # Being removed or restored, without an answer.
        self.between: Dict[int, Csv] = {}
        self.removed: Dict[int, Csv] = {}
        self.purged: Set[int] = set()
        self.tasks: Dict[str, bytes] = {}
        self.acknowledged = 0
        self.failure: Optional[str] = None

    def total(self) -> int:
        return sum(csv.total for csv in [*self.live.values(), *self.unnumbered.values()])

    def next_csv(self, choices: random.Random) -> Csv:
        self.count += 1
        return make_csv(self.index * 10**7 + self.count, self.column, choices)

    # --- what it does while the server runs ---------------------------------------------------------------

    def work(self, server: Server, choices: random.Random, is_over: threading.Event) -> None:
        """Calls the server until it is over, or the server is gone."""
        with grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel, requests.Session() as session:
            self.tally, self.table = tally_pb2_grpc.TallyStub(channel), table_pb2_grpc.TableStub(channel)
            self.http, self.session = server.http, session
            while not is_over.is_set() and self.failure is None:
                action = choices.choices(list(ACTIONS), list(ACTIONS.values()))[0]
                try:
                    getattr(self, "_" + action)(choices)
                except grpc.RpcError as error:
                    # What the server itself answers has metadata, a date at least.
                    is_lost = error.code() in NOT_CALLERS_FAULT and not error.trailing_metadata()
                    if not is_lost and not is_stopping(error):
                        self.failure = f"{action}: {error.code()}: {error.details()}"
                    return
                except requests.exceptions.RequestException:
                    return
                except Breach as breach:
                    self.failure = str(breach)

    def _stream(self, choices: random.Random) -> None:
        csv, key = self._new_pending(choices)
        receipt = self.tally.Upload(chunks_of(csv.content), metadata=(("idempotency-key", key),), timeout=CALL_SECONDS_MAX)
        self._acknowledge(key, csv, receipt.part)
        check(receipt.rows == csv.rows and not receipt.replayed, f"part {receipt.part} has another receipt: {receipt}")

    def _http(self, choices: random.Random) -> None:
        csv, key = self._new_pending(choices)
        answer = self.session.post(
            self.http + PARTS, data=csv.content, headers={"Idempotency-Key": key}, timeout=CALL_SECONDS_MAX
        )
        if answer.status_code == 503:
            raise requests.exceptions.ConnectionError(answer.text)
        check(answer.status_code == 201, f"{answer.status_code}: {answer.text}")
        self._acknowledge(key, csv, answer.json()["part"])

    def _unary(self, choices: random.Random) -> None:
        csv = self.next_csv(choices)
        self.loose[csv.digest] = csv
        answer = self.table.Upload(table_pb2.UploadReq(csv_data=csv.content), timeout=CALL_SECONDS_MAX)
        check(answer.error == "", answer.error)
        del self.loose[csv.digest]
        self.unnumbered[csv.digest] = csv
        self.acknowledged += 1

    def _repeat(self, choices: random.Random) -> None:
        """An upload that was acknowledged, once more with its key."""
        known = [part for part in self.live if part in self.keys]
        if known:
            part = choices.choice(known)
            metadata = (("idempotency-key", self.keys[part]),)
            content = chunks_of(self.live[part].content)
            receipt = self.tally.Upload(content, metadata=metadata, timeout=CALL_SECONDS_MAX)
            check(receipt.replayed and receipt.part == part, f"part {part} was added again as {receipt.part}")

    def _remove(self, choices: random.Random) -> None:
        """Removes a part, for good or for a while."""
        if not self.live:
            return
        part = choices.choice(list(self.live))
        self.between[part] = self.live.pop(part)
        purge = choices.random() < 0.3
        self.tally.RemovePart(tally_pb2.RemovePartRequest(part=part, purge=purge), timeout=CALL_SECONDS_MAX)
        if purge:
            self.purged.add(part)
            del self.between[part]
        elif choices.random() < 0.6:
            self.tally.RestorePart(tally_pb2.RestorePartRequest(part=part), timeout=CALL_SECONDS_MAX)
            self.live[part] = self.between.pop(part)
        else:
            self.removed[part] = self.between.pop(part)

    def _sum(self, choices: random.Random) -> None:
        """Its own column, beside all others' changes."""
        self.check_sum(self.table, choices.choice(["csv", "parquet"]))

    def check_sum(self, table: table_pb2_grpc.TableStub, file_format: str) -> None:
        answer = table.ColumnSum(table_pb2.ColSumReq(column=self.column, format=file_format), timeout=CALL_SECONDS_MAX)
        if self.count == 0:
            return
        check(
            (answer.total, answer.error) == (self.total(), ""),
            f"sum of {self.column} from {file_format}: {answer.total} {answer.error!r} instead of {self.total()}",
        )

    def _task(self, choices: random.Random) -> None:
        plays = {f"song {choices.randrange(10**6)}": choices.randrange(1, 10**6) for _ in range(choices.choice([3, 2000]))}
        rows = "".join(f"{song},2020-01-01,{count}\n{song},2020-01-01,1\n" for song, count in plays.items())
        form = {"file": ("plays.csv", b"Song,Date,Number of Plays\n" + rows.encode())}
        accepted = self.session.post(self.http + TASKS, files=form, timeout=CALL_SECONDS_MAX)
        if accepted.status_code == 503:
            raise requests.exceptions.ConnectionError(accepted.text)
        check(accepted.status_code == 202, f"{accepted.status_code}: {accepted.text}")
        summed = "".join(f"{song},2020-01-01,{count + 1}\n" for song, count in sorted(plays.items()))
        expected = "Song,Date,Total Number of Plays for Date\n" + summed
        self.tasks[accepted.json()["task"]["id"]] = expected.encode()

    def _new_pending(self, choices: random.Random):
        csv = self.next_csv(choices)
        key = f"{self.prefix}-{csv.number}"
        self.pending[key] = csv
        return csv, key

    def _acknowledge(self, key: str, csv: Csv, part: int) -> None:
        del self.pending[key]
        self.live[part] = csv
        self.keys[part] = key
        self.acknowledged += 1


def is_stopping(error: grpc.RpcError) -> bool:
    """Whether the server refuses because it stops."""
    return error.code() == grpc.StatusCode.UNAVAILABLE


class Model:
    """All clients, and what the table must be."""

    def __init__(self, clients_count: int, prefix: str):
        self.clients = [Client(index, prefix) for index in range(clients_count)]
        self.known: Set[int] = set()  # parts whose bytes were compared

    def acknowledged(self) -> int:
        return sum(client.acknowledged for client in self.clients)

    def start(self, server: Server, choices: random.Random, is_over: threading.Event) -> List[threading.Thread]:
        threads = []
        for client in self.clients:
            own = random.Random(choices.getrandbits(64))
            threads.append(threading.Thread(target=client.work, args=(server, own, is_over), daemon=True))
        for thread in threads:
            thread.start()
        return threads

    def check_no_failure(self) -> None:
        failures = [client.failure for client in self.clients if client.failure]
        check(not failures, "; ".join(failures))

    # --- what must be there afterwards --------------------------------------------------------------------

    def settle(self, server: Server, choices: random.Random) -> dict:
        """Compares a server that has just started with what the clients know. Returns figures."""
        stub = tally_pb2_grpc.TallyStub(server.channel())
        check(server.quarantine_count_at_start == 0, f"undamaged parts in quarantine: {server.ready_line}")
        listed = set(ids(stub))
        self._resolve_removals(stub, listed)
        expected = {part for client in self.clients for part in client.live}
        lost = expected - listed
        check(not lost, f"{len(lost)} acknowledged uploads are lost, for example parts {sorted(lost)[:5]}")
        for part in sorted(listed - expected):
            self._adopt(server, part)
        unnumbered = sum(len(client.unnumbered) for client in self.clients)
        check(unnumbered == 0, f"{unnumbered} uploads are lost that were acknowledged without a number")
        replayed = self._retry(stub)
        for client in self.clients:
            client.loose.clear()
        self.check_table(server, choices)
        self._check_tasks(server)
        return {"replayed": replayed}

    def _resolve_removals(self, stub, listed: Set[int]) -> None:
        removed = removed_ids(stub)
        for client in self.clients:
            for part, csv in client.between.items():
                if part in listed:
                    client.live[part] = csv
                elif part in removed:
                    client.removed[part] = csv
                else:
                    client.purged.add(part)
            client.between.clear()
            for part in [*client.removed, *client.purged]:
                check(part not in listed, f"part {part} was removed, and is there again")
            for part in client.removed:
                check(part in removed, f"part {part} was removed and can no longer be restored")

    def _adopt(self, server: Server, part: int) -> None:
        """A part that is there without its client having had an answer, or not with its number."""
        digest = digest_of(download(server, part))
        self.known.add(part)
        for client in self.clients:
            csv = client.unnumbered.pop(digest, None) or client.loose.pop(digest, None)
            if csv:
                client.live[part] = csv
                return
            if any(pending.digest == digest for pending in client.pending.values()):
                return  # its upload will be repeated
        raise Breach(f"part {part} is there twice, or is not what a client sent")

    def _retry(self, stub) -> int:
        """Repeats the uploads that had no answer. They are added once, whether or not they had been added."""
        before, replayed = set(ids(stub)), 0
        for client in self.clients:
            for key, csv in list(client.pending.items()):
                metadata = (("idempotency-key", key),)
                receipt = stub.Upload(chunks_of(csv.content), metadata=metadata, timeout=CALL_SECONDS_MAX)
                check(receipt.replayed == (receipt.part in before), f"{key}: part {receipt.part}, {receipt.replayed}")
                replayed += receipt.replayed
                client._acknowledge(key, csv, receipt.part)
        return replayed

    def check_table(self, server: Server, choices: random.Random) -> None:
        """The list of parts, the sums of all columns in both formats, and the bytes of new parts and of some others."""
        stub, table = tally_pb2_grpc.TallyStub(server.channel()), table_pb2_grpc.TableStub(server.channel())
        live = {part: csv for client in self.clients for part, csv in client.live.items()}
        listed = ids(stub)
        check(sorted(live) == listed, f"parts {sorted(set(live) ^ set(listed))[:10]} differ")
        total, rows = sum(csv.total for csv in live.values()), sum(csv.rows for csv in live.values())
        if any(client.count for client in self.clients):
            answers = stub.Sum(tally_pb2.SumRequest(column="x", formats=[1, 2]), timeout=CALL_SECONDS_MAX)
            for answer in answers.sums if live else []:
                got = (answer.total, answer.parts, answer.rows)
                check(got == (total, len(live), rows), f"x is {got} instead of {(total, len(live), rows)}")
            for client in self.clients:
                if client.live:
                    client.check_sum(table, "csv")
                    client.check_sum(table, "parquet")
        new = sorted(set(live) - self.known)
        old = choices.sample(sorted(self.known & set(live)), min(DOWNLOADED_AGAIN, len(self.known & set(live))))
        with requests.Session() as session:
            for part in [*new, *old]:
                check(download(server, part, session) == live[part].content, f"part {part} has other bytes")
        self.known.update(new)

    def _check_tasks(self, server: Server) -> None:
        for client in self.clients:
            for task, expected in client.tasks.items():
                url = f"{server.http}{TASKS}{task}"

                def status(url=url) -> str:
                    answer = requests.get(f"{url}/status", timeout=CALL_SECONDS_MAX)
                    check(answer.status_code == 200, f"accepted task {url}: {answer.status_code} {answer.text}")
                    word = answer.json()["task"]["status"]
                    return word if word not in ("QUEUED", "IN_PROGRESS") else ""

                ended = wait_until(status, f"the end of {task}", CALL_SECONDS_MAX)
                check(ended == "COMPLETED", f"task {task}: {ended}")
                answer = requests.get(f"{url}/download", timeout=CALL_SECONDS_MAX)
                check(answer.content == expected, f"task {task} has another result: {answer.text[:200]}")
            client.tasks.clear()


def ids(stub) -> List[int]:
    return [receipt.part for receipt in stub.ListParts(tally_pb2.ListPartsRequest(), timeout=CALL_SECONDS_MAX)]


def removed_ids(stub) -> Set[int]:
    found: Set[int] = set()
    after = 0
    while True:
        page = stub.ListRemoved(tally_pb2.ListRemovedRequest(after=after), timeout=CALL_SECONDS_MAX).parts
        if not page:
            return found
        found.update(part.part for part in page)
        after = max(found)


def download(server: Server, part: int, session=requests) -> bytes:
    answer = session.get(f"{server.http}{PARTS}/{part}/csv", timeout=CALL_SECONDS_MAX)
    check(answer.status_code == 200, f"part {part}: {answer.status_code} {answer.text[:300]}")
    return answer.content
