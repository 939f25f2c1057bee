"""Jobs and `kill -9`: a job that was accepted before the kill has its result after it."""

import os
import random

import requests
from conftest import INPUTS, wait_until

TASKS = "/api/v1/file-processing/tasks"
SEED = int(os.environ.get("TALLY_TEST_SEED", "1"))
ROUNDS = 8


def plays(numbers: random.Random, rows: int) -> tuple[bytes, bytes]:
    """A file, and its group sums."""
    totals = {}
    lines = ["Song,Date,Number of Plays"]
    for _ in range(rows):
        key = (f"song {numbers.randrange(rows)}", f"2024-01-{numbers.randrange(1, 29):02}")
        count = numbers.randrange(1000)
        totals[key] = totals.get(key, 0) + count
        lines.append(f"{key[0]},{key[1]},{count}")
    result = ["Song,Date,Total Number of Plays for Date"]
    result += [f"{song},{date},{total}" for (song, date), total in sorted(totals.items())]
    return "\n".join(lines).encode(), ("\n".join(result) + "\n").encode()


def submit(server, content: bytes) -> str:
    answer = requests.post(server.http + TASKS + "/", files={"file": ("plays.csv", content)}, timeout=60)
    assert answer.status_code == 202, answer.text
    return answer.json()["task"]["id"]


def status(server, task: str) -> str:
    return requests.get(f"{server.http}{TASKS}/{task}/status", timeout=60).json()["task"]["status"]


def ask(server) -> str:
    question = "Percent of adults aged 18 years and older who have obesity"
    answer = requests.post(server.http + "/api/states_mean", json={"question": question}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["job_id"]


def fetched(server, job: str):
    return requests.get(f"{server.http}/api/get_results/{job}", timeout=60).json()


def test_what_was_accepted_is_answered_after_a_kill(start_server, tmp_path):
    print(f"seed {SEED}")
    numbers = random.Random(SEED)
    server = start_server(tmp_path / "data", "--load", INPUTS / "survey.csv")
    first = ask(server)
    expected_means = wait_until(lambda: fetched(server, first).get("data"), "the first answer")
    tasks, jobs = {}, [first]
    for round_index in range(ROUNDS):
        content, result = plays(numbers, 20_000)
        for _ in range(2):
            tasks[submit(server, content)] = result
        jobs.append(ask(server))
        if round_index % 3 == 2:
            newest = list(tasks)[-2]
            # Killed while one task probably runs and others wait.
            wait_until(lambda task=newest: status(server, task) != "QUEUED", "its turn")
        server.kill()
        server = start_server(tmp_path / "data", "--load", INPUTS / "survey.csv")
        assert server.parts_count_at_start == 1
    for task, result in tasks.items():
        wait_until(lambda task=task: status(server, task) == "COMPLETED", "the task is done", 120)
        answer = requests.get(f"{server.http}{TASKS}/{task}/download", timeout=60)
        assert (answer.status_code, answer.content) == (200, result)
    for job in jobs:
        wait_until(lambda job=job: fetched(server, job)["status"] == "done", "the statistic is done")
        assert list(fetched(server, job)["data"].items()) == list(expected_means.items())
    assert jobs == [f"job_id_{number}" for number in range(1, len(jobs) + 1)]
    server.stop()
    assert list((tmp_path / "data" / "tmp").iterdir()) == []
    assert not list((tmp_path / "data" / "jobs").glob("*.input"))
