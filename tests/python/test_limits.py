"""What one client can take, which flags and the environment bound, and what the log says about it."""

import errno
import json
import socket
import threading
from contextlib import ExitStack
from typing import List

import grpc
import pytest
import table_pb2
import tally_pb2
from conftest import KIB, Server, ServerDidNotStart, step_aside, table, tally, wait_until
from grpc_health.v1 import health_pb2, health_pb2_grpc

CSV = b"x,y\n1,2\n"
ANSWER_SECONDS_MAX = 60
SILENT_CONNECTIONS = 300
DEFAULT_PORT = 5440
HOSTILE_NAME = "\n\x1b[31m2026-01-01 INFO forged" + "x" * 10_000

BOTH_WAYS = pytest.mark.parametrize("way", ["flag", "environment"])


def start_with(start_server, data, way: str, **settings) -> Server:
    """A server with these settings, underscores for hyphens, by flags or by the environment alone."""
    if way == "environment":
        environment = {f"TALLY_{name.upper()}": str(value) for name, value in settings.items()}
        return start_server(data, env=environment)
    return start_server(data, *(f"--{name.replace('_', '-')}={value}" for name, value in settings.items()))


def unary_error(server: Server, csv: bytes) -> str:
    return table(server).Upload(table_pb2.UploadReq(csv_data=csv)).error


def stream(server: Server, csv: bytes) -> tally_pb2.Receipt:
    return tally(server).Upload(iter([tally_pb2.UploadChunk(data=csv)]))


def stream_error(server: Server, csv: bytes) -> str:
    """What the stream answers to a file that the caller can mend; no text if it is accepted."""
    try:
        stream(server, csv)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
        return error.details()
    return ""


class HeldUpload:
    """A stream upload that sends `csv`, then nothing, or `trickle` again and again, until it is told to end."""

    def __init__(self, server: Server, csv: bytes = b"", trickle: bytes = b""):
        self._csv = csv
        self._trickle = trickle
        self._go_on = threading.Event()
        self.call = tally(server).Upload.future(self._chunks())

    def _chunks(self):
        if self._csv:
            yield tally_pb2.UploadChunk(data=self._csv)
        while not self._go_on.wait(0.1 if self._trickle else None):
            yield tally_pb2.UploadChunk(data=self._trickle)

    def complete(self) -> None:
        self._go_on.set()

    def __enter__(self) -> "HeldUpload":
        return self

    def __exit__(self, *_exception) -> None:
        self._go_on.set()
        self.call.cancel()


# --- limits of a file ---------------------------------------------------------------------------------------


# A setting, a file that is just within it, one that is just beyond it, and what the server says to that.
FILE_LIMITS = [
    ("columns_max", 2, b"x,y\n1,2\n", b"x,y,z\n1,2,3\n", "the header has more than 2 columns"),
    (
        "cell_bytes_max",
        8,
        b"x,y\n1,12345678\n",
        b"x,y\n1,123456789\n",
        'row 1, column "y": the cell is longer than 8 bytes',
    ),
    (
        "row_bytes_max",
        16,
        b"x,y\n1,2\n123456,1234567\n",
        b"x,y\n1,2\n123456,1234567890\n",
        "row 2 is longer than 16 bytes; is a quote not closed?",
    ),
    (
        "upload_bytes_max",
        20,
        b"x,y\n" + b"1,2\n" * 4,
        b"x,y\n" + b"1,2\n" * 4 + b"\n",
        "the upload has more than 20 bytes",
    ),
]


@BOTH_WAYS
@pytest.mark.parametrize(
    "setting, value, within, beyond, message", FILE_LIMITS, ids=[setting for setting, *_ in FILE_LIMITS]
)
def test_a_file_beyond_a_limit_is_refused(
    start_server, tmp_path, way, setting, value, within, beyond, message
):
    server = start_with(start_server, tmp_path / "data", way, **{setting: value})
    for upload_error in (unary_error, stream_error):
        assert upload_error(server, within) == ""
        assert upload_error(server, beyond) == message
    wait_until(lambda: server.leftovers() == [], "nothing is left of what was refused")
    assert [receipt["csv"]["bytes"] for receipt in server.parts()] == [len(within)] * 2


# --- limits of uploads under way ----------------------------------------------------------------------------


@BOTH_WAYS
def test_one_upload_too_many_is_refused(start_server, tmp_path, way):
    server = start_with(start_server, tmp_path / "data", way, uploads_max=1)
    large = CSV + b"1,2\n" * 100_000
    # One that stopped would make room for the next.
    with HeldUpload(server, large, trickle=b"1,2\n" * 1000) as held:
        spools = server.data / "tmp"
        wait_until(lambda: any(spool.stat().st_size for spool in spools.iterdir()), "the upload arrives")
        for upload in (unary_error, stream):
            with pytest.raises(grpc.RpcError) as refused:
                upload(server, CSV)
            assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert refused.value.details() == "1 uploads are under way, which is the limit: try again"
        held.complete()
        assert held.call.result(timeout=ANSWER_SECONDS_MAX).csv.bytes > len(large)
    assert unary_error(server, CSV) == ""


@BOTH_WAYS
@pytest.mark.parametrize("sent", [b"", CSV], ids=["nothing", "some"])
def test_an_upload_that_goes_silent_is_given_up(start_server, tmp_path, way, sent):
    # Idle uploads take the only place, so the last upload proves that each of them gave it back.
    server = start_with(start_server, tmp_path / "data", way, upload_idle_s=1, uploads_max=1)
    for _ in range(2):
        with HeldUpload(server, sent) as held:
            error = held.call.exception(timeout=ANSWER_SECONDS_MAX)
            assert error.code() == grpc.StatusCode.ABORTED
            assert error.details() == "the upload stopped: nothing came for 1 s"
        wait_until(lambda: server.leftovers() == [], "nothing is left of it")
        assert server.parts() == []
    assert unary_error(server, CSV) == ""


def test_a_question_too_long_is_refused_and_the_server_goes_on(server):
    assert unary_error(server, CSV) == ""
    for ask in (table(server).ColumnSum, table(server).ColSum):
        for size in (16 * KIB, 10_000 * KIB):
            with pytest.raises(grpc.RpcError) as refused:
                ask(table_pb2.ColSumReq(column="x" * size, format="csv"))
            assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert refused.value.details() == f"the message is longer than {16 * KIB} bytes"
        answer = ask(table_pb2.ColSumReq(column="x", format="csv"))
        assert (answer.total, answer.error) == (1, "")


# --- connections --------------------------------------------------------------------------------------------


def test_silent_connections_do_not_keep_a_client_out(start_server, tmp_path):
    """More connections than the server has places for, none of which ever says a word."""
    server = start_server(tmp_path / "data")
    host, port = server.address.rsplit(":", 1)
    with ExitStack() as silent:
        for _ in range(SILENT_CONNECTIONS):
            silent.enter_context(socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS_MAX))
        answer = health_pb2_grpc.HealthStub(server.channel()).Check(
            health_pb2.HealthCheckRequest(), timeout=ANSWER_SECONDS_MAX, wait_for_ready=True
        )
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert unary_error(server, CSV) == ""


def test_by_default_only_this_machine_can_connect(start_server, tmp_path):
    try:
        server = start_server(tmp_path / "data", grpc_flag=False)
    except ServerDidNotStart as failure:
        if f":{DEFAULT_PORT}" in failure.stderr and "in use" in failure.stderr:
            step_aside(f"port {DEFAULT_PORT} is taken")
        raise
    assert server.ready_line.startswith(f"ready: grpc 127.0.0.1:{DEFAULT_PORT}")
    # The second is left out on a machine without IPv6.
    assert set(server.addresses) <= {f"127.0.0.1:{DEFAULT_PORT}", f"[::1]:{DEFAULT_PORT}"}
    # 127.0.0.2 is this machine, too, but another address: only a server that listens on all of them has it.
    with socket.socket() as elsewhere:
        assert elsewhere.connect_ex(("127.0.0.2", DEFAULT_PORT)) == errno.ECONNREFUSED


# --- the log ------------------------------------------------------------------------------------------------


def call_lines(server: Server) -> List[dict]:
    """The log lines about calls. The server must run with --log-format json, so every line is an object."""
    lines = [json.loads(line) for line in server.stderr.splitlines()]
    assert all(isinstance(line, dict) for line in lines)
    return [line for line in lines if "call" in line]


@BOTH_WAYS
def test_each_call_is_one_line_of_json(start_server, tmp_path, way):
    server = start_with(start_server, tmp_path / "data", way, log_format="json")
    expected = []

    def check_next(call: str, level: str) -> dict:
        """Exactly one line has come since the last look."""
        expected.append((call, level))
        wait_until(lambda: len(call_lines(server)) >= len(expected), f"a line on {call}")
        assert [(line["call"], line["level"]) for line in call_lines(server)] == expected
        return call_lines(server)[-1]

    assert unary_error(server, CSV) == ""
    line = check_next("Table/Upload", "INFO")
    assert (line["rows"], line["columns"], line["bytes"]) == (1, 2, len(CSV))
    refusal = unary_error(server, b"x,y\n1\n")
    assert check_next("Table/Upload", "WARN")["error"] == refusal == "row 1 has 1 cell, the header has 2"
    assert stream_error(server, CSV) == ""
    check_next("Tally/Upload", "INFO")
    refusal = stream_error(server, b"x,x\n")
    assert check_next("Tally/Upload", "WARN")["error"] == refusal != ""

    for ask in (table(server).ColumnSum, table(server).ColSum):
        assert ask(table_pb2.ColSumReq(column="x", format="csv")).total == 2
        line = check_next("Table/ColumnSum", "INFO")
        assert (line["column"], line["format"], line["total"]) == ('"x"', '"csv"', 2)
        refusal = ask(table_pb2.ColSumReq(column="x", format="xml")).error
        assert check_next("Table/ColumnSum", "WARN")["error"] == refusal != ""

    assert len(list(tally(server).ListParts(tally_pb2.ListPartsRequest()))) == 2
    check_next("Tally/ListParts", "INFO")
    server.stop()
    assert len(call_lines(server)) == len(expected)


def test_hostile_text_is_one_short_harmless_line(start_server, tmp_path):
    """In the log for people, where nothing but the server's own care keeps a line together."""
    server = start_server(tmp_path / "data")
    lines_before = server.stderr.count("\n")
    answer = table(server).ColumnSum(table_pb2.ColSumReq(column=HOSTILE_NAME, format="csv"))
    assert (answer.total, answer.error) == (0, "")  # no part has such a column
    assert table(server).ColumnSum(table_pb2.ColSumReq(column="x", format=HOSTILE_NAME)).error != ""
    name = HOSTILE_NAME[:500]  # a header takes names of 1 KiB
    assert unary_error(server, f'"{name}","{name}"\n'.encode()) != ""
    wait_until(lambda: server.stderr.count("\n") >= lines_before + 3, "three lines in the log")
    lines = server.stderr.split("\n")[lines_before:-1]
    assert len(lines) == 3
    for line in lines:
        assert "forged" in line and "\\n" in line and "\\u{1b}" in line
        assert line.isprintable() and len(line) < KIB
