"""Measures a release build over gRPC: bigdata's table (100,000,000 rows in 400 uploads, 1.5 GB) and NumStore.

    make bench              # builds, then runs this
    .venv/bin/python bench/run.py [--fresh] [--json]

The table is loaded by clients/bigdata.py into target/bench/ and kept there; a later run finds it. Prints a
table of medians and exits with 1 if a goal is missed. TALLY_BINARY names another binary than
target/release/tally.
"""

import argparse
import calendar
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "target" / "bench"
BINARY = Path(os.environ.setdefault("TALLY_BINARY", str(ROOT / "target" / "release" / "tally")))
sys.path.insert(0, str(ROOT / "tests" / "python"))

import conftest  # noqa: E402  (the tests' Server starts and stops the one measured here)
import grpc  # noqa: E402
import table_pb2  # noqa: E402
import table_pb2_grpc  # noqa: E402

# The table that the goals are about; with another one there are none.
BATCHES = 400
ROWS = 250_000
SECONDS_GOALS = {"csv": 1.0, "parquet": 0.15}
COLUMNS = ("x", "y", "z")

SMALL_CSV = b"x,y,z\n" + b"1,2,3\n" * 10
SMALL_UPLOADS = 200  # of one client, and of each of eight
SMALL_CLIENTS = 8

NUMSTORE_CLIENTS = 8
NUMSTORE_REQUESTS = 10_000  # of each client
MB = 1_000_000
MIB = 1024 * 1024


@dataclass
class Measured:
    """One line of the report."""

    name: str
    unit: str
    values: List[float]
    goal: Optional[float] = None  # the median must be below

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def met(self) -> Optional[bool]:
        return None if self.goal is None else self.median < self.goal


class Wrong(Exception):
    """The server did not do what is measured here."""


# --- the table ----------------------------------------------------------------------------------------------


def is_loaded(receipts: List[dict], options: argparse.Namespace) -> bool:
    return len(receipts) == options.batches and all(
        receipt["rows"] == options.rows and [column["name"] for column in receipt["columns"]] == list(COLUMNS)
        for receipt in receipts
    )


def receipts_in(data: Path) -> List[dict]:
    return [json.loads(path.read_text()) for path in (data / "parts").glob("*.json")]


def load(data: Path, options: argparse.Namespace) -> None:
    """Fills a new folder by clients/bigdata.py, which itself checks the sums in the end."""
    shutil.rmtree(data, ignore_errors=True)
    with conftest.Server(data, "--durability", "none") as server:
        command = [sys.executable, str(ROOT / "clients" / "bigdata.py")]
        command += ["--batches", str(options.batches), "--rows", str(options.rows)]
        # Standard output is the report's.
        subprocess.run(
            command, env={**os.environ, "TALLY_SERVER": server.address}, stdout=sys.stderr, check=True
        )
        server.stop()
    if not is_loaded(receipts_in(data), options):
        raise Wrong("bigdata.py succeeded, but the parts are not what it was asked for")


def load_rates(receipts: List[dict]) -> List[Measured]:
    """How fast the load went, by the times in the receipts: also of a load that an earlier run did."""
    receipts = sorted(receipts, key=lambda receipt: receipt["uploaded_at"])
    if len(receipts) < 2:
        return []
    # From the end of the first upload to the end of the last: all but the first.
    seconds = unix_seconds(receipts[-1]["uploaded_at"]) - unix_seconds(receipts[0]["uploaded_at"])
    csv_bytes = sum(receipt["csv"]["bytes"] for receipt in receipts[1:])
    rows_count = sum(receipt["rows"] for receipt in receipts[1:])
    return [
        Measured("load by bigdata.py", "MB/s", [csv_bytes / MB / seconds]),
        Measured("load by bigdata.py", "million rows/s", [rows_count / 1e6 / seconds]),
    ]


def unix_seconds(time_utc: str) -> float:
    """Reads a receipt's time: 2026-11-20T08:48:57.123456Z."""
    whole, _, fraction = time_utc.rstrip("Z").partition(".")
    return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + float(f"0.{fraction or 0}")


# --- sums ---------------------------------------------------------------------------------------------------


def measure_sums(server: conftest.Server, options: argparse.Namespace) -> List[Measured]:
    stub = conftest.table(server)
    questions = [
        table_pb2.ColSumReq(column=column, format=file_format)
        for file_format in SECONDS_GOALS
        for column in COLUMNS
    ]
    full_size = (options.batches, options.rows) == (BATCHES, ROWS)
    measured = [
        Measured(f"{q.format}sum {q.column}", "s", [], SECONDS_GOALS[q.format] if full_size else None)
        for q in questions
    ]

    # The first round warms the page cache and is not counted; what it answers must stay the answer.
    totals: Dict[str, int] = {"x": options.batches * options.rows}
    for run in range(options.runs + 1):
        for question, line in zip(questions, measured):  # in turn, so that a slow moment hits all alike
            start = time.perf_counter()
            answer = stub.ColSum(question)
            seconds = time.perf_counter() - start
            if answer.error or answer.total != totals.setdefault(question.column, answer.total):
                raise Wrong(
                    f"{line.name}: {answer.error or answer.total}, expected {totals[question.column]}"
                )
            if run > 0:
                line.values.append(seconds)
    return measured


# --- small uploads ------------------------------------------------------------------------------------------


def measure_small_uploads(durability: str, runs: int) -> List[Measured]:
    data = BENCH / "small"
    shutil.rmtree(data, ignore_errors=True)
    with conftest.Server(data, "--durability", durability) as server:
        upload_small(server.address, SMALL_UPLOADS)  # to warm up
        latencies = upload_small(server.address, SMALL_UPLOADS)
        rates = []
        for _ in range(runs):
            with ThreadPoolExecutor(SMALL_CLIENTS) as pool:
                start = time.perf_counter()
                list(pool.map(lambda _: upload_small(server.address, SMALL_UPLOADS), range(SMALL_CLIENTS)))
                rates.append(SMALL_CLIENTS * SMALL_UPLOADS / (time.perf_counter() - start))
        server.stop()
    shutil.rmtree(data)
    return [
        Measured(
            f"upload of 10 rows, {durability}, 1 client", "ms", [1000 * seconds for seconds in latencies]
        ),
        Measured(f"uploads of 10 rows, {durability}, {SMALL_CLIENTS} clients", "1/s", rates),
    ]


def upload_small(address: str, count: int) -> List[float]:
    """Uploads one after the other on a connection of their own; the seconds that each took."""
    request = table_pb2.UploadReq(csv_data=SMALL_CSV)
    with grpc.insecure_channel(address, options=conftest.CHANNEL_OPTIONS) as channel:
        stub = table_pb2_grpc.TableStub(channel)
        grpc.channel_ready_future(channel).result()
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            error = stub.Upload(request).error
            seconds.append(time.perf_counter() - start)
            if error:
                raise Wrong(error)
    return seconds


# --- NumStore -----------------------------------------------------------------------------------------------


def measure_numstore(runs: int) -> List[Measured]:
    """P2's load at full speed, by the server's own binary: a client in Python would measure Python."""
    data = BENCH / "numstore"
    shutil.rmtree(data, ignore_errors=True)
    reports = []
    with conftest.Server(data) as server:
        for run in range(runs + 1):
            command = [str(BINARY), "load-numstore", "--json", "--server", server.address, "--seed", str(run)]
            command += ["--clients", str(NUMSTORE_CLIENTS), "--requests", str(NUMSTORE_REQUESTS)]
            environment = conftest.clean_environment()  # which could set other flags
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            reports.append(json.loads(done.stdout))
            if reports[-1]["requests"] != NUMSTORE_CLIENTS * NUMSTORE_REQUESTS:
                raise Wrong(f"load-numstore sent {reports[-1]['requests']} requests")
        server.stop()
    shutil.rmtree(data)
    del reports[0]  # of a server that knew no keys yet
    lines = {
        "requests_per_second": ("requests", "1/s"),
        "p50_ms": ("p50 response time", "ms"),
        "p99_ms": ("p99 response time", "ms"),
    }
    return [
        Measured(f"NumStore {name}, {NUMSTORE_CLIENTS} clients", unit, [report[key] for report in reports])
        for key, (name, unit) in lines.items()
    ]


# --- the report ---------------------------------------------------------------------------------------------


def machine() -> Dict[str, str]:
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory_bytes / MIB / 1024:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "client": f"Python {platform.python_version()}, grpcio {grpc.__version__}",
    }


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value >= 100 else f"{value:.3f}"


def markdown(report: dict) -> str:
    lines = [f"{name}: {value}  " for name, value in {**report["machine"], **report["table"]}.items()]
    lines += ["", "| what | unit | median | min | max | goal | met |"]
    lines += ["| --- | --- | ---: | ---: | ---: | ---: | --- |"]
    for result in report["results"]:
        goal = "" if result["goal"] is None else f"< {result['goal']:g}"
        met = {None: "", True: "yes", False: "**no**"}[result["met"]]
        numbers = [number(result[key]) for key in ("median", "min", "max")]
        lines.append("| " + " | ".join([result["name"], result["unit"], *numbers, goal, met]) + " |")
    return "\n".join(lines)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures a release build on bigdata's table and NumStore.")
    parser.add_argument("--fresh", action="store_true", help="load the table anew")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.add_argument(
        "--runs", type=int, default=7, help="how often each is measured (default: %(default)s)"
    )
    parser.add_argument(
        "--batches", type=int, default=BATCHES, help="uploads in the table (default: %(default)s)"
    )
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of each (default: %(default)s)")
    options = parser.parse_args()
    if min(options.runs, options.batches, options.rows) < 1:
        parser.error("--runs, --batches and --rows start at 1")
    return options


def main() -> int:
    options = parse_options()
    if not BINARY.exists():
        print(f"{BINARY} is missing: run `make bench`, or `cargo build --release` first", file=sys.stderr)
        return 1
    data = BENCH / f"{options.batches}x{options.rows}"
    if options.fresh or not is_loaded(receipts_in(data), options):
        load(data, options)
    receipts = receipts_in(data)

    start = time.perf_counter()
    with conftest.Server(data, "--durability", "none") as server:
        measured = [Measured("start, until ready", "s", [time.perf_counter() - start])]
        measured += measure_sums(server, options)
        measured.append(Measured("anonymous memory after the sums", "MiB", [server.anonymous_bytes() / MIB]))
        server.stop()
    for durability in ("none", "fsync"):
        measured += measure_small_uploads(durability, options.runs)
    measured += load_rates(receipts)
    measured += measure_numstore(options.runs)

    csv_bytes = sum(receipt["csv"]["bytes"] for receipt in receipts)
    parquet_bytes = sum(receipt["parquet"]["bytes"] for receipt in receipts)
    report = {
        "machine": machine(),
        "table": {
            "rows": f"{options.batches * options.rows:,} in {options.batches} parts",
            "CSV": f"{csv_bytes / MB:,.0f} MB",
            "Parquet": f"{parquet_bytes / MB:,.0f} MB",
        },
        "results": [
            {
                "name": line.name,
                "unit": line.unit,
                "median": line.median,
                "min": min(line.values),
                "max": max(line.values),
                "runs": len(line.values),
                "goal": line.goal,
                "met": line.met,
            }
            for line in measured
        ],
    }
    print(json.dumps(report, indent=2) if options.json else markdown(report))
    return 1 if any(line.met is False for line in measured) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Wrong, conftest.ServerDidNotStart, grpc.RpcError, subprocess.CalledProcessError) as failure:
        sys.exit(f"bench: {failure}")
