"""Long sums and jobs do not hold up small uploads, nor these a job, slow clients hold up nobody, and eight
workers do it all.

What is asserted is always an order of events, never a time.
"""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, List, Set

import grpc
import pytest
import requests
import table_pb2
import table_pb2_grpc
import tally_pb2
from conftest import CHANNEL_OPTIONS, Server, table, tally, wait_until
from http_calls import CLIENT_SECONDS_MAX, END_OF_FORM, TASKS, download, ended_task, get

WORKERS = {f"tally-worker-{number}" for number in range(8)}
SUMMING_CLIENTS = 4
LONG_TABLE_PARTS = 128
LONG_TABLE_PART_ROWS = 120_000  # 2 MB: a sum over the table takes more than a hundred slices
SMALL_UPLOADS = 24
SMALL_CSV = b"x,y\n" + b"1,2\n" * 10
CHUNK_BYTES = 64 * 1024
SAMPLE_EVERY_SECONDS = 0.005
SUMS_SECONDS_MAX = 120
TASK_BLOCK = b"".join(b"song %d,2024-01-01,1\n" % (row % 100) for row in range(50_000))  # 1 MB
LONG_TASK_BLOCKS = 200
SHORT_TASK_BLOCKS = 20
SUMS_BESIDE_A_TASK_MAX = 40


def worker_names(server: Server) -> List[str]:
    """The names of the worker threads, as the kernel lists them."""
    names = []
    for task in Path(f"/proc/{server.pid}/task").iterdir():
        try:
            names.append((task / "comm").read_text().strip())
        except (FileNotFoundError, ProcessLookupError):
            continue  # this thread has ended meanwhile
    return sorted(name for name in names if name.startswith("tally-worker"))


class WorkersWatch:
    """Looks at the server's threads while a `with` block runs: there are always the same eight workers."""

    def __init__(self, server: Server):
        self._server = server
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.seen: Set[tuple] = set()
        self.samples_count = 0

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_EVERY_SECONDS):
            self.seen.add(tuple(worker_names(self._server)))
            self.samples_count += 1

    def __enter__(self) -> "WorkersWatch":
        self._thread.start()
        return self

    def __exit__(self, exception_type, *_exception) -> None:
        self._done.set()
        self._thread.join()
        if exception_type is None:
            assert self.samples_count > 0
            assert self.seen == {tuple(sorted(WORKERS))}


@pytest.fixture(scope="module")
def long_table(tmp_path_factory):
    """A server on 256 MB in 128 parts, and what its column y sums to."""
    random_numbers = random.Random(1)
    y = [random_numbers.randrange(-(10**12), 10**12) for _ in range(LONG_TABLE_PART_ROWS)]
    request = table_pb2.UploadReq(csv_data=("x,y\n" + "".join(f"1,{value}\n" for value in y)).encode())
    with Server(tmp_path_factory.mktemp("long") / "data", "--durability", "none") as server:
        # A thread takes its name when it first runs, which may be after the server said that it is ready.
        wait_until(lambda: worker_names(server) == sorted(WORKERS), "eight workers, before any call")
        with WorkersWatch(server), ThreadPoolExecutor(8) as pool:
            uploads = pool.map(lambda _: table(server).Upload(request).error, range(LONG_TABLE_PARTS))
            assert set(uploads) == {""}
        yield server, sum(y) * LONG_TABLE_PARTS
        assert worker_names(server) == sorted(WORKERS), "after all calls"
        server.stop()


class SumsAndUploads:
    """Long sums from some clients beside small uploads from one, and how many uploads overtook each sum."""

    def __init__(self, server: Server, file_format: str):
        self.server = server
        self.question = table_pb2.ColSumReq(column="x", format=file_format)
        self.rows_before = LONG_TABLE_PARTS * LONG_TABLE_PART_ROWS + self._small_rows()
        self.uploads_acknowledged = 0
        self.uploads_done = threading.Event()
        self.sums_running = threading.Semaphore(0)
        # For each sum: the uploads acknowledged between its start and its answer.
        self.overtaken: List[int] = []

    def _small_rows(self) -> int:
        """What earlier tests of this module have added."""
        rows_counts = [receipt["rows"] for receipt in self.server.parts()]
        return sum(rows_count for rows_count in rows_counts if rows_count != LONG_TABLE_PART_ROWS)

    def run(self) -> None:
        with WorkersWatch(self.server), ThreadPoolExecutor(SUMMING_CLIENTS) as pool:
            sums = [pool.submit(self._sum_until_uploads_are_done) for _ in range(SUMMING_CLIENTS)]
            try:
                for _ in range(SUMMING_CLIENTS):
                    assert self.sums_running.acquire(timeout=SUMS_SECONDS_MAX)
                for _ in range(SMALL_UPLOADS):
                    assert table(self.server).Upload(table_pb2.UploadReq(csv_data=SMALL_CSV)).error == ""
                    self.uploads_acknowledged += 1
            finally:
                self.uploads_done.set()
            for result in sums:
                result.result()

    def _sum_until_uploads_are_done(self) -> None:
        with grpc.insecure_channel(self.server.address, options=CHANNEL_OPTIONS) as channel:
            stub = table_pb2_grpc.TableStub(channel)
            first = True
            while first or not self.uploads_done.is_set():
                before = self.uploads_acknowledged
                call = stub.ColumnSum.future(self.question)
                if first:
                    self.sums_running.release()
                    first = False
                answer = call.result()
                after = self.uploads_acknowledged
                self.overtaken.append(after - before)
                assert answer.error == ""
                # A sum sees the parts that were there when it began: at least what was acknowledged by then,
                # and at most one upload more than what is acknowledged by now.
                small_rows = answer.total - self.rows_before
                assert small_rows % 10 == 0 and before <= small_rows // 10 <= after + 1


def test_small_uploads_overtake_long_sums(long_table):
    server, _ = long_table
    race = SumsAndUploads(server, "csv")
    race.run()
    print(f"small uploads acknowledged during each sum: {race.overtaken}")
    # If an upload waited for all requests before it, one or two of them would overtake a sum. The order of tasks
    # decides, not the speed of the machine: a sum takes more than a hundred tasks, an upload a few.
    assert max(race.overtaken) > 3


def test_sums_are_right_under_load(long_table):
    server, y_sum = long_table
    small_y = 2 * sum(receipt["rows"] for receipt in server.parts() if receipt["rows"] == 10)
    questions = [table_pb2.ColSumReq(column="y", format=name) for name in ("csv", "parquet") * 4]
    with WorkersWatch(server), ThreadPoolExecutor(len(questions)) as pool:
        answers = list(pool.map(table(server).ColumnSum, questions))
    assert {(answer.error, answer.total) for answer in answers} == {("", y_sum + small_y)}


def test_slow_uploads_hold_up_nobody(start_server, tmp_path):
    """As many unfinished uploads as workers: a slow client does not occupy a worker."""
    server = start_server(tmp_path / "data")
    go_on = threading.Event()
    first_half, second_half = b"x,y\n" + b"1,2\n" * 200_000, b"1,2\n"

    def chunks():
        for start in range(0, len(first_half), CHUNK_BYTES):
            yield tally_pb2.UploadChunk(data=first_half[start : start + CHUNK_BYTES])
        go_on.wait()
        yield tally_pb2.UploadChunk(data=second_half)

    held = [tally(server).Upload.future(chunks()) for _ in range(len(WORKERS))]
    try:
        spools = server.data / "tmp"
        wait_until(
            lambda: sum(1 for spool in spools.iterdir() if spool.stat().st_size > 0) >= len(held),
            "the first half of every upload arrives",
        )
        for uploads_count in range(1, 4):
            assert table(server).Upload(table_pb2.UploadReq(csv_data=SMALL_CSV)).error == ""
            for file_format in ("csv", "parquet"):
                answer = table(server).ColumnSum(table_pb2.ColSumReq(column="x", format=file_format))
                assert (answer.error, answer.total) == ("", 10 * uploads_count)
        wait_until(lambda: worker_names(server) == sorted(WORKERS), "eight workers, and no more")
        assert not any(call.done() for call in held)
    finally:
        go_on.set()
    assert {call.result(timeout=SUMS_SECONDS_MAX).rows for call in held} == {200_001}
    server.stop()


def start_task(server: Server, blocks_count: int) -> str:
    """A task of so many MB, which are never whole in memory; its id."""
    part = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'

    def form():
        yield part + b"Song,Date,Number of Plays\n"
        for _ in range(blocks_count):
            yield TASK_BLOCK
        yield END_OF_FORM

    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    accepted = requests.post(server.http + TASKS, data=form(), headers=headers, timeout=CLIENT_SECONDS_MAX)
    assert accepted.status_code == 202, accepted.text
    return accepted.json()["task"]["id"]


def check_task_is_right(server: Server, task_id: str, blocks_count: int) -> None:
    assert ended_task(server, task_id)["task"]["status"] == "COMPLETED"
    _, *rows = download(server, task_id).text.splitlines()
    assert len(rows) == 100 and all(row.endswith(f",2024-01-01,{500 * blocks_count}") for row in rows)


def test_uploads_and_sums_overtake_long_tasks(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--durability", "none")
    tasks = {start_task(server, blocks): blocks for blocks in (LONG_TASK_BLOCKS, SHORT_TASK_BLOCKS)}
    overtaking = 0
    while get(server, "/api/num_jobs").json() != {"num_jobs": 0}:
        assert table(server).Upload(table_pb2.UploadReq(csv_data=SMALL_CSV)).error == ""
        overtaking += 1
        for file_format in ("csv", "parquet"):
            answer = table(server).ColumnSum(table_pb2.ColSumReq(column="x", format=file_format))
            assert (answer.error, answer.total) == ("", 10 * overtaking)
    print(f"uploads and sums answered before the tasks ended: {overtaking}")
    # If they waited for all requests before them, only one or two would end before the jobs do.
    assert overtaking > 3
    for task_id, blocks in tasks.items():
        check_task_is_right(server, task_id, blocks)
    server.stop()


def test_a_task_ends_beside_sums_and_uploads_without_end(long_table):
    server, _ = long_table
    task_ended = threading.Event()
    sums_answered = []

    def go_on_until_it_has(call: Callable[[table_pb2_grpc.TableStub], None]) -> None:
        with grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
            while not task_ended.is_set():
                call(table_pb2_grpc.TableStub(channel))

    def sum_all(stub: table_pb2_grpc.TableStub) -> None:
        assert stub.ColumnSum(table_pb2.ColSumReq(column="x", format="csv")).error == ""
        sums_answered.append(True)

    def upload_one(stub: table_pb2_grpc.TableStub) -> None:
        assert stub.Upload(table_pb2.UploadReq(csv_data=SMALL_CSV)).error == ""

    with ThreadPoolExecutor(SUMMING_CLIENTS + 1) as pool:
        calls = [sum_all] * SUMMING_CLIENTS + [upload_one]
        others = [pool.submit(go_on_until_it_has, call) for call in calls]
        try:
            wait_until(lambda: sums_answered, "the first sum", SUMS_SECONDS_MAX)
            task_id = start_task(server, SHORT_TASK_BLOCKS)
            sums_before = len(sums_answered)

            def sums_beside_it() -> int:
                return len(sums_answered) - sums_before

            def has_ended() -> bool:
                return get(server, "/api/num_jobs").json() == {"num_jobs": 0}

            def is_decided() -> bool:
                return has_ended() or sums_beside_it() > SUMS_BESIDE_A_TASK_MAX

            wait_until(is_decided, "the end of the task, or too many sums", SUMS_SECONDS_MAX)
            print(f"sums answered before the task ended: {sums_beside_it()}")
            # The job takes a few turns of the workers, a sum more than a hundred. If it only had the turns that
            # nobody else needs, it would have none.
            assert sums_beside_it() <= SUMS_BESIDE_A_TASK_MAX
        finally:
            task_ended.set()
        for other in others:
            other.result()
    check_task_is_right(server, task_id, SHORT_TASK_BLOCKS)
