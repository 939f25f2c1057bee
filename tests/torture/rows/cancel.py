"""Row 9: every call is cancelled, or meets its deadline, at a random point. Afterwards nothing of it is left, and its work stops."""

import random
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, List

import grpc
import requests
import table_pb2
import tally_pb2
import tally_pb2_grpc
from conftest import CHANNEL_OPTIONS, Server, table, tally, wait_until
from core import Breach, Row, Run
from http_calls import PARTS, TASKS
from invariants import check, check_alive, check_no_leftovers, check_verify, open_files
from test_idle_after_calls import Rpc, processor_seconds, rpcs, tasks_count

# Long enough that its sums, and a group sum, are still running when they are cancelled.
ROWS = 3_000_000
CANCEL_SECONDS_MAX = 0.08
AT_ONCE = 8
CHECK_EVERY = 50
STOP_SECONDS_MAX = 2.0
IDLE_CORES_MAX = 0.3
LIBRARY_SECONDS_MAX = 30
CHUNK = b"7,7,7\n" * 10_000
UPLOADS = 24
FORM = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\nSong,Date,Number of Plays\n'


def long_calls(channel: grpc.Channel) -> List[Rpc]:
    """Calls that take a while, beside those of `rpcs`."""
    stub = tally_pb2_grpc.TallyStub(channel)
    groups = tally_pb2.GroupSumRequest(by=["x"], sum=["y"])
    sums = tally_pb2.SumRequest(column="x", formats=[1, 2])
    return [
        Rpc(stub.Sum, sums, sums),
        Rpc(stub.GroupSum, groups, groups, kind="answers"),
        Rpc(stub.Verify, tally_pb2.VerifyRequest(), tally_pb2.VerifyRequest(), kind="answers"),
        Rpc(stub.ListFiles, tally_pb2.ListFilesRequest(format=1), tally_pb2.ListFilesRequest(), kind="answers"),
        Rpc(stub.ListColumns, tally_pb2.ListColumnsRequest(), tally_pb2.ListColumnsRequest(), kind="answers"),
        Rpc(stub.Pack, tally_pb2.PackRequest(), tally_pb2.PackRequest()),
        Rpc(stub.Upload, [b"a,b,c\n", *[CHUNK] * 60], [], kind="upload"),
    ]


def cancel_grpc(server: Server, choices: random.Random) -> str:
    """One call that is cancelled after a while, or that has too short a deadline."""
    with grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
        rpc = choices.choice(rpcs(channel) + 2 * long_calls(channel))
        seconds = choices.uniform(0, CANCEL_SECONDS_MAX)
        if choices.random() < 0.5:
            call = rpc.start()
            time.sleep(seconds)  # the moment is the subject
            call.cancel()
            return "cancelled"
        question = rpc.questions[0]
        sent = (tally_pb2.UploadChunk(data=content) for content in question) if rpc.kind == "upload" else question
        sent = iter([question]) if rpc.kind == "reflection" else sent
        try:
            call = (rpc.call if rpc.is_streamed_out else rpc.call.future)(sent, timeout=max(0.001, seconds))
            list(call) if rpc.is_streamed_out else call.result(timeout=LIBRARY_SECONDS_MAX)
        except grpc.FutureTimeoutError:
            # grpcio 1.85 has once in many thousand calls not told the end of one. `check_stopped` sees that the server knows none.
            return "deadlines that the client's library did not tell"
        except grpc.RpcError as error:
            check(error.code() in ENDS, f"a deadline ended as {error.code()}: {error.details()}")
        return "deadlines"


ENDS = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


def http_requests() -> List[bytes]:
    head = "Host: localhost\r\n"
    body = FORM + b"a,2020-01-01,1\n" * 20_000 + b"\r\n--B--\r\n"
    form = f"POST {TASKS} HTTP/1.1\r\n{head}Content-Type: multipart/form-data; boundary=B\r\nContent-Length: {len(body)}\r\n\r\n"
    csv = b"a,b,c\n" + CHUNK * 10
    upload = f"POST {PARTS} HTTP/1.1\r\n{head}Content-Length: {len(csv)}\r\n\r\n"
    paths = [f"{PARTS}/1/csv", f"{PARTS}/1/parquet", PARTS, f"{PARTS}/1/rows", "/api/v1/table/sum?column=x", "/metrics"]
    return [form.encode() + body, upload.encode() + csv, *(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode() for path in paths)]


def cancel_http(server: Server, choices: random.Random) -> str:
    """A request that is broken off within its head, its body, or its answer."""
    host, port = server.http_addresses[0].rsplit(":", 1)
    request = choices.choice(http_requests())
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.setblocking(False)
        whole = choices.random() < 0.5
        try:
            connection.send(request if whole else request[: choices.randrange(len(request))])
            time.sleep(choices.uniform(0, CANCEL_SECONDS_MAX))  # the moment is the subject
            connection.recv(choices.choice([1, 1000, 100_000]))
        except OSError:
            pass
        if choices.random() < 0.5:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return "broken off over HTTP"


def one(server: Server, run: Run, number: int) -> None:
    choices = random.Random(f"{run.seed} {number}")
    way: Callable = cancel_grpc if choices.random() < 0.75 else cancel_http
    run.figures[way(server, choices)] += 1


def check_stopped(server: Server, run: Run, tasks_before: int) -> None:
    """Soon after the last call, nothing works any more, and no file or task of a call is left."""
    begun = time.monotonic()
    while True:
        used, moment = processor_seconds(server.pid), time.monotonic()
        time.sleep(0.2)  # what is measured is the use in this time
        cores = (processor_seconds(server.pid) - used) / (time.monotonic() - moment)
        if cores < IDLE_CORES_MAX:
            break
        check(moment - begun < STOP_SECONDS_MAX, f"{moment - begun:.1f} s after the last call it still uses {cores:.1f} cores")
    run.most("longest work after a cancel in ms", round(1000 * (moment - begun)))
    jobs_end(server)
    try:
        wait_until(lambda: tasks_count(server) <= tasks_before, f"{tasks_before} tasks as before", 10)
        wait_until(lambda: not open_files(server), "no open file of the data folder", 10)
    except AssertionError as error:
        raise Breach(f"{error}; {tasks_count(server)} tasks, open: {open_files(server)[:5]}") from None
    check_no_leftovers(server, 10)
    check_alive(server)


def jobs_end(server: Server) -> None:
    """Tasks that were accepted before their client went away run to their end."""

    def none_runs() -> bool:
        lines = requests.get(server.http + "/metrics", timeout=30).text.splitlines()
        counts = {line.split(" ")[0]: int(line.split(" ")[1]) for line in lines if line.startswith("tally_jobs{")}
        return not any(count for name, count in counts.items() if "queued" in name or "running" in name or "progress" in name)

    wait_until(none_runs, "the end of all jobs", 60)


def check_permits(server: Server) -> None:
    """As many honest calls as may run at once all succeed, so no permit is lost."""
    with ThreadPoolExecutor(UPLOADS) as pool:
        stub, sums = tally(server), table(server)
        chunk = [tally_pb2.UploadChunk(data=b"honest\n1\n")]
        uploads = [pool.submit(stub.Upload, iter(chunk), timeout=60) for _ in range(UPLOADS)]
        for upload in uploads:
            upload.result()
        request = table_pb2.ColSumReq(column="honest", format="csv")
        totals = {pool.submit(sums.ColSum, request, timeout=60).result().total for _ in range(UPLOADS)}
        check(len(totals) == 1, f"sums differ: {totals}")


def cancel(run: Run) -> None:
    flags = ("--pack-above", "1000000", "--log", "error")
    with Server(run.folder / "data", *flags) as server:
        rows = b"".join(b"%d,%d\n" % (row % 50_000, row) for row in range(ROWS))
        content = b"x,y\n" + rows
        pieces = (tally_pb2.UploadChunk(data=content[at : at + 2**18]) for at in range(0, len(content), 2**18))
        tally(server).Upload(pieces, timeout=300)
        tasks_before = None
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for number in run.rounds(max(1, run.amount // CHECK_EVERY)):
                if tasks_before is None:
                    server.close_channel()
                    tasks_before = tasks_count(server)
                first = number * CHECK_EVERY
                list(pool.map(lambda each: one(server, run, each), range(first, first + CHECK_EVERY)))
                if run.is_sabotaged:
                    held = grpc.insecure_channel(server.address)
                    held_call = tally_pb2_grpc.TallyStub(held).Upload.future(slow_chunks(), timeout=60)
                    time.sleep(0.5)
                check_stopped(server, run, tasks_before)
        run.done *= CHECK_EVERY
        if run.is_sabotaged:
            held_call.cancel()
        check_permits(server)
        answer = tally(server).Sum(tally_pb2.SumRequest(column="x", formats=[1, 2]), timeout=60)
        expected = sum(row % 50_000 for row in range(ROWS))
        others = {each.total - expected for each in answer.sums}
        check(len(others) == 1, f"CSV and Parquet differ: {answer}")
        server.stop()
        check_verify(run.folder / "data")


def slow_chunks():
    """An upload that is never cancelled, for --prove."""
    yield tally_pb2.UploadChunk(data=b"a,b,c\n" + CHUNK)
    time.sleep(30)


ROW = Row(9, "cancel", "every call cancelled, or past its deadline, at a random point", "calls", 200, 20_000, 15, cancel, 6)
