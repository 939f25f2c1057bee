"""What all rows of the torture run share: what a row is, how much of it is run, and how it ends.

A row does rounds until it has done its amount or its time is over. It raises `Breach` (or any failed assertion) if a
promise was broken, `CannotRun` if the machine lacks something, and `LeftOut` if another command runs it. With `--prove` each
row damages on purpose what it watches, or runs a server with a bug, and must notice.
"""

import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Callable, Iterator, NamedTuple, Optional

TORTURE = Path(__file__).resolve().parent
ROOT = TORTURE.parents[1]
sys.path.insert(0, str(ROOT / "tests" / "python"))

import conftest  # noqa: E402, F401  (makes the stubs)


class Breach(AssertionError):
    """A promise that was broken."""


class CannotRun(Exception):
    """What this machine lacks for a row. With TALLY_REQUIRE_ALL=1 it fails."""


class LeftOut(Exception):
    """Which other command runs the row, or how much time it needs. No failure anywhere."""


class Row(NamedTuple):
    number: int
    name: str
    fault: str
    # What `short` and `full` count.
    unit: str
    short: int
    full: int
    # The most time that the short form gives it.
    short_seconds: float
    run: Callable[["Run"], None]
    # Of the time of `--minutes`, compared with other rows.
    share: float
    # The bug with which the row must fail, if it cannot break something itself for `--prove`. That needs a build.
    mutant: str = ""


class Run:
    """One run of a row: its random choices, its folder, how much it has to do, and what it has found out."""

    def __init__(self, row: Row, seed: int, amount: int, seconds: Optional[float], folder: Path, is_sabotaged: bool):
        self.row = row
        self.seed = seed
        self.amount = amount
        self.folder = folder
        # Whether the row has to break something itself, and to notice.
        self.is_sabotaged = is_sabotaged
        self.choices = random.Random(f"{seed} {row.name}")
        self.figures: Counter = Counter()
        # What the reader of the table should know.
        self.notes: list = []
        self.done = 0
        self.seconds = seconds
        self.begin_again()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def begin_again(self) -> None:
        """From now on the time counts."""
        self.begun = time.monotonic()
        self.deadline = None if self.seconds is None else self.begun + self.seconds

    def rounds(self, amount: Optional[int] = None) -> Iterator[int]:
        """Counts rounds from 1, until there were enough or the time is over. There is always one."""
        amount = self.amount if amount is None else amount
        for number in range(1, amount + 1):
            yield number
            self.done += 1
            if self.is_late():
                return

    def is_late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def seconds_left(self, most: float) -> float:
        return most if self.deadline is None else max(0.0, min(most, self.deadline - time.monotonic()))

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def most(self, figure: str, value) -> None:
        """Keeps the greatest value of a figure."""
        self.figures[figure] = max(self.figures[figure], value)


class Outcome(NamedTuple):
    run: Run
    # "held", "breached", "cannot run" or "left out"
    word: str
    reason: str
    seconds: float

    def json(self) -> dict:
        row = self.run.row
        return {
            "number": row.number,
            "row": row.name,
            "fault": row.fault,
            "outcome": self.word,
            "reason": self.reason,
            "seed": self.run.seed,
            "done": self.run.done,
            "amount": self.run.amount,
            "full": row.full,
            "unit": row.unit,
            "seconds": round(self.seconds, 1),
            "figures": dict(sorted(self.run.figures.items())),
            "notes": self.run.notes,
        }


def machine() -> dict:
    """Where the figures come from."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    git = ["git", "-C", ROOT]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout.strip()
    return {
        "system": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory_mib": memory,
        "commit": commit,
        "has_changes": bool(changed),
        "date": time.strftime("%Y-%m-%d-%H%M"),
    }


def stop_process(process: subprocess.Popen) -> None:
    """Ends a helper process that was started here."""
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait()


def build_helper(source: Path, folder: Path) -> Path:
    """Compiles a helper program in C, once."""
    if not shutil.which("cc"):
        raise CannotRun("there is no C compiler (cc)")
    program = folder / source.stem
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = program.with_suffix(f".{os.getpid()}")
        subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", unfinished, source], check=True)
        unfinished.rename(program)
    return program
