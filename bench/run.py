"""Measures a release build beside the systems that a user might choose instead, and beside the limits of the machine.

    make bench                                  # builds everything, then runs this: half an hour
    make bench ARGS="--row csvsum --row small"  # only rows whose names start with one of these
    make bench ARGS=--quick                     # small sizes, a minute or two; goals are not judged

It prints a table and exits with 1 if a goal is missed. `--json` prints all figures. README.md says how it measures.

Results are kept in target/bench/: `--report` prints them again, and `--markdown FILE...` writes the table of the last full
run of each row between the two marks in these files. TALLY_BINARY names another binary than target/release/tally.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import List

import contenders
import grpc
import rows
from contenders import BENCH, MIB, Wrong
from data import FULL, QUICK, Size
from rows import SCENARIOS, Goal, Line, Run, Scenario
from server import BINARY, ROOT, ServerFailed

FAILURES = (Wrong, ServerFailed, grpc.RpcError, subprocess.CalledProcessError)
LONG = [scenario.name for scenario in SCENARIOS if scenario.is_long]
MARKS = ("<!-- bench: the table begins -->", "<!-- bench: the table ends -->")


# --- measuring --------------------------------------------------------------------------------------------


def measure(scenario: Scenario, size: Size, runs: int, minutes: float) -> dict:
    """Runs every contender `runs` times, in turn; returns what is kept of it."""
    warm_up = scenario.warm_up and not scenario.is_long
    runs = 1 if scenario.is_long else runs
    start = time.perf_counter()
    with ExitStack() as stack:
        run = Run(size, stack, minutes)
        contenders_by_name = scenario.open(run)
        values = {name: [] for name in contenders_by_name}
        for round_index in range(runs + warm_up):
            for name, once in contenders_by_name.items():
                value = once()
                if round_index >= warm_up:
                    values[name].append(value)
    run.empty_folder()  # removes what the last contender left
    print(f"{scenario.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return {
        "machine": machine(),
        "commit": commit(),
        "values": values,
        "memory_mib": run.peak.bytes / MIB,
        "minutes": minutes,
    }


def machine() -> str:
    cpu = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / MIB / 1024
    cores = len(os.sched_getaffinity(0))
    return f"{cpu}, {cores} cores used, {memory_gib:.0f} GiB, {platform.system()} {platform.release()}"


def commit() -> str:
    """The commit that is checked out; empty without git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8")
    return done.stdout.strip()


def result_path(scenario: Scenario, size: Size) -> Path:
    return BENCH / size.name / "results" / f"{scenario.name}.json"


# --- the report -------------------------------------------------------------------------------------------


def judge(line: Line, measured: dict, size: Size) -> dict:
    """Computes the figures of one row of the table, and whether its goal is met."""
    values = measured["values"]
    medians = {name: statistics.median(runs) for name, runs in values.items()}
    ours = medians[line.ours]

    def times_as_fast(name: str) -> float:
        return ours / medians[name] if line.unit == "1/s" else medians[name] / ours

    peer = min(line.peers, key=times_as_fast) if line.peers else None
    row = {
        "row": line.name,
        "what": line.what,
        "unit": line.unit,
        "median": ours,
        "min": min(values[line.ours]),
        "max": max(values[line.ours]),
        "runs": len(values[line.ours]),
        "best_peer": peer,
        "times_best_peer": None if peer is None else times_as_fast(peer),
        "peers": {name: medians[name] for name in line.peers},
        "limit": line.limit,
        "times_limit": None if line.limit is None else ours / medians[line.limit],
        "reference": line.reference,
        "times_reference": None if line.reference is None else ours / medians[line.reference],
        "memory_mib": measured["memory_mib"],
        "goal": None if line.goal is None else goal_text(line),
        "met": None,
        "commit": measured["commit"],
        "machine": measured["machine"],
    }
    if line.goal is not None and size is FULL and measured.get("minutes", size.minutes) == size.minutes:
        row["met"] = is_met(line, row)
    return row


def is_met(line: Line, row: dict) -> bool:
    goal = line.goal
    if goal.of == "peer":
        return row["times_best_peer"] >= goal.bound
    if goal.of == "value":
        return row["median"] >= goal.bound if line.unit == "1/s" else row["median"] < goal.bound
    times = row[f"times_{goal.of}"]
    return times >= goal.bound if line.unit == "1/s" else times <= goal.bound


def goal_text(line: Line) -> str:
    goal = line.goal
    if goal.of == "peer":
        return f"{goal.bound:g} x as fast as the best peer"
    if goal.of in ("limit", "reference"):
        least_or_most = "at least" if line.unit == "1/s" else "within"
        return f"{least_or_most} {goal.bound:g} x {getattr(line, goal.of)}"
    return f"{goal.bound:,g} a second" if line.unit == "1/s" else f"under {goal.bound:g} {line.unit}"


def memory_row(measured: List[dict], size: Size) -> dict:
    """The row for the most anonymous memory that the server had in any of the scenarios."""
    peaks = [scenario["memory_mib"] for scenario in measured]
    line = Line(
        "memory",
        "anonymous memory, the most in any row",
        "tally",
        "MiB",
        goal=Goal("value", rows.MEMORY_GOAL_MIB),
    )
    whole = {**measured[0], "values": {"tally": [max(peaks)]}, "memory_mib": max(peaks)}
    return judge(line, whole, size)


def report(scenarios: List[Scenario], size: Size) -> dict:
    """The table of these scenarios, from their results."""
    measured = {scenario: json.loads(result_path(scenario, size).read_text()) for scenario in scenarios}
    table = [judge(line, measured[scenario], size) for scenario in scenarios for line in scenario.lines]
    table.append(memory_row(list(measured.values()), size))
    return {"size": size.name, "rows": table}


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def ratio(value: float, name: str) -> str:
    return f"{value:.2f} ({name})"


HEAD = [
    "| row | what | median | min to max | times the best peer's speed | times the limit's time | goal | met |",
    "| --- | --- | ---: | ---: | ---: | ---: | --- | --- |",
]


def row_text(row: dict) -> str:
    others = [(row[f"times_{other}"], row[other]) for other in ("reference", "limit")]
    cells = [
        row["row"],
        row["what"],
        f"{number(row['median'])} {row['unit']}",
        f"{number(row['min'])} to {number(row['max'])}",
        ratio(row["times_best_peer"], row["best_peer"]) if row["best_peer"] else "",
        ", ".join(ratio(*other) for other in others if other[1]),
        row["goal"] or "",
        {None: "", True: "yes", False: "**no**"}[row["met"]],
    ]
    return "| " + " | ".join(cells) + " |"


def markdown(report: dict, before: str = "") -> str:
    """The table in Markdown. Above it are the machines and commits: several, if the rows differ in them.

    `before` is a table of this kind. Its rows that were not measured again stay, and so does what it says above them.
    """
    lines = {row["row"]: row_text(row) for row in report["rows"]}
    machines = {row["machine"] for row in report["rows"]}
    commits = {row["commit"] for row in report["rows"] if row["commit"]}
    runs = max(row["runs"] for row in report["rows"])
    kept = {text.split("|")[1].strip(): text for text in before.splitlines() if text.startswith("| ") and text not in HEAD}
    names = [line.name for scenario in SCENARIOS for line in scenario.lines]
    if any(name in kept and name not in lines for name in names):
        lines = {**lines, **kept, **{name: text for name, text in lines.items() if name in names}}
        above = before[: before.index(HEAD[0])]
        machines |= set(re.findall(r"^(.*\S)  $", above, re.MULTILINE))
        commits |= set(re.search(r"^commit: ([^;\n]*)", above, re.MULTILINE)[1].split(", "))
        runs = max(runs, int(re.search(r"medians of (\d+) runs", above)[1]))
    size = "" if report["size"] == FULL.name else f", size: {report['size']}, which has no goals"
    said = f"commit: {', '.join(sorted(commits))}; medians of {runs} runs in turn, where there are more{size}"
    table = [lines[name] for name in [*names, "memory"] if name in lines]
    return "\n".join([*(f"{machine}  " for machine in sorted(machines)), said, "", *HEAD, *table])


def write_table(path: Path, report: dict) -> None:
    before, begin, rest = path.read_text().partition(MARKS[0])
    table, end, after = rest.partition(MARKS[1])
    if not begin or not end:
        raise Wrong(f"{path} lacks the marks {MARKS[0]} and {MARKS[1]}")
    path.write_text(f"{before}{begin}\n{markdown(report, table)}\n{end}{after}")


# --- the command line -------------------------------------------------------------------------------------


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures a release build beside its peers and its limits.")
    names = ", ".join(scenario.name for scenario in SCENARIOS)
    parser.add_argument(
        "--row", action="append", metavar="NAME", help=f"only rows whose names start with NAME: {names}"
    )
    parser.add_argument(
        "--runs", type=int, default=5, help="number of runs of each contender (default: %(default)s)"
    )
    parser.add_argument(
        "--long", action="store_true", help=f"also what takes long and is run once: {', '.join(LONG)}; --row NAME runs one"
    )
    parser.add_argument(
        "--minutes", type=float, help="for which uploads are sustained; only the default is judged (default: 10)"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, to try out a change")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--report", action="store_true", help="do not measure, print the last results")
    parser.add_argument(
        "--markdown",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="like --report, and write the table into these files, where rows without results stay",
    )
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    wanted = tuple(options.row or [""])
    options.scenarios = [scenario for scenario in SCENARIOS if scenario.name.startswith(wanted)]
    if not (options.long or options.quick or options.report or options.markdown):
        named = options.row or []
        options.scenarios = [
            scenario for scenario in options.scenarios if not scenario.is_long or scenario.name in named
        ]
    if not options.scenarios:
        parser.error(f"no row has such a name; the names are {names}")
    return options


def main() -> int:
    options = parse_options()
    size = QUICK if options.quick else FULL
    minutes = size.minutes if options.minutes is None else options.minutes
    failed: List[Scenario] = []  # the others are measured nevertheless
    if options.report or options.markdown:
        options.scenarios = [scenario for scenario in options.scenarios if result_path(scenario, size).exists()]
        if not options.scenarios:
            raise Wrong("nothing has been measured yet")
    else:
        for program in (BINARY, contenders.LOAD, contenders.LIMIT):
            if not program.exists():
                raise Wrong(f"{program} is missing: run `make bench`")
        contenders.use_two_cores()
        rows.hollow_out(rows.crowded_folders(size))  # left by a run that was interrupted
        for scenario in options.scenarios:
            path = result_path(scenario, size)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            try:
                path.write_text(json.dumps(measure(scenario, size, options.runs, minutes)))
            except FAILURES as failure:
                failed.append(scenario)
                print(f"{scenario.name}: {failure}", file=sys.stderr)
        contenders.empty(rows.crowded_folders(size))
        options.scenarios = [scenario for scenario in options.scenarios if scenario not in failed]
        if not options.scenarios:
            return 1
    result = report(options.scenarios, size)
    for path in options.markdown or []:
        write_table(path, result)
    print(json.dumps(result, indent=2) if options.json else markdown(result))
    return 1 if failed or any(row["met"] is False for row in result["rows"]) else 0


if __name__ == "__main__":
    contenders.end_children_on_sigterm()
    try:
        sys.exit(main())
    except FAILURES as failure:
        sys.exit(f"bench: {failure}")
