"""Malformed and unusual gRPC calls, sent frame by frame, as no gRPC library would send them.

Each malformed call is made TURNS times, more often than there are places for uploads, so that a place, a file
or a stream that one of them kept would be missed. Beside them, on the same connection, runs a good upload.
"""

import gzip
import random
import struct
import threading
from contextlib import ExitStack

import grpc
import pytest
import table_pb2
import tally_pb2
from conftest import KIB, table, tally, wait_until
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from h2.errors import ErrorCodes
from raw_grpc import OK, PREFIX_BYTES, Connection, message

TABLE_UPLOAD = "/Table/Upload"
TALLY_UPLOAD = "/tally.v1.Tally/Upload"
UPLOADS = pytest.mark.parametrize("path", [TABLE_UPLOAD, TALLY_UPLOAD])
UPLOADS_MAX = 128  # the server's default
WIDE_CONNECTIONS_MAX = 12
# Flow-control windows of a call and of its connection, and the largest frame, in bytes.
WIDE = (448 * KIB, 512 * KIB, 65_474)
USUAL = (136 * KIB, 152 * KIB, 48 * KIB)
TURNS = 200

INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT.value[0]
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED.value[0]


def field(content: bytes) -> bytes:
    """csv_data of an UploadReq; the data of an UploadChunk is encoded in the same way."""
    return table_pb2.UploadReq(csv_data=content).SerializeToString()


def csv_of(rows: int) -> bytes:
    return b"x,y\n" + b"1,2\n" * rows


SMALL = csv_of(1_000)
TRICKLED = csv_of(50_000)
LARGE = csv_of(100_000)  # 400 kB, beyond all windows and blocks


def content_of(turn: int) -> bytes:
    """Mostly small files, so that the test is quick."""
    return LARGE if turn % 20 == 0 else SMALL


class UploadBeside:
    """A good upload that is under way as long as the `with` block runs, and succeeds after it."""

    def __init__(self, connection: Connection, path: str):
        self.connection = connection
        self.path = path
        self.body = message(field(LARGE))

    def __enter__(self) -> None:
        self.upload = self.connection.start(self.path)
        self.connection.send(self.upload, self.body[: len(self.body) // 2])

    def __exit__(self, exception_type, *_exception) -> None:
        if exception_type is None:
            assert not self.upload.ended, self.upload.headers
            self.connection.send(self.upload, self.body[len(self.body) // 2 :], end=True)
            response_type = table_pb2.UploadResp if self.path == TABLE_UPLOAD else tally_pb2.Receipt
            response = self.connection.finish(self.upload).response(response_type)
            if self.path == TABLE_UPLOAD:
                assert response.error == ""


def assert_kept(server, contents: list) -> None:
    """Files and sums are exactly those of `contents`, and one more upload is accepted."""
    wait_until(lambda: not server.leftovers(), "nothing is left over")
    kept = [(server.data / "parts" / f"{part['part']}.csv").read_bytes() for part in server.parts()]
    assert sorted(kept) == sorted(contents)
    assert table(server).Upload(table_pb2.UploadReq(csv_data=SMALL)).error == ""
    total = sum(content.count(b"\n1,2") for content in [*contents, SMALL])
    for file_format in ("csv", "parquet"):
        answer = table(server).ColumnSum(table_pb2.ColSumReq(column="x", format=file_format))
        assert (answer.total, answer.error) == (total, "")


# name: (the body made of a file's content, headers of the call, the status)
MALFORMED_UPLOADS = {
    "flag_two": (lambda content: message(field(content), flag=2), {}, INVALID_ARGUMENT),
    "announces_more": (lambda content: message(field(content), more=1), {}, INVALID_ARGUMENT),
    "announces_less": (lambda content: message(field(content), more=-1), {}, INVALID_ARGUMENT),
    "announces_4_gib": (
        lambda content: struct.pack(">BI", 0, 2**32 - 1) + field(content),
        {},
        INVALID_ARGUMENT,
    ),
    "second_csv_data": (lambda content: message(field(content) + field(content)), {}, INVALID_ARGUMENT),
    "second_empty_csv_data": (lambda content: message(field(content) + b"\x0a\x00"), {}, INVALID_ARGUMENT),
    "csv_data_of_3_gib": (
        lambda content: struct.pack(">BI", 0, 2**32 - 1) + b"\x0a\x80\x80\x80\x80\x0c" + content,
        {},
        INVALID_ARGUMENT,
    ),
    "garbage": (lambda content: message(random.Random(len(content)).randbytes(999)), {}, INVALID_ARGUMENT),
    "garbage_behind": (lambda content: message(field(content) + b"\xff"), {}, INVALID_ARGUMENT),
    "csv_data_as_number": (lambda content: message(b"\x08\x01"), {}, INVALID_ARGUMENT),
    "not_grpc": (lambda content: content, {}, INVALID_ARGUMENT),
    "compressed": (lambda content: message(gzip.compress(field(content)), flag=1), {}, UNIMPLEMENTED),
    "compressed_with_header": (
        lambda content: message(gzip.compress(field(content)), flag=1),
        {"grpc_encoding": "gzip"},
        UNIMPLEMENTED,
    ),
    "compressed_says_the_header": (
        lambda content: message(field(content)),
        {"grpc_encoding": "gzip"},
        UNIMPLEMENTED,
    ),
    "stops_in_prefix": (lambda content: message(field(content))[: PREFIX_BYTES - 1], {}, INVALID_ARGUMENT),
    "stops_halfway": (lambda content: message(field(content))[: len(content) // 2], {}, INVALID_ARGUMENT),
    "stops_one_byte_early": (lambda content: message(field(content))[:-1], {}, INVALID_ARGUMENT),
    # A stream may have these; see test_a_stream_may_have_any_number_of_messages.
    "no_message": (lambda content: b"", {}, INVALID_ARGUMENT),
    "two_messages": (lambda content: message(field(content)) * 2, {}, INVALID_ARGUMENT),
}
FOR_UNARY_ONLY = ("no_message", "two_messages")


@pytest.mark.parametrize(
    "path, name",
    [(TABLE_UPLOAD, name) for name in MALFORMED_UPLOADS]
    + [(TALLY_UPLOAD, name) for name in MALFORMED_UPLOADS if name not in FOR_UNARY_ONLY],
)
def test_malformed_upload(server, path, name):
    body_of, headers, status = MALFORMED_UPLOADS[name]
    with Connection(server) as connection:
        with UploadBeside(connection, path):
            for turn in range(TURNS):
                call = connection.call(path, body_of(content_of(turn)), **headers)
                assert (call.status, call.reset) == (status, None), call.headers
                assert call.headers["grpc-message"] and not call.data
    assert_kept(server, [LARGE])


@UPLOADS
@pytest.mark.parametrize("lie", [-1, 1, -10_000_000, 10_000_000])
def test_content_length_that_disagrees(server, path, lie):
    with Connection(server) as connection:
        with UploadBeside(connection, path):
            for turn in range(TURNS):
                body = message(field(content_of(turn)))
                call = connection.call(path, body, content_length=str(max(0, len(body) + lie)))
                assert call.reset is not None or call.status != OK
    assert_kept(server, [LARGE])


@UPLOADS
@pytest.mark.parametrize("code", [ErrorCodes.CANCEL, ErrorCodes.NO_ERROR, ErrorCodes.INTERNAL_ERROR])
@pytest.mark.parametrize("sent", ["nothing", "half", "all_but_the_end"])
def test_cancelled_upload(server, path, code, sent):
    """Even if everything that was sent is a valid file: without END_STREAM it may be incomplete."""
    with Connection(server) as connection:
        with UploadBeside(connection, path):
            for turn in range(TURNS):
                body = message(field(content_of(turn)))
                call = connection.start(path)
                connection.send(call, body[: {"nothing": 0, "half": len(body) // 2}.get(sent, len(body))])
                if turn % 2:
                    connection.round_trip()
                connection.cancel(call, code)
                connection.round_trip()
    assert_kept(server, [LARGE])


@UPLOADS
@pytest.mark.parametrize("abruptly", [False, True], ids=["fin", "rst"])
def test_dropped_connection(server, path, abruptly):
    with Connection(server) as connection:
        with UploadBeside(connection, path):
            for turn in range(TURNS):
                dropped = Connection(server)
                call = dropped.start(path)
                # Every other one has sent a valid file, and only the end of the call is missing.
                body = message(field(content_of(turn)))
                dropped.send(call, body if turn % 2 else body[: len(body) // 2])
                if turn % 4 < 2:
                    dropped.round_trip()
                dropped.break_off(abruptly)
    assert_kept(server, [LARGE])


def test_a_stream_may_have_any_number_of_messages(server):
    pieces = [SMALL[at : at + 7] for at in range(0, len(SMALL), 7)]
    with Connection(server) as connection:
        body = b"".join(message(field(piece)) + message(b"") for piece in pieces)
        call = connection.call(TALLY_UPLOAD, body)
        assert call.response(tally_pb2.Receipt).rows == SMALL.count(b"\n") - 1
        # An empty upload has no header row, which is reported as an error of the caller.
        for path, nothing in [(TALLY_UPLOAD, b""), (TALLY_UPLOAD, message(b""))]:
            empty = connection.call(path, nothing)
            assert empty.status == INVALID_ARGUMENT and "header" in empty.headers["grpc-message"]
        for nothing in (message(b""), message(b"\x0a\x00")):
            assert "header" in connection.call(TABLE_UPLOAD, nothing).response(table_pb2.UploadResp).error
    assert_kept(server, [SMALL])


@UPLOADS
def test_frames_of_one_byte(server, path):
    content = csv_of(100)
    body = message(field(content))
    with Connection(server) as connection:
        call = connection.start(path)
        for at in range(len(body)):
            connection.send(call, body[at : at + 1])
            if at % 50 == 0:
                connection.send_empty_frame(call)
                connection.round_trip()  # a flood of tiny frames would rightly be taken for an attack
        connection.send(call, b"", end=True)
        assert connection.finish(call).status == OK
    assert_kept(server, [content])


@UPLOADS
def test_unknown_fields_are_skipped(server, path):
    bytes_field = b"\x4a\xc0\x84\x3d" + field(SMALL)[:1] * 1_000_000
    number, fixed32, fixed64 = b"\x18\xff\xff\x03", b"\x25abcd", b"\x29abcdefgh"
    group = b"\x33" + field(b"not,ours\n") + b"\x08\x07" + b"\x34"
    unknown = bytes_field + number + fixed32 + fixed64 + group
    with Connection(server) as connection:
        for _turn in range(3):
            assert connection.call(path, message(unknown + field(SMALL) + unknown)).status == OK
    assert_kept(server, [SMALL] * 3)


@UPLOADS
def test_metadata_over_the_limit_ends_that_call_alone(server, path):
    """Without a gRPC library, which would not even send so much."""
    with Connection(server) as connection:
        with UploadBeside(connection, path):
            for turn in range(TURNS):
                padding = "x" * (17 * KIB + turn * 64)
                call = connection.call(path, message(field(SMALL)), padding=padding)
                assert (call.status, call.reset) == (RESOURCE_EXHAUSTED, None), call.headers
                assert "16384" in call.headers["grpc-message"]
    assert_kept(server, [LARGE])


def test_more_metadata_than_http2_reads_ends_that_call_alone(server):
    with Connection(server) as connection:
        with UploadBeside(connection, TALLY_UPLOAD):
            for size in (60 * KIB, 150 * KIB):
                call = connection.call(TALLY_UPLOAD, message(field(SMALL)), padding="x" * size)
                assert call.headers[":status"] == "431"
    assert_kept(server, [LARGE])


def test_a_grpc_library_reports_metadata_over_the_limit(server):
    question = table_pb2.ColSumReq(column="x", format="csv")
    for size in (17 * KIB, 40 * KIB):
        with pytest.raises(grpc.RpcError) as failure:
            table(server).ColumnSum(question, metadata=[("padding", "x" * size)])
        assert failure.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, failure.value
        assert failure.value.details() == "the call's metadata has more than 16384 bytes: send less"
        assert table(server).ColumnSum(question).error == ""
    assert table(server).ColumnSum(question, metadata=[("padding", "x" * 15 * KIB)]).error == ""
    # More than HTTP/2 reads. The answer has no gRPC status, but no other call is disturbed.
    for size in (60 * KIB, 150 * KIB):
        may_go_on, sent = threading.Event(), threading.Event()

        def chunks(may_go_on=may_go_on, sent=sent):
            yield tally_pb2.UploadChunk(data=SMALL)
            sent.set()
            may_go_on.wait(60)

        beside = tally(server).Upload.future(chunks())
        assert sent.wait(60)
        with pytest.raises(grpc.RpcError) as failure:
            table(server).ColumnSum(question, metadata=[("padding", "x" * size)])
        # Under load, the library may look at the end of the stream before it looks at the head of the answer.
        shown = {grpc.StatusCode.UNKNOWN: "431", grpc.StatusCode.INTERNAL: "RST_STREAM"}.get(failure.value.code())
        assert shown and shown in failure.value.details(), failure.value
        may_go_on.set()
        assert beside.result(60).csv.bytes == len(SMALL)


# name: (the body, headers of the call, the status)
QUESTION = table_pb2.ColSumReq(column="x", format="csv").SerializeToString()
MALFORMED_QUESTIONS = {
    "flag_two": (message(QUESTION, flag=2), {}, INVALID_ARGUMENT),
    "announces_more": (message(QUESTION, more=1), {}, INVALID_ARGUMENT),
    "announces_less": (message(QUESTION, more=-1), {}, INVALID_ARGUMENT),
    "garbage": (message(b"\xff" * 20), {}, INVALID_ARGUMENT),
    "column_as_number": (message(b"\x08\x01"), {}, INVALID_ARGUMENT),
    "column_not_utf8": (message(b"\x0a\x01\xff"), {}, INVALID_ARGUMENT),
    "compressed": (message(gzip.compress(QUESTION), flag=1), {}, UNIMPLEMENTED),
    "compressed_with_header": (
        message(gzip.compress(QUESTION), flag=1),
        {"grpc_encoding": "gzip"},
        UNIMPLEMENTED,
    ),
    "stops_in_prefix": (message(QUESTION)[:3], {}, INVALID_ARGUMENT),
    "stops_halfway": (message(QUESTION)[:8], {}, INVALID_ARGUMENT),
    "no_message": (b"", {}, INVALID_ARGUMENT),
    "two_messages": (message(QUESTION) * 2, {}, INVALID_ARGUMENT),
}


@pytest.mark.parametrize("name", MALFORMED_QUESTIONS)
def test_malformed_question(server, name):
    body, headers, status = MALFORMED_QUESTIONS[name]
    with Connection(server) as connection:
        with UploadBeside(connection, TABLE_UPLOAD):
            for turn in range(TURNS):
                call = connection.call(("/Table/ColumnSum", "/Table/ColSum")[turn % 2], body, **headers)
                assert (call.status, call.reset) == (status, None), call.headers
        answer = connection.call("/Table/ColumnSum", message(QUESTION)).response(table_pb2.ColSumResp)
        assert (answer.total, answer.error) == (LARGE.count(b"\n") - 1, "")
    assert_kept(server, [LARGE])


class Trickle:
    """Uploads on one connection, each of which sends a little of its body whenever it is told to."""

    def __init__(self, connection: Connection, path: str, count: int):
        self.connection = connection
        self.body = message(field(TRICKLED))
        self.calls = [connection.start(path) for _ in range(count)]
        self.sent = 0

    def go_on(self) -> None:
        """Sends 1 KiB of each upload, but never the end."""
        upto = min(self.sent + KIB, len(self.body) - 10)
        for call in self.calls:
            self.connection.send(call, self.body[self.sent : upto])
        self.sent = upto
        self.connection.round_trip()

    def ended(self) -> list:
        return [call for call in self.calls if call.ended]

    def finish(self) -> None:
        going_on = [call for call in self.calls if not call.ended]
        for call in going_on:
            self.connection.send(call, self.body[self.sent :], end=True)
        assert [self.connection.finish(call).status for call in going_on] == [OK] * len(going_on)


@UPLOADS
def test_the_129th_upload_at_once_is_refused(server, path):
    """As long as the others keep sending. Which of the 129 is refused depends on the order inside the server."""
    with Connection(server) as first, Connection(server) as second, Connection(server) as third:
        half = UPLOADS_MAX // 2
        all_of_them = [Trickle(first, path, half), Trickle(second, path, half), Trickle(third, path, 1)]

        def refused() -> list:
            for some in all_of_them:
                some.go_on()
            return [call for some in all_of_them for call in some.ended()]

        wait_until(refused, "one upload is refused")
        assert [call.status for call in refused()] == [RESOURCE_EXHAUSTED]
        for some in all_of_them:
            some.finish()
    assert_kept(server, [TRICKLED] * UPLOADS_MAX)


@UPLOADS
def test_one_connection_has_half_of_the_uploads(server, path):
    with Connection(server) as connection:
        uploads = Trickle(connection, path, UPLOADS_MAX // 2 + 1)
        wait_until(lambda: uploads.go_on() or uploads.ended(), "one upload is refused")
        assert [call.status for call in uploads.ended()] == [RESOURCE_EXHAUSTED]
        with Connection(server) as other:
            assert other.call(path, message(field(SMALL))).status == OK
        uploads.finish()
    assert_kept(server, [TRICKLED] * (UPLOADS_MAX // 2) + [SMALL])


def test_unknown_format(server):
    assert table(server).Upload(table_pb2.UploadReq(csv_data=SMALL)).error == ""
    for ask in (table(server).ColumnSum, table(server).ColSum):
        for unknown in ("", "json", "CSV", " csv", "parquet ", "x" * 10_000, "a\nb\x1b[31m"):
            answer = ask(table_pb2.ColSumReq(column="x", format=unknown))
            assert answer.total == 0
            assert '"csv"' in answer.error and '"parquet"' in answer.error
            assert len(answer.error) < 1_000 and answer.error.isprintable()


def test_column_sum_and_col_sum_are_the_same(server):
    for content in (b"x,y,name\n1,2,a\n-4,5,b\n", b"y,z\n5,007\n,20\n"):
        assert table(server).Upload(table_pb2.UploadReq(csv_data=content)).error == ""
    expected = {"x": (-3, True), "y": (12, True), "z": (27, True), "absent": (0, True), "name": (0, False)}
    for column, (total, summable) in expected.items():
        for file_format in ("csv", "parquet"):
            question = table_pb2.ColSumReq(column=column, format=file_format)
            answer = table(server).ColumnSum(question)
            assert (answer.total, answer.error == "") == (total, summable)
            assert table(server).ColSum(question) == answer


def test_reflection(server):
    database = ProtoReflectionDescriptorDatabase(server.channel())
    assert {"Table", "tally.v1.Tally"} <= set(database.get_services())
    pool = descriptor_pool.DescriptorPool(database)
    table_methods = pool.FindServiceByName("Table").methods_by_name
    assert set(table_methods) == {"Upload", "ColumnSum", "ColSum"}
    # The code behind it reads a stream, but clients see the definition in table.proto.
    assert not table_methods["Upload"].client_streaming and not table_methods["Upload"].server_streaming
    upload = pool.FindServiceByName("tally.v1.Tally").methods_by_name["Upload"]
    assert upload.client_streaming and not upload.server_streaming


def test_health(server):
    health = health_pb2_grpc.HealthStub(server.channel())
    for service in ("", "Table", "tally.v1.Tally"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, service


def test_services_work_on_one_channel(server):
    """The stubs of both services against the same port, as a client of both would use them."""
    chunks = (tally_pb2.UploadChunk(data=SMALL[at : at + 100]) for at in range(0, len(SMALL), 100))
    assert tally(server).Upload(chunks).rows == 1_000
    assert [part.rows for part in tally(server).ListParts(tally_pb2.ListPartsRequest())] == [1_000]
    assert table(server).ColumnSum(table_pb2.ColSumReq(column="y", format="parquet")).total == 2_000


def test_the_connections_that_come_first_may_have_more_on_the_way(start_server, tmp_path):
    """The first connections have larger windows, which make uploads faster; there is not enough memory for all to
    have them.
    """
    server = start_server(tmp_path / "data")

    def bounds(connection: Connection) -> tuple:
        connection.round_trip()
        http2 = connection.http2
        connection_window = http2.outbound_flow_control_window
        return http2.remote_settings.initial_window_size, connection_window, http2.max_outbound_frame_size

    def come_and_go() -> bool:
        with Connection(server) as connection:
            return bounds(connection) == WIDE

    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(server)) for _ in range(WIDE_CONNECTIONS_MAX + 2)]
        assert [bounds(connection) for connection in connections] == [WIDE] * WIDE_CONNECTIONS_MAX + [USUAL] * 2
        for connection in (connections[0], connections[-1]):
            rows = b"1,2\n" * 500_000
            body = table_pb2.UploadReq(csv_data=b"a,b\n" + rows).SerializeToString()
            call = connection.call(TABLE_UPLOAD, struct.pack(">BI", 0, len(body)) + body)
            assert call.response(table_pb2.UploadResp).error == ""
        assert not come_and_go()
        connections[3].break_off(abruptly=False)
        wait_until(come_and_go, "a place among them")
    total = table(server).ColSum(table_pb2.ColSumReq(column="b", format="csv")).total
    assert total == 2 * 2 * 500_000
