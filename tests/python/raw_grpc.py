"""A gRPC client that sends single HTTP/2 frames, for calls that no gRPC library would make."""

import socket
import struct
import time

import grpc
import h2.config
import h2.connection
import h2.events
from h2.errors import ErrorCodes

PREFIX_BYTES = 5
WAIT_SECONDS_MAX = 60
OK = grpc.StatusCode.OK.value[0]


class Call:
    """One HTTP/2 stream and what the server sent on it."""

    def __init__(self, stream_id: int):
        self.stream_id = stream_id
        self.headers = {}  # with the trailers, when they have come
        self.data = b""
        self.reset = None  # the error code of the server's RST_STREAM
        self.ended = False

    @property
    def status(self):
        """The gRPC status; None if it has not been received."""
        status = self.headers.get("grpc-status")
        return None if status is None else int(status)

    def response(self, message_type):
        """The one message of a call that succeeded."""
        assert (self.status, self.reset) == (OK, None), (self.headers, self.reset)
        assert self.data[:PREFIX_BYTES] == struct.pack(">BI", 0, len(self.data) - PREFIX_BYTES)
        return message_type.FromString(self.data[PREFIX_BYTES:])


class Connection:
    """An HTTP/2 client that sends and receives in the caller's thread, and does nothing by itself."""

    def __init__(self, server):
        self.socket = socket.create_connection((server.address.rsplit(":", 1)[0].strip("[]"), server.port))
        self.socket.settimeout(WAIT_SECONDS_MAX)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = h2.config.H2Configuration(header_encoding="utf-8", validate_outbound_headers=False)
        self.http2 = h2.connection.H2Connection(config)
        self.calls = {}
        self.pings_answered = 0
        self.http2.initiate_connection()
        self._flush()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_exception) -> None:
        self.socket.close()

    def start(self, path: str, **headers: str) -> Call:
        """Sends the HEADERS of a call; underscores stand for hyphens."""
        head = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost"}
        head.update({"content-type": "application/grpc", "te": "trailers"})
        head.update({name.replace("_", "-"): value for name, value in headers.items()})
        call = Call(self.http2.get_next_available_stream_id())
        self.calls[call.stream_id] = call
        self.http2.send_headers(call.stream_id, list(head.items()))
        self._flush()
        return call

    def send(self, call: Call, data: bytes, end: bool = False) -> None:
        """Sends DATA frames as large as allowed, unless the server has already answered."""
        while data and not call.ended:
            window = self.http2.local_flow_control_window(call.stream_id)
            if window == 0:
                self._receive()
                continue
            frame_bytes = min(window, self.http2.max_outbound_frame_size)
            self.http2.send_data(call.stream_id, data[:frame_bytes])
            data = data[frame_bytes:]
            self._flush()
        if end and not call.ended:
            self.http2.end_stream(call.stream_id)
            self._flush()

    def send_empty_frame(self, call: Call) -> None:
        self.http2.send_data(call.stream_id, b"")
        self._flush()

    def cancel(self, call: Call, code: ErrorCodes) -> None:
        self.http2.reset_stream(call.stream_id, code)
        self._flush()

    def finish(self, call: Call) -> Call:
        """Waits until the server has ended the call."""
        self.receive_until(lambda: call.ended)
        return call

    def receive_until(self, condition) -> None:
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while not condition():
            assert time.monotonic() < deadline, "waited in vain for the server"
            self._receive()  # pings come, too

    def call(self, path: str, body: bytes, **headers: str) -> Call:
        call = self.start(path, **headers)
        self.send(call, body, end=True)
        return self.finish(call)

    def round_trip(self) -> None:
        """Returns when the server has read everything that was sent so far."""
        answered = self.pings_answered
        self.http2.ping(b"wireping")
        self._flush()
        while self.pings_answered == answered:
            self._receive()

    def break_off(self, abruptly: bool) -> None:
        """Drops the connection: with a FIN, or with the RST of a process that crashed."""
        if abruptly:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _flush(self) -> None:
        self.socket.sendall(self.http2.data_to_send())

    def _receive(self) -> None:
        received = self.socket.recv(64 * 1024)
        assert received, "the server closed the connection"
        for event in self.http2.receive_data(received):
            call = self.calls.get(getattr(event, "stream_id", None))
            if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                call.headers.update(event.headers)
            elif isinstance(event, h2.events.DataReceived):
                call.data += event.data
                self.http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                call.ended = True
            elif isinstance(event, h2.events.StreamReset):
                call.reset = event.error_code if not call.ended else None  # "send no more" after an answer
                call.ended = True
            elif isinstance(event, h2.events.PingAckReceived):
                self.pings_answered += 1
            elif isinstance(event, h2.events.ConnectionTerminated):
                raise AssertionError(f"the server gave the connection up: {event.error_code}")
        self._flush()


def message(payload: bytes, flag: int = 0, more: int = 0) -> bytes:
    """A gRPC message whose length is announced with `more` bytes than it has."""
    return struct.pack(">BI", flag, len(payload) + more) + payload
