"""Row 11: a data folder that somebody else has changed, by name. The cases are tests of their own, which this row runs and counts."""

import re
import subprocess
import sys

from core import ROOT, Row, Run
from invariants import check

FILES = ["test_data_folder.py", "test_file_modes.py"]
# Of these, the cases about the folder.
PICKED = {"test_start_and_stop.py": "leftovers or set_aside or damaged or format or folder or lock or holder"}
COUNT = re.compile(r"(\d+) (passed|failed|error|skipped)")


def hostile(run: Run) -> None:
    runs = [(FILES, "")]
    if run.deadline is None or run.seconds_left(1000) > run.row.short_seconds:
        runs += [([name], picked) for name, picked in PICKED.items()]
    for names, picked in runs:
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={run.folder / 'cases'}"]
        words += ["-k", picked] if picked else []
        words += [str(ROOT / "tests" / "python" / name) for name in names]
        done = subprocess.run(words, capture_output=True, text=True)
        counts = {word: int(count) for count, word in COUNT.findall(done.stdout.strip().splitlines()[-1])}
        check(done.returncode == 0, done.stdout[-3000:])
        run.done += counts.get("passed", 0)
        run.figures["cases"] += counts.get("passed", 0)
        if counts.get("skipped"):
            run.note(f"{counts['skipped']} cases of {names[0]} cannot run here")


ROW = Row(11, "hostile", "a data folder with links, FIFOs, devices, other ids, damaged and foreign files", "cases", 47, 47, 20, hostile, 1, "links-followed")
