"""The image, as its users run it: P3's session in a container of 512 MB, large uploads from inside and outside, P2's
session, and the locked-down ways to run it.

Everything made here carries the label `tally.test`, by which it is removed even when a test fails; after a killed run,
`docker ps -a --filter label=tally.test` shows what is left. The first build takes minutes, later ones seconds.
"""

import concurrent.futures
import hashlib
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import grpc
import pytest
import requests
import table_pb2
import table_pb2_grpc
import tally_pb2
import tally_pb2_grpc
from conftest import (
    CHANNEL_OPTIONS,
    CLIENTS,
    INPUTS,
    KIB,
    PROTO,
    READY_LINE,
    ROOT,
    clean_environment,
    step_aside,
    wait_until,
)
from http_calls import END_OF_FORM, TASKS

LABEL = "tally.test"
USER_ID = 10001
MB = 1000 * 1000
MIB = 1024 * KIB

# The anonymous memory that the server may take in a container of 512 MB; the rest is for the page cache.
ANONYMOUS_BYTES_MAX = 256 * MIB
IMAGE_BYTES_MAX = 400 * MB
SAMPLE_SECONDS = 0.02

# These limits do not judge speed. They end a build or a command that hangs.
BUILD_SECONDS_MAX = 900
COMMAND_SECONDS_MAX = 900
HEALTHY_SECONDS_MAX = 60
CONNECT_SECONDS_MAX = 120  # eight processes start, and each makes its data first

OUTSIDE_CLIENTS = 8
OUTSIDE_UPLOAD_BYTES = 200 * MB
LARGE_FILE_BYTES = 1000 * MB
BIGDATA_ROWS = 400 * 250_000
# Songs of a head and a tail, each song once: 20 million groups.
SONG_HEADS = range(1000, 3000)
SONG_TAILS = range(10_000)
SONG_TAILS_STEP = 7919  # coprime to their number, so that its multiples take every tail once


def docker(*args, timeout: float = COMMAND_SECONDS_MAX) -> str:
    """Runs `docker ARGS` and returns its standard output; any other exit code than 0 fails the test with its output."""
    command = ["docker", *(str(arg) for arg in args)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout)
    said = (done.stdout + done.stderr)[-4000:]
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{said}"
    return done.stdout.strip()


def engine_answers() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "version"], capture_output=True).returncode == 0


def remove_everything(label: str) -> None:
    """Containers with the volumes that have no name, volumes with a name, images; each kind after what uses it."""
    for listing, removal in [
        (["ps", "--all", "--quiet"], ["rm", "--force", "--volumes"]),
        (["volume", "ls", "--quiet"], ["volume", "rm"]),
        # The layers stay, because they make the next build quick.
        (["images", "--quiet"], ["rmi", "--force", "--no-prune"]),
    ]:
        found = docker(*listing, "--filter", f"label={label}").split()
        if found:
            docker(*removal, *found)


class Container:
    """One container of the image, running and healthy when the constructor returns."""

    def __init__(self, image: str, label: str, *flags):
        self.name = f"{image}-{uuid.uuid4().hex[:8]}"
        docker("run", "--name", self.name, "--detach", "--label", label, *flags, image)
        self.wait_until_healthy()

    def inspect(self, template: str) -> str:
        return docker("inspect", "--format", template, self.name)

    def logs(self) -> str:
        done = subprocess.run(["docker", "logs", self.name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return done.stdout.decode("utf-8", "replace")[-4000:]

    def wait_until_healthy(self) -> None:
        def healthy() -> bool:
            status, health = self.inspect("{{.State.Status}} {{.State.Health.Status}}").split()
            assert status == "running", f"the container is {status}; its log:\n{self.logs()}"
            return health == "healthy"

        wait_until(healthy, f"{self.name} becomes healthy", HEALTHY_SECONDS_MAX)

    def exec(self, *command) -> str:
        return docker("exec", self.name, *command)

    def upload(self, path: str) -> None:
        assert self.exec("python3", "upload.py", path) == "success"

    def sum(self, column: str) -> int:
        """The sum of a column, on which both formats must agree."""
        from_csv = int(self.exec("python3", "csvsum.py", column).splitlines()[-1])
        from_parquet = int(self.exec("python3", "parquetsum.py", column).splitlines()[-1])
        assert from_csv == from_parquet
        return from_csv

    def csv_files(self) -> set:
        return set(self.exec("find", "/data/parts", "-name", "*.csv").split())

    def address(self, port: int = 5440) -> str:
        """Where the published port is reached from outside."""
        return docker("port", self.name, f"{port}/tcp").splitlines()[0]

    def stop(self) -> int:
        """`docker stop` as it is, with its 10 seconds; the exit code of the server."""
        docker("stop", self.name)
        return int(self.inspect("{{.State.ExitCode}}"))

    def start(self) -> None:
        docker("start", self.name)
        self.wait_until_healthy()


class MemoryWatch:
    """Samples the server's anonymous memory while its block runs, and compares it with the limit at the end."""

    def __init__(self, container: Container):
        self.container = container
        self.samples = 0
        self.peak_bytes = 0
        self._process = Path("/proc") / container.inspect("{{.State.Pid}}")
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._finished.wait(SAMPLE_SECONDS):
            try:
                status = (self._process / "status").read_text()
            except OSError:
                return  # the server is gone; the test notices
            for line in status.splitlines():
                if line.startswith("RssAnon:"):
                    self.peak_bytes = max(self.peak_bytes, int(line.split()[1]) * KIB)
                    self.samples += 1

    def __enter__(self) -> "MemoryWatch":
        name = self._process / "comm"
        if not name.exists() or name.read_text().strip() != "tally":
            step_aside("the processes of the docker engine cannot be seen from here")
        self._thread.start()
        return self

    def __exit__(self, exception_type, _exception, _traceback) -> None:
        self._finished.set()
        self._thread.join()
        # Also when the block failed: this is then the reason.
        assert self.container.inspect("{{.State.OOMKilled}}") == "false", f"peak: {self.peak_bytes} bytes"
        if exception_type is None:
            assert self.samples > 0
            assert self.peak_bytes < ANONYMOUS_BYTES_MAX
            assert out_of_memory_kills(self.container) == 0
            assert self.container.exec("find", "/data/tmp", "-type", "f") == "", "spools are left over"


def out_of_memory_kills(container: Container) -> int:
    """Processes of the container that the kernel ended because memory ran out, as its control group (v2 or v1) counts."""
    counters = "/sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control"
    lines = container.exec("sh", "-c", f"cat {counters} 2>/dev/null || true").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


@pytest.fixture(scope="session")
def image():
    """The image, built from the checkout as the README says, under a name for this run."""
    if not engine_answers():
        step_aside("no docker engine answers")
    # CI chooses the name, so that it can remove the containers of a run that it had to kill.
    name = f"tally-test-{os.environ.get('TALLY_TEST_RUN') or uuid.uuid4().hex[:12]}"
    label = f"{LABEL}={name}"
    try:
        docker("build", ".", "-t", name, "--label", label, timeout=BUILD_SECONDS_MAX)
        yield name
    finally:
        remove_everything(label)


@pytest.fixture(scope="session")
def label(image: str) -> str:
    return f"{LABEL}={image}"


@pytest.fixture(scope="module")
def large_files(tmp_path_factory) -> Path:
    """A folder that the container's user can read too."""
    folder = tmp_path_factory.mktemp("large")
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def small_server(image: str, label: str, large_files: Path):
    """A server with 512 MB and no swap, which the tests of this module load one after the other."""
    # The second folder is not in the session of the P3 assignment: it is for a file that is too large for inputs/.
    volumes = ["--volume", f"{INPUTS}:/inputs", "--volume", f"{large_files}:/large:ro"]
    ports = ["--publish", "127.0.0.1::5440", "--publish", "127.0.0.1::5000"]
    container = Container(image, label, "--memory", "512m", "--memory-swap", "512m", *ports, *volumes)
    yield container
    print(f"--- log of {container.name}\n{container.logs()}")
    docker("rm", "--force", "--volumes", container.name)


def test_image_serves_by_default_and_runs_other_commands(image: str, label: str) -> None:
    assert "serve" in docker("run", "--rm", "--label", label, image, "tally", "--help")
    server = Container(image, label)
    ready = READY_LINE.match(docker("logs", server.name).splitlines()[0])  # docker passes standard output on as it is
    assert ready is not None
    assert (ready["parts"], ready["data"]) == ("0", "/data")
    assert "0.0.0.0:5440" in ready["addresses"].split(", ")  # beside [::]:5440, where the engine has IPv6
    assert "0.0.0.0:5000" in ready["http"].split(", ")


def test_image_is_small(image: str) -> None:
    assert int(docker("image", "inspect", "--format", "{{.Size}}", image)) < IMAGE_BYTES_MAX


def test_server_is_not_root_and_can_write_nothing_but_data(image: str, label: str) -> None:
    assert docker("image", "inspect", "--format", "{{.Config.User}}", image) == f"{USER_ID}:{USER_ID}"
    server = Container(image, label)
    assert server.exec("id", "-u") == str(USER_ID)
    assert server.exec("stat", "--format", "%u", "/proc/1") == str(USER_ID)
    # -xdev: find names the mounted folders (/proc, /dev, and /data itself) and does not enter them. It ends with 1 if it
    # may not read a folder.
    find = r"find / -xdev \( -type f -o -type d \) -writable 2>/dev/null || true"
    assert server.exec("sh", "-c", find) == "/data"


def test_session_with_small_files_and_100_million_rows(small_server: Container) -> None:
    with MemoryWatch(small_server):
        before = small_server.sum("x")
        small_server.upload("/inputs/simple.csv")
        simple = small_server.sum("x") - before
        assert simple == simple_sum("x")

        small_server.exec("python3", "bigdata.py")
        assert small_server.sum("x") == before + simple + BIGDATA_ROWS


def simple_sum(column: str) -> int:
    """What inputs/simple.csv, which has neither quotes nor empty cells, adds to a column."""
    header, *rows = (line.split(",") for line in (INPUTS / "simple.csv").read_text().split())
    return sum(int(row[header.index(column)]) for row in rows)


def test_eight_clients_from_outside_upload_200_mb_each_at_once(small_server: Container) -> None:
    before = {column: small_server.sum(column) for column in ("x", "outside")}
    csv_files_before = small_server.csv_files()
    with MemoryWatch(small_server):
        uploads = upload_at_once(small_server.address())
        assert [upload["error"] for upload in uploads] == [""] * OUTSIDE_CLIENTS
        for column, total in before.items():
            assert small_server.sum(column) == total + sum(upload[column] for upload in uploads)

    # Sums do not show whether rows were moved from one upload to another.
    kept = small_server.exec("sha256sum", *(small_server.csv_files() - csv_files_before))
    assert sorted(line.split()[0] for line in kept.splitlines()) == sorted(upload["sha256"] for upload in uploads)


def upload_at_once(address: str) -> list:
    """Each client is a process of its own; what each one sent, and the answer."""
    processes = multiprocessing.get_context("spawn")
    all_connected = processes.Barrier(OUTSIDE_CLIENTS)
    with concurrent.futures.ProcessPoolExecutor(
        OUTSIDE_CLIENTS, mp_context=processes, initializer=join_the_others, initargs=(all_connected,)
    ) as pool:
        return list(pool.map(upload_from_outside, [address] * OUTSIDE_CLIENTS, range(1, OUTSIDE_CLIENTS + 1)))


def join_the_others(barrier) -> None:
    """Runs first in each client's process: a barrier can be passed only then."""
    global all_connected
    all_connected = barrier


def upload_from_outside(address: str, client: int) -> dict:
    """Runs in a process of its own: one plain unary upload."""
    row = b"%d,%d,a row of client %d\n" % (client, 1000 + client, client)
    rows = OUTSIDE_UPLOAD_BYTES // len(row)
    data = b"x,outside,text\n" + row * rows
    sent = {"sha256": hashlib.sha256(data).hexdigest(), "x": client * rows, "outside": (1000 + client) * rows}
    request = table_pb2.UploadReq(csv_data=data)
    del data  # there are eight of these processes
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        grpc.channel_ready_future(channel).result(CONNECT_SECONDS_MAX)
        all_connected.wait(CONNECT_SECONDS_MAX)
        try:
            error = table_pb2_grpc.TableStub(channel).Upload(request, timeout=COMMAND_SECONDS_MAX).error
        except grpc.RpcError as failure:  # this exception cannot be passed to another process
            error = f"{failure.code()}: {failure.details()}"
    return {**sent, "error": error}


def test_one_gigabyte_uploads_inside_the_container(small_server: Container, large_files: Path) -> None:
    row = b"1,a row of a file of one gigabyte\n"
    rows_at_once = MIB // len(row)
    blocks = LARGE_FILE_BYTES // (rows_at_once * len(row)) + 1
    path = large_files / "one_gigabyte.csv"
    with path.open("wb") as file:
        file.write(b"x,text\n")
        for _ in range(blocks):
            file.write(row * rows_at_once)
    assert path.stat().st_size >= LARGE_FILE_BYTES
    path.chmod(0o644)

    before = small_server.sum("x")
    with MemoryWatch(small_server):
        small_server.upload("/large/one_gigabyte.csv")
        assert small_server.sum("x") == before + blocks * rows_at_once
    path.unlink()


def songs_as_they_come():
    """A form with a file of 20 million songs, 300 MB, unsorted, and never in memory as a whole. The plays of a song
    are its head.
    """
    yield b'--B\r\nContent-Disposition: form-data; name="file"; filename="songs.csv"\r\n\r\n'
    yield b"Song,Date,Number of Plays\n"
    rows = b"".join(b"%d####,,%d\n" % (head, head) for head in SONG_HEADS)
    for index in SONG_TAILS:
        yield rows.replace(b"####", b"%04d" % (index * SONG_TAILS_STEP % len(SONG_TAILS)))
    yield END_OF_FORM


def songs_in_order():
    """The expected result."""
    yield b"Song,Date,Total Number of Plays for Date\n"
    rows = b"".join(b"####%04d,,####\n" % tail for tail in SONG_TAILS)
    for head in SONG_HEADS:
        yield rows.replace(b"####", b"%d" % head)


def test_20_million_groups_as_a_task(small_server: Container) -> None:
    server = f"http://{small_server.address(5000)}"
    limit = {"timeout": COMMAND_SECONDS_MAX}
    with MemoryWatch(small_server) as memory:
        headers = {"Content-Type": "multipart/form-data; boundary=B"}
        accepted = requests.post(server + TASKS, data=songs_as_they_come(), headers=headers, **limit)
        assert accepted.status_code == 202, accepted.text

        def next_step() -> str:
            task = requests.get(server + accepted.json()["next"], **limit).json()
            assert task["task"]["status"] in ("QUEUED", "IN_PROGRESS", "COMPLETED"), task
            return task["next"]

        download = accepted.json()["next"].replace("/status", "/download")
        wait_until(lambda: next_step() == download, "the task ends", COMMAND_SECONDS_MAX)
        rows = 0
        with requests.get(server + download, stream=True, **limit) as answer:
            assert answer.status_code == 200
            for block in songs_in_order():
                assert answer.raw.read(len(block)) == block, f"other groups after row {rows}"
                rows += block.count(b"\n")
            assert answer.raw.read(1) == b""
        assert rows == 1 + len(SONG_HEADS) * len(SONG_TAILS)
    print(f"peak memory {memory.peak_bytes // MIB} MiB")


def test_stop_ends_the_loaded_server_with_exit_code_0(small_server: Container) -> None:
    assert small_server.stop() == 0
    assert small_server.inspect("{{.State.OOMKilled}}") == "false"


def test_stop_waits_for_an_upload_under_way(image: str, label: str) -> None:
    container = Container(image, label, "--publish", "127.0.0.1::5440")
    rows = 1_000_000
    first_half, second_half = b"x,y\n" + b"1,2\n" * (rows - 1), b"1,2\n"
    go_on = threading.Event()

    def chunks():
        for start in range(0, len(first_half), 64 * KIB):
            yield tally_pb2.UploadChunk(data=first_half[start : start + 64 * KIB])
        go_on.wait()
        yield tally_pb2.UploadChunk(data=second_half)

    with grpc.insecure_channel(container.address(), options=CHANNEL_OPTIONS) as channel:
        call = tally_pb2_grpc.TallyStub(channel).Upload.future(chunks())
        stop = None
        try:
            spools = ["find", "/data/tmp", "-type", "f", "-size", "+0"]
            wait_until(lambda: container.exec(*spools), "the first half arrives")
            # Longer than the 30 s that the server gives to running calls: it ends by itself.
            stop = subprocess.Popen(["docker", "stop", "--time", "40", container.name], stdout=subprocess.DEVNULL)
            wait_until(lambda: "draining" in container.logs(), "the server has the signal")
            go_on.set()
            assert call.result(timeout=COMMAND_SECONDS_MAX).rows == rows
        finally:
            go_on.set()
            if stop is not None:
                assert stop.wait(COMMAND_SECONDS_MAX) == 0
    assert int(container.inspect("{{.State.ExitCode}}")) == 0
    container.start()
    assert container.sum("x") == rows


# P2's check by hand, from a folder that has nothing but its stubs.
P2_BY_HAND = """
import sys, grpc, numstore_pb2, numstore_pb2_grpc
stub = numstore_pb2_grpc.NumStoreStub(grpc.insecure_channel(sys.argv[1]))
for key, value in (("A", 1), ("B", 10), ("A", 5), ("B", 0)):
    print(stub.SetNum(numstore_pb2.SetNumRequest(key=key, value=value)).total)
print(stub.Fact(numstore_pb2.FactRequest(key="A")).value)
"""


def test_p2s_session_from_outside_and_inside(image: str, label: str, tmp_path: Path) -> None:
    """P2 publishes 54321:5440; here docker chooses the port outside, because that one may be in use."""
    server = Container(image, label, "--publish", "127.0.0.1::5440")
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}"]
    outputs = [f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
    subprocess.run([*protoc, *outputs, str(PROTO / "numstore.proto")], check=True)
    for name in ("client.py", "connection.py"):
        shutil.copy(CLIENTS / name, tmp_path)

    def python(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        options = {"cwd": tmp_path, "env": clean_environment(), "timeout": COMMAND_SECONDS_MAX}
        return subprocess.check_output(command, text=True, **options)

    by_hand = python("-c", P2_BY_HAND, server.address())
    assert by_hand.split() == ["1", "11", "15", "5", "120"]
    outside = python("client.py", server.address().rpartition(":")[2])
    inside = server.exec("python3", "client.py", "5440")
    for report in (outside, inside):
        counts, hit_rate, p50, p99 = report.splitlines()[1:]
        assert counts.startswith("requests: 800 (")
        assert re.fullmatch(r"cache hit rate: \d+\.\d % of \d+ factorials", hit_rate)
        assert re.fullmatch(r"p50 response time: \d+\.\d+ ms", p50)
        assert re.fullmatch(r"p99 response time: \d+\.\d+ ms", p99)
    assert server.stop() == 0


def test_read_only_without_capabilities_and_data_outlives_the_container(image: str, label: str) -> None:
    volume = f"{image}-data"
    docker("volume", "create", "--label", label, volume)
    lockdown = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    flags = [*lockdown, "--volume", f"{volume}:/data", "--volume", f"{INPUTS}:/inputs:ro"]

    first = Container(image, label, *flags)
    first.upload("/inputs/simple.csv")
    assert first.sum("x") == simple_sum("x")
    assert first.stop() == 0
    first.start()
    assert first.sum("x") == simple_sum("x")
    assert first.stop() == 0

    second = Container(image, label, *flags)
    second.upload("/inputs/simple.csv")
    assert second.sum("x") == 2 * simple_sum("x")
    assert second.stop() == 0
