"""Shared by all Python tests: a server under test, the stubs to call it, and the client programs as processes.

    import table_pb2
    from conftest import Server, run_client, step_aside, table, tally, wait_until

    def test_something(server):                      # a running server on a fresh folder
        assert table(server).Upload(table_pb2.UploadReq(csv_data=b"x\\n1\\n")).error == ""

    def test_something_else(start_server, tmp_path): # servers with flags, killed when the test ends
        server = start_server(tmp_path / "data", "--durability", "none")

Run from anywhere: `python -m pytest tests/python`. TALLY_BINARY names another binary than target/debug/tally.
TALLY_REQUIRE_ALL=1 makes every test that would step aside (no docker, no root, no sample data) fail instead.
"""

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import grpc
import pytest

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = ROOT / "clients"
PROTO = ROOT / "proto"
INPUTS = ROOT / "inputs"

START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 60  # the server gives running calls 30 s
CLIENT_SECONDS_MAX = 600
KIB = 1024

# A test talks to the server next to it: no limit of the client's own, no proxy, and no connection (or its
# back-off) inherited from an earlier server that had the same port.
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
]

READY_LINE = re.compile(
    r"ready: grpc (?P<addresses>\S+:\d+(?:, \S+:\d+)*)(?:; http (?P<http>\S+:\d+(?:, \S+:\d+)*))?"
    r"(?:; probe (?P<probe>\S+:\d+(?:, \S+:\d+)*))?"
    r"; (?P<parts>\d+) parts? in (?P<data>.+?)"
    r"(?:, (?P<quarantine>\d+) in quarantine)?$"
)


def make_stubs() -> None:
    """Generates the stubs into clients/ unless they are there and newer than proto/."""
    protos = sorted(PROTO.glob("*.proto"))
    stubs = [CLIENTS / (proto.stem + suffix) for proto in protos for suffix in ("_pb2.py", "_pb2_grpc.py")]
    newest_proto = max(proto.stat().st_mtime for proto in protos)
    if all(stub.exists() and stub.stat().st_mtime >= newest_proto for stub in stubs):
        return
    # Made aside and moved into place, so that a second pytest that starts now never imports half a file.
    with tempfile.TemporaryDirectory(dir=CLIENTS) as folder:
        protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}"]
        outputs = [f"--python_out={folder}", f"--grpc_python_out={folder}"]
        subprocess.run([*protoc, *outputs, *map(str, protos)], check=True)
        for stub in stubs:
            os.replace(os.path.join(folder, stub.name), stub)


make_stubs()
sys.path.insert(0, str(CLIENTS))

import numstore_pb2_grpc  # noqa: E402  (made just now)
import table_pb2_grpc  # noqa: E402
import tally_pb2_grpc  # noqa: E402


def step_aside(reason: str):
    """Skips the test for what this machine lacks, unless the run is one that must not lack anything."""
    if os.environ.get("TALLY_REQUIRE_ALL") == "1":
        pytest.fail("TALLY_REQUIRE_ALL=1, but " + reason, pytrace=False)
    pytest.skip(reason)


def wait_until(condition, what: str, seconds: float = 30):
    """Waits until condition() is true, for what has no event to wait for, and returns its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        time.sleep(0.01)


def clean_environment(**variables: str) -> dict:
    """This process's environment without the caller's own TALLY_ settings, plus `variables`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TALLY_")}
    environment.update(variables)
    return environment


def binary() -> Path:
    """The server under test."""
    path = Path(os.environ.get("TALLY_BINARY", ROOT / "target" / "debug" / "tally")).resolve()
    if not path.exists():
        pytest.fail(f"{path} is missing: run `cargo build`, or set TALLY_BINARY", pytrace=False)
    return path


class ServerDidNotStart(Exception):
    """The process ended, or said nothing for too long, before its ready line."""

    def __init__(self, exit_code, stderr: str):
        super().__init__(f"exit code {exit_code}; standard error:\n{stderr}")
        self.exit_code = exit_code  # None: it still ran when its time was up
        self.stderr = stderr


class Server:
    """One `tally serve` process, ready when the constructor returns; `with` kills it at the end.

    `flags` go to `tally serve` after --data, and after `--grpc 127.0.0.1:0 --http 127.0.0.1:0` unless they name
    these; `env` is added to the environment; `grpc_flag=False` and `http_flag=False` leave the address to the
    server's default; `prefix` stands before the command, for example ("prlimit", "--nofile=64"), and must exec,
    so that the process id is the server's.
    """

    def __init__(self, data, *flags, env=None, prefix=(), grpc_flag=True, http_flag=True):
        self.data = Path(data)
        self.ready_line = ""
        self._channel = None
        self._stderr = tempfile.TemporaryFile()
        command = [str(part) for part in (*prefix, binary(), "serve", "--data", self.data)]
        for surface, wanted in (("grpc", grpc_flag), ("http", http_flag)):
            named = any(str(flag).split("=")[0] == f"--{surface}" for flag in flags)
            if wanted and not named and f"TALLY_{surface.upper()}" not in (env or {}):
                command += [f"--{surface}", "127.0.0.1:0"]
        command += [str(flag) for flag in flags]
        self.process = subprocess.Popen(
            command,
            env=clean_environment(**(env or {})),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        # A thread reads standard output to its end: a read with a deadline, and never a full pipe.
        self._lines = queue.Queue()
        self._stdout_text = []
        self._reader = threading.Thread(target=self._read_stdout, daemon=True)
        self._reader.start()
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def _read_stdout(self) -> None:
        for line in self.process.stdout:
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            self._stdout_text.append(text)
            self._lines.put(text)
        self._lines.put(None)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise ServerDidNotStart(None, self.stderr) from None
            if line is None:
                raise ServerDidNotStart(self.process.wait(START_SECONDS_MAX), self.stderr)
            if line.startswith("ready: "):
                break
        match = READY_LINE.match(line)
        if match is None:
            raise AssertionError("the ready line is not as agreed: " + line)
        self.ready_line = line
        self.addresses = match["addresses"].split(", ")
        self.http_addresses = match["http"].split(", ") if match["http"] else []
        self.probe_addresses = match["probe"].split(", ") if match["probe"] else []
        self.parts_count_at_start = int(match["parts"])
        self.quarantine_count_at_start = int(match["quarantine"] or 0)

    @property
    def address(self) -> str:
        """The first bound address, for example 127.0.0.1:41234."""
        return self.addresses[0]

    @property
    def http(self) -> str:
        """The URL of the first HTTP address, for example http://127.0.0.1:41235."""
        return f"http://{self.http_addresses[0]}"

    @property
    def port(self) -> int:
        return int(self.address.rsplit(":", 1)[1])

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stderr(self) -> str:
        """The log so far. Read in place, which leaves the process's own position at the end of the file."""
        size = os.fstat(self._stderr.fileno()).st_size
        return os.pread(self._stderr.fileno(), size, 0).decode("utf-8", "replace")

    def log_line(self, *texts: str) -> str:
        """The first line of the log that has all these texts. The log is written a moment after what it tells of."""

        def line() -> str:
            return next((line for line in self.stderr.splitlines() if all(text in line for text in texts)), "")

        return wait_until(line, f"a line of the log with {texts}")

    @property
    def stdout(self) -> str:
        """All lines of standard output so far."""
        return "".join(line + "\n" for line in self._stdout_text)

    def is_running(self) -> bool:
        return self.process.poll() is None

    def channel(self) -> grpc.Channel:
        """The one channel that table(), tally() and numstore() use."""
        if self._channel is None:
            self._channel = grpc.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        return self._channel

    def close_channel(self) -> None:
        """Closes the connection of that channel. The next call opens another."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def anonymous_bytes(self) -> int:
        """Resident anonymous memory: what a container cannot drop, as it can drop pages of files."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * KIB
        raise AssertionError("the kernel does not tell RssAnon")

    def parts(self) -> list:
        """The receipts on disk, in the order of their ids."""
        receipts = [json.loads(path.read_text()) for path in (self.data / "parts").glob("*.json")]
        return sorted(receipts, key=lambda receipt: receipt["part"])

    def leftovers(self) -> list:
        """Files in tmp/, and files in parts/ without a receipt: none may be there when nothing runs."""
        parts = self.data / "parts"
        kept = {path.stem for path in parts.glob("*.json")}
        suffixes = (".csv", ".parquet", ".sums", ".json")
        strays = [path for path in parts.glob("*") if path.stem not in kept or path.suffix not in suffixes]
        return sorted(str(path.relative_to(self.data)) for path in [*strays, *(self.data / "tmp").glob("*")])

    def terminate(self, signal_number: int = signal.SIGTERM) -> int:
        """Asks the server to stop, waits, and returns its exit code."""
        if self.is_running():
            self.process.send_signal(signal_number)
        return self.wait()

    def wait(self) -> int:
        """Waits for the process to end and returns its exit code (negative: the signal that killed it)."""
        try:
            code = self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server still ran after {STOP_SECONDS_MAX} s:\n{self.stderr}") from None
        self._release()
        return code

    def stop(self) -> None:
        """A stop that must go well."""
        code = self.terminate()
        assert code == 0, f"the server ended with {code}:\n{self.stderr}"

    def kill(self) -> None:
        """SIGKILL: no destructor, no flush."""
        if self.is_running():
            self.process.kill()
        self.process.wait()
        self._release()

    def _release(self) -> None:
        self._reader.join(STOP_SECONDS_MAX)
        self.close_channel()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_exception) -> None:
        self.kill()


def start_with(start_server, data, way: str, **settings) -> Server:
    """A server with these settings, underscores for hyphens, by flags or by the environment alone."""
    if way == "environment":
        environment = {f"TALLY_{name.upper()}": str(value) for name, value in settings.items()}
        return start_server(data, env=environment)
    return start_server(data, *(f"--{name.replace('_', '-')}={value}" for name, value in settings.items()))


def table(server: Server) -> table_pb2_grpc.TableStub:
    """P3's service on a running server."""
    return table_pb2_grpc.TableStub(server.channel())


def tally(server: Server) -> tally_pb2_grpc.TallyStub:
    """tally.v1.Tally on a running server."""
    return tally_pb2_grpc.TallyStub(server.channel())


def numstore(server: Server) -> numstore_pb2_grpc.NumStoreStub:
    """P2's service on a running server."""
    return numstore_pb2_grpc.NumStoreStub(server.channel())


def run_client(
    name: str, *args, server=None, env=None, cwd=None, stdin_text: str = ""
) -> subprocess.CompletedProcess:
    """Runs clients/NAME as a user would and returns its exit code and its output as text.

    `server` is a Server or an address; without it the client falls back to its own default.
    """
    environment = clean_environment(**(env or {}))
    if server is not None:
        environment["TALLY_SERVER"] = server.address if isinstance(server, Server) else server
    return subprocess.run(
        [sys.executable, str(CLIENTS / name), *(str(arg) for arg in args)],
        env=environment,
        cwd=cwd,
        input=stdin_text,
        capture_output=True,
        encoding="utf-8",
        timeout=CLIENT_SECONDS_MAX,
    )


@pytest.fixture(scope="session")
def tally_binary() -> Path:
    return binary()


@pytest.fixture
def start_server():
    """Server as a function. What it started is killed when the test ends; a failed test shows its log."""
    servers = []

    def start(data, *flags, **options) -> Server:
        servers.append(Server(data, *flags, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()
        print(f"--- log of the server on {server.data}\n{server.stderr}")


@pytest.fixture
def server(start_server, tmp_path):
    """A running server on a fresh folder. After the test it must still run, and stop as it should."""
    running = start_server(tmp_path / "data")
    yield running
    if running.process.returncode is None:  # the test did not end it itself
        assert running.is_running(), f"the server died: {running.process.returncode}\n{running.stderr}"
        running.stop()


@pytest.fixture(scope="module")
def browser():
    """Chromium. Of a module, not of the session: Playwright's event loop would be in the way of other tests."""
    from console import launched_browser  # which needs what is above

    with launched_browser() as running:
        yield running


@pytest.fixture
def open_console(browser):
    """Console as a function. What it opened is closed when the test ends, and must have done nothing forbidden."""
    from console import Console

    opened = []

    def open_page(url: str, view: str = "#/", **options) -> Console:
        opened.append(Console(browser, url, view, **options))
        return opened[-1]

    yield open_page
    for console in opened:
        console.close()


@pytest.fixture
def nobody():
    """An address where nobody listens, and nobody can start to while the test runs."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def pytest_terminal_summary(terminalreporter):
    """Says what this machine lacks, once for each reason: pytest itself says only how many tests stepped aside."""
    reasons = Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", []))
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"{count} stepped aside: {reason.removeprefix('Skipped: ')}")
