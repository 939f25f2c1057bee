"""`GET /api/v1/events`: what the server does, once a second, the same for all who watch, at the cost of none of the calls."""

import json
import signal
import socket
from contextlib import ExitStack

import pytest
import requests
from conftest import KIB, Server, wait_until
from http_calls import ANSWER_SECONDS_MAX, PARTS, END_OF_FORM, ask, check_problem, connect, get, head_of_form, metrics

EVENTS = "/api/v1/events"
WATCHERS_MAX = 16
LONG_CALLS_MAX = 20
USED_CONNECTIONS_MAX = 32


class Watcher:
    """Reads events as they come. `with` closes the connection."""

    def __init__(self, server: Server, first: str = ""):
        """`first` is a path to ask for before on the same connection."""
        self.connection = connect(server)
        self.lines = self.connection.makefile("rb")
        for path in (first, EVENTS):
            if path:
                self.connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {server.http_addresses[0]}\r\n\r\n".encode())
                self.status = int(self.lines.readline().split()[1])
                self.headers = {}
                for line in iter(self.lines.readline, b"\r\n"):
                    name, value = line.decode().split(": ", 1)
                    self.headers[name.lower()] = value.strip()
                self.lines.read(int(self.headers.get("content-length", 0)))

    def event(self):
        """The next event; None at the end of the stream."""
        size = int(self.lines.readline() or b"0", 16)
        piece = self.lines.read(size)
        self.lines.readline()
        if size == 0:
            return None
        kind, data, end, rest = piece.decode().split("\n")
        assert (kind, end, rest) == ("event: stats", "", "")
        return json.loads(data.removeprefix("data: "))

    def close(self) -> None:
        self.lines.close()
        self.connection.close()

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *_exception) -> None:
        self.close()


def until(watcher: Watcher, condition) -> dict:
    """The first event that is as wanted; one comes each second."""
    for _ in range(ANSWER_SECONDS_MAX):
        event = watcher.event()
        if condition(event):
            return event
    raise AssertionError(f"no event is as wanted; the last is {event}")


def test_an_event_says_what_the_server_does(server):
    with Watcher(server) as watcher:
        assert watcher.status == 200
        assert watcher.headers["content-type"] == "text/event-stream"
        assert watcher.headers["cache-control"] == "no-store"
        event = watcher.event()
        assert (event["parts"], event["received_bytes"], event["received_bytes_per_s"]) == (0, 0, 0)
        assert (event["uploads"], event["uploads_count"], event["quarantined"]) == ([], 0, 0)
        assert set(event["queue"]) == {"upload", "question", "job", "probe", "pack"}
        assert event["jobs"] == {"queued": 0, "running": 0, "done": 0, "failed": 0, "downloaded": 0}
        assert event["memory"]["resident"] > 0
        assert event["memory"]["limit"] is None or event["memory"]["limit"] > 0
        assert event["draining"] is False and event["time"].endswith("Z")

        content = b"x\n" + b"1\n" * 100_000
        answer = requests.post(server.http + PARTS, data=content, timeout=ANSWER_SECONDS_MAX)
        assert answer.status_code == 201
        event = until(watcher, lambda event: event["parts"] == 1)
        assert event["received_bytes"] == len(content)
        assert ask(server, "global_mean", {"question": "?"}).status_code == 200
        until(watcher, lambda event: event["jobs"]["failed"] == 1)


def test_running_uploads_are_listed_with_their_bytes(server):
    def begin(sent: bytes) -> socket.socket:
        connection = connect(server)
        head = f"POST {PARTS} HTTP/1.1\r\nHost: {server.http_addresses[0]}\r\nContent-Length: 100000\r\n\r\n"
        connection.sendall(head.encode() + sent)
        return connection

    with Watcher(server) as watcher:
        watcher.event()
        first = begin(b"x\n" + b"1\n" * 1000)
        event = until(watcher, lambda event: event["uploads_count"] == 1 and event["uploads"][0]["bytes"] == 2002)
        (upload,) = event["uploads"]
        assert upload["peer"] == "127.0.0.1" and upload["since"] <= event["time"]
        second = begin(b"x\n")
        event = until(watcher, lambda event: event["uploads_count"] == 2)
        assert event["uploads"][0]["id"] == upload["id"] and event["uploads"][0]["since"] == upload["since"]
        first.sendall(b"2\n" * 500)
        until(watcher, lambda event: event["uploads"][0]["bytes"] == 3002)
        first.close()
        until(watcher, lambda event: event["uploads_count"] == 1)
        second.close()
        event = until(watcher, lambda event: event["uploads"] == [])
        assert event["parts"] == 0


def test_all_watchers_get_the_same_events(server):
    with Watcher(server) as first:
        seen = [first.event()]
        with Watcher(server) as second, Watcher(server) as third:
            others = [[watcher.event() for _ in range(5)] for watcher in (second, third)]
        while seen[-1]["time"] < max(events[-1]["time"] for events in others):
            seen.append(first.event())
        by_time = {event["time"]: event for event in seen}
        for events in others:
            common = [event for event in events if event["time"] in by_time]
            # A watcher that has had no processor time for a second may lack an event.
            assert len(common) >= 2
            assert all(by_time[event["time"]] == event for event in common)
        for events in (seen, *others):
            times = [event["time"] for event in events]
            assert times == sorted(set(times))


def test_one_more_than_may_watch_is_refused(server):
    watchers = [Watcher(server) for _ in range(WATCHERS_MAX)]
    try:
        assert [watcher.status for watcher in watchers] == [200] * WATCHERS_MAX
        assert all(watcher.event() for watcher in watchers)
        refused = get(server, EVENTS)
        check_problem(refused, 429, None, "which is 16")
        assert refused.headers["Retry-After"] == "1"
        watchers.pop().close()
        wait_until(lambda: can_watch(server), "a place to watch")
    finally:
        for watcher in watchers:
            watcher.close()


def can_watch(server: Server) -> bool:
    with Watcher(server) as watcher:
        return watcher.status == 200 and watcher.event() is not None


def test_watchers_take_none_of_the_places_of_calls(server):
    watchers = [Watcher(server) for _ in range(WATCHERS_MAX)]
    forms = []
    try:
        assert all(watcher.event() for watcher in watchers)
        for _ in range(LONG_CALLS_MAX):
            forms.append(connect(server))
            forms[-1].sendall(head_of_form(server, 4))
        event = until(watchers[0], lambda event: event["uploads_count"] == LONG_CALLS_MAX)
        assert len(event["uploads"]) == LONG_CALLS_MAX
        assert get(server, "/livez").status_code == 200
        assert ask(server, "global_mean", {"question": "?"}).status_code == 200
        assert get(server, PARTS).status_code == 200
        for form in forms:
            form.sendall(b"a\n1\n" + END_OF_FORM)
        assert all(form.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 202" for form in forms)
        assert all(watcher.event() for watcher in watchers), "none was closed"
    finally:
        for connection in [*watchers, *forms]:
            connection.close()


def test_a_connection_that_watches_is_none_of_those_for_calls(server):
    """Browsers watch on a connection that they have used before. 32 connections may be used for calls: no watcher is closed for
    one of them.
    """
    with ExitStack() as stack:
        watchers = [stack.enter_context(Watcher(server, first=PARTS)) for _ in range(WATCHERS_MAX)]
        assert all(watcher.event() for watcher in watchers)
        for _ in range(USED_CONNECTIONS_MAX):
            session = stack.enter_context(requests.Session())
            assert session.get(server.http + PARTS, timeout=ANSWER_SECONDS_MAX).status_code == 200
        for _ in range(2):
            assert all(watcher.event() for watcher in watchers)


def test_nothing_is_computed_when_nobody_watches(server):
    """The task that makes events waits; the connections and the streams are gone."""
    tasks = metrics(server)["tally_tokio_alive_tasks"]
    for _ in range(3):
        with Watcher(server) as watcher:
            assert watcher.event()
    wait_until(lambda: metrics(server)["tally_tokio_alive_tasks"] <= tasks, "the end of the streams")
    with Watcher(server) as watcher:
        assert watcher.event()["received_bytes_per_s"] == 0


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_events_end_when_the_server_drains(server, signal_number):
    with Watcher(server) as watcher, Watcher(server) as other:
        assert watcher.event() and other.event()
        server.process.send_signal(signal_number)
        for each in (watcher, other):
            while each.event() is not None:
                pass
    assert server.wait() == 0
    assert "cut off" not in server.stderr


def test_a_watcher_that_reads_nothing_costs_the_others_nothing(server):
    with Watcher(server) as reading, Watcher(server) as silent:
        silent.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KIB)
        for _ in range(3):
            assert reading.event()
        assert get(server, PARTS).status_code == 200


def test_other_methods_and_queries(server):
    answer = requests.post(server.http + EVENTS, timeout=ANSWER_SECONDS_MAX)
    check_problem(answer, 405, None, "does not take this method")
    head = requests.head(server.http + EVENTS, timeout=ANSWER_SECONDS_MAX)
    assert head.status_code == 200 and head.headers["Content-Type"] == "text/event-stream"
    assert can_watch(server)
