"""Nobody can shut others out: attacks on connections, uploads and descriptors, with honest clients beside them.

An attacker here keeps to the protocol, but for the frames that are the attack. It holds what it has for as long as the
server lets it, and comes again at once when it is thrown out. Two seconds after it began, every new client must be
served within a few seconds, and every probe.
"""

import os
import select
import selectors
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager

import grpc
import hpack
import pytest
import requests
import table_pb2
import table_pb2_grpc
import tally_pb2
import tally_pb2_grpc
from conftest import CHANNEL_OPTIONS, KIB, ServerDidNotStart, binary, clean_environment, table, wait_until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from uploads import unary_error

CSV = b"x,y\n1,2\n"
CONNECTIONS_MAX = 128  # the server's default, as those below
UPLOADS_MAX = 128
HTTP_CONNECTIONS_MAX = 56
USED_HTTP_CONNECTIONS_MAX = 32
LONG_CALLS_MAX = 20
SILENT_CONNECTIONS = 300
# How long an honest call may take on a machine that does much else. An attack that shuts others out lasts longer.
HONEST_SECONDS_MAX = 20
ATTACK_SECONDS = 2
WAIT_SECONDS_MAX = 60
ROUNDS = 5

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
CANCEL = 8
UPLOAD = "/tally.v1.Tally/Upload"
FORM_HEAD = (
    b"POST /api/v1/file-processing/tasks/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
    b"Content-Type: multipart/form-data; boundary=B\r\n\r\n"
    b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\nx,y\n'
)


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream_id) + payload


def head_of_call(path: str, stream_id: int, ends: bool = False, content_length: str = "") -> bytes:
    """The HEADERS frame of a call."""
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost")]
    fields += [("content-type", "application/grpc"), ("te", "trailers")]
    fields += [("content-length", content_length)] if content_length else []
    # Each call has its own encoder, so that the frames can be sent in any order, and repeated.
    payload = hpack.Encoder().encode(fields)
    return frame(HEADERS, END_HEADERS | (END_STREAM if ends else 0), stream_id, payload)


class Http2:
    """An HTTP/2 client that acknowledges settings and answers pings, and otherwise only does what it is told."""

    def __init__(self, server, answers_pings: bool = True):
        self.answers_pings = answers_pings
        host, port = server.address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=WAIT_SECONDS_MAX)
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0))
        self.socket.setblocking(False)
        self.received = b""
        self.goaway = None  # the error code of the server's GOAWAY
        self.is_ponged = False  # the server has answered a ping
        self.is_closed = False

    def send(self, data: bytes) -> None:
        """Sends as much as the socket takes now, and drops the rest."""
        try:
            self.socket.send(data)
        except (BlockingIOError, TimeoutError):
            pass
        except OSError:
            self.is_closed = True

    def round_trip(self) -> bool:
        """Waits until the server has answered a ping. Returns False if it has given the connection up instead."""
        self.is_ponged = False
        self.send(frame(PING, 0, 0, b"tallytst"))

        def is_over() -> bool:
            select.select([self.socket], [], [], 1)
            self.read()
            return self.is_ponged or self.is_closed or self.goaway is not None

        wait_until(is_over, "the answer to a ping, or the end", WAIT_SECONDS_MAX)
        return not self.is_closed and self.goaway is None

    def read(self) -> None:
        try:
            received = self.socket.recv(64 * KIB)
            self.is_closed = not received
        except (BlockingIOError, TimeoutError):
            return
        except OSError:
            self.is_closed = True
            return
        self.received += received
        while len(self.received) >= 9:
            length = int.from_bytes(self.received[:3], "big")
            if len(self.received) < 9 + length:
                return
            kind, flags, _stream = struct.unpack(">BBI", self.received[3:9])
            payload, self.received = self.received[9 : 9 + length], self.received[9 + length :]
            if not self.answers_pings and kind in (SETTINGS, PING):
                continue
            if kind == SETTINGS and not flags & ACK:
                self.send(frame(SETTINGS, ACK, 0))
            elif kind == PING and not flags & ACK:
                self.send(frame(PING, ACK, 0, payload))
            elif kind == PING:
                self.is_ponged = True
            elif kind == GOAWAY:
                self.goaway = int.from_bytes(payload[4:8], "big")

    def close(self) -> None:
        self.socket.close()


class Http1:
    """An HTTP client that sends `first` and ignores the answer."""

    def __init__(self, server, first: bytes):
        host, port = server.http_addresses[0].rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=WAIT_SECONDS_MAX)
        self.socket.setblocking(False)
        self.is_closed = False
        self.send(first)

    send, close = Http2.send, Http2.close

    def read(self) -> None:
        try:
            self.is_closed = not self.socket.recv(64 * KIB)
        except BlockingIOError:
            pass
        except OSError:
            self.is_closed = True


@contextmanager
def attackers(connect, count: int, each_second=None):
    """So many connections, made again whenever the server closes one. `each_second(connection, turn)` goes on with
    it.
    """
    stop = threading.Event()
    failed = []

    def attack() -> None:
        selector = selectors.DefaultSelector()

        def add() -> None:
            try:
                connection = connect()
            except OSError:
                return  # the backlog is full: it tries again later
            selector.register(connection.socket, selectors.EVENT_READ, connection)

        turn, next_turn = 0, time.monotonic()
        while not stop.is_set():
            for _ in range(count - len(selector.get_map())):
                add()
            for key, _events in selector.select(timeout=0.05):
                connection = key.data
                connection.read()
                if connection.is_closed:
                    selector.unregister(connection.socket)
                    connection.close()
            if each_second is not None and time.monotonic() >= next_turn:
                turn, next_turn = turn + 1, time.monotonic() + 1
                for key in list(selector.get_map().values()):
                    each_second(key.data, turn)
        for key in list(selector.get_map().values()):
            key.data.close()

    def run() -> None:
        try:
            attack()
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        time.sleep(ATTACK_SECONDS)  # waits for the attack to take effect
        yield
    finally:
        stop.set()
        thread.join(WAIT_SECONDS_MAX)
    assert not failed, failed


class Times:
    """How long honest calls took, by kind of call."""

    def __init__(self):
        self.seconds = {}

    @contextmanager
    def of(self, what: str):
        began = time.monotonic()
        yield
        self.seconds.setdefault(what, []).append(time.monotonic() - began)

    def show(self) -> None:
        for what, seconds in self.seconds.items():
            seconds.sort()
            p99 = seconds[min(len(seconds) - 1, len(seconds) * 99 // 100)]
            print(f"{what}: {len(seconds)} calls, median {seconds[len(seconds) // 2]:.3f} s, p99 {p99:.3f} s")


def upload_as_a_new_client(server) -> None:
    with grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
        stub = table_pb2_grpc.TableStub(channel)
        request = table_pb2.UploadReq(csv_data=CSV)
        assert stub.Upload(request, timeout=HONEST_SECONDS_MAX, wait_for_ready=True).error == ""


def check_health(server) -> None:
    with grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(
            health_pb2.HealthCheckRequest(), timeout=HONEST_SECONDS_MAX, wait_for_ready=True
        )
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def check_container_health(server) -> None:
    """Runs the HEALTHCHECK of the image."""
    command = [binary(), "health", "--server", server.address]
    ran = subprocess.run(command, env=clean_environment(), capture_output=True, timeout=WAIT_SECONDS_MAX)
    assert ran.returncode == 0, ran


def check_http_probes(server) -> None:
    for path in ("/livez", "/readyz"):
        assert requests.get(server.http + path, timeout=HONEST_SECONDS_MAX).status_code == 200


def send_form(server) -> None:
    """Sends a form, again and again as long as the server says to try again."""
    form = {"file": ("a.csv", b"Song,Date,Number of Plays\na,2024-01-01,1\n")}
    deadline = time.monotonic() + HONEST_SECONDS_MAX
    while True:
        answer = requests.post(
            server.http + "/api/v1/file-processing/tasks/", files=form, timeout=HONEST_SECONDS_MAX
        )
        if answer.status_code == 202:
            return
        assert answer.status_code in (429, 503) and time.monotonic() < deadline, answer.text
        time.sleep(float(answer.headers["Retry-After"]))


def honest_clients_are_served(server, *more, rounds=ROUNDS) -> None:
    times = Times()
    checks = [upload_as_a_new_client, check_health, check_container_health, check_http_probes, *more]
    for _ in range(rounds):
        for check in checks:
            with times.of(check.__name__):
                check(server)
    times.show()


# --- connections --------------------------------------------------------------------------------------------


def test_idle_connections_that_answer_pings(server):
    with attackers(lambda: Http2(server), CONNECTIONS_MAX + 12):
        honest_clients_are_served(server)


def test_connections_that_have_called_once_and_idle(server):
    """They may not use the connections reserved for new clients; the one that was idle longest makes room for a
    call.
    """

    def connect():
        connection = Http2(server)
        connection.send(head_of_call("/NumStore/Fact", 1, ends=True))
        return connection

    with attackers(connect, CONNECTIONS_MAX + 12):
        honest_clients_are_served(server)


def test_a_client_that_is_known_is_served_beside_newcomers(server):
    """Its connection may be closed while it is idle; it only notices that a call takes longer."""
    with attackers(lambda: Http2(server), CONNECTIONS_MAX + 12):
        for _ in range(5):
            request = table_pb2.UploadReq(csv_data=CSV)
            assert table(server).Upload(request, timeout=HONEST_SECONDS_MAX, wait_for_ready=True).error == ""
            time.sleep(0.3)  # a client that is idle between calls


@pytest.mark.parametrize("first", [b"", b"GET /livez HTTP/1.1\r\nHost: local"], ids=["nothing", "half a head"])
def test_idle_http_connections_that_come_again(server, first):
    with attackers(lambda: Http1(server, first), 2 * HTTP_CONNECTIONS_MAX):
        honest_clients_are_served(server, send_form)


def test_probes_have_a_listener_of_their_own(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--probe", "127.0.0.1:0", "--http", "none")
    probe = f"http://{server.probe_addresses[0]}"
    with ExitStack() as stack:
        host, port = server.probe_addresses[0].rsplit(":", 1)
        for _ in range(20):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=WAIT_SECONDS_MAX))
        for path, status in (("/livez", 200), ("/readyz", 200), ("/metrics", 404), ("/api/jobs", 404)):
            answer = requests.get(probe + path, timeout=HONEST_SECONDS_MAX)
            assert (answer.status_code, answer.headers["Connection"]) == (status, "close"), path
    server.stop()


# --- uploads ------------------------------------------------------------------------------------------------


def slow_uploads(server, uploads: int):
    """A connection with this many uploads, and a function that sends one byte of each every second."""

    def connect():
        connection = Http2(server)
        for stream_id in range(1, 2 * uploads, 2):
            content = struct.pack(">BI", 0, 100_000) + b"\x0a" + b"\x9c\x8d\x06" + b"x,y\n"  # announces 99,996 bytes
            connection.send(head_of_call(UPLOAD, stream_id) + frame(DATA, 0, stream_id, content))
        return connection

    def each_second(connection, _turn) -> None:
        for stream_id in range(1, 2 * uploads, 2):
            connection.send(frame(DATA, 0, stream_id, b"1"))

    return connect, each_second


def test_slow_uploads_on_one_connection(server):
    """Slow uploads of one connection get at most half of the permits."""
    connect, each_second = slow_uploads(server, UPLOADS_MAX)
    with attackers(connect, 1, each_second):
        honest_clients_are_served(server)


def test_slow_uploads_on_some_connections(server):
    """Slow uploads of several connections get all permits, until another client needs one."""
    connect, each_second = slow_uploads(server, UPLOADS_MAX // 2)
    with attackers(connect, 4, each_second):
        honest_clients_are_served(server)


def trickle(connection, _turn) -> None:
    connection.send(b"1")


@pytest.mark.parametrize("count", [LONG_CALLS_MAX + 4, USED_HTTP_CONNECTIONS_MAX - 2, USED_HTTP_CONNECTIONS_MAX])
def test_slow_forms(server, count):
    with attackers(lambda: Http1(server, FORM_HEAD), count, trickle):
        honest_clients_are_served(server, send_form)


def test_a_slow_form_gives_way_and_is_told(server):
    with ExitStack() as stack:
        forms = [Http1(server, FORM_HEAD) for _ in range(LONG_CALLS_MAX)]
        for form in forms:
            stack.callback(form.close)
        time.sleep(ATTACK_SECONDS)  # from then on it is too slow
        send_form(server)
        sockets = [form.socket for form in forms]
        answered, _, _ = select.select(sockets, [], [], WAIT_SECONDS_MAX)
        answers = [connection.recv(64 * KIB) for connection in answered]
        assert answers and all(answer.startswith(b"HTTP/1.1 408 ") for answer in answers)


# --- JSON bodies --------------------------------------------------------------------------------------------

ASK = "/api/states_mean"
JSON_HEAD = b"POST " + ASK.encode() + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30000\r\n\r\n"
JSON_START = b'{"question": "' + b"q" * 20_000


def ask_at_length(server) -> None:
    """Asks with a body of 30 KB."""
    body = '{"question": "q", "more": "' + 30_000 * "m" + '"}'
    answer = requests.post(server.http + ASK, data=body, timeout=HONEST_SECONDS_MAX)
    assert answer.status_code == 200, answer.text


def test_slow_json_bodies(server):
    with attackers(lambda: Http1(server, JSON_HEAD + JSON_START), LONG_CALLS_MAX + 4, trickle):
        honest_clients_are_served(server, ask_at_length, rounds=2)


def test_no_file_of_an_upload_is_open_twice(server):
    """Descriptors are planned for each upload: one for each of its files."""
    rows = b"".join(b"text %d,%d\n" % (row, row) for row in range(100_000))
    half, go_on, opened_twice = len(rows) // 2, threading.Event(), {}

    def chunks():
        yield tally_pb2.UploadChunk(data=b"name,x\n" + rows[:half])
        go_on.wait()
        yield tally_pb2.UploadChunk(data=rows[half:])

    def look() -> int:
        opened = files_in(server.pid, server.data / "tmp")
        opened_twice.update((name, count) for name, count in opened.items() if count > 1)
        return len(opened)

    with grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
        uploads = [tally_pb2_grpc.TallyStub(channel).Upload.future(chunks()) for _ in range(12)]
        try:
            wait_until(lambda: look() >= len(uploads), "the first half of every upload", WAIT_SECONDS_MAX)
        finally:
            go_on.set()
        while not all(upload.done() for upload in uploads):
            look()
        assert {upload.result().rows for upload in uploads} == {100_000}
    assert not opened_twice, opened_twice


def files_in(pid: int, folder) -> Counter:
    """How often a process has each file of a folder open."""
    names = Counter()
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        try:
            path = os.readlink(f"/proc/{pid}/fd/{descriptor}")
        except OSError:
            continue  # closed meanwhile
        if path.startswith(f"{folder}/"):
            names[path] += 1
    return names


# --- file descriptors ---------------------------------------------------------------------------------------


def test_few_file_descriptors(start_server, tmp_path):
    server = start_server(tmp_path / "data", prefix=("prlimit", "--nofile=64"))
    honest_clients_are_served(server, send_form)
    connect, each_second = slow_uploads(server, 8)
    with attackers(lambda: Http2(server), 24), attackers(lambda: Http1(server, b""), 16):
        with attackers(connect, 4, each_second):
            honest_clients_are_served(server, send_form, rounds=3)
    server.log_line("fewer connections and uploads")
    assert "Too many open files" not in server.stderr
    honest_clients_are_served(server, send_form)


def test_a_server_that_ran_out_of_descriptors_goes_on(server):
    """The limit of file descriptors is lowered while the server runs."""
    upload_as_a_new_client(server)
    lower = ["prlimit", "--pid", str(server.pid), f"--nofile={len(os.listdir(f'/proc/{server.pid}/fd'))}:"]
    subprocess.run(lower, check=True)
    with attackers(lambda: Http2(server), 20):
        server.log_line("no connection could be accepted")
        subprocess.run(["prlimit", "--pid", str(server.pid), "--nofile=1024:"], check=True)
        honest_clients_are_served(server, rounds=1)


def test_too_few_file_descriptors_are_said_at_the_start(start_server, tmp_path):
    with pytest.raises(ServerDidNotStart) as failure:
        start_server(tmp_path / "data", prefix=("prlimit", "--nofile=40"))
    assert failure.value.exit_code == 1 and "40 open files and needs 64" in failure.value.stderr


def test_the_soft_limit_of_descriptors_is_raised(start_server, tmp_path):
    server = start_server(tmp_path / "data", prefix=("prlimit", "--nofile=64:4096"))
    limits = open(f"/proc/{server.pid}/limits").read()
    line = next(line for line in limits.splitlines() if line.startswith("Max open files"))
    assert line.split()[3:5] == ["4096", "4096"]
    assert "fewer connections and uploads" not in server.stderr
    server.stop()


# --- resets and windows -------------------------------------------------------------------------------------


def headers_without_end(stream_id: int) -> bytes:
    """HEADERS that say that more of the head comes, in CONTINUATION frames (RFC 9113, section 6.10)."""
    return frame(HEADERS, 0, stream_id, hpack.Encoder().encode([(":method", "POST"), (":path", UPLOAD)]))


def head_that_never_ends(server, is_used: bool = False) -> Http2:
    """It cannot even answer a ping: no frame may come between those of a head (RFC 9113, section 6.10)."""
    connection = Http2(server, answers_pings=False)
    if is_used:
        connection.send(head_of_call("/NumStore/Fact", 1, ends=True))
    connection.send(headers_without_end(3))
    return connection


@pytest.mark.parametrize("is_used", [False, True], ids=["at first", "after a call"])
def test_heads_that_never_end_shut_nobody_out(server, is_used):
    first = head_that_never_ends(server, is_used)
    try:
        with attackers(lambda: head_that_never_ends(server, is_used), CONNECTIONS_MAX + 12):
            honest_clients_are_served(server, rounds=2)
            wait_until(lambda: first.read() or first.is_closed, "it makes room", HONEST_SECONDS_MAX)
    finally:
        first.close()


def test_a_head_that_goes_on_for_ever_costs_the_connection(server):
    connection = head_that_never_ends(server)

    def is_closed() -> bool:
        time.sleep(0.1)  # slow enough for no bound of a rate
        connection.send(frame(CONTINUATION, 0, 3))
        connection.read()
        return connection.is_closed

    try:
        wait_until(is_closed, "the connection is closed", HONEST_SECONDS_MAX)
    finally:
        connection.close()
    upload_as_a_new_client(server)


def reset_at_once(stream_id: int) -> bytes:
    return head_of_call(UPLOAD, stream_id) + frame(RST_STREAM, 0, stream_id, struct.pack(">I", CANCEL))


def window_overflow(stream_id: int) -> bytes:
    """The server must reset the call (RFC 9113, section 6.9.1), but its handler goes on (the attack MadeYouReset)."""
    return head_of_call(UPLOAD, stream_id) + frame(WINDOW_UPDATE, 0, stream_id, struct.pack(">I", 2**31 - 1))


def more_than_announced(stream_id: int) -> bytes:
    """More data than the head's content-length: another way to make the server reset (RFC 9113, section 8.1.1)."""
    return head_of_call(UPLOAD, stream_id, content_length="1") + frame(DATA, 0, stream_id, b"xx")


@pytest.mark.parametrize("abuse", [reset_at_once, window_overflow, more_than_announced])
@pytest.mark.parametrize("pause", [False, True], ids=["at once", "one by one"])
def test_a_connection_that_abuses_resets_is_given_up(server, abuse, pause):
    calls_max = 3000
    connection = Http2(server)
    calls = 0
    for stream_id in range(1, 2 * calls_max, 2):
        connection.send(abuse(stream_id))
        calls += 1
        # The server has seen all of these calls before the next ones are made.
        if (pause or calls % 100 == 0) and not connection.round_trip():
            break
    connection.close()
    assert calls < calls_max
    upload_as_a_new_client(server)


def test_abuse_of_resets_shuts_nobody_out(server):
    def connect():
        connection = Http2(server)
        for stream_id in range(1, 200, 2):
            connection.send(window_overflow(stream_id) + reset_at_once(stream_id + 200))
        return connection

    with attackers(connect, 8):
        honest_clients_are_served(server)


# --- the end ------------------------------------------------------------------------------------------------


def test_a_client_that_never_answers_does_not_hold_up_the_end(server):
    silent = Http2(server)
    connect, _each_second = slow_uploads(server, 3)
    stalled = connect()
    half_a_head = Http1(server, b"GET /livez HTTP/1.1\r\n")
    form = Http1(server, FORM_HEAD)
    try:
        check_health(server)  # so that the server has accepted them
        server.stop()
        # The server waits 5 s for such clients. Those that keep sending are cut off after 30 s, which the log says.
        assert "were cut off" not in server.stderr
        silent.read()
        assert silent.goaway == 0
    finally:
        for connection in (silent, stalled, half_a_head, form):
            connection.close()


def test_an_upload_that_moves_is_waited_for_at_the_end(start_server, tmp_path):
    server = start_server(tmp_path / "data")
    rows, go_on = 40, threading.Event()

    def chunks():
        yield tally_pb2.UploadChunk(data=b"x,y\n")
        for row in range(rows):
            go_on.wait(0.25)  # more than 5 s in all, and never 5 s without a row
            yield tally_pb2.UploadChunk(data=b"1,2\n")
            if row == 2:
                server.process.terminate()

    with grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
        assert tally_pb2_grpc.TallyStub(channel).Upload(chunks(), timeout=WAIT_SECONDS_MAX).rows == rows
    assert server.wait() == 0
    assert "were cut off" not in server.stderr


def test_silent_connections_do_not_keep_a_client_out(start_server, tmp_path):
    """More connections than the server accepts, none of which ever sends a byte."""
    server = start_server(tmp_path / "data")
    host, port = server.address.rsplit(":", 1)
    with ExitStack() as silent:
        for _ in range(SILENT_CONNECTIONS):
            silent.enter_context(socket.create_connection((host, int(port)), timeout=HONEST_SECONDS_MAX))
        answer = health_pb2_grpc.HealthStub(server.channel()).Check(
            health_pb2.HealthCheckRequest(), timeout=HONEST_SECONDS_MAX, wait_for_ready=True
        )
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert unary_error(server, CSV) == ""
