"""The server's memory does not grow with what it is sent: large uploads, wide tables, long cells, many calls.

Watched is RssAnon, the resident memory that is no file's: what a container with a limit is ended for. The
sizes are the subject, so they are real ones, and each test removes its data.
"""

import json
import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Dict, Iterable, Iterator, List

import grpc
import pytest
import requests
import table_pb2
import table_pb2_grpc
import tally_pb2
import tally_pb2_grpc
from conftest import CHANNEL_OPTIONS, Server, table, tally

MIB = 1024 * 1024
GROWTH_BYTES_MAX = 192 * MIB
ANONYMOUS_BYTES_MAX = 256 * MIB
SAMPLE_EVERY_SECONDS = 0.005
SAMPLES_MIN = 20
CHUNK_BYTES = 256 * 1024
CALL_SECONDS_MAX = 120

# Each group is of so many uploads and so many sums. The bound is room for the noise of an allocator, but for
# less than 25 KiB a call.
CALLS_OF_A_GROUP = 100
GROWTH_OF_TWO_GROUPS_BYTES_MAX = 8 * MIB

COLUMNS_MAX = 4096  # the server's default limits
CELL_BYTES_MAX = MIB


class MemoryWatch:
    """Samples a server's anonymous memory while a `with` block runs, and then holds it to the bounds."""

    def __init__(self, server: Server):
        self._server = server
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.samples: List[int] = []

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_EVERY_SECONDS):
            self.samples.append(self._server.anonymous_bytes())

    def __enter__(self) -> "MemoryWatch":
        self.before_bytes = self._server.anonymous_bytes()
        self._thread.start()
        return self

    def __exit__(self, exception_type, *_exception) -> None:
        self._done.set()
        self._thread.join()
        if exception_type is not None:
            return
        assert len(self.samples) >= SAMPLES_MIN, "too few samples to conclude anything from"
        peak_bytes = max(self.samples)
        said = f"anonymous memory went from {self.before_bytes / MIB:.1f} MiB to {peak_bytes / MIB:.1f} MiB"
        print(f"{said}; {len(self.samples)} samples")
        assert peak_bytes - self.before_bytes < GROWTH_BYTES_MAX, said
        assert peak_bytes < ANONYMOUS_BYTES_MAX, said


@pytest.fixture
def roomy_server(start_server, tmp_path):
    """A server whose data, gigabytes of it, is gone after the test. Without fsync: not about disks."""
    server = start_server(tmp_path / "data", "--durability", "none")
    try:
        yield server
        server.stop()
    finally:
        server.kill()
        shutil.rmtree(server.data)


def stream(server: Server, blocks: Iterable[bytes]) -> tally_pb2.Receipt:
    """Uploads on a new connection, as separate clients do."""
    with grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
        return tally_pb2_grpc.TallyStub(channel).Upload(chunks(blocks))


def chunks(blocks: Iterable[bytes]) -> Iterator[tally_pb2.UploadChunk]:
    for block in blocks:
        for start in range(0, len(block), CHUNK_BYTES):
            yield tally_pb2.UploadChunk(data=block[start : start + CHUNK_BYTES])


def check_sums(server: Server, expected: Dict[str, int]) -> None:
    for column, total in expected.items():
        for file_format in ("csv", "parquet"):
            answer = table(server).ColumnSum(table_pb2.ColSumReq(column=column, format=file_format))
            assert (answer.error, answer.total) == ("", total), f"{column} from {file_format}"


class Rows:
    """About 1 MB of rows of x, which is 1, and y; a large file is a header and these again and again."""

    HEADER = b"x,y\n"

    def __init__(self, seed: int = 1):
        random_numbers = random.Random(seed)
        y = [random_numbers.randrange(-(10**12), 10**12) for _ in range(60_000)]
        self.rows = "".join(f"1,{value}\n" for value in y).encode()
        self.count = len(y)
        self.y = sum(y)

    def repeats(self, file_bytes: int) -> int:
        return file_bytes // len(self.rows)


def test_a_unary_upload_of_400_mb_by_a_plain_client(roomy_server):
    rows = Rows()
    repeats = rows.repeats(400_000_000) + 1
    request = table_pb2.UploadReq(csv_data=rows.HEADER + rows.rows * repeats)
    assert len(request.csv_data) >= 400_000_000
    with MemoryWatch(roomy_server):
        # As the clients of the P3 assignment make it, without any option.
        with grpc.insecure_channel(roomy_server.address) as channel:
            response = table_pb2_grpc.TableStub(channel).Upload(request)
        assert response.error == ""
        del request
        check_sums(roomy_server, {"x": rows.count * repeats, "y": rows.y * repeats})


def test_a_stream_of_1_gb(roomy_server):
    rows = Rows()
    repeats = rows.repeats(1_000_000_000) + 1

    def blocks() -> Iterator[bytes]:
        yield rows.HEADER
        for _ in range(repeats):
            yield rows.rows

    with MemoryWatch(roomy_server):
        receipt = stream(roomy_server, blocks())
        assert receipt.csv.bytes >= 1_000_000_000
        assert receipt.rows == rows.count * repeats
        check_sums(roomy_server, {"x": rows.count * repeats, "y": rows.y * repeats})


def test_eight_watchers_while_many_files_arrive(roomy_server):
    """As when the console is open in eight browsers while `bigdata.py` runs: 16 files at a time, and events each second."""
    rows = Rows()
    with ExitStack() as stack:
        lines = []
        for _ in range(8):
            watcher = requests.get(f"{roomy_server.http}/api/v1/events", stream=True, timeout=CALL_SECONDS_MAX)
            lines.append(stack.enter_context(watcher).iter_lines())
        stack.enter_context(MemoryWatch(roomy_server))
        with ThreadPoolExecutor(16) as pool:
            receipts = list(pool.map(lambda _: stream(roomy_server, [rows.HEADER, rows.rows * 4]), range(64)))
        assert [receipt.rows for receipt in receipts] == [rows.count * 4] * 64
        # Each of them has been told.
        for watched in lines:
            events = (json.loads(line[len(b"data: ") :]) for line in watched if line.startswith(b"data: "))
            assert next(event for event in events if event["parts"] == 64)["rows"] == rows.count * 4 * 64
        check_sums(roomy_server, {"x": rows.count * 4 * 64})


def test_every_cell_quoted(roomy_server):
    """100 MB in which every cell is quoted, so that none can be used without a copy."""
    record = b'"1","-17","Anna ""the first"", of\nmany","0.5",""\r\n'
    block = record * 20_000
    repeats = 100_000_000 // len(block) + 1

    def blocks() -> Iterator[bytes]:
        yield b'"x","y","na""me","share","nothing"\r\n'
        for _ in range(repeats):
            yield block

    with MemoryWatch(roomy_server):
        receipt = stream(roomy_server, blocks())
        rows_count = 20_000 * repeats
        assert receipt.rows == rows_count
        assert [column.name for column in receipt.columns] == ["x", "y", 'na"me', "share", "nothing"]
        assert [column.type for column in receipt.columns] == [
            tally_pb2.INT64,
            tally_pb2.INT64,
            tally_pb2.UTF8,
            tally_pb2.FLOAT64,
            tally_pb2.INT64,
        ]
        assert receipt.columns[4].nulls == rows_count
        check_sums(roomy_server, {"x": rows_count, "y": -17 * rows_count})


def long_cells(rows_count: int, seed: int) -> Iterator[bytes]:
    """Rows of three cells of 1 MiB, the longest there may be, no two alike and none that compresses."""
    random_numbers = random.Random(seed)
    yield b"x,a,b,c\n"
    for _ in range(rows_count):
        yield b"1"
        for _ in range(3):
            yield b"," + random_numbers.randbytes(CELL_BYTES_MAX // 2).hex().encode()
        yield b"\n"


@pytest.mark.parametrize("clients, rows_count", [(1, 34), (8, 8)], ids=["one of 100 MB", "eight of 25 MB"])
def test_cells_of_1_mib(roomy_server, clients, rows_count):
    with MemoryWatch(roomy_server), ThreadPoolExecutor(clients) as pool:
        uploads = pool.map(lambda seed: stream(roomy_server, long_cells(rows_count, seed)), range(clients))
        receipts = list(uploads)
        assert [receipt.rows for receipt in receipts] == [rows_count] * clients
        check_sums(roomy_server, {"x": clients * rows_count})


def wide_csv(rows_count: int, seed: int) -> bytes:
    """A table of 4,096 columns, in turn integers, text, floats and empty ones; hardly two cells are alike."""
    random_numbers = random.Random(seed)
    lines = [",".join(f"c{index}" for index in range(COLUMNS_MAX))]
    for row_index in range(rows_count):
        digits = random_numbers.getrandbits(32 * COLUMNS_MAX // 4)
        cells = []
        for _ in range(COLUMNS_MAX // 4):
            number = digits & 0xFFFF_FFFF
            digits >>= 32
            cells += [f"{number}", f"t{number:x}", f"{number / 8}", ""]
        cells[0] = str(row_index)
        lines.append(",".join(cells))
    return "\n".join(lines).encode()


def test_eight_wide_tables_at_once(roomy_server):
    rows_count = 900
    csv = wide_csv(rows_count, seed=1)
    assert len(csv) > 28_000_000
    with MemoryWatch(roomy_server), ThreadPoolExecutor(8) as pool:
        receipts = list(pool.map(lambda _: stream(roomy_server, [csv]), range(8)))
        assert [receipt.rows for receipt in receipts] == [rows_count] * 8
        types = [column.type for column in receipts[0].columns]
        four_types = [tally_pb2.INT64, tally_pb2.UTF8, tally_pb2.FLOAT64, tally_pb2.INT64]  # the last is empty
        assert types == four_types * (COLUMNS_MAX // 4)
        check_sums(roomy_server, {"c0": 8 * sum(range(rows_count)), "c3": 0})


def test_many_small_calls_do_not_add_up(roomy_server):
    """Two groups to warm up, two that must not grow: a buffer, a task or a file kept for each call would."""
    csv = table_pb2.UploadReq(csv_data=b"x,y\n" + b"1,2\n" * 10)
    parts_count = 0
    after_group = []
    for _ in range(4):
        for call in range(CALLS_OF_A_GROUP):
            if call % 2 == 0:
                assert table(roomy_server).Upload(csv).error == ""
            else:
                tally(roomy_server).Upload(chunks([csv.csv_data]))
            parts_count += 1
            file_format = "csv" if call % 4 < 2 else "parquet"
            answer = table(roomy_server).ColumnSum(table_pb2.ColSumReq(column="x", format=file_format))
            assert (answer.error, answer.total) == ("", 10 * parts_count)
        after_group.append(roomy_server.anonymous_bytes())
    said = "MiB after each group: " + ", ".join(f"{value / MIB:.1f}" for value in after_group)
    print(said)
    assert after_group[3] - after_group[1] < GROWTH_OF_TWO_GROUPS_BYTES_MAX, said
    assert max(after_group) < ANONYMOUS_BYTES_MAX, said
