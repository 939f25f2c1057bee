"""Starts and stops the server that is measured, and generates the gRPC stubs to talk to it.

A server starts on free ports of the loopback interface, with the settings that its flags give and no others.
TALLY_BINARY names another binary than target/release/tally.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Dict, Tuple

from memory import Peak

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = ROOT / "clients"
PROTO = ROOT / "proto"
BINARY = Path(os.environ.get("TALLY_BINARY", ROOT / "target" / "release" / "tally"))
ADDRESS_FLAGS = ("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0")
STOP_SECONDS_MAX = 60  # the server gives running calls 30 s

READY_LINE = re.compile(
    r"ready: grpc (?P<address>[^\s,;]+).*; http (?P<http>[^\s,;]+).*; (?P<parts>\d+) parts? in "
)
FIGURE = re.compile(r"^tally_(parts|unpacked_parts|segments) (\d+)$", re.MULTILINE)


class ServerFailed(Exception):
    """The server did not start, or did not stop as it should. The message has its log."""


def make_stubs() -> None:
    """Generates the gRPC stubs into clients/, unless they are there and newer than proto/."""
    protos = sorted(PROTO.glob("*.proto"))
    stubs = [CLIENTS / (proto.stem + suffix) for proto in protos for suffix in ("_pb2.py", "_pb2_grpc.py")]
    newest_proto = max(proto.stat().st_mtime for proto in protos)
    if all(stub.exists() and stub.stat().st_mtime >= newest_proto for stub in stubs):
        return
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}"]
    command += [f"--python_out={CLIENTS}", f"--grpc_python_out={CLIENTS}"]
    subprocess.run([*command, *map(str, protos)], check=True)


def clean_environment() -> dict:
    """This process's environment without the TALLY_ settings of whoever started the benchmark."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TALLY_")}


class Server:
    """One `tally serve` process. The constructor returns when it is ready; `with` stops it.

    `flags` go to `tally serve`. `peak` notes its memory from its first moment to its last.
    """

    binary = BINARY

    def __init__(self, data: Path, peak: Peak, *flags: str):
        self._log = tempfile.TemporaryFile()
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [str(self.binary), "serve", "--data", str(data), *ADDRESS_FLAGS, *flags],
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            encoding="utf-8",
        )
        self.pid = self._process.pid
        self._watch = peak.watch(self.pid)
        self._watch.start()
        try:
            self.address, self.http, self.parts_count = self._wait_until_ready()
        except BaseException:
            self._kill()
            raise
        self.start_seconds = time.perf_counter() - start

    def _wait_until_ready(self) -> Tuple[str, str, int]:
        for line in self._process.stdout:
            ready = READY_LINE.match(line)
            if ready:
                return ready["address"], ready["http"], int(ready["parts"])
        code = self._process.wait()
        raise ServerFailed(f"the server ended with {code} before it was ready; its log:\n{self._log_text()}")

    def figures(self) -> Dict[str, int]:
        """How many parts and segments there are, from `/metrics`."""
        with urllib.request.urlopen(f"http://{self.http}/metrics") as answer:
            text = answer.read().decode()
        return {name: int(value) for name, value in FIGURE.findall(text)}

    def _log_text(self) -> str:
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")

    def _stop(self) -> None:
        self._process.terminate()
        code = self._process.wait(STOP_SECONDS_MAX)
        self._watch.stop()
        if code != 0:
            raise ServerFailed(f"the server ended with {code}; its log:\n{self._log_text()}")

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._watch.stop()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, kind, *_exception) -> None:
        if kind is not None:
            self._kill()
            return
        try:
            self._stop()
        except subprocess.TimeoutExpired:
            self._kill()
            raise ServerFailed(f"the server did not stop within {STOP_SECONDS_MAX} s") from None
