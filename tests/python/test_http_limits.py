"""Limits of the HTTP port: sizes of bodies and heads, connections, and calls at the same time."""

import select
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import requests
from conftest import KIB, Server, wait_until
from http_calls import (
    ANSWER_SECONDS_MAX,
    CLIENT_SECONDS_MAX,
    PLAYS,
    TASKS,
    ask,
    completed_task,
    connect,
    download,
    get,
    head_of_form,
    send_file,
)
from survey_oracle import QUESTION

JSON_BYTES_MAX = 32 * KIB
URI_BYTES_MAX = 8 * KIB
CONNECTIONS_MAX = 56
LONG_CALLS_MAX = 20


def test_json_bodies_are_bounded(server):
    fits = {"question": "x", "padding": "y" * (JSON_BYTES_MAX - 100)}
    assert ask(server, "states_mean", fits).status_code == 200
    too_large = {"question": "x", "padding": "y" * JSON_BYTES_MAX}
    answer = ask(server, "states_mean", too_large)
    assert answer.status_code == 413 and answer.json()["status"] == "error"

    def chunks():
        yield b'{"question": "'
        for _ in range(32):
            yield b"z" * (64 * KIB)

    answer = requests.post(f"{server.http}/api/states_mean", data=chunks(), timeout=ANSWER_SECONDS_MAX)
    assert answer.status_code == 413


def test_heads_are_bounded(server):
    def first_line(head: str) -> str:
        with connect(server) as client:
            client.sendall(head.encode())
            client.settimeout(ANSWER_SECONDS_MAX)
            return read_line(client)

    def read_line(client: socket.socket) -> str:
        line = b""
        while not line.endswith(b"\r\n"):
            piece = client.recv(1)
            if not piece:
                break
            line += piece
        return line.decode()

    long_target = "x" * (URI_BYTES_MAX + 1)
    assert "414" in first_line(f"GET /{long_target} HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert "404" in first_line(f"GET /{long_target[:-10]} HTTP/1.1\r\nHost: localhost\r\n\r\n")
    many = "".join(f"X-{number}: 1\r\n" for number in range(100))
    assert "431" in first_line(f"GET /livez HTTP/1.1\r\nHost: localhost\r\n{many}\r\n")
    assert "431" in first_line(f"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: {'x' * (200 * KIB)}\r\n\r\n")
    assert get(server, "/livez").status_code == 200


def test_silent_connections_make_room(server):
    """More connections than are served at a time, none of which sends a whole request head."""
    with ExitStack() as silent:
        for number in range(CONNECTIONS_MAX + 8):
            client = silent.enter_context(connect(server))
            if number % 2:
                client.sendall(b"GET /livez HTTP/1.1\r\nHost: local")
        assert get(server, "/livez").status_code == 200


def test_clients_that_keep_their_connections_make_room(server):
    """As many clients as are served at a time poll on their connections without a pause; others are served
    nevertheless.
    """
    stop = threading.Event()
    connected = []

    def poll() -> None:
        with requests.Session() as session:
            # A kept connection may be closed just as its next request is sent: clients then send it again (RFC 9112, 9.5).
            session.mount(server.http, requests.adapters.HTTPAdapter(max_retries=3))
            while not stop.is_set():
                answer = session.get(server.http + "/api/num_jobs", timeout=ANSWER_SECONDS_MAX)
                # On a machine that stands still, a connection may wait too long to be used.
                assert answer.status_code == 200 or (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
                connected.append(answer.status_code == 200)

    with ThreadPoolExecutor(CONNECTIONS_MAX) as pool:
        polls = [pool.submit(poll) for _ in range(CONNECTIONS_MAX)]
        try:
            wait_until(lambda: sum(connected) > 10 * CONNECTIONS_MAX, "polls", CLIENT_SECONDS_MAX)
            for _ in range(20):
                assert get(server, "/livez").status_code == 200
        finally:
            stop.set()
        for poll in polls:
            poll.result(CLIENT_SECONDS_MAX)


def is_busy(answer: requests.Response) -> bool:
    is_refused = answer.status_code == 429
    assert not is_refused or "too many calls with a long body or answer" in answer.text, answer.text
    return is_refused and answer.headers["Retry-After"] == "1"


class OpenForms:
    """Forms that never end and keep sending. The server may nevertheless end one, if this machine stands still for so
    long that the form seems to have stopped: it is forgotten then.
    """

    def __init__(self, server: Server):
        self._server = server
        self._clients, self._lock = [], threading.Lock()
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> "OpenForms":
        self._sending = self._pool.submit(self._send)
        return self

    def __exit__(self, *_exception) -> None:
        self._stop.set()
        self._pool.shutdown()
        for client in self._clients:
            client.close()
        self._sending.result()

    def open_one(self) -> None:
        client = connect(self._server)
        client.sendall(head_of_form(self._server, 100 * 1024 * KIB) + PLAYS)
        with self._lock:
            self._clients.append(client)

    def count(self) -> int:
        """Those that the server has not answered, and so not ended."""
        with self._lock:
            return len(self._clients) - len(select.select(self._clients, [], [], 0)[0])

    def _send(self) -> None:
        while not self._stop.wait(0.1):
            with self._lock:
                clients = list(self._clients)
            for client in clients:
                try:
                    client.sendall(b"x" * KIB)
                except ConnectionError:
                    with self._lock:
                        self._clients.remove(client)
                    client.close()


def test_open_forms_leave_room_for_short_calls(server):
    """Forms that keep sending: a form that stops would make room for others."""
    with OpenForms(server) as forms:

        def is_full() -> bool:
            if is_busy(send_file(server, PLAYS)):
                return True
            forms.open_one()
            return False

        wait_until(is_full, "all permits for long calls are taken", CLIENT_SECONDS_MAX)
        # A form whose permit has gone was answered.
        assert LONG_CALLS_MAX <= forms.count() < CONNECTIONS_MAX
        for _ in range(20):
            assert get(server, "/livez").status_code == 200
            assert ask(server, "states_mean", {"question": QUESTION}).status_code == 200
    wait_until(lambda: send_file(server, PLAYS).status_code == 202, "the permits are free again", CLIENT_SECONDS_MAX)


def test_slow_questions_leave_room_for_short_calls(server):
    with ExitStack() as held:
        for _ in range(CONNECTIONS_MAX):
            client = held.enter_context(connect(server))
            client.sendall(b"POST /api/states_mean HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
        for _ in range(20):
            assert get(server, "/livez").status_code == 200


def test_open_downloads_leave_room_for_short_calls(server):
    rows = "".join(f"song {row:07},2020-01-01,{row}\n" for row in range(600_000))
    task_id = completed_task(server, b"Song,Date,Number of Plays\n" + rows.encode())
    with ExitStack() as held:
        head = f"GET {TASKS}{task_id}/download HTTP/1.1\r\nHost: localhost\r\n\r\n"

        for _ in range(LONG_CALLS_MAX):
            client = held.enter_context(connect(server))
            client.sendall(head.encode())
            assert client.recv(12) == b"HTTP/1.1 200"
        for _ in range(20):
            assert get(server, "/livez").status_code == 200
        # A download that is not read makes room for one that is.
        wait_until(lambda: is_downloaded(server, task_id), "room for a download")
    wait_until(lambda: is_downloaded(server, task_id), "the permits are free again")


def is_downloaded(server: Server, task_id: str) -> bool:
    answer = download(server, task_id)
    return not is_busy(answer) and answer.status_code == 200


@pytest.mark.parametrize("what", ["question", "form"])
def test_bodies_that_trickle_are_given_up(start_server, tmp_path, what):
    """The client keeps sending, but too slowly, and never to the end."""
    server = start_server(tmp_path / "data", "--upload-idle-s", "2")
    with connect(server) as client:
        if what == "form":
            client.sendall(head_of_form(server, 1000 * KIB))
        else:
            client.sendall(b"POST /api/states_mean HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n{")

        def is_answered() -> bool:
            try:
                client.sendall(b" ")
            except ConnectionError:
                return True  # the server has closed the connection after its answer
            return bool(select.select([client], [], [], 0.1)[0])

        wait_until(is_answered, "an answer")
        assert client.recv(KIB).startswith(b"HTTP/1.1 408 ")
    wait_until(lambda: server.leftovers() == [], "an empty tmp/")
