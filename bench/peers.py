"""The peers that are libraries. Each runs in a child process of the benchmark, which is started once, so that imports are
not timed.

    python bench/peers.py ENGINE        # pyarrow, duckdb, polars or chdb

It reads requests from standard input, one JSON object a line, and prints one answer a line. `{"task": ..., ...}` sets a task
and does it. If an engine has several ways to do it, each is tried twice, and the fastest is used from then on; the answer is
`{"result": ..., "way": ...}`. `{}` does the task again, and the answer is `{"seconds": ..., "result": ...}`. Only the query
itself is timed.

A table is `{"files": [...], "columns": {name: "int64" or "utf8"}, "newlines_in_cells": bool}`. Every engine is given the types
of the columns, so that it does not have to infer them, and as many threads as there are cores.
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Dict

THREADS = len(os.sched_getaffinity(0))
MEANS_DIFFER_MAX = 1e-9

# The ways in which an engine can do a task, by name.
Ways = Dict[str, Callable[[], object]]


def targets(table: dict, folder: str) -> list:
    """The path of the Parquet file for each CSV file of the table."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    return [str(Path(folder) / f"{Path(file).stem}.parquet") for file in table["files"]]


def same(one: object, other: object) -> bool:
    """Whether two results are equal, apart from the rounding of means, which depends on the order of rows."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= MEANS_DIFFER_MAX
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def in_threads(work: Callable, *arguments: list) -> list:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, *arguments))


class PyArrow:
    def __init__(self):
        import pyarrow
        import pyarrow.compute
        import pyarrow.csv
        import pyarrow.dataset
        import pyarrow.parquet

        pyarrow.set_cpu_count(THREADS)
        self.arrow = pyarrow
        self.types = {"int64": pyarrow.int64(), "utf8": pyarrow.string()}

    def options(self, table: dict, threads: bool, only: list = None) -> dict:
        """The options of read_csv. With `only`, it converts these columns and no others."""
        csv = self.arrow.csv
        types = {name: self.types[kind] for name, kind in table["columns"].items()}
        return {
            "read_options": csv.ReadOptions(use_threads=threads),
            "parse_options": csv.ParseOptions(newlines_in_values=table["newlines_in_cells"]),
            "convert_options": csv.ConvertOptions(column_types=types, include_columns=only),
        }

    def total(self, column) -> int:
        return self.arrow.compute.sum(column).as_py() or 0

    def scan(self, files: list, file_format, column: str) -> int:
        scanner = self.arrow.dataset.dataset(files, format=file_format).scanner(columns=[column])
        return sum(self.total(batch[column]) for batch in scanner.to_batches())

    def csv_sum(self, table: dict, column: str) -> Ways:
        read = self.arrow.csv.read_csv
        files, alone, threads = table["files"], *(self.options(table, on, [column]) for on in (False, True))
        # Without `only`: the scanner selects the column itself.
        file_format = self.arrow.dataset.CsvFileFormat(**self.options(table, True))
        return {
            "read_csv in threads": lambda: sum(
                in_threads(lambda f: self.total(read(f, **alone)[column]), files)
            ),
            "read_csv with threads": lambda: sum(self.total(read(f, **threads)[column]) for f in files),
            "dataset": lambda: self.scan(files, file_format, column),
        }

    def parquet_sum(self, files: list, column: str) -> Ways:
        def one(file: str) -> int:
            with self.arrow.parquet.ParquetFile(file, memory_map=True) as parquet:
                return self.total(parquet.read(columns=[column], use_threads=False)[column])

        return {
            "ParquetFile in threads": lambda: sum(in_threads(one, files)),
            "dataset": lambda: self.scan(files, "parquet", column),
        }

    def convert(self, table: dict, folder: str) -> Ways:
        write, read = self.arrow.parquet.write_table, self.arrow.csv.read_csv
        alone, threads = (self.options(table, on) for on in (False, True))
        files, written = table["files"], targets(table, folder)

        def files_in_threads() -> None:
            in_threads(lambda source, target: write(read(source, **alone), target), files, written)

        def threads_in_a_file() -> None:
            for source, target in zip(files, written):
                write(read(source, **threads), target)

        return {"files in threads": files_in_threads, "threads in a file": threads_in_a_file}


class DuckDb:
    TYPES = {"int64": "BIGINT", "utf8": "VARCHAR"}

    def __init__(self):
        import duckdb

        self.connection = duckdb.connect(config={"threads": THREADS})
        self.connection.execute("SET enable_progress_bar = false")
        self.connection.execute("SET preserve_insertion_order = false")

    def csv(self, table: dict, files: object) -> str:
        columns = {name: self.TYPES[kind] for name, kind in table["columns"].items()}
        return (
            f"read_csv({files!r}, header = true, delim = ',', quote = '\"', escape = '\"',"
            f" auto_detect = false, columns = {columns!r})"
        )

    def one(self, query: str) -> int:
        return int(self.connection.execute(query).fetchone()[0] or 0)

    def csv_sum(self, table: dict, column: str) -> Ways:
        return {
            "read_csv": lambda: self.one(f'SELECT sum("{column}") FROM {self.csv(table, table["files"])}')
        }

    def parquet_sum(self, files: list, column: str) -> Ways:
        return {"read_parquet": lambda: self.one(f'SELECT sum("{column}") FROM read_parquet({files!r})')}

    def convert(self, table: dict, folder: str) -> Ways:
        def copy() -> None:
            for source, target in zip(table["files"], targets(table, folder)):
                self.connection.execute(
                    f"COPY (FROM {self.csv(table, source)}) TO '{target}' (FORMAT parquet)"
                )

        return {"COPY": copy}

    def group_sum(self, source: str, by: list, column: str, result: str, memory: str = "") -> Ways:
        if memory:
            self.connection.execute(f"SET memory_limit = '{memory}'")
            self.connection.execute(f"SET temp_directory = '{result}.spilled'")
        table = {"columns": {**dict.fromkeys(by, "utf8"), column: "int64"}}
        names = ", ".join(f'"{name}"' for name in by)
        query = f'SELECT {names}, sum("{column}")::BIGINT FROM {self.csv(table, source)}'

        def copy() -> None:
            grouped = f"{query} GROUP BY {names} ORDER BY {names}"
            self.connection.execute(f"COPY ({grouped}) TO '{result}' (HEADER)")

        return {"COPY": copy}

    def groups_table(self, files: list, by: list, column: str) -> Ways:
        names = ", ".join(f'"{name}"' for name in by)
        query = f'SELECT {names}, sum("{column}") FROM read_parquet({files!r}) GROUP BY {names} ORDER BY {names}'

        def groups() -> list:
            found = self.connection.execute(query).to_arrow_table()
            return [found.num_rows, int(sum(found.column(len(by)).to_pylist()))]

        return {"read_parquet": groups}

    def survey_means(self, files: list, question: str, by: list) -> Ways:
        names = ", ".join(f'"{name}"' for name in by)
        # A group without any value has no mean, and is not in Tally's answer.
        asked = f'FROM read_parquet({files!r}) WHERE "Question" = ? AND "Data_Value" IS NOT NULL'
        query = f'SELECT {names}, avg("Data_Value") {asked} GROUP BY {names}'

        def means() -> list:
            return sorted([*map(str, row[:-1]), row[-1]] for row in self.connection.execute(query, [question]).fetchall())

        return {"read_parquet": means}


class Polars:
    def __init__(self):
        os.environ["POLARS_MAX_THREADS"] = str(THREADS)
        import polars

        self.polars = polars
        self.types = {"int64": polars.Int64, "utf8": polars.String}

    def scan(self, table: dict, files: object):
        schema = {name: self.types[kind] for name, kind in table["columns"].items()}
        return self.polars.scan_csv(files, schema=schema)

    def ways(self, frame) -> Ways:
        """Both engines of polars on the lazy query that frame() returns."""
        return {
            engine: lambda engine=engine: int(frame().collect(engine=engine).item() or 0)
            for engine in ("streaming", "in-memory")
        }

    def csv_sum(self, table: dict, column: str) -> Ways:
        return self.ways(lambda: self.scan(table, table["files"]).select(self.polars.col(column).sum()))

    def parquet_sum(self, files: list, column: str) -> Ways:
        return self.ways(lambda: self.polars.scan_parquet(files).select(self.polars.col(column).sum()))

    def convert(self, table: dict, folder: str) -> Ways:
        def sink() -> None:
            for source, target in zip(table["files"], targets(table, folder)):
                self.scan(table, source).sink_parquet(target, engine="streaming")

        return {"sink_parquet": sink}

    def group_sum(self, source: str, by: list, column: str, result: str) -> Ways:
        table = {"columns": {**dict.fromkeys(by, "utf8"), column: "int64"}}

        def group(engine: str) -> None:
            groups = self.scan(table, source).group_by(by).agg(self.polars.col(column).sum()).sort(by)
            groups.collect(engine=engine).write_csv(result)

        return {engine: lambda engine=engine: group(engine) for engine in ("streaming", "in-memory")}

    def groups_table(self, files: list, by: list, column: str) -> Ways:
        def groups(engine: str) -> list:
            groups = self.polars.scan_parquet(files).group_by(by).agg(self.polars.col(column).sum()).sort(by)
            found = groups.collect(engine=engine)
            return [found.height, int(found[column].sum())]

        return {engine: lambda engine=engine: groups(engine) for engine in ("streaming", "in-memory")}

    def survey_means(self, files: list, question: str, by: list) -> Ways:
        def means(engine: str) -> list:
            is_asked = (self.polars.col("Question") == question) & self.polars.col("Data_Value").is_not_null()
            asked = self.polars.scan_parquet(files).filter(is_asked)
            found = asked.group_by(by).agg(self.polars.col("Data_Value").mean()).collect(engine=engine)
            return sorted([*map(str, row[:-1]), row[-1]] for row in found.rows())

        return {engine: lambda engine=engine: means(engine) for engine in ("streaming", "in-memory")}


class ChDb:
    TYPES = {"int64": "Int64", "utf8": "String"}

    def __init__(self):
        from chdb.session import Session

        self.session = Session()

    def query(self, sql: str) -> str:
        settings = (
            f"max_threads = {THREADS}, max_parsing_threads = {THREADS}, engine_file_truncate_on_insert = 1"
        )
        return self.session.query(f"{sql} SETTINGS {settings}", "CSV").bytes().decode()

    def csv(self, table: dict, files: str) -> str:
        columns = ", ".join(f"`{name}` {self.TYPES[kind]}" for name, kind in table["columns"].items())
        return f"file('{files}', 'CSVWithNames', '{columns}')"

    @staticmethod
    def all_of(files: list) -> str:
        """A glob for the files, which must be all files of their folder with this suffix."""
        return f"{Path(files[0]).parent}/*{Path(files[0]).suffix}"

    def csv_sum(self, table: dict, column: str) -> Ways:
        source = self.csv(table, self.all_of(table["files"]))
        return {"file": lambda: int(self.query(f"SELECT sum(`{column}`) FROM {source}"))}

    def parquet_sum(self, files: list, column: str) -> Ways:
        source = f"file('{self.all_of(files)}', 'Parquet')"
        return {"file": lambda: int(self.query(f"SELECT sum(`{column}`) FROM {source}"))}

    def convert(self, table: dict, folder: str) -> Ways:
        def insert() -> None:
            for source, target in zip(table["files"], targets(table, folder)):
                into = f"INSERT INTO FUNCTION file('{target}', 'Parquet')"
                self.query(f"{into} SELECT * FROM {self.csv(table, source)}")

        return {"file": insert}


ENGINES = {"pyarrow": PyArrow, "duckdb": DuckDb, "polars": Polars, "chdb": ChDb}


def timed(way: Callable[[], object]) -> dict:
    start = time.perf_counter()
    result = way()
    return {"seconds": time.perf_counter() - start, "result": result}


def prepare(engine, job: dict) -> tuple:
    """Does the task in each way; returns the answer and the fastest way."""
    ways = getattr(engine, job.pop("task"))(**job)
    # Twice, because the first run fills caches; once is enough where there is only one way.
    tried = {name: [timed(way) for _ in range(2 if len(ways) > 1 else 1)] for name, way in ways.items()}
    results = [run["result"] for runs in tried.values() for run in runs]
    if not all(same(result, results[0]) for result in results):
        raise ValueError(f"the ways give different results: {tried}")
    fastest = min(tried, key=lambda name: min(run["seconds"] for run in tried[name]))
    return {"result": results[0], "way": fastest}, ways[fastest]


def main() -> None:
    # Standard output is for the answers alone: what engines print goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine = ENGINES[sys.argv[1]]()
    way = None
    for line in sys.stdin:
        job = json.loads(line)
        try:
            if job:
                answer, way = prepare(engine, job)
            else:
                answer = timed(way)
        except Exception as error:  # whatever an engine raises: the parent reports it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
