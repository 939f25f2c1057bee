"""Appends a CSV file to the table: upload.py PATH

A file of up to 16 MiB is sent in one message (Table.Upload in table.proto). A larger one is sent as a stream of
chunks (Tally.Upload in tally.proto), which needs little memory. `upload.py /dev/stdin` sends standard input.

If the connection breaks or the server restarts, the file is sent again with the same idempotency-key, so that it is added
only once.
"""

import argparse
from collections.abc import Iterator
from typing import BinaryIO

import connection
import grpc
import table_pb2
import table_pb2_grpc
import tally_pb2
import tally_pb2_grpc

MESSAGE_BYTES_MAX = 16 * 1024 * 1024  # a larger file is streamed
CHUNK_BYTES = 256 * 1024


def upload(path: str) -> None:
    try:
        with open(path, "rb") as file, connection.open_channel() as channel:
            # Reads instead of asking for the size, because a pipe has no size, and a file may still grow.
            head = file.read(MESSAGE_BYTES_MAX + 1)
            if len(head) <= MESSAGE_BYTES_MAX:
                request = table_pb2.UploadReq(csv_data=head)
                stub = table_pb2_grpc.TableStub(channel)
                reply = connection.upload_once(lambda metadata: stub.Upload(request, metadata=metadata), path)
                if reply.error:
                    raise connection.Failure(reply.error)
            else:
                stub = tally_pb2_grpc.TallyStub(channel)

                def attempt(metadata: connection.Metadata) -> None:
                    if file.seekable():
                        file.seek(len(head))  # an earlier attempt may have read on
                    stream(stub, head, file, metadata)

                connection.upload_once(attempt, path, file.seekable())
    except OSError as error:
        raise connection.Failure(f"{path}: {error.strerror}") from error


def stream(
    stub: tally_pb2_grpc.TallyStub, head: bytes, file: BinaryIO, metadata: connection.Metadata = ()
) -> None:
    """Sends `head` and the rest of the file in chunks. If the CSV is wrong, the call fails with a status."""
    read_error = None

    def chunks() -> Iterator[tally_pb2.UploadChunk]:
        nonlocal read_error
        for start in range(0, len(head), CHUNK_BYTES):
            yield tally_pb2.UploadChunk(data=head[start : start + CHUNK_BYTES])
        try:
            while chunk := file.read(CHUNK_BYTES):
                yield tally_pb2.UploadChunk(data=chunk)
        except OSError as error:
            # This exception cancels the call, so the server keeps nothing. The error of the call does not say why.
            read_error = error
            raise

    try:
        stub.Upload(chunks(), metadata=metadata)
    except grpc.RpcError:
        if read_error:
            raise read_error from None
        raise


def main() -> None:
    parser = argparse.ArgumentParser(description="Appends a CSV file to the table.")
    parser.add_argument("path", metavar="PATH", help="a CSV file with a header row")
    connection.add_credentials(parser)
    upload(parser.parse_args().path)
    print("success")


if __name__ == "__main__":
    connection.run(main)
