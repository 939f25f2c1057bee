"""Things in the data folder that the server did not put there: FIFOs, sockets, links, and ids at the end of their
range.
"""

import json
import os
import shutil
import socket
import stat
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import table_pb2
import tally_pb2
from conftest import Server, ServerDidNotStart, step_aside, table, tally, wait_until
from test_damage import in_format_1

CSVS = [b"x\n1\n", b"x\n20\n", b"x\n300\n"]
ANSWER_SECONDS_MAX = 60
LAST_ID = 2**64 - 1


@pytest.fixture
def data(tmp_path) -> Path:
    """A folder with three parts, whose server has stopped."""
    folder = tmp_path / "data"
    with Server(folder) as server:
        for csv in CSVS:
            assert table(server).Upload(table_pb2.UploadReq(csv_data=csv)).error == ""
        server.stop()
    return folder


def column_sum(server: Server, file_format: str) -> int:
    request = table_pb2.ColSumReq(column="x", format=file_format)
    answer = table(server).ColumnSum(request, timeout=ANSWER_SECONDS_MAX)
    assert answer.error == ""
    return answer.total


def error_of(call) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as failure:
        call()
    return failure.value


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    # The path of a socket has at most 108 bytes, so the path is relative to its folder.
    folder = os.open(path.parent, os.O_PATH)
    try:
        socket.socket(socket.AF_UNIX).bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def make_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        step_aside("only root may make a device")


def make_link_to_itself_elsewhere(path: Path) -> None:
    """Replaces a file by a symbolic link to its content, or to another file with a cell."""
    elsewhere = path.parents[1] / f"elsewhere-{path.name}"
    if path.is_dir():
        shutil.copytree(path, elsewhere)
        shutil.rmtree(path)
    elif path.exists():
        path.rename(elsewhere)
    else:
        elsewhere.write_bytes(b"x\n5\n")
    path.symlink_to(elsewhere)


def make_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


KINDS = [
    (make_fifo, "a FIFO"),
    (make_socket, "a socket"),
    (make_device, "a character device"),
    (make_link_to_itself_elsewhere, "a symbolic link"),
    (make_dangling_link, "a symbolic link"),
]
FILES = [
    "lock",
    "anything",
    "parts/2.csv",
    "parts/2.parquet",
    "parts/2.json",
    "parts/9.json",
    "parts/9.csv",
    "parts/anything",
    "jobs/job_id_7.json",
    "jobs/job_id_7.result",
    "tmp/1",
    "quarantine/7.json",
]
FOLDERS = ["tmp", "parts", "jobs", "quarantine", "removed"]


def names_and_contents(folder: Path) -> dict:
    """Of all that is there, without following a link or opening what is no file."""
    found = {}
    for path in folder.rglob("*"):
        is_file = stat.S_ISREG(path.lstat().st_mode) and path.name != "lock"
        found[str(path.relative_to(folder))] = path.read_bytes() if is_file else stat.S_IFMT(path.lstat().st_mode)
    return found


def check_refused(data: Path, name: str, kind: str) -> None:
    """The start fails, names the file and its kind, and changes nothing."""
    (data / "tmp" / "leftover").write_bytes(b"x\n1")
    before = names_and_contents(data)
    with pytest.raises(ServerDidNotStart) as failure:
        Server(data)
    assert failure.value.exit_code == 1, failure.value.stderr
    assert f"data folder {data}: {name} is {kind}, " in failure.value.stderr, failure.value.stderr
    assert names_and_contents(data) == before


@pytest.mark.parametrize("make, kind", KINDS, ids=[make.__name__ for make, _kind in KINDS])
def test_what_is_no_regular_file_is_refused_by_name(data, make, kind):
    path = data / "parts" / "2.csv"
    if make is not make_link_to_itself_elsewhere:
        path.unlink()
    make(path)
    check_refused(data, "parts/2.csv", kind)


@pytest.mark.parametrize("name", FILES)
def test_it_is_refused_wherever_it_is(data, tmp_path, name):
    for make, kind in ((make_fifo, "a FIFO"), (make_link_to_itself_elsewhere, "a symbolic link")):
        copy = tmp_path / make.__name__
        shutil.copytree(data, copy)
        if make is make_fifo:
            (copy / name).unlink(missing_ok=True)
        make(copy / name)
        check_refused(copy, name, kind)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_a_link_is_refused(data, tmp_path, name):
    moved = tmp_path / "moved"
    (data / name).rename(moved)
    (data / name).symlink_to(moved, target_is_directory=True)
    before = names_and_contents(tmp_path)
    with pytest.raises(ServerDidNotStart) as failure:
        Server(data)
    assert failure.value.exit_code == 1
    assert f"data folder {data}: {name} is a symbolic link, " in failure.value.stderr
    assert names_and_contents(tmp_path) == before


def test_a_data_folder_may_itself_be_named_by_a_link(start_server, data, tmp_path):
    (tmp_path / "link").symlink_to(data, target_is_directory=True)
    assert column_sum(start_server(tmp_path / "link"), "csv") == 321


@pytest.mark.parametrize("make", [make_fifo, make_socket, make_link_to_itself_elsewhere])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_replaced_while_serving_holds_up_nobody(start_server, data, make, kind):
    server = start_server(data)
    path, other = data / "parts" / f"2.{kind}", "parquet" if kind == "csv" else "csv"
    whole = path.read_bytes()
    if make is not make_link_to_itself_elsewhere:
        path.unlink()
    make(path)

    # More requests than workers: a worker that waits for the file would be missing.
    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(error_of, lambda: column_sum(server, kind)) for _ in range(20)]
        for answer in asked:
            error = answer.result()
            assert error.code() == grpc.StatusCode.DATA_LOSS, error
            assert "part 2 is damaged" in error.details() and "not a regular file" in error.details(), error
    assert column_sum(server, other) == 321

    path.unlink()
    path.write_bytes(whole)
    assert column_sum(server, kind) == 321, "it was put back"


def test_a_receipt_replaced_while_serving_holds_up_nobody(start_server, data):
    server = start_server(data)
    path = data / "parts" / "2.json"
    path.unlink()
    os.mkfifo(path)
    for _ in range(20):
        request = tally_pb2.ListPartsRequest()
        receipts = list(tally(server).ListParts(request, timeout=ANSWER_SECONDS_MAX))
        assert ["FIFO" in receipt.damaged for receipt in receipts] == [False, True, False]
        assert "part 2 is damaged" in receipts[1].damaged


def test_a_result_replaced_while_serving_holds_up_nobody(start_server, data):
    server = start_server(data)
    tasks = f"{server.http}/api/v1/file-processing/tasks/"
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f.csv"\r\n\r\n'
    form += b"Song,Date,Number of Plays\na,2024-01-01,1\n\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    with urllib.request.urlopen(urllib.request.Request(tasks, form, headers), timeout=ANSWER_SECONDS_MAX) as answer:
        assert answer.status in (200, 201, 202)
    results = data / "jobs"
    path = wait_until(lambda: next(results.glob("*.result"), None), "the task has a result")

    def is_done() -> bool:
        with urllib.request.urlopen(f"{server.http}/metrics", timeout=ANSWER_SECONDS_MAX) as answer:
            return b'tally_jobs{state="done"} 1\n' in answer.read()

    wait_until(is_done, "and is done")
    path.unlink()
    os.mkfifo(path)
    for _ in range(20):
        with pytest.raises(urllib.error.HTTPError) as failure:
            urllib.request.urlopen(f"{tasks}{path.stem}/download", timeout=ANSWER_SECONDS_MAX)
        assert failure.value.code >= 500
    assert column_sum(server, "csv") == 321


@pytest.mark.parametrize("make", [make_fifo, make_dangling_link, make_link_to_itself_elsewhere])
def test_an_upload_writes_through_nothing_that_has_its_name(start_server, data, make):
    server = start_server(data)
    target = data / "elsewhere-4.csv"
    make(data / "parts" / "4.csv")
    csv = b"x\n4000\n"
    upload = tally(server).Upload.future(iter([tally_pb2.UploadChunk(data=csv)]), timeout=ANSWER_SECONDS_MAX)
    assert upload.result().part == 4
    path = data / "parts" / "4.csv"
    assert stat.S_ISREG(path.lstat().st_mode) and path.read_bytes() == csv
    assert not target.exists() or target.read_bytes() == b"x\n5\n"
    assert not (data / "parts" / "nowhere").exists()
    assert column_sum(server, "csv") == 4321


def rename_part(data: Path, old: int, new: int) -> None:
    parts = data / "parts"
    receipt = json.loads((parts / f"{old}.json").read_text())
    (parts / f"{old}.json").unlink()
    # As the first version wrote them: without a checksum of its own.
    (parts / f"{new}.json").write_bytes(in_format_1({**receipt, "part": new}))
    for kind in ("csv", "parquet"):
        (parts / f"{old}.{kind}").rename(parts / f"{new}.{kind}")


def test_a_part_with_the_last_id_is_set_aside_and_ids_go_on(start_server, data):
    rename_part(data, 3, LAST_ID)
    for start in range(2):
        server = start_server(data)
        assert server.quarantine_count_at_start == 1
        assert server.parts_count_at_start == 2 + start
        upload = tally(server).Upload(iter([tally_pb2.UploadChunk(data=b"x\n4000\n")]))
        assert upload.part == 3 + start
        server.stop()
    assert (data / "quarantine" / f"{LAST_ID}.csv").read_bytes() == CSVS[2]


def test_no_id_is_given_out_twice_at_the_end_of_their_range(start_server, data):
    rename_part(data, 3, LAST_ID - 1)
    server = start_server(data)
    assert column_sum(server, "csv") == 321
    for _ in range(2):
        error = error_of(lambda: tally(server).Upload(iter([tally_pb2.UploadChunk(data=b"x\n4000\n")])))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error
    assert column_sum(server, "csv") == 321
