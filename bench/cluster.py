"""Measures questions that executors of a cluster answer, beside the same server without a cluster.

    make bench-cluster                     # builds both programs, then runs this
    make bench-cluster ARGS="--runs 3"     # so many runs of each
    make bench-cluster ARGS=--quick        # small sizes

Scheduler, executors and server run on this machine, each executor with one core (`--slots 1`). The tables are those of
`csvsum`, whose parts are repeated as hard links, and small parts. So this shows what the cluster costs; what it gains begins
where there are more cores and disks than one machine has. Each sum is compared with the known one. With `--markdown FILE` the table is
written into a page, between two marks.
"""

import argparse
import functools
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Tuple

import contenders
import data
import numpy
import server
from contenders import BENCH, Sums, Wrong
from data import FULL, QUICK, SMALL_ROWS, Size
from memory import Peak
from run import machine
from server import ROOT, clean_environment

CLUSTER_BINARY = Path(os.environ.get("TALLY_CLUSTER_BINARY", ROOT / "target" / "cluster" / "release" / "tally-cluster"))
MARKS = ("<!-- bench: the cluster begins -->", "<!-- bench: the cluster ends -->")
PORTS = range(20_000, 32_000)  # Linux takes those from 32768 on for connections
START_SECONDS_MAX = 60
COLUMN = "z"
FORMATS = ("csv", "parquet")
EXECUTORS = (0, 1, 2)  # without a cluster, and with so many executors
# The table of the model, and the machines that have it.
MODEL_ROWS, MODEL_PART_ROWS = 10**12, 10**7
MODEL_MACHINES, MODEL_CORES = 100, 8
JOB_PARTS_MAX, JOB_TASKS_MAX = 20_000, 65  # of one job of the scheduler: lists of parts, and one task that has all answers
# Assumed, as a provider of machines and of storage with requests asks for them.
MACHINE_HOUR_DOLLARS, MILLION_READS_DOLLARS = 0.40, 0.40


class Asked(NamedTuple):
    """A data folder, what it has, and the sum of the column."""

    name: str
    parts: int
    rows: int
    folder: Path
    total: int


def repeated(size: Size, times: int) -> Asked:
    """The parts of `csvsum`, so many times."""
    table = data.bigdata_table(size)
    parts, rows = len(table.files) * times, len(table.files) * size.batch_rows * times
    folder = BENCH / size.name / f"bigdata-{times}-times"

    def fill(folder: Path) -> dict:
        source, target = data.tally_folder(table) / "parts", folder / "data" / "parts"
        target.mkdir(parents=True)
        for file in source.iterdir():
            os.link(file, target / file.name)
        data.repeat_parts(target, len(table.files), parts)
        return {}

    data.made(folder, fill, data.binary_hash())
    return Asked("large", parts, rows, folder / "data", table.sums[COLUMN] * times)


def small(size: Size, parts: int) -> Asked:
    folder, total = data.many_parts(size.name, parts)
    return Asked("small", parts, parts * SMALL_ROWS, folder, total)


def tables(size: Size) -> List[Asked]:
    few = min(size.parts, 1_000)
    return [repeated(size, 1), repeated(size, 10), small(size, few), small(size, size.parts), small(size, 2 * size.parts)]


class Traffic(NamedTuple):
    """Of one sum with two executors."""

    reads: int  # read calls of the executors
    network: int  # bytes between all processes, over the loopback interface


class ClusterServer(contenders.Tally):
    """The server of a cluster. Without a scheduler it reads the parts itself."""

    binary = CLUSTER_BINARY


def bytes_of_row(size: Size) -> Dict[str, float]:
    """The bytes that a sum reads for each row of `csvsum`, by format."""
    table = repeated(size, 1)
    with contenders.Tally(table.folder, Peak()) as tally:
        words = [server.BINARY, "sum", COLUMN, "--format", "both", "--json", "--server", tally.address]
        both = json.loads(contenders.output_of(words))
    return {file_format: both[file_format]["bytes"] / table.rows for file_format in FORMATS}


def free_port() -> int:
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


@contextmanager
def running(*arguments) -> Iterator[int]:
    """A scheduler or an executor, until the end of the block; its process number."""
    with tempfile.TemporaryFile() as log:
        command = [str(CLUSTER_BINARY), *map(str, arguments)]
        process = subprocess.Popen(
            command, env=clean_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log
        )
        try:
            yield process.pid
            if process.poll() is not None:
                log.seek(0)
                raise Wrong(f"{command} has ended:\n{log.read().decode('utf-8', 'replace')}")
        finally:
            process.kill()
            process.wait()


def wait_for_executors(address: str, count: int) -> None:
    ends = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            text = urllib.request.urlopen(f"http://{address}/readyz", timeout=5).read().decode()
        except urllib.error.HTTPError as error:
            text = error.read().decode()
        except OSError:
            text = ""
        if f" {count} executors" in text:
            return
        if time.monotonic() > ends:
            raise Wrong(f"the scheduler does not know {count} executors: {text!r}")
        time.sleep(0.1)


@contextmanager
def asked(table: Asked, executors: int) -> Iterator[Tuple[Sums, List[int]]]:
    """A server over the table, with so many executors, and their process numbers; without a cluster if there are none."""
    with ExitStack() as stack:
        flags: List[object] = ["--durability", "none"]
        numbers = []
        if executors > 0:
            address = f"127.0.0.1:{free_port()}"
            stack.enter_context(running("scheduler", "--listen", address))
            for _ in range(executors):
                ports = ["--task-port", free_port(), "--fetch-port", free_port()]
                work = stack.enter_context(tempfile.TemporaryDirectory())
                folders = ["--data", table.folder, "--work-dir", work]
                words = ["executor", "--scheduler", address, *folders, *ports, "--slots", 1]
                numbers.append(stack.enter_context(running(*words)))
            wait_for_executors(address, executors)
            flags += ["--scheduler", address]
        tally = stack.enter_context(ClusterServer(table.folder, Peak(), *map(str, flags)))
        yield Sums(tally.address), numbers


def measure(table: Asked, executors: int, runs: int) -> Dict[str, List[float]]:
    with asked(table, executors) as (sums, _):
        ask = functools.partial(sums.seconds, COLUMN, expected=table.total)
        seconds: Dict[str, List[float]] = {file_format: [] for file_format in FORMATS}
        for file_format in FORMATS:
            ask(file_format)  # reads the files into the page cache
        for _ in range(runs):
            for file_format in FORMATS:
                seconds[file_format].append(ask(file_format))
        return seconds


def traffic(table: Asked) -> Dict[str, Traffic]:
    """What one sum of each format reads and sends."""

    def counts(executors: List[int]) -> Traffic:
        lines = [line.split() for pid in executors for line in Path(f"/proc/{pid}/io").read_text().splitlines()]
        loopback = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
        return Traffic(sum(int(value) for name, value in lines if name == "syscr:"), int(loopback.split()[1]))

    found = {}
    with asked(table, 2) as (sums, executors):
        for file_format in FORMATS:
            sums.seconds(COLUMN, file_format, expected=table.total)
            before = counts(executors)
            sums.seconds(COLUMN, file_format, expected=table.total)
            found[file_format] = Traffic(*(now - then for now, then in zip(counts(executors), before)))
    return found


def markdown(report: dict) -> str:
    heads = ["parts", "rows", "format", "without a cluster", *(f"{count} executor{'s' * (count > 1)}" for count in EXECUTORS[1:])]
    lines = [f"{report['machine']}; medians of {report['runs']} runs", ""]
    lines += ["| " + " | ".join(heads) + " |", "| ---: | ---: | --- |" + " ---: |" * len(EXECUTORS)]
    for row in report["rows"]:
        medians = [statistics.median(row["seconds"][str(count)]) for count in EXECUTORS]
        cells = [f"{row['parts']:,}", f"{row['rows']:,}", row["format"], *(f"{median:.3f} s" for median in medians)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def costs(report: dict, file_format: str) -> List[float]:
    """Seconds for a job, a part and a row with one executor, which has one core: the least squares of relative errors."""
    rows = [row for row in report["rows"] if row["format"] == file_format]
    measured = numpy.array([statistics.median(row["seconds"]["1"]) for row in rows])
    counts = numpy.array([[1, row["parts"], row["rows"]] for row in rows])
    fitted, *_ = numpy.linalg.lstsq(counts / measured[:, None], numpy.ones(len(rows)), rcond=None)
    return [max(0.0, float(cost)) for cost in fitted]


def model(report: dict) -> str:
    """What a sum over MODEL_ROWS rows takes, if executors read as fast as here and the rest is done one after the other."""
    parts = MODEL_ROWS // MODEL_PART_ROWS
    jobs = -(-parts // JOB_PARTS_MAX)
    columns = []
    for file_format in FORMATS:
        job, part, row = costs(report, file_format)
        bytes_of_row = report["bytes_of_row"][file_format]
        large, small = (report["traffic"][name] for name in ("large", "small"))
        reads_of_part = small[file_format][0] / small["parts"]
        bytes_of_part = bytes_of_row * large["rows"] / large["parts"]
        reads_of_byte = max(0.0, large[file_format][0] / large["parts"] - reads_of_part) / bytes_of_part
        reads = parts * reads_of_part + MODEL_ROWS * bytes_of_row * reads_of_byte
        network = parts * large[file_format][1] / large["parts"]
        reading = MODEL_ROWS * row / (MODEL_MACHINES * MODEL_CORES)
        rest = jobs * job + parts * part
        hours = MODEL_MACHINES * (reading + rest) / 3600
        columns.append([
            f"{1e3 * job:.0f} ms, {1e6 * part:.0f} µs, {1e9 * row:.2f} ns",
            f"{bytes_of_row:.1f}",
            f"{reads_of_part:.1f}, {1e6 * reads_of_byte:.1f}",
            f"{large[file_format][1] / large['parts']:,.0f}",
            f"{MODEL_ROWS * bytes_of_row / 1e12:.1f} TB",
            f"{MODEL_ROWS * bytes_of_row / MODEL_MACHINES / 1e9:.1f} GB",
            f"{reads / 1e6:.1f} million",
            f"{network / 1e6:.0f} MB",
            f"{jobs}, {jobs * JOB_TASKS_MAX}",
            f"{reading:.1f} s",
            f"{rest:.1f} s",
            f"{hours:.2f}",
            f"{hours * MACHINE_HOUR_DOLLARS:.2f} + {reads / 1e6 * MILLION_READS_DOLLARS:.2f}",
        ])
    names = [
        "measured: for a job, a part, a row",
        "measured: bytes of a row that are read",
        "measured: reads of a small part, and more for each MB",
        "measured: bytes of network for a part",
        "bytes that are read",
        "bytes that each machine reads",
        "reads",
        "bytes of network between the machines",
        "jobs, and their tasks",
        "time of reading, by all cores",
        "time of jobs and parts, one after the other",
        "machine hours",
        f"dollars at {MACHINE_HOUR_DOLLARS:.2f} for a machine hour, and at {MILLION_READS_DOLLARS:.2f} for a million reads",
    ]
    title = f"| {MODEL_ROWS:.0e} rows in {parts:,} parts on {MODEL_MACHINES} machines with {MODEL_CORES} cores | csv | parquet |"
    return "\n".join([title.replace("1e+12", "10^12"), "| --- | ---: | ---: |", *(
        "| " + " | ".join([name, *(column[at] for column in columns)]) + " |" for at, name in enumerate(names)
    )])


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures column sums over a cluster beside those without one.")
    parser.add_argument("--runs", type=int, default=5, help="number of runs of each (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table into this page")
    options = parser.parse_args()
    if not CLUSTER_BINARY.exists():
        raise Wrong(f"{CLUSTER_BINARY} is missing: run `make bench-cluster`")
    contenders.use_two_cores()
    rows, size = [], QUICK if options.quick else FULL
    for table in tables(size):
        by_count = {str(count): measure(table, count, options.runs) for count in EXECUTORS}
        for file_format in FORMATS:
            seconds = {count: values[file_format] for count, values in by_count.items()}
            rows.append({"parts": table.parts, "rows": table.rows, "format": file_format, "seconds": seconds})
    large, small_parts = repeated(size, 1), small(size, size.parts)
    moved = {table.name: {"parts": table.parts, "rows": table.rows, **traffic(table)} for table in (large, small_parts)}
    report = {"machine": machine(), "runs": options.runs, "rows": rows, "bytes_of_row": bytes_of_row(size), "traffic": moved}
    (BENCH / "cluster.json").write_text(json.dumps(report, indent=1))
    text = f"{markdown(report)}\n\n{model(report)}"
    if options.markdown:
        before, begin, rest = options.markdown.read_text().partition(MARKS[0])
        _, end, after = rest.partition(MARKS[1])
        if not begin or not end:
            raise Wrong(f"{options.markdown} lacks the marks {MARKS[0]} and {MARKS[1]}")
        options.markdown.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
    print(text)
    return 0


if __name__ == "__main__":
    contenders.end_children_on_sigterm()
    try:
        sys.exit(main())
    except (Wrong, server.ServerFailed) as failure:
        sys.exit(f"bench: {failure}")
