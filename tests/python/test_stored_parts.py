"""Stored parts, as other programs see them: pyarrow, DuckDB and Polars read parts/*.parquet and find what was sent.

What was sent is parsed here with Python's csv module and typed by the few lines of `column_type`, so nothing
of the server's own reading is trusted. Every file goes in by the unary call and by the stream.
"""

import csv
import datetime
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import polars
import pyarrow.dataset
import pyarrow.parquet
import pytest
import table_pb2
import tally_pb2
import xxhash
from conftest import INPUTS, ROOT, step_aside, table, tally

SAMPLES = ROOT.parent / "shared" / "data"

# How each engine calls the types of a receipt.
ARROW = {
    "int64": "int64",
    "float64": "double",
    "boolean": "bool",
    "date32": "date32[day]",
    "timestamp": "timestamp[us]",
    "timestamp_utc": "timestamp[us, tz=UTC]",
    "utf8": "string",
}
DUCKDB = {
    "int64": "BIGINT",
    "float64": "DOUBLE",
    "boolean": "BOOLEAN",
    "date32": "DATE",
    "timestamp": "TIMESTAMP",
    "timestamp_utc": "TIMESTAMP WITH TIME ZONE",
    "utf8": "VARCHAR",
}
POLARS = {
    "int64": polars.Int64,
    "float64": polars.Float64,
    "boolean": polars.Boolean,
    "date32": polars.Date,
    "timestamp": polars.Datetime("us"),
    "timestamp_utc": polars.Datetime("us", "UTC"),
    "utf8": polars.String,
}

TYPES_CSV = b'''\
id,int64,float64,boolean,date32,timestamp,timestamp_utc,utf8,none,zeros,plus,large,spaced,mixed
1,0,1.5,true,2024-02-29,2024-02-29T12:34:56,2024-02-29T12:34:56.123456Z,plain,,007,+5,9223372036854775808, 5,1
2,-9223372036854775808,-0.25,false,1969-12-31,1969-12-31T23:59:59,1969-12-31T23:59:59.999999Z,"a,b",,1,1,1,6,x
3,9223372036854775807,1e10,true,1600-01-01,1600-01-01T00:00:00,1600-01-01T00:00:00.000001Z,"""b""",,1,2,2,7,.5
4,,,,,,,,,,,,,
5,42,3,false,9999-12-31,9999-12-31T23:59:59,9999-12-31T23:59:59.000000Z,\xe2\x82\xac,,1,3,3,8,true
6,-1,0.1,true,1970-01-01,1970-01-01T00:00:00,1970-01-01T00:00:00.000000Z,,,1,4,4,9,2024-02-29
'''
TYPES = (
    ["int64", "int64", "float64", "boolean", "date32", "timestamp", "timestamp_utc"]
    + ["utf8", "int64"]  # text, and a column without values
    + ["utf8"] * 5  # values that only look like numbers
)

FILES = {
    "types": TYPES_CSV,
    "one column": b"x\n1\n2\n3\n",
    "nulls": b'a,b\n,x\n"",\n3,""\n',
    "a row that is one quoted nothing": b'a\n1\n""\n3\n',
    "empty column name": b",x\n1,2\n3,4\n",
    "names that need quotes": b'"a,b","c ""d""","line\nbreak",\xc3\xa4 \xe2\x82\xac, blank \n1,2,3,4,5\n',
    "zero rows": b"a,b,c\n",
    "zero rows, no newline": b"a",
    "quoted newlines": b'k,v\n1,"two\nlines"\n2,"three\r\nlines\rhere"\n3,"\n"\n',
    "crlf": b"a,b\r\n1,x\r\n2,y\r\n",
    "cr": b"a,b\r1,x\r2,y\r",
    "mixed row ends": b"a,b\r\n1,x\n2,y\r3,z",
    "empty lines": b"\n\na,b\n\n1,2\r\n\r\n3,4\n\n",
    "byte order mark": b"\xef\xbb\xbfa,b\n1,2\n",
    "all null": b"a,b\n,\n,\n",
    "4,096 columns": (
        ",".join(f"c{i}" for i in range(4096))
        + "\n"
        + "\n".join(",".join(str(i * row) if i % 3 else f"text {i}" for i in range(4096)) for row in range(3))
    ).encode(),
    "many rows": b"n,square,name\n" + b"".join(b"%d,%d,name %d\n" % (i, i * i, i % 7) for i in range(50_000)),
}


class Sent(NamedTuple):
    """A CSV file as Python's csv module reads it, with typed values, column by column."""

    names: list[str]
    types: list[str]
    columns: list[list[Any]]
    rows_count: int


def parse(data: bytes) -> Sent:
    text = io.StringIO(data.decode("utf-8-sig"), newline="")
    names, *rows = [row for row in csv.reader(text, strict=True) if row]
    cells = [[row[i] for row in rows] for i in range(len(names))]
    types = [column_type(column) for column in cells]
    columns = [[value_of(cell, type) for cell in column] for column, type in zip(cells, types)]
    return Sent(names, types, columns, len(rows))


def column_type(cells: list[str]) -> str:
    """The type of a column by the rules of the documentation, one cell at a time."""
    values = [cell for cell in cells if cell != ""]
    for type in ("int64", "float64", "boolean", "date32", "timestamp", "timestamp_utc"):
        if values and all(is_of_type(value, type) for value in values):
            return type
    return "utf8" if values else "int64"  # no earlier part has a column of this name


def is_of_type(cell: str, type: str) -> bool:
    if type == "int64":
        return re.fullmatch(r"0|-?[1-9][0-9]*", cell) is not None and -(2**63) <= int(cell) < 2**63
    if type == "float64":
        number = re.fullmatch(r"-?((?:0|[1-9][0-9]*)(?:\.[0-9]+)?)(?:[eE][+-]?[0-9]+)?", cell)
        return number is not None and len(number[1].replace(".", "").lstrip("0")) <= 17
    if type == "boolean":
        return cell in ("true", "false")
    shape = {
        "date32": r"\d{4}-\d\d-\d\d",
        "timestamp": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?",
        "timestamp_utc": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z",
    }
    if not re.fullmatch(shape[type], cell):
        return False
    try:
        value_of(cell, type)
        return True
    except ValueError:
        return False


def value_of(cell: str, type: str) -> Any:
    if cell == "":
        return None
    if type == "boolean":
        return cell == "true"
    if type == "timestamp_utc":
        naive = datetime.datetime.fromisoformat(cell[:-1])
        return naive.replace(tzinfo=datetime.timezone.utc)
    convert = {
        "int64": int,
        "float64": float,
        "date32": datetime.date.fromisoformat,
        "timestamp": datetime.datetime.fromisoformat,
        "utf8": str,
    }
    return convert[type](cell)


def send_unary(server, data: bytes) -> int:
    """Uploads and returns the id of the new part."""
    before = {receipt["part"] for receipt in server.parts()}
    reply = table(server).Upload(table_pb2.UploadReq(csv_data=data))
    assert reply.error == ""
    (part,) = {receipt["part"] for receipt in server.parts()} - before
    return part


def send_stream(server, data: bytes) -> int:
    chunk_bytes = max(1, len(data) // 7)  # cut anywhere, also inside cells and characters
    chunks = (tally_pb2.UploadChunk(data=data[i : i + chunk_bytes]) for i in range(0, len(data), chunk_bytes))
    return tally(server).Upload(chunks).part


def by_pyarrow(path: Path):
    found = pyarrow.parquet.read_table(path)
    types = [str(type) for type in found.schema.types]
    return found.column_names, types, [column.to_pylist() for column in found.columns]


def by_duckdb(path: Path):
    with duckdb.connect() as connection:
        # DuckDB converts time stamps with a zone to the zone of the session.
        connection.execute("SET TimeZone = 'UTC'")
        relation = connection.read_parquet(str(path))
        types = [str(type) for type in relation.types]
        # By way of Arrow: DuckDB decodes the file, and Arrow's values need no other packages for time zones.
        columns = [column.to_pylist() for column in relation.to_arrow_table().columns]
        return relation.columns, types, columns


def by_polars(path: Path):
    found = polars.read_parquet(path, glob=False)
    return found.columns, found.dtypes, [column.to_list() for column in found.get_columns()]


def nameless(engine: str, index: int) -> str:
    """How an engine calls a column whose name is empty; DuckDB does not allow that."""
    return f"C{index}" if engine == "duckdb" else ""


ENGINES = {"pyarrow": (by_pyarrow, ARROW), "duckdb": (by_duckdb, DUCKDB), "polars": (by_polars, POLARS)}


def check_part(server, part: int, data: bytes) -> None:
    """One part against what was sent: the files, the receipt, and the Parquet file as each engine sees it."""
    sent = parse(data)
    folder = server.data / "parts"
    assert (folder / f"{part}.csv").read_bytes() == data

    (receipt,) = [receipt for receipt in server.parts() if receipt["part"] == part]
    assert receipt["rows"] == sent.rows_count
    assert receipt["columns"] == [
        {"name": name, "type": type, "nulls": values.count(None)}
        for name, type, values in zip(sent.names, sent.types, sent.columns)
    ]
    for suffix in ("csv", "parquet"):
        kept = (folder / f"{part}.{suffix}").read_bytes()
        assert receipt[suffix] == {"bytes": len(kept), "xxh3": xxhash.xxh3_64_hexdigest(kept)}

    for engine, (read, type_names) in ENGINES.items():
        names, types, columns = read(folder / f"{part}.parquet")
        expected_names = [name or nameless(engine, index) for index, name in enumerate(sent.names)]
        assert list(names) == expected_names, engine
        assert types == [type_names[type] for type in sent.types], engine
        for name, found, expected in zip(sent.names, columns, sent.columns):
            assert found == expected, f'{engine}, column "{name}"'


@pytest.mark.parametrize("send", [send_unary, send_stream])
@pytest.mark.parametrize("name", FILES)
def test_every_engine_finds_what_was_sent(server, name, send):
    part = send(server, FILES[name])
    check_part(server, part, FILES[name])
    assert server.leftovers() == []


def test_types_are_those_of_the_design():
    """Checks `column_type` itself against types written by hand."""
    assert parse(TYPES_CSV).types == TYPES


@pytest.mark.parametrize("name", ["brfss_sample.csv", "plays_100k.csv"])
def test_every_engine_finds_real_rows(server, name):
    path = SAMPLES / name
    if not path.exists():
        step_aside(f"{name} is not beside the project")
    data = path.read_bytes()
    for send in (send_unary, send_stream):
        check_part(server, send(server, data), data)


@pytest.mark.parametrize("path", sorted(INPUTS.glob("*.csv")), ids=lambda path: path.name)
def test_every_engine_finds_the_samples(server, path):
    check_part(server, send_unary(server, path.read_bytes()), path.read_bytes())


def numbered(first: int, count: int) -> bytes:
    rows = (f"{i},{i / 4},{'true' if i % 2 else ''},name {i}" for i in range(first, first + count))
    return ("id,quarter,odd,name\n" + "\n".join(rows) + "\n").encode()


def test_the_parts_are_one_table_by_their_glob(server):
    """Twelve parts: an engine that sorts file names has part 10 before part 2, so rows are sorted by id."""
    for part in range(12):
        send_unary(server, numbered(part * 100, 100))
    glob = str(server.data / "parts" / "*.parquet")
    expected = [(i, i / 4, True if i % 2 else None, f"name {i}") for i in range(1200)]

    dataset = pyarrow.dataset.dataset(sorted((server.data / "parts").glob("*.parquet")), format="parquet")
    rows = dataset.to_table().sort_by("id").to_pydict()
    assert list(zip(*rows.values())) == expected
    assert duckdb.sql(f"SELECT * FROM '{glob}' ORDER BY id").fetchall() == expected
    assert polars.scan_parquet(glob).sort("id").collect().rows() == expected


def test_parts_of_different_columns_are_one_table_by_name(server):
    send_unary(server, b"x,y,z\n1,2,3\n4,5,6\n")
    send_unary(server, b"x,y\n5,10\n0,20\n")
    send_unary(server, b"z,w\n7,1.5\n")
    glob = str(server.data / "parts" / "*.parquet")

    union = f"read_parquet('{glob}', union_by_name = true)"
    sums = duckdb.sql(f"SELECT sum(x), sum(y), sum(z), sum(w), count(*) FROM {union}").fetchall()
    assert sums == [(10, 37, 16, 1.5, 5)]
    for column, total in (("x", 10), ("y", 37), ("z", 16)):
        for format in ("csv", "parquet"):
            reply = table(server).ColumnSum(table_pb2.ColSumReq(column=column, format=format))
            assert (reply.total, reply.error) == (total, "")


def test_list_parts_says_what_the_receipts_say(server):
    for data in (FILES["types"], FILES["zero rows"], FILES["quoted newlines"]):
        send_stream(server, data)
    listed = [
        {
            "part": receipt.part,
            "rows": receipt.rows,
            "columns": [
                {"name": c.name, "type": tally_pb2.ColumnType.Name(c.type).lower(), "nulls": c.nulls}
                for c in receipt.columns
            ],
            "csv": {"bytes": receipt.csv.bytes, "xxh3": receipt.csv.xxh3},
            "parquet": {"bytes": receipt.parquet.bytes, "xxh3": receipt.parquet.xxh3},
            "uploaded_at": receipt.uploaded_at,
        }
        for receipt in tally(server).ListParts(tally_pb2.ListPartsRequest())
    ]
    on_disk = [{name: receipt[name] for name in listed[0]} for receipt in server.parts()]
    assert len(listed) == 3
    assert listed == on_disk


def test_list_parts_begins_after_an_id_and_ends_at_the_limit(server):
    parts = [send_stream(server, FILES["one column"]) for _ in range(5)]

    def listed(after: int, limit: int) -> list[int]:
        return [r.part for r in tally(server).ListParts(tally_pb2.ListPartsRequest(after=after, limit=limit))]

    assert listed(0, 0) == parts
    assert listed(parts[1], 0) == parts[2:]
    assert listed(parts[1], 2) == parts[2:4]
    assert listed(parts[4], 0) == []


def test_a_receipt_says_when(server):
    before = datetime.datetime.now(datetime.timezone.utc)
    send_unary(server, b"x\n1\n")
    after = datetime.datetime.now(datetime.timezone.utc)
    (receipt,) = server.parts()
    assert receipt["format"] == 2
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", receipt["uploaded_at"])
    uploaded_at = datetime.datetime.fromisoformat(receipt["uploaded_at"].replace("Z", "+00:00"))
    assert before <= uploaded_at <= after
