"""Uploads of a whole CSV file over gRPC, by the unary call and by the stream, and the error that each answers."""

import grpc
import table_pb2
import tally_pb2
from conftest import Server, table, tally


def unary_error(server: Server, csv: bytes) -> str:
    return table(server).Upload(table_pb2.UploadReq(csv_data=csv)).error


def stream(server: Server, csv: bytes) -> tally_pb2.Receipt:
    return tally(server).Upload(iter([tally_pb2.UploadChunk(data=csv)]))


def stream_error(server: Server, csv: bytes) -> str:
    """The error of a stream upload that the caller can fix; empty if the file is accepted."""
    try:
        stream(server, csv)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
        return error.details()
    return ""
