"""Connections that hold what they have: `python slow_clients.py ADDRESS COUNT FIRST TRICKLE RESETS`.

Each sends FIRST (hexadecimal, - for nothing), then TRICKLE once a second, and reads nothing. One that the server closes is opened again,
ten at a time. With RESETS they all leave with a reset after a moment. Prints "open" when as many as possible are. Imports only the standard library.
"""

import resource
import select
import socket
import struct
import sys
import time

OPENED_AT_ONCE = 200


def content(text: str) -> bytes:
    return b"" if text == "-" else bytes.fromhex(text)


def opened(address, first: bytes) -> socket.socket:
    connection = socket.create_connection(address, timeout=2)
    connection.setblocking(False)
    try:
        connection.send(first)
    except BlockingIOError:
        pass
    return connection


def is_closed(connection: socket.socket) -> bool:
    """Without reading what was answered."""
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def fill(address, count: int, first: bytes, connections: list) -> None:
    for _ in range(min(OPENED_AT_ONCE, count - len(connections))):
        try:
            connections.append(opened(address, first))
        except OSError:
            return  # the backlog is full: it tries again later


def leave(connections: list) -> None:
    for connection in connections:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    connections.clear()


def main() -> None:
    host, port = sys.argv[1].rsplit(":", 1)
    address, count = (host, int(port)), int(sys.argv[2])
    first, trickle, resets = content(sys.argv[3]), content(sys.argv[4]), sys.argv[5] == "1"
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    connections: list = []
    ends = time.monotonic() + 3
    while len(connections) < count and time.monotonic() < ends:
        before = len(connections)
        fill(address, count, first, connections)
        if len(connections) == before:
            time.sleep(0.05)
    print("open", flush=True)
    while True:
        select.select([], [], [], 0.2 if resets else 1.0)
        if resets:
            leave(connections)
        for connection in [each for each in connections if is_closed(each)]:
            connections.remove(connection)
            connection.close()
        for connection in connections if trickle else []:
            try:
                connection.send(trickle)
            except OSError:
                pass
        fill(address, count, first, connections)


if __name__ == "__main__":
    main()
