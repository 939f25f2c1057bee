"""Row 3: the Nth system call on the data folder fails, in every operation, with EIO or ENOSPC, once or from then on.

Each operation is first made with the Nth call failing, for N = 1, 2, ... until one run has no failed call. It then either succeeds or
is refused. Once calls succeed again, everything acknowledged is there, sums are right, uploads work, and nothing is left over.
If there is not the time for all calls, as many of them are chosen at random, so that each operation gets its share.
"""

import time
from functools import lru_cache
from typing import Callable, Dict, List, NamedTuple, Optional, Set

import grpc
import requests
import table_pb2
import tally_pb2
from conftest import Server, ServerDidNotStart, table, tally, wait_until
from core import Breach, Row, Run
from http_calls import TASKS
from invariants import check, check_alive, check_verify, leftovers
from model import chunks_of, download, ids
from tracing import EIO, ENOSPC, FOR_GOOD, ONCE, Tracer

ANSWER_SECONDS_MAX = 30
# How long a job may not end because all calls fail; after that they succeed again.
FAULTY_JOB_SECONDS = 0.5
FLAGS = ("--pack-above", "1000000", "--undo-s", "86400", "--jobs-sweep-s", "1", "--log", "error")
# What could not be removed is removed a second or two later.
CLEAN_SECONDS_MAX = 4
PACKED = 30
# How often a run of the short form looks at a restarted server, and after how many faults the folder is made anew.
RESTART_EVERY = 20
FOLDER_FOR = 150
SURVEY = b"Question,LocationDesc,Data_Value,StratificationCategory1,Stratification1\nQ,Ohio,1.5,Sex,Male\nQ,Utah,2.5,Sex,Male\n"
SURVEY_MEAN = 2.0


class Refused(Exception):
    """An operation that ended with an error, as it may."""


class Mode(NamedTuple):
    name: str
    mode: int
    error: int
    changes_only: bool


MODES = [
    Mode("EIO once", ONCE, EIO, False),
    Mode("EIO from then on", FOR_GOOD, EIO, False),
    Mode("ENOSPC once", ONCE, ENOSPC, True),
    Mode("ENOSPC from then on", FOR_GOOD, ENOSPC, True),
]


def asked(call: Callable):
    """The answer of a call; an error is `Refused`, and none in time is a breach."""
    try:
        return call()
    except grpc.RpcError as error:
        check(error.code() != grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer within {ANSWER_SECONDS_MAX} s")
        raise Refused(f"{error.code().name}: {error.details()}") from None
    except requests.exceptions.Timeout:
        raise Breach(f"no answer within {ANSWER_SECONDS_MAX} s") from None
    except requests.exceptions.RequestException as error:
        raise Refused(str(error)) from None


class Table:
    """A server, and what its table must be."""

    def __init__(self, run: Run):
        self.run = run
        self.number = 0
        self.tracer: Optional[Tracer] = None
        self.server: Optional[Server] = None
        self.fill()

    def fill(self) -> None:
        """A new folder with parts of several kinds, some of them in a segment."""
        self.close()
        folder = self.run.folder / f"table-{self.number}"
        folder.mkdir()
        self.tracer = Tracer(folder, folder / "data")
        self.parts: Dict[int, bytes] = {}
        # Uploads that were refused: they may be there, or not.
        self.loose: Set[bytes] = set()
        # Parts whose removal was refused while everything failed, so that it could not be undone on the disk either. The next
        # start may find them removed.
        self.uncertain: Set[int] = set()
        self.server = self.tracer.start(*FLAGS)
        for _ in range(PACKED):
            self.upload(self.small())
        tally(self.server).Pack(tally_pb2.PackRequest(), timeout=ANSWER_SECONDS_MAX)
        for content in (self.small(), self.small(), self.large(), self.texts(), SURVEY):
            self.upload(content)

    def close(self) -> None:
        if self.server is not None:
            self.server.kill()

    def next(self) -> int:
        self.number += 1
        return self.number

    def small(self) -> bytes:
        return f"x,y\n{self.next()},1\n5,2\n".encode()

    def large(self) -> bytes:
        """Several blocks, and integers only."""
        return (f"x,y\n{self.next()},1\n" + "".join(f"{row},{row * 7}\n" for row in range(100_000))).encode()

    def texts(self) -> bytes:
        """Several blocks, and columns of other types."""
        return (f"t,x\n1.5,{self.next()}\n" + "".join(f'"a, {row}",{row}\n' for row in range(20_000))).encode()

    def upload(self, content: bytes) -> int:
        self.loose.add(content)
        stream = chunks_of(content)
        part = asked(lambda: tally(self.server).Upload(stream, timeout=ANSWER_SECONDS_MAX)).part
        self.loose.discard(content)
        self.parts[part] = content
        return part

    def total(self) -> int:
        return sum(total_of(content) for content in self.parts.values())


@lru_cache(maxsize=4096)
def total_of(content: bytes) -> int:
    header, *rows = content.decode().splitlines()
    names = header.split(",")
    if "x" not in names:
        return 0
    return sum(int(row.rsplit(",", 1)[1] if names[-1] == "x" else row.split(",", 1)[0]) for row in rows)


def end_of_job(made: Table, ended: Callable):
    """The end of a job. It may have to wait until its record can be written again."""
    begun = time.monotonic()

    def poll():
        if time.monotonic() - begun > FAULTY_JOB_SECONDS:
            made.tracer.let_succeed()
        return ended()

    return wait_until(poll, "the end of a job", ANSWER_SECONDS_MAX)


# --- operations -----------------------------------------------------------------------------------------------


def column_sum(file_format: str) -> Callable[[Table], None]:
    def ask(made: Table) -> None:
        request = table_pb2.ColSumReq(column="x", format=file_format)
        answer = asked(lambda: table(made.server).ColumnSum(request, timeout=ANSWER_SECONDS_MAX))
        check((answer.total, answer.error) == (made.total(), ""), f"{file_format}: {answer} instead of {made.total()}")

    return ask


def group_sum(made: Table) -> None:
    request = tally_pb2.GroupSumRequest(by=["y"], sum=["x"])
    blocks = asked(lambda: list(tally(made.server).GroupSum(request, timeout=ANSWER_SECONDS_MAX)))
    total = sum(group.totals[0] for block in blocks for group in block.groups)
    # Only files with both columns count.
    expected = sum(total_of(content) for content in made.parts.values() if content.startswith(b"x,y\n"))
    check(total == expected, f"group sums add up to {total} instead of {expected}")


def statistic(made: Table) -> None:
    body = {"question": "Q"}
    accepted = asked(lambda: requests.post(f"{made.server.http}/api/global_mean", json=body, timeout=ANSWER_SECONDS_MAX))
    if accepted.status_code != 200:
        raise Refused(accepted.text)
    url = f"{made.server.http}/api/get_results/{accepted.json()['job_id']}"

    def ended():
        answer = asked(lambda: requests.get(url, timeout=ANSWER_SECONDS_MAX))
        if answer.status_code != 200:
            raise Refused(answer.text)
        return answer.json() if answer.json()["status"] != "running" else None

    answer = end_of_job(made, ended)
    if answer["status"] != "done":
        raise Refused(str(answer))
    check(abs(answer["data"]["global_mean"] - SURVEY_MEAN) < 1e-9, f"the mean is {answer}")


def task(made: Table) -> None:
    count = made.next()
    rows = "".join(f"song {row},2020-01-01,{count}\n" for row in range(4_000))
    form = {"file": ("plays.csv", b"Song,Date,Number of Plays\n" + rows.encode())}
    accepted = asked(lambda: requests.post(made.server.http + TASKS, files=form, timeout=ANSWER_SECONDS_MAX))
    if accepted.status_code != 202:
        raise Refused(accepted.text)
    url = f"{made.server.http}{TASKS}{accepted.json()['task']['id']}"

    def ended() -> str:
        answer = asked(lambda: requests.get(url + "/status", timeout=ANSWER_SECONDS_MAX))
        if answer.status_code != 200:
            raise Refused(answer.text)
        word = answer.json()["task"]["status"]
        return word if word not in ("QUEUED", "IN_PROGRESS") else ""

    word = end_of_job(made, ended)
    if word != "COMPLETED":
        raise Refused(word)
    answer = asked(lambda: requests.get(url + "/download", timeout=ANSWER_SECONDS_MAX))
    if answer.status_code != 200:
        raise Refused(answer.text)
    expected = "Song,Date,Total Number of Plays for Date\n" + "".join(sorted(rows.splitlines(keepends=True)))
    check(answer.text == expected, f"a task has another result: {answer.text[:100]}")


def sweep(made: Table) -> None:
    """Waits until the results of earlier tasks are removed, a second or two after they were fetched."""
    jobs = made.server.data / "jobs"
    task(made)
    deadline = time.monotonic() + 3
    while any(jobs.glob("*.result")) and time.monotonic() < deadline:
        time.sleep(0.05)


def remove(purge: bool) -> Callable[[Table], None]:
    def change(made: Table) -> None:
        part = made.run.choices.choice([part for part, content in made.parts.items() if content != SURVEY])
        content = made.parts.pop(part)
        made.loose.add(content)
        request = tally_pb2.RemovePartRequest(part=part, purge=purge)
        if made.tracer.fields.mode == FOR_GOOD:
            made.uncertain.add(part)
        asked(lambda: tally(made.server).RemovePart(request, timeout=ANSWER_SECONDS_MAX))
        if not purge:
            asked(lambda: tally(made.server).RestorePart(tally_pb2.RestorePartRequest(part=part), timeout=ANSWER_SECONDS_MAX))
            made.parts[part] = content
        made.loose.discard(content)

    return change


def pack(made: Table) -> None:
    asked(lambda: tally(made.server).Pack(tally_pb2.PackRequest(), timeout=ANSWER_SECONDS_MAX))


def fetch(made: Table) -> None:
    for part in made.run.choices.sample(sorted(made.parts), 3):
        answer = asked(lambda p=part: requests.get(f"{made.server.http}/api/v1/table/parts/{p}/csv", timeout=ANSWER_SECONDS_MAX))
        if answer.status_code != 200:
            raise Refused(answer.text)
        check(answer.content == made.parts[part], f"part {part} has other bytes")


def list_parts(made: Table) -> None:
    listed = asked(lambda: list(tally(made.server).ListParts(tally_pb2.ListPartsRequest(), timeout=ANSWER_SECONDS_MAX)))
    found = [receipt.part for receipt in listed if not receipt.damaged]
    if any(receipt.damaged for receipt in listed):
        raise Refused("a receipt cannot be read")
    check(found == sorted(made.parts), f"parts {sorted(set(found) ^ set(made.parts))} differ")


def verify(made: Table) -> None:
    progress = asked(lambda: list(tally(made.server).Verify(tally_pb2.VerifyRequest(), timeout=ANSWER_SECONDS_MAX)))
    if any(each.damaged for each in progress):
        raise Refused("files cannot be read")


OPERATIONS: Dict[str, Callable[[Table], object]] = {
    "upload small": lambda made: made.upload(made.small()),
    "upload large": lambda made: made.upload(made.large()),
    "upload texts": lambda made: made.upload(made.texts()),
    "sum csv": column_sum("csv"),
    "sum parquet": column_sum("parquet"),
    "group sum": group_sum,
    "statistic": statistic,
    "task": task,
    "sweep": sweep,
    "remove and restore": remove(False),
    "purge": remove(True),
    "pack": pack,
    "download": fetch,
    "list": list_parts,
    "verify": verify,
}
READ_ONLY = {"sum csv", "sum parquet", "group sum", "download", "list", "verify"}
START = "start"

# --- one fault ------------------------------------------------------------------------------------------------


def settle(made: Table, what: str) -> None:
    """All calls succeed again. Everything acknowledged is there; what was refused is wholly there or wholly not."""
    listed = set(ids(tally(made.server)))
    lost = set(made.parts) - listed
    check(not lost, f"{what}: parts {sorted(lost)} are lost")
    for part in listed - set(made.parts):
        content = download(made.server, part)
        check(content in made.loose, f"{what}: part {part} is not what was sent")
        made.loose.discard(content)
        made.parts[part] = content
    check_alive(made.server)
    for ask in (OPERATIONS["sum csv"], OPERATIONS["sum parquet"]):
        try:
            ask(made)
        except Refused as refused:
            raise Breach(f"{what}: afterwards a sum is refused: {refused}") from None


def strays(made: Table) -> List[str]:
    data = made.server.data
    records = {path.stem for path in (data / "jobs").glob("*.json")}
    jobs = [f"jobs/{path.name}" for path in (data / "jobs").iterdir() if path.name.split(".")[0] not in records]
    # The greatest number stays, so that it is not given out again.
    purged = sorted((data / "removed").glob("*.purged"), key=lambda path: int(path.stem))[:-1]
    return leftovers(data) + jobs + [f"removed/{path.name}" for path in purged]


def is_clean(made: Table, seconds: float = CLEAN_SECONDS_MAX) -> bool:
    deadline = time.monotonic() + seconds
    while strays(made):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def check_clean(made: Table, what: str) -> None:
    check(is_clean(made, 5), f"{what}: left over: {strays(made)[:10]}")


def one_fault(made: Table, name: str, mode: Mode, at: int) -> bool:
    """Returns whether a call failed."""
    run, tracer = made.run, made.tracer
    if name == "pack":
        # Always about as much, so that the calls of one run are those of the next.
        pack(made)
        made.upload(made.small())
        made.upload(made.small())
    tracer.arm(mode.mode, at, mode.error, mode.changes_only)
    outcome = "succeeded"
    try:
        OPERATIONS[name](made)
    except Refused:
        outcome = "refused"
    except AssertionError as error:
        raise Breach(f"{name}, {mode.name}, call {at} ({tracer.what()}): {error}") from None
    finally:
        failed = tracer.disarm()
    what = f"{name}, {mode.name}, call {at} ({tracer.what()}, {outcome})"
    if not failed and outcome == "refused":
        raise Breach(f"{what}: refused although no call failed")
    run.figures["faults"] += min(failed, 1)
    run.figures[outcome] += min(failed, 1)
    if name in READ_ONLY and outcome == "succeeded":
        return failed > 0
    settle(made, what)
    try:
        made.upload(made.small())
    except Refused as refused:
        raise Breach(f"{what}: afterwards an upload is refused: {refused}") from None
    if not is_clean(made):
        # Files of a segment, and of a removal that could not be undone, are removed by the next start.
        how = "once" if mode.mode == ONCE else "for good"
        run.figures[f"left until the next start, failing {how}"] += 1
        print(f"{what}: left over until the next start: {strays(made)[:5]}", flush=True)
        restart(made, what)
    return failed > 0


def restart(made: Table, what: str) -> None:
    made.server.stop()
    made.server = made.tracer.start(*FLAGS)
    check(made.server.quarantine_count_at_start == 0, f"{what}, restarted: {made.server.ready_line}")
    listed = set(ids(tally(made.server)))
    for part in made.uncertain - listed:
        made.parts.pop(part, None)
    made.uncertain.clear()
    settle(made, what + ", restarted")
    check_clean(made, what + ", restarted")
    made.run.figures["restarts"] += 1


def one_start(made: Table, mode: Mode, at: int) -> bool:
    """A start with a failing call: the server does not start, or it misses nothing."""
    if made.uncertain:
        restart(made, "before a start")
    made.server.stop()
    if made.run.choices.random() < 0.5:
        # With something to clean up.
        (made.server.data / "tmp" / "77").write_bytes(b"x\n1\n")
        (made.server.data / "parts" / "900000.csv").write_bytes(b"x\n1\n")
    tracer = made.tracer
    tracer.arm(mode.mode, at, mode.error, mode.changes_only)
    outcome = "no start"
    try:
        made.server = tracer.start(*FLAGS)
        outcome = "started"
        if made.server.quarantine_count_at_start:
            outcome = "quarantine"
    except ServerDidNotStart as failure:
        check(failure.exit_code == 1 and "panicked" not in failure.stderr, f"start, {mode.name}, call {at}: {failure}")
    finally:
        failed = tracer.disarm()
    what = f"start, {mode.name}, call {at} ({tracer.what()}, {outcome})"
    made.run.figures["faults"] += min(failed, 1)
    made.run.figures[outcome] += 1
    check(failed or outcome == "started", f"{what}: although no call failed")
    if outcome == "quarantine":
        raise Breach(f"{what}: undamaged parts were moved to quarantine")
    if outcome == "started":
        settle(made, what)
        made.server.stop()
    made.server = tracer.start(*FLAGS)
    check(made.server.quarantine_count_at_start == 0, f"{what}, then: {made.server.ready_line}")
    settle(made, what + ", then started")
    check_clean(made, what + ", then started")
    return failed > 0


def one(made: Table, name: str, mode: Mode, at: int) -> bool:
    """Returns whether a call failed."""
    return one_start(made, mode, at) if name == START else one_fault(made, name, mode, at)


def calls_of(made: Table, name: str, mode: Mode) -> int:
    """How many calls the operation makes when none fails."""
    one(made, name, mode, 10**9)
    return made.tracer.fields.count


def pairs() -> List[tuple]:
    """The operations and how their calls fail. What changes nothing cannot lack space."""
    return [(name, mode) for name in [*OPERATIONS, START] for mode in MODES if name not in READ_ONLY or not mode.changes_only]


# --- the row --------------------------------------------------------------------------------------------------


def some_of_each(run: Run, made: Table) -> None:
    """One random call of each operation in each mode, again and again."""
    chosen = pairs()
    run.choices.shuffle(chosen)
    counts: Dict[tuple, int] = {}
    for number in run.rounds():
        name, mode = chosen[number % len(chosen)]
        if (name, mode.changes_only) not in counts:
            counts[name, mode.changes_only] = max(1, calls_of(made, name, mode))
        one(made, name, mode, run.choices.randint(1, counts[name, mode.changes_only]))
        renew(made, number)


def all_of_each(run: Run, made: Table) -> None:
    """Every call of every operation in every mode."""
    for name, mode in pairs():
        at = 1
        while one(made, name, mode, at):
            at += 1
            run.done += 1
            renew(made, run.done)
        run.figures["most calls of an operation"] = max(run.figures["most calls of an operation"], at - 1)
    run.note("all calls of all operations")


def as_many_as_possible(run: Run, made: Table) -> None:
    """The same in any order, until the time is over."""
    counts = {pair: 0 for pair in pairs()}
    for name, mode in counts:
        counts[name, mode] = calls_of(made, name, mode)
    waiting = [(pair, at) for pair, count in counts.items() for at in range(1, count + 1)]
    run.choices.shuffle(waiting)
    for number, ((name, mode), at) in enumerate(waiting, 1):
        if run.is_late():
            break
        one(made, name, mode, at)
        run.done += 1
        renew(made, number)
    run.note(f"{run.done:,} of {len(waiting):,} calls of all operations, in any order")


def renew(made: Table, number: int) -> None:
    """Now and then, so that the table stays about as large: the calls of an operation depend on it."""
    if number % FOLDER_FOR == 0:
        made.server.stop()
        check_verify(made.server.data)
        made.fill()
    elif number % RESTART_EVERY == 0:
        pack(made)
        restart(made, f"after {number} faults")


def faults(run: Run) -> None:
    made = Table(run)
    try:
        if run.is_sabotaged:
            # A part is lost behind the server's back.
            for path in (made.server.data / "parts").glob("*.csv"):
                path.unlink()
        if run.amount >= run.row.full and run.deadline is None:
            all_of_each(run, made)
        elif run.amount >= run.row.full:
            as_many_as_possible(run, made)
        else:
            some_of_each(run, made)
        restart(made, "at the end")
        made.server.stop()
        check_verify(made.server.data)
    finally:
        made.close()


# About what all calls of all operations are.
ALL = 2_700
ROW = Row(3, "faults", "the Nth system call on the data folder fails, once or from then on", "faults", len(pairs()), ALL, 40, faults, 12)
