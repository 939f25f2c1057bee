"""The contenders, each a process of its own: Tally, the peers, and the programs that measure the limits of the machine.

All of them run on the same two cores, the clients too. Sizes are in data.py, goals in rows.py.
"""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional, Tuple

import server
from peers import same
from server import BINARY, CLIENTS, ROOT, clean_environment

server.make_stubs()
sys.path.insert(0, str(CLIENTS))

import grpc  # noqa: E402
import table_pb2  # noqa: E402
import table_pb2_grpc  # noqa: E402
import tally_pb2  # noqa: E402
import tally_pb2_grpc  # noqa: E402

BENCH = ROOT / "target" / "bench"
RELEASE = ROOT / "target" / "release"
LOAD, LIMIT, SUMS = RELEASE / "bench-load", RELEASE / "bench-limit", RELEASE / "bench-sums"
POLL_SECONDS = 0.001  # between two questions whether a job is done: without a pause they would take a core
CORES = 2
MIB = 1024 * 1024
# No limit on the size of an answer and no proxy. A connection of its own: gRPC would otherwise use one that it made
# to an
# earlier server on the same port.
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


class Wrong(Exception):
    """A contender failed, or gave a result other than the expected one."""


def use_two_cores() -> None:
    """Keeps this process, and all that it starts, on the first two cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def end_children_on_sigterm() -> None:
    """Makes SIGTERM raise SystemExit, so that every `with` ends its process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def output_of(command: List[object], **options) -> str:
    """Runs a command and returns its standard output. It has the settings that its flags give and no others."""
    done = subprocess.run(
        [str(word) for word in command],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
        **options,
    )
    return done.stdout


class Sums:
    """Asks a server for sums with `/Table/ColSum`, which Tally and the Python server both have."""

    def __init__(self, address: str):
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
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


class Tally(server.Server):
    """Our server, as users run it."""

    def upload(self, files: List[Path], clients: int) -> Dict[str, int]:
        """Runs `tally upload`; returns the part number of each file, by the file's name without its suffix."""
        lines = output_of(
            [BINARY, "upload", "--server", self.address, "--parallel", clients, "--json", *files]
        )
        uploaded = [json.loads(line) for line in lines.splitlines()]
        return {Path(part["file"]).stem: part["part"] for part in uploaded}

    def pack(self) -> None:
        """Runs `tally pack`, which packs all small parts."""
        output_of([BINARY, "pack", "--server", self.address])


class Groups:
    """Asks a server for group sums."""

    def __init__(self, address: str):
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = tally_pb2_grpc.TallyStub(self._channel)

    def seconds(self, by: List[str], column: str, expected: list) -> float:
        """`expected`: the number of groups and the sum of their totals."""
        start = time.perf_counter()
        blocks = list(self._stub.GroupSum(tally_pb2.GroupSumRequest(by=by, sum=[column]), wait_for_ready=True))
        seconds = time.perf_counter() - start
        groups = [group for block in blocks for group in block.groups]
        found = [len(groups), sum(group.totals[0] for group in groups)]
        if found != expected:
            raise Wrong(f"{found} groups and total, expected {expected}")
        return seconds


class Jobs:
    """Asks a server for jobs over HTTP, as a client does: it submits a job and asks for the result until it is there."""

    def __init__(self, address: str):
        self._connection = http.client.HTTPConnection(address)

    def _answer(self, method: str, path: str, body: object = None, kind: str = "application/json") -> bytes:
        self._connection.request(method, path, body, {"Content-Type": kind})
        return self._connection.getresponse().read()

    def statistic(self, name: str, question: str, check: Callable[[dict], None]) -> float:
        start = time.perf_counter()
        job = json.loads(self._answer("POST", f"/api/{name}", json.dumps({"question": question})))["job_id"]
        while (answer := json.loads(self._answer("GET", f"/api/get_results/{job}")))["status"] == "running":
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - start
        if answer["status"] != "done":
            raise Wrong(f"{name}: {answer}")
        check(answer["data"])
        return seconds

    def task(self, content: bytes, expected: bytes) -> float:
        """A file-processing task, from the request to its whole result."""
        boundary = "a-line-that-is-not-in-the-file"
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="rows.csv"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        tasks = "/api/v1/file-processing/tasks"
        start = time.perf_counter()
        answer = self._answer("POST", f"{tasks}/", body, f"multipart/form-data; boundary={boundary}")
        task = json.loads(answer)["task"]
        while (task := json.loads(self._answer("GET", f"{tasks}/{task['id']}/status"))["task"])["status"] in UNDONE:
            time.sleep(POLL_SECONDS)
        result = self._answer("GET", f"{tasks}/{task['id']}/download")
        seconds = time.perf_counter() - start
        if result != expected:
            raise Wrong(f"the task is {task}, and its result {result}, expected {expected}")
        return seconds


UNDONE = ("QUEUED", "IN_PROGRESS")


class P3Server:
    """The peer that is a server (p3_server.py); `with` ends it."""

    def __init__(self, data: Path, *flags: str):
        command = [sys.executable, str(Path(__file__).with_name("p3_server.py")), "--data", str(data), *flags]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
        line = self._process.stdout.readline()
        if not line.startswith("ready: "):
            self.__exit__()
            raise Wrong("the Python server did not start")
        self.address = line.split()[1]

    def __enter__(self) -> "P3Server":
        return self

    def __exit__(self, *_exception) -> None:
        self._process.kill()
        self._process.wait()


class Peer:
    """A peer that is a library, in a child process (peers.py); `with` ends it."""

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
        answer = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            raise Wrong(f"{self.engine}: {answer['error']}")
        return answer

    def prepare(self, task: str, expected: object = None, **arguments: object) -> "Peer":
        """Sets the task. The engine does it in each of its ways, checks the result, and uses the fastest from now
        on. Without `expected`, all results must be the same as the first.
        """
        answer = self._ask({"task": task, **arguments})
        self.way = answer["way"]
        self._expected = answer["result"]
        if expected is not None:
            self._check(self._expected, expected)
        return self

    @property
    def result(self) -> object:
        return self._expected

    def seconds(self) -> float:
        answer = self._ask({})
        self._check(answer["result"], self._expected)
        return answer["seconds"]

    def _check(self, result: object, expected: object) -> None:
        if not same(result, expected):
            raise Wrong(f"{self.engine} gives {result}, expected {expected}")


def upload_load(
    address: str,
    clients: int,
    files: List[Path],
    uploads: Optional[int] = None,
    cut_rows: Optional[int] = None,
    secret_file: Optional[Path] = None,
) -> dict:
    """Uploads files with `/Table/Upload` by bench-load, a client that takes little of the cores; returns its report. With
    `cut_rows`, it uploads pieces of them with so many rows; with `secret_file`, each call shows a token.
    """
    flags = [] if uploads is None else ["--uploads", uploads]
    flags += [] if secret_file is None else ["--token-file", secret_file]
    flags += [] if cut_rows is None else ["--cut-rows", cut_rows]
    report = json.loads(output_of([LOAD, "--server", address, "--clients", clients, *flags, *files]))
    if report["uploads"] != (len(files) if uploads is None else uploads):
        raise Wrong(f"bench-load made {report['uploads']} uploads")
    return report


def upload_for(
    address: str, clients: int, file: Path, cut_rows: int, seconds: float, uploads_max: Optional[int] = None
) -> dict:
    """Uploads pieces of a file for so many seconds; returns the report of bench-load."""
    flags = ["--cut-rows", cut_rows, "--seconds", seconds]
    flags += [] if uploads_max is None else ["--uploads", uploads_max]
    return json.loads(output_of([LOAD, "--server", address, "--clients", clients, *flags, file]))


def stored_bytes(folder: Path) -> int:
    """The bytes that the files in a folder take on the disk."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def sums_per_second(address: str, clients: int, sums: int, column: str, file_format: str, expected: int) -> float:
    """Asks for sums with `/Table/ColSum` by bench-sums, a client that takes little of the cores; returns the rate."""
    flags = ["--clients", clients, "--sums", sums, "--format", file_format, "--expected", expected]
    report = json.loads(output_of([SUMS, "--server", address, *flags, column]))
    return report["per_second"]


def sync_seconds(folder: Path, count: int) -> float:
    """The limit of a job that survives a power failure: writes a small file and waits until it is on the disk, so many
    times.
    """
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    for index in range(count):
        with open(folder / str(index), "wb") as file:
            file.write(bytes(200))
            file.flush()
            os.fsync(file.fileno())
    return time.perf_counter() - start


def read_seconds(ranges: Iterable[Tuple[Path, int, int]]) -> float:
    """The limit of a sum: bench-limit reads byte ranges (path, offset, length) and counts newlines, on both cores."""
    lines = "".join(f"{path}\t{offset}\t{length}\n" for path, offset, length in ranges)
    return json.loads(output_of([LIMIT], input=lines))["seconds"]


def write_seconds(target: Path, count_bytes: int, fsync: bool) -> float:
    """The limit of an upload: `dd` writes as many bytes, with or without conv=fsync."""
    command = ["dd", "if=/dev/zero", f"of={target}", "bs=1M", f"count={count_bytes}", "iflag=count_bytes"]
    start = time.perf_counter()
    output_of([*command, "status=none", *(["conv=fsync"] if fsync else [])])
    seconds = time.perf_counter() - start
    target.unlink()
    return seconds


def fill_memory(ballast: Path) -> None:
    """Leaves 512 MiB of memory free, by filling the page cache with a sparse file that is read."""
    spare_bytes, block = 512 * MIB, bytearray(MIB)
    lines = Path("/proc/meminfo").read_text().splitlines()
    free_bytes = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemFree:"))
    with open(ballast, "a+b", buffering=0) as file:
        start = file.seek(0, os.SEEK_END)
        file.truncate(start + max(free_bytes - spare_bytes, 0))
        while file.readinto(block):
            pass


def empty(folder: Path) -> Path:
    """Removes the folder, so that it can be made anew, and makes its parent."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder
