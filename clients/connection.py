"""What the client programs share: which server, how to reach it, and how a program that fails ends.

Also holds the question that three of them ask, the sum of a column.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

# Ctrl-C ends a client at once, without a traceback: there is nothing to tidy up, for the server drops what
# arrived of an unfinished upload. Set before grpc is imported, which takes long enough to be interrupted.
signal.signal(signal.SIGINT, signal.SIG_DFL)
# gRPC's own log would stand between the user and the one line that says what is wrong.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc  # noqa: E402
import table_pb2  # noqa: E402
import table_pb2_grpc  # noqa: E402

DEFAULT_HOST = "localhost"
DEFAULT_PORT = 5440
CONNECT_MS_MAX = 5000

CHANNEL_OPTIONS = [
    # One message may be a whole file; grpc's own limit is meant for small ones.
    ("grpc.max_send_message_length", -1),
    # How long a server that does not even refuse may take to answer the first connection; 20 s unless told.
    ("grpc.min_reconnect_backoff_ms", CONNECT_MS_MAX),
    # A proxy in the environment is meant for the web, and would be asked even for localhost.
    ("grpc.enable_http_proxy", 0),
]


class Failure(Exception):
    """Ends a program with this one line and exit code 1."""


def server_address() -> str:
    """TALLY_SERVER as host:port. It may be a URL, the port may be left out, and so may the variable."""
    address = os.environ.get("TALLY_SERVER") or DEFAULT_HOST
    address = address.removeprefix("http://").removesuffix("/")
    # Only what follows an IPv6 address's brackets can be a port.
    has_port = ":" in address.rpartition("]")[2]
    return address if has_port else f"{address}:{DEFAULT_PORT}"


def open_channel() -> grpc.Channel:
    """A channel to the server. It connects at the first call, which fails at once if nobody listens."""
    return grpc.insecure_channel(server_address(), options=CHANNEL_OPTIONS)


def explain(error: grpc.RpcError) -> str:
    """What went wrong with a call, in one line."""
    code, details = error.code(), " ".join((error.details() or "").split())
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        return details  # the server's own words on the file, as Table.Upload has them in its reply
    if code == grpc.StatusCode.UNAVAILABLE and "failed to connect" in details.lower():
        return f"no server at {server_address()}: {details.rpartition(': ')[2]}"
    if code == grpc.StatusCode.UNAVAILABLE and "resol" in details.lower():
        return f"no server at {server_address()}: not a known host and a port"
    return f"{server_address()}: {details or 'no details'} ({code.name})"


def column_sum(channel: grpc.Channel, column: str, format: str) -> int:
    """The sum of a column, read from the "csv" or the "parquet" files."""
    reply = table_pb2_grpc.TableStub(channel).ColSum(table_pb2.ColSumReq(column=column, format=format))
    if reply.error:
        raise Failure(reply.error)
    return reply.total


def print_column_sum(format: str) -> None:
    """The whole of csvsum.py and parquetsum.py: the total on standard output, its time on standard error."""
    parser = argparse.ArgumentParser(description=f"Prints the sum of a column, from the {format} files.")
    parser.add_argument("column", metavar="COLUMN", type=utf8, help="its name in the header")
    column = parser.parse_args().column
    with open_channel() as channel:
        start = time.monotonic()
        total = column_sum(channel, column, format)
        elapsed_ms = (time.monotonic() - start) * 1000
    print(total)
    print(f"{elapsed_ms:.0f} ms", file=sys.stderr)


def utf8(argument: str) -> str:
    """An argument that protobuf can send as a string."""
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("is not UTF-8") from None
    return argument


def run(program: Callable[[], None]) -> NoReturn:
    """Runs a program to its exit code: 0, or 1 after one line on standard error."""
    try:
        program()
    except Failure as failure:
        sys.exit(str(failure))
    except grpc.RpcError as error:
        sys.exit(explain(error))
    sys.exit(0)
