"""What those who run a server count on: who may read its files, when its table is full, whether it gets work done."""

import contextlib
import ctypes
import os
import stat
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import List

import grpc
import pytest
import table_pb2
import tally_pb2
from conftest import Server, step_aside, table, tally, wait_until

ANSWER_SECONDS_MAX = 60
TASK_FORM = (
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="f.csv"\r\n\r\n'
    b"Song,Date,Number of Plays\na,2024-01-01,1\n\r\n--b--\r\n"
)


def upload(server: Server, rows: int = 1) -> tally_pb2.Receipt:
    csv = b"x,y\n" + b"1,a\n" * rows
    return tally(server).Upload(iter([tally_pb2.UploadChunk(data=csv)]), timeout=ANSWER_SECONDS_MAX)


def get(server: Server, path: str) -> tuple:
    """Status and text."""
    try:
        with urllib.request.urlopen(server.http + path, timeout=ANSWER_SECONDS_MAX) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metric(server: Server, name: str) -> float:
    lines = get(server, "/metrics")[1].splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name + " "))


# --- who may read the files ---------------------------------------------------------------------------------


def modes(folder: Path) -> dict:
    """How many of the folders and of the files below have which mode."""
    found = {"folders": {}, "files": {}}
    for path in [folder, *folder.rglob("*")]:
        kind, mode = ("folders" if path.is_dir() else "files"), oct(stat.S_IMODE(path.stat().st_mode))
        found[kind][mode] = found[kind].get(mode, 0) + 1
    return found


def fill(server: Server) -> None:
    """Parts that were small and large, a task, and a statistic."""
    upload(server)
    upload(server, 300_000)
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    tasks = urllib.request.Request(server.http + "/api/v1/file-processing/tasks/", TASK_FORM, headers)
    urllib.request.urlopen(tasks, timeout=ANSWER_SECONDS_MAX).close()
    wait_until(lambda: list((server.data / "jobs").glob("*.result")), "the task has a result")
    wait_until(lambda: server.leftovers() == [], "nothing is under way")


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777], ids=oct)
@pytest.mark.parametrize(
    "flags, env, folders, files",
    [
        ([], {}, "0o700", "0o600"),
        (["--file-mode", "0640"], {}, "0o750", "0o640"),
        ([], {"TALLY_FILE_MODE": "666"}, "0o777", "0o666"),
    ],
    ids=["private", "group", "all"],
)
def test_files_have_their_mode_whatever_the_umask(start_server, tmp_path, umask, flags, env, folders, files):
    log = tmp_path / "log"
    before = os.umask(umask)
    try:
        server = start_server(tmp_path / "data", *flags, "--log-file", log, env=env)
    finally:
        os.umask(before)
    fill(server)
    found = modes(tmp_path / "data")
    assert found["folders"] == {folders: 5} and set(found["files"]) == {files}, found
    assert found["files"][files] >= 8
    assert oct(stat.S_IMODE(log.stat().st_mode)) == files


def test_what_an_earlier_start_left_open_is_closed_and_opened_again(start_server, tmp_path):
    data = tmp_path / "data"
    server = start_server(data, "--file-mode", "0644")
    fill(server)
    server.stop()
    os.chmod(data / "parts" / "1.csv", 0o604)
    (data / "parts").chmod(0o2777)

    server = start_server(data)
    assert f'folder="parts" old="2777" new="2700"' in server.stderr
    found = modes(data)
    assert set(found["files"]) == {"0o600"}
    # The data folder itself may be anything that somebody chose.
    assert found["folders"] == {"0o755": 1, "0o2700": 1, "0o700": 3}
    server.stop()
    server = start_server(data)
    assert "mode" not in server.stderr, "nothing is left to change"
    server.stop()

    start_server(data, "--file-mode", "0640")
    found = modes(data)
    assert set(found["files"]) == {"0o640"}
    assert found["folders"] == {"0o755": 1, "0o2750": 1, "0o750": 3}


def test_a_data_folder_that_others_may_write_to_is_warned_of(start_server, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o777)
    assert "others than the server may write to the data folder" in start_server(data).stderr
    assert oct(stat.S_IMODE(data.stat().st_mode)) == "0o777"


# --- a full table -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["none", "fsync"])
def test_a_full_table_says_so_and_warns_before(start_server, tmp_path, durability):
    data, warning = tmp_path / "data", "the table is nearly full"
    server = start_server(data, "--parts-max", "5", "--durability", durability)
    assert (metric(server, "tally_parts"), metric(server, "tally_parts_max")) == (0, 5)
    for _ in range(3):
        upload(server)
    assert warning not in server.stderr
    upload(server)
    wait_until(lambda: server.stderr.count(warning) == 1, "it is warned of")
    assert "parts=4 parts_max=5" in server.stderr
    upload(server)
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as failure:
            upload(server)
        assert failure.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        said = failure.value.details()
        assert "the table is full: it has the 5 parts that --parts-max allows" in said and "higher limit" in said
    with pytest.raises(grpc.RpcError) as failure:
        table(server).Upload(table_pb2.UploadReq(csv_data=b"x\n1\n"))
    assert failure.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (metric(server, "tally_parts"), metric(server, "tally_parts_max")) == (5, 5)
    assert table(server).ColumnSum(table_pb2.ColSumReq(column="x", format="csv")).total == 5
    server.stop()
    assert server.stderr.count(warning) == 1, "once"

    # A lower limit later takes nothing away.
    server = start_server(data, env={"TALLY_PARTS_MAX": "3"})
    assert server.stderr.count(warning) == 1 and "parts=5 parts_max=3" in server.stderr
    assert table(server).ColumnSum(table_pb2.ColSumReq(column="x", format="csv")).total == 5
    with pytest.raises(grpc.RpcError):
        upload(server)
    server.stop()
    server = start_server(data, "--parts-max", "7")
    assert warning not in server.stderr and upload(server).part == 6


def test_uploads_at_once_do_not_pass_the_limit(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--parts-max", "4")
    outcomes: List[str] = []

    def send() -> None:
        try:
            upload(server, 50_000)
            outcomes.append("kept")
        except grpc.RpcError as error:
            outcomes.append(error.code().name)

    threads = [threading.Thread(target=send) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # One that was refused may have held the last place while another asked for it.
    assert outcomes.count("kept") <= 4 and set(outcomes) <= {"kept", "RESOURCE_EXHAUSTED"}, outcomes
    while len(server.parts()) < 4:
        upload(server)
    assert metric(server, "tally_parts") == 4 and server.leftovers() == []


# --- whether work gets done ---------------------------------------------------------------------------------

PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 17, 0x4206, 0x4207
WAIT_FOR_ANY_THREAD = 0x40000000  # __WALL


def ptrace(request: int, thread: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    if libc.ptrace(request, thread, None, None) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def workers(server: Server) -> List[int]:
    tasks = Path(f"/proc/{server.pid}/task")
    names = {int(task.name): (task / "comm").read_text().strip() for task in tasks.iterdir()}
    return [thread for thread, name in names.items() if name.startswith("tally-worker-")]


@contextlib.contextmanager
def held(threads: List[int]):
    """Stops these threads and no other of their process, as a disk that hangs would."""
    stopped = []
    try:
        for thread in threads:
            try:
                ptrace(PTRACE_SEIZE, thread)
            except PermissionError:
                step_aside("this machine does not let a process be traced")
            ptrace(PTRACE_INTERRUPT, thread)
            os.waitpid(thread, WAIT_FOR_ANY_THREAD)
            stopped.append(thread)
        yield
    finally:
        for thread in stopped:
            ptrace(PTRACE_DETACH, thread)


def test_readyz_fails_while_no_worker_is_free_and_livez_does_not(server):
    threads = workers(server)
    assert len(threads) == 8 and get(server, "/readyz") == (200, "ready\n")
    with held(threads):
        for _ in range(3):
            assert get(server, "/readyz") == (503, "not ready: a worker did not answer within 2 s\n")
            assert get(server, "/livez") == (200, "alive\n")
    assert get(server, "/readyz") == (200, "ready\n")
    assert upload(server).rows == 1


def test_readyz_says_when_the_data_folder_cannot_be_written(server):
    (server.data / "tmp").rmdir()
    status, text = get(server, "/readyz")
    assert status == 503 and text.startswith("not ready: a temporary file: No such file or directory"), text
    (server.data / "tmp").mkdir(0o700)
    assert get(server, "/readyz") == (200, "ready\n")
