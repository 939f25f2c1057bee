"""The table as other engines read it: with the commands that `tally schema` prints for this very table, DuckDB, Polars,
pyarrow and Spark find the sums that the server finds. `make test` installs Spark where there is a Java.
"""

import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import duckdb
import grpc
import polars
import pyarrow.compute
import pyarrow.dataset
import pytest
import table_pb2
import tally_pb2
from conftest import ROOT, Server, clean_environment, step_aside, table, tally
from uploads import stream

SPARK_PYTHON = ROOT / "target" / "spark-venv" / "bin" / "python"
JAVA_VERSION_MIN = 17  # of Spark 4

# Columns without any value: `note` and `qty` in parts that come after their types are known, `later` before.
EMPTY_COLUMNS = [
    b"id,qty,note\n1,2,x\n3,,\n",
    b"id,qty\n4,\n5,\n",
    b"note,id,later\n,6,\n",
    b"later,id\n7,8\n",
    b"id,qty,note,later\n",
]
WITH_DOUBLES = [*EMPTY_COLUMNS, b"qty,id\n1.0,9\n2.5e3,10\n", b"qty\n\n" + b'""\n']
WITH_TEXT = [
    *WITH_DOUBLES,
    b"code,flag\n5,true\n",
    b"code\n007\n+1\n",
    b'flag,"a ""b"", c"\nmaybe,1\n',
    b'"a ""b"", c",id\n2020-01-01,11\n',
    b"flag\n2024-01-01T00:00:00Z\n",
]
TABLES = {"empty columns": EMPTY_COLUMNS, "doubles": WITH_DOUBLES, "text": WITH_TEXT}
SUMS = {
    "empty columns": {"id": 27, "qty": 2, "later": 7},
    "doubles": {"id": 46, "qty": 2503, "later": 7},
    "text": {"id": 57, "qty": 2503, "later": 7, "code": 13},
}


def fill(server: Server, files: list) -> None:
    for file in files:
        assert table(server).Upload(table_pb2.UploadReq(csv_data=file)).error == "", file


def schema(server: Server, tally_binary, *flags) -> subprocess.CompletedProcess:
    command = [tally_binary, "schema", "--server", server.address, "--data", server.data, *flags]
    return subprocess.run(command, env=clean_environment(), capture_output=True, encoding="utf-8", timeout=60)


def commands(text: str) -> dict:
    """The commands that `tally schema` prints, by engine."""
    blocks = re.findall(r"^(\w+):\n((?:  .*\n)+)", text, re.M)
    return {engine: re.sub(r"^  ", "", lines, flags=re.M) for engine, lines in blocks}


def value_of(command: str, **names):
    """The value of a command's last line, an expression, after the lines before it."""
    *lines, last = command.splitlines()
    exec("\n".join(lines), names)
    return eval(last, names)


def in_duckdb(command: str, column: str) -> int:
    total = duckdb.sql(f"SELECT sum(CAST(\"{column}\" AS HUGEINT)) FROM ({command})").fetchall()[0][0]
    return int(total or 0)


def in_polars(command: str, column: str) -> int:
    frame = value_of(command)
    return frame.select(polars.col(column).cast(polars.Int64).sum()).collect().item()


def in_pyarrow(command: str, column: str) -> int:
    cells = value_of(command).to_table(columns=[column])[column].to_pylist()
    return sum(int(cell) for cell in cells if cell is not None)


ENGINES = {"DuckDB": in_duckdb, "Polars": in_polars, "pyarrow": in_pyarrow}


class Spark:
    """One Spark for all tests: it takes seconds to start. It ends with the standard input of its process."""

    def __init__(self, log):
        self._log = log
        self._process = subprocess.Popen(
            [SPARK_PYTHON, ROOT / "tests" / "python" / "spark_sums.py"],
            env=clean_environment(SPARK_LOCAL_IP="127.0.0.1"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            encoding="utf-8",
        )

    def sums(self, command: str, columns: list) -> list:
        print(json.dumps({"command": command, "columns": columns}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, "Spark gave no answer:\n" + self._log.read_text()
        return json.loads(line)

    def close(self) -> None:
        self._process.stdin.close()
        assert self._process.wait(60) == 0, self._log.read_text()


def java_version() -> int:
    """0 if there is none."""
    java = shutil.which("java")
    said = subprocess.run([java, "-version"], capture_output=True, encoding="utf-8", timeout=60).stderr if java else ""
    found = re.search(r'version "(\d+)', said)
    return int(found[1]) if found else 0


@pytest.fixture(scope="module")
def spark(tmp_path_factory):
    if java_version() < JAVA_VERSION_MIN:
        step_aside(f"the test of Spark needs java {JAVA_VERSION_MIN}: apt-get install default-jre-headless")
    if not SPARK_PYTHON.exists():
        step_aside("the test of Spark needs target/spark-venv: make spark-venv")
    running = Spark(tmp_path_factory.mktemp("spark") / "log")
    yield running
    running.close()


def fill_and_ask(server: Server, tally_binary, name: str) -> dict:
    """A table, and the commands of `tally schema` for it, by engine."""
    fill(server, TABLES[name])
    printed = schema(server, tally_binary)
    assert (printed.returncode, printed.stderr) == (0, "")
    by_engine = commands(printed.stdout)
    assert list(by_engine) == [*ENGINES, "Spark"]
    return by_engine


@pytest.mark.parametrize("name", TABLES)
def test_each_engine_finds_our_sums(server, tally_binary, name):
    by_engine = fill_and_ask(server, tally_binary, name)
    for column, expected in SUMS[name].items():
        for file_format in ("csv", "parquet"):
            reply = table(server).ColumnSum(table_pb2.ColSumReq(column=column, format=file_format))
            assert (reply.total, reply.error) == (expected, "")
        for engine, sum_in in ENGINES.items():
            assert sum_in(by_engine[engine], column) == expected, (engine, column, by_engine[engine])


@pytest.mark.parametrize("name", TABLES)
def test_spark_finds_our_sums(server, tally_binary, spark, name):
    command = fill_and_ask(server, tally_binary, name)["Spark"]
    assert spark.sums(command, list(SUMS[name])) == list(SUMS[name].values()), command


def test_duckdb_does_not_read_what_it_would_change(server, tally_binary):
    """It merges int64 and boolean into int64, before any cast: `true` would become 1."""
    fill(server, [b"k,x\n1,7\n", b"k,x\n2,true\n", b"k,x\n3,1.5\n"])
    by_engine = commands(schema(server, tally_binary).stdout)
    rows = duckdb.sql(by_engine["DuckDB"])
    assert rows.columns == ["k"] and sorted(rows.fetchall()) == [(1,), (2,), (3,)]
    assert sorted(value_of(by_engine["Polars"]).collect()["x"].to_list()) == ["1.5", "7", "true"]


def test_a_table_of_many_columns(server, tally_binary):
    """Columns whose types differ are read as text, wherever they are; integers and doubles as doubles, however large."""
    names = [f"c{index:03}" for index in range(300)]
    ones, large = ["1"] * 300, str(2**53 + 1)
    for first, last in ((ones[0], ones[0]), ("1.5", "text"), (large, "true")):
        fill(server, [(",".join(names) + "\n" + ",".join([first, *ones[1:-1], last]) + "\n").encode()])
    printed = schema(server, tally_binary)
    assert (printed.returncode, printed.stderr) == (0, "")
    by_engine = commands(printed.stdout)
    for engine, rows in (
        ("Polars", lambda command: value_of(command).collect().to_dicts()),
        ("pyarrow", lambda command: value_of(command).to_table().to_pylist()),
    ):
        found = rows(by_engine[engine])
        assert sorted(row["c299"] for row in found) == ["1", "text", "true"], engine
        assert sorted(row["c000"] for row in found) == [1, 1.5, float(2**53)], engine
        assert [row["c298"] for row in found] == [1] * 3, engine
    assert sorted(duckdb.sql(f'SELECT c299 FROM ({by_engine["DuckDB"]})').fetchall()) == [("1",), ("text",), ("true",)]
    # With more of them than a command names, there is none.
    fill(server, [(",".join(names) + "\n" + ",".join(["text"] * 300) + "\n").encode()])
    printed = schema(server, tally_binary).stdout
    assert commands(printed) == {} and printed.endswith("more than 256 columns would have to be read as text: there are no commands\n")


def test_columns_without_values_have_the_type_of_earlier_parts(server):
    """So that what worked before they came works after, without any option."""
    fill(server, EMPTY_COLUMNS)
    types = [{column["name"]: column["type"] for column in part["columns"]} for part in server.parts()]
    assert types == [
        {"id": "int64", "qty": "int64", "note": "utf8"},
        {"id": "int64", "qty": "int64"},
        {"note": "utf8", "id": "int64", "later": "int64"},
        {"later": "int64", "id": "int64"},
        {"id": "int64", "qty": "int64", "note": "utf8", "later": "int64"},
    ]
    first_two = [str(server.data / "parts" / f"{part}.parquet") for part in (1, 2)]
    assert duckdb.sql(f"SELECT sum(qty), sum(id) FROM read_parquet({first_two})").fetchall() == [(2, 13)]
    assert polars.scan_parquet(first_two, extra_columns="ignore", missing_columns="insert").select("qty").sum().collect().item() == 2


@pytest.mark.parametrize("values", ["1.5", "true", "2024-01-01", "2024-01-01T00:00:00", "2024-01-01T00:00:00Z", "x", "7"])
def test_a_column_without_values_adds_nothing_whatever_its_type(start_server, tmp_path, values):
    server = start_server(tmp_path / "data")
    fill(server, [f"a,b\n{values},1\n".encode(), b"a,b\n,2\n"])
    server.stop()
    # The same after a restart, and large as well as small.
    server = start_server(tmp_path / "data")
    fill(server, [b"a,b\n" + b",3\n" * 100_000, b"a,b\n"])
    types = [part["columns"][0]["type"] for part in server.parts()]
    assert len(types) == 4 and len(set(types)) == 1
    server.stop()
    for suffix in ("csv", "parquet", "json", "sums"):  # the one part that has a value is gone, as if it was never there
        (tmp_path / "data" / "parts" / f"1.{suffix}").unlink(missing_ok=True)
    server = start_server(tmp_path / "data")
    for file_format in ("csv", "parquet"):
        reply = table(server).ColumnSum(table_pb2.ColSumReq(column="a", format=file_format))
        assert (reply.total, reply.error) == (0, "")
    blocks = tally(server).GroupSum(tally_pb2.GroupSumRequest(by=["b"], sum=["a"]))
    assert [(*group.cells, *group.totals) for block in blocks for group in block.groups] == [("2", 0), ("3", 0)]


def test_check_fails_if_parts_disagree(server, tally_binary):
    assert schema(server, tally_binary, "--check").returncode == 0
    fill(server, EMPTY_COLUMNS)
    for flags in (["--check"], ["--check", "--json"]):
        agreed = schema(server, tally_binary, *flags)
        assert (agreed.returncode, agreed.stdout, agreed.stderr) == (0, "", "")
    fill(server, WITH_DOUBLES[len(EMPTY_COLUMNS) :])
    checked = schema(server, tally_binary, "--check")
    assert (checked.returncode, checked.stdout) == (1, "qty: int64 in 4 of 7 parts (1, 2, 5, 7), float64 in 1 (6)\n")
    assert checked.stderr.startswith("error: 1 column has different types in different parts")
    checked = schema(server, tally_binary, "--check", "--json")
    types = [
        {"type": "int64", "parts": 4, "first_parts": [1, 2, 5, 7]},
        {"type": "float64", "parts": 1, "first_parts": [6]},
    ]
    assert checked.returncode == 1
    assert json.loads(checked.stdout) == {"column": "qty", "types": types, "table_parts": 7}


def test_the_schema_of_a_table(server, tally_binary):
    empty = schema(server, tally_binary)
    assert (empty.returncode, empty.stdout) == (0, "")
    fill(server, [b" n ,x\n1,a\n"] * 7 + [b"x\nb\n"])
    lines = schema(server, tally_binary).stdout.splitlines()
    assert lines[:3] == ['" n ": int64 in 7 of 8 parts (1, 2, 3, 4, 5, …)', "x: utf8 in 8 of 8 parts (1, 2, 3, 4, 5, …)", ""]
    columns = [json.loads(line) for line in schema(server, tally_binary, "--json").stdout.splitlines()]
    assert [column["column"] for column in columns] == [" n ", "x"]


# --- a table that is packed meanwhile -----------------------------------------------------------------------


def duckdb_sum(files: list) -> int:
    return int(duckdb.sql(f"SELECT sum(x) FROM read_parquet({files}, union_by_name = true)").fetchall()[0][0])


def polars_sum(files: list) -> int:
    return polars.scan_parquet(files, extra_columns="ignore").select(polars.col("x").sum()).collect().item()


def pyarrow_sum(files: list) -> int:
    return pyarrow.compute.sum(pyarrow.dataset.dataset(files).to_table(columns=["x"])["x"]).as_py()


SUMS_OF_FILES = {"DuckDB": duckdb_sum, "Polars": polars_sum, "pyarrow": pyarrow_sum}


def listed_files(server: Server, tally_binary, *flags) -> list:
    command = [tally_binary, "files", "--server", server.address, "--data", server.data, "--json", *flags]
    listed = subprocess.run(command, env=clean_environment(), capture_output=True, encoding="utf-8", timeout=60)
    assert (listed.returncode, listed.stderr) == (0, "")
    return [json.loads(line) for line in listed.stdout.splitlines()]


def server_sum(server: Server, file_format: str = "parquet") -> int:
    reply = table(server).ColumnSum(table_pb2.ColSumReq(column="x", format=file_format))
    assert reply.error == ""
    return reply.total


def test_engines_read_one_moment_while_the_table_is_packed(start_server, tally_binary, tmp_path):
    """In each row x is 1. Every list has the rows of one moment, and each engine finds exactly these, whatever happens meanwhile."""
    server = start_server(tmp_path / "data", "--pack-above", "50", "--durability", "none")
    stream(server, b"x,y\n1,a\n")
    is_over, failures = threading.Event(), []

    def upload() -> None:
        try:
            while not is_over.is_set():
                stream(server, b"x,y\n1,a\n1,b\n")
                stream(server, b"y,x\na,1\n")
        except grpc.RpcError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=upload) for _ in range(3)]
    for thread in threads:
        thread.start()
    segments = set()
    try:
        for number in range(200):
            links = tmp_path / f"links-{number}"
            before = server_sum(server)
            files = listed_files(server, tally_binary, "--link", links)
            after = server_sum(server, "csv")
            rows = sum(file["rows"] for file in files)
            assert before <= rows <= after
            for engine, sum_of in SUMS_OF_FILES.items():
                assert sum_of([file["path"] for file in files]) == rows, engine
            assert sorted(links.iterdir()) == sorted(Path(file["path"]) for file in files)
            shutil.rmtree(links)
            segments |= {Path(file["path"]).name for file in files if file["parts"] > 1}
            if len(segments) >= 4:
                break
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert failures == [] and len(segments) >= 4


@pytest.mark.parametrize("engine", SUMS_OF_FILES)
def test_what_a_list_has_is_still_there_when_it_was_replaced(start_server, tally_binary, tmp_path, engine):
    server = start_server(tmp_path / "data")
    for number in range(1, 31):
        stream(server, f"x,y\n{1 << number},a\n".encode())
    total = server_sum(server)
    listed = [file["path"] for file in listed_files(server, tally_binary)]
    assert SUMS_OF_FILES[engine](listed) == total
    tally(server).Pack(tally_pb2.PackRequest())
    assert not any(Path(path).exists() for path in listed)
    moved = [str(server.data / "removed" / Path(path).name) for path in listed]
    assert SUMS_OF_FILES[engine](moved) == total
    assert SUMS_OF_FILES[engine]([file["path"] for file in listed_files(server, tally_binary)]) == total
