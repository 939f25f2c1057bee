"""`tally verify`, offline and through the server, and the scrub in the background: every damaged file is found, no
whole one is.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Dict, List, Optional
from urllib.request import urlopen

import grpc
import pytest
import requests
import table_pb2
import tally_pb2
import tally_pb2_grpc
from conftest import CHANNEL_OPTIONS, Server, binary, clean_environment, table, tally, wait_until

TASKS = "/api/v1/file-processing/tasks"
ANSWER_SECONDS_MAX = 60
# A part that is in one block, one with a list of checksums, one of text, one with the columns of the statistics.
CSVS = [
    b"x,y\n1,10\n2,20\n",
    b"x,y\n" + b"".join(b"%d,%d\n" % (row, row * row) for row in range(20_000)),
    b"name,x\n" + b"".join(b'"name, %d",%d\n' % (row % 97, row) for row in range(3_000)),
    b"Question,LocationDesc,Data_Value,StratificationCategory1,Stratification1\nq,Ohio,1.5,c,s\n",
]
X_TOTAL = 3 + sum(range(20_000)) + sum(range(3_000))


def plays(rows: int) -> bytes:
    return b"Song,Date,Number of Plays\n" + b"".join(b"song %d,2024-01-01,1\n" % row for row in range(rows))


def upload(server: Server, csv: bytes) -> int:
    return tally(server).Upload(iter([tally_pb2.UploadChunk(data=csv)])).part


def submit_task(server: Server, content: bytes) -> str:
    answer = requests.post(server.http + TASKS + "/", files={"file": ("plays.csv", content)}, timeout=60)
    assert answer.status_code == 202, answer.text
    return answer.json()["task"]["id"]


def task_status(server: Server, task: str) -> str:
    answer = requests.get(f"{server.http}{TASKS}/{task}/status", timeout=60)
    return answer.json()["task"]["status"] if answer.ok else "GONE"


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    """A folder with four parts and the results of a task and of a statistic, all undamaged."""
    folder = tmp_path_factory.mktemp("verify") / "data"
    with Server(folder) as server:
        assert [upload(server, csv) for csv in CSVS] == [1, 2, 3, 4]
        task = submit_task(server, plays(9_000))
        wait_until(lambda: task_status(server, task) == "COMPLETED", "the task ends")
        asked = requests.post(server.http + "/api/global_mean", json={"question": "q"}, timeout=60)
        job = asked.json()["job_id"]
        state = f"{server.http}/api/jobs/{job}"
        wait_until(lambda: requests.get(state, timeout=60).json()["state"] == "done", "the statistic ends")
        server.stop()
    return folder


@pytest.fixture
def data(filled, tmp_path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(filled, tmp_path / "data"))


class Verified:
    """The output of `tally verify --json`."""

    def __init__(self, *arguments, env: Optional[Dict[str, str]] = None, cwd=None):
        done = subprocess.run(
            [str(binary()), "verify", "--json", *map(str, arguments)],
            env=clean_environment(**(env or {})),
            cwd=cwd,
            capture_output=True,
            encoding="utf-8",
            timeout=ANSWER_SECONDS_MAX,
        )
        assert "panicked" not in done.stderr
        self.code, self.stderr = done.returncode, done.stderr
        objects = [json.loads(line) for line in done.stdout.splitlines()]
        self.summary = objects.pop() if objects else {}
        self.damaged = {one["file"]: one["what"] for one in objects}

    def files(self) -> List[str]:
        """The damaged files. Exit code and summary must agree with them."""
        assert self.stderr == ""
        assert self.code == (1 if self.damaged else 0)
        assert self.summary["damaged"] == len(self.damaged)
        return sorted(self.damaged)


def tree(folder: Path) -> dict:
    """What is in a folder: content by relative path. The lock file may change."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path != folder / "lock"
    }


def flip(path: Path, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[min(int(len(content) * at), len(content) - 1)] ^= 0x10
    path.write_bytes(content)


def flip_first(path: Path) -> None:
    flip(path, 0)


def flip_last(path: Path) -> None:
    flip(path, 1)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def extend(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"\n")


def stored_files(folder: Path) -> List[str]:
    """All files that must be as they were written."""
    return sorted(name for name in tree(folder) if name.split("/")[0] in ("parts", "jobs"))


def damages(folder: Path) -> List[tuple]:
    """Files, and a kind of damage for each."""
    does = [flip, flip_first, flip_last, cut, extend]
    return [(name, do) for name in stored_files(folder) for do in does]


def part_of(name: str) -> Optional[int]:
    return int(Path(name).stem) if name.startswith("parts/") else None


def owner(name: str) -> str:
    """Files of one part or job: any of them may be reported if one is missing."""
    return name.split(".")[0]


# --- offline ------------------------------------------------------------------------------------------------


def test_a_whole_folder_is_whole_and_left_as_it_is(data):
    before = tree(data)
    verified = Verified(data)
    assert verified.files() == []
    # The list of checksums of a job's result belongs to the result.
    lists = [name for name in stored_files(data) if name.startswith("jobs/") and name.endswith("-sums")]
    assert verified.summary["files"] == len(stored_files(data)) - len(lists)
    assert verified.summary["bytes"] >= sum(len(csv) for csv in CSVS)
    assert verified.summary["set_aside"] == [] and verified.summary["quarantined"] == 0
    assert tree(data) == before
    plain = subprocess.run([str(binary()), "verify", str(data)], capture_output=True, encoding="utf-8")
    assert plain.returncode == 0 and plain.stdout.endswith(": 0 damaged\n"), plain


def test_every_damaged_file_is_found_and_damaged_parts_are_set_aside(filled, tmp_path):
    assert any(name.endswith(".sums") for name in stored_files(filled))
    for name, do in damages(filled):
        folder = Path(shutil.copytree(filled, tmp_path / "data"))
        do(folder / name)
        before = tree(folder)
        verified = Verified(folder)
        assert {owner(file) for file in verified.files()} == {owner(name)}, (name, do.__name__, verified.damaged)
        part = part_of(name)
        assert verified.summary["set_aside"] == ([part] if part else []), (name, do.__name__)
        assert verified.summary["quarantined"] == (1 if part else 0)
        # Nothing is lost: the files of the part are in quarantine, and those of jobs are where they were.
        moved = {
            (f"quarantine/{path.split('/')[1]}" if part_of(path) == part and part else path): content
            for path, content in before.items()
        }
        assert tree(folder) == moved, (name, do.__name__)
        if part:
            again = Verified(folder)
            assert again.files() == [] and again.summary["quarantined"] == 1
        shutil.rmtree(folder)


def test_the_file_that_is_damaged_is_the_one_that_is_named(data):
    names = ["parts/1.csv", "parts/2.csv", "parts/2.parquet", "parts/2.sums", "parts/3.json"]
    names += [name for name in stored_files(data) if name.endswith(".result")]
    for name in names:
        flip(data / name)
    verified = Verified(data)
    # Without its list of checksums a CSV cannot be verified block by block, so it may be named, too.
    assert verified.files() == sorted(names)
    for name, what in verified.damaged.items():
        part = part_of(name)
        assert (f"part {part} is damaged" if part else "job ") in what, what
    assert verified.summary["set_aside"] == [1, 2, 3]


def flip_field(path: Path, key: str) -> None:
    """A digit of the receipt's last field of that name."""
    text = path.read_text()
    at = text.rindex(f'"{key}":') + len(key) + 4
    path.write_text(text[:at] + ("1" if text[at] == "0" else "0") + text[at + 1 :])


def test_a_damaged_receipt_hides_no_other_damage(data):
    """The server is not there to say what the receipt was: what is left of it has to do."""
    copies = data.parent / "copies"
    for kinds in (["csv"], ["parquet"], ["sums"], ["csv", "parquet", "sums"]):
        folder = Path(shutil.copytree(data, copies))
        flip_field(folder / "parts" / "2.json", "rows")
        flip_field(folder / "parts" / "3.json", "rows")
        for kind in kinds:
            flip(folder / "parts" / f"2.{kind}")
            flip(folder / "parts" / f"3.{kind}") if kind != "sums" else None
        verified = Verified(folder)
        expected = [f"parts/2.{kind}" for kind in kinds] + [f"parts/3.{kind}" for kind in kinds if kind != "sums"]
        assert verified.files() == sorted([*expected, "parts/2.json", "parts/3.json"]), (kinds, verified.damaged)
        assert verified.summary["set_aside"] == [2, 3]
        shutil.rmtree(copies)


def test_a_receipt_whose_checksum_of_a_file_is_damaged_accuses_no_file(data):
    for part in (1, 2):
        receipt = data / "parts" / f"{part}.json"
        text = receipt.read_text()
        at = text.index('"xxh3":"') + len('"xxh3":"')
        receipt.write_text(text[:at] + ("1" if text[at] == "0" else "0") + text[at + 1 :])
    (data / "parts" / "3.json").write_bytes(b"")
    assert Verified(data).files() == ["parts/1.json", "parts/2.json", "parts/3.json"]


def test_parts_that_two_have_exchanged_are_damaged(filled, tmp_path):
    for kind in ("csv", "parquet", "json"):
        folder = Path(shutil.copytree(filled, tmp_path / "data"))
        first, second = (folder / "parts" / f"{part}.{kind}" for part in (1, 4))
        content = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(content)
        verified = Verified(folder)
        assert {owner(file) for file in verified.files()} == {"parts/1", "parts/4"}, (kind, verified.damaged)
        assert verified.summary["set_aside"] == [1, 4]
        shutil.rmtree(folder)


def as_version_1(folder: Path) -> None:
    """Receipts of format version 1, which have no checksums of blocks."""
    for path in (folder / "parts").glob("*.json"):
        receipt = json.loads(path.read_text())
        receipt["format"] = 1
        receipt.pop("checks", None)
        receipt.pop("record_xxh3", None)
        path.write_text(json.dumps(receipt))
    for path in (folder / "parts").glob("*.sums"):
        path.unlink()


def test_parts_of_version_1_are_verified_by_their_checksums(filled, tmp_path):
    folder = Path(shutil.copytree(filled, tmp_path / "data"))
    as_version_1(folder)
    before = tree(folder)
    assert Verified(folder).files() == []
    assert tree(folder) == before
    for name in ("parts/1.csv", "parts/2.csv", "parts/2.parquet", "parts/4.parquet"):
        flip(folder / name)
    assert Verified(folder).files() == ["parts/1.csv", "parts/2.csv", "parts/2.parquet", "parts/4.parquet"]


def test_the_input_of_a_job_that_has_not_ended_is_verified(start_server, tmp_path):
    data = tmp_path / "data"
    server = start_server(data)
    tasks = [submit_task(server, plays(200_000)) for _ in range(6)]
    server.kill()
    assert Verified(data).files() == []
    waiting = [task for task in tasks if (data / "jobs" / f"{task}.input").exists()]
    assert waiting, "the last one cannot have ended"
    flip(data / "jobs" / f"{waiting[-1]}.input")
    assert Verified(data).files() == [f"jobs/{waiting[-1]}.input"]


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    for arguments, cwd in (([tmp_path / "nowhere"], None), ([], tmp_path)):
        verified = Verified(*arguments, cwd=cwd)
        assert verified.code == 1 and "it is not there" in verified.stderr, verified.stderr
    assert list(tmp_path.iterdir()) == []


# --- through the server -------------------------------------------------------------------------------------


def test_a_server_finds_every_damaged_file_and_touches_none(start_server, data):
    server = start_server(data)
    assert Verified(data, "--server", server.address).files() == []
    assert Verified("--server", server.address).files() == []
    for name, do in damages(data):
        path = data / name
        whole = path.read_bytes()
        do(path)
        before = tree(data)
        verified = Verified("--addr", server.address)
        assert {owner(file) for file in verified.files()} == {owner(name)}, (name, do.__name__, verified.damaged)
        assert verified.summary["set_aside"] == []
        assert tree(data) == before
        path.write_bytes(whole)
    # The restored file is valid, and no part was removed from the table.
    assert Verified(data, env={"TALLY_SERVER": server.address}).files() == []
    answer = table(server).ColumnSum(table_pb2.ColSumReq(column="x", format="csv"))
    assert (answer.total, answer.error) == (X_TOTAL, "")


def test_another_server_is_not_asked(start_server, data, tmp_path):
    start_server(data)
    other = start_server(tmp_path / "other")
    verified = Verified(data, "--server", other.address)
    assert verified.code == 1 and "holds the data folder" in verified.stderr, verified.stderr


def test_a_part_in_quarantine_is_told(start_server, data):
    cut(data / "parts" / "1.csv")
    server = start_server(data)
    verified = Verified("--server", server.address)
    assert verified.files() == [] and verified.summary["quarantined"] == 1


def test_one_verification_at_a_time_beside_uploads_and_sums(start_server, tmp_path):
    parts_count = 600
    data = tmp_path / "data"
    server = start_server(data, "--durability", "none")
    for part in range(parts_count):
        assert upload(server, b"x\n1\n") == part + 1
    # There are so many damaged files that the server has to wait for a client that does not read.
    for path in (data / "parts").iterdir():
        cut(path)
    options = [*CHANNEL_OPTIONS, ("grpc.http2.bdp_probe", 0)]
    with grpc.insecure_channel(server.address, options=options) as channel:
        first = tally_pb2_grpc.TallyStub(channel).Verify(tally_pb2.VerifyRequest())
        next(first)
        assert upload(server, b"y\n1\n2\n") == parts_count + 1
        answer = table(server).ColumnSum(table_pb2.ColSumReq(column="z", format="csv"))
        assert (answer.total, answer.error) == (0, "")

        def verifies():
            try:
                return list(tally(server).Verify(tally_pb2.VerifyRequest()))
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error
                return None

        # Its client does not read, so it is ended when another one waits.
        second = wait_until(verifies, "room for a verification")
        damaged = [one.file for part in second for one in part.damaged]
        assert len(damaged) == len(set(damaged)) >= parts_count
        with pytest.raises(grpc.RpcError) as failure:
            list(first)
        assert failure.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, failure.value
        assert failure.value.details() == "the transfer was 2 s behind 1 KiB/s, and was ended"
    # A verification that is cancelled makes room for the next.
    with grpc.insecure_channel(server.address, options=options) as channel:
        next(tally_pb2_grpc.TallyStub(channel).Verify(tally_pb2.VerifyRequest()))
    wait_until(verifies, "the one that was given up ends")


def test_jobs_that_come_and_go_are_not_damaged(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--jobs-sweep-s", "1")
    content = plays(50_000)
    left = {submit_task(server, content) for _ in range(6)}
    verifications = 0

    def all_are_fetched_and_removed() -> bool:
        nonlocal verifications
        for progress in tally(server).Verify(tally_pb2.VerifyRequest()):
            assert not progress.damaged
        verifications += 1
        for task in list(left):
            status = task_status(server, task)
            assert status != "FAILED"
            if status == "COMPLETED":
                assert requests.get(f"{server.http}{TASKS}/{task}/download", timeout=60).ok
            elif status == "DOWNLOADED" and not (server.data / "jobs" / f"{task}.result").exists():
                left.discard(task)
        return not left

    wait_until(all_are_fetched_and_removed, "all results are fetched", seconds=ANSWER_SECONDS_MAX)
    assert verifications > 3


# --- in the background --------------------------------------------------------------------------------------


def damaged_files(server: Server) -> int:
    with urlopen(f"{server.http}/metrics", timeout=ANSWER_SECONDS_MAX) as answer:
        lines = answer.read().decode().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("tally_damaged_files "))


def scrubs(server: Server) -> int:
    return server.stderr.count("scrubbed")


def test_the_scrub_finds_damage_and_sees_that_it_is_gone(start_server, data):
    server = start_server(data, "--scrub-interval", "1")
    wait_until(lambda: scrubs(server) > 0, "a scrub")
    assert damaged_files(server) == 0
    names = ["parts/1.parquet", next(name for name in stored_files(data) if name.endswith(".result"))]
    whole = {name: (data / name).read_bytes() for name in names}
    for name in names:
        flip(data / name)
    before = tree(data)
    wait_until(lambda: damaged_files(server) == len(names), "the damage is found")
    for name in names:
        server.log_line(name, "ERROR")
    assert tree(data) == before
    for name in names:
        (data / name).write_bytes(whole[name])
    wait_until(lambda: damaged_files(server) == 0, "what was put back is whole")
    server.stop()


def test_there_is_no_scrub_unless_it_is_wanted(start_server, data):
    flip(data / "parts" / "1.parquet")
    server = start_server(data, env={"TALLY_SCRUB_INTERVAL_S": "1"})
    wait_until(lambda: damaged_files(server) == 1, "the damage is found")
    quiet = start_server(Path(shutil.copytree(data, data.parent / "copy")))
    seen = scrubs(server)
    wait_until(lambda: scrubs(server) > seen + 1, "two more scrubs")
    assert (damaged_files(quiet), scrubs(quiet)) == (0, 0)
