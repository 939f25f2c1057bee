"""Row 13: thread schedules. The model check runs registry, queue, jobs and commit under random schedules (`tests/model.rs`);
ThreadSanitizer runs the Rust integration tests where a nightly toolchain is installed.
"""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import List

from core import ROOT, CannotRun, LeftOut, Row, Run
from invariants import check

BUILD_SECONDS_MAX = 3600
# A check of many schedules must end before its time is over, so each round has few.
SCHEDULES_OF_A_ROUND = 20_000
FIRST_ROUND = 1_000
CHECKED = re.compile(r"(\w+): (\d+) schedules$", re.M)
TESTS = ["removed_parts", "packing", "jobs"]
TSAN = ROOT / "target" / "torture" / "tsan"


def cargo(words: List[str], target: Path, seconds: float, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "CARGO_TARGET_DIR": str(target), **variables}
    return subprocess.run(["cargo", *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds)


def built_model(run: Run) -> Path:
    """In a folder of its own: the binary that this build leaves cannot run outside of the checker. Its time does not count."""
    words = ["test", "--locked", "--release", "--features", "model", "--test", "model", "--no-run"]
    # Optimizing across crates takes minutes and makes no schedule faster that matters.
    built = cargo(words, ROOT / "target" / "torture" / "model", BUILD_SECONDS_MAX, CARGO_PROFILE_RELEASE_LTO="off")
    check(built.returncode == 0, built.stderr[-2000:])
    run.begin_again()
    return ROOT / re.search(r"Executable .*\((.+)\)", built.stderr)[1]


def model(run: Run) -> None:
    program, per_check, number = built_model(run), FIRST_ROUND, 0
    while run.done < run.amount and (number == 0 or not run.is_late()):
        number += 1
        begun = time.monotonic()
        # A failed check prints the seed of its schedule.
        environment = {**os.environ, "TALLY_SCHEDULES": str(per_check), "SHUTTLE_RANDOM_SEED": str(run.seed + number)}
        done = subprocess.run([program, "--nocapture"], cwd=ROOT, env=environment, capture_output=True, text=True)
        check(done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:])
        found = CHECKED.findall(done.stdout)
        check(found, f"no check says how many schedules it ran: {done.stdout[-1000:]}")
        for name, count in found:
            run.figures[name] += int(count)
            run.done += int(count)
        if time.monotonic() - begun < 10:
            per_check = min(2 * per_check, SCHEDULES_OF_A_ROUND)


def nightly() -> str | None:
    """A toolchain that can build the standard library with ThreadSanitizer."""
    if shutil.which("rustup") is None:
        return None
    listed = subprocess.run(["rustup", "toolchain", "list"], capture_output=True, text=True).stdout
    return next((line.split()[0] for line in listed.splitlines() if line.startswith("nightly")), None)


def thread_sanitizer(run: Run) -> None:
    toolchain = nightly()
    if toolchain is None:
        run.note("ThreadSanitizer cannot run: there is no nightly toolchain")
        return
    sysroot = subprocess.run(["rustc", f"+{toolchain}", "--print", "sysroot"], capture_output=True, text=True).stdout.strip()
    if not (Path(sysroot) / "lib/rustlib/src/rust/library").is_dir():
        run.note("ThreadSanitizer cannot run: the nightly toolchain has no rust-src, so the standard library cannot be built for it")
        return
    host = re.search(r"host: (\S+)", subprocess.run(["rustc", "-vV"], capture_output=True, text=True).stdout)[1]
    words = [f"+{toolchain}", "test", "--locked", "-Zbuild-std", "--target", host]
    words += [word for name in TESTS for word in ("--test", name)]
    done = cargo(words, TSAN, BUILD_SECONDS_MAX, RUSTFLAGS="-Zsanitizer=thread")
    check("WARNING: ThreadSanitizer" not in done.stdout + done.stderr, (done.stdout + done.stderr)[-4000:])
    run.note("ThreadSanitizer: no race" if done.returncode == 0 else "ThreadSanitizer: its tests could not be built or run here")


def schedules(run: Run) -> None:
    if shutil.which("cargo") is None:
        raise CannotRun("cargo is not there")
    if run.is_sabotaged:
        raise LeftOut("a lock that is missing does not compile, so there is nothing to break")
    if run.amount <= run.row.short:
        raise LeftOut("`make test` runs the model check before")
    model(run)
    thread_sanitizer(run)


ROW = Row(13, "schedules", "random schedules of registry, queue, jobs and commit", "schedules", 5_000, 1_000_000, 0, schedules, 5)
