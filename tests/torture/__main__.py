"""`make torture`: attacks and faults against the real server, and whether its promises hold.

    .venv/bin/python tests/torture                         # the full form, which takes many hours
    .venv/bin/python tests/torture --minutes 60            # an hour, shared by the rows
    .venv/bin/python tests/torture --short                 # at most 5 minutes; `make test` runs this
    .venv/bin/python tests/torture --only kill --seed 7    # one row, with the choices of an earlier run
    .venv/bin/python tests/torture --prove                 # each row breaks something itself, and must notice; builds a server with bugs
    .venv/bin/python tests/torture --markdown docs/guarantees.md   # runs nothing: writes earlier results into the page

TALLY_BINARY names another binary than target/debug/tally. Prints one table and writes one JSON file. Exit code 1: a promise
was broken, and the row's folder is left as it was then. A row that this machine cannot run is reported with the reason;
with TALLY_REQUIRE_ALL=1 it is a failure.
"""

import argparse
import json
import os
import random
import shutil
import sys
import time
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator

import mutants
import report
from conftest import binary
from core import ROOT, CannotRun, LeftOut, Outcome, Run, machine
from rows import ROWS

# In memory if there is room, because most rows sync all the time; the order of syncs is the same.
MEMORY = Path("/dev/shm")
MEMORY_BYTES_MIN = 4 * 2**30


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__.split("\n")[0])
    parser.add_argument("--only", action="append", metavar="ROW", choices=[row.name for row in ROWS], help="may be repeated")
    parser.add_argument("--list", action="store_true", help="print the rows")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--minutes", type=float, default=None, help="time for all rows together")
    parser.add_argument("--amount", type=int, default=None, help="of each row, instead of that of its form")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--short", action="store_true", help="the small amounts, 5 minutes at the most")
    form.add_argument("--full", action="store_true", help="the large amounts (the default)")
    form.add_argument("--prove", action="store_true", help="each row must notice what it breaks itself")
    parser.add_argument("--folder", type=Path, default=None, help="for data folders; in memory if there is room")
    parser.add_argument("--json", type=Path, default=None, help="file for the result, instead of one in target/torture")
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="fill the table of results in this page, and run nothing")
    parser.add_argument(
        "--from", type=Path, action="append", dest="results", metavar="JSON", help="results to add up, instead of those of the newest commit"
    )
    return parser.parse_args()


def default_folder() -> Path:
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= MEMORY_BYTES_MIN:
        return MEMORY / f"tally-torture-{os.getpid()}"
    return ROOT / "target" / "torture" / "data"


@contextmanager
def server_with_bug(run: Run) -> Iterator[None]:
    """For --prove, if the row needs one."""
    if not (run.is_sabotaged and run.row.mutant):
        yield
        return
    if shutil.which("cargo") is None:
        raise CannotRun("cargo is not there, and this proof needs a build")
    print("    building a server with bugs", flush=True)
    chosen = {"TALLY_BINARY": str(mutants.program()), "MUTANT": run.row.mutant}
    before = {name: os.environ.get(name) for name in chosen}
    os.environ.update(chosen)
    run.begin_again()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def run_row(run: Run) -> Outcome:
    reason, word = "", "held"
    try:
        with server_with_bug(run):
            run.row.run(run)
    except CannotRun as missing:
        word, reason = "cannot run", str(missing)
    except LeftOut as elsewhere:
        word, reason = "left out", str(elsewhere)
    except Exception as error:  # an error of the row itself must not look as if all was well
        traceback.print_exc()
        word, reason = "breached", f"{type(error).__name__}: {error}"
    if word != "breached":
        shutil.rmtree(run.folder, ignore_errors=True)
    return Outcome(run, word, reason, time.monotonic() - run.begun)


class Clock:
    """How much time each row gets."""

    def __init__(self, chosen: list, options: argparse.Namespace):
        self.is_small = options.short or options.prove
        self.ends = None if options.minutes is None else time.monotonic() + 60 * options.minutes
        # With --minutes, those first that need least: what they leave of their time is for the others.
        self.rows = list(chosen) if self.ends is None else sorted(chosen, key=lambda row: row.share)

    def seconds_of(self, row) -> float | None:
        if self.ends is None:
            return row.short_seconds if self.is_small else None
        shares = sum(other.share for other in self.rows[self.rows.index(row) :])
        left = self.ends - time.monotonic()
        return max(1.0, left * row.share / shares)


def run_all(chosen: list, options: argparse.Namespace, write: Callable[[list], None]) -> list:
    clock = Clock(chosen, options)
    outcomes: list = []
    for row in clock.rows:
        amount = options.amount or (row.short if clock.is_small else row.full)
        print(f"--- {row.name}, --seed {options.seed}: {row.fault}", flush=True)
        run = Run(row, options.seed, amount, clock.seconds_of(row), options.folder / row.name, options.prove)
        outcome = run_row(run)
        print(f"    {outcome.word} after {outcome.seconds:.0f} s: {outcome.reason or dict(run.figures)}", flush=True)
        outcomes.append(outcome)
        write(outcomes)
    return outcomes


def is_failure(outcome: Outcome, is_proof: bool) -> bool:
    if outcome.word == "left out":
        return False
    if outcome.word == "cannot run":
        return os.environ.get("TALLY_REQUIRE_ALL") == "1"
    return outcome.word != ("breached" if is_proof else "held")


def main() -> int:
    options = arguments()
    if options.list:
        for row in ROWS:
            print(f"{row.number:3} {row.name:10} {row.short:,} / {row.full:,} {row.unit}: {row.fault}")
        return 0
    if options.markdown:
        report.fill(options.markdown, [json.loads(path.read_text()) for path in options.results or report.latest()])
        return 0
    options.seed = random.SystemRandom().getrandbits(31) if options.seed is None else options.seed
    options.folder = (options.folder or default_folder()).resolve()
    form = "short" if options.short else "prove" if options.prove else "full"
    head = {"seed": options.seed, "form": form, "minutes": options.minutes, **machine(), "build": binary().parent.name}
    path = options.json or report.default_path(form, head["date"], options.seed)

    def write(outcomes: list) -> None:
        report.write(path, {**head, "rows": [outcome.json() for outcome in outcomes]})

    outcomes = run_all([row for row in ROWS if not options.only or row.name in options.only], options, write)
    print(report.table_of([outcome.json() for outcome in outcomes]))
    print(f"result: {path}")
    if options.folder.exists() and not any(options.folder.iterdir()):
        options.folder.rmdir()
    failed = [outcome for outcome in outcomes if is_failure(outcome, options.prove)]
    for outcome in failed:
        what = outcome.reason or "did not notice what it broke"
        print(f"{outcome.run.row.name}, --seed {options.seed}: {what}\n  its folder: {outcome.run.folder}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
