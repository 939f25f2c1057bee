"""Twenty clients at once, each a process that asks every question and sends files, as the test suites of the
original servers do.
"""

import csv
import io
import multiprocessing
import time

import pytest
import requests
import table_pb2
from conftest import table
from http_calls import ANSWER_SECONDS_MAX, PLAYS, PLAYS_SUMMED, TASKS
from survey_oracle import QUESTION, QUESTIONS, flat, survey_csv, survey_oracle

CLIENTS_AT_ONCE = 20
FILES_EACH = 5
CLIENT_SECONDS_MAX = 300


def until_accepted(send) -> requests.Response:
    """Sends until the queue has room; a full queue says when to try again."""
    while True:
        answer = send()
        if answer.status_code != 429:
            return answer
        time.sleep(float(answer.headers["Retry-After"]))  # as the server asks


def poll(url: str, ended) -> dict:
    deadline = time.monotonic() + CLIENT_SECONDS_MAX
    while True:
        answer = requests.get(url, timeout=ANSWER_SECONDS_MAX).json()
        if ended(answer):
            return answer
        assert time.monotonic() < deadline, f"waited in vain for {url}"
        time.sleep(0.05)  # as the original clients do


def whole_suite(url: str) -> dict:
    """Asks every question and sends some files; returns the answers."""
    job_ids = []
    for route, needed in QUESTIONS:
        body = {"question": QUESTION, **needed}
        accepted = until_accepted(
            lambda: requests.post(f"{url}/api/{route}", json=body, timeout=ANSWER_SECONDS_MAX)  # noqa: B023
        )
        assert accepted.status_code == 200, accepted.text
        job_ids.append(accepted.json()["job_id"])
    results = []
    for _ in range(FILES_EACH):
        accepted = until_accepted(
            lambda: requests.post(url + TASKS, files={"file": ("a.csv", PLAYS)}, timeout=ANSWER_SECONDS_MAX)
        )
        assert accepted.status_code == 202, accepted.text
        done = poll(url + accepted.json()["next"], lambda answer: answer["task"]["status"] == "COMPLETED")
        results.append(requests.get(url + done["next"], timeout=ANSWER_SECONDS_MAX).text)
    answers = [
        poll(f"{url}/api/get_results/{job_id}", lambda answer: answer["status"] != "running") for job_id in job_ids
    ]
    return {"job_ids": job_ids, "answers": answers, "results": results}


def test_twenty_clients_at_once(server):
    content = survey_csv()
    assert table(server).Upload(table_pb2.UploadReq(csv_data=content)).error == ""
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    with multiprocessing.get_context("spawn").Pool(CLIENTS_AT_ONCE) as pool:
        suites = pool.map(whole_suite, [server.http] * CLIENTS_AT_ONCE)
    job_ids = [job_id for suite in suites for job_id in suite["job_ids"]]
    assert sorted(job_ids) == sorted(f"job_id_{n}" for n in range(1, len(QUESTIONS) * CLIENTS_AT_ONCE + 1))
    # The table did not change meanwhile, so all clients got the same right answers.
    for answer, (route, needed) in zip(suites[0]["answers"], QUESTIONS):
        assert answer["status"] == "done", answer
        expected = flat(survey_oracle(route, rows, **needed))
        assert flat(answer["data"]) == pytest.approx(expected, abs=1e-9), route
    assert all(suite["answers"] == suites[0]["answers"] for suite in suites)
    assert {result for suite in suites for result in suite["results"]} == {PLAYS_SUMMED}
    assert requests.get(server.http + "/api/num_jobs", timeout=ANSWER_SECONDS_MAX).json() == {"num_jobs": 0}
