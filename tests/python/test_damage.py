"""Damaged files: whatever happens to a stored byte, an answer is right or it is DATA_LOSS that names part and file."""

import json
import os
import random
import time
from typing import Dict, List

import damage
import pytest
import requests
import tally_pb2
from conftest import Server, ServerDidNotStart, tally, wait_until
from damage import ANSWER_SECONDS_MAX, FLAGS, KEEP_JOBS, TASKS, Damage, Folder, Told

# Each run damages other bytes. TALLY_DAMAGE_SEED repeats one.
SEED = int(os.environ.get("TALLY_DAMAGE_SEED", time.time_ns() % 10**9))
FLIPS_SMALL = 80
FLIPS_LARGE = 24
FLIPS_RESTARTED = 20
FLIPS_OF_JOBS = 30
FLIPS_OLD_FORMAT = 16
SMALL_MIXED, SMALL_INTEGERS, SMALL_TWIN, MIDDLE_MIXED, MIDDLE_INTEGERS = range(1, 6)


@pytest.fixture(autouse=True)
def seed():
    print(f"TALLY_DAMAGE_SEED={SEED}")


class Table:
    """A folder with parts, and the right answers."""

    def __init__(self, path, make_parts):
        self.folder = Folder(path)
        self.answers = damage.fill(self.folder, make_parts(random.Random(SEED)))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Table:
    return Table(tmp_path_factory.mktemp("small") / "data", damage.small_parts)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Table:
    return Table(tmp_path_factory.mktemp("large") / "data", damage.large_parts)


def check(found: damage.Tally, told_min: int) -> None:
    print(found.report())
    assert found.failures == [], f"TALLY_DAMAGE_SEED={SEED}\n{found.report()}"
    assert found.told() >= told_min, "so few noticed that the damage cannot have been where it matters"


def damage_running(
    table: Table, damages: List[Damage], kinds: Dict[str, str], found: damage.Tally, is_used_before: bool = False
) -> None:
    """Damages files in turn under a running server. Once a file is restored, the answers must be right again."""
    with Server(table.folder.path, *FLAGS, "--jobs-sweep-s", "1") as server:
        if is_used_before:
            for question in damage.QUESTIONS:
                assert question.ask(server) == table.answers[question.name], question.name
        for number, each in enumerate(damages):
            table.folder.apply(each)
            damage.ask_all(server, each, table.answers, found, kinds[each.kind])
            table.folder.put_back(each)
            if number % 10 == 0:
                whole = damage.Tally()
                damage.ask_all(server, each, table.answers, whole, kinds[each.kind])
                assert whole.told() == 0 and whole.failures == [], f"put back: {each.what}\n{whole.report()}"
        damage.check_alive(server)
    table.folder.restore()


def damage_and_restart(table: Table, damages: List[Damage], found: damage.Tally) -> None:
    for each in damages:
        table.folder.apply(each)
        try:
            with Server(table.folder.path, *FLAGS, "--jobs-sweep-s", "1") as server:
                damage.ask_all(server, each, table.answers, found, after_start=True)
                damage.check_alive(server)
        except ServerDidNotStart as failure:
            found.note(each.kind, "start", "no start", each.what, failure.stderr)
        table.folder.restore()


# The questions that are asked after a kind of file was damaged: those that read it. damage_all.py asks all of them.
KINDS = {"csv": "csv", "sums": "csv parquet", "parquet": "parquet", "json": "json"}


def random_flips(numbers: random.Random, table: Table, count: int, kinds=tuple(KINDS)) -> List[Damage]:
    paths = [path for path in table.folder.whole if path.split(".")[1] in kinds]
    # Every file in turn.
    return [damage.random_flip(numbers, table.folder.whole, paths[index % len(paths)]) for index in range(count)]


def test_flipped_bytes_of_small_parts(small):
    found = damage.Tally()
    damage_running(small, random_flips(random.Random(SEED + 1), small, FLIPS_SMALL), KINDS, found)
    check(found, FLIPS_SMALL // 3)


def test_flipped_bytes_of_large_parts(large):
    found = damage.Tally()
    damage_running(large, random_flips(random.Random(SEED + 2), large, FLIPS_LARGE), KINDS, found)
    check(found, FLIPS_LARGE // 6)


def test_flipped_bytes_across_a_restart(small):
    found = damage.Tally()
    damage_and_restart(small, random_flips(random.Random(SEED + 3), small, FLIPS_RESTARTED), found)
    check(found, FLIPS_RESTARTED // 3)


@pytest.mark.parametrize("kind", ["csv", "parquet", "json", "sums"])
@pytest.mark.parametrize("is_restarted", [False, True], ids=["running", "restarted"])
def test_files_cut_made_longer_and_exchanged(small, kind, is_restarted):
    whole = small.folder.whole
    damages = damage.other_damages(whole, f"parts/{MIDDLE_MIXED}.{kind}", f"parts/{MIDDLE_INTEGERS}.{kind}")
    if kind != "sums":
        path, twin = f"parts/{SMALL_INTEGERS}.{kind}", f"parts/{SMALL_TWIN}.{kind}"
        damages += damage.other_damages(whole, path, twin)
        damages += damage.other_damages(whole, path, f"parts/{SMALL_MIXED}.{kind}")[-3:]
    found = damage.Tally()
    if is_restarted:
        # Without a receipt there is no part, as if it had never been committed.
        damages = [each for each in damages if kind != "json" or None not in each.files.values()]
        damage_and_restart(small, damages[::2], found)
    else:
        damage_running(small, damages, KINDS, found)
    check(found, 5)


@pytest.mark.parametrize("kind", ["csv", "parquet", "json", "sums"])
def test_a_part_damaged_while_the_server_runs_stays_and_is_whole_once_it_is_put_back(small, kind):
    name = f"parts/{MIDDLE_MIXED}.{kind}"
    path, whole = small.folder.path / name, small.folder.whole[name]
    numbers = random.Random(SEED + 4)
    with Server(small.folder.path, *FLAGS) as server:
        for put_back_by in ("writing", "renaming"):
            # Behind any header and before any footer; in Parquet files in the chunk of the first column, which is
            # asked for.
            offset = numbers.randrange(len(whole) // 4, min(len(whole) // 2, len(whole) // 4 + 2000))
            if kind == "parquet":
                offset = numbers.randrange(64, 2000)
            each = damage.flip(small.folder.whole, name, offset, 1)
            for _again in range(2):
                small.folder.apply(each)
                found = damage.Tally()
                damage.ask_all(server, each, small.answers, found)
                check(found, 1)
            if put_back_by == "writing":
                path.write_bytes(whole)
            else:
                beside = path.with_suffix(".beside")
                beside.write_bytes(whole)
                os.replace(beside, path)
            found = damage.Tally()
            damage.ask_all(server, each, small.answers, found)
            assert found.told() == 0 and found.failures == [], found.report()
        assert not any((small.folder.path / "quarantine").iterdir()), "only a start sets aside"
        damage.check_alive(server)
    small.folder.restore()


# --- jobs ---------------------------------------------------------------------------------------------------


class Jobs:
    """A folder with a statistic and with a small and a large result of a task, and their right answers."""

    def __init__(self, path):
        self.folder = Folder(path)
        with Server(path, *FLAGS, *KEEP_JOBS) as server:
            part = damage.mixed_part(random.Random(SEED), 200)
            assert run_upload(server, part.csv) == 1
            damage.survey(server, "mean_by_category")
            self.survey = "job_id_1"
            self.tasks = []
            for songs in (3, 20_000):
                rows = "".join(f"song {song},2020-01-01,{song * 7}\n" for song in range(songs))
                self.tasks.append(start_task(server, b"Song,Date,Number of Plays\n" + rows.encode()))
            self.answers = {job: self.ask(server, job) for job in [self.survey, *self.tasks]}
            assert self.answers[self.tasks[1]].count(b"\n") == 20_001
            assert len(self.answers[self.tasks[1]]) > 400_000
            server.stop()
        self.folder.learn()

    def ask(self, server: Server, job: str):
        return damage.survey_result(server, job) if job == self.survey else task_result(server, job)


def run_upload(server: Server, csv: bytes) -> int:
    return tally(server).Upload(iter([tally_pb2.UploadChunk(data=csv)])).part


def submit(server: Server, content: bytes) -> str:
    form = {"file": ("plays.csv", content)}
    accepted = requests.post(server.http + TASKS, files=form, timeout=ANSWER_SECONDS_MAX)
    assert accepted.status_code == 202, accepted.text
    return accepted.json()["task"]["id"]


def ended(server: Server, task: str) -> str:
    """The state in which a task ended, empty if it has not."""
    status = damage.http_get(server, f"{TASKS}{task}/status").json()["task"]["status"]
    return status if status not in ("QUEUED", "IN_PROGRESS") else ""


def start_task(server: Server, content: bytes) -> str:
    task = submit(server, content)
    assert wait_until(lambda: ended(server, task), "the end of the task", ANSWER_SECONDS_MAX) == "COMPLETED"
    return task


def task_result(server: Server, task: str) -> bytes:
    """Fetches a result in two ranges, so that the task does not count as downloaded."""
    pieces = []
    for piece in ("bytes=0-9", "bytes=10-"):
        answer = damage.http_get(server, f"{TASKS}{task}/download", Range=piece)
        if answer.status_code == 500:
            raise Told(answer.text)
        if answer.status_code == 404:
            raise damage.Other(answer.text)
        assert answer.status_code == 206, answer.text
        if answer.headers["Content-Type"] == "application/json":
            damage.judge_text(answer.text)  # the task has failed meanwhile
        pieces.append(answer.content)
    return b"".join(pieces)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> Jobs:
    return Jobs(tmp_path_factory.mktemp("jobs") / "data")


def ask_jobs(server: Server, jobs: Jobs, each: Damage, found: damage.Tally, after_start: bool) -> None:
    for job, expected in jobs.answers.items():
        outcome, text = damage.outcome_of(lambda j=job: jobs.ask(server, j), expected, list(each.files), after_start)
        is_set_aside = any((jobs.folder.path / "quarantine").glob(f"{job}.*"))
        is_missing = any(name.startswith(f"jobs/{job}.") and content is None for name, content in each.files.items())
        if outcome == "other" and (is_set_aside or is_missing):
            outcome = "told"  # a job that a start set aside is unknown afterwards; the log has a line about it
        name = "statistic" if job == jobs.survey else "task"
        found.note(each.kind, name, outcome, each.what, text)


def damage_jobs_running(jobs: Jobs, damages: List[Damage], found: damage.Tally) -> None:
    with Server(jobs.folder.path, *FLAGS, *KEEP_JOBS) as server:
        for each in damages:
            jobs.folder.apply(each)
            ask_jobs(server, jobs, each, found, after_start=False)
            jobs.folder.put_back(each)
        damage.check_alive(server)
    jobs.folder.restore()


def damage_jobs_and_restart(jobs: Jobs, damages: List[Damage], found: damage.Tally) -> None:
    for each in damages:
        jobs.folder.apply(each)
        try:
            with Server(jobs.folder.path, *FLAGS, *KEEP_JOBS) as server:
                ask_jobs(server, jobs, each, found, after_start=True)
                damage.check_alive(server)
        except ServerDidNotStart as failure:
            found.note(each.kind, "start", "no start", each.what, failure.stderr)
        jobs.folder.restore()


@pytest.mark.parametrize("is_restarted", [False, True], ids=["running", "restarted"])
def test_damaged_records_and_results_of_jobs(jobs, is_restarted):
    numbers = random.Random(SEED + 5)
    whole = jobs.folder.whole
    paths = [path for path in whole if path.startswith("jobs/")]
    damages = [damage.random_flip(numbers, whole, paths[index % len(paths)]) for index in range(FLIPS_OF_JOBS)]
    small_task, large_task = jobs.tasks
    for kind in ("json", "result"):
        damages += damage.other_damages(whole, f"jobs/{small_task}.{kind}", f"jobs/{large_task}.{kind}")
        damages += damage.other_damages(whole, f"jobs/{jobs.survey}.{kind}", f"jobs/{small_task}.{kind}")
    found = damage.Tally()
    if is_restarted:
        damage_jobs_and_restart(jobs, damages[::3], found)
    else:
        damage_jobs_running(jobs, damages, found)
    check(found, 5)


def test_damaged_inputs_of_tasks_that_wait(tmp_path):
    """An accepted task runs after a `kill -9` on exactly the file that was sent, or fails."""
    numbers = random.Random(SEED + 8)
    folder = Folder(tmp_path / "data")
    rows = "".join(f"song {number % 5000},2020-01-{1 + number % 28:02},{number}\n" for number in range(600_000))
    with Server(folder.path, *FLAGS, *KEEP_JOBS) as server:
        long = submit(server, b"Song,Date,Number of Plays\n" + rows.encode())
        waiting = {}
        for number in range(8):
            # Some have several blocks.
            count = 10 if number % 2 else 6000
            rows = "".join(f"song {song},2020-01-01,{song * number}\n" for song in range(1, count))
            content = b"Song,Date,Number of Plays\n" + rows.encode()
            result = sorted(line.encode() for line in rows.splitlines())
            waiting[submit(server, content)] = [b"Song,Date,Total Number of Plays for Date", *result]
        assert damage.http_get(server, f"{TASKS}{long}/status").json()["task"]["status"] != "COMPLETED"
        server.kill()
    folder.learn()
    damages = {}
    for number, task in enumerate(waiting):
        name = f"jobs/{task}.input"
        content = folder.whole[name]
        damages[task] = [
            Damage("untouched", {name: content}),
            damage.flip(folder.whole, name, numbers.randrange(len(content)), 1),
            damage.flip(folder.whole, name, len(content) - 2, 1),
            Damage("cut", {name: content[:-1]}),
            Damage("cut at a row", {name: content[: content[:-1].rindex(b"\n") + 1]}),
            Damage("twice", {name: content * 2}),
            damage.random_flip(numbers, folder.whole, name),
            damage.random_flip(numbers, folder.whole, name),
        ][number]
        folder.apply(damages[task])
    found = damage.Tally()
    with Server(folder.path, *FLAGS, *KEEP_JOBS) as server:
        for task, expected in waiting.items():
            wait_until(lambda t=task: ended(server, t), "its end", ANSWER_SECONDS_MAX)
            each = damages[task]
            outcome, text = damage.outcome_of(
                lambda t=task: task_result(server, t).splitlines(), expected, list(each.files), after_start=True
            )
            found.note(each.kind, "task", outcome, each.what, text)
        damage.check_alive(server)
    assert found.told() == 7, found.report()
    check(found, 7)


# --- receipts of format version 1 ---------------------------------------------------------------------------


def in_format_1(receipt: dict) -> bytes:
    """A receipt of format version 1: sizes and checksums of whole files, and no checksum of its own."""
    of_file = {"bytes", "xxh3"}
    old = {"format": 1}
    for field in ("part", "rows", "columns", "csv", "parquet", "row_groups", "footer_bytes", "uploaded_at"):
        value = receipt[field]
        old[field] = {name: value[name] for name in of_file} if field in ("csv", "parquet") else value
    return json.dumps(old).encode()


def old_table(path) -> Table:
    """A table with the small parts in format version 1."""
    table = Table(path, damage.small_parts)
    parts = table.folder.path / "parts"
    for path in parts.iterdir():
        if path.suffix == ".json":
            path.write_bytes(in_format_1(json.loads(path.read_text())))
        elif path.suffix not in (".csv", ".parquet"):
            path.unlink()
    table.folder.learn()
    return table


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Table:
    return old_table(tmp_path_factory.mktemp("old") / "data")


def test_parts_of_format_1_answer(old):
    with Server(old.folder.path, *FLAGS) as server:
        assert server.parts_count_at_start == 5
        for _again in range(2):
            for question in damage.QUESTIONS:
                assert question.ask(server) == old.answers[question.name], question.name
        wait_until(lambda: all(receipt["format"] > 1 for receipt in server.parts()), "checksums are written down")
        damage.check_alive(server)
    with Server(old.folder.path, *FLAGS) as server:
        for question in damage.QUESTIONS:
            assert question.ask(server) == old.answers[question.name], question.name
    old.folder.restore()


def test_parts_of_format_1_are_verified_at_first_use_after_a_start(old):
    flips = random_flips(random.Random(SEED + 6), old, FLIPS_OLD_FORMAT // 2, kinds=("csv", "parquet"))
    found = damage.Tally()
    damage_and_restart(old, flips, found)
    check(found, FLIPS_OLD_FORMAT // 4)


def test_parts_of_format_1_are_verified_when_they_were_used_before(old):
    flips = random_flips(random.Random(SEED + 7), old, FLIPS_OLD_FORMAT, kinds=("csv", "parquet"))
    found = damage.Tally()
    damage_running(old, flips, KINDS, found, is_used_before=True)
    check(found, FLIPS_OLD_FORMAT // 4)
