"""Packing small parts into segments: on request and in the background, after `kill -9` at every step, beside other programs that
read the Parquet files, and with damaged files. (That no answer changes is tested in tests/packing.rs.)
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import List

import grpc
import pyarrow.dataset
import pytest
import requests
import table_pb2
import tally_pb2
from conftest import Server, binary, clean_environment, table, tally, wait_until
from http_calls import ANSWER_SECONDS_MAX, metrics
from uploads import stream

KILL_ON_CHANGE = Path(__file__).with_name("kill_on_change.py")
PARTS = 24


def csv_of(number: int) -> bytes:
    """The sum of x over these files shows which of them a table has. Every third file has other columns."""
    if number % 3 == 0:
        return f"note,x\nfile {number},{1 << number}\n,\n".encode()
    return f"x,y\n{1 << number},a\n,b\n".encode()


def sum_of(server: Server) -> int:
    """The sum of x, which is the same from both formats."""
    ask = table(server).ColumnSum
    answers = [ask(table_pb2.ColSumReq(column="x", format=format)) for format in ("csv", "parquet")]
    assert [answer.error for answer in answers] == ["", ""]
    assert answers[0].total == answers[1].total
    return answers[0].total


def run_tally(server: Server, *arguments: str) -> subprocess.CompletedProcess:
    environment = clean_environment(TALLY_SERVER=server.address)
    return subprocess.run([binary(), *arguments], env=environment, capture_output=True, encoding="utf-8", timeout=60)


def pack(server: Server) -> tally_pb2.PackResponse:
    return tally(server).Pack(tally_pb2.PackRequest())


def numbers(server: Server) -> List[int]:
    return [receipt.part for receipt in tally(server).ListParts(tally_pb2.ListPartsRequest())]


def download(server: Server, part: int) -> bytes:
    answer = requests.get(f"{server.http}/api/v1/table/parts/{part}/csv", timeout=ANSWER_SECONDS_MAX)
    assert answer.status_code == 200, answer.text
    return answer.content


def check_table(server: Server, present: List[int]) -> None:
    assert server.quarantine_count_at_start == 0
    assert sum_of(server) == sum(1 << number for number in present)
    assert numbers(server) == present
    for number in present[::5]:
        assert download(server, number) == csv_of(number)
    progress = list(tally(server).Verify(tally_pb2.VerifyRequest()))
    assert [damaged.file for message in progress for damaged in message.damaged] == []


@pytest.fixture(name="prepared", scope="module")
def prepared_folder(tmp_path_factory) -> Path:
    """The path of a data folder that the first test makes: a segment with a removed and a purged part, and parts after it."""
    return tmp_path_factory.mktemp("prepared") / "data"


def prepare(start_server, folder: Path) -> None:
    if folder.exists():
        return
    server = start_server(folder)
    for number in range(1, PARTS // 2 + 1):
        assert stream(server, csv_of(number)).part == number
    assert pack(server).segments_written == 1
    for number in range(PARTS // 2 + 1, PARTS + 1):
        stream(server, csv_of(number))
    remove = tally(server).RemovePart
    remove(tally_pb2.RemovePartRequest(part=3))
    remove(tally_pb2.RemovePartRequest(part=4, purge=True))
    remove(tally_pb2.RemovePartRequest(part=20))
    server.stop()


def kill_on_change(server: Server, data: Path, count: int) -> subprocess.Popen:
    """Kills the server at its next change of the data folder after `count - 1` others."""
    folders = [str(data / name) for name in ("parts", "tmp", "removed")]
    arguments = [sys.executable, KILL_ON_CHANGE, str(server.process.pid), str(count), *folders]
    killer = subprocess.Popen(arguments, stdout=subprocess.PIPE, encoding="utf-8")
    assert killer.stdout.readline() == "watching\n"
    return killer


PRESENT = [number for number in range(1, PARTS + 1) if number not in (3, 4, 20)]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 9, 11, 13, 14, 15, 16, 17, 18, 19, 20, 22, 25, 30, 40, 60])
def test_killed_while_it_packs(start_server, tmp_path, prepared, count):
    """Whatever was killed, the table is what it was, and can be packed again."""
    prepare(start_server, prepared)
    data = tmp_path / "data"
    shutil.copytree(prepared, data)
    server = start_server(data)
    killer = kill_on_change(server, data, count)
    try:
        pack(server)
        time.sleep(0.1)  # the kill may still come
    except grpc.RpcError:
        server.process.wait(timeout=10)
    was_killed = not server.is_running() and server.process.returncode == -signal.SIGKILL
    server.kill()
    killer.kill()
    killer.wait()
    assert was_killed or count > 40

    server = start_server(data)
    check_table(server, PRESENT)
    pack(server)
    check_table(server, PRESENT)
    restored = tally(server).RestorePart(tally_pb2.RestorePartRequest(part=3))
    assert restored.parts == len(PRESENT) + 1
    assert tally(server).RestorePart(tally_pb2.RestorePartRequest(part=20)).parts == len(PRESENT) + 2
    with pytest.raises(grpc.RpcError) as refused:
        tally(server).RestorePart(tally_pb2.RestorePartRequest(part=4))
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    everything = sorted([*PRESENT, 3, 20])
    check_table(server, everything)
    assert stream(server, b"x\n0\n").part == PARTS + 1
    server.stop()
    server = start_server(data)
    assert numbers(server) == [*everything, PARTS + 1]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 40])
def test_killed_while_a_segment_without_parts_is_dropped(start_server, tmp_path, count):
    """Whenever it is killed, no purged part is back, and no number is used twice."""
    data = tmp_path / "data"
    server = start_server(data)
    for number in range(1, 6):
        stream(server, csv_of(number))
    pack(server)
    for number in range(1, 6):
        tally(server).RemovePart(tally_pb2.RemovePartRequest(part=number, purge=True))
    killer = kill_on_change(server, data, count)
    try:
        pack(server)
        time.sleep(0.1)  # the kill may still come
    except grpc.RpcError:
        server.process.wait(timeout=10)
    was_killed = not server.is_running() and server.process.returncode == -signal.SIGKILL
    server.kill()
    killer.kill()
    killer.wait()
    assert was_killed or count > 16

    for _start in range(2):
        server = start_server(data)
        check_table(server, [])
        server.kill()
    server = start_server(data)
    pack(server)
    assert list((data / "parts").iterdir()) == []
    server.stop()
    server = start_server(data)
    assert stream(server, csv_of(6)).part == 6
    check_table(server, [6])


def test_packing_on_request(start_server, tmp_path):
    server = start_server(tmp_path / "data")
    for number in range(1, PARTS + 1):
        stream(server, csv_of(number))
    assert (metrics(server)["tally_unpacked_parts"], metrics(server)["tally_segments"]) == (PARTS, 0)
    answer = run_tally(server, "pack", "--json")
    assert json.loads(answer.stdout) == {"segments_written": 1, "segments": 1, "unpacked_parts": 0}
    assert run_tally(server, "pack").stdout == "0 segments were written; 1 segments, 0 parts in files of their own\n"
    assert (metrics(server)["tally_unpacked_parts"], metrics(server)["tally_segments"]) == (0, 1)
    assert metrics(server)["tally_parts"] == PARTS
    check_table(server, list(range(1, PARTS + 1)))
    names = {path.name for path in (tmp_path / "data" / "parts").iterdir()}
    segment = f"1-{PARTS}-1"
    extensions = ("csv", "index", "fences", "parquet", "1.parquet", "segment")
    assert names == {f"{segment}.{extension}" for extension in extensions}
    receipt = json.loads((tmp_path / "data" / "parts" / f"{segment}.segment").read_text())
    assert [(file["parts"], file["rows"]) for file in receipt["files"]] == [(16, 32), (8, 16)]


def test_other_programs_count_no_row_twice(start_server, tmp_path):
    """What the segment replaced is not in parts/ any more when the answer comes."""
    data = tmp_path / "data"
    server = start_server(data)
    for number in range(1, 11):
        stream(server, f"x,y\n{1 << number},a\n".encode())
    pack(server)
    found = pyarrow.dataset.dataset(sorted(map(str, (data / "parts").glob("*.parquet")))).to_table()
    assert sum(found["x"].to_pylist()) == sum(1 << number for number in range(1, 11)) == sum_of(server)


def test_what_was_replaced_stays_for_a_minute_however_much_it_is(start_server, tmp_path):
    data = tmp_path / "data"
    server = start_server(data, "--durability", "none")
    count = 5000
    chunk = [tally_pb2.UploadChunk(data=b"x\n1\n")]
    threads = [
        threading.Thread(target=lambda: [tally(server).Upload(iter(chunk)) for _ in range(count // 4)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    def kept() -> int:
        return len(list((data / "removed").glob("*.parquet")))

    started = time.monotonic()
    assert pack(server).segments_written == 5
    while time.monotonic() < started + 59:
        assert kept() == count
        time.sleep(1)
    # Some disks take milliseconds to delete a file.
    wait_until(lambda: kept() == 0, "what was replaced is deleted", 180)
    assert sum_of(server) == count and list((data / "removed").iterdir()) == []


def test_a_backup_while_parts_are_packed(start_server, tmp_path):
    """It has exactly the parts of one moment, without those that were removed, and can be served."""
    data = tmp_path / "data"
    server = start_server(data, "--pack-above", "50", "--durability", "none")
    is_over, failures, uploaded = threading.Event(), [], []

    def upload() -> None:
        try:
            while not is_over.is_set():
                header = "x,y" if len(uploaded) % 5 else "y,x"
                uploaded.append(stream(server, f"{header}\n1,1\n1,1\n".encode()).part)
        except grpc.RpcError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=upload) for _ in range(3)]
    for thread in threads:
        thread.start()
    removed, segments = [], 0
    try:
        for number in range(100):
            wait_until(lambda: len(uploaded) > 300 * number, "more uploads")
            part = uploaded[100 * number]
            tally(server).RemovePart(tally_pb2.RemovePartRequest(part=part, purge=number % 3 == 0))
            removed.append(part)
            before = sum_of_one_moment(server)
            backup, copy = tmp_path / f"backup-{number}", tmp_path / f"copy-{number}"
            made = run_tally(server, "backup", str(backup), "--data", str(data), "--json")
            after = sum_of_one_moment(server)
            assert (made.returncode, made.stderr) == (0, "")
            made = json.loads(made.stdout)
            shutil.copytree(backup, copy)
            shutil.rmtree(backup)
            restored = start_server(copy)
            assert (restored.quarantine_count_at_start, restored.parts_count_at_start) == (0, made["parts"])
            assert sum_of(restored) == made["rows"] and before <= made["rows"] <= after
            assert set(numbers(restored)).isdisjoint(removed)
            progress = list(tally(restored).Verify(tally_pb2.VerifyRequest()))
            assert [damaged.file for message in progress for damaged in message.damaged] == []
            segments = metrics(restored)["tally_segments"]
            restored.stop()
            shutil.rmtree(copy)
            if segments >= 3:
                break
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert failures == [] and segments >= 3


def test_small_parts_are_packed_while_more_arrive(start_server, tmp_path):
    """Uploads, removals and sums go on meanwhile, and every sum has exactly what was acknowledged before it."""
    server = start_server(tmp_path / "data", "--pack-above", "200", "--durability", "none")
    per_client, clients = 900, 4
    failures: List[str] = []

    def upload(seed: int) -> None:
        choices = random.Random(seed)
        try:
            for _ in range(per_client):
                column = choices.choice(["x,y", "y,x"])
                stream(server, f"{column}\n1,1\n1,1\n".encode())
        except grpc.RpcError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=upload, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    sums = []
    while any(thread.is_alive() for thread in threads):
        sums.append(sum_of_one_moment(server))
    for thread in threads:
        thread.join()
    assert failures == [] and sums == sorted(sums)
    total = 2 * per_client * clients
    assert sum_of(server) == total
    wait_until(lambda: metrics(server)["tally_unpacked_parts"] < 200 + 1024, "the parts are packed")
    assert metrics(server)["tally_segments"] >= 1 and metrics(server)["tally_parts"] == total // 2
    assert sum_of(server) == total


def sum_of_one_moment(server: Server) -> int:
    answer = table(server).ColumnSum(table_pb2.ColSumReq(column="x", format=random.choice(["csv", "parquet"])))
    assert answer.error == ""
    return answer.total


@pytest.mark.parametrize("extension", ["csv", "index", "fences", "parquet", "segment"])
def test_damage_in_a_segment_is_found(start_server, tmp_path, extension):
    data = tmp_path / "data"
    server = start_server(data)
    for number in range(1, 41):
        stream(server, f"x\n{number}\n".encode())
    pack(server)
    path = data / "parts" / f"1-40-1.{extension}"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)

    damaged = [found.file for message in tally(server).Verify(tally_pb2.VerifyRequest()) for found in message.damaged]
    assert damaged == [f"parts/1-40-1.{extension}"]
    if extension != "segment":  # it is read at start only
        reads = {"csv": ["csv"], "parquet": ["parquet"], "index": ["csv"], "fences": ["csv"]}[extension]
        for file_format in reads:
            with pytest.raises(grpc.RpcError) as refused:
                table(server).ColumnSum(table_pb2.ColSumReq(column="x", format=file_format))
            assert refused.value.code() == grpc.StatusCode.DATA_LOSS, refused.value
            assert "part " in refused.value.details()
    server.stop()
    server = start_server(data)
    if extension == "segment":
        # Nothing is known of its parts but that they are missing.
        assert server.quarantine_count_at_start == 40
        with pytest.raises(grpc.RpcError) as refused:
            table(server).ColumnSum(table_pb2.ColSumReq(column="x", format="csv"))
        assert refused.value.code() == grpc.StatusCode.DATA_LOSS
    server.stop()


def test_purged_parts_do_not_block_uploads(start_server, tmp_path):
    """Many parts of a large segment are purged; in the background, it is written anew without them."""
    data = tmp_path / "data"
    server = start_server(data)
    for number in range(1, 201):
        stream(server, f"x\n{number}\n".encode())
    pack(server)
    server.stop()
    server = start_server(data, "--parts-max", "40", "--pack-above", "10")
    assert "nearly full" not in server.stderr  # the parts in the segment do not count
    for number in range(1, 11):  # a quarter of 40, and less than a sixteenth of the segment
        tally(server).RemovePart(tally_pb2.RemovePartRequest(part=number, purge=True))
    wait_until(lambda: not list((data / "removed").glob("*.packed-purged")), "it is written anew")
    assert numbers(server) == list(range(11, 201))
    for number in range(11, 90):
        tally(server).RemovePart(tally_pb2.RemovePartRequest(part=number, purge=True))
    stream(server, b"x\n7\n")
    pack(server)  # what was purged has to go
    assert not list((data / "removed").glob("*.packed-purged"))
    assert sum_of(server) == sum(range(90, 201)) + 7
