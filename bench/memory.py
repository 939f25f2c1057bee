"""Samples how much memory processes take, and how a table grows."""

import json
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Dict

if TYPE_CHECKING:
    from server import Server

SAMPLE_INTERVAL_S = 0.02
GROWTH_INTERVAL_S = 10


def memory_of(pid: int) -> Dict[str, int]:
    """Bytes of memory of a process, by their names in /proc; empty if it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    lines = (line.split() for line in text.splitlines() if line.startswith(("RssAnon:", "VmRSS:")))
    return {name.rstrip(":"): int(kib) * 1024 for name, kib, _ in lines}


class Peak:
    """The most anonymous memory (`RssAnon`) that any of the watched processes had in any sample."""

    def __init__(self):
        self.bytes = 0

    def watch(self, pid: int) -> "Watch":
        return Watch(self, pid)


class Watch:
    """Samples one process from `start()` to `stop()`; `with` calls both."""

    def __init__(self, peak: Peak, pid: int):
        self._peak = peak
        self._pid = pid
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while memory := memory_of(self._pid):
            self._peak.bytes = max(self._peak.bytes, memory.get("RssAnon", 0))
            if self._stopped.wait(SAMPLE_INTERVAL_S):
                return

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *_exception) -> None:
        self.stop()


class Growth:
    """Within `with`, writes a line of JSON every 10 s: the server's memory, its parts and segments, and the load."""

    def __init__(self, server: "Server", path: Path):
        self._server, self._path = server, path
        self._start = time.perf_counter()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._stopped.wait(GROWTH_INTERVAL_S):
            line = {"seconds": round(time.perf_counter() - self._start, 1), **memory_of(self._server.pid)}
            try:
                line |= self._server.figures()
            except OSError:
                pass  # it is stopping, or too busy to answer
            line["load"] = float(Path("/proc/loadavg").read_text().split()[0])
            with open(self._path, "a") as file:
                file.write(json.dumps(line) + "\n")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_exception) -> None:
        self._stopped.set()
        self._thread.join()
