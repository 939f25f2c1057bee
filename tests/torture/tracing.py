"""A server whose system calls on its data folder are recorded, and fail on demand (`tracer.c`)."""

import ctypes
import mmap
import platform
import re
from pathlib import Path
from typing import List, NamedTuple

from conftest import Server
from core import ROOT, TORTURE, CannotRun, build_helper

# As libc's errno and the fields of `struct control` in tracer.c.
EIO, ENOSPC = 5, 28
NOTHING, ONCE, FOR_GOOD = 0, 1, 2
LINE = re.compile(r'(\d+) (\d+) (\d+) (\w+) (-?\d+) "([^"]*)"(?: "([^"]*)")?$')


class Fields(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("mode", "at", "error", "changes_only")),
        *((name, ctypes.c_int32) for name in ("count", "failed", "sync_delay_us", "position")),
        ("what", ctypes.c_char * 256),
    ]


class Call(NamedTuple):
    """A system call that has ended. Positions are comparable over all threads; paths are relative to the data folder."""

    entered: int
    ended: int
    name: str
    result: int
    path: str
    to: str


class Tracer:
    """What `Server(prefix=tracer.prefix)` is to be started with."""

    def __init__(self, folder: Path, data: Path):
        if platform.machine() != "x86_64" or platform.system() != "Linux":
            raise CannotRun("the tracer needs Linux on x86-64")
        self.data = data.resolve()
        self.log = folder / "calls.log"
        control = folder / "control"
        control.write_bytes(bytes(ctypes.sizeof(Fields)))
        self.log.write_bytes(b"")
        with control.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.fields = Fields.from_buffer(self._map)
        program = build_helper(TORTURE / "tracer.c", ROOT / "target" / "torture")
        self.prefix = (program, self.data, control, self.log)

    def start(self, *flags) -> Server:
        self.data.mkdir(exist_ok=True)
        return Server(self.data, *flags, prefix=self.prefix)

    def arm(self, mode: int, at: int, error: int, changes_only: bool) -> None:
        """From now on calls are counted from 1, and the one with this number fails."""
        self.fields.mode = NOTHING
        self.fields.failed, self.fields.what = 0, b""
        self.fields.error, self.fields.at, self.fields.changes_only = error, at, changes_only
        self.fields.count = 0
        self.fields.mode = mode

    def let_succeed(self) -> None:
        self.fields.mode = NOTHING

    def disarm(self) -> int:
        """Lets all calls succeed; returns how many were made to fail."""
        self.let_succeed()
        return self.fields.failed

    def what(self) -> str:
        return self.fields.what.decode("utf-8", "replace").replace(str(self.data) + "/", "")

    def calls(self) -> List[Call]:
        """All calls so far, in the order of their ends."""
        found = []
        with self.log.open(errors="replace") as lines:
            for line in lines:
                match = LINE.match(line)
                if match:
                    entered, ended, _thread, name, result, path, to = match.groups()
                    found.append(Call(int(entered), int(ended), name, int(result), self._inside(path), self._inside(to or "")))
        return sorted(found, key=lambda call: call.ended)

    def _inside(self, path: str) -> str:
        return path.removeprefix(str(self.data)).removeprefix("/").removesuffix(" (deleted)")
