"""Row 2: power cuts. The data folder is on an ext4 file system in a file, which is shut down without writing its log.

`FS_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH` drops what the kernel has not written, as a power cut does; then the file system is
mounted again. A check that cannot fail proves nothing, so the same rounds with `--durability none` must lose something.
"""

import fcntl
import itertools
import os
import random
import shutil
import struct
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterable

from conftest import Server
from core import Breach, CannotRun, Row, Run
from invariants import check_alive, check_no_leftovers, check_verify
from model import Model

CLIENTS = 16
DISK_BYTES = 512 * 1024 * 1024
# A round adds about 20 MB.
ROUNDS_ON_A_DISK = 12
LOAD_SECONDS_MAX = 1.5
# linux/ext4.h: _IOR('X', 125, __u32), and the way of going down that writes nothing.
EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2
# Rounds without durability until one has lost something.
ROUNDS_WITHOUT = 5


class Disk:
    """An ext4 file system in a file."""

    def __init__(self, folder: Path):
        for program in ("mkfs.ext4", "mount", "umount"):
            if not shutil.which(program):
                raise CannotRun(f"{program} is not there")
        if os.geteuid() != 0:
            raise CannotRun("only root may mount a file system")
        self.image, self.root = folder / "disk.img", folder / "disk"
        self.root.mkdir()
        with self.image.open("wb") as image:
            image.truncate(DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", self.image], check=True)
        self.mount()

    def mount(self) -> None:
        done = subprocess.run(["mount", "-o", "loop", self.image, self.root], capture_output=True, text=True)
        if done.returncode != 0:
            raise CannotRun(f"no file system can be mounted from a file here: {done.stderr.strip()}")

    def cut_power(self) -> None:
        """From now on nothing is written, and every call on the file system fails."""
        folder = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        except OSError as error:
            raise CannotRun(f"the file system cannot be shut down: {error}") from None
        finally:
            os.close(folder)

    def unmount(self) -> None:
        for _again in range(50):
            if subprocess.run(["umount", self.root], capture_output=True).returncode == 0:
                return
            time.sleep(0.1)
        subprocess.run(["umount", "-l", self.root], check=True)


@contextmanager
def disk_in(folder: Path):
    folder.mkdir()
    disk = Disk(folder)
    try:
        yield disk
    finally:
        disk.unmount()


def start(disk: Disk, durability: str, choices: random.Random) -> Server:
    flags = ["--durability", durability, "--pack-above", choices.choice([0, 20, 200]), "--undo-s", "86400", "--log", "error"]
    return Server(disk.root / "data", *flags)


def one_round(run: Run, disk: Disk, model: Model, durability: str, server: Server) -> Server:
    is_over = threading.Event()
    threads = model.start(server, run.choices, is_over)
    time.sleep(run.choices.uniform(0.05, LOAD_SECONDS_MAX))  # the moment is the subject
    disk.cut_power()
    server.kill()
    is_over.set()
    for thread in threads:
        thread.join()
    disk.unmount()
    disk.mount()
    server = start(disk, durability, run.choices)
    try:
        # A call that failed because the disk was gone is no failure of the server.
        for client in model.clients:
            client.failure = None
        model.settle(server, run.choices)
        check_no_leftovers(server)
        check_alive(server)
    except BaseException:
        server.kill()
        raise
    return server


def rounds_that_lose_nothing(run: Run) -> None:
    rounds = iter(run.rounds())
    for number in itertools.count():
        if rounds_on_one_disk(run, number, itertools.islice(rounds, ROUNDS_ON_A_DISK)) < ROUNDS_ON_A_DISK:
            return


def rounds_on_one_disk(run: Run, number: int, rounds: Iterable) -> int:
    """How many there were."""
    done = 0
    with disk_in(run.folder / f"fsync-{number}") as disk:
        model = Model(CLIENTS, f"seed{run.seed}-{number}")
        durability = "none" if run.is_sabotaged else "fsync"
        server = start(disk, durability, run.choices)
        try:
            for _round in rounds:
                server = one_round(run, disk, model, durability, server)
                done += 1
            server.stop()
            check_verify(disk.root / "data")
        finally:
            server.kill()
        run.figures["acknowledged"] += model.acknowledged()
        run.figures["lost"] += 0
        run.figures["parts at the end"] = sum(len(client.live) for client in model.clients)
    disk.image.unlink()
    return done


def rounds_that_must_lose(run: Run) -> None:
    """The same with `--durability none`."""
    for number in range(ROUNDS_WITHOUT):
        with disk_in(run.folder / f"none-{number}") as disk:
            model = Model(CLIENTS, "none")
            server = start(disk, "none", run.choices)
            try:
                server = one_round(run, disk, model, "none", server)
            except Breach as breach:
                print(f"    without durability, as it must be: {breach}", flush=True)
                run.note("without durability, a power cut loses parts")
                return
            finally:
                server.kill()
    raise Breach("with --durability none nothing was lost: this row cannot fail")


def power(run: Run) -> None:
    rounds_that_must_lose(run)
    rounds_that_lose_nothing(run)


ROW = Row(2, "power", "power cut: a file system that goes down without writing its log", "rounds", 5, 500, 20, power, 6)
