"""Damages every byte of small files and many of large ones, one at a time, and asks every question after each.

    TALLY_BINARY=target/release/tally .venv/bin/python tests/python/damage_all.py [WHAT ...] [--places 2000] [--seed 1]

WHAT is any of small, large, restarted, jobs, old (all of them without one). It takes an hour or so with a release build,
prints what came of it by kind of file and question, and ends with exit code 1 if any answer was neither right nor told.
`make test` does the same for some 200 bytes (`test_damage.py`).
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import List

import conftest  # noqa: F401  (makes the stubs)
import damage
import test_damage
from damage import Damage

SHORT_BYTES_MAX = 8 * 1024


def short(whole: dict) -> List[str]:
    """Flips in every byte of these files."""
    return [path for path in sorted(whole) if len(whole[path]) <= SHORT_BYTES_MAX]


def every_byte(numbers: random.Random, whole: dict, paths: List[str]) -> List[Damage]:
    """One flip for each byte: of its lowest bit, which makes another digit of a digit, or of another bit."""
    masks = [1, 1, 1, 2, 4, 8, 16, 32, 64, 128, 255]
    places = [(path, offset) for path in paths for offset in range(len(whole[path]))]
    return [damage.flip(whole, path, offset, numbers.choice(masks)) for path, offset in places]


def places(numbers: random.Random, whole: dict, paths: List[str], count: int) -> List[Damage]:
    """`count` flips in each file, or as many as the file has bytes."""
    return [
        damage.random_flip(numbers, whole, path) for path in paths for _ in range(min(count, len(whole[path])))
    ]


def others(whole: dict, kinds: List[str]) -> List[Damage]:
    """Damage other than flipped bits, for the files of two parts."""
    pairs = [(f"parts/{a}.{kind}", f"parts/{b}.{kind}") for kind in kinds for a, b in [(2, 3), (1, 2), (3, 1)]]
    return [each for path, other in pairs for each in damage.other_damages(whole, path, other)]


def small(folder: Path, numbers: random.Random, _count: int, found: damage.Tally) -> None:
    table = test_damage.Table(folder / "data", damage.small_parts)
    whole = table.folder.whole
    damages = every_byte(numbers, whole, short(whole)) + others(whole, ["csv", "parquet", "json"])
    test_damage.damage_running(table, damages, dict.fromkeys(test_damage.KINDS, ""), found)


def large(folder: Path, numbers: random.Random, count: int, found: damage.Tally) -> None:
    table = test_damage.Table(folder / "data", damage.large_parts)
    whole = table.folder.whole
    # The lists of checksums of large files are short, and read only with those.
    rest = [path for path in sorted(whole) if path not in short(whole) or path.endswith(".sums")]
    test_damage.damage_running(table, places(numbers, whole, rest, count), test_damage.KINDS, found)


def restarted(folder: Path, numbers: random.Random, count: int, found: damage.Tally) -> None:
    table = test_damage.Table(folder / "data", damage.small_parts)
    whole = table.folder.whole
    damages = every_byte(numbers, whole, [path for path in short(whole) if path.endswith(".json")])
    rest = [path for path in sorted(whole) if not path.endswith(".json")]
    damages += places(numbers, whole, rest, count // 10) + others(whole, ["csv", "parquet", "json"])
    # Without a receipt there is no part.
    damages = [each for each in damages if each.kind != "json" or None not in each.files.values()]
    test_damage.damage_and_restart(table, damages, found)


def jobs(folder: Path, numbers: random.Random, count: int, found: damage.Tally) -> None:
    made = test_damage.Jobs(folder / "data")
    whole = made.folder.whole
    paths = [path for path in sorted(whole) if path.startswith("jobs/")]
    small_ones = [path for path in paths if path in short(whole)]
    rest = [path for path in paths if path not in small_ones]
    damages = every_byte(numbers, whole, small_ones) + places(numbers, whole, rest, count)
    test_damage.damage_jobs_running(made, damages, found)
    damages = every_byte(numbers, whole, [path for path in paths if path.endswith(".json")])
    damages += places(numbers, whole, [path for path in paths if path.endswith(".result")], count // 20)
    test_damage.damage_jobs_and_restart(made, damages, found)


def old(folder: Path, numbers: random.Random, count: int, found: damage.Tally) -> None:
    table = test_damage.old_table(folder / "data")
    whole = table.folder.whole
    paths = [path for path in sorted(whole) if not path.endswith(".json")]
    damages = every_byte(numbers, whole, [path for path in paths if path in short(whole)])
    damages += places(numbers, whole, [path for path in paths if path not in short(whole)], count // 4)
    test_damage.damage_running(table, damages, test_damage.KINDS, found, is_used_before=True)
    test_damage.damage_and_restart(table, places(numbers, whole, paths, count // 10), found)


ALL = {"small": small, "large": large, "restarted": restarted, "jobs": jobs, "old": old}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="*", choices=[*ALL, []], help="all of them without one")
    parser.add_argument("--places", type=int, default=2000, help="of each large file")
    parser.add_argument("--seed", type=int, default=test_damage.SEED)
    arguments = parser.parse_args()
    test_damage.SEED = arguments.seed
    failures = 0
    for what in arguments.what or ALL:
        print(f"--- {what}, --seed {arguments.seed}", flush=True)
        found, begun = damage.Tally(), time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            ALL[what](Path(folder), random.Random(arguments.seed), arguments.places, found)
        print(found.report())
        print(f"{found.asked()} answers in {time.monotonic() - begun:.0f} s, {len(found.failures)} failures", flush=True)
        failures += len(found.failures)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
