"""`--audit-log`: a line for each call, each refusal and each change of who may call; its rotation, and what a kill, a full disk
and a flood of refusals leave of it."""

import json
import os
import signal
import stat
import threading
import time

import grpc
import numstore_pb2
import pytest
import requests
import table_pb2
import table_pb2_grpc
import tally_pb2
import tally_pb2_grpc
from conftest import INPUTS, ServerDidNotStart, numstore, start_with, table, wait_until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from http_calls import ANSWER_SECONDS_MAX, PARTS, PLAYS, TASKS, metrics
from test_access import CSV, Tokens, code_of, run_tally


@pytest.fixture
def tokens(tmp_path) -> Tokens:
    return Tokens(tmp_path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "logs" / "audit.json"


@pytest.fixture
def closed(start_server, tokens, tmp_path, path):
    """A server that asks for tokens, and has an audit log."""
    return start_server(tmp_path / "data", "--token-file", tokens.list, "--audit-log", path)


def lines_of(path) -> list:
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    lines = [json.loads(line) for line in text.splitlines()]
    assert all("time" in line and "event" in line for line in lines)
    return lines


def calls_of(path) -> list:
    return [line for line in lines_of(path) if line["event"] == "call"]


def line_of(path, **fields) -> dict:
    """The first line with these fields, as soon as there is one."""

    def found():
        whole = path.read_text().rpartition("\n")[0]
        lines = [json.loads(line) for line in whole.splitlines()]
        return next((line for line in lines if all(line.get(name) == value for name, value in fields.items())), None)

    return wait_until(found, f"a line with {fields}")


def http_status(server, method: str, path: str, **options) -> int:
    return requests.request(method, server.http + path, timeout=ANSWER_SECONDS_MAX, **options).status_code


@pytest.mark.parametrize("way", ["flag", "environment"])
def test_the_file_is_private_and_tells_of_start_and_stop(start_server, tokens, tmp_path, path, way):
    os.umask(old := os.umask(0))
    os.umask(0)
    try:
        server = start_with(
            start_server, tmp_path / "data", way, token_file=tokens.list, audit_log=path, file_mode="0644"
        )
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    started = line_of(path, event="started")
    assert (started["tokens"], started["tls"]) == (3, False) and started["version"]
    server.stop()
    assert [line["event"] for line in lines_of(path)] == ["started", "draining", "stopped"]
    server = start_server(tmp_path / "data", "--audit-log", path, "--load", INPUTS / "simple.csv")
    line_of(path, event="started", tokens=None)
    server.kill()
    server = start_server(tmp_path / "data", "--audit-log", path)
    server.stop()
    lines = lines_of(path)[3:]
    # The kill has no line, and so the next start follows a start.
    assert [line["event"] for line in lines] == ["loaded", "started", "started", "draining", "stopped"]
    assert (lines[0]["part"], lines[1]["tokens"]) == (1, None)


def test_each_change_says_whose_it_was_and_which_part(closed, tokens, path):
    stub, write = tally_pb2_grpc.TallyStub(closed.channel()), tokens.metadata("write")
    upload = table_pb2_grpc.TableStub(closed.channel()).Upload
    assert upload(table_pb2.UploadReq(csv_data=CSV), metadata=write).error == ""
    assert upload(table_pb2.UploadReq(csv_data=b"x,x\n"), metadata=write).error != ""
    for _ in range(2):
        chunks = iter([tally_pb2.UploadChunk(data=b"x\n1\n")])
        stub.Upload(chunks, metadata=[*write, ("idempotency-key", "k")], timeout=ANSWER_SECONDS_MAX)
    header = tokens.header("write")
    assert http_status(closed, "POST", PARTS, data=b"x\n1\n2\n3\n", headers=header) == 201
    form = [("file", ("a.csv", b"x\n1\n")), ("file", ("b.csv", b"x\n1\n2\n")), ("file", ("c.csv", b"x,x\n"))]
    assert http_status(closed, "POST", PARTS, files=form, headers=header) == 400
    stub.RemovePart(tally_pb2.RemovePartRequest(part=1), metadata=write)
    stub.RestorePart(tally_pb2.RestorePartRequest(part=1), metadata=write)
    assert code_of(stub.RemovePart, tally_pb2.RemovePartRequest(part=1, purge=True), metadata=write) == "PERMISSION_DENIED"
    assert code_of(stub.RemovePart, tally_pb2.RemovePartRequest(part=77), metadata=write) == "NOT_FOUND"
    assert http_status(closed, "DELETE", f"{PARTS}/2?purge=true", headers=header) == 403
    assert http_status(closed, "DELETE", f"{PARTS}/2", headers=header) == 200
    assert http_status(closed, "POST", f"{PARTS}/2/restore", headers=header) == 200
    assert http_status(closed, "DELETE", f"{PARTS}/2?purge=true", headers=tokens.header("admin")) == 200
    sent = requests.post(
        closed.http + TASKS, files={"file": ("a.csv", PLAYS)}, headers=header, timeout=ANSWER_SECONDS_MAX
    ).json()
    task = TASKS + sent["task"]["id"]
    http_status(closed, "DELETE", task, headers=header)
    closed.stop()
    calls = calls_of(path)
    assert {line["token"] for line in calls} == {"write", "admin"}
    assert all(line["address"].startswith("127.0.0.1:") and line["ms"] >= 0 for line in calls)

    def told(line) -> tuple:
        return tuple(line.get(name) for name in ("call", "part", "rows", "bytes", "outcome", "code"))

    rpc, parts = "/tally.v1.Tally/", f"POST {PARTS}"
    assert [told(line) for line in calls[:-1]] == [
        ("/Table/Upload", 1, 2, len(CSV), "ok", None),
        ("/Table/Upload", None, None, None, "error", "Ok"),
        (rpc + "Upload", 2, 1, 4, "ok", None),
        (rpc + "Upload", 2, 1, 4, "ok", None),
        (parts, 3, 3, 8, "ok", None),
        (parts, 4, 1, 4, "ok", None),
        (parts, 5, 2, 6, "ok", None),
        (parts, None, None, None, "error", "400"),
        (rpc + "RemovePart", 1, None, None, "ok", "Ok"),
        (rpc + "RestorePart", 1, None, None, "ok", "Ok"),
        (rpc + "RemovePart", 1, None, None, "refused", "PermissionDenied"),
        (rpc + "RemovePart", 77, None, None, "error", "NotFound"),
        (f"DELETE {PARTS}/2", 2, None, None, "refused", "403"),
        (f"DELETE {PARTS}/2", 2, None, None, "ok", "200"),
        (f"{parts}/2/restore", 2, None, None, "ok", "200"),
        (f"DELETE {PARTS}/2", 2, None, None, "ok", "200"),
        (f"POST {TASKS.rstrip('/')}", None, None, None, "ok", "202"),
    ]
    assert [line.get("replayed") for line in calls[2:4]] == [None, True]
    assert calls[-1]["call"] == f"DELETE {task}"
    assert calls[-2]["token"] == calls[-1]["token"] == "write" and calls[-3]["token"] == "admin"


def test_questions_and_refusals_have_a_line_and_no_secret(closed, tokens, path):
    channel = closed.channel()
    ask = table_pb2_grpc.TableStub(channel).ColSum
    for metadata in ([], [("authorization", "Bearer guessed-secret")], tokens.metadata("read")):
        code_of(ask, table_pb2.ColSumReq(column="confidential", format="csv"), metadata=metadata)
    code_of(ask, table_pb2.ColSumReq(column="x", format="xml"), metadata=tokens.metadata("read"))
    assert code_of(channel.unary_unary("/no.Such/Call"), b"") == "UNAUTHENTICATED"
    stub = tally_pb2_grpc.TallyStub(channel)
    assert code_of(stub.Pack, tally_pb2.PackRequest(), metadata=tokens.metadata("write")) == "PERMISSION_DENIED"
    for name, metadata in (("read", []), ("write", tokens.metadata("write"))):
        numbers = numstore(closed)
        code_of(numbers.SetNum, numstore_pb2.SetNumRequest(key=name, value=1), metadata=metadata)
    header = tokens.header("read")
    ticket = requests.post(
        closed.http + "/api/v1/tickets?target=/api/v1/table", headers=header, timeout=ANSWER_SECONDS_MAX
    ).json()["ticket"]
    assert http_status(closed, "GET", f"/api/v1/table?ticket={ticket}") == 200
    assert http_status(closed, "GET", "/api/v1/table/sum?column=confidential") == 401
    assert http_status(closed, "GET", "/x%0A%22y", headers={"Authorization": "Bearer guessed-secret"}) == 401
    foreign = {**tokens.header("write"), "Origin": "http://elsewhere.example"}
    assert http_status(closed, "POST", PARTS, data=CSV, headers=foreign) == 403
    for open_path in ("/livez", "/readyz", "/", "/console/js/main.js", "/api/v1/openapi.json"):
        assert http_status(closed, "GET", open_path) == 200
    health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=ANSWER_SECONDS_MAX)
    too_long = [("x", 17_000 * "x")]
    code_of(ask, table_pb2.ColSumReq(column="x", format="csv"), metadata=[*tokens.metadata("read"), *too_long])
    closed.stop()

    def told(line) -> tuple:
        return tuple(line.get(name) for name in ("token", "call", "outcome", "code"))

    calls = calls_of(path)
    assert [told(line) for line in calls] == [
        (None, "/Table/ColSum", "refused", "Unauthenticated"),
        (None, "/Table/ColSum", "refused", "Unauthenticated"),
        ("read", "/Table/ColSum", "ok", "Ok"),
        ("read", "/Table/ColSum", "error", "Ok"),
        (None, "/no.Such/Call", "refused", "Unauthenticated"),
        ("write", "/tally.v1.Tally/Pack", "refused", "PermissionDenied"),
        (None, "/NumStore/SetNum", "refused", "Unauthenticated"),
        ("read", "POST /api/v1/tickets", "ok", "201"),
        ("read", "GET /api/v1/table", "ok", "200"),
        (None, "GET /api/v1/table/sum", "refused", "401"),
        (None, "GET /x%0A%22y", "refused", "401"),
        ("write", f"POST {PARTS}", "refused", "403"),
        ("read", "/Table/ColSum", "refused", "ResourceExhausted"),
    ]
    assert all(line["address"].startswith("127.0.0.1:") for line in calls)
    for secret in (*tokens.secrets.values(), "guessed-secret", ticket.split(".")[1], "confidential", "ticket="):
        assert secret not in path.read_text()


def test_a_client_that_does_not_wait_leaves_a_line(closed, tokens, path):
    ended = threading.Event()

    def silent():
        ended.wait(ANSWER_SECONDS_MAX)
        yield from ()

    stub = tally_pb2_grpc.TallyStub(closed.channel())
    call = stub.Upload.future(silent(), metadata=tokens.metadata("write"), timeout=ANSWER_SECONDS_MAX)
    wait_until(lambda: metrics(closed, headers=tokens.header("read"))['tally_token_calls_total{token="write"}'] >= 1, "it begins")
    call.cancel()
    ended.set()
    assert line_of(path, outcome="cancelled")["call"] == "/tally.v1.Tally/Upload"


def test_quotas_and_sighup_have_lines(start_server, tokens, tmp_path, path):
    server = start_server(
        tmp_path / "data", "--token-file", tokens.list, "--audit-log", path, "--quota-parts-per-day", 1
    )
    for code in ("OK", "RESOURCE_EXHAUSTED"):
        upload = table_pb2_grpc.TableStub(server.channel()).Upload
        assert code_of(upload, table_pb2.UploadReq(csv_data=CSV), metadata=tokens.metadata("write")) == code
    assert line_of(path, outcome="refused", code="ResourceExhausted")["token"] == "write"
    assert http_status(server, "POST", PARTS, data=CSV, headers=tokens.header("write")) == 429
    line_of(path, outcome="refused", code="429")
    tokens.add("late", "read")
    server.process.send_signal(signal.SIGHUP)
    assert line_of(path, event="tokens_reread", outcome="ok")["tokens"] == 4
    tokens.list.write_text("late read")
    server.process.send_signal(signal.SIGHUP)
    assert "line 1" in line_of(path, event="tokens_reread", outcome="error")["error"]


def test_the_file_is_rotated_and_no_line_is_lost(start_server, tmp_path, path):
    flags = ["--audit-log", path, "--audit-log-bytes-max", "15000", "--audit-logs-kept", "3"]
    server = start_server(tmp_path / "data", *flags)
    numbers = range(400)
    with requests.Session() as session:
        for number in numbers:
            assert session.get(f"{server.http}/api/jobs/job_id_{number}", timeout=ANSWER_SECONDS_MAX).status_code == 404
    server.stop()
    names = sorted(entry.name for entry in path.parent.iterdir())
    assert names == ["audit.json", "audit.json.1", "audit.json.2", "audit.json.3"]
    files = [path.parent / name for name in reversed(names)]
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 and file.stat().st_size <= 15_000 for file in files)
    asked = [int(line["call"].rpartition("_")[2]) for file in files for line in calls_of(file)]
    assert len(asked) > 200 and asked == list(numbers)[-len(asked):]


def test_a_half_line_of_a_power_failure_stays_alone(start_server, tmp_path, path):
    path.parent.mkdir()
    path.write_text('{"time":"2026-')
    start_server(tmp_path / "data", "--audit-log", path).stop()
    half, *whole = path.read_text().splitlines()
    assert half == '{"time":"2026-' and [json.loads(line)["event"] for line in whole] == ["started", "draining", "stopped"]


def test_a_kill_loses_no_line_of_a_call_that_was_answered_a_second_before(start_server, tmp_path, path):
    server = start_server(tmp_path / "data", "--audit-log", path)
    answered = []
    until = time.monotonic() + 2.5
    while time.monotonic() < until:
        assert http_status(server, "POST", PARTS, data=CSV) == 201
        answered.append(time.monotonic())
    server.kill()
    killed = time.monotonic()
    whole = path.read_text().rpartition("\n")[0]
    parts = {json.loads(line).get("part") for line in whole.splitlines()}
    before = sum(answer < killed - 1 for answer in answered)
    assert before > 10 and set(range(1, before + 1)) <= parts


def test_strangers_that_flood_the_server_do_not_flood_the_log(closed, tokens, path):
    ask = table_pb2_grpc.TableStub(closed.channel()).ColSum
    sent = 1500
    for call in [ask.future(table_pb2.ColSumReq(column="x", format="csv")) for _ in range(sent - 500)]:
        assert call.exception().code() == grpc.StatusCode.UNAUTHENTICATED
    with requests.Session() as session:
        for _ in range(500):
            answer = session.get(closed.http + "/api/jobs?" + 9000 * "x", timeout=ANSWER_SECONDS_MAX)
            assert answer.status_code == 401
    assert code_of(ask, table_pb2.ColSumReq(column="x", format="csv"), metadata=tokens.metadata("read")) == "OK"
    closed.stop()
    lines = lines_of(path)
    refused = sum(line.get("outcome") in ("refused", "error") for line in lines)
    left_out = sum(line["calls"] for line in lines if line["event"] == "refusals_left_out")
    assert refused + left_out == sent and 100 <= refused < sent / 2
    assert any(line.get("token") == "read" for line in lines)


def fill_queue(server) -> None:
    """Calls until a line finds no room in the queue."""
    with requests.Session() as session:

        def lost() -> float:
            for _ in range(100):
                assert session.get(server.http + "/api/jobs", timeout=ANSWER_SECONDS_MAX).status_code == 200
            return metrics(server)["tally_audit_lines_lost_total"]

        wait_until(lambda: lost() > 0, "the queue is full", ANSWER_SECONDS_MAX)


def test_a_full_disk_stops_no_call_and_is_told(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--audit-log", "/dev/full")
    fill_queue(server)
    server.log_line("--audit-log: lines wait")
    assert server.stderr.count("--audit-log: lines wait") == 1
    assert table(server).Upload(table_pb2.UploadReq(csv_data=CSV)).error == ""
    started = time.monotonic()
    server.stop()
    assert time.monotonic() - started < 10
    assert "--audit-log: the last lines are lost" in server.stderr


def test_a_disk_that_stalls_stops_no_call(start_server, tmp_path):
    """The audit log is a pipe that nobody empties, as a disk that hangs."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    server = start_server(tmp_path / "data", "--audit-log", path)
    fill_queue(server)
    assert table(server).Upload(table_pb2.UploadReq(csv_data=CSV)).error == ""
    server.stop()
    assert "--audit-log: the last lines were not written" in server.stderr


def test_what_waited_for_a_disk_is_written_and_what_was_lost_is_told(start_server, tmp_path):
    """The pipe is emptied after lines were lost."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    server = start_server(tmp_path / "data", "--audit-log", path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with requests.Session() as session:
        asked = 0
        while metrics(server)["tally_audit_lines_lost_total"] == 0:
            for _ in range(100):
                assert session.get(server.http + "/api/jobs", timeout=ANSWER_SECONDS_MAX).status_code == 200
            asked += 100
    text = []

    def read_all() -> None:
        os.set_blocking(reader, True)
        while read := os.read(reader, 65536):  # nothing once the server has ended
            text.append(read)

    thread = threading.Thread(target=read_all)
    thread.start()
    try:
        wait_until(lambda: b"lines_lost" in b"".join(text), "the lost lines are told", ANSWER_SECONDS_MAX)
    finally:
        server.stop()
        thread.join()
        os.close(reader)
    lines = [json.loads(line) for line in b"".join(text).decode().splitlines()]
    asked_lines = sum(line.get("call") == "GET /api/jobs" for line in lines)
    lost = sum(line["lines"] for line in lines if line["event"] == "lines_lost")
    assert 0 < asked_lines < asked and lost > 0
    metric_lines = sum(line.get("call") == "GET /metrics" for line in lines)
    assert asked_lines + metric_lines + lost >= asked
    server.log_line("--audit-log: lines were lost")


@pytest.mark.parametrize("kind", ["folder", "no folder", "same"])
def test_a_file_that_cannot_be_written_is_no_start(start_server, tmp_path, kind):
    path = {"folder": tmp_path, "no folder": "/proc/none/audit.json", "same": tmp_path / "log"}[kind]
    flags = ["--log-file", tmp_path / "log"] if kind == "same" else []
    with pytest.raises(ServerDidNotStart) as failure:
        start_server(tmp_path / "data", "--audit-log", path, *flags)
    assert failure.value.exit_code == (2 if kind == "same" else 1)
    assert len(failure.value.stderr.splitlines()) == 1 and "--audit-log" in failure.value.stderr
    assert not (tmp_path / "data").exists()


def test_the_commands_are_calls_too(closed, tokens, path, tmp_path):
    (tmp_path / "day.csv").write_bytes(CSV)
    for name, arguments in (("write", ["upload", tmp_path / "day.csv"]), ("write", ["remove", "1", "--yes"]),
                            ("admin", ["pack"]), ("read", ["parts"])):  # fmt: skip
        done = run_tally(*arguments, "--token-file", tokens.file(name), "--server", closed.address)
        assert done.returncode == 0, done.stderr
    closed.stop()
    assert [(line["token"], line["call"].rpartition("/")[2]) for line in calls_of(path)] == [
        ("write", "Upload"), ("write", "RemovePart"), ("admin", "Pack"), ("read", "ListQuarantine"), ("read", "ListParts"),
    ]  # fmt: skip


def test_the_threads_end_and_rest_when_there_is_nothing_to_write(start_server, tmp_path, path):
    server = start_server(tmp_path / "data", "--audit-log", path)
    assert http_status(server, "POST", PARTS, data=CSV) == 201
    line_of(path, event="call")

    def switches() -> int:
        total = 0
        for task in os.listdir(f"/proc/{server.pid}/task"):
            status = open(f"/proc/{server.pid}/task/{task}/status").read()
            if "Name:\ttally-audit" in status:
                total += int(status.split("\nvoluntary_ctxt_switches:\t")[1].split("\n")[0])
        return total

    def rests() -> bool:
        before = switches()
        time.sleep(2.5)  # longer than the interval of the syncs
        return switches() == before

    assert switches() > 0
    wait_until(rests, "the threads rest", 30)
