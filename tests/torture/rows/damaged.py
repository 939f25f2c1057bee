"""Row 5: damage in every kind of stored file. An answer is right, or DATA_LOSS that names what is damaged.

It uses what `tests/python/damage.py` knows of tables, questions and answers, and adds segments.
"""

import random
from typing import Callable, List

import damage
import tally_pb2
import test_damage
from conftest import Server, ServerDidNotStart, tally
from core import Breach, Row, Run
from damage import FLAGS, Damage, Folder
from invariants import check

PACKED_PARTS = 60
# Damages of one server's life, and of those across restarts.
AT_ONCE = 50
RESTARTS_AT_ONCE = 5
FORGED_EVERY = 8
# The questions that read a kind of file of a segment while the server runs; all of them read its index.
READS = {"csv": "csv", "parquet": "parquet", "1": "parquet", "sums": "csv", "keys": "json", "segment": "json"}


class Packed:
    """A table whose parts are all in one segment, and the right answers."""

    def __init__(self, path, seed: int):
        numbers = random.Random(seed)
        parts = [damage.mixed_part(numbers, 20) if index % 3 else damage.integer_part(numbers, 60) for index in range(PACKED_PARTS)]
        self.folder = Folder(path)
        with Server(path, *FLAGS) as server:
            for index, part in enumerate(parts):
                key = (("idempotency-key", f"key-{index}"),)
                tally(server).Upload(iter([tally_pb2.UploadChunk(data=part.csv)]), metadata=key)
            tally(server).Pack(tally_pb2.PackRequest(), timeout=damage.ANSWER_SECONDS_MAX)
            server.stop()
        # A start deletes what the segment has replaced.
        with Server(path, *FLAGS) as server:
            self.answers = damage.check_oracle(server, parts)
            server.stop()
        for entry in (path / "jobs").iterdir():
            entry.unlink()
        self.folder.learn()
        check(len(list((path / "parts").glob("*.segment"))) == 1, "the parts were not packed")
        check(not list((path / "parts").glob("*.json")), "parts are left beside the segment")

    def ask(self, server: Server, each: Damage, found: damage.Tally, what: str) -> None:
        reads = "" if what else READS.get(each.kind, "")
        for question in damage.QUESTIONS:
            if reads and question.kinds not in reads:
                continue
            outcome, text = damage.outcome_of(lambda q=question: q.ask(server), self.answers[question.name], [])
            if outcome == "unnamed" and ("part" in text or "segment" in text):
                outcome = "told"
            if outcome == "wrong" and what and question.name == damage.LIST_PARTS:
                # A segment in quarantine is not in the list; other answers say that its parts are missing.
                outcome = "right" if any((self.folder.path / "quarantine").iterdir()) else outcome
            found.note("segment", question.name, outcome, each.what + what, text)


def paths_in_turn(whole: dict, count: int) -> List[str]:
    paths = [path for path in sorted(whole) if whole[path]]
    return [paths[index % len(paths)] for index in range(count)]


def some_damages(numbers: random.Random, whole: dict, count: int) -> List[Damage]:
    """Flips in every file in turn; some files are cut, made longer or exchanged with another of their kind."""
    damages = []
    for index, path in enumerate(paths_in_turn(whole, count)):
        damages.append(damage.random_flip(numbers, whole, path))
        if index % FORGED_EVERY == 0:
            others = [other for other in whole if other != path and other.split(".")[-1] == path.split(".")[-1]]
            damages[-1] = numbers.choice(damage.other_damages(whole, path, numbers.choice(others or sorted(whole))))
    return damages


def running(table: test_damage.Table, damages: List[Damage], found: damage.Tally) -> None:
    test_damage.damage_running(table, damages, test_damage.KINDS, found)


def restarted(table: test_damage.Table, damages: List[Damage], found: damage.Tally) -> None:
    # Without a receipt there is no part, as if it had never been committed.
    kept = [each for each in damages if not any(path.endswith(".json") and content is None for path, content in each.files.items())]
    test_damage.damage_and_restart(table, kept, found)


def packed_running(packed: Packed, damages: List[Damage], found: damage.Tally) -> None:
    with Server(packed.folder.path, *FLAGS, "--jobs-sweep-s", "1") as server:
        for each in damages:
            packed.folder.apply(each)
            packed.ask(server, each, found, "")
            packed.folder.put_back(each)
        damage.check_alive(server)
    packed.folder.restore()


def packed_restarted(packed: Packed, damages: List[Damage], found: damage.Tally) -> None:
    for each in damages:
        packed.folder.apply(each)
        try:
            with Server(packed.folder.path, *FLAGS, "--jobs-sweep-s", "1") as server:
                packed.ask(server, each, found, ", restarted")
                damage.check_alive(server)
        except ServerDidNotStart as failure:
            found.note("segment", "start", "no start", each.what, failure.stderr)
        packed.folder.restore()


class Arena:
    """Something to damage, and how."""

    def __init__(self, made, whole: dict, at_once: int, run: Callable):
        self.made, self.whole, self.at_once, self.run = made, whole, at_once, run


def arenas(run: Run) -> List[Arena]:
    test_damage.SEED = run.seed
    small = test_damage.Table(run.folder / "small", damage.small_parts)
    large = test_damage.Table(run.folder / "large", damage.large_parts)
    jobs = test_damage.Jobs(run.folder / "jobs")
    packed = Packed(run.folder / "packed", run.seed)
    job_files = {path: content for path, content in jobs.folder.whole.items() if path.startswith("jobs/")}
    return [
        Arena(small, small.folder.whole, 4 * AT_ONCE, running),
        Arena(packed, packed.folder.whole, AT_ONCE, packed_running),
        Arena(jobs, job_files, AT_ONCE, test_damage.damage_jobs_running),
        Arena(small, small.folder.whole, RESTARTS_AT_ONCE, restarted),
        Arena(packed, packed.folder.whole, RESTARTS_AT_ONCE, packed_restarted),
        Arena(jobs, job_files, RESTARTS_AT_ONCE, test_damage.damage_jobs_and_restart),
        Arena(large, large.folder.whole, AT_ONCE // 2, running),
    ]


def damaged(run: Run) -> None:
    found = damage.Tally()
    chosen = arenas(run)
    while run.done < run.amount and (run.done == 0 or not run.is_late()):
        for arena in chosen:
            damages = some_damages(run.choices, arena.whole, arena.at_once)
            run.choices.shuffle(damages)
            arena.run(arena.made, damages, found)
            run.done += len(damages)
            if found.failures or run.is_late():
                break
        if found.failures:
            break
    outcomes = {word: 0 for word in ("right", "told")}
    for (_kind, _question, outcome), count in found.counts.items():
        outcomes[outcome] = outcomes.get(outcome, 0) + count
    run.figures.update({"answers": found.asked(), **outcomes})
    if found.failures:
        raise Breach(found.failures[0]._asdict().__repr__() + "\n" + found.report())
    check(found.told() > run.done // 10, "so few were noticed that the damage cannot have been where it matters")


ROW = Row(5, "damage", "flips, truncations, extensions and exchanges in every kind of stored file", "damages", 2_000, 1_000_000, 30, damaged, 7, "blocks-not-verified")
