"""Row 14: bugs on purpose, each of which a named test must find (`mutants.py`)."""

import re
import subprocess
import sys

from core import TORTURE, LeftOut, Row, Run
from invariants import check

MUTANTS = len(list((TORTURE / "mutants").glob("*.patch")))
SECONDS_NEEDED = 20 * 60


def mutant(run: Run) -> None:
    if run.is_sabotaged or run.seconds_left(SECONDS_NEEDED) < SECONDS_NEEDED:
        raise LeftOut("`make mutants` runs them, in about a quarter of an hour")
    done = subprocess.run([sys.executable, str(TORTURE / "mutants.py")], capture_output=True, text=True)
    print(done.stdout, flush=True)
    caught = re.search(r"^(\d+) of \d+ mutants are caught", done.stdout, re.M)
    run.done = int(caught[1]) if caught else 0
    check(done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:])


ROW = Row(14, "mutants", "bugs on purpose, each caught by a named test", "mutants", MUTANTS, MUTANTS, 0, mutant, 3)
