"""Makes the files that are measured, from seeds, into target/bench/, and keeps them for later runs.

A folder is complete if it has a `made.json`, which is written last. Data folders of Tally are made again when the binary
has changed, because another version may store the same table differently.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

import contenders
import server
import xxhash
import bigdata  # the client whose rows these are; contenders put its folder on the path
from contenders import BENCH, Peer, Tally, Wrong, empty
from memory import Growth, Peak

CLIENTS = 2
TABLE_FILES = 10  # of the tables of plays and of the survey


@dataclass(frozen=True)
class Size:
    """How much of everything is measured. The goals apply to FULL."""

    name: str
    batches: int  # files of bigdata.py
    batch_rows: int
    wide_files: int
    wide_rows: int  # of each file
    parts: int  # small parts in the table of `parts-*`
    start_parts: Tuple[int, int]  # parts in the two tables of `start-*`
    uploads: int  # small uploads of one run, --durability none
    synced_uploads: int  # the same, --durability fsync
    plays_repeats: int  # times 100,000 rows, in the file of `groups-file-few`
    numstore_requests: int  # requests of each client
    sums: int  # parquet sums of all clients in `sums-many-clients`
    sums_part_rows: int  # rows of each of its parts
    packed_parts: int  # packed parts in the table of `*-1m*`
    most_parts: int  # the same, of `*-10m*`
    minutes: float  # of `small-*-sustained`


FULL = Size(
    "full",
    batches=400,
    batch_rows=250_000,
    wide_files=8,
    wide_rows=190_000,
    parts=10_000,
    start_parts=(10_000, 100_000),
    uploads=8_000,
    synced_uploads=2_000,
    plays_repeats=300,
    numstore_requests=10_000,
    sums=4_000,
    sums_part_rows=20_000,
    packed_parts=1_000_000,
    most_parts=10_000_000,
    minutes=10,
)
QUICK = Size(
    "quick",
    batches=20,
    batch_rows=25_000,
    wide_files=4,
    wide_rows=5_000,
    parts=500,
    start_parts=(500, 2_000),
    uploads=500,
    synced_uploads=200,
    plays_repeats=5,
    numstore_requests=1_000,
    sums=400,
    sums_part_rows=2_000,
    packed_parts=10_000,
    most_parts=30_000,
    minutes=0.1,
)


@dataclass(frozen=True)
class Table:
    """CSV files with the same columns, and the sums of these columns."""

    folder: Path
    columns: Dict[str, str]  # name -> "int64" or "utf8"
    sums: Dict[str, int]  # of the columns whose sums are measured
    newlines_in_cells: bool

    @property
    def files(self) -> List[Path]:
        return sorted((self.folder / "csv").glob("*.csv"))

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def for_peers(self) -> dict:
        files = [str(file) for file in self.files]
        return {"files": files, "columns": self.columns, "newlines_in_cells": self.newlines_in_cells}


def made(folder: Path, make: Callable[[Path], dict], stamp: str = "", continues: bool = False) -> dict:
    """Makes a folder, unless an earlier run with the same stamp has done so; returns what make(folder) returned. With
    `continues`, make() goes on with what an interrupted run with the same stamp has left.
    """
    record, begun = folder / "made.json", folder / "begun.json"
    if record.exists():
        known = json.loads(record.read_text())
        if known["stamp"] == stamp:
            return known["made"]
    print(f"making {folder.relative_to(BENCH)}", file=sys.stderr)
    if not continues or not begun.exists() or json.loads(begun.read_text()) != stamp:
        empty(folder).mkdir()
        begun.write_text(json.dumps(stamp))
    record.unlink(missing_ok=True)
    result = make(folder)
    record.write_text(json.dumps({"stamp": stamp, "made": result}))
    return result


@functools.cache
def binary_hash() -> str:
    return hashlib.sha256(server.BINARY.read_bytes()).hexdigest()


# --- the rows of clients/bigdata.py: 100,000,000 short rows of integers ------------------------------------


def bigdata_table(size: Size) -> Table:
    folder = BENCH / size.name / "bigdata"
    sums = made(folder, functools.partial(make_bigdata, size))
    return Table(folder, dict.fromkeys(bigdata.COLUMNS, "int64"), sums, False)


def make_bigdata(size: Size, folder: Path) -> dict:
    (folder / "csv").mkdir()
    jobs = [(folder / "csv" / f"{index:04}.csv", index, size.batch_rows) for index in range(size.batches)]
    return total_sums(jobs, write_batch)


def write_batch(path: Path, index: int, rows: int) -> dict:
    batch = bigdata.Batch(1, index, rows)
    with open(path, "wb") as file:
        for chunk in batch.chunks():
            file.write(chunk.data)
    return batch.sums


def total_sums(jobs: List[tuple], write: Callable[..., dict]) -> dict:
    """Writes one file for each job, in two processes; returns the sums over all files."""
    # Spawned, because gRPC's threads do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(CLIENTS) as pool:
        sums = pool.starmap(write, jobs)
    return {column: sum(of_file[column] for of_file in sums) for column in sums[0]}


# --- the same rows in a single file -----------------------------------------------------------------------


def one_file_table(size: Size) -> Table:
    source = bigdata_table(size)
    folder = BENCH / size.name / "one-file"
    made(folder, functools.partial(make_one_file, source))
    return Table(folder, source.columns, source.sums, False)


def make_one_file(source: Table, folder: Path) -> dict:
    (folder / "csv").mkdir()
    with open(folder / "csv" / "all.csv", "wb") as whole:
        for index, file in enumerate(source.files):
            with open(file, "rb") as part:
                header = part.readline()
                if index == 0:
                    whole.write(header)
                shutil.copyfileobj(part, whole, 1024 * 1024)
    return {}


# --- wide and quoted --------------------------------------------------------------------------------------

WIDE_COLUMNS = {f"c{index:02}": "int64" if index % 4 == 0 else "utf8" for index in range(40)}
WIDE_COLUMN = "c20"  # in the middle of the row
WIDE_POOL_ROWS = 5_000  # each row of the file is one of these, chosen at random


def wide_table(size: Size) -> Table:
    folder = BENCH / size.name / "wide"
    sums = made(folder, functools.partial(make_wide, size))
    return Table(folder, WIDE_COLUMNS, sums, True)


def make_wide(size: Size, folder: Path) -> dict:
    (folder / "csv").mkdir()
    jobs = [(folder / "csv" / f"{index:04}.csv", index, size.wide_rows) for index in range(size.wide_files)]
    return total_sums(jobs, write_wide)


def write_wide(path: Path, index: int, rows: int) -> dict:
    numbers = random.Random(f"wide:{index}")
    pool = [wide_row(numbers) for _ in range(WIDE_POOL_ROWS)]
    total = 0
    with open(path, "w", newline="") as file:
        file.write(",".join(WIDE_COLUMNS) + "\n")
        for start in range(0, rows, 1_000):
            drawn = numbers.choices(pool, k=min(1_000, rows - start))
            file.writelines(text for text, _ in drawn)
            total += sum(value for _, value in drawn)
    return {WIDE_COLUMN: total}


WORDS = (
    "amber basin cedar delta ember fjord grove haven inlet jetty kiosk larch mango north ocean prism".split()
)


def wide_row(numbers: random.Random) -> Tuple[str, int]:
    """A row of 40 cells and the value of WIDE_COLUMN in it. One cell in five is quoted; of the quoted text cells one in four
    has a comma, a quote or a newline.
    """
    cells, value = [], 0
    for name, kind in WIDE_COLUMNS.items():
        if kind == "int64":
            number = numbers.randrange(-1_000_000, 1_000_000)
            value = number if name == WIDE_COLUMN else value
            text = str(number)
        else:
            text = " ".join(numbers.choices(WORDS, k=numbers.randrange(1, 4)))
        if numbers.random() < 0.2:
            if kind == "utf8" and numbers.random() < 0.25:
                text += numbers.choice([", too", ' ""so""', "\nand more"])
            text = f'"{text}"'
        cells.append(text)
    return ",".join(cells) + "\n", value


# --- plays: few columns, many groups ----------------------------------------------------------------------

PLAYS_BY, PLAYS_SUM = ["Song", "Date"], "Number of Plays"


def plays_file(size: Size) -> Path:
    folder = BENCH / size.name / "plays"
    made(folder, functools.partial(make_plays, size))
    return folder / "plays.csv"


def make_plays(size: Size, folder: Path) -> dict:
    """The header, then the same 100,000 rows many times. Lines end with CRLF, which all engines read in the same
    way.
    """
    header, rows = ",".join([*PLAYS_BY, PLAYS_SUM]).encode(), plays_rows()
    with open(folder / "plays.csv", "wb") as file:
        file.write(header + b"\r\n")
        for _ in range(size.plays_repeats):
            file.write(rows)
    return {}


def plays_rows() -> bytes:
    """100,000 rows of 33 bytes on average, in about 29,000 groups: 1,000 songs, one in 30 with a comma, on 30 days."""
    numbers = random.Random("plays")
    songs = []
    for index in range(1_000):
        title = " ".join(numbers.choices(WORDS, k=numbers.choice((1, 2, 3, 3)))).title()
        songs.append(f'"{title}, {index}"' if index % 30 == 0 else f"{title} {index}")
    lines = []
    for _ in range(100_000):
        song, day = numbers.choice(songs), numbers.randrange(1, 31)
        lines.append(f"{song},2023-05-{day:02},{numbers.randrange(1, 10_000)}\r\n")
    return "".join(lines).encode()


# --- visits: nearly as many groups as rows -----------------------------------------------------------------

VISITS_BY, VISITS_SUM = ["user"], "n"


def visits_count(size: Size) -> int:
    """Two thirds of the rows of `plays_file`."""
    return size.plays_repeats * 200_000 // 3


def most_users(size: Size) -> int:
    """If each visit is by one of them, 97 % of the users come once."""
    return visits_count(size) * 50 // 3


def visits_file(size: Size, users_count: Optional[int] = None) -> Path:
    """Visits of so many users, or of the most."""
    folder = BENCH / size.name / ("visits" if users_count is None else f"visits-of-{users_count}")
    made(folder, functools.partial(make_visits, visits_count(size), users_count or most_users(size)))
    return folder / "visits.csv"


def make_visits(rows_count: int, users_count: int, folder: Path) -> dict:
    numbers = random.Random("visits")
    with open(folder / "visits.csv", "w", encoding="utf-8") as file:
        file.write("user,n\n")
        for start in range(0, rows_count, 100_000):
            rows = min(100_000, rows_count - start)
            users = numbers.choices(range(users_count), k=rows)
            file.writelines(f"user {user},{n}\n" for user, n in zip(users, numbers.choices(range(1, 10_000), k=rows)))
    return {}


def plays_table(size: Size) -> Table:
    """The rows of `plays_file` in 10 files."""
    folder = BENCH / size.name / "plays-table"
    sums = made(folder, functools.partial(make_plays_table, size))
    return Table(folder, {**dict.fromkeys(PLAYS_BY, "utf8"), PLAYS_SUM: "int64"}, sums, False)


def make_plays_table(size: Size, folder: Path) -> dict:
    header, rows = ",".join([*PLAYS_BY, PLAYS_SUM]).encode(), plays_rows()
    (folder / "csv").mkdir()
    repeats = size.plays_repeats // TABLE_FILES
    for index in range(TABLE_FILES):
        with open(folder / "csv" / f"{index:03}.csv", "wb") as file:
            file.write(header + b"\r\n")
            for _ in range(repeats):
                file.write(rows)
    total = sum(int(row.rsplit(b",", 1)[1]) for row in rows.splitlines())
    return {PLAYS_SUM: total * repeats * TABLE_FILES}


# --- a health survey: the columns and the kinds of values of the CDC's -------------------------------------

SURVEY_COLUMNS = [
    "YearStart",
    "LocationAbbr",
    "LocationDesc",
    "Topic",
    "Question",
    "Data_Value",
    "Sample_Size",
    "StratificationCategory1",
    "Stratification1",
]
SURVEY_QUESTION = "Percent of adults with habit number 3"
SURVEY_ROWS = 100_000  # that are repeated
SURVEY_REPEATS = 3  # in each file of the table


def survey_table(size: Size, files: int = TABLE_FILES, file_rows: int = 0) -> Table:
    """Files of `survey_rows`, by default 10 with 3,000,000 rows together."""
    file_rows = file_rows or SURVEY_ROWS * (SURVEY_REPEATS if size is FULL else 1)
    folder = BENCH / size.name / f"survey-{files}-of-{file_rows}"
    made(folder, functools.partial(make_survey, files, file_rows))
    return Table(folder, dict.fromkeys(SURVEY_COLUMNS, "utf8"), {}, False)


def make_survey(files: int, file_rows: int, folder: Path) -> dict:
    rows = survey_rows(min(file_rows, SURVEY_ROWS))
    (folder / "csv").mkdir()
    for index in range(files):
        with open(folder / "csv" / f"{index:03}.csv", "w", encoding="utf-8") as file:
            file.write(",".join(SURVEY_COLUMNS) + "\n")
            for _ in range(max(1, file_rows // SURVEY_ROWS)):
                file.write(rows)
    return {}


def survey_rows(count: int) -> str:
    """9 questions, 55 states, 28 stratifications in 6 categories; one value in ten is missing."""
    numbers = random.Random("survey")
    strata = [(f"Category {index % 6}", f"Group {index}") for index in range(28)]
    lines = []
    for _ in range(count):
        state, question = numbers.randrange(55), numbers.randrange(9)
        category, stratum = numbers.choice(strata)
        value = "" if numbers.random() < 0.1 else f"{numbers.uniform(5, 75):.1f}"
        cells = [numbers.randrange(2011, 2023), f"S{state:02}", f"State number {state}", f"Topic {question % 3}"]
        cells += [f"Percent of adults with habit number {question}", value, numbers.randrange(50, 30_000)]
        lines.append(",".join(map(str, [*cells, category, stratum])) + "\n")
    return "".join(lines)


# --- data folders ------------------------------------------------------------------------------------------


def tally_folder(table: Table) -> Path:
    """A data folder of Tally with the table in it. Its CSV files are hard links to those that the peers read, so that all
    read the same pages of the page cache.
    """
    folder = table.folder / "tally"
    made(folder, functools.partial(fill_tally, table), binary_hash())
    return folder / "data"


def fill_tally(table: Table, folder: Path) -> dict:
    with Tally(folder / "data", Peak(), "--durability", "none") as tally:
        parts = tally.upload(table.files, CLIENTS)
    for file in table.files:
        stored = folder / "data" / "parts" / f"{parts[file.stem]}.csv"
        if stored.stat().st_size != file.stat().st_size:
            raise Wrong(f"{stored} has another size than {file}, which was uploaded")
        link(file, stored)
    return {}


def p3_folder(table: Table) -> Path:
    """A data folder of the Python server with the table in it."""
    folder = table.folder / "p3"
    made(folder, functools.partial(fill_p3, table))
    return folder / "data"


def fill_p3(table: Table, folder: Path) -> dict:
    with contenders.P3Server(folder / "data") as p3:
        contenders.upload_load(p3.address, 1, table.files)
    for index, file in enumerate(table.files):  # a single client uploaded them in this order
        link(file, folder / "data" / f"{index:06}.csv")
    return {}


def peer_parquet(table: Table, peer: Peer) -> List[str]:
    """The table's Parquet files, written by the peer, one for each CSV file."""
    folder = table.folder / peer.engine
    made(folder, lambda folder: peer.prepare("convert", table=table.for_peers(), folder=folder) and {})
    return [str(file) for file in sorted(folder.glob("*.parquet"))]


def link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    os.link(source, target)


# --- many parts -------------------------------------------------------------------------------------------

SUMS_PARTS = 60  # of `sums-many-clients`
BASE_PARTS = 16  # all parts are hard links to the files of these: ext4 allows a file 65,000 names
SMALL_ROWS = 10


def small_files(folder: Path, count: int = BASE_PARTS, rows: int = SMALL_ROWS) -> Dict[Path, int]:
    """Writes files with rows of bigdata.py, each different; returns the sum of z in each."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{index:04}.csv" for index in range(count)]
    return {file: write_batch(file, index, rows)["z"] for index, file in enumerate(files)}


def many_parts(name: str, parts_count: int, rows: int = SMALL_ROWS) -> Tuple[Path, int]:
    """A data folder with many parts, and its sum of z. A few parts were uploaded, the others are hard links to them."""
    folder = BENCH / name / f"{parts_count}-parts-of-{rows}"
    total = made(folder, functools.partial(fill_many, parts_count, rows), binary_hash())["total"]
    return folder / "data", total


def fill_many(parts_count: int, rows: int, folder: Path) -> dict:
    files = small_files(folder / "csv", min(BASE_PARTS, parts_count), rows)
    with Tally(folder / "data", Peak(), "--durability", "none") as tally:
        tally.upload(list(files), 1)  # one client, so that the parts are in this order
    repeat_parts(folder / "data" / "parts", len(files), parts_count)
    totals = list(files.values())
    return {"total": sum(totals[index % len(totals)] for index in range(parts_count))}


def repeat_parts(parts: Path, from_count: int, to_count: int) -> None:
    """Adds parts until there are to_count: hard links to the files of earlier parts, with receipts of their own."""
    receipts = [json.loads((parts / f"{part}.json").read_text()) for part in range(1, from_count + 1)]
    for part in range(from_count + 1, to_count + 1):
        index = (part - 1) % from_count
        for kind in ("csv", "parquet", "sums"):
            original = parts / f"{index + 1}.{kind}"
            if kind != "sums" or original.exists():  # a small CSV has no list of checksums
                os.link(original, parts / f"{part}.{kind}")
        (parts / f"{part}.json").write_bytes(receipt_text({**receipts[index], "part": part}))


def receipt_text(receipt: dict) -> bytes:
    """The receipt as the server stores it: its last field is the checksum of what is before it (docs/disk-format.md)."""
    fields = {name: value for name, value in receipt.items() if name != "record_xxh3"}
    text = json.dumps(fields, separators=(",", ":")).encode()[:-1]
    return text + f',"record_xxh3":"{xxhash.xxh3_64_hexdigest(text)}"}}'.encode()


def p3_many_parts(name: str, parts_count: int) -> Path:
    """The same parts for the Python server."""
    folder = BENCH / name / f"p3-{parts_count}-parts"
    made(folder, functools.partial(fill_p3_many, parts_count))
    return folder / "data"


def fill_p3_many(parts_count: int, folder: Path) -> dict:
    files = list(small_files(folder / "csv"))
    with contenders.P3Server(folder / "data") as p3:
        contenders.upload_load(p3.address, 1, files)
    for part in range(len(files), parts_count):
        for kind in ("csv", "parquet"):
            source = folder / "data" / f"{part % len(files):06}.{kind}"
            os.link(source, folder / "data" / f"{part:06}.{kind}")
    return {}


# --- packed parts -----------------------------------------------------------------------------------------

CUT_PARTS = 10_000  # different parts: what is more than that repeats them
CUT_TOTAL = 5 * (len(bigdata.Z_VALUES) - 1)  # the sum of z in each part
UPLOAD_CLIENTS = 16
SLICE_PARTS = 100_000  # uploaded by one run of bench-load
FEW_PARTS = 100  # the same rows in so many parts
DELETED_SECONDS_MAX = 3600  # for replaced files


def cut_file(size: Size, parts_count: int = CUT_PARTS) -> Path:
    """A file of which bench-load sends pieces of SMALL_ROWS rows, each of which has the same sum of z. So a table's sum
    is known from the number of its parts, also if making it was interrupted.
    """
    folder = BENCH / size.name / f"cut-{parts_count}"
    made(folder, functools.partial(make_cut, parts_count))
    return folder / "rows.csv"


def make_cut(parts_count: int, folder: Path) -> dict:
    numbers, z_max = random.Random("cut"), len(bigdata.Z_VALUES) - 1
    with open(folder / "rows.csv", "wb") as file:
        file.write(bigdata.HEADER)
        for _ in range(parts_count * SMALL_ROWS // 2):
            z, *y = numbers.choice(bigdata.Z_VALUES), *numbers.choices(bigdata.Y_VALUES, k=2)
            file.write((bigdata.ROW * 2) % (y[0], z, y[1], z_max - z))
    return {}


@dataclass(frozen=True)
class Packed:
    """A data folder of packed parts of SMALL_ROWS rows."""

    data: Path
    total: int  # the sum of z
    peak_bytes: int  # the most memory of the server that made it


def packed_parts(size: Size, parts_count: int) -> Packed:
    """A data folder of packed parts, which were uploaded while they were packed. An interrupted run goes on."""
    folder = BENCH / size.name / f"{parts_count}-packed"
    fill = functools.partial(fill_packed, size, parts_count)
    known = made(folder, fill, binary_hash(), continues=True)
    return Packed(folder / "data", parts_count * CUT_TOTAL, known["peak_bytes"])


def fill_packed(size: Size, parts_count: int, folder: Path) -> dict:
    source, peak = cut_file(size), Peak()
    with Tally(folder / "data", peak, "--durability", "none") as tally:
        missing = parts_count - tally.parts_count
        with Growth(tally, folder / "growth.jsonl"):
            while missing > 0:
                uploads = min(missing, SLICE_PARTS)
                contenders.upload_load(tally.address, UPLOAD_CLIENTS, [source], uploads, SMALL_ROWS)
                missing -= uploads
            tally.pack()
    # What was replaced is deleted after the next start, which takes minutes where a disk deletes slowly.
    with Tally(folder / "data", peak, "--durability", "none") as tally:
        ends = time.monotonic() + DELETED_SECONDS_MAX
        while any((folder / "data" / "removed").iterdir()):
            if time.monotonic() > ends:
                raise Wrong(f"{folder}: there still are replaced files")
            time.sleep(1)
        if tally.figures()["unpacked_parts"] > 0 or tally.parts_count != parts_count:
            raise Wrong(f"{tally.figures()}, expected {parts_count} packed parts")
    return {"peak_bytes": peak.bytes}


def few_parts(size: Size, parts_count: int) -> Tuple[Path, int]:
    """As many rows as in parts_count parts of SMALL_ROWS rows, in FEW_PARTS parts."""
    folder = BENCH / size.name / f"{parts_count}-in-{FEW_PARTS}"
    made(folder, functools.partial(fill_few, size, parts_count // FEW_PARTS), binary_hash())
    return folder / "data", parts_count * CUT_TOTAL


def fill_few(size: Size, cut_parts: int, folder: Path) -> dict:
    source = cut_file(size, cut_parts)
    with Tally(folder / "data", Peak(), "--durability", "none") as tally:
        contenders.upload_load(tally.address, 1, [source], FEW_PARTS)
    return {}


def one_part(size: Size, parts_count: int) -> Path:
    """As many rows as in parts_count parts of SMALL_ROWS rows, in a single part."""
    folder = BENCH / size.name / f"{parts_count}-in-1"
    made(folder, functools.partial(fill_one, size, parts_count), binary_hash())
    return folder / "data"


def fill_one(size: Size, parts_count: int, folder: Path) -> dict:
    header, rows = cut_file(size, min(CUT_PARTS, parts_count)).read_bytes().split(b"\n", 1)
    with open(folder / "rows.csv", "wb") as file:
        file.write(header + b"\n")
        for _ in range(max(1, parts_count // CUT_PARTS)):
            file.write(rows)
    with Tally(folder / "data", Peak(), "--durability", "none") as tally:
        tally.upload([folder / "rows.csv"], 1)
    (folder / "rows.csv").unlink()
    return {}
