"""Measures the group sum of 30,000,000 rows, 1 GB of CSV, beside DuckDB and Polars: two threads each.

    make bench-groups       # builds, then runs this
    python3 bench/groups.py [--runs N] [--json]

The file is made in target/bench/ and kept there: ../shared/data/plays_100k.csv 300 times, or, where that
is missing, rows of the same shape from a seed. DuckDB and Polars are installed into target/bench/venv/.
Every run is a process of its own that reads the file and writes its groups as CSV; the groups must be equal.
Exits with 1 if a goal is missed. TALLY_BINARY names another binary than target/release/tally.
"""

import argparse
import csv
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Tuple

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "target" / "bench"
BINARY = Path(os.environ.get("TALLY_BINARY", ROOT / "target" / "release" / "tally"))
SAMPLE = ROOT.parent / "shared" / "data" / "plays_100k.csv"
VENV_PYTHON = BENCH / "venv" / "bin" / "python"
REQUIREMENTS = ROOT / "tests" / "python" / "requirements.txt"

REPEATS = 300
THREADS = 2
MIB = 1024 * 1024
MEMORY_GOAL_BYTES = 256 * MIB
COLUMNS = ["Song", "Date", "Number of Plays"]

DUCKDB = """
import duckdb, sys
source, result, threads = sys.argv[1:]
connection = duckdb.connect(config={"threads": int(threads)})
connection.execute("SET enable_progress_bar = false")
connection.execute(
    "COPY (SELECT Song, Date, sum(plays)::BIGINT AS plays"
    " FROM read_csv(?, header = true, quote = '\\"', escape = '\\"', delim = ',', new_line = '\\\\r\\\\n',"
    " auto_detect = false, columns = {'Song': 'VARCHAR', 'Date': 'VARCHAR', 'plays': 'BIGINT'})"
    " GROUP BY Song, Date ORDER BY Song, Date)"
    f" TO '{result}' (HEADER)",
    [source],
)
"""

POLARS = """
import os, sys
source, result, threads = sys.argv[1:]
os.environ["POLARS_MAX_THREADS"] = threads
import polars
schema = {"Song": polars.String, "Date": polars.String, "Number of Plays": polars.Int64}
(
    polars.scan_csv(source, schema=schema)
    .group_by("Song", "Date")
    .agg(polars.col("Number of Plays").sum())
    .sort("Song", "Date")
    .collect(engine="streaming")
    .write_csv(result)
)
"""


class Wrong(Exception):
    """Two engines gave different groups, or one none."""


def make_file() -> Path:
    """The header once and the rows 300 times, all with CRLF: that is what all three read alike."""
    path = BENCH / "plays_30m.csv"
    if path.exists():
        return path
    if SAMPLE.exists():
        header, rows = SAMPLE.read_bytes().replace(b"\r\n", b"\n").split(b"\n", 1)
        rows = rows.rstrip(b"\n").replace(b"\n", b"\r\n") + b"\r\n"
    else:
        header, rows = ",".join(COLUMNS).encode(), made_rows()
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        file.write(header + b"\r\n")
        for _ in range(REPEATS):
            file.write(rows)
    partial.rename(path)
    return path


def made_rows() -> bytes:
    """100,000 rows of about 30,000 groups: 1,000 songs, one in 30 with a comma, on 31 days."""
    random_numbers = random.Random(1)
    syllables = ["la", "mi", "ro", "so", "Te", "na", " ", "'"]
    songs = []
    for index in range(1000):
        song = "".join(random_numbers.choice(syllables) for _ in range(random_numbers.randrange(4, 14)))
        songs.append(f'"{song}, {index}"' if index % 30 == 0 else f"{song}{index}")
    lines = []
    for _ in range(100_000):
        song, day = random_numbers.choice(songs), random_numbers.randrange(1, 32)
        lines.append(f"{song},2023-05-{day:02},{random_numbers.randrange(1, 10_000)}\r\n")
    return "".join(lines).encode()


def make_peers() -> None:
    """Their versions are the ones that the tests use."""
    if VENV_PYTHON.exists():
        return
    lines = REQUIREMENTS.read_text().splitlines()
    wanted = [line for line in lines if line.startswith(("duckdb==", "polars=="))]
    subprocess.run([sys.executable, "-m", "venv", str(BENCH / "venv")], check=True)
    pip = [str(VENV_PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *wanted], check=True)


def commands(source: Path) -> Dict[str, Tuple[List[str], Path]]:
    """What is run for each, and where its groups are."""
    result = {name: BENCH / f"groups-{name}.csv" for name in ("tally", "duckdb", "polars")}
    tally = [str(BINARY), "group-sum", str(source), "--by", "Song,Date", "--sum", "Number of Plays"]
    peers = {"duckdb": DUCKDB, "polars": POLARS}
    return {
        "tally": ([*tally, "--output", str(result["tally"])], result["tally"]),
        **{
            name: ([str(VENV_PYTHON), "-c", code, str(source), str(result[name]), str(THREADS)], result[name])
            for name, code in peers.items()
        },
    }


@dataclass
class Run:
    """One process, from its start to its end."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def run(command: List[str]) -> Run:
    """Runs it on two cores. The peak is at least this process's own memory, from which it is forked."""
    cores = sorted(os.sched_getaffinity(0))[:THREADS]
    start = time.perf_counter()
    process = subprocess.Popen(command, preexec_fn=lambda: os.sched_setaffinity(0, cores))
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise Wrong(f"{command[0]} failed")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def groups_in(path: Path) -> List[List[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def measure(runs: int) -> dict:
    source = make_file()
    make_peers()
    all_commands = commands(source)
    measured: Dict[str, List[Run]] = {name: [] for name in all_commands}
    groups_count = 0
    # The first round warms the page cache and compares the groups; it is not counted.
    for round_index in range(runs + 1):
        for name, (command, result) in all_commands.items():  # in turn, so that a slow moment hits all alike
            one = run(command)
            if round_index > 0:
                measured[name].append(one)
        if round_index == 0:
            groups_count = compare({name: result for name, (_, result) in all_commands.items()})
    median = {name: statistics.median(one.seconds for one in runs) for name, runs in measured.items()}
    fastest = min(("duckdb", "polars"), key=lambda name: median[name])
    ratio = median["tally"] / median[fastest]
    results = {
        name: {
            "median_s": median[name],
            "min_s": min(one.seconds for one in runs),
            "max_s": max(one.seconds for one in runs),
            "median_cpu_s": statistics.median(one.cpu_seconds for one in runs),
            "peak_memory_mib": max(one.peak_bytes for one in runs) / MIB,
        }
        for name, runs in measured.items()
    }
    return {
        "machine": f"{cpu()}, {THREADS} cores used",
        "file": f"{source.stat().st_size / 1e6:,.0f} MB, {groups_count:,} groups",
        "results": results,
        "fastest_peer": fastest,
        "ratio": ratio,
        "met": ratio <= 1.0 and results["tally"]["peak_memory_mib"] <= MEMORY_GOAL_BYTES / MIB,
    }


def compare(results: Dict[str, Path]) -> int:
    """How many groups there are, if all have the same ones, in the same order."""
    expected = groups_in(results["tally"])
    for name, path in results.items():
        if groups_in(path) != expected:
            raise Wrong(f"{name} has other groups than tally: see {path}")
    return len(expected)


def markdown(report: dict) -> str:
    lines = [f"machine: {report['machine']}  ", f"file: {report['file']}  ", ""]
    lines += ["| who | median s | min s | max s | CPU s | peak memory MiB |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    for name, numbers in report["results"].items():
        times = " | ".join(f"{numbers[key]:.2f}" for key in ("median_s", "min_s", "max_s", "median_cpu_s"))
        lines.append(f"| {name} | {times} | {numbers['peak_memory_mib']:.0f} |")
    met = "yes" if report["met"] else "**no**"
    goal = f"at most 1.00, in at most {MEMORY_GOAL_BYTES // MIB} MiB"
    ratio = f"{report['ratio']:.2f} of the time of {report['fastest_peer']}"
    lines += ["", f"tally takes {ratio} (goal: {goal}): {met}"]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures the group sum beside DuckDB and Polars.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.add_argument(
        "--runs", type=int, default=5, help="how often each is measured (default: %(default)s)"
    )
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs starts at 1")
    if not BINARY.exists():
        print(f"{BINARY} is missing: run `make bench-groups`", file=sys.stderr)
        return 1
    BENCH.mkdir(parents=True, exist_ok=True)
    report = measure(options.runs)
    print(json.dumps(report, indent=2) if options.json else markdown(report))
    return 0 if report["met"] else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Wrong, subprocess.CalledProcessError) as failure:
        sys.exit(f"bench: {failure}")
