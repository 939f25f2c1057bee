"""Who may do what: tokens and their scopes on both ports, the file that lists them, and the start beyond loopback."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess

import grpc
import numstore_pb2
import pytest
import requests
import table_pb2
import table_pb2_grpc
import tally_pb2
import tally_pb2_grpc
from conftest import ServerDidNotStart, binary, clean_environment, run_client, wait_until
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from http_calls import ANSWER_SECONDS_MAX, TASKS
from numstore_pb2_grpc import NumStoreStub
from raw_grpc import Connection, message

CSV = b"x,y\n1,2\n3,4\n"
SCOPES = ("read", "write", "admin")
OPEN_PATHS = ["/livez", "/readyz", "/", "/console/js/main.js", "/api/v1/openapi.json", "/api/v1/docs/swagger/"]


def run_tally(*arguments, env=None) -> subprocess.CompletedProcess:
    command = [str(part) for part in (binary(), *arguments)]
    return subprocess.run(
        command, env=clean_environment(**(env or {})), capture_output=True, encoding="utf-8", timeout=60
    )


class Tokens:
    """A server's list of tokens, with one for each scope, named after it, and a file with each secret."""

    def __init__(self, folder):
        self.folder = folder
        self.list = folder / "tokens"
        self.list.write_text("# made by a test\n")
        self.secrets = {}
        for scope in SCOPES:
            self.add(scope, scope)

    def add(self, name: str, scope: str) -> None:
        made = run_tally("token", "new", name, "--scope", scope)
        assert made.returncode == 0, made.stderr
        with self.list.open("a") as lines:
            lines.write(made.stdout)
        self.secrets[name] = made.stderr.strip()
        self.file(name).touch(0o600)
        self.file(name).write_text(made.stderr)

    def file(self, name: str):
        return self.folder / f"{name}.token"

    def metadata(self, name: str) -> list:
        return [("authorization", f"Bearer {self.secrets[name]}")]

    def header(self, name: str) -> dict:
        return {"Authorization": f"Bearer {self.secrets[name]}"}


@pytest.fixture
def tokens(tmp_path) -> Tokens:
    return Tokens(tmp_path)


@pytest.fixture
def closed(start_server, tokens, tmp_path):
    """A server that asks for tokens."""
    return start_server(tmp_path / "data", "--token-file", tokens.list)


def code_of(call, *arguments, **options) -> str:
    """OK, or the name of the status of a call, read to its end."""
    try:
        answer = call(*arguments, timeout=ANSWER_SECONDS_MAX, **options)
        if hasattr(answer, "__next__"):
            list(answer)
        return "OK"
    except grpc.RpcError as error:
        return error.code().name


def grpc_calls(server) -> list:
    """All calls with the scope that each needs, as name, scope, function."""
    channel = server.channel()
    table, numbers = table_pb2_grpc.TableStub(channel), NumStoreStub(channel)
    tally = tally_pb2_grpc.TallyStub(channel)
    return [
        ("Fact", "read", lambda **o: code_of(numbers.Fact, numstore_pb2.FactRequest(key="k"), **o)),
        ("ColumnSum", "read", lambda **o: code_of(table.ColumnSum, table_pb2.ColSumReq(column="x"), **o)),
        ("ColSum", "read", lambda **o: code_of(table.ColSum, table_pb2.ColSumReq(column="x", format="csv"), **o)),
        ("Sum", "read", lambda **o: code_of(tally.Sum, tally_pb2.SumRequest(column="x", formats=[1]), **o)),
        ("ListParts", "read", lambda **o: code_of(tally.ListParts, tally_pb2.ListPartsRequest(), **o)),
        ("ListColumns", "read", lambda **o: code_of(tally.ListColumns, tally_pb2.ListColumnsRequest(), **o)),
        ("SetNum", "write", lambda **o: code_of(numbers.SetNum, numstore_pb2.SetNumRequest(key="k", value=3), **o)),
        ("Table.Upload", "write", lambda **o: code_of(table.Upload, table_pb2.UploadReq(csv_data=CSV), **o)),
        ("Tally.Upload", "write", lambda **o: code_of(tally.Upload, iter([tally_pb2.UploadChunk(data=CSV)]), **o)),
        ("RemovePart", "write", lambda **o: code_of(tally.RemovePart, tally_pb2.RemovePartRequest(part=1), **o)),
        ("RestorePart", "write", lambda **o: code_of(tally.RestorePart, tally_pb2.RestorePartRequest(part=1), **o)),
        ("Purge", "admin", lambda **o: code_of(tally.RemovePart, tally_pb2.RemovePartRequest(part=1, purge=True), **o)),
        ("Pack", "admin", lambda **o: code_of(tally.Pack, tally_pb2.PackRequest(), **o)),
        ("Verify", "admin", lambda **o: code_of(tally.Verify, tally_pb2.VerifyRequest(), **o)),
    ]


def test_each_grpc_call_needs_a_token_of_its_scope(closed, tokens):
    uploaded = table_pb2_grpc.TableStub(closed.channel()).Upload(
        table_pb2.UploadReq(csv_data=CSV), metadata=tokens.metadata("write")
    )
    assert uploaded.error == ""
    for name, needed, call in grpc_calls(closed):
        assert call() == "UNAUTHENTICATED", name
        for wrong in ("Bearer x", "Bearer ", f"Basic {tokens.secrets['admin']}", f"Bearer {tokens.secrets['admin']} "):
            assert call(metadata=[("authorization", wrong)]) == "UNAUTHENTICATED", (name, wrong)
        for scope in SCOPES:
            # A purge passes the rule of RemovePart, and is refused to those who may only remove.
            is_enough = SCOPES.index(scope) >= SCOPES.index(needed)
            code = call(metadata=tokens.metadata(scope))
            assert code == ("OK" if is_enough else "PERMISSION_DENIED"), (name, scope)


def test_a_refused_call_says_which_scope_it_needs(closed, tokens):
    stub = table_pb2_grpc.TableStub(closed.channel())
    for metadata, texts in (
        ([], ("scope write", "authorization: Bearer")),
        ([("authorization", "Bearer unknown")], ("not one of this server's", "scope write")),
        (tokens.metadata("read"), ("the token read", "needs write")),
    ):
        with pytest.raises(grpc.RpcError) as failure:
            stub.Upload(table_pb2.UploadReq(csv_data=CSV), metadata=metadata, timeout=ANSWER_SECONDS_MAX)
        for text in texts:
            assert text in failure.value.details()
    line = closed.log_line("the token read", "/Table/Upload", "refused")
    assert "127.0.0.1:" in line
    for secret in tokens.secrets.values():
        assert secret not in closed.stderr


def test_probes_need_no_token_and_reflection_needs_read(closed, tokens):
    assert run_tally("health", "--server", closed.address).stdout == "serving\n"
    for path in OPEN_PATHS:
        assert requests.get(closed.http + path, timeout=ANSWER_SECONDS_MAX).status_code == 200, path
    with pytest.raises(grpc.RpcError) as failure:
        list(ProtoReflectionDescriptorDatabase(closed.channel()).get_services())
    assert failure.value.code() == grpc.StatusCode.UNAUTHENTICATED
    # A call that does not exist is told from one that needs a token to those alone who have one.
    unknown = closed.channel().unary_unary("/tally.v1.Tally/Drop")
    assert code_of(unknown, b"") == "UNAUTHENTICATED"
    assert code_of(unknown, b"", metadata=tokens.metadata("read")) == "UNIMPLEMENTED"


def routes_of(server, tokens) -> list:
    """Method and path of all routes that the description has, with numbers and ids that nothing has."""
    description = requests.get(
        server.http + "/api/v1/openapi.json", headers=tokens.header("read"), timeout=ANSWER_SECONDS_MAX
    ).json()
    routes = []
    for path, operations in description["paths"].items():
        path = path.replace("{task_id}", "00000000-0000-4000-8000-000000000000").replace("{job_id}", "job_id_77")
        routes += [(method.upper(), path.replace("{part}", "77")) for method in operations]
    return routes


def test_each_http_route_needs_a_token(closed, tokens):
    routes = routes_of(closed, tokens)
    assert len(routes) > 35
    extra = ["/x", "//api/jobs", "/api/jobs/", "/api//v1/table", "/console", "/api/v1/docs", "/api/v1/docs/nothing"]
    for method, path in [*routes, *(("GET", path) for path in extra), ("OPTIONS", "/api/jobs"), ("PUT", "/api/jobs")]:
        if path in OPEN_PATHS:
            continue
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {tokens.secrets['admin']}"}):
            answer = requests.request(
                method, closed.http + path, headers=headers, timeout=ANSWER_SECONDS_MAX, allow_redirects=False
            )
            assert answer.status_code == 401, (method, path, headers, answer.text)
            assert answer.headers["WWW-Authenticate"].startswith("Bearer"), (method, path)
    for path, status in (("/x", 404), ("/api/v1/docs/swagger/", 200), ("/metrics", 200), ("//api/jobs/", 200)):
        answer = requests.get(closed.http + path, headers=tokens.header("read"), timeout=ANSWER_SECONDS_MAX)
        assert answer.status_code == status, path


def test_http_scopes(closed, tokens):
    def status(scope: str, method: str, path: str, **options) -> int:
        url, header = closed.http + path, tokens.header(scope)
        answer = requests.request(method, url, headers=header, timeout=ANSWER_SECONDS_MAX, **options)
        if answer.status_code == 403:
            assert re.search(r"the token \w+ has the scope \w+, and this call needs \w+", answer.text)
        return answer.status_code

    parts = "/api/v1/table/parts"
    assert status("read", "POST", parts, data=CSV) == 403
    assert status("write", "POST", parts, data=CSV) == 201
    assert status("read", "GET", f"{parts}/1/csv") == 200
    assert status("read", "POST", "/api/states_mean", json={"question": "q"}) == 200
    assert status("read", "DELETE", f"{parts}/1") == 403
    assert status("read", "POST", TASKS) == 403
    assert status("write", "DELETE", f"{parts}/1") == 200
    assert status("write", "POST", f"{parts}/1/restore") == 200
    assert status("write", "DELETE", f"{parts}/1?purge=true") == 403
    assert status("admin", "DELETE", f"{parts}/1?purge=true") == 200
    for method in ("GET", "POST", "HEAD"):
        refused = requests.request(
            method, closed.http + "/api/graceful_shutdown", headers=tokens.header("write"), timeout=ANSWER_SECONDS_MAX
        )
        assert refused.status_code == 403
        assert refused.headers["WWW-Authenticate"] == 'Bearer error="insufficient_scope", scope="admin"'
    assert status("admin", "GET", "/api/graceful_shutdown") == 200


def test_tricks_with_heads_open_nothing(closed, tokens):
    """Each is refused, by the rules of access or as no HTTP at all; and the token in a correct head is taken."""
    host, port = closed.http_addresses[0].rsplit(":", 1)
    secret = tokens.secrets["admin"]

    def head(path: str, *fields: str, method: str = "GET", ends: bool = True) -> str:
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *fields, *(["Connection: close"] if ends else [])]
        return "\r\n".join([*lines, "", ""])

    def statuses(text: str) -> list:
        with socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS_MAX) as connection:
            connection.sendall(text.encode("latin1"))
            answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode("latin1")
        return [int(status) for status in re.findall(r"HTTP/1\.[01] (\d+)", answer)]

    good = f"Authorization: Bearer {secret}"
    for field in (good, f"AUTHORIZATION:   bEaReR {secret}", good + "  "):
        assert statuses(head("/api/jobs", field)) == [200], field
    for fields in (
        [good, good],
        [good, "Authorization: "],
        [good + ", Bearer x"],
        [good + "\xe9"],
        [good + "\0"],
        [f"Authorization: Bearer\t{secret}"],
        [f"Authorization : Bearer {secret}"],
        ["Authorization: Bearer", f" {secret}"],  # folded
        [f"Proxy-Authorization: Bearer {secret}"],
        [f"Cookie: authorization=Bearer {secret}"],
        ["Authorization: Bearer " + "x" * 40_000],
        ["Authorization: Bearer " + "x" * 60_000],
        ["X-Forwarded-For: 127.0.0.1", "Forwarded: for=127.0.0.1"],
        ["X-Original-URL: /livez", "X-Rewrite-URL: /livez"],
    ):
        assert statuses(head("/api/jobs", *fields)) in ([400], [401], [431]), fields
    for path in ("/livez/../api/jobs", "/console/../api/jobs", "/console/%2e%2e/api/jobs", "/api/%6aobs", "/livez;x",
                 "/livez%00", "*", "http://localhost/api/jobs", "/api/v1/docs/swaggerx",
                 "/api/jobs?ticket=", "/api/jobs?ticket=0.x&ticket=1.y", "/api/v1/events", "/consolex"):  # fmt: skip
        assert statuses(head(path)) == [401], path
    for method in ("HEAD", "OPTIONS", "TRACE", "CONNECT", "PUT", "PATCH", "PROPFIND", "get"):
        assert statuses(head("/api/jobs", method=method)) == [401], method
    assert statuses(head("/livez", "X-HTTP-Method-Override: POST", "X-Original-URL: /api/jobs")) == [200]
    assert statuses("GET /api/jobs HTTP/1.0\r\n\r\n") == [401]
    # Each request of a connection shows its own token, and a body is no request.
    first, plain = head("/api/jobs", good, ends=False), head("/api/jobs")
    assert statuses(first + plain) == [200, 401]
    hidden = head("/api/graceful_shutdown", good)
    post = head("/api/v1/table/parts", f"Content-Length: {len(hidden)}", method="POST", ends=False)
    assert statuses(post + hidden + plain) in ([401], [401, 401])
    both = head("/api/v1/table/parts", "Content-Length: 5", "Transfer-Encoding: chunked", method="POST", ends=False)
    assert statuses(both + "0\r\n\r\n" + plain) in ([400], [401], [401, 401])
    assert requests.get(closed.http + "/readyz", timeout=ANSWER_SECONDS_MAX).text == "ready\n"
    assert secret not in closed.stderr


def test_tricks_with_paths_and_metadata_of_grpc_open_nothing(closed, tokens):
    channel = closed.channel()
    for path in ("/Table/ColSum/", "//Table/ColSum", "/table/ColSum", "/Table/%43olSum", "/", "/grpc.health.v1.Health/",
                 "/grpc.health.v1.Health/Check/", "/grpc.health.v1.Health/Check/../../../Table/ColSum",
                 "/grpc.health.v1.Health/Checks", "/Table/ColSum?x"):  # fmt: skip
        assert code_of(channel.unary_unary(path), b"") == "UNAUTHENTICATED", path
    secret = tokens.secrets["admin"]
    ask = table_pb2_grpc.TableStub(channel).ColSum
    good = ("authorization", f"Bearer {secret}")
    for metadata in ([good, good], [good, ("authorization", "")], [("authorization", "")], [("authorization", "Bearer")],
                     [("authorization", "x" * 10_000)], [("authorization-bin", good[1].encode())],
                     [("x-forwarded-for", "127.0.0.1")]):  # fmt: skip
        assert code_of(ask, table_pb2.ColSumReq(column="x", format="csv"), metadata=metadata) == "UNAUTHENTICATED", metadata
    too_long = [("authorization", "x" * 17_000)]
    assert code_of(ask, table_pb2.ColSumReq(column="x", format="csv"), metadata=too_long) == "RESOURCE_EXHAUSTED"
    assert code_of(ask, table_pb2.ColSumReq(column="x", format="csv"), metadata=[good]) == "OK"


def test_a_token_in_trailers_counts_for_nothing(closed, tokens):
    """Trailers come after the body, which must not be read before the call is allowed (RFC 9110, section 6.5.1)."""
    secret = tokens.secrets["admin"]
    ask = message(table_pb2.ColSumReq(column="x", format="csv").SerializeToString())
    for head, code in (({}, "UNAUTHENTICATED"), ({"authorization": f"Bearer {tokens.secrets['read']}"}, "PERMISSION_DENIED")):
        with Connection(closed) as connection:
            call = connection.start("/tally.v1.Tally/Pack", **head)
            connection.http2.send_data(call.stream_id, ask)
            connection.http2.send_headers(call.stream_id, [("authorization", f"Bearer {secret}")], end_stream=True)
            connection._flush()
            connection.finish(call)
            assert grpc.StatusCode[code].value[0] == call.status, (head, call.headers)
    host, port = closed.http_addresses[0].rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS_MAX) as connection:
        head = "POST /api/v1/table/parts HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTrailer: Authorization\r\n"
        body = f"4\r\nx\n1\n\r\n0\r\nAuthorization: Bearer {secret}\r\n\r\n"
        connection.sendall(f"{head}Connection: close\r\n\r\n{body}".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 401 "), answer
    assert closed.parts() == []


def test_no_byte_of_the_body_of_a_refused_call_is_needed(closed):
    """The answer comes while the client still waits to send its body."""
    host, port = closed.http_addresses[0].rsplit(":", 1)
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=ANSWER_SECONDS_MAX)) as connection:
        connection.putrequest("POST", "/api/v1/table/parts")
        connection.putheader("Content-Length", str(10**9))
        connection.endheaders()
        assert connection.getresponse().status == 401

    def silent():
        wait_until(lambda: ended, "the end of the call", ANSWER_SECONDS_MAX)
        yield from ()

    ended = False
    call = tally_pb2_grpc.TallyStub(closed.channel()).Upload.future(silent(), timeout=ANSWER_SECONDS_MAX)
    try:
        assert call.exception().code() == grpc.StatusCode.UNAUTHENTICATED
    finally:
        ended = True


def test_a_body_that_is_sent_at_once_does_not_hide_the_refusal(closed):
    for size in (10, 1_000_000):
        answer = requests.post(
            closed.http + "/api/v1/table/parts", data=b"x" * size, timeout=ANSWER_SECONDS_MAX
        )
        assert answer.status_code == 401, size


def test_calls_without_a_token_lock_nobody_out(closed, tokens):
    """More connections than there are, each with refused calls, beside those of a client with a token."""
    with contextlib.ExitStack() as stack:
        host, port = closed.http_addresses[0].rsplit(":", 1)
        for _ in range(80):
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=5))
            with contextlib.suppress(OSError):
                connection.sendall(b"GET /api/jobs HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = requests.get(closed.http + "/api/jobs", headers=tokens.header("read"), timeout=ANSWER_SECONDS_MAX)
            assert answer.status_code == 200


def test_tokens_are_read_again_at_sighup(closed, tokens):
    stub = tally_pb2_grpc.TallyStub(closed.channel())

    def may(name: str) -> bool:
        return code_of(stub.ListParts, tally_pb2.ListPartsRequest(), metadata=tokens.metadata(name)) == "OK"

    sent, more = iter([tally_pb2.UploadChunk(data=b"x\n1\n")]), []

    def chunks():
        yield from sent
        wait_until(lambda: more, "the tokens are read again", ANSWER_SECONDS_MAX)
        yield tally_pb2.UploadChunk(data=b"2\n")

    under_way = stub.Upload.future(chunks(), metadata=tokens.metadata("write"), timeout=ANSWER_SECONDS_MAX)
    before = tokens.list.read_text()
    tokens.add("late", "read")
    assert may("read") and not may("late")
    closed.process.send_signal(signal.SIGHUP)
    wait_until(lambda: may("late"), "the new token is known")
    # A file that is wrong, or gone, changes nothing.
    for content, text in (("late read", "line 1"), ("", "no token"), (None, "No such file")):
        tokens.list.write_text(content) if content is not None else tokens.list.unlink()
        closed.process.send_signal(signal.SIGHUP)
        closed.log_line("the tokens stay as they were", text)
        assert may("late") and may("read")
    # Only the reader is left. The upload that has begun goes on.
    tokens.list.write_text("".join(line for line in before.splitlines(True) if line.startswith("read ")))
    closed.process.send_signal(signal.SIGHUP)
    wait_until(lambda: not may("late"), "the token is gone")
    assert may("read") and not may("write")
    more.append(True)
    assert under_way.result().rows == 2


def test_without_a_token_file_sighup_ends_the_process_as_before(start_server, tmp_path):
    inherited = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, and children would, too
    try:
        server = start_server(tmp_path / "data")
    finally:
        signal.signal(signal.SIGHUP, inherited)
    server.process.send_signal(signal.SIGHUP)
    assert server.wait() == -signal.SIGHUP


@pytest.mark.parametrize("content", ["", "# nobody\n", "a read\n", "a b " + 64 * "0", "a read " + 64 * "g", None])
def test_a_wrong_token_file_is_no_start(start_server, tmp_path, content):
    path = tmp_path / "tokens"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ServerDidNotStart) as failure:
        start_server(tmp_path / "data", "--token-file", path)
    assert failure.value.exit_code == 1 and str(path) in failure.value.stderr


@pytest.mark.parametrize("flag", ["--token-file", "--admin-token-file", "--tls-key"])
def test_a_fifo_that_nobody_writes_to_is_no_start(start_server, tokens, tmp_path, flag):
    """It was waited for without an end."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    flags = ("--tls-cert", tokens.list) if flag == "--tls-key" else ()
    with pytest.raises(ServerDidNotStart) as failure:
        start_server(tmp_path / "data", flag, fifo, *flags)
    assert failure.value.exit_code == 1 and f"{fifo}: nothing more came within 5 s" in failure.value.stderr


def test_a_list_that_became_a_fifo_does_not_keep_the_server_from_its_work(closed, tokens):
    tokens.list.unlink()
    os.mkfifo(tokens.list, 0o600)
    closed.process.send_signal(signal.SIGHUP)
    closed.log_line("ERROR", "the tokens stay as they were", "nothing more came")
    answer = requests.get(closed.http + "/api/jobs", headers=tokens.header("read"), timeout=ANSWER_SECONDS_MAX)
    assert answer.status_code == 200
    closed.stop()


def test_a_file_that_everybody_may_change_is_told(start_server, tokens, tmp_path):
    tokens.file("admin").chmod(0o604)
    tokens.list.chmod(0o646)
    server = start_server(
        tmp_path / "data", "--token-file", tokens.list, "--admin-token-file", tokens.file("admin")
    )
    for path in (tokens.list, tokens.file("admin")):
        server.log_line("WARN", str(path), "chmod o-rw")
    tokens.file("admin").chmod(0o640)
    tokens.list.chmod(0o664)
    server = start_server(
        tmp_path / "other", "--token-file", tokens.list, "--admin-token-file", tokens.file("admin")
    )
    server.log_line("calls need a token")
    assert "chmod" not in server.stderr


# --- beyond loopback ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [("--grpc", "0.0.0.0:0"), ("--http", "[::]:0"), ("--http", "0.0.0.0:0,127.0.0.1:0")])
def test_beyond_loopback_nobody_serves_by_mistake(start_server, tmp_path, flags):
    with pytest.raises(ServerDidNotStart) as failure:
        start_server(tmp_path / "data", *flags)
    assert failure.value.exit_code == 2
    assert not (tmp_path / "data").exists()
    lines = failure.value.stderr.splitlines()
    assert len(lines) == 1 and "--token-file FILE" in lines[0] and "--insecure-allow-anyone" in lines[0]


@pytest.mark.parametrize("way", ["flag", "environment"])
def test_beyond_loopback_with_the_flag_or_with_tokens(start_server, tmp_path, tokens, way):
    flags, env = (["--insecure-allow-anyone"], {}) if way == "flag" else ([], {"TALLY_INSECURE_ALLOW_ANYONE": "true"})
    open_server = start_server(tmp_path / "open", "--grpc", "0.0.0.0:0", *flags, env=env)
    open_server.log_line("WARN", "anyone who reaches these addresses may read and write", "--token-file")
    # The image has the flag, so a token file closes it.
    env = {**env, "TALLY_TOKEN_FILE": str(tokens.list)}
    closed = start_server(tmp_path / "closed", "--grpc", "0.0.0.0:0", *flags, env=env)
    assert "anyone" not in closed.stderr
    for server, expected in ((open_server, "OK"), (closed, "UNAUTHENTICATED")):
        address = f"127.0.0.1:{server.port}"
        with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            assert code_of(table_pb2_grpc.TableStub(channel).Upload, table_pb2.UploadReq(csv_data=CSV)) == expected


# --- making and using tokens --------------------------------------------------------------------------------


def test_token_new_prints_the_line_and_apart_from_it_the_secret():
    made = run_tally("token", "new", "in-gest.1", "--scope", "write")
    assert made.returncode == 0
    assert re.fullmatch(r"in-gest\.1 write [0-9a-f]{64}\n", made.stdout)
    assert re.fullmatch(r"[0-9a-f]{64}\n", made.stderr)
    hashed = subprocess.run(["sha256sum"], input=made.stderr.strip(), capture_output=True, encoding="ascii")
    assert hashed.stdout.split()[0] == made.stdout.split()[2]
    assert run_tally("token", "new", "other", "--scope", "write").stderr != made.stderr
    for wrong in (["a b", "--scope", "read"], ["a", "--scope", "all"], ["a"], ["", "--scope", "read"], ["é", "--scope", "read"]):
        assert run_tally("token", "new", *wrong).returncode == 2, wrong


def test_the_commands_send_the_token_of_their_file(closed, tokens, tmp_path):
    (tmp_path / "day.csv").write_bytes(CSV)
    for way in ("flag", "environment"):

        def tally(name: str, *arguments):
            flags = ("--token-file", tokens.file(name)) if way == "flag" else ()
            env = {"TALLY_TOKEN_FILE": str(tokens.file(name))} if way == "environment" else {}
            return run_tally(*arguments, *flags, "--server", closed.address, env=env)

        assert tally("write", "upload", tmp_path / "day.csv").returncode == 0
        refused = tally("read", "upload", tmp_path / "day.csv")
        assert refused.returncode == 1 and "needs write" in refused.stderr
        for name, command in (
            ("read", ["sum", "x"]),
            ("read", ["sum", "x", "--format", "both"]),
            ("read", ["parts"]),
            ("read", ["schema"]),
            ("read", ["files"]),
            ("write", ["remove", "1", "--yes"]),
            ("write", ["restore", "1"]),
            ("admin", ["pack"]),
            ("admin", ["verify"]),
            ("write", ["load-numstore", "--requests", "5"]),
            ("read", ["health"]),
        ):
            done = tally(name, *command)
            assert done.returncode == 0, (command, done.stderr)
            assert not any(secret in done.stdout + done.stderr for secret in tokens.secrets.values())
    refused = run_tally("sum", "x", "--server", closed.address)
    assert refused.returncode == 1 and "a token of the scope read" in refused.stderr
    assert "--token-file FILE" in refused.stderr


def test_a_file_without_a_secret_is_no_call(server, tokens, tmp_path):
    (tmp_path / "two").write_text("two words")
    (tmp_path / "long").write_text("x" * 1025)
    (tmp_path / "empty").write_text("")
    for path, text in (
        (tmp_path / "two", "one word"),
        (tmp_path / "long", "one word"),
        (tmp_path / "empty", "one word"),
        (tmp_path / "none", "cannot be read"),
        (tokens.list, "list of tokens"),
    ):
        done = run_tally("sum", "x", "--token-file", path, "--server", server.address)
        assert done.returncode == 1 and text in done.stderr and str(path) in done.stderr
        done = run_client("csvsum.py", "x", "--token-file", path, server=server)
        assert done.returncode == 1 and str(path) in done.stderr
    tokens.file("read").chmod(0o644)
    done = run_tally("sum", "x", "--token-file", tokens.file("read"), "--server", server.address)
    assert done.returncode == 0 and "chmod 600" in done.stderr
    # In a container, TALLY_TOKEN_FILE is the server's list, which must not make a health check fail.
    done = run_tally("health", "--server", server.address, env={"TALLY_TOKEN_FILE": str(tokens.list)})
    assert (done.returncode, done.stdout) == (0, "serving\n")


@pytest.mark.parametrize("way", ["flag", "environment"])
def test_the_python_programs_send_the_token_of_their_file(closed, tokens, tmp_path, way):
    (tmp_path / "day.csv").write_bytes(CSV)
    (tmp_path / "large.csv").write_bytes(b"x\n" + b"1\n" * 9_000_000)  # streamed

    def run(name: str, program: str, *arguments):
        flags = ("--token-file", tokens.file(name)) if way == "flag" else ()
        env = {"TALLY_TOKEN_FILE": str(tokens.file(name))} if way == "environment" else {}
        return run_client(program, *arguments, *flags, server=closed, env=env)

    for path in ("day.csv", "large.csv"):
        uploaded = run("write", "upload.py", tmp_path / path)
        assert (uploaded.returncode, uploaded.stdout) == (0, "success\n"), uploaded.stderr
    for program in ("csvsum.py", "parquetsum.py"):
        summed = run("read", program, "y")
        assert (summed.returncode, summed.stdout.splitlines()[-1]) == (0, "6"), summed.stderr
    assert run("write", "bigdata.py", "--batches", "2", "--rows", "1000").returncode == 0
    assert run("write", "client.py", closed.port, "--requests", "5", "--host", "127.0.0.1").returncode == 0
    # It does not use the address of TALLY_SERVER, so it does not use its scheme either.
    env = {"TALLY_SERVER": "https://tally.invalid", "TALLY_TOKEN_FILE": str(tokens.file("write"))}
    assert run_client("client.py", closed.port, "--requests", "5", env=env).returncode == 0
    refused = run("read", "upload.py", tmp_path / "day.csv")
    assert refused.returncode == 1 and "needs write" in refused.stderr
    refused = run_client("upload.py", tmp_path / "day.csv", server=closed)
    assert refused.returncode == 1 and "a token of the scope write" in refused.stderr


def test_refused_calls_are_counted(closed, tokens):
    assert code_of(tally_pb2_grpc.TallyStub(closed.channel()).Pack, tally_pb2.PackRequest()) == "UNAUTHENTICATED"
    text = requests.get(closed.http + "/metrics", headers=tokens.header("read"), timeout=ANSWER_SECONDS_MAX).text
    assert 'tally_grpc_calls_total{method="tally.v1.Tally/Pack",code="Unauthenticated"} 1' in text
    assert json.dumps(tokens.secrets["read"])[1:-1] not in text
