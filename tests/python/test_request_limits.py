"""Limits of single requests over gRPC: sizes of a file and of a question, uploads at the same time, uploads that
stop.
"""

import threading
import time

import grpc
import pytest
import table_pb2
import tally_pb2
from conftest import CLIENT_SECONDS_MAX, KIB, Server, start_with, table, tally, wait_until
from http_calls import ANSWER_SECONDS_MAX
from uploads import stream, stream_error, unary_error

CSV = b"x,y\n1,2\n"
BOTH_WAYS = pytest.mark.parametrize("way", ["flag", "environment"])


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

# A setting, a file at the limit, a file just beyond it, and the error for that one.
FILE_LIMITS = [
    ("columns_max", 2, b"x,y\n1,2\n", b"x,y,z\n1,2,3\n", "the header (line 1) has more than 2 columns"),
    (
        "cell_bytes_max",
        8,
        b"x,y\n1,12345678\n",
        b"x,y\n1,123456789\n",
        'row 1 (line 2), column "y": the cell is longer than 8 bytes',
    ),
    (
        "row_bytes_max",
        16,
        b"x,y\n1,2\n123456,1234567\n",
        b"x,y\n1,2\n123456,1234567890\n",
        "row 2 (line 3) is longer than 16 bytes; is a quote not closed?",
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
def test_a_file_beyond_a_limit_is_refused(start_server, tmp_path, way, setting, value, within, beyond, message):
    server = start_with(start_server, tmp_path / "data", way, **{setting: value})
    for upload_error in (unary_error, stream_error):
        assert upload_error(server, within) == ""
        assert upload_error(server, beyond) == message
    wait_until(lambda: server.leftovers() == [], "nothing is left of what was refused")
    assert [receipt["csv"]["bytes"] for receipt in server.parts()] == [len(within)] * 2


# --- limits of uploads under way ----------------------------------------------------------------------------


def refusal_beside_another(server: Server, upload) -> grpc.RpcError:
    """The error of an upload beside one that takes the only permit. That one must keep sending, as an upload that stops
    makes room for the next; and it seems to have stopped if this machine stands still, so it is begun again then.
    """
    large = CSV + b"1,2\n" * 100_000
    deadline = time.monotonic() + CLIENT_SECONDS_MAX
    spools = server.data / "tmp"
    while time.monotonic() < deadline:
        wait_until(lambda: not list(spools.iterdir()), "nothing is left of an earlier upload")
        with HeldUpload(server, large, trickle=b"1,2\n" * 1000) as held:
            wait_until(lambda: any(spool.stat().st_size for spool in spools.iterdir()), "the upload arrives")
            refused = None
            try:
                upload(server, CSV)
            except grpc.RpcError as error:
                refused = error
            held.complete()
            error = held.call.exception(timeout=ANSWER_SECONDS_MAX)
            if error is not None:
                assert error.details() == "the transfer was 2 s behind 1 KiB/s, and was ended"
                continue
            assert held.call.result().csv.bytes > len(large)
            assert refused is not None, "both uploads were accepted at the same time"
            return refused
    raise AssertionError("no upload was refused")


@BOTH_WAYS
def test_one_upload_too_many_is_refused(start_server, tmp_path, way):
    server = start_with(start_server, tmp_path / "data", way, uploads_max=1)
    for upload in (unary_error, stream):
        refused = refusal_beside_another(server, upload)
        assert refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.details() == "1 uploads are under way, which is the limit: try again"
    assert unary_error(server, CSV) == ""


@BOTH_WAYS
@pytest.mark.parametrize("sent", [b"", CSV], ids=["nothing", "some"])
def test_an_upload_that_goes_silent_is_given_up(start_server, tmp_path, way, sent):
    # Idle uploads take the only permit, so the last upload shows that each of them released it.
    server = start_with(start_server, tmp_path / "data", way, upload_idle_s=1, uploads_max=1)
    for _ in range(2):
        with HeldUpload(server, sent) as held:
            error = held.call.exception(timeout=ANSWER_SECONDS_MAX)
            assert error.code() == grpc.StatusCode.ABORTED
            assert error.details() == "the upload stopped: no data arrived for 1 s"
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
