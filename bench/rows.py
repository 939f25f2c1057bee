"""The rows of the table: what each measures, what it is compared with, and its goal.

A scenario starts its contenders and returns, by name, functions that each do the work once and return seconds,
milliseconds or a rate. run.py calls them in turn. The lines of a scenario become rows of the table: each says which contender
is Tally and which ones it is compared with.
"""

import csv
import functools
import itertools
import json
import os
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

import data
import pyarrow.parquet
from contenders import (
    BENCH,
    MIB,
    Groups,
    Jobs,
    P3Server,
    Peer,
    Sums,
    Tally,
    Wrong,
    empty,
    fill_memory,
    output_of,
    read_seconds,
    stored_bytes,
    sums_per_second,
    sync_seconds,
    upload_for,
    upload_load,
    write_seconds,
)
from data import FULL, Size, Table
from memory import Growth, Peak
from peers import same
from server import BINARY, clean_environment

ENGINES = ("pyarrow", "duckdb", "polars", "chdb")
P3 = "Python server"
LIMIT_READ = "read and count newlines"
MEMORY_GOAL_MIB = 192

Contenders = Dict[str, Callable[[], float]]


@dataclass(frozen=True)
class Goal:
    """A goal: `of` says what `bound` is.

    "peer": at least `bound` times as fast as the fastest peer. "limit" and "reference": at most `bound` times its time or
    its bytes, or at least `bound` times its rate. "value": the median itself, less than `bound` s, ms or MiB, or at least
    `bound` 1/s.
    """

    of: str
    bound: float


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    name: str
    what: str
    ours: str  # the contender that is Tally
    unit: str = "s"
    peers: Tuple[str, ...] = ()
    limit: Optional[str] = None
    reference: Optional[str] = None  # another contender that is Tally
    goal: Optional[Goal] = None


@dataclass
class Run:
    """What a scenario gets: the size, a stack that ends its processes, and the peak of the server's memory."""

    size: Size
    stack: ExitStack
    minutes: float = 0  # for which uploads are sustained
    peak: Peak = field(default_factory=Peak)

    def tally(self, folder: Path, *flags: str) -> Tally:
        return self.stack.enter_context(Tally(folder, self.peak, *flags))

    def p3(self, folder: Path) -> P3Server:
        return self.stack.enter_context(P3Server(folder))

    def peer(self, engine: str) -> Peer:
        return self.stack.enter_context(Peer(engine))

    def empty_folder(self) -> Path:
        """The path of a scratch folder, which is not there: what a contender wrote to it before is removed."""
        return empty(BENCH / self.size.name / "scratch")

    def crowded_folder(self) -> Path:
        """The path of a new folder for many files. They stay until everything is measured: ext4 without a journal does
        not reuse an inode for some minutes, and creating a file meanwhile is slow, because it skips all freed inodes.
        """
        folders = crowded_folders(self.size)
        folders.mkdir(parents=True, exist_ok=True)
        return folders / str(len(os.listdir(folders)))

    def settle(self) -> None:
        """Called before many bytes are written. Waits until all earlier writes are on the disk, and fills memory with
        cached files, as on a server that has run for a while: a virtual machine may have given free memory back to its
        host, and the first use of such memory is slow.
        """
        os.sync()
        if self.size is FULL:
            crowded_folders(self.size).mkdir(parents=True, exist_ok=True)
            fill_memory(crowded_folders(self.size) / "ballast")


def crowded_folders(size: Size) -> Path:
    return BENCH / size.name / "crowded"


def hollow_out(folder: Path) -> None:
    """Truncates all files of a crowded folder to 0 bytes, to free their space and keep their inodes."""
    for file in folder.rglob("*"):
        if file.is_file():
            os.truncate(file, 0)


@dataclass(frozen=True)
class Scenario:
    """Contenders that run in turn, and the rows that follow from their times."""

    name: str
    lines: Tuple[Line, ...]
    open: Callable[[Run], Contenders]
    warm_up: bool = True  # whether a first round is not counted
    is_long: bool = False  # whether it takes so long that it is run once, and only if asked for


# --- sums -------------------------------------------------------------------------------------------------

COLUMN = "z"  # of the three columns of bigdata.py the one that is hardest to parse and to compress


def whole(files: List[Path]) -> List[Tuple[Path, int, int]]:
    return [(file, 0, file.stat().st_size) for file in files]


def column_chunks(files: List[Path], column: str) -> List[Tuple[Path, int, int]]:
    """The byte ranges of one column in Parquet files."""
    ranges = []
    for file in files:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            index = parquet.schema_arrow.names.index(column)
            groups = [parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups)]
        for chunk in (group.column(index) for group in groups):
            offset = chunk.dictionary_page_offset or chunk.data_page_offset
            ranges.append((file, offset, chunk.total_compressed_size))
    return ranges


def ask(address: str, column: str, file_format: str, expected: int) -> Callable[[], float]:
    sums = Sums(address)
    return lambda: sums.seconds(column, file_format, expected)


def csv_peers(run: Run, table: Table, column: str) -> Contenders:
    def prepared(engine: str) -> Callable[[], float]:
        task = {"task": "csv_sum", "table": table.for_peers(), "column": column}
        return run.peer(engine).prepare(expected=table.sums[column], **task).seconds

    return {engine: prepared(engine) for engine in ENGINES}


def csv_sum(run: Run) -> Contenders:
    table = data.bigdata_table(run.size)
    expected = table.sums[COLUMN]
    return {
        "tally": ask(run.tally(data.tally_folder(table)).address, COLUMN, "csv", expected),
        **csv_peers(run, table, COLUMN),
        P3: ask(run.p3(data.p3_folder(table)).address, COLUMN, "csv", expected),
        LIMIT_READ: lambda: read_seconds(whole(table.files)),
    }


def csv_sum_wide(run: Run) -> Contenders:
    table = data.wide_table(run.size)
    server = run.tally(data.tally_folder(table))
    return {
        "tally": ask(server.address, data.WIDE_COLUMN, "csv", table.sums[data.WIDE_COLUMN]),
        **csv_peers(run, table, data.WIDE_COLUMN),
        LIMIT_READ: lambda: read_seconds(whole(table.files)),
    }


def csv_sum_one_file(run: Run) -> Contenders:
    tables = {"tally": data.one_file_table(run.size), "tally, 400 files": data.bigdata_table(run.size)}
    return {
        **{
            name: ask(run.tally(data.tally_folder(table)).address, COLUMN, "csv", table.sums[COLUMN])
            for name, table in tables.items()
        },
        LIMIT_READ: lambda: read_seconds(whole(tables["tally"].files)),
    }


def parquet_sum(run: Run) -> Contenders:
    table = data.bigdata_table(run.size)
    expected = table.sums[COLUMN]
    ours = data.tally_folder(table)
    chunks = column_chunks(sorted((ours / "parts").glob("*.parquet")), COLUMN)
    server = run.tally(ours)

    def prepared(engine: str) -> Callable[[], float]:
        peer = run.peer(engine)
        files = data.peer_parquet(table, peer)
        return peer.prepare("parquet_sum", expected, files=files, column=COLUMN).seconds

    return {
        "tally": ask(server.address, COLUMN, "parquet", expected),
        **{engine: prepared(engine) for engine in ENGINES},
        P3: ask(run.p3(data.p3_folder(table)).address, COLUMN, "parquet", expected),
        LIMIT_READ: lambda: read_seconds(chunks),
    }


# --- uploads ----------------------------------------------------------------------------------------------


def upload_once(run: Run, table: Table, clients: int, durability: str) -> Tuple[float, int]:
    """Uploads into an empty table with `tally upload`; returns the seconds and the bytes that the server wrote."""
    folder = run.crowded_folder()
    run.settle()
    with Tally(folder, run.peak, "--durability", durability) as server:
        start = time.perf_counter()
        parts = server.upload(table.files, clients)
        seconds = time.perf_counter() - start
        if len(parts) != len(table.files):
            raise Wrong(f"{len(parts)} of {len(table.files)} files were uploaded")
        Sums(server.address).seconds(COLUMN, "parquet", table.sums[COLUMN])
    written = sum(file.stat().st_size for file in (folder / "parts").iterdir())
    hollow_out(folder)
    return seconds, written


def upload_bulk(clients: int, durability: str) -> Callable[[Run], Contenders]:
    def opened(run: Run) -> Contenders:
        table = data.bigdata_table(run.size)
        written = [0]

        def tally() -> float:
            seconds, written[0] = upload_once(run, table, clients, durability)
            return seconds

        def limit() -> float:
            run.settle()
            target = run.empty_folder()
            return write_seconds(target, written[0], durability == "fsync")

        contenders: Contenders = {"tally": tally, DD[durability]: limit}
        if durability == "none":
            # From the second run on it overwrites its files, which is faster than creating them.
            folder = run.crowded_folder()
            peer = run.peer("pyarrow").prepare("convert", table=table.for_peers(), folder=folder)

            def pyarrow_convert() -> float:
                run.settle()
                seconds = peer.seconds()
                hollow_out(folder)
                return seconds

            def p3() -> float:
                target = run.crowded_folder()
                run.settle()
                with P3Server(target) as server:
                    seconds = upload_load(server.address, clients, table.files)["seconds"]
                hollow_out(target)
                return seconds

            contenders.update({"pyarrow": pyarrow_convert, P3: p3})
        return contenders

    return opened


DD = {"none": "dd", "fsync": "dd conv=fsync"}


def upload_small(
    durability: str, lines: Dict[str, Tuple[int, str]], uploads: Callable[[Size], int]
) -> Callable[[Run], Contenders]:
    """Uploads of 10 rows. `lines`: the name of a line -> the number of clients, and the figure of bench-load's
    report.
    """

    def opened(run: Run) -> Contenders:
        files = list(data.small_files(BENCH / run.size.name / "small"))
        p3_flags = ["--fsync"] if durability == "fsync" else []

        def measure(server, clients: int, figure: str) -> float:
            count = uploads(run.size) // (8 if clients == 1 else 1)
            with server:
                os.sync()  # so that earlier writes do not compete for the disk
                upload_load(server.address, 1, files, 50)  # the first ones are slower
                return upload_load(server.address, clients, files, count)[figure]

        def tally(clients: int, figure: str) -> float:
            server = Tally(run.crowded_folder(), run.peak, "--durability", durability)
            return measure(server, clients, figure)

        def p3(clients: int, figure: str) -> float:
            return measure(P3Server(run.crowded_folder(), *p3_flags), clients, figure)

        return {
            f"{who}, {name}": functools.partial(contend, *line)
            for who, contend in (("tally", tally), (P3, p3))
            for name, line in lines.items()
        }

    return opened


WITHOUT_TOKENS = "without tokens"


def upload_small_with_token(run: Run) -> Contenders:
    """As `small-none-rate`, with a server that asks for tokens and one that does not."""
    files = list(data.small_files(BENCH / run.size.name / "small"))

    def rate(has_tokens: bool) -> float:
        folder = run.crowded_folder()
        flags, secret_file = [], None
        if has_tokens:
            token_file, secret_file = folder.with_name(f"{folder.name}-tokens"), folder.with_name(f"{folder.name}-secret")
            for name in ("bench", "another", "a-third"):
                made = subprocess.run([BINARY, "token", "new", name, "--scope", "write"], check=True, capture_output=True)
                with open(token_file, "ab") as tokens:
                    tokens.write(made.stdout)
            secret_file.write_bytes(made.stderr)
            for file in (token_file, secret_file):
                file.chmod(0o600)
            flags = ["--token-file", str(token_file)]
        with Tally(folder, run.peak, "--durability", "none", *flags) as server:
            upload_load(server.address, 1, files, 50, secret_file=secret_file)
            return upload_load(server.address, 16, files, run.size.uploads, secret_file=secret_file)["per_second"]

    return {"with a token": lambda: rate(has_tokens=True), WITHOUT_TOKENS: lambda: rate(has_tokens=False)}


# --- many parts -------------------------------------------------------------------------------------------


def sum_parts(file_format: str) -> Callable[[Run], Contenders]:
    def opened(run: Run) -> Contenders:
        name = run.size.name
        few_count, count = run.size.parts // 10, run.size.parts
        contenders: Contenders = {}
        for contender, parts_count in (("tally", count), ("tally, a tenth of the parts", few_count)):
            folder, total = data.many_parts(name, parts_count)
            contenders[contender] = ask(run.tally(folder).address, COLUMN, file_format, total)
        folder, total = data.many_parts(name, count)
        server = run.p3(data.p3_many_parts(name, count))
        contenders[P3] = ask(server.address, COLUMN, file_format, total)
        files = sorted((folder / "parts").glob(f"*.{file_format}"))
        ranges = whole(files) if file_format == "csv" else column_chunks(files, COLUMN)
        contenders[LIMIT_READ] = lambda: read_seconds(ranges)
        return contenders

    return opened


SUMS_CLIENTS = 16


def sums_many_clients(run: Run) -> Contenders:
    folder, total = data.many_parts(run.size.name, data.SUMS_PARTS, run.size.sums_part_rows)
    server = run.tally(folder)

    def rate(file_format: str, sums: int) -> Callable[[], float]:
        return lambda: sums_per_second(server.address, SUMS_CLIENTS, sums, COLUMN, file_format, total)

    return {"csv": rate("csv", run.size.sums // 8), "parquet": rate("parquet", run.size.sums)}


def start(run: Run) -> Contenders:
    def started(parts_count: int) -> float:
        folder, total = data.many_parts(run.size.name, parts_count)
        return start_seconds(run, folder, parts_count, total, *NO_PACKING)

    few, many = run.size.start_parts
    return {"tally, few": lambda: started(few), "tally, many": lambda: started(many)}


NO_PACKING = ("--pack-above", str(10**9))  # all parts keep their own files


def start_seconds(run: Run, folder: Path, parts_count: int, total: int, *flags: str) -> float:
    """How long a server takes to start. It must have found all parts."""
    with Tally(folder, run.peak, "--durability", "none", *flags) as server:
        if server.parts_count != parts_count:
            raise Wrong(f"{server.parts_count} of {parts_count} parts were found")
        Sums(server.address).seconds(COLUMN, "csv", total)  # memory counts here too
    return server.start_seconds


# --- packed parts -----------------------------------------------------------------------------------------

FEW = f"tally, {data.FEW_PARTS} parts"
ONE_FILE = "CSV and Parquet of the same rows in one file"


def sum_packed(file_format: str) -> Callable[[Run], Contenders]:
    """Sums over packed parts, beside the same rows in few parts."""

    def opened(run: Run) -> Contenders:
        packed = data.packed_parts(run.size, run.size.packed_parts)
        few, total = data.few_parts(run.size, run.size.packed_parts)
        return {
            "tally": ask(run.tally(packed.data).address, COLUMN, file_format, packed.total),
            FEW: ask(run.tally(few).address, COLUMN, file_format, total),
        }

    return opened


def start_packed(run: Run) -> Contenders:
    count = run.size.packed_parts
    packed = data.packed_parts(run.size, count)
    return {"tally": lambda: start_seconds(run, packed.data, count, packed.total)}


def space_packed(run: Run) -> Contenders:
    """MiB on the disk."""
    packed = data.packed_parts(run.size, run.size.packed_parts)
    parts = data.one_part(run.size, run.size.packed_parts) / "parts"
    one_file = sum((parts / f"1.{kind}").stat().st_size for kind in ("csv", "parquet"))
    return {"tally": lambda: stored_bytes(packed.data) / MIB, ONE_FILE: lambda: one_file / MIB}


def most_parts(run: Run) -> Contenders:
    """The start and sums with very many packed parts, and the most memory that the server had, also while they were
    uploaded.
    """
    count = run.size.most_parts
    packed = data.packed_parts(run.size, count)
    run.peak.bytes = packed.peak_bytes

    def asked(file_format: str) -> float:
        with Tally(packed.data, run.peak) as server:
            return Sums(server.address).seconds(COLUMN, file_format, packed.total)

    return {
        "start": lambda: start_seconds(run, packed.data, count, packed.total),
        "csv": lambda: asked("csv"),
        "parquet": lambda: asked("parquet"),
        "memory": lambda: run.peak.bytes / MIB,
    }


def upload_sustained(durability: str, clients: int, has_reference: bool) -> Callable[[Run], Contenders]:
    """Uploads of 10 rows for some minutes, while they are packed; the reference, without packing, ends when the table has
    nearly as many parts as are allowed. How the table grew is in growth/, beside the results.
    """

    def opened(run: Run) -> Contenders:
        source = data.cut_file(run.size)
        growth = BENCH / run.size.name / "growth"
        growth.mkdir(parents=True, exist_ok=True)

        def tally(name: str, uploads_max: Optional[int] = None, *flags: str) -> float:
            folder, path = run.crowded_folder(), growth / f"small-{durability}-{name}.jsonl"
            path.unlink(missing_ok=True)
            os.sync()  # so that earlier writes do not compete for the disk
            with Tally(folder, run.peak, "--durability", durability, *flags) as server:
                with Growth(server, path):
                    seconds = 60 * run.minutes
                    report = upload_for(server.address, clients, source, data.SMALL_ROWS, seconds, uploads_max)
                with open(path, "a") as file:
                    file.write(json.dumps(report) + "\n")
                count = server.figures()["parts"]
                if count != report["uploads"]:
                    raise Wrong(f"{count} parts, expected {report['uploads']}")
                Sums(server.address).seconds(COLUMN, "parquet", count * data.CUT_TOTAL)
            hollow_out(folder)
            return report["per_second"]

        contenders: Contenders = {"tally": lambda: tally("packing")}
        if has_reference:
            contenders[WITHOUT_PACKING] = lambda: tally("alone", UNPACKED_MAX, *NO_PACKING)
        return contenders

    return opened


WITHOUT_PACKING = "tally, without packing"
UNPACKED_MAX = 90_000  # 100,000 are allowed


# --- NumStore and group sums -------------------------------------------------------------------------------

NUMSTORE_CLIENTS = 8
NUMSTORE_FIGURES = {"rate": "requests_per_second", "p50": "p50_ms", "p99": "p99_ms"}


def numstore(run: Run) -> Contenders:
    server = run.tally(run.empty_folder())
    requests = run.size.numstore_requests

    def load(figure: str) -> float:
        command = [BINARY, "load-numstore", "--json", "--server", server.address, "--seed", 1]
        command += ["--clients", NUMSTORE_CLIENTS, "--requests", requests]
        report = json.loads(output_of(command))
        if report["requests"] != NUMSTORE_CLIENTS * requests:
            raise Wrong(f"load-numstore sent {report['requests']} requests")
        return report[figure]

    return {name: functools.partial(load, figure) for name, figure in NUMSTORE_FIGURES.items()}


def group_sum(
    file: Callable[[Size], Path], by: List[str], column: str, duckdb_memory: str = ""
) -> Callable[[Run], Contenders]:
    """The group sum of a CSV file, with the groups written as CSV."""

    def opened(run: Run) -> Contenders:
        source = file(run.size)
        folder = run.empty_folder()
        folder.mkdir()
        results = {name: folder / f"{name}.csv" for name in ("tally", "duckdb", "polars")}

        def tally() -> float:
            command = [BINARY, "group-sum", source, "--by", ",".join(by), "--sum", column]
            begun = time.perf_counter()
            process = subprocess.Popen([*command, "--output", results["tally"]], env=clean_environment())
            with run.peak.watch(process.pid):
                if process.wait() != 0:
                    raise Wrong("tally group-sum failed")
            return time.perf_counter() - begun

        def prepared(engine: str) -> Callable[[], float]:
            job = {"source": source, "by": by, "column": column, "result": results[engine]}
            if engine == "duckdb" and duckdb_memory:
                job["memory"] = duckdb_memory
            peer = run.peer(engine).prepare("group_sum", **job)
            if not have_same_rows(results["tally"], results[engine]):
                raise Wrong(f"the groups of {engine} differ from those of tally: see {results[engine]}")
            return peer.seconds

        tally()
        return {"tally": tally, **{engine: prepared(engine) for engine in ("duckdb", "polars")}}

    return opened


def have_same_rows(path: Path, other: Path) -> bool:
    """Whether two CSV files are the same below their headers."""
    with open(path, newline="", encoding="utf-8") as file, open(other, newline="", encoding="utf-8") as other_file:
        pairs = itertools.zip_longest(csv.reader(file), csv.reader(other_file))
        next(pairs)
        return all(row == other_row for row, other_row in pairs)


def groups_table(by: List[str]) -> Callable[[Run], Contenders]:
    """The group sum over a table; the peers read the Parquet files that Tally wrote."""

    def opened(run: Run) -> Contenders:
        table = data.plays_table(run.size)
        folder = data.tally_folder(table)
        files = sorted(map(str, (folder / "parts").glob("*.parquet")))
        job = {"files": files, "by": by, "column": data.PLAYS_SUM}
        peers = {engine: run.peer(engine).prepare("groups_table", **job) for engine in ("duckdb", "polars")}
        expected = peers["duckdb"].result
        if peers["polars"].result != expected or expected[1] != table.sums[data.PLAYS_SUM]:
            raise Wrong(f"duckdb has {expected}, polars {peers['polars'].result}")
        groups = Groups(run.tally(folder).address)
        return {
            "tally": lambda: groups.seconds(by, data.PLAYS_SUM, expected),
            **{engine: peer.seconds for engine, peer in peers.items()},
        }

    return opened


def survey_means(statistic: str, by: List[str]) -> Callable[[Run], Contenders]:
    """A statistic, from the request to the answer; the peers read the Parquet files that Tally wrote."""

    def opened(run: Run) -> Contenders:
        folder = data.tally_folder(data.survey_table(run.size))
        files = sorted(map(str, (folder / "parts").glob("*.parquet")))
        job = {"files": files, "question": data.SURVEY_QUESTION, "by": by}
        peers = {engine: run.peer(engine).prepare("survey_means", **job) for engine in ("duckdb", "polars")}
        jobs = Jobs(run.tally(folder, "--durability", "none").http)

        def check(answer: dict) -> None:
            for engine, peer in peers.items():
                means = {str(tuple(row[:-1])) if len(by) > 1 else row[0]: row[-1] for row in peer.result}
                if means.keys() != answer.keys() or any(not same(means[key], answer[key]) for key in means):
                    raise Wrong(f"{statistic} differs from {engine}")

        return {
            "tally": lambda: jobs.statistic(statistic, data.SURVEY_QUESTION, check),
            **{engine: peer.seconds for engine, peer in peers.items()},
        }

    return opened


def job_time(durability: str) -> Callable[[Run], Contenders]:
    """Jobs with little to compute: a statistic over a table of ten rows, and a task with a file of two rows."""

    def opened(run: Run) -> Contenders:
        # On the disk of the data folders, so that a sync is what it is for them.
        source, folder = run.empty_folder(), run.crowded_folder()
        source.mkdir()
        rows = data.survey_rows(10)
        (source / "survey.csv").write_text(",".join(data.SURVEY_COLUMNS) + "\n" + rows)
        server = run.tally(folder, "--durability", durability)
        server.upload([source / "survey.csv"], 1)
        jobs, content = Jobs(server.http), b"Song,Date,Number of Plays\nB,2023-05-02,3\nA,2023-05-01,7\n"

        def check(answer: dict) -> None:
            if not answer:
                raise Wrong("the statistic has no mean")

        question = next(row.split(",")[4] for row in rows.splitlines() if row.split(",")[5])
        expected = b"Song,Date,Total Number of Plays for Date\nA,2023-05-01,7\nB,2023-05-02,3\n"
        contenders: Contenders = {
            "statistic": lambda: 1000 * jobs.statistic("states_mean", question, check),
            "task": lambda: 1000 * jobs.task(content, expected),
        }
        if durability == "fsync":
            contenders[TWO_SYNCS] = lambda: 1000 * sync_seconds(source / "synced", 2)
        return contenders

    return opened


TWO_SYNCS = "two fsyncs"


# --- the table --------------------------------------------------------------------------------------------

NONE_LINES = {"1 client": (1, "p50_ms"), "16 clients": (16, "per_second")}
FSYNC_LINES = {"1 client": (1, "p50_ms"), "64 clients": (64, "per_second")}

SCENARIOS = (
    Scenario(
        "csvsum",
        (
            Line(
                "csvsum",
                "CSV sum, 400 files, 100,000,000 short rows",
                "tally",
                peers=(*ENGINES, P3),
                limit=LIMIT_READ,
                goal=Goal("peer", 4),
            ),
        ),
        csv_sum,
    ),
    Scenario(
        "csvsum-wide",
        (
            Line(
                "csvsum-wide",
                "CSV sum, 40 columns, text, 20 % quoted, newlines in cells",
                "tally",
                peers=ENGINES,
                limit=LIMIT_READ,
                goal=Goal("peer", 2),
            ),
        ),
        csv_sum_wide,
    ),
    Scenario(
        "csvsum-one-file",
        (
            Line(
                "csvsum-one-file",
                "CSV sum, the rows of csvsum in one file",
                "tally",
                limit=LIMIT_READ,
                reference="tally, 400 files",
                goal=Goal("reference", 1.2),
            ),
        ),
        csv_sum_one_file,
    ),
    Scenario(
        "parquetsum",
        (
            Line(
                "parquetsum",
                "Parquet sum, the rows of csvsum",
                "tally",
                peers=(*ENGINES, P3),
                limit=LIMIT_READ,
                goal=Goal("peer", 1.5),
            ),
        ),
        parquet_sum,
    ),
    *(
        Scenario(
            f"upload-none-{clients}",
            (
                Line(
                    f"upload-none-{clients}",
                    f"upload of csvsum's files, {noun}, none",
                    "tally",
                    peers=("pyarrow", P3),
                    limit="dd",
                    goal=Goal("peer", 3),
                ),
            ),
            upload_bulk(clients, "none"),
            warm_up=False,
        )
        for clients, noun in ((1, "1 client"), (8, "8 clients"))
    ),
    Scenario(
        "upload-fsync",
        (
            Line(
                "upload-fsync",
                "upload of csvsum's files, 8 clients, fsync",
                "tally",
                limit="dd conv=fsync",
                goal=Goal("limit", 1.3),
            ),
        ),
        upload_bulk(8, "fsync"),
        warm_up=False,
    ),
    Scenario(
        "small-none",
        (
            Line(
                "small-none-p50",
                "upload of 10 rows, none, 1 client, p50",
                "tally, 1 client",
                "ms",
                peers=(f"{P3}, 1 client",),
                goal=Goal("value", 0.3),
            ),
            Line(
                "small-none-rate",
                "uploads of 10 rows, none, 16 clients",
                "tally, 16 clients",
                "1/s",
                peers=(f"{P3}, 16 clients",),
                goal=Goal("value", 8000),
            ),
        ),
        upload_small("none", NONE_LINES, lambda size: size.uploads),
    ),
    Scenario(
        "small-none-token",
        (
            Line(
                "small-none-token",
                "small-none-rate with a token, and without",
                "with a token",
                "1/s",
                reference=WITHOUT_TOKENS,
                goal=Goal("reference", 0.95),
            ),
        ),
        upload_small_with_token,
    ),
    Scenario(
        "small-fsync",
        (
            Line(
                "small-fsync-p50",
                "upload of 10 rows, fsync, 1 client, p50",
                "tally, 1 client",
                "ms",
                peers=(f"{P3}, 1 client",),
            ),
            Line(
                "small-fsync-rate",
                "uploads of 10 rows, fsync, 64 clients",
                "tally, 64 clients",
                "1/s",
                peers=(f"{P3}, 64 clients",),
                goal=Goal("value", 500),
            ),
        ),
        upload_small("fsync", FSYNC_LINES, lambda size: size.synced_uploads),
    ),
    *(
        Scenario(
            f"parts-{file_format}",
            (
                Line(
                    f"parts-{file_format}",
                    f"{file_format} sum over 10,000 small parts",
                    "tally",
                    peers=(P3,),
                    limit=LIMIT_READ,
                    goal=Goal("peer", 10),
                ),
                Line(
                    f"parts-{file_format}-linear",
                    "the same, and over 1,000 (linear: 10 times)",
                    "tally",
                    reference="tally, a tenth of the parts",
                    goal=Goal("reference", 12),
                ),
            ),
            sum_parts(file_format),
        )
        for file_format in ("csv", "parquet")
    ),
    Scenario(
        "sums-many-clients",
        (
            Line(
                "sums-many-clients-csv",
                "16 clients, csv sums over 60 parts of 20,000 rows",
                "csv",
                "1/s",
                goal=Goal("value", 534),
            ),
            Line(
                "sums-many-clients-parquet",
                "the same from parquet",
                "parquet",
                "1/s",
                goal=Goal("value", 5_050),
            ),
        ),
        sums_many_clients,
    ),
    Scenario(
        "start",
        (
            Line("start-10k", "start with 10,000 parts", "tally, few", goal=Goal("value", 2)),
            Line("start-100k", "start with 100,000 parts", "tally, many", goal=Goal("value", 15)),
        ),
        start,
    ),
    *(
        Scenario(
            f"parts-1m-{file_format}",
            (
                Line(
                    f"parts-1m-{file_format}",
                    f"{file_format} sum over 1,000,000 packed parts of 10 rows, and the same rows in 100 parts",
                    "tally",
                    reference=FEW,
                    goal=Goal("reference", 3),
                ),
            ),
            sum_packed(file_format),
        )
        for file_format in ("csv", "parquet")
    ),
    Scenario(
        "start-1m",
        (Line("start-1m", "start with 1,000,000 packed parts", "tally", goal=Goal("value", 2)),),
        start_packed,
    ),
    Scenario(
        "space-1m",
        (
            Line(
                "space-1m",
                "space of 1,000,000 packed parts of 10 rows",
                "tally",
                "MiB",
                limit=ONE_FILE,
                goal=Goal("limit", 1.3),
            ),
        ),
        space_packed,
        warm_up=False,
    ),
    Scenario(
        "small-none-sustained",
        (
            Line(
                "small-none-sustained",
                "uploads of 10 rows, none, 16 clients, for 10 minutes while they are packed",
                "tally",
                "1/s",
                goal=Goal("value", 3_000),
            ),
        ),
        upload_sustained("none", 16, has_reference=False),
        is_long=True,
    ),
    Scenario(
        "small-fsync-sustained",
        (
            Line(
                "small-fsync-sustained",
                "the same, fsync, 64 clients",
                "tally",
                "1/s",
                reference=WITHOUT_PACKING,
                goal=Goal("reference", 0.9),
            ),
        ),
        upload_sustained("fsync", 64, has_reference=True),
        is_long=True,
    ),
    Scenario(
        "parts-10m",
        (
            Line("parts-10m-start", "start with 10,000,000 packed parts of 10 rows", "start", goal=Goal("value", 10)),
            Line("parts-10m-csv", "csv sum over these", "csv"),
            Line("parts-10m-parquet", "parquet sum over these", "parquet"),
            Line(
                "parts-10m-memory",
                "the most anonymous memory while they are uploaded, packed and summed",
                "memory",
                "MiB",
                goal=Goal("value", MEMORY_GOAL_MIB),
            ),
        ),
        most_parts,
        is_long=True,
    ),
    Scenario(
        "groups-file-few",
        (
            Line(
                "groups-file-few",
                "group sum of 30,000,000 rows, 1 GB of CSV, 28,910 groups",
                "tally",
                peers=("duckdb", "polars"),
                goal=Goal("peer", 2),
            ),
        ),
        group_sum(data.plays_file, data.PLAYS_BY, data.PLAYS_SUM),
    ),
    Scenario(
        "groups-file-many",
        (
            Line(
                "groups-file-many",
                "group sum of 20,000,000 rows, 19,400,000 groups, DuckDB with 512 MB",
                "tally",
                peers=("duckdb", "polars"),
                goal=Goal("peer", 1),
            ),
        ),
        group_sum(data.visits_file, data.VISITS_BY, data.VISITS_SUM, "512MB"),
    ),
    Scenario(
        "groups-table",
        (
            Line(
                "groups-table",
                "group sum over a table, 30,000,000 rows, 30,000 groups of two columns",
                "tally",
                peers=("duckdb", "polars"),
                goal=Goal("peer", 1.5),
            ),
        ),
        groups_table(data.PLAYS_BY),
    ),
    Scenario(
        "groups-table-few",
        (
            Line(
                "groups-table-few",
                "the same, 1,000 groups of one column",
                "tally",
                peers=("duckdb", "polars"),
                goal=Goal("peer", 1),
            ),
        ),
        groups_table(data.PLAYS_BY[:1]),
    ),
    Scenario(
        "states-mean",
        (
            Line(
                "states-mean",
                "means by state over 3,000,000 survey rows",
                "tally",
                peers=("duckdb", "polars"),
                goal=Goal("peer", 1),
            ),
        ),
        survey_means("states_mean", ["LocationDesc"]),
    ),
    Scenario(
        "mean-by-category",
        (
            Line(
                "mean-by-category",
                "the same by state and category",
                "tally",
                peers=("duckdb", "polars"),
                goal=Goal("peer", 1),
            ),
        ),
        survey_means("mean_by_category", ["LocationDesc", "StratificationCategory1", "Stratification1"]),
    ),
    Scenario(
        "job-none",
        (
            Line("job-none-statistic", "a statistic over 10 rows, none", "statistic", "ms", goal=Goal("value", 5)),
            Line("job-none-task", "a task with 2 rows, none", "task", "ms", goal=Goal("value", 5)),
        ),
        job_time("none"),
    ),
    Scenario(
        "job-fsync",
        (
            Line(
                "job-fsync-statistic",
                "a statistic over 10 rows, fsync",
                "statistic",
                "ms",
                limit=TWO_SYNCS,
                goal=Goal("limit", 1),
            ),
            Line(
                "job-fsync-task",
                "a task with 2 rows, fsync",
                "task",
                "ms",
                limit=TWO_SYNCS,
                goal=Goal("limit", 1),
            ),
        ),
        job_time("fsync"),
    ),
    Scenario(
        "numstore",
        (
            Line("numstore-rate", "NumStore, 8 clients, requests", "rate", "1/s"),
            Line("numstore-p50", "NumStore, 8 clients, p50 response time", "p50", "ms"),
            Line("numstore-p99", "NumStore, 8 clients, p99 response time", "p99", "ms"),
        ),
        numstore,
    ),
)
