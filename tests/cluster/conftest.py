"""What the tests of the cluster share: schedulers, executors and servers as processes, on ports of this machine.

They need `cargo build` of cluster/ with the feature `faults`, see `make test-cluster`; TALLY_CLUSTER_BINARY names the program.
The server, the stubs and the helpers are those of tests/python.
"""

import importlib.util
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(
    os.environ.get("TALLY_CLUSTER_BINARY", ROOT / "target" / "cluster" / "debug" / "tally-cluster")
).resolve()
os.environ["TALLY_BINARY"] = str(BINARY)  # `tally-cluster serve` without a scheduler is `tally serve`

spec = importlib.util.spec_from_file_location("shared", ROOT / "tests" / "python" / "conftest.py")
shared = importlib.util.module_from_spec(spec)
sys.modules["shared"] = shared
spec.loader.exec_module(shared)
start_server = shared.start_server

sys.path.append(str(ROOT / "tests" / "python"))  # after this folder, which has a conftest, too

START_SECONDS_MAX = 60
# Linux takes ports from 32768 on for connections: one of them may be in use when a process wants to listen on it.
PORTS = range(20_000, 32_000)


def free_ports(count: int) -> list:
    """Ports that nobody listens on now."""
    found = []
    while len(found) < count:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


class Process:
    """A scheduler or an executor. It is killed at the end of the test."""

    def __init__(self, *arguments, first_line: str, env=None, prefix=()):
        self._stderr = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [*prefix, str(BINARY), *map(str, arguments)],
            env=shared.clean_environment(RUST_LOG="warn,ballista_scheduler=info,ballista_executor=info", **(env or {})),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        self._lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            line = self._lines.get(timeout=START_SECONDS_MAX)
        except queue.Empty:
            line = ""
        if not line.startswith(first_line):
            self.kill()
            raise AssertionError(f"{arguments} said {line!r}\n{self.stderr}")

    def _read(self) -> None:
        for line in self.process.stdout:
            self._lines.put(line.decode())
        self._lines.put("")

    @property
    def stderr(self) -> str:
        size = os.fstat(self._stderr.fileno()).st_size
        return os.pread(self._stderr.fileno(), size, 0).decode("utf-8", "replace")

    def is_running(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.is_running():
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Cluster:
    """A scheduler, and executors of a data folder."""

    def __init__(self, data, tls=(), host="127.0.0.1"):
        self.data = data
        self.tls = tls  # flags
        (port,) = free_ports(1)
        self.address = f"{host}:{port}"
        self.executors = []
        self.work_dirs = []
        self.scheduler = None

    def start_scheduler(self) -> None:
        self.scheduler = Process("scheduler", "--listen", self.address, *self.tls, first_line="ready: scheduler")

    def start_executor(self, fault: str = "", data=None, slots: int = 2, tls=None, more=(), prefix=()) -> Process:
        """`more` are flags. `prefix` stands before the command, and must exec it."""
        task_port, fetch_port = free_ports(2)
        self.work_dirs.append(Path(tempfile.mkdtemp(dir=Path(self.data).parent)))
        executor = Process(
            "executor",
            *("--work-dir", self.work_dirs[-1]),
            *("--scheduler", self.address),
            *("--data", data or self.data),
            *("--task-port", task_port),
            *("--fetch-port", fetch_port),
            *("--slots", slots),
            *(self.tls if tls is None else tls),
            *more,
            first_line="starting: executor",
            prefix=prefix,
            env={"TALLY_CLUSTER_FAULT": fault} if fault else None,
        )
        self.executors.append(executor)
        return executor

    def executors_count(self) -> int:
        """How many executors the scheduler knows."""
        import urllib.error
        import urllib.request

        try:
            text = urllib.request.urlopen(f"http://{self.address}/readyz", timeout=5).read().decode()
        except urllib.error.HTTPError as error:
            text = error.read().decode()
        except OSError:
            return -1
        return int(text.split(":")[1].split()[0].split("/")[0])

    def wait_for_executors(self, count: int) -> None:
        shared.wait_until(lambda: self.executors_count() == count, f"{count} executors", 60)

    def kill(self) -> None:
        for process in [*self.executors, *([self.scheduler] if self.scheduler else [])]:
            process.kill()


@pytest.fixture
def start_cluster():
    """A cluster with executors, each with its fault ("" for none). It is killed when the test ends."""
    clusters = []

    def start(data, *faults: str, tls=(), host="127.0.0.1") -> Cluster:
        cluster = Cluster(data, tls, host)
        clusters.append(cluster)
        cluster.start_scheduler()
        for fault in faults:
            cluster.start_executor(fault)
        if not tls:
            cluster.wait_for_executors(len(faults))
        return cluster

    yield start
    for cluster in clusters:
        cluster.kill()
        for name, process in [("scheduler", cluster.scheduler), *(("executor", it) for it in cluster.executors)]:
            if process:
                print(f"--- log of a {name}\n{process.stderr[-4000:]}")


@pytest.fixture(scope="session", autouse=True)
def _program_is_there():
    if not BINARY.exists():
        pytest.fail(f"{BINARY} is missing: run `make test-cluster`, or set TALLY_CLUSTER_BINARY", pytrace=False)
