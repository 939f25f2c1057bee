"""Shared by the client programs: the server's address, the channel to it, and error messages.

Imports no stub, so that each program needs only the stubs of its own service.
"""

import argparse
import collections
import contextlib
import ipaddress
import itertools
import os
import signal
import stat
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

SECRET_CHARS_MAX = 1024

KEY_HEADER = "idempotency-key"
Metadata = Sequence[tuple[str, str]]
Answer = TypeVar("Answer")


class Failure(Exception):
    """Ends the program with this line on standard error and exit code 1."""


def server_url() -> str:
    """TALLY_SERVER; the default is localhost."""
    return os.environ.get("TALLY_SERVER") or DEFAULT_HOST


def server_address(url: Optional[str] = None) -> str:
    """A URL as host:port. It may lack the scheme, and the port. The default is TALLY_SERVER."""
    address = url or server_url()
    address = address.removeprefix("http://").removeprefix("https://").removesuffix("/")
    # A port can only be after the brackets of an IPv6 address.
    has_port = ":" in address.rpartition("]")[2]
    return address if has_port else f"{address}:{DEFAULT_PORT}"


class _SetVariable(argparse.Action):
    """A flag that sets the environment variable of its name, which worker processes inherit, too."""

    def __call__(self, parser, namespace, value, option_string=None) -> None:
        os.environ[f"TALLY_{self.dest.upper()}"] = value


def add_credentials(parser: argparse.ArgumentParser) -> None:
    """Adds the flags --token-file, --ca, --client-cert and --client-key to a program."""
    for flag, text in (
        ("--token-file", "holds the secret of a token, for a server that asks for one; also TALLY_TOKEN_FILE"),
        ("--ca", "the authorities that sign the server's certificate, in PEM; TLS is used; also TALLY_CA"),
        ("--client-cert", "a certificate that shows who calls, in PEM; TLS is used; also TALLY_CLIENT_CERT"),
        ("--client-key", "the private key of that certificate, in PEM; also TALLY_CLIENT_KEY"),
    ):
        parser.add_argument(flag, metavar="FILE", action=_SetVariable, default=argparse.SUPPRESS, help=text)


def read_token() -> Optional[str]:
    """The secret in the file that TALLY_TOKEN_FILE names; None if it names none."""
    path = os.environ.get("TALLY_TOKEN_FILE")
    if not path:
        return None
    try:
        with open(path, encoding="ascii") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IROTH:
                print(f"{path} can be read by everyone on this machine: chmod 600 it", file=sys.stderr)
            words = file.read(SECRET_CHARS_MAX + 1).split()
    except OSError as error:
        raise Failure(f"{path}: the token cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Failure(f"{path}: it holds characters that no token has") from None
    if len(words) != 1 or len(words[0]) > SECRET_CHARS_MAX:
        raise Failure(f"{path}: it must hold one word, the secret of a token, and not a server's list of tokens")
    return words[0]


def read_tls(url: str) -> Optional[grpc.ChannelCredentials]:
    """How the connection to a server is encrypted, by its URL, TALLY_CA, TALLY_CLIENT_CERT and TALLY_CLIENT_KEY.

    None if it is not.
    """
    files = []
    for name in ("TALLY_CA", "TALLY_CLIENT_KEY", "TALLY_CLIENT_CERT"):
        path = os.environ.get(name)
        try:
            with open(path, "rb") if path else contextlib.nullcontext() as file:
                files.append(file.read() if file else None)
        except OSError as error:
            raise Failure(f"{path}: it cannot be read: {error.strerror}") from None
    authorities, key, certificate = files
    if (key is None) != (certificate is None):
        raise Failure("--client-cert and --client-key need each other")
    if not url.startswith("https://") and authorities is None and key is None:
        return None
    if url.startswith("http://"):
        raise Failure(f"--ca and --client-cert need TLS, and {url} begins with http://")
    return grpc.ssl_channel_credentials(authorities, key, certificate)


def _is_loopback(address: str) -> bool:
    """Whether host:port is this machine, by its name or number."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name


class _CallDetails(
    collections.namedtuple(
        "_CallDetails", ("method", "timeout", "metadata", "credentials", "wait_for_ready", "compression")
    ),
    grpc.ClientCallDetails,
):
    """The options of a call, as an interceptor passes them on."""


class _ShowToken(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds the token to the metadata of each call."""

    def __init__(self, token: str):
        self._header = ("authorization", f"Bearer {token}")

    def _intercept(self, continuation, details, request):
        options = (getattr(details, name, None) for name in ("credentials", "wait_for_ready", "compression"))
        metadata = (*(details.metadata or ()), self._header)
        return continuation(_CallDetails(details.method, details.timeout, metadata, *options), request)

    intercept_unary_unary = intercept_unary_stream = _intercept
    intercept_stream_unary = intercept_stream_stream = _intercept


def open_channel(address: Optional[str] = None) -> grpc.Channel:
    """A channel to the server at an address, which may be a URL; the default is TALLY_SERVER.

    Its calls have the token, if there is one.

    It connects at the first call, which fails at once if no server listens.
    """
    url = address or server_url()
    token, tls, address = read_token(), read_tls(url), server_address(url)
    if token and not tls and not _is_loopback(address):
        print(f"the token is sent to {address} unencrypted: use https:// or --ca", file=sys.stderr)
    if tls:
        channel = grpc.secure_channel(address, tls, options=CHANNEL_OPTIONS)
    else:
        channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
    return grpc.intercept_channel(channel, _ShowToken(token)) if token else channel


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
