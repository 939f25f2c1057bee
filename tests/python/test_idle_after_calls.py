"""After the last call the server is idle: every RPC and every HTTP path, finished, interrupted and failed, leaves no
task behind and no processor time. A task that spins, or waits for what will never come, fails here."""

import os
import socket
import time
from pathlib import Path
from typing import Callable, Iterable, List, Tuple

import grpc
import numstore_pb2
import numstore_pb2_grpc
import pytest
import requests
import table_pb2
import table_pb2_grpc
import tally_pb2
import tally_pb2_grpc
from conftest import CHANNEL_OPTIONS, Server, wait_until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from http_calls import PLAYS, TASKS, UNKNOWN_TASK, metrics

CALL_SECONDS_MAX = 30
WATCHED_SECONDS = 3
CORES_MAX = 0.2
CSV = b"x,y\n1,2\n"
UNKNOWN_JOB = "job_id_999"
EVENTS = "/api/v1/events"
TASKS_SECONDS_MAX = 20
TASKS_OF_A_CONNECTION = 1
# Without a query these paths only say what is missing.
QUERIES = {
    "/api/v1/table/sum": ["?column=x", "?column=x&format=parquet"],
    "/api/v1/table/groups": ["?by=x&sum=y", "?by=x&sum=y&order=total&limit=1&format=csv"],
    "/api/v1/survey/states": ["?question=Q"],
}


def tasks_count(server: Server) -> int:
    """The number of asynchronous tasks in the server, including the one of the connection that asks."""
    return int(metrics(server)["tally_tokio_alive_tasks"])


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def chunks(*contents: bytes) -> Iterable[tally_pb2.UploadChunk]:
    return iter([tally_pb2.UploadChunk(data=content) for content in contents])


class Rpc:
    """An RPC that goes well with the first question, and that the server refuses with the second."""

    def __init__(self, call, good, bad, kind: str = "unary"):
        self.call = call
        self.questions = (good, bad)
        self.kind = kind
        self.is_streamed_out = kind in ("reflection", "answers")

    def start(self):
        return self._start(self.questions[0])

    def _start(self, question):
        sent = chunks(*question) if self.kind == "upload" else question
        sent = iter([question]) if self.kind == "reflection" else sent
        start = self.call if self.is_streamed_out else self.call.future
        return start(sent, timeout=CALL_SECONDS_MAX)

    def _await(self, call):
        return list(call) if self.is_streamed_out else call.result()

    def finish(self) -> None:
        self._await(self.start())

    def fail(self) -> None:
        """What the caller can fix is told in the answer, or else as a status."""
        try:
            self._await(self._start(self.questions[1]))
        except grpc.RpcError as error:
            assert error.code() != grpc.StatusCode.DEADLINE_EXCEEDED, error

    def cancel(self) -> None:
        """At once, and with the answer begun."""
        self.start().cancel()
        call = self.start()
        if self.is_streamed_out:
            next(call)
        call.cancel()


def rpcs(channel: grpc.Channel) -> List[Rpc]:
    table = table_pb2_grpc.TableStub(channel)
    tally = tally_pb2_grpc.TallyStub(channel)
    numstore = numstore_pb2_grpc.NumStoreStub(channel)
    health = health_pb2_grpc.HealthStub(channel)
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    sum_of = lambda column: table_pb2.ColSumReq(column=column, format="csv")  # noqa: E731
    by = lambda column: tally_pb2.GroupSumRequest(by=[column], sum=["y"])  # noqa: E731
    listed = reflection_pb2.ServerReflectionRequest(list_services="")
    unknown = reflection_pb2.ServerReflectionRequest(file_by_filename="nothing.proto")
    checked = health_pb2.HealthCheckRequest
    return [
        Rpc(table.Upload, table_pb2.UploadReq(csv_data=CSV), table_pb2.UploadReq(csv_data=b"x,x\n")),
        Rpc(table.ColumnSum, sum_of("x"), table_pb2.ColSumReq(column="x", format="xml")),
        Rpc(table.ColSum, sum_of("x"), sum_of("n" * 20_000)),
        Rpc(numstore.SetNum, numstore_pb2.SetNumRequest(key="a", value=3), numstore_pb2.SetNumRequest(key="k" * 200)),
        Rpc(numstore.Fact, numstore_pb2.FactRequest(key="a"), numstore_pb2.FactRequest(key="nobody")),
        Rpc(tally.Upload, [CSV, b"3,4\n"], [CSV, b"3\n"], kind="upload"),
        Rpc(tally.ListParts, tally_pb2.ListPartsRequest(), tally_pb2.ListPartsRequest(after=2**63), kind="answers"),
        Rpc(tally.Sum, tally_pb2.SumRequest(column="x", formats=[1, 2]), tally_pb2.SumRequest(formats=[7])),
        Rpc(tally.GroupSum, by("x"), by(""), kind="answers"),
        Rpc(health.Check, checked(service="Table"), checked(service="nothing")),
        Rpc(reflection.ServerReflectionInfo, listed, unknown, kind="reflection"),
    ]


def watch_health(channel: grpc.Channel) -> None:
    """A call that ends only when its client cancels it, at its deadline, or because the service is unknown."""
    stub = health_pb2_grpc.HealthStub(channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=CALL_SECONDS_MAX)
    next(watch)
    watch.cancel()
    late = stub.Watch(health_pb2.HealthCheckRequest(), timeout=0.2)
    assert failure_of(late) == grpc.StatusCode.DEADLINE_EXCEEDED
    assert failure_of(stub.Watch(health_pb2.HealthCheckRequest(service="nothing"))) == grpc.StatusCode.NOT_FOUND


def look_after_files(channel: grpc.Channel) -> None:
    """One verification at a time, so that the one that is cancelled comes last."""
    stub = tally_pb2_grpc.TallyStub(channel)
    assert stub.ListQuarantine(tally_pb2.ListQuarantineRequest(), timeout=CALL_SECONDS_MAX).count == 0
    with pytest.raises(grpc.RpcError) as error:
        stub.Forget(tally_pb2.ForgetRequest(part=2**63), timeout=CALL_SECONDS_MAX)
    assert error.value.code() == grpc.StatusCode.NOT_FOUND
    assert list(stub.Verify(tally_pb2.VerifyRequest(), timeout=CALL_SECONDS_MAX))
    other_server = stub.Verify(tally_pb2.VerifyRequest(process=2**63), timeout=CALL_SECONDS_MAX)
    assert failure_of(other_server) == grpc.StatusCode.FAILED_PRECONDITION
    stub.Verify(tally_pb2.VerifyRequest()).cancel()


def failure_of(answers) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as error:
        list(answers)
    return error.value.code()


def http_calls(server: Server, task: str) -> List[Tuple[str, str, dict]]:
    """Every path and method of the description, with something to ask."""
    described = requests.get(f"{server.http}/api/v1/openapi.json", timeout=CALL_SECONDS_MAX).json()["paths"]
    calls = []
    for path, methods in described.items():
        for method in methods:
            if path.endswith("graceful_shutdown"):
                continue  # the server would refuse all later jobs
            body = {}
            if path == TASKS:
                body = {"files": {"file": ("plays.csv", PLAYS)}}
            elif method == "post":
                body = {"json": {"question": "Q", "state": "Ohio"}}
            if path == EVENTS:
                continue  # it does not end: see watch_events
            # The part has to be there for the calls that follow.
            part = "999" if method == "delete" else "1"
            named = path.replace("{job_id}", UNKNOWN_JOB).replace("{part}", part)
            calls.append((method, named.replace("{task_id}", UNKNOWN_TASK), body))
            calls += [(method, path + query, body) for query in QUERIES.get(path, [])]
            if "{task_id}" in path and method == "get":
                calls.append((method, path.replace("{task_id}", task), body))
    assert len(calls) > 30
    return calls


def ask_over_http(server: Server) -> None:
    accepted = requests.post(
        server.http + TASKS, files={"file": ("plays.csv", PLAYS)}, timeout=CALL_SECONDS_MAX
    )
    task = accepted.json()["task"]["id"]
    for method, path, body in http_calls(server, task):
        url = server.http + path
        answer = requests.request(method, url, timeout=CALL_SECONDS_MAX, **body)
        assert answer.status_code < 500, answer.text
        requests.request(method, url, timeout=CALL_SECONDS_MAX, data=b"\xff{")  # mostly refused
        break_off_http(server, method, path)


def watch_events(server: Server) -> None:
    """A call that ends only when its client closes the connection."""
    for _ in range(3):
        with requests.get(server.http + EVENTS, stream=True, timeout=CALL_SECONDS_MAX) as answer:
            assert next(answer.iter_lines()) == b"event: stats"
    break_off_http(server, "get", EVENTS)


def break_off_http(server: Server, method: str, path: str) -> None:
    """Closes the connection in the middle of the head, of the body, and before the answer is read."""
    host, port = server.http.removeprefix("http://").rsplit(":", 1)
    head = f"{method.upper()} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    for sent in (head, head + "Content-Length: 100\r\n\r\n{", head + "\r\n"):
        with socket.create_connection((host, int(port)), timeout=CALL_SECONDS_MAX) as connection:
            connection.sendall(sent.encode())


def check_idle(server: Server, tasks_before: int) -> None:
    wait_until(
        lambda: tasks_count(server) <= tasks_before,
        f"{tasks_before} tasks, as before",
        TASKS_SECONDS_MAX,
    )
    before, started = processor_seconds(server.pid), time.monotonic()
    time.sleep(WATCHED_SECONDS)  # what is measured is the use in this time
    cores = (processor_seconds(server.pid) - before) / (time.monotonic() - started)
    assert cores < CORES_MAX, f"an idle server uses {cores:.2f} of a core"


def all_rpcs(channel: grpc.Channel) -> None:
    ways: List[Callable[[Rpc], None]] = [Rpc.finish, Rpc.fail, Rpc.cancel]
    for way in ways:
        for rpc in rpcs(channel):
            way(rpc)
    watch_health(channel)
    look_after_files(channel)


def test_no_call_leaves_anything_behind(server):
    tasks_before = tasks_count(server)
    with grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
        all_rpcs(channel)
        # With the connection open, a call that ended has no task either.
        check_idle(server, tasks_before + TASKS_OF_A_CONNECTION)
    ask_over_http(server)
    watch_events(server)
    check_idle(server, tasks_before)


def test_a_broken_connection_takes_its_calls_along(server):
    tasks_before = tasks_count(server)
    channel = grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS)
    calls = [rpc.start() for rpc in rpcs(channel)]
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    next(watch)
    channel.close()
    assert len(calls) == 11
    check_idle(server, tasks_before)
