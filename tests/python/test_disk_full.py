"""A full disk: uploads and jobs fail and say why, what was kept answers, nothing is left over, freed room is
used.

The data folder lies on a tmpfs of 24 MB. Mounting one takes root: a caller who is not runs each test once
more inside a user namespace of its own.
"""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional

import grpc
import pytest
import requests
import table_pb2
import table_pb2_grpc
import tally_pb2
import tally_pb2_grpc
from conftest import CHANNEL_OPTIONS, INPUTS, Server, step_aside, table, wait_until
from http_calls import (
    PLAYS,
    PLAYS_SUMMED,
    answer_of,
    ask,
    check_failure,
    completed_task,
    download,
    ended_task,
    get,
    result_of,
    send_file,
    start_task,
)
from survey_oracle import QUESTION

DISK_BYTES = 24 * 1024 * 1024
PAGE_BYTES = 4096  # the unit in which a tmpfs allocates
CHUNK_BYTES = 64 * 1024
IN_NAMESPACE = "TALLY_TEST_IN_NAMESPACE"
STOP_ON_CHANGE = Path(__file__).with_name("kill_on_change.py")


class Csv(NamedTuple):
    """A file, and what it adds to the sums."""

    content: bytes
    x: int
    y: int


def make_csv(rows_count: int, seed: int = 0) -> Csv:
    """x is 1 in each row, y a number that Parquet cannot make small: 17 bytes a row, and 8 as Parquet."""
    random_numbers = random.Random(seed)
    y = [random_numbers.randrange(-(10**12), 10**12) for _ in range(rows_count)]
    return Csv(("x,y\n" + "".join(f"1,{value}\n" for value in y)).encode(), rows_count, sum(y))


def unary(channel: grpc.Channel, csv: Csv) -> None:
    response = table_pb2_grpc.TableStub(channel).Upload(table_pb2.UploadReq(csv_data=csv.content))
    assert response.error == ""


def stream(channel: grpc.Channel, csv: Csv) -> None:
    pieces = (csv.content[start : start + CHUNK_BYTES] for start in range(0, len(csv.content), CHUNK_BYTES))
    tally_pb2_grpc.TallyStub(channel).Upload(tally_pb2.UploadChunk(data=piece) for piece in pieces)


WAYS = (unary, stream)


class SmallDisk:
    """A mounted tmpfs, the data folder on it, and a file that fills as much of it as a test needs."""

    def __init__(self, root: Path):
        self.root = root
        self.data = root / "data"
        self.filler = root / "filler"

    def free_bytes(self) -> int:
        facts = os.statvfs(self.root)
        return facts.f_bavail * facts.f_frsize

    def leave(self, free_bytes: int) -> None:
        """Fills the disk up to this many free bytes, a multiple of pages."""
        with open(self.filler, "ab") as filler:

            def exactly_left() -> bool:
                # Pages of a file come free a moment after its name is gone, perhaps while we fill the disk.
                surplus_bytes = self.free_bytes() - free_bytes
                if surplus_bytes > 0:
                    taken_bytes = os.fstat(filler.fileno()).st_size
                    os.posix_fallocate(filler.fileno(), 0, taken_bytes + surplus_bytes)
                return self.free_bytes() == free_bytes

            wait_until(exactly_left, f"{free_bytes} bytes are left on the disk")

    def fill(self) -> None:
        """Fills the disk, up to the last page."""
        with open(self.filler, "ab", buffering=0) as filler:
            for bytes_at_once in (1024 * 1024, PAGE_BYTES, 1):
                try:
                    while True:
                        filler.write(bytes(bytes_at_once))
                except OSError as error:
                    assert error.errno == errno.ENOSPC

    def make_room(self) -> None:
        self.filler.unlink()

    def leave_files(self, free: int) -> None:
        """Leaves room for this many more files, however large they are."""
        facts = os.statvfs(self.root)
        files_max = facts.f_files - facts.f_ffree + free
        options = f"remount,nr_inodes={files_max}"
        subprocess.run(["mount", "-o", options, str(self.root)], check=True)


def on_small_disk(test: Callable[[SmallDisk], None], disk_bytes: int = DISK_BYTES) -> Callable:
    """Turns a function that takes a SmallDisk into a test."""

    def run(tmp_path):
        root = tmp_path / "disk"
        root.mkdir()
        if not shutil.which("mount") or not shutil.which("unshare"):
            step_aside("mount and unshare are not there")
        mount = ["mount", "-t", "tmpfs", "-o", f"size={disk_bytes}", "tmpfs", str(root)]
        if subprocess.run(mount, stderr=subprocess.DEVNULL).returncode == 0:
            try:
                test(SmallDisk(root))
            finally:
                subprocess.run(["umount", str(root)], check=True)
            return
        # In a namespace that lets us be root, but not mount, there is nothing more to try.
        namespace = ["unshare", "--user", "--map-root-user", "--mount"]
        possible = subprocess.run([*namespace, *mount], stderr=subprocess.DEVNULL).returncode == 0
        if os.environ.get(IN_NAMESPACE) == "1" or not possible:
            step_aside("no file system can be mounted here, neither as root nor in a user namespace")
        once_more = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"{__file__}::{test.__name__}"]
        done = subprocess.run(
            [*namespace, *once_more, f"--basetemp={tmp_path / 'inside'}"],
            env={**os.environ, IN_NAMESPACE: "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        assert done.returncode == 0, done.stdout

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


def check_refused(upload: Callable, server: Server, csv: Csv) -> None:
    """The upload fails because the disk is full, says so, and leaves nothing behind."""
    with pytest.raises(grpc.RpcError) as refused:
        upload(server.channel(), csv)
    check_says_full(refused.value)
    check_no_leftovers(server)


def check_says_full(error: grpc.RpcError) -> None:
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error.details()
    assert "disk is full" in error.details().lower()


def check_no_leftovers(server: Server) -> None:
    # The answer may overtake the removal of what the call had written by a moment.
    wait_until(lambda: server.leftovers() == [], "nothing left over from refused uploads")
    # A file without a name still takes up room for as long as it is open.
    wait_until(lambda: not deleted_but_open(server), "removed files are closed")


def open_paths(server: Server) -> List[str]:
    """What the descriptors of the process refer to."""
    targets = []
    for descriptor in Path(f"/proc/{server.pid}/fd").iterdir():
        try:
            targets.append(os.readlink(descriptor))
        except FileNotFoundError:
            continue  # closed meanwhile
    return targets


def deleted_but_open(server: Server) -> List[str]:
    inside = [target for target in open_paths(server) if target.startswith(str(server.data))]
    return [target for target in inside if target.endswith(" (deleted)")]


def check_holds(server: Server, kept: List[Csv]) -> None:
    """Exactly the acknowledged uploads are there, as files and in the sums."""
    parts = server.data / "parts"
    stored = sorted((parts / f"{receipt['part']}.csv").read_bytes() for receipt in server.parts())
    assert stored == sorted(csv.content for csv in kept)
    for column, expected in (("x", sum(csv.x for csv in kept)), ("y", sum(csv.y for csv in kept))):
        for file_format in ("csv", "parquet"):
            answer = table(server).ColumnSum(table_pb2.ColSumReq(column=column, format=file_format))
            assert (answer.error, answer.total) == ("", expected), f"{column} from {file_format}"


@on_small_disk
def test_an_upload_larger_than_the_disk(disk):
    small = make_csv(20_000)
    header, rows = small.content[:4], small.content[4:]
    large = Csv(header + rows * (DISK_BYTES // len(rows) + 1), 0, 0)
    assert len(large.content) > DISK_BYTES
    kept = []
    with Server(disk.data) as server:
        for upload in WAYS:
            upload(server.channel(), small)
            kept.append(small)
            check_refused(upload, server, large)
            check_holds(server, kept)
        server.stop()


@on_small_disk
def test_room_for_the_csv_but_not_for_the_parquet_file(disk):
    csv = make_csv(200_000)
    with Server(disk.data) as server:
        unary(server.channel(), csv)
        check_holds(server, [csv])
        parquet_bytes = server.parts()[0]["parquet"]["bytes"]
        spare_bytes = 256 * 1024
        assert parquet_bytes > 2 * spare_bytes, "the Parquet file must not fit into what is left"
        for upload in WAYS:
            disk.leave(len(csv.content) // PAGE_BYTES * PAGE_BYTES + spare_bytes)
            check_refused(upload, server, csv)
            check_holds(server, [csv])
            disk.make_room()
        stream(server.channel(), csv)
        check_holds(server, [csv, csv])
        server.stop()


@on_small_disk
def test_room_freed_is_used_again(disk):
    csv = make_csv(20_000)
    kept = [csv]
    with Server(disk.data) as server:
        unary(server.channel(), csv)
        for upload in WAYS:
            disk.leave(0)
            check_refused(upload, server, csv)
            check_holds(server, kept)
            disk.make_room()
            upload(server.channel(), csv)
            kept.append(csv)
            check_holds(server, kept)
        server.stop()


@on_small_disk
def test_the_audit_log_goes_on_when_there_is_room_again(disk):
    path = disk.root / "audit.json"
    with Server(disk.data, "--audit-log", path) as server:
        unary(server.channel(), make_csv(10))
        disk.leave(0)
        asked = 60  # more than the rest of the file's last page has room for
        for _ in range(asked):
            assert get(server, "/api/jobs").status_code == 200
        server.log_line("--audit-log: lines wait")
        assert path.read_bytes().endswith(b"\n"), "no half line is left"
        disk.make_room()
        wait_until(lambda: path.read_text().count("GET /api/jobs") == asked, "all lines are there")
        server.stop()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sum(line.get("call") == "GET /api/jobs" for line in lines) == asked
    assert lines[-1]["event"] == "stopped" and not any(line["event"] == "lines_lost" for line in lines)


@on_small_disk
def test_full_at_any_step_of_a_commit(disk):
    """From no page to sixteen: the room ends in the CSV file, the Parquet file, the receipt or not at all."""
    csv = make_csv(500)  # about three pages of CSV and two of Parquet
    kept = [csv]
    outcomes = set()
    with Server(disk.data) as server:
        unary(server.channel(), csv)
        for free_bytes in range(0, 16 * PAGE_BYTES + 1, PAGE_BYTES):
            for upload in WAYS:
                disk.leave(free_bytes)
                try:
                    upload(server.channel(), csv)
                    kept.append(csv)
                    outcomes.add("kept")
                except grpc.RpcError as error:
                    check_says_full(error)
                    outcomes.add("refused")
                check_no_leftovers(server)
                check_holds(server, kept)
                disk.make_room()
        assert outcomes == {"kept", "refused"}
        server.stop()
    with Server(disk.data) as server:
        assert (server.parts_count_at_start, server.quarantine_count_at_start) == (len(kept), 0)
        check_holds(server, kept)


@on_small_disk
def test_many_clients_fill_the_disk(disk):
    """Eight at once, each until it is refused: what was acknowledged is there, and only that."""
    kept, errors, changes = [], [], threading.Lock()

    def fill(address: str, upload: Callable, seed: int) -> None:
        csv = make_csv(20_000, seed)
        with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            while True:
                try:
                    upload(channel, csv)
                except grpc.RpcError as error:
                    with changes:
                        errors.append(error)
                    return
                with changes:
                    kept.append(csv)

    with Server(disk.data) as server:
        clients = [threading.Thread(target=fill, args=(server.address, WAYS[n % 2], n)) for n in range(8)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert len(errors) == len(clients)
        for error in errors:
            check_says_full(error)
        check_no_leftovers(server)
        assert kept
        check_holds(server, kept)
        server.stop()


@on_small_disk
def test_a_start_on_a_full_disk(disk):
    csv = make_csv(20_000)
    with Server(disk.data) as server:
        unary(server.channel(), csv)
        server.kill()
    disk.leave(0)
    with Server(disk.data) as server:
        check_holds(server, [csv])
        check_refused(unary, server, csv)
        disk.make_room()
        stream(server.channel(), csv)
        check_holds(server, [csv, csv])
        server.stop()


# --- jobs ---------------------------------------------------------------------------------------------------

SPARE_BYTES = 256 * 1024
# How often the server tries again to record the end of a job.
JOB_FLAGS = ("--jobs-sweep-s", "1")


class Task(NamedTuple):
    """A file for a task, and its result."""

    content: bytes
    query: str
    result: str


def make_task(rows_count: int, sums_count: int) -> Task:
    """As many groups as rows. A total has 2 bytes in the file and in the result, and 16 in memory."""
    keys = [f"{row:06}" for row in range(rows_count)]
    names = [f"n{index}" for index in range(sums_count)]
    header, ones = ",".join(["k", *names]) + "\n", ",1" * sums_count + "\n"
    rows = [key + ones for key in keys]
    random.Random(1).shuffle(keys)
    shuffled = header + "".join(key + ones for key in keys)
    return Task(shuffled.encode(), f"?group_by=k&sum={','.join(names)}", header + "".join(rows))


def check_jobs_hold(server: Server, jobs: Dict[str, bool]) -> None:
    """In jobs/ is the record of each of these jobs and, if it is done, its result, and nothing else."""
    expected = {f"{job}.json" for job in jobs}
    expected |= {f"{job}.result" for job, is_done in jobs.items() if is_done}

    folder = server.data / "jobs"
    what = f"{sorted(expected)} and nothing else in jobs/"
    wait_until(lambda: {path.name for path in folder.iterdir()} == expected, what)
    check_no_leftovers(server)


def check_says_full_over_http(answer: requests.Response) -> None:
    check_failure(answer, 429, "request", "disk is full")
    assert answer.headers["Retry-After"] == "1"


@on_small_disk
def test_a_task_whose_file_does_not_fit(disk):
    task = make_task(100_000, 10)
    with Server(disk.data, *JOB_FLAGS) as server:
        disk.leave(len(task.content) // 2 // PAGE_BYTES * PAGE_BYTES)
        check_says_full_over_http(send_file(server, task.content, query=task.query))
        check_jobs_hold(server, {})
        # What does fit is done meanwhile.
        jobs = {completed_task(server, PLAYS): True}
        disk.make_room()
        jobs[completed_task(server, task.content, task.query)] = True
        assert [download(server, job).text for job in jobs] == [PLAYS_SUMMED, task.result]
        server.stop()


def check_task_fails_for_want_of_room(disk: SmallDisk, task: Task, says: str) -> None:
    """The file fits, what is made of it does not: the task fails, and is done when it is sent again to a disk
    that has room."""
    with Server(disk.data, *JOB_FLAGS) as server:
        first = completed_task(server, PLAYS)
        input_bytes = -(-len(task.content) // PAGE_BYTES) * PAGE_BYTES
        disk.leave(input_bytes + SPARE_BYTES)
        failed = start_task(server, task.content, task.query)
        status = ended_task(server, failed)
        assert status["task"] == {"id": failed, "status": "FAILED", "errors": {"file": [says]}}
        check_jobs_hold(server, {first: True, failed: False})
        assert disk.free_bytes() > input_bytes, "its room is free again"
        # What does fit is done meanwhile.
        second = completed_task(server, PLAYS)
        disk.make_room()
        again = completed_task(server, task.content, task.query)
        assert download(server, again).text == task.result
        for job in (first, second):
            assert download(server, job).text == PLAYS_SUMMED
        assert get(server, "/api/num_jobs").json() == {"num_jobs": 0}
        server.stop()


@on_small_disk
def test_room_for_the_file_of_a_task_but_not_for_its_result(disk):
    check_task_fails_for_want_of_room(disk, make_task(50_000, 10), "the disk is full: the result")


@on_small_disk
def test_room_for_the_file_of_a_task_but_not_for_what_it_spills(disk):
    # 62 totals of 16 bytes for each of 40,000 groups: more than there is memory for, and little on disk.
    check_task_fails_for_want_of_room(disk, make_task(40_000, 62), "the disk is full: a temporary file")


def check_full_at_any_step(
    disk: SmallDisk,
    server: Server,
    jobs: Dict[str, bool],
    send: Callable[[], requests.Response],
    job_of: Callable[[requests.Response], Optional[str]],
    end_of: Callable[[str], bool],
) -> None:
    """From no page to eight: the room ends in one of the files that a small job writes, or not at all.

    `jobs` are there already; `send` asks for one more, `job_of` says which it is, or None if it was refused,
    and `end_of` whether it was done.
    """
    jobs, outcomes = dict(jobs), set()
    for free_bytes in range(0, 8 * PAGE_BYTES + 1, PAGE_BYTES):
        disk.leave(free_bytes)
        job = job_of(send())
        if job is None:
            outcomes.add("refused")
        else:

            def met_its_fate(job=job) -> bool:
                # Where there is no room to say that it failed, that is tried again.
                log = [line for line in server.stderr.splitlines() if job in line]
                is_tried_again = any("this is retried" in line for line in log)
                return is_tried_again or get(server, "/api/num_jobs").json() == {"num_jobs": 0}

            wait_until(met_its_fate, "the job ends, or its end cannot be written")
        disk.make_room()
        if job is not None:
            jobs[job] = end_of(job)
            outcomes.add("done" if jobs[job] else "failed")
        check_jobs_hold(server, jobs)
    assert outcomes == {"refused", "failed", "done"}


@on_small_disk
def test_full_at_any_step_of_a_task(disk):
    def job_of(answer: requests.Response):
        if answer.status_code != 202:
            return check_says_full_over_http(answer)
        return answer.json()["task"]["id"]

    def end_of(server: Server, job: str) -> bool:
        task = ended_task(server, job)["task"]
        if task["status"] == "COMPLETED":
            return True
        assert task["status"] == "FAILED"
        assert task["errors"]["file"][0].startswith("the disk is full: ")
        return False

    with Server(disk.data, *JOB_FLAGS) as server:
        check_full_at_any_step(
            disk, server, {}, lambda: send_file(server, PLAYS), job_of, lambda job: end_of(server, job)
        )
        assert download(server, completed_task(server, PLAYS)).text == PLAYS_SUMMED
        server.stop()


@on_small_disk
def test_full_at_any_step_of_a_statistic(disk):
    body = {"question": QUESTION}

    def job_of(answer: requests.Response):
        if answer.status_code != 200:
            assert answer.status_code == 429, answer.text
            assert answer.json()["status"] == "error" and "disk is full" in answer.json()["reason"]
            return None
        return answer.json()["job_id"]

    def end_of(server: Server, job: str, expected: dict) -> bool:
        result = result_of(server, job)
        if result["status"] == "done":
            assert result["data"] == expected
            return True
        assert result["status"] == "error" and result["reason"].startswith("the disk is full: ")
        return False

    with Server(disk.data, *JOB_FLAGS, "--load", INPUTS / "survey.csv") as server:
        expected = answer_of(server, "states_mean", body)
        check_full_at_any_step(
            disk,
            server,
            {"job_id_1": True},
            lambda: ask(server, "states_mean", body),
            job_of,
            lambda job: end_of(server, job, expected),
        )
        assert answer_of(server, "states_mean", body) == expected
        server.stop()


# --- removed parts ------------------------------------------------------------------------------------------


@on_small_disk
def test_parts_are_removed_and_restored_on_a_full_disk(disk):
    csv = make_csv(20_000)
    with Server(disk.data) as server:
        for _ in range(3):
            unary(server.channel(), csv)
        disk.leave(0)
        calls = tally_pb2_grpc.TallyStub(server.channel())
        calls.RemovePart(tally_pb2.RemovePartRequest(part=1))
        check_holds(server, [csv, csv])
        assert disk.free_bytes() == 0
        calls.RestorePart(tally_pb2.RestorePartRequest(part=1))
        check_holds(server, [csv, csv, csv])
        for part in (1, 2):
            calls.RemovePart(tally_pb2.RemovePartRequest(part=part))
        calls.RemovePart(tally_pb2.RemovePartRequest(part=3, purge=True))
        check_holds(server, [])
        # Pages of a file come free a moment after its name is gone.
        wait_until(lambda: disk.free_bytes() > len(csv.content), "a purge frees the space")
        calls.RemovePart(tally_pb2.RemovePartRequest(part=2, purge=True))
        wait_until(lambda: disk.free_bytes() > 2 * len(csv.content), "a purge of a removed part frees it too")
        server.stop()
    disk.leave(0)
    with Server(disk.data) as server:
        check_holds(server, [])
        tally_pb2_grpc.TallyStub(server.channel()).RestorePart(tally_pb2.RestorePartRequest(part=1))
        check_holds(server, [csv])
        server.stop()


# --- packing ------------------------------------------------------------------------------------------------

PACKING_DISK_BYTES = 96 * 1024 * 1024  # packing does not begin with less than 64 MiB
PACKED_PARTS = 30
FILES_SPARE = 10_000


def on_disk_for_packing(test: Callable[[SmallDisk], None]) -> Callable:
    return on_small_disk(test, PACKING_DISK_BYTES)


def add_parts(server: Server, numbers: range) -> None:
    """Parts of two kinds of columns, some with a key, whose segments have all files that there are."""
    calls = tally_pb2_grpc.TallyStub(server.channel())
    for number in numbers:
        header = "x,y" if number % 3 else "y,x"
        rows = "".join(f"1,{'v' * 50}{row}\n" if number % 3 else f"{'v' * 50}{row},1\n" for row in range(100))
        chunk = tally_pb2.UploadChunk(data=f"{header}\n{rows}".encode())
        calls.Upload(iter([chunk]), metadata=[("idempotency-key", f"key-{number}")] if number % 5 == 0 else None)


def sums_of_both_formats(server: Server) -> List[int]:
    asks = [table_pb2.ColSumReq(column="x", format=file_format) for file_format in ("csv", "parquet")]
    answers = [table(server).ColumnSum(ask) for ask in asks]
    assert [answer.error for answer in answers] == ["", ""]
    return [answer.total for answer in answers]


def pack_or_full(packing: grpc.Future) -> bool:
    """Whether a packing comes to its end. If not, it must be because the disk is full."""
    try:
        packing.result(timeout=60)
        return True
    except grpc.RpcError as error:
        check_says_full(error)
        return False


def begin_packing(server: Server) -> grpc.Future:
    return tally_pb2_grpc.TallyStub(server.channel()).Pack.future(tally_pb2.PackRequest())


def names_in(disk: SmallDisk, folder: str) -> List[str]:
    return sorted(path.name for path in (disk.data / folder).iterdir())


def check_no_file_can_be_made_at_any_step(disk: SmallDisk, server: Server, total: int) -> int:
    """Lets a packing make no file, then one, and so on until it comes to its end. Returns how many files that takes."""
    before = names_in(disk, "parts")
    for files in range(100):
        disk.leave_files(files)
        is_packed = pack_or_full(begin_packing(server))
        assert sums_of_both_formats(server) == [total, total]
        disk.leave_files(FILES_SPARE)
        if is_packed:
            return files
        wait_until(lambda: names_in(disk, "tmp") == [], "no drafts are left")
        assert names_in(disk, "parts") == before, "nothing is left of what was not packed"
    raise AssertionError("it never ends")


@on_disk_for_packing
def test_no_file_can_be_made_at_any_step_of_packing(disk):
    with Server(disk.data, "--durability", "none") as server:
        add_parts(server, range(PACKED_PARTS))
        total = 100 * PACKED_PARTS
        files = check_no_file_can_be_made_at_any_step(disk, server, total)
        # The CSV, its index with fences, keys, two Parquet files and the receipt.
        assert files >= 7
        assert any(name.endswith(".keys") for name in names_in(disk, "parts"))
        # The same when the segment is written anew, without a part that was purged.
        remove = tally_pb2_grpc.TallyStub(server.channel()).RemovePart
        remove(tally_pb2.RemovePartRequest(part=7, purge=True))
        total -= 100
        assert check_no_file_can_be_made_at_any_step(disk, server, total) >= 7
        add_parts(server, range(PACKED_PARTS, PACKED_PARTS + 3))
        total += 300
        assert pack_or_full(begin_packing(server))
        assert sums_of_both_formats(server) == [total, total]
        server.kill()
    check_after_packing(disk, total)


def check_after_packing(disk: SmallDisk, total: int) -> None:
    """A start finds what was packed, and nothing that was not."""
    with Server(disk.data) as server:
        assert server.quarantine_count_at_start == 0
        assert sums_of_both_formats(server) == [total, total]
        assert names_in(disk, "tmp") == []
        assert without_receipt(disk) == []
        server.stop()


def without_receipt(disk: SmallDisk) -> List[str]:
    """Files of parts and segments that were not committed."""
    names = names_in(disk, "parts")
    receipts = {name.split(".")[0] for name in names if name.endswith((".segment", ".json"))}
    return [name for name in names if name.split(".")[0] not in receipts]


def pack_while_the_disk_fills_up(disk: SmallDisk, server: Server, changes: int) -> bool:
    """Packs, and fills the disk after about so many changes of files. Returns whether it was packed all the same."""
    folders = [str(disk.data / name) for name in ("tmp", "parts")]
    command = [sys.executable, STOP_ON_CHANGE, "--stop", str(server.pid), str(changes), *folders]
    stopper = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
    assert stopper.stdout.readline() == "watching\n"
    packing = begin_packing(server)
    try:
        assert stopper.stdout.readline() == "stopped\n"
        disk.fill()
    finally:
        os.kill(server.pid, signal.SIGCONT)
        stopper.kill()
        stopper.wait()
    return pack_or_full(packing)


@on_disk_for_packing
def test_the_disk_fills_up_while_parts_are_packed(disk):
    """There is no room for another byte of the files that packing has begun, or for its last ones, or there was."""
    outcomes, total, parts = set(), 0, 0
    # Slowly, so that the disk fills up between two steps.
    with Server(disk.data, "--durability", "none", "--pack-bytes-per-s", "500000") as server:
        for changes in range(1, 13):
            if total == 0 or "packed" in outcomes:
                add_parts(server, range(parts, parts + PACKED_PARTS))
                parts += PACKED_PARTS
                total += 100 * PACKED_PARTS
            is_packed = pack_while_the_disk_fills_up(disk, server, changes)
            outcomes.add("packed" if is_packed else "full")
            assert sums_of_both_formats(server) == [total, total]
            if not is_packed:
                # It may have written one segment, and failed when it made one of eight.
                wait_until(lambda: names_in(disk, "tmp") == [], "no drafts are left")
                assert without_receipt(disk) == []
            disk.make_room()
        assert "full" in outcomes
        assert pack_or_full(begin_packing(server))
        assert sums_of_both_formats(server) == [total, total]
        server.kill()
    check_after_packing(disk, total)
