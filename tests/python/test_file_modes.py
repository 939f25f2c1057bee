"""`--file-mode`: who may read and write the files of the server."""

import os
import stat
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import tally_pb2
from conftest import Server, tally, wait_until

ANSWER_SECONDS_MAX = 60
TASK_FORM = (
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="f.csv"\r\n\r\n'
    b"Song,Date,Number of Plays\na,2024-01-01,1\n\r\n--b--\r\n"
)


def upload(server: Server, rows: int = 1) -> tally_pb2.Receipt:
    csv = b"x,y\n" + b"1,a\n" * rows
    return tally(server).Upload(iter([tally_pb2.UploadChunk(data=csv)]), timeout=ANSWER_SECONDS_MAX)


def modes(folder: Path) -> dict:
    """The number of folders and of files for each mode."""
    found = {"folders": {}, "files": {}}
    for path in [folder, *folder.rglob("*")]:
        kind, mode = ("folders" if path.is_dir() else "files"), oct(stat.S_IMODE(path.stat().st_mode))
        found[kind][mode] = found[kind].get(mode, 0) + 1
    return found


def fill(server: Server) -> None:
    """Uploads a small and a large part, and runs a task."""
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
    assert found["folders"] == {folders: 6} and set(found["files"]) == {files}, found
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
    server.log_line('folder="parts" old="2777" new="2700"')
    found = modes(data)
    assert set(found["files"]) == {"0o600"}
    # The mode of the data folder itself is left alone: its owner may have chosen it.
    assert found["folders"] == {"0o755": 1, "0o2700": 1, "0o700": 4}
    server.stop()
    server = start_server(data)
    assert "mode" not in server.stderr, "nothing is left to change"
    server.stop()

    start_server(data, "--file-mode", "0640")
    found = modes(data)
    assert set(found["files"]) == {"0o640"}
    assert found["folders"] == {"0o755": 1, "0o2750": 1, "0o750": 4}


def test_a_data_folder_that_others_may_write_to_is_warned_of(start_server, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o777)
    start_server(data).log_line("other users may write to the data folder")
    assert oct(stat.S_IMODE(data.stat().st_mode)) == "0o777"
