"""`/livez` and `/readyz`: while the server drains, while no worker answers, while the data folder cannot be written."""

import contextlib
import ctypes
import os
import signal
from pathlib import Path
from typing import List

import table_pb2
import tally_pb2
from conftest import Server, step_aside, table, tally, wait_until
from http_calls import ANSWER_SECONDS_MAX, ask, get, metrics


def test_probes_see_the_drain(server):
    assert get(server, "/livez").text == "alive\n"
    assert probe(server, "/readyz") == (200, "ready\n")
    sent, go_on = [b"x\n1\n", b"2\n"], []

    def chunks():
        yield tally_pb2.UploadChunk(data=sent[0])
        wait_until(lambda: go_on, "the end of the drain")
        yield tally_pb2.UploadChunk(data=sent[1])

    upload = tally(server).Upload.future(chunks())
    wait_until(lambda: metrics(server)["tally_received_bytes_total"] == len(sent[0]), "half of an upload")
    os.kill(server.pid, signal.SIGTERM)
    wait_until(lambda: get(server, "/readyz").status_code == 503, "the drain")
    assert get(server, "/livez").status_code == 200
    assert ask(server, "states_mean", {"question": "x"}).status_code == 405
    go_on.append(True)
    assert upload.result(ANSWER_SECONDS_MAX).rows == 2
    assert server.wait() == 0


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
    """Stops these threads of a process and no others, as a disk that hangs would."""
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


def probe(server: Server, path: str) -> tuple:
    """Status code and text."""
    answer = get(server, path)
    return answer.status_code, answer.text


def test_readyz_fails_while_no_worker_is_free_and_livez_does_not(server):
    threads = workers(server)
    assert len(threads) == 8 and probe(server, "/readyz") == (200, "ready\n")
    with held(threads):
        for _ in range(3):
            assert probe(server, "/readyz") == (503, "not ready: a worker did not answer within 2 s\n")
            assert probe(server, "/livez") == (200, "alive\n")
    assert probe(server, "/readyz") == (200, "ready\n")
    assert table(server).Upload(table_pb2.UploadReq(csv_data=b"x\n1\n")).error == ""


def test_readyz_says_when_the_data_folder_cannot_be_written(server):
    (server.data / "tmp").rmdir()
    status, text = probe(server, "/readyz")
    assert status == 503 and text.startswith("not ready: a temporary file: No such file or directory"), text
    (server.data / "tmp").mkdir(0o700)
    assert probe(server, "/readyz") == (200, "ready\n")
