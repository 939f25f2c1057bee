"""`make mutants`: bugs on purpose, each of which a named test must find.

    .venv/bin/python tests/torture/mutants.py [NAME ...]

Each patch in `mutants/` begins with lines that say what the bug is, and which command must fail with it:

    What: the folder is not synced after the receipt got its name
    Caught by: torture order

The command is `cargo test ...`, `pytest FILE [-k WORDS]` or `torture ROW`. All patches are applied to one copy of the tree in `target/mutants`, which is
built once: the environment variable `MUTANT` chooses the bug that a program has (`mutants/mutant.rs`). First each command is run
without a bug, and must pass. Exit code 1: a mutant lived, a patch no longer applies, or the copy does not compile.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterable, List, NamedTuple

import report
from core import ROOT, TORTURE, machine

FOLDER = ROOT / "target" / "mutants"
PATCHED, TREE, BUILD = FOLDER / "patched", FOLDER / "tree", FOLDER / "build"
SWITCH = TORTURE / "mutants" / "mutant.rs"
BUILD_SECONDS_MAX = 3600
TEST_SECONDS_MAX = 900


class Mutant(NamedTuple):
    name: str
    patch: Path
    what: str
    caught_by: str


def mutants() -> List[Mutant]:
    found = []
    for patch in sorted((TORTURE / "mutants").glob("*.patch")):
        fields = dict(re.findall(r"^(What|Caught by): (.*)$", patch.read_text(), re.M))
        found.append(Mutant(patch.stem, patch, fields["What"], fields["Caught by"]))
    return found


def make_tree() -> None:
    """The files that git knows, as they are now, with all bugs. Unchanged ones keep their time, so that little is built again."""
    names = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], check=True, capture_output=True).stdout.decode().split("\0")
    names = [name for name in names if name and (ROOT / name).is_file()]
    shutil.rmtree(PATCHED, ignore_errors=True)
    for name in names:
        (PATCHED / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, PATCHED / name)
    for mutant in mutants():
        words = ["patch", "-p1", "--no-backup-if-mismatch", "-d", PATCHED, "-i", mutant.patch]
        applied = subprocess.run([str(word) for word in words], capture_output=True, text=True)
        if applied.returncode != 0:
            raise SystemExit(f"the patch {mutant.name} does not apply: {applied.stdout}")
    shutil.copyfile(SWITCH, PATCHED / "src" / "mutant.rs")
    with (PATCHED / "src" / "lib.rs").open("a") as lib:
        lib.write("pub mod mutant;\n")
    for name in [*names, "src/mutant.rs"]:
        source, to = PATCHED / name, TREE / name
        to.parent.mkdir(parents=True, exist_ok=True)
        if not to.exists() or to.read_bytes() != source.read_bytes():
            shutil.copyfile(source, to)
        shutil.copymode(ROOT / name if (ROOT / name).exists() else source, to)


def build(commands: Iterable[str]) -> None:
    """The server, and the test programs of these commands."""
    make_tree()
    if not BUILD.exists():
        # What is built already is not built again: only the project's own path differs.
        built = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug"
        BUILD.mkdir(parents=True)
        if built.is_dir():
            subprocess.run(["cp", "-a", "--reflink=auto", built, BUILD / "debug"], check=True)
    tests = [word for command in commands if command.startswith("cargo ") for word in shlex.split(command)[3:5]]
    steps = [["cargo", "build", "--locked"], ["cargo", "test", "--locked", "--no-run", *tests]]
    for words in steps if tests else steps[:1]:
        built = run(words, seconds_max=BUILD_SECONDS_MAX)
        if built.returncode != 0:
            raise SystemExit(f"the copy with the bugs does not compile:\n{built.stderr[-4000:]}")


def run(words: list, mutant: str = "", seconds_max: float = TEST_SECONDS_MAX) -> subprocess.CompletedProcess:
    """A command in the copy, whose programs have this bug."""
    chosen = {"TALLY_BINARY": str(BUILD / "debug" / "tally"), "CARGO_TARGET_DIR": str(BUILD), "MUTANT": mutant}
    environment = {**os.environ, **chosen}
    return subprocess.run(words, cwd=TREE, env=environment, capture_output=True, text=True, timeout=seconds_max)


def command(caught_by: str) -> List[str]:
    """The command that must fail. Python tests are those of the copy, so that nothing is written here."""
    tool, *words = shlex.split(caught_by)
    if tool == "cargo":
        return ["cargo", *words]
    if tool == "pytest":
        return [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"--basetemp={FOLDER / 'pytest'}", *words]
    assert tool == "torture", caught_by
    rows = [word for name in words for word in ("--only", name)]
    return [sys.executable, "tests/torture", "--short", "--json", str(FOLDER / "torture.json"), *rows]


def program() -> Path:
    """The server with all bugs, of which the environment variable MUTANT chooses one."""
    build([])
    return BUILD / "debug" / "tally"


def outcome_with(mutant: Mutant) -> str:
    try:
        done = run(command(mutant.caught_by), mutant.name)
    except subprocess.TimeoutExpired:
        return "caught: the test did not end"
    return "lived" if done.returncode == 0 else "caught: " + first_reason(done.stdout + done.stderr)


def write_json(chosen: List[Mutant], failed: List[str], seconds: float) -> None:
    """As the row of a torture run, so that `torture --markdown` adds it."""
    row = {
        "number": 14,
        "row": "mutants",
        "fault": "bugs on purpose, each caught by a named test",
        "outcome": "breached" if failed else "held",
        "reason": ", ".join(failed),
        "seed": None,
        "done": len([mutant for mutant in chosen if mutant.name not in failed]),
        "amount": len(chosen),
        "full": len(mutants()),
        "unit": "mutants",
        "seconds": round(seconds, 1),
        "figures": {},
        "notes": [],
    }
    head = {"seed": None, "form": "mutants", "minutes": None, **machine(), "build": "debug"}
    report.write(report.FOLDER / "mutants.json", {**head, "rows": [row]})


def first_reason(text: str) -> str:
    lines = re.findall(r"^(?:E  .*|.*panicked at.*|.*Breach: .*|FAILED .*|test .* FAILED)$", text, re.M)
    return (lines or text.strip().splitlines()[-1:] or [""])[0].strip()[:160]


def main() -> int:
    chosen = [mutant for mutant in mutants() if not sys.argv[1:] or mutant.name in sys.argv[1:]]
    commands = sorted({mutant.caught_by for mutant in chosen})
    begun = time.monotonic()
    build(commands)
    print(f"built after {time.monotonic() - begun:.0f} s", flush=True)
    failed: List[str] = []
    for caught_by in commands:
        step = time.monotonic()
        done = run(command(caught_by))
        print(f"without a bug: {caught_by}: exit code {done.returncode} after {time.monotonic() - step:.0f} s", flush=True)
        if done.returncode != 0:
            print((done.stdout + done.stderr)[-3000:], flush=True)
            failed += [mutant.name for mutant in chosen if mutant.caught_by == caught_by]
    for mutant in chosen:
        step = time.monotonic()
        outcome = outcome_with(mutant)
        print(f"{mutant.name} ({mutant.what}): {outcome}, by {mutant.caught_by}, {time.monotonic() - step:.0f} s", flush=True)
        if not outcome.startswith("caught"):
            failed.append(mutant.name)
    failed = list(dict.fromkeys(failed))
    write_json(chosen, failed, time.monotonic() - begun)
    print(f"{len(chosen) - len(failed)} of {len(chosen)} mutants are caught")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
