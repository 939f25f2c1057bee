"""Shared by the client programs: the server's address, the channel to it, and error messages.

Imports no stub, so that each program needs only the stubs of its own service.
"""

import itertools
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from typing import NoReturn, Optional, TypeVar

# Ctrl-C ends a client at once, without a traceback. There is nothing to clean up, because the server drops an
# unfinished upload. This is set before the import of grpc, which takes long enough to be interrupted.
signal.signal(signal.SIGINT, signal.SIG_DFL)
# The log of gRPC would hide the error message of the program.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc  # noqa: E402

DEFAULT_HOST = "localhost"
DEFAULT_PORT = 5440
CONNECT_MS_MAX = 5000

CHANNEL_OPTIONS = [
    # One message may be a whole file, which is larger than the default limit of grpc.
    ("grpc.max_send_message_length", -1),
    # How long the first connection may take if the server does not respond at all; the default is 20 s.
    ("grpc.min_reconnect_backoff_ms", CONNECT_MS_MAX),
    # Proxies in the environment are meant for the web, and would be used even for localhost.
    ("grpc.enable_http_proxy", 0),
]


# How often a call that was interrupted is repeated, and the seconds before that: the first pause, doubled each time.
RETRIES_MAX = 6
FIRST_PAUSE_S = 0.25
PAUSE_S_MAX = 8

KEY_HEADER = "idempotency-key"
Metadata = Sequence[tuple[str, str]]
Answer = TypeVar("Answer")


class Failure(Exception):
    """Ends the program with this line on standard error and exit code 1."""


def server_address() -> str:
    """TALLY_SERVER as host:port. Its value may be a URL, and may lack the port. The default is localhost:5440."""
    address = os.environ.get("TALLY_SERVER") or DEFAULT_HOST
    address = address.removeprefix("http://").removesuffix("/")
    # A port can only be after the brackets of an IPv6 address.
    has_port = ":" in address.rpartition("]")[2]
    return address if has_port else f"{address}:{DEFAULT_PORT}"


def open_channel(address: Optional[str] = None) -> grpc.Channel:
    """A channel to the server at an address; the default is TALLY_SERVER.

    It connects at the first call, which fails at once if no server listens.
    """
    return grpc.insecure_channel(address or server_address(), options=CHANNEL_OPTIONS)


def upload_once(
    attempt: Callable[[Metadata], Answer], what: str, repeatable: bool = True, was_reached: bool = False
) -> Answer:
    """Calls attempt(metadata) to upload something, again if the call was interrupted or its answer was lost.

    The metadata have a random key, by which the server knows a repeated upload and adds it only once. `what` is named in
    the line on standard error that announces a retry. An upload that is not `repeatable` is sent only once. Unless a server
    `was_reached` before, a first attempt that reaches none is not repeated.
    """
    metadata = [(KEY_HEADER, str(uuid.uuid4()))]
    for retry in itertools.count(1):
        try:
            return attempt(metadata)
        except grpc.RpcError as error:
            is_broken = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED)
            reason = explain(error)
            is_nobody = retry == 1 and not was_reached and reason.startswith("no server at")
            if not is_broken or retry > RETRIES_MAX or is_nobody:
                raise
            if not repeatable:
                raise Failure(f"{reason}; a pipe cannot be read again, so it was not sent again") from error
            pause = min(FIRST_PAUSE_S * 2 ** (retry - 1), PAUSE_S_MAX)
            note = f"{what}: {reason}; attempt {retry} of {RETRIES_MAX} to send it again in {pause:g} s"
            print(note, file=sys.stderr, flush=True)
            time.sleep(pause)
    raise AssertionError("unreachable")


def explain(error: grpc.RpcError, address: Optional[str] = None) -> str:
    """The error of a call to the server at an address, as one line; the default is TALLY_SERVER."""
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
    """Runs a program and exits: with 0, or with 1 and one line on standard error."""
    try:
        program()
    except Failure as failure:
        sys.exit(str(failure))
    except grpc.RpcError as error:
        sys.exit(explain(error))
    sys.exit(0)
