"""What torture runs have found: the table at the end of a run, their JSON files, and the same table in a page of documentation.

Several runs may be added up: what was done and most figures are added, and of the greatest values the greatest one counts.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Dict, List

from core import ROOT

FOLDER = ROOT / "target" / "torture"
BEGIN, END = "<!-- torture results: begin -->", "<!-- torture results: end -->"
# Figures of which several runs have no sum.
GREATEST = re.compile(r"(most|longest|p99) |.* at the end$|checks$")
# From the best to the worst outcome.
OUTCOMES = ["held", "left out", "cannot run", "breached"]
HEAD = ["| # | row | done | outcome | minutes | figures |", "| --- | --- | --- | --- | --- | --- |"]


def default_path(form: str, date: str, seed: int) -> Path:
    """Each full run has a file of its own, so that several can be added up. The others replace the last one of their form."""
    return FOLDER / (f"full-{date}-{seed}.json" if form == "full" else f"{form}.json")


def write(path: Path, result: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(result, indent=1) + "\n")
    unfinished.rename(path)


def latest() -> List[Path]:
    """The full runs of the newest commit, and the mutants of the same one."""
    paths = sorted(FOLDER.glob("full-*.json"), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise SystemExit(f"there is no full run in {FOLDER}: name files with --from")
    commit = json.loads(paths[-1].read_text())["commit"]
    paths += [path for path in [FOLDER / "mutants.json"] if path.exists()]
    return [path for path in paths if json.loads(path.read_text())["commit"] == commit]


def added(rows: List[dict]) -> dict:
    """Several runs of a row as one."""
    ran = [row for row in rows if row["outcome"] in ("held", "breached")] or rows[-1:]
    figures: Counter = Counter()
    for row in ran:
        for name, value in row["figures"].items():
            figures[name] = max(figures[name], value) if GREATEST.match(name) else figures[name] + value
    worst = max(ran, key=lambda row: OUTCOMES.index(row["outcome"]))
    sums = {name: sum(row[name] for row in ran) for name in ("done", "seconds")}
    notes = list(dict.fromkeys(note for row in ran for note in row["notes"]))
    return {**worst, **sums, "figures": dict(figures), "notes": notes}


def merged(results: List[dict]) -> List[dict]:
    rows: Dict[int, List[dict]] = {}
    for result in results:
        for row in result["rows"]:
            rows.setdefault(row["number"], []).append(row)
    return [added(rows[number]) for number in sorted(rows)]


def table_of(rows: List[dict]) -> str:
    """Rows of a result as a table in Markdown."""
    lines = list(HEAD)
    for row in sorted(rows, key=lambda row: row["number"]):
        figures = ", ".join(f"{name} {value:,}" for name, value in row["figures"].items())
        figures = "; ".join(text for text in [figures, *row["notes"]] if text).replace("|", "\\|")
        word = f"{row['outcome']}: {first_line(row['reason'])}" if row["reason"] else row["outcome"]
        done = f"{row['done']:,} of {row['full']:,} {row['unit']}"
        lines.append(f"| {row['number']} | `{row['row']}` | {done} | {word} | {row['seconds'] / 60:.1f} | {figures} |")
    return "\n".join(lines)


def first_line(text: str) -> str:
    return text.strip().splitlines()[0][:200].replace("|", "\\|") if text.strip() else ""


def markdown(results: List[dict]) -> str:
    """The table, and on which machine, when and with which commit it was made."""
    lines = []
    for result in results:
        machine = f"{result['system']}, {result['cores']} cores, {result['memory_mib'] / 1024:.0f} GiB of memory"
        commit = result["commit"][:12] + (" with changes" if result["has_changes"] else "")
        seed = f", seed {result['seed']}" if result["seed"] is not None else ""
        lines.append(f"- {result['date'][:10]}, commit {commit}, {result['build']} build, {machine}{seed}")
    return "\n".join(["Made by:", "", *dict.fromkeys(lines), "", table_of(merged(results))])


def fill(page: Path, results: List[dict]) -> None:
    """Replaces what is between the two markers of a page."""
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{page} has not once {BEGIN} and {END}")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{markdown(results)}\n\n{END}{after}")
