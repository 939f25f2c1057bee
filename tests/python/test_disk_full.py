"""A full disk: uploads fail and say why, what was kept answers, nothing is left over, freed room is used.

The data folder lies on a tmpfs of 24 MB. Mounting one takes root: a caller who is not runs each test once
more inside a user namespace of its own.
"""

import os
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Callable, List, NamedTuple

import grpc
import pytest
import table_pb2
import table_pb2_grpc
import tally_pb2
import tally_pb2_grpc
from conftest import CHANNEL_OPTIONS, Server, step_aside, table, wait_until

DISK_BYTES = 24 * 1024 * 1024
PAGE_BYTES = 4096  # what a tmpfs gives out at a time
CHUNK_BYTES = 64 * 1024
IN_NAMESPACE = "TALLY_TEST_IN_NAMESPACE"


class Csv(NamedTuple):
    """A file and the sums that it adds."""

    content: bytes
    x: int
    y: int


def make_csv(rows_count: int, seed: int = 0) -> Csv:
    """x is 1 in each row, y a number that Parquet cannot make small: 17 bytes a row, and 8 as Parquet."""
    random_numbers = random.Random(seed)
    y = [random_numbers.randrange(-(10**12), 10**12) for _ in range(rows_count)]
    return Csv(("x,y\n" + "".join(f"1,{value}\n" for value in y)).encode(), rows_count, sum(y))


def unary(channel: grpc.Channel, csv: Csv) -> None:
    response = table_pb2_grpc.TableStub(channel).Upload(table_pb2.UploadReq(csv_data=csv.content))
    assert response.error == ""


def stream(channel: grpc.Channel, csv: Csv) -> None:
    pieces = (csv.content[start : start + CHUNK_BYTES] for start in range(0, len(csv.content), CHUNK_BYTES))
    tally_pb2_grpc.TallyStub(channel).Upload(tally_pb2.UploadChunk(data=piece) for piece in pieces)


WAYS = (unary, stream)


class SmallDisk:
    """A mounted tmpfs, the data folder on it, and a file that takes up whatever a test wants gone."""

    def __init__(self, root: Path):
        self.root = root
        self.data = root / "data"
        self.filler = root / "filler"

    def free_bytes(self) -> int:
        facts = os.statvfs(self.root)
        return facts.f_bavail * facts.f_frsize

    def leave(self, free_bytes: int) -> None:
        """Takes up all but so many bytes, which are whole pages."""
        with open(self.filler, "ab") as filler:

            def exactly_left() -> bool:
                # Pages of a file come free a moment after its name is gone, perhaps while we fill the disk.
                surplus_bytes = self.free_bytes() - free_bytes
                if surplus_bytes > 0:
                    taken_bytes = os.fstat(filler.fileno()).st_size
                    os.posix_fallocate(filler.fileno(), 0, taken_bytes + surplus_bytes)
                return self.free_bytes() == free_bytes

            wait_until(exactly_left, f"{free_bytes} bytes are left on the disk")

    def make_room(self) -> None:
        self.filler.unlink()


def on_small_disk(test: Callable[[SmallDisk], None]) -> Callable:
    """Makes a test of a function that wants a SmallDisk."""

    def run(tmp_path):
        root = tmp_path / "disk"
        root.mkdir()
        if not shutil.which("mount") or not shutil.which("unshare"):
            step_aside("mount and unshare are not there")
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(root)]
        if subprocess.run(mount, stderr=subprocess.DEVNULL).returncode == 0:
            try:
                test(SmallDisk(root))
            finally:
                subprocess.run(["umount", str(root)], check=True)
            return
        # In a namespace that lets us be root, but not mount, there is nothing more to try.
        namespace = ["unshare", "--user", "--map-root-user", "--mount"]
        possible = subprocess.run([*namespace, *mount], stderr=subprocess.DEVNULL).returncode == 0
        if os.environ.get(IN_NAMESPACE) == "1" or not possible:
            step_aside("no file system can be mounted here, neither as root nor in a user namespace")
        once_more = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"{__file__}::{test.__name__}"]
        done = subprocess.run(
            [*namespace, *once_more, f"--basetemp={tmp_path / 'inside'}"],
            env={**os.environ, IN_NAMESPACE: "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        assert done.returncode == 0, done.stdout

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


def check_refused(upload: Callable, server: Server, csv: Csv) -> None:
    """The upload fails for want of room, says so, and leaves nothing behind."""
    with pytest.raises(grpc.RpcError) as refused:
        upload(server.channel(), csv)
    check_says_full(refused.value)
    check_no_leftovers(server)


def check_says_full(error: grpc.RpcError) -> None:
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error.details()
    assert "disk is full" in error.details().lower()


def check_no_leftovers(server: Server) -> None:
    # The answer may overtake the removal of what the call had written by a moment.
    wait_until(lambda: server.leftovers() == [], "nothing left over from refused uploads")
    # A file without a name still takes up room for as long as it is open.
    wait_until(lambda: not deleted_but_open(server), "removed files are closed")


def deleted_but_open(server: Server) -> List[str]:
    targets = []
    for descriptor in Path(f"/proc/{server.pid}/fd").iterdir():
        try:
            targets.append(os.readlink(descriptor))
        except FileNotFoundError:
            continue  # closed while we looked
    inside = [target for target in targets if target.startswith(str(server.data))]
    return [target for target in inside if target.endswith(" (deleted)")]


def check_holds(server: Server, kept: List[Csv]) -> None:
    """Exactly the acknowledged uploads are there, as files and in the sums."""
    parts = server.data / "parts"
    stored = sorted((parts / f"{receipt['part']}.csv").read_bytes() for receipt in server.parts())
    assert stored == sorted(csv.content for csv in kept)
    for column, expected in (("x", sum(csv.x for csv in kept)), ("y", sum(csv.y for csv in kept))):
        for file_format in ("csv", "parquet"):
            answer = table(server).ColumnSum(table_pb2.ColSumReq(column=column, format=file_format))
            assert (answer.error, answer.total) == ("", expected), f"{column} from {file_format}"


@on_small_disk
def test_an_upload_larger_than_the_disk(disk):
    small = make_csv(20_000)
    header, rows = small.content[:4], small.content[4:]
    large = Csv(header + rows * (DISK_BYTES // len(rows) + 1), 0, 0)
    assert len(large.content) > DISK_BYTES
    kept = []
    with Server(disk.data) as server:
        for upload in WAYS:
            upload(server.channel(), small)
            kept.append(small)
            check_refused(upload, server, large)
            check_holds(server, kept)
        server.stop()


@on_small_disk
def test_room_for_the_csv_but_not_for_the_parquet_file(disk):
    csv = make_csv(200_000)
    with Server(disk.data) as server:
        unary(server.channel(), csv)
        check_holds(server, [csv])
        parquet_bytes = server.parts()[0]["parquet"]["bytes"]
        spare_bytes = 256 * 1024
        assert parquet_bytes > 2 * spare_bytes, "the Parquet file must not fit into what is left"
        for upload in WAYS:
            disk.leave(len(csv.content) // PAGE_BYTES * PAGE_BYTES + spare_bytes)
            check_refused(upload, server, csv)
            check_holds(server, [csv])
            disk.make_room()
        stream(server.channel(), csv)
        check_holds(server, [csv, csv])
        server.stop()


@on_small_disk
def test_room_freed_is_used_again(disk):
    csv = make_csv(20_000)
    kept = [csv]
    with Server(disk.data) as server:
        unary(server.channel(), csv)
        for upload in WAYS:
            disk.leave(0)
            check_refused(upload, server, csv)
            check_holds(server, kept)
            disk.make_room()
            upload(server.channel(), csv)
            kept.append(csv)
            check_holds(server, kept)
        server.stop()


@on_small_disk
def test_full_at_any_step_of_a_commit(disk):
    """From no page to sixteen: the room ends in the CSV file, the Parquet file, the receipt or not at all."""
    csv = make_csv(500)  # about three pages of CSV and two of Parquet
    kept = [csv]
    outcomes = set()
    with Server(disk.data) as server:
        unary(server.channel(), csv)
        for free_bytes in range(0, 16 * PAGE_BYTES + 1, PAGE_BYTES):
            for upload in WAYS:
                disk.leave(free_bytes)
                try:
                    upload(server.channel(), csv)
                    kept.append(csv)
                    outcomes.add("kept")
                except grpc.RpcError as error:
                    check_says_full(error)
                    outcomes.add("refused")
                check_no_leftovers(server)
                check_holds(server, kept)
                disk.make_room()
        assert outcomes == {"kept", "refused"}
        server.stop()
    with Server(disk.data) as server:
        assert (server.parts_count_at_start, server.quarantine_count_at_start) == (len(kept), 0)
        check_holds(server, kept)


@on_small_disk
def test_many_clients_fill_the_disk(disk):
    """Eight at once, each until it is refused: what was acknowledged is there, and only that."""
    kept, errors, changes = [], [], threading.Lock()

    def fill(address: str, upload: Callable, seed: int) -> None:
        csv = make_csv(20_000, seed)
        with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            while True:
                try:
                    upload(channel, csv)
                except grpc.RpcError as error:
                    with changes:
                        errors.append(error)
                    return
                with changes:
                    kept.append(csv)

    with Server(disk.data) as server:
        clients = [threading.Thread(target=fill, args=(server.address, WAYS[n % 2], n)) for n in range(8)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert len(errors) == len(clients)
        for error in errors:
            check_says_full(error)
        check_no_leftovers(server)
        assert kept
        check_holds(server, kept)
        server.stop()


@on_small_disk
def test_a_start_on_a_full_disk(disk):
    csv = make_csv(20_000)
    with Server(disk.data) as server:
        unary(server.channel(), csv)
        server.kill()
    disk.leave(0)
    with Server(disk.data) as server:
        check_holds(server, [csv])
        check_refused(unary, server, csv)
        disk.make_room()
        stream(server.channel(), csv)
        check_holds(server, [csv, csv])
        server.stop()
