"""Column sums, for the three client programs that ask for them."""

import argparse
import sys
import time

import connection
import grpc
import table_pb2
import table_pb2_grpc


def column_sum(channel: grpc.Channel, column: str, format: str) -> int:
    """The sum of a column, read from the "csv" or the "parquet" files."""
    reply = table_pb2_grpc.TableStub(channel).ColSum(table_pb2.ColSumReq(column=column, format=format))
    if reply.error:
        raise connection.Failure(reply.error)
    return reply.total


def print_column_sum(format: str) -> None:
    """The main program of csvsum.py and parquetsum.py: prints the sum on standard output, and the time that it took on
    standard error.
    """
    parser = argparse.ArgumentParser(description=f"Prints the sum of a column, from the {format} files.")
    parser.add_argument("column", metavar="COLUMN", type=utf8, help="the column's name in the header")
    column = parser.parse_args().column
    with connection.open_channel() as channel:
        start = time.monotonic()
        total = column_sum(channel, column, format)
        elapsed_ms = (time.monotonic() - start) * 1000
    print(total)
    print(f"{elapsed_ms:.0f} ms", file=sys.stderr)


def utf8(argument: str) -> str:
    """An argument that is valid UTF-8, so that protobuf can send it."""
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("is not UTF-8") from None
    return argument
