"""What must be true of a server and its data folder whatever has happened, and how a row checks it."""

import re
import subprocess
import time
from pathlib import Path
from typing import List

from core import Breach
from conftest import KIB, Server, binary, wait_until
from test_disk_full import open_paths
from test_idle_after_calls import processor_seconds, tasks_count

MIB = KIB * KIB
ANONYMOUS_BYTES_MAX = 256 * MIB
IDLE_SECONDS = 1.0
IDLE_CORES_MAX = 0.2
# A removed part keeps its files; marks have none.
SUFFIXES = {"csv", "parquet", "sums", "json"}
SEGMENT = re.compile(r"(\d+-\d+-\d+)\.(?:\d+\.)?(csv|index|fences|keys|parquet|sums|index-sums|fences-sums|segment)$")


def check(holds, text: str) -> None:
    if not holds:
        raise Breach(text)


def check_alive(server: Server) -> None:
    """It runs, nothing panicked, and its memory is within the bound."""
    log = server.stderr
    check(server.is_running(), f"the server ended with {server.process.returncode}:\n{log[-4000:]}")
    check("panicked" not in log, f"a panic:\n{log[-4000:]}")
    check(server.anonymous_bytes() < ANONYMOUS_BYTES_MAX, f"{server.anonymous_bytes()} bytes of anonymous memory")


def leftovers(data: Path) -> List[str]:
    """Files in tmp/, and files in parts/ without a receipt or the receipt of a segment."""
    parts = data / "parts"
    names = [entry.name for entry in parts.iterdir()]
    receipts = {name.removesuffix(".json") for name in names if name.endswith(".json")}
    segments = {name.removesuffix(".segment") for name in names if name.endswith(".segment")}
    strays = [f"tmp/{entry.name}" for entry in (data / "tmp").iterdir()]
    for name in names:
        segment = SEGMENT.match(name)
        stem, _, suffix = name.partition(".")
        if not (segment and segment[1] in segments or stem in receipts and suffix in SUFFIXES):
            strays.append(f"parts/{name}")
    return sorted(strays)


def check_no_leftovers(server: Server, seconds: float = 30) -> None:
    """Packing may write and clean up at any time, so it gets a while."""
    try:
        wait_until(lambda: not leftovers(server.data), "no leftovers", seconds)
    except AssertionError:
        raise Breach(f"left over: {leftovers(server.data)[:10]}") from None


def open_files(server: Server) -> List[str]:
    """Paths in the data folder that the process has open, without its lock."""
    folder = str(server.data.resolve())
    return [target for target in open_paths(server) if target.startswith(folder + "/") and Path(target).suffix != ""]


def check_idle(server: Server, tasks_before: int, seconds: float = 30) -> None:
    """After the last call its asynchronous tasks have ended, and it uses no processor."""
    wait_until(lambda: tasks_count(server) <= tasks_before, f"{tasks_before} tasks as before", seconds)

    def is_idle() -> bool:
        before, begun = processor_seconds(server.pid), time.monotonic()
        time.sleep(IDLE_SECONDS)  # what is measured is the use in this time
        return (processor_seconds(server.pid) - before) / (time.monotonic() - begun) < IDLE_CORES_MAX

    wait_until(is_idle, f"less than {IDLE_CORES_MAX} of a core is used", seconds)


def check_verify(data: Path) -> None:
    """`tally verify` finds every stored file undamaged. No server may run."""
    done = subprocess.run([binary(), "verify", data], capture_output=True, text=True, timeout=600)
    check(done.returncode == 0, f"tally verify: {done.stdout[-2000:]}{done.stderr[-2000:]}")
