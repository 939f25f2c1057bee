"""Row 4: the order on disk. A linter over a record of every system call of the real binary on its data folder.

Before a receipt or record gets its name, it and the files that it speaks of are synced; before the answer, the folders in which names
changed are synced. Each sync is delayed a little, so that an answer that does not wait for one comes before it.
"""

import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Dict, List, NamedTuple, Optional, Pattern

import requests
import tally_pb2
import tally_pb2_grpc
from core import Breach, Row, Run
from http_calls import TASKS
from invariants import check
from model import CALL_SECONDS_MAX, chunks_of, make_csv
from tracing import Call, Tracer

CLIENTS = 8
SYNC_DELAY_US = 2_000
WRITES = {"write", "pwrite64", "writev", "pwritev", "pwritev2", "ftruncate", "fallocate", "copy_file_range", "sendfile"}
SYNCS = {"fsync", "fdatasync"}
RENAMES = {"rename", "renameat", "renameat2"}
COMMITS = re.compile(r"(parts/\d+)\.json$|(parts/\d+-\d+-\d+)\.segment$|(jobs/[^.]+)\.json$")
REPLACED = re.compile(r"removed/(\d+)\.replaced$")
# Files without content, whose names say something.
MARK = re.compile(r"removed/\d+\.(packed|packed-purged|purged)$")
SEGMENT = re.compile(r"parts/(\d+)-(\d+)-\d+\.segment$")


class Answer(NamedTuple):
    """What a client was told, and the position of the record at which it was told."""

    what: str
    # The names of which one must have changed by then. The folders of that name are synced after it.
    names: Pattern
    position: int


class Linter:
    """Reads the calls in the order of their ends, and keeps which bytes and names are on disk."""

    def __init__(self, calls: List[Call]):
        self.calls = calls
        # Of each path: the end of its last write; the end of a sync that began after that.
        self.written: Dict[str, int] = {}
        self.synced: Dict[str, int] = {}
        self.renames: List[Call] = []
        # Names that a rename, the making of a mark or a removal has changed.
        self.changes: List[Call] = []
        # Syncs of folders and of everything.
        self.folder_syncs: List[Call] = []
        self.commits = 0
        self.faults: List[str] = []

    def run(self) -> None:
        for call in self.calls:
            if call.result < 0:
                continue
            if call.name in WRITES:
                self.written[call.path] = call.ended
                self.synced.pop(call.path, None)
            elif call.name in SYNCS:
                self._sync(call, [call.path])
                self.folder_syncs.append(call)
            elif call.name == "syncfs":
                self._sync(call, list(self.written))
                self.folder_syncs.append(call)
            elif call.name in RENAMES:
                self._rename(call)
            elif call.name == "openat" and MARK.match(call.path):
                self.changes.append(call)
            elif call.name in ("unlink", "unlinkat"):
                self.changes.append(call)
                self.written.pop(call.path, None)
                self.synced.pop(call.path, None)

    def _sync(self, call: Call, paths: List[str]) -> None:
        for path in paths:
            if self.written.get(path, 0) < call.entered:
                self.synced.setdefault(path, call.ended)

    def _rename(self, call: Call) -> None:
        commit = COMMITS.match(call.to)
        if commit and call.path.startswith("tmp/"):
            self.commits += 1
            stem = next(group for group in commit.groups() if group)
            beside = [path for path in self.written if PurePosixPath(path).name.split(".")[0] == stem.split("/")[1]]
            beside = [path for path in beside if path.startswith(stem + ".")]
            for path in [call.path, *beside]:
                if self.written.get(path) and self.synced.get(path, call.entered) >= call.entered:
                    self.faults.append(f"{call.to} got its name before {path} was synced")
        for state in (self.written, self.synced):
            if call.path in state:
                state[call.to] = state.pop(call.path)
        self.renames.append(call)
        self.changes.append(call)
        replaced = REPLACED.match(call.to)
        if replaced:
            self._check_replaced(int(replaced[1]), call)

    def _check_replaced(self, part: int, call: Call) -> None:
        """A part's own receipt goes only when a segment that has the part is on disk."""
        for rename in self.renames:
            segment = SEGMENT.match(rename.to)
            if segment and int(segment[1]) <= part <= int(segment[2]):
                durable = self.durable_at(rename, "parts")
                if durable is not None and durable < call.entered:
                    return
        self.faults.append(f"part {part} was replaced before its segment was on disk")

    def durable_at(self, rename: Call, folder: str) -> Optional[int]:
        """The end of the first sync of the folder that began after a rename."""
        ends = [
            sync.ended
            for sync in self.folder_syncs
            if sync.entered > rename.ended and (sync.path == folder or sync.name == "syncfs")
        ]
        return min(ends, default=None)

    def check_answer(self, answer: Answer) -> None:
        changes = [
            call
            for call in self.changes
            if call.ended <= answer.position and answer.names.match(call.to or call.path)
        ]
        if not changes:
            self.faults.append(f"{answer.what} was answered before there was {answer.names.pattern}")
            return
        # The first one is what the call asked for; the mark of a purged part is later made anew.
        paths = [path for path in (changes[0].path, changes[0].to) if path]
        for folder in sorted({path.split("/")[0] for path in paths} - {"tmp"}):
            durable = self.durable_at(changes[0], folder)
            if durable is None or durable > answer.position:
                self.faults.append(f"{answer.what} was answered before {folder}/ was synced")


class Load:
    """Clients that write down when they were answered."""

    def __init__(self, server, tracer: Tracer, run: Run):
        self.server, self.tracer, self.run = server, tracer, run
        self.stub = tally_pb2_grpc.TallyStub(server.channel())
        self.answers: List[Answer] = []
        self.lock = threading.Lock()

    def note(self, what: str, names: str) -> None:
        position = self.tracer.fields.position  # before anything else
        with self.lock:
            self.answers.append(Answer(what, re.compile(names + "$"), position))

    def upload(self, number: int) -> int:
        choices = random.Random(f"{self.run.seed} {number}")
        csv = make_csv(number, f"c{number % 3}", choices)
        receipt = self.stub.Upload(chunks_of(csv.content), timeout=CALL_SECONDS_MAX)
        self.note(f"the upload of part {receipt.part}", rf"parts/{receipt.part}\.json")
        return receipt.part

    def change(self, part: int, number: int) -> None:
        """Removes a part; some are restored, and some purged."""
        purge = number % 3 == 0
        self.stub.RemovePart(tally_pb2.RemovePartRequest(part=part, purge=purge), timeout=CALL_SECONDS_MAX)
        self.note(f"the removal of part {part}", rf"removed/{part}\.(json|purged|packed|packed-purged)")
        if not purge and number % 2 == 0:
            self.stub.RestorePart(tally_pb2.RestorePartRequest(part=part), timeout=CALL_SECONDS_MAX)
            self.note(f"the return of part {part}", rf"parts/{part}\.json|removed/{part}\.packed")

    def task(self, number: int) -> None:
        rows = "".join(f"song {row % 50},2020-01-01,{row}\n" for row in range(10 if number % 2 else 20_000))
        form = {"file": ("plays.csv", b"Song,Date,Number of Plays\n" + rows.encode())}
        accepted = requests.post(self.server.http + TASKS, files=form, timeout=CALL_SECONDS_MAX)
        check(accepted.status_code == 202, accepted.text)
        task = accepted.json()["task"]["id"]
        self.note(f"task {task}", rf"jobs/{task}\.json")

    def one(self, number: int) -> None:
        part = self.upload(number)
        if number % 5 == 0:
            self.change(part, number)
        if number % 7 == 0:
            self.task(number)


def order(run: Run) -> None:
    tracer = Tracer(run.folder, run.folder / "data")
    with tracer.start("--pack-above", "0", "--undo-s", "86400") as server:
        tracer.fields.sync_delay_us = SYNC_DELAY_US
        load = Load(server, tracer, run)
        # The first ones alone, the others in batches.
        alone = max(1, run.amount // 4)
        for number in range(1, alone + 1):
            load.one(number)
        with ThreadPoolExecutor(CLIENTS) as pool:
            pending = [pool.submit(load.one, number) for number in range(alone + 1, run.amount + 1)]
            for upload in pending:
                if run.is_late():
                    upload.cancel()
                elif not upload.cancelled():
                    upload.result()
        load.stub.Pack(tally_pb2.PackRequest(), timeout=CALL_SECONDS_MAX)
        server.stop()
    run.done = len([answer for answer in load.answers if answer.what.startswith("the upload")])
    calls = tracer.calls()
    if run.is_sabotaged:
        calls.remove(next(call for call in reversed(calls) if call.name in SYNCS and call.path == "parts"))
    linter = Linter(calls)
    linter.run()
    for answer in load.answers:
        linter.check_answer(answer)
    run.figures.update(
        {"calls": len(calls), "answers": len(load.answers), "commits": linter.commits, "syncs": len(linter.folder_syncs)}
    )
    segments = len([call for call in linter.renames if SEGMENT.match(call.to)])
    run.figures["segments"] += segments
    check(linter.commits >= run.done and segments > 0, "the record is not complete")
    if linter.faults:
        raise Breach(f"{len(linter.faults)} faults: " + "; ".join(linter.faults[:5]))


ROW = Row(4, "order", "order on disk: every rename after its sync, and before the folder's, before the answer", "uploads", 20, 1_000, 20, order, 2)
