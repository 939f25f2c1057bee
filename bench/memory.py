"""Samples how much memory processes take."""

import threading
from pathlib import Path

SAMPLE_INTERVAL_S = 0.02


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
        self._status = Path(f"/proc/{pid}/status")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while True:
            try:
                text = self._status.read_text()
            except (FileNotFoundError, ProcessLookupError):
                return  # the process has ended
            for line in text.splitlines():
                if line.startswith("RssAnon:"):
                    self._peak.bytes = max(self._peak.bytes, int(line.split()[1]) * 1024)
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
