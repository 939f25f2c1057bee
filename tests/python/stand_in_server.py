"""A gRPC server inside the test's process that stores nothing. It shows what the real server does not: which call a client
used, and how a client takes an error, a wrong sum or a call that hangs.

`one_line` and `failed_with` check how a client program ended.
"""

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
import table_pb2
import table_pb2_grpc
import tally_pb2
import tally_pb2_grpc
from conftest import CHANNEL_OPTIONS


class StandIn(table_pb2_grpc.TableServicer, tally_pb2_grpc.TallyServicer):
    """A server that stores nothing, records completed uploads, and answers as a test says."""

    def __init__(self):
        self.unary = []  # the bytes of each message to Table.Upload
        self.streams = []  # the chunk sizes of each stream to tally.v1.Tally/Upload
        self.stream_began = threading.Event()
        self.abort_streams_with = None  # (code, details)
        self.stream_goes_on = threading.Event()  # cleared: streams hang at their end
        self.stream_goes_on.set()
        self.receipt_rows_too_many = 0

    def Upload(self, request, context):
        if isinstance(request, table_pb2.UploadReq):
            self.unary.append(len(request.csv_data))
            return table_pb2.UploadResp()
        return self._stream(request, context)

    def _stream(self, chunks, context):
        context.add_callback(self.stream_goes_on.set)  # the client is gone, so the stream need not hang any longer
        self.stream_began.set()
        sizes, newlines = [], 0
        for chunk in chunks:  # raises if the client cancels
            sizes.append(len(chunk.data))
            newlines += chunk.data.count(b"\n")
        if self.abort_streams_with:
            context.abort(*self.abort_streams_with)
        self.stream_goes_on.wait()
        self.streams.append(sizes)
        rows = max(0, newlines - 1) + self.receipt_rows_too_many
        return tally_pb2.Receipt(rows=rows, csv=tally_pb2.File(bytes=sum(sizes)))

    def ColSum(self, request, context):
        return table_pb2.ColSumResp(total=0)

    ColumnSum = ColSum

    def ListColumns(self, request, context):
        """Sends nothing until the client is gone."""
        gone = threading.Event()
        if context.add_callback(gone.set):
            gone.wait()
        yield from ()


@contextmanager
def running_stand_in() -> Iterator[StandIn]:
    servicer = StandIn()
    server = grpc.server(futures.ThreadPoolExecutor(8), options=CHANNEL_OPTIONS)
    table_pb2_grpc.add_TableServicer_to_server(servicer, server)
    tally_pb2_grpc.add_TallyServicer_to_server(servicer, server)
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield servicer
    servicer.stream_goes_on.set()
    server.stop(None).wait()


def one_line(text: str) -> str:
    """The text, which must be exactly one line."""
    assert text.endswith("\n") and text.count("\n") == 1, text
    return text[:-1]


def failed_with(result) -> str:
    """The one line of a program that failed as it should: exit code 1, nothing on standard output."""
    assert (result.returncode, result.stdout) == (1, ""), result
    return one_line(result.stderr)
