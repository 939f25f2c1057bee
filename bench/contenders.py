"""What is measured, as processes: our server and commands, the peers, the limits. No sizes and no goals.

Everything runs on the same two cores, the clients too.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Tuple

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "target" / "bench"
TARGET = ROOT / "target" / "release"
os.environ.setdefault("TALLY_BINARY", str(TARGET / "tally"))
sys.path.insert(0, str(ROOT / "tests" / "python"))

import conftest  # noqa: E402  (the tests' Server starts and stops the one measured here)
import grpc  # noqa: E402
import table_pb2  # noqa: E402
import table_pb2_grpc  # noqa: E402

BINARY = Path(os.environ["TALLY_BINARY"])
LOAD, LIMIT = TARGET / "examples" / "bench-load", TARGET / "examples" / "bench-limit"
THREADS = 2
SAMPLE_INTERVAL_S = 0.02
MIB = 1024 * 1024


class Wrong(Exception):
    """A contender did not do what is measured here."""


def use_two_cores() -> None:
    """This process, and all that it starts."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])


def end_children_on_sigterm() -> None:
    """SIGTERM unwinds the stack, so that every `with` ends its process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def output_of(command: List[object], **options) -> str:
    """Runs a command to its end. Its settings are its flags alone."""
    command = [str(word) for word in command]
    done = subprocess.run(
        command,
        env=conftest.clean_environment(),
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
        **options,
    )
    return done.stdout


class Peak:
    """The most anonymous memory that processes had while they were watched, as samples show it."""

    def __init__(self):
        self.bytes = 0

    def watch(self, pid: int) -> "Watch":
        return Watch(self, pid)


class Watch:
    """Samples one process until it is left."""

    def __init__(self, peak: Peak, pid: int):
        self._peak = peak
        self._status = Path(f"/proc/{pid}/status")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while True:
            try:
                text = self._status.read_text()
            except (FileNotFoundError, ProcessLookupError):
                return  # it has ended
            for line in text.splitlines():
                if line.startswith("RssAnon:"):
                    self._peak.bytes = max(self._peak.bytes, int(line.split()[1]) * 1024)
            if self._over.wait(SAMPLE_INTERVAL_S):
                return

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_exception) -> None:
        self._over.set()
        self._thread.join()


class Sums:
    """Sums asked of a server of P3's protocol."""

    def __init__(self, address: str):
        self._channel = grpc.insecure_channel(address, options=conftest.CHANNEL_OPTIONS)
        self._stub = table_pb2_grpc.TableStub(self._channel)

    def total(self, column: str, file_format: str) -> int:
        answer = self._stub.ColSum(
            table_pb2.ColSumReq(column=column, format=file_format), wait_for_ready=True
        )
        if answer.error:
            raise Wrong(f"{file_format} sum of {column}: {answer.error}")
        return answer.total

    def seconds(self, column: str, file_format: str, expected: int) -> float:
        start = time.perf_counter()
        total = self.total(column, file_format)
        seconds = time.perf_counter() - start
        if total != expected:
            raise Wrong(f"{file_format} sum of {column} is {total}, expected {expected}")
        return seconds


class WatchedServer(conftest.Server):
    """The tests' server; its memory is sampled from its first moment to its last."""

    def __init__(self, data: Path, peak: Peak, *flags: str):
        self._peak = peak
        super().__init__(data, *flags)

    def _wait_until_ready(self) -> None:
        self._watch = self._peak.watch(self.pid)
        self._watch.__enter__()
        super()._wait_until_ready()

    def wait(self) -> int:
        code = super().wait()
        self._watch.__exit__()
        return code


class Tally:
    """Our server as users run it, watched, on a folder; `with` stops it."""

    def __init__(self, data: Path, peak: Peak, *flags: str):
        start = time.perf_counter()
        self._server = WatchedServer(data, peak, *flags)
        self.start_seconds = time.perf_counter() - start
        self.address = self._server.address
        self.parts_count = self._server.parts_count_at_start

    def __enter__(self) -> "Tally":
        return self

    def __exit__(self, kind, *_exception) -> None:
        if kind is None:
            self._server.stop()
        else:
            self._server.kill()

    def upload(self, files: List[Path], clients: int) -> Dict[str, int]:
        """By `tally upload`, as users do it; the part that each file became."""
        lines = output_of(
            [BINARY, "upload", "--server", self.address, "--parallel", clients, "--json", *files]
        )
        parts = [json.loads(line) for line in lines.splitlines()]
        return {Path(part["file"]).stem: part["part"] for part in parts}


class P3Server:
    """The peer that is a server; `with` ends it."""

    def __init__(self, data: Path, *flags: str):
        command = [sys.executable, str(Path(__file__).with_name("p3_server.py")), "--data", str(data), *flags]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
        line = self._process.stdout.readline()
        if not line.startswith("ready: "):
            raise Wrong("the Python server did not start")
        self.address = line.split()[1]

    def __enter__(self) -> "P3Server":
        return self

    def __exit__(self, *_exception) -> None:
        self._process.kill()
        self._process.wait()


class Peer:
    """An engine in a child process of its own; `with` ends it."""

    def __init__(self, engine: str):
        self.engine = engine
        self.way: Optional[str] = None
        command = [sys.executable, str(Path(__file__).with_name("peers.py")), engine]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_exception) -> None:
        self._process.kill()
        self._process.wait()

    def _ask(self, job: dict) -> dict:
        self._process.stdin.write(json.dumps(job, default=str) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "it ended"}
        if "error" in answer:
            raise Wrong(f"{self.engine}: {answer['error']}")
        return answer

    def prepare(self, task: str, expected: object = None, **arguments: object) -> "Peer":
        """Says what will be measured; the engine does it, and keeps to its fastest way from now on."""
        answer = self._ask({"task": task, **arguments})
        self.way = answer["way"]
        self._expected = self._check(answer["result"], expected)
        return self

    def seconds(self) -> float:
        answer = self._ask({})
        self._check(answer["result"], self._expected)
        return answer["seconds"]

    def _check(self, result: object, expected: object) -> object:
        if result != expected:
            raise Wrong(f"{self.engine} gives {result}, expected {expected}")
        return result


def upload_load(address: str, clients: int, files: List[Path], uploads: Optional[int] = None) -> dict:
    """Uploads by P3's unary call, by a lean client; what it reports."""
    flags = [] if uploads is None else ["--uploads", uploads]
    report = json.loads(output_of([LOAD, "--server", address, "--clients", clients, *flags, *files]))
    if report["uploads"] != (len(files) if uploads is None else uploads):
        raise Wrong(f"{report['uploads']} uploads were sent")
    return report


def read_seconds(ranges: Iterable[Tuple[Path, int, int]]) -> float:
    """The limit of a sum: reading (path, offset, length) while counting newlines, on both cores."""
    lines = "".join(f"{path}\t{offset}\t{length}\n" for path, offset, length in ranges)
    return json.loads(output_of([LIMIT], input=lines))["seconds"]


def write_seconds(target: Path, count_bytes: int, fsync: bool) -> float:
    """The limit of an upload: `dd` of so many bytes, with or without conv=fsync."""
    command = ["dd", "if=/dev/zero", f"of={target}", "bs=1M", f"count={count_bytes}", "iflag=count_bytes"]
    start = time.perf_counter()
    output_of([*command, "status=none", *(["conv=fsync"] if fsync else [])])
    seconds = time.perf_counter() - start
    target.unlink()
    return seconds


def fill_memory(ballast: Path) -> None:
    """Leaves little memory free: the rest holds what the page cache has read, of the data and of a file that is all hole."""
    spare_bytes, block = 512 * MIB, bytearray(MIB)
    lines = Path("/proc/meminfo").read_text().splitlines()
    free_bytes = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemFree:"))
    with open(ballast, "a+b", buffering=0) as file:
        start = file.seek(0, os.SEEK_END)
        file.truncate(start + max(free_bytes - spare_bytes, 0))
        while file.readinto(block):
            pass


def empty(folder: Path) -> Path:
    """A folder that is not there yet."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder
