"""Shared by the client programs: the server's address, the channel to it, and how a program ends that fails.

Imports no stub, so that each program needs those of its own service alone.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, Optional

# Ctrl-C ends a client at once, without a traceback: there is nothing to tidy up, for the server drops what
# arrived of an unfinished upload. Set before grpc is imported, which takes long enough to be interrupted.
signal.signal(signal.SIGINT, signal.SIG_DFL)
# The log of gRPC would hide the one line that says what is wrong.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc  # noqa: E402

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
    """Ends the program with this line on standard error and exit code 1."""


def server_address() -> str:
    """TALLY_SERVER as host:port. It may be a URL, the port may be left out, and so may the variable."""
    address = os.environ.get("TALLY_SERVER") or DEFAULT_HOST
    address = address.removeprefix("http://").removesuffix("/")
    # Only what follows an IPv6 address's brackets can be a port.
    has_port = ":" in address.rpartition("]")[2]
    return address if has_port else f"{address}:{DEFAULT_PORT}"


def open_channel(address: Optional[str] = None) -> grpc.Channel:
    """A channel to the server, which is TALLY_SERVER's unless its address is given.

    It connects at the first call, which fails at once if nobody listens.
    """
    return grpc.insecure_channel(address or server_address(), options=CHANNEL_OPTIONS)


def explain(error: grpc.RpcError, address: Optional[str] = None) -> str:
    """The error of a call to that server, as one line."""
    address = address or server_address()
    code, details = error.code(), " ".join((error.details() or "").split())
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        return details  # the server's message about a file or a key
    if code == grpc.StatusCode.UNAVAILABLE and "failed to connect" in details.lower():
        return f"no server at {address}: {details.rpartition(': ')[2]}"
    if code == grpc.StatusCode.UNAVAILABLE and "resol" in details.lower():
        return f"no server at {address}: not a known host and a port"
    return f"{address}: {details or 'no details'} ({code.name})"


def run(program: Callable[[], None]) -> NoReturn:
    """Runs a program to its exit code: 0, or 1 after one line on standard error."""
    try:
        program()
    except Failure as failure:
        sys.exit(str(failure))
    except grpc.RpcError as error:
        sys.exit(explain(error))
    sys.exit(0)
