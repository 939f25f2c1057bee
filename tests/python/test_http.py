"""The HTTP surface, driven as the original clients do: ask, poll, fetch. And what it refuses."""

import csv
import io
import json
import os
import re
import select
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from urllib.parse import quote

import pytest
import requests
import table_pb2
import tally_pb2
from conftest import KIB, ROOT, Server, ServerDidNotStart, step_aside, table, tally, wait_until

TASKS = "/api/v1/file-processing/tasks/"
ANSWER_SECONDS_MAX = 60
CLIENT_SECONDS_MAX = 600
LARGE_FILE_BYTES_MIN = 300_000_000
RECEIVING_BYTES_MAX = 64 * 1024 * KIB
JSON_BYTES_MAX = 1024 * KIB
URI_BYTES_MAX = 8 * KIB
CONNECTIONS_MAX = 40
LARGE_BODIES_MAX = 1
LONG_CALLS_MAX = 20
DEFAULT_PORT = 5000
UNKNOWN_TASK = "00000000-0000-4000-8000-000000000000"

QUESTION = "Percent of adults who engage in no leisure-time physical activity"
QUESTIONS = [  # route, what it needs beside the question
    ("states_mean", {}),
    ("state_mean", {"state": "Ohio"}),
    ("best5", {}),
    ("worst5", {}),
    ("global_mean", {}),
    ("diff_from_mean", {}),
    ("state_diff_from_mean", {"state": "Ohio"}),
    ("mean_by_category", {}),
    ("state_mean_by_category", {"state": "Ohio"}),
]
SURVEY_HEADER = "Question,LocationDesc,Data_Value,StratificationCategory1,Stratification1"

PLAYS = (
    b"Song,Date,Number of Plays\n"
    b"Umbrella,2020-01-02,200\n"
    b"Umbrella,2020-01-01,100\n"
    b"In The End,2020-01-01,500\n"
    b"Umbrella,2020-01-01,50\n"
)
PLAYS_SUMMED = (
    "Song,Date,Total Number of Plays for Date\n"
    "In The End,2020-01-01,500\n"
    "Umbrella,2020-01-01,150\n"
    "Umbrella,2020-01-02,200\n"
)


# --- as the original clients do -----------------------------------------------------------------------------


def ask(server: Server, route: str, body, **options) -> requests.Response:
    return requests.post(f"{server.http}/api/{route}", json=body, timeout=ANSWER_SECONDS_MAX, **options)


def get(server: Server, path: str, **options) -> requests.Response:
    return requests.get(server.http + path, timeout=ANSWER_SECONDS_MAX, **options)


def result_of(server: Server, job_id: str) -> dict:
    """Polls until the job has ended."""

    def ended():
        answer = get(server, f"/api/get_results/{job_id}")
        assert answer.status_code == 200, answer.text
        return answer.json() if answer.json()["status"] != "running" else None

    return wait_until(ended, f"the end of {job_id}", ANSWER_SECONDS_MAX)


def answer_of(server: Server, route: str, body: dict):
    accepted = ask(server, route, body)
    assert accepted.status_code == 200, accepted.text
    result = result_of(server, accepted.json()["job_id"])
    assert result["status"] == "done", result
    return result["data"]


def send_file(server: Server, content: bytes, name: str = "plays.csv", query: str = "") -> requests.Response:
    url = server.http + TASKS + query
    return requests.post(url, files={"file": (name, content)}, timeout=ANSWER_SECONDS_MAX)


def start_task(server: Server, content: bytes, query: str = "") -> str:
    """The id of a task that was accepted."""
    accepted = send_file(server, content, query=query)
    assert accepted.status_code == 202, accepted.text
    task = accepted.json()["task"]
    assert task["status"] == "QUEUED"
    assert accepted.json()["next"] == f"{TASKS}{task['id']}/status"
    return task["id"]


def ended_task(server: Server, task_id: str) -> dict:
    """Polls until the task has ended; what its status then says."""

    def ended():
        answer = get(server, f"{TASKS}{task_id}/status")
        assert answer.status_code == 200, answer.text
        return answer.json() if answer.json()["task"]["status"] not in ("QUEUED", "IN_PROGRESS") else None

    return wait_until(ended, f"the end of task {task_id}", ANSWER_SECONDS_MAX)


def completed_task(server: Server, content: bytes, query: str = "") -> str:
    task_id = start_task(server, content, query)
    status = ended_task(server, task_id)
    assert status == {
        "task": {"id": task_id, "status": "COMPLETED"},
        "next": f"{TASKS}{task_id}/download",
    }
    return task_id


def download(server: Server, task_id: str, **headers) -> requests.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return get(server, f"{TASKS}{task_id}/download", headers=named)


def check_failure(answer: requests.Response, status: int, field: str, word: str) -> None:
    """The error form of the file-processing API."""
    assert answer.status_code == status, answer.text
    failure = answer.json()
    assert sorted(failure) == ["code", "details", "message"]
    assert failure["code"] == answer.reason and failure["message"]
    assert [sorted(detail) for detail in failure["details"]] == [["field", "message"]]
    assert failure["details"][0]["field"] == field
    assert word in failure["details"][0]["message"]


def metrics(server: Server) -> dict:
    """Each sample's value by its name and labels."""
    answer = get(server, "/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")
    samples = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return {sample.rsplit(" ", 1)[0]: float(sample.rsplit(" ", 1)[1]) for sample in samples}


# --- statistics ---------------------------------------------------------------------------------------------


def survey_csv() -> bytes:
    """Seven states, two categories, some values missing; and rows of another question."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["Year", *SURVEY_HEADER.split(",")])
    for row in range(280):
        state = ["Ohio", "Utah", "Iowa", "Texas", "Maine", "Idaho", "O'Hio"][row % 7]
        category = [("Income", "$15,000 - $24,999"), ("Sex", "Female"), ("", "")][row % 3]
        value = "" if row % 11 == 0 else f"{20 + row * 37 % 101 / 10:.1f}"
        rows.writerow([2000 + row % 9, QUESTION if row % 5 else "Another?", state, value, *category])
    return text.getvalue().encode()


SMALLEST_IS_BEST = (
    "Percent of adults aged 18 years and older who have an overweight classification",
    "Percent of adults aged 18 years and older who have obesity",
    "Percent of adults who engage in no leisure-time physical activity",
    "Percent of adults who report consuming fruit less than one time daily",
    "Percent of adults who report consuming vegetables less than one time daily",
)


def survey_oracle(route: str, rows: list, state: str = "", question: str = QUESTION):
    """Means as anybody would compute them."""
    values = [
        (row["LocationDesc"], (row["StratificationCategory1"], row["Stratification1"]), float(row["Data_Value"]))
        for row in rows
        if row["Question"] == question and row["Data_Value"]
    ]

    def mean(wanted) -> float:
        found = [value for place, group, value in values if wanted(place, group)]
        return sum(found) / len(found)

    overall = mean(lambda place, group: True)
    states = {name: mean(lambda place, group: place == name) for name, _, _ in values}
    ascending = dict(sorted(states.items(), key=lambda item: item[1]))
    best_first = list(ascending.items())[:: 1 if question.startswith(SMALLEST_IS_BEST) else -1]
    groups = sorted({(place, *group) for place, group, _ in values if all(group)}, key=str)
    by_group = {key: mean(lambda place, group: (place, *group) == key) for key in groups}
    return {
        "states_mean": lambda: ascending,
        "state_mean": lambda: {state: states[state]},
        "best5": lambda: dict(best_first[:5]),
        "worst5": lambda: dict(best_first[::-1][:5]),
        "global_mean": lambda: {"global_mean": overall},
        "diff_from_mean": lambda: {name: overall - value for name, value in states.items()},
        "state_diff_from_mean": lambda: {state: overall - states[state]},
        "mean_by_category": lambda: {str(key): value for key, value in by_group.items()},
        "state_mean_by_category": lambda: {
            state: {str(key[1:]): value for key, value in by_group.items() if key[0] == state}
        },
    }[route]()


def flat(data: dict) -> dict:
    """Nested answers side by side, so that numbers can be compared with a tolerance."""
    if all(isinstance(value, float) for value in data.values()):
        return data
    return {(outer, inner): value for outer, values in data.items() for inner, value in values.items()}


ORDERED = ("states_mean", "best5", "worst5", "mean_by_category")


def test_answers_are_those_of_an_oracle(server):
    assert table(server).Upload(table_pb2.UploadReq(csv_data=survey_csv())).error == ""
    rows = list(csv.DictReader(io.StringIO(survey_csv().decode())))
    for route, needed in QUESTIONS:
        for state in ("Ohio", "O'Hio") if needed else ("",):
            data = flat(answer_of(server, route, {"question": QUESTION, **({"state": state} if state else {})}))
            expected = flat(survey_oracle(route, rows, state))
            assert data == pytest.approx(expected, abs=1e-9), route
            if route in ORDERED:
                assert list(data) == list(expected), route
    assert list(answer_of(server, "best5", {"question": QUESTION, "best": "max"})) == list(
        survey_oracle("worst5", rows)
    )


def shared(name: str) -> bytes:
    path = ROOT.parent / "shared" / "data" / name
    if not path.exists():
        step_aside(f"{path} is missing")
    return path.read_bytes()


def test_a_real_survey(server):
    content = shared("brfss_sample.csv")
    assert table(server).Upload(table_pb2.UploadReq(csv_data=content)).error == ""
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    questions = sorted({row["Question"] for row in rows if row["Data_Value"]})
    assert len(questions) >= 5
    for question in questions:
        state = next(row["LocationDesc"] for row in rows if row["Question"] == question and row["Data_Value"])
        for route, needed in QUESTIONS:
            place = state if needed else ""
            data = flat(answer_of(server, route, {"question": question, **({"state": place} if place else {})}))
            expected = flat(survey_oracle(route, rows, place, question))
            if route in ("best5", "worst5"):  # where two states are level, either may come
                assert list(data.values()) == pytest.approx(list(expected.values()), abs=1e-9)
                means = survey_oracle("states_mean", rows, "", question)
                expected = {state: means[state] for state in data}
            assert data == pytest.approx(expected, abs=1e-9), (route, question)


def test_parts_that_come_later_count(server):
    def upload(value: str) -> None:
        text = f"{SURVEY_HEADER}\n{QUESTION},Ohio,{value},Sex,Female\n"
        assert table(server).Upload(table_pb2.UploadReq(csv_data=text.encode())).error == ""

    upload("10")
    assert answer_of(server, "global_mean", {"question": QUESTION}) == {"global_mean": 10}
    assert table(server).Upload(table_pb2.UploadReq(csv_data=b"other\n1\n")).error == ""
    upload("20.5")
    assert answer_of(server, "global_mean", {"question": QUESTION}) == {"global_mean": 15.25}


@pytest.mark.parametrize("route, needed", QUESTIONS)
def test_what_does_not_occur_is_a_job_that_says_so(server, route, needed):
    assert table(server).Upload(table_pb2.UploadReq(csv_data=survey_csv())).error == ""
    accepted = ask(server, route, {"question": "Does anybody ask this?", **needed})
    result = result_of(server, accepted.json()["job_id"])
    assert result["status"] == "error" and result["reason"], result
    if needed:
        accepted = ask(server, route, {"question": QUESTION, "state": "Atlantis"})
        result = result_of(server, accepted.json()["job_id"])
        assert result["status"] == "error" and "Atlantis" in result["reason"], result


def test_jobs_are_numbered_and_listed(server):
    assert table(server).Upload(table_pb2.UploadReq(csv_data=survey_csv())).error == ""
    rows = list(csv.DictReader(io.StringIO(survey_csv().decode())))
    assert get(server, "/api/jobs").json() == {"status": "done", "data": []}
    assert get(server, "/api/num_jobs").json() == {"num_jobs": 0}
    for number, (route, needed) in enumerate(QUESTIONS, 1):
        accepted = ask(server, route, {"question": QUESTION, **needed})
        assert (accepted.status_code, accepted.json()) == (200, {"job_id": f"job_id_{number}"})
    for number, (route, needed) in enumerate(QUESTIONS, 1):
        result = result_of(server, f"job_id_{number}")
        assert result == result_of(server, str(number)) and result["status"] == "done"
        expected = flat(survey_oracle(route, rows, **needed))
        assert flat(result["data"]) == pytest.approx(expected, abs=1e-9), route
    assert ask(server, "global_mean", {"question": "Does anybody ask this?"}).json() == {"job_id": "job_id_10"}
    assert result_of(server, "10")["status"] == "error"
    listed = get(server, "/api/jobs").json()
    assert listed["status"] == "done"
    assert listed["data"] == [*({f"job_id_{n}": "done"} for n in range(1, 10)), {"job_id_10": "error"}]
    assert get(server, "/api/jobs/1").json() == {"job_id": "job_id_1", "state": "done"}
    failed = get(server, "/api/jobs/job_id_10").json()
    assert failed == {"job_id": "job_id_10", "state": "failed", "reason": result_of(server, "10")["reason"]}
    wait_until(lambda: get(server, "/api/num_jobs").json() == {"num_jobs": 0}, "no jobs")


@pytest.mark.parametrize(
    "job_id", ["job_id_1", "1", "0", "job_id_0", "-1", "job_id_", "x", "1.0", "%ff", "%00", "9" * 30, UNKNOWN_TASK]
)
def test_unknown_jobs(server, job_id):
    answer = get(server, f"/api/get_results/{job_id}")
    assert (answer.status_code, answer.json()) == (200, {"status": "error", "reason": "Invalid job_id"})


@pytest.mark.parametrize(
    "route, body, word",
    [
        ("states_mean", b"", "no JSON object"),
        ("states_mean", b"{", "EOF"),
        ("states_mean", b"[]", "no JSON object"),
        ("states_mean", b'["question"]', "no JSON object"),
        ("states_mean", b"null", "no JSON object"),
        ("states_mean", b"{}", "question"),
        ("states_mean", b'{"question": 5}', "integer"),
        ("states_mean", b'{"question": null}', "null"),
        ("states_mean", b'{"question": "a", "question": "b"}', "duplicate"),
        ("states_mean", b'{"question": "\xff"}', "body"),
        ("states_mean", b'{"question": "a"} x', "trailing"),
        ("states_mean", b'{"question":' + b"[" * 10_000, "invalid type"),
        ("states_mean", b'{"question": "a", "x":' + b"[" * 10_000, "EOF"),
        ("state_mean", b'{"question": "a"}', "state"),
        ("state_mean", b'{"question": "a", "state": ["Ohio"]}', "sequence"),
        ("state_mean", b'{"question": "a", "state": "' + b"x" * 5000 + b'"}', "4096 characters"),
        ("best5", b'{"question": "a", "best": "most"}', "most"),
        ("best5", b'{"question": "a", "best": "' + b"x" * 10_000 + b'"}', "unknown variant"),
    ],
)
def test_wrong_questions_say_what_is_wrong(server, route, body, word):
    answer = requests.post(f"{server.http}/api/{route}", data=body, timeout=ANSWER_SECONDS_MAX)
    assert answer.status_code == 400, answer.text
    refusal = answer.json()
    assert sorted(refusal) == ["reason", "status"] and refusal["status"] == "error"
    assert word in refusal["reason"] and len(refusal["reason"]) < KIB
    assert get(server, "/api/jobs").json()["data"] == []


def test_what_else_a_question_holds_is_ignored(server):
    """Other fields, whatever their type; and the content type."""
    extra = {"question": QUESTION, "state": 5, "best": [1], "unit": {"a": None}}
    assert ask(server, "states_mean", extra).status_code == 200
    assert ask(server, "best5", {"question": QUESTION, "best": None}).status_code == 200
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8"):
        answer = requests.post(
            f"{server.http}/api/states_mean",
            data=b'\r\n {"question": "a"} ',
            headers={"Content-Type": content_type},
            timeout=ANSWER_SECONDS_MAX,
        )
        assert answer.status_code == 200, answer.text


def test_after_a_graceful_shutdown_nothing_new_is_taken(server):
    assert table(server).Upload(table_pb2.UploadReq(csv_data=survey_csv())).error == ""
    job_id = ask(server, "global_mean", {"question": QUESTION}).json()["job_id"]
    task_id = start_task(server, PLAYS)
    assert get(server, "/api/graceful_shutdown").json()["status"] in ("running", "done")
    for route, needed in QUESTIONS:
        refused = ask(server, route, {"question": QUESTION, **needed})
        assert (refused.status_code, refused.json()) == (405, {"status": "error", "reason": "shutting down"})
    check_failure(send_file(server, PLAYS), 503, "file", "shutting down")
    # Whatever the body says: it is not judged.
    refused = requests.post(f"{server.http}/api/states_mean", data=b"[", timeout=ANSWER_SECONDS_MAX)
    assert (refused.status_code, refused.json()["reason"]) == (405, "shutting down")
    refused = send_file(server, PLAYS, name="a.txt", query="?group_by=")
    check_failure(refused, 503, "file", "shutting down")
    assert refused.headers["Retry-After"] == "1"
    # What was accepted is finished and can be fetched.
    wait_until(lambda: get(server, "/api/num_jobs").json() == {"num_jobs": 0}, "no jobs")
    assert get(server, "/api/graceful_shutdown").json() == {"status": "done"}
    rows = list(csv.DictReader(io.StringIO(survey_csv().decode())))
    expected = pytest.approx(survey_oracle("global_mean", rows), abs=1e-9)
    assert result_of(server, job_id) == {"status": "done", "data": expected}
    assert ended_task(server, task_id)["task"]["status"] == "COMPLETED"
    assert download(server, task_id).text == PLAYS_SUMMED
    assert get(server, "/readyz").status_code == 200  # uploads and sums go on


def test_a_statistic_can_be_cancelled(server):
    rows = "".join(f"{QUESTION},State {row % 50},{row % 100},Sex,Female\n" for row in range(200_000))
    assert table(server).Upload(table_pb2.UploadReq(csv_data=f"{SURVEY_HEADER}\n{rows}".encode())).error == ""

    def cancel(job_id: str) -> requests.Response:
        return requests.delete(f"{server.http}/api/jobs/{job_id}", timeout=ANSWER_SECONDS_MAX)

    def cancelled():
        job_id = ask(server, "states_mean", {"question": QUESTION}).json()["job_id"]
        answer = cancel(job_id)
        if answer.status_code == 409:  # it was faster
            assert answer.json() == {"status": "error", "reason": "the job has ended already"}
            return None
        assert (answer.status_code, answer.json()) == (200, {"status": "done"})
        return job_id

    for prefix in ("", "job_id_"):
        job_id = wait_until(cancelled, "one in time").removeprefix(prefix)
        result = result_of(server, job_id)
        assert result["status"] == "error" and "cancelled" in result["reason"]
        assert get(server, f"/api/jobs/{job_id}").json()["state"] == "failed"
        assert cancel(job_id).status_code == 409
    for unknown in ("0", "job_id_999", "x", "%ff", UNKNOWN_TASK):
        for answer in (cancel(unknown), get(server, f"/api/jobs/{unknown}")):
            assert (answer.status_code, answer.json()) == (404, {"status": "error", "reason": "Invalid job_id"})
    wait_until(lambda: get(server, "/api/num_jobs").json() == {"num_jobs": 0}, "no jobs")


def test_a_full_queue_says_when_to_come_again(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--jobs-max", "1")
    content = PLAYS + b"Umbrella,2020-01-01,1\n" * 10_000
    with connect(server) as client:  # a task has its place before its file has come
        client.sendall(head_of_form(server, len(content)) + content[:-10])
        wait_until(lambda: metrics(server)["tally_received_bytes_total"] > 0, "some of the file")
        refused = ask(server, "states_mean", {"question": QUESTION})
        assert refused.status_code == 429 and refused.headers["Retry-After"] == "1"
        assert refused.json()["status"] == "error" and "1 jobs" in refused.json()["reason"]
        refused = send_file(server, PLAYS)
        check_failure(refused, 429, "file", "1 jobs")
        assert refused.headers["Retry-After"] == "1"
        client.sendall(content[-10:] + END_OF_FORM)
        assert client.recv(KIB).startswith(b"HTTP/1.1 202 ")
    wait_until(lambda: send_file(server, PLAYS).status_code == 202, "a place")


# --- file processing ----------------------------------------------------------------------------------------


def test_a_file_comes_back_summed(server):
    task_id = completed_task(server, PLAYS)
    answer = download(server, task_id)
    assert (answer.status_code, answer.text) == (200, PLAYS_SUMMED)
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert answer.headers["Content-Disposition"] == "attachment; filename=results.csv"
    assert answer.headers["Content-Length"] == str(len(PLAYS_SUMMED))
    expected = {"task": {"id": task_id, "status": "DOWNLOADED"}}
    wait_until(lambda: get(server, f"{TASKS}{task_id}/status").json() == expected, "DOWNLOADED")


def test_a_downloaded_task_is_cleaned_up(server):
    task_id = completed_task(server, PLAYS)
    assert download(server, task_id).text == PLAYS_SUMMED
    wait_until(lambda: download(server, task_id).status_code == 404, "its removal", ANSWER_SECONDS_MAX)
    check_failure(download(server, task_id), 404, "task_id", "gone")
    assert get(server, f"{TASKS}{task_id}/status").json() == {"task": {"id": task_id, "status": "DOWNLOADED"}}


def test_real_plays(server):
    """Mixed row ends, quoted commas: 28,028 groups, as a naive sum has them."""
    content = shared("plays_100k.csv")
    totals = {}
    for row in csv.DictReader(io.StringIO(content.decode(), newline="")):
        key = (row["Song"].encode(), row["Date"].encode())
        totals[key] = totals.get(key, 0) + int(row["Number of Plays"])
    assert len(totals) == 28_028
    answer = download(server, completed_task(server, content))
    header, *rows = csv.reader(io.StringIO(answer.text, newline=""))
    assert header == ["Song", "Date", "Total Number of Plays for Date"]
    assert [(song.encode(), date.encode(), int(total)) for song, date, total in rows] == [
        (*key, total) for key, total in sorted(totals.items())
    ]


def test_a_large_file_is_never_in_memory(server):
    """As long as this one takes, a file of any size takes the same."""
    block = b"".join(b"song %d,2020-01-01,1\n" % (row % 1000) for row in range(50_000))
    blocks = 300
    assert len(block) * blocks > LARGE_FILE_BYTES_MIN
    part = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
    most = [0]

    def form():
        yield part + b"Song,Date,Number of Plays\n"
        for _ in range(blocks):
            yield block
            most[0] = max(most[0], server.anonymous_bytes())
        yield END_OF_FORM

    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    accepted = requests.post(server.http + TASKS, data=form(), headers=headers, timeout=CLIENT_SECONDS_MAX)
    assert accepted.status_code == 202, accepted.text
    assert most[0] < RECEIVING_BYTES_MAX, most
    task_id = accepted.json()["task"]["id"]

    def progress():
        return get(server, f"{TASKS}{task_id}/status").json()["task"].get("progress")

    first = wait_until(progress, "its turn")
    assert first["total"] == len(b"Song,Date,Number of Plays\n") + blocks * len(block)
    assert 0 <= first["done"] <= first["total"]
    assert ended_task(server, task_id)["task"]["status"] == "COMPLETED"
    _, *rows = download(server, task_id).text.splitlines()
    assert len(rows) == 1000 and all(row.endswith(f",{50 * blocks}") for row in rows)


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_slash_at_the_end_does_not_matter(server, slash):
    url = server.http + TASKS.rstrip("/") + slash
    accepted = requests.post(url, files={"file": ("a.csv", PLAYS)}, timeout=ANSWER_SECONDS_MAX)
    assert accepted.status_code == 202
    task = f"{TASKS}{accepted.json()['task']['id']}"
    ended_task(server, accepted.json()["task"]["id"])
    assert get(server, f"{task}/status{slash}").status_code == 200
    assert get(server, f"{task}/download{slash}").text == PLAYS_SUMMED
    answer = requests.delete(server.http + task + slash, timeout=ANSWER_SECONDS_MAX)
    check_failure(answer, 409, "task_id", "ended")


def test_any_columns(server):
    content = b"a,b,n,m\nx,1,1,10\ny,1,2,20\nx,2,3,30\n"
    task_id = completed_task(server, content, "?group_by=a&sum=n,m")
    assert download(server, task_id).text == "a,n,m\nx,4,40\ny,2,20\n"
    task_id = completed_task(server, content, "?group_by=b,a&sum=m")
    assert download(server, task_id).text == "b,a,m\n1,x,10\n1,y,20\n2,x,30\n"
    task_id = completed_task(server, PLAYS, "?group_by=Song,Date&sum=" + quote("Number of Plays"))
    assert download(server, task_id).text == PLAYS_SUMMED


def test_names_with_commas_and_quotes_are_one_csv_record(server):
    content = b'"a,""b""",n\nx,1\nx,2\n"y,z",3\n'
    task_id = completed_task(server, content, "?group_by=" + quote('"a,""b"""') + "&sum=n")
    assert download(server, task_id).text == '"a,""b""",n\nx,3\n"y,z",3\n'


@pytest.mark.parametrize(
    "query, field",
    [
        ("?group_by=", "group_by"),
        ("?sum=", "sum"),
        ("?sum=a%0Ab", "sum"),
        ("?group_by=a&group_by=b", "query"),
        ("?group_by=a&sum=a", "group_by"),
    ],
)
def test_wrong_groupings(server, query, field):
    check_failure(send_file(server, PLAYS, query=query), 400, field, "")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"Song,Number of Plays\na,1\n", ["Date"]),
        (b"Song,Date,Number of Plays\na,b,1\nc,d,x\n", ["row 2", "Number of Plays"]),
        (b"Song,Date,Number of Plays\na,b,1.5\n", ["row 1", "Number of Plays"]),
        (b"Song,Date,Number of Plays\na,b\n", ["row 1"]),
        (b"Song,Date,Number of Plays\na,b,9223372036854775807\na,b,1\n", ["64 bits"]),
        (b"", ["header"]),
    ],
    ids=["lacks a column", "no integer", "a fraction", "ragged", "overflow", "empty"],
)
def test_files_that_cannot_be_summed_say_where(server, content, words):
    task_id = start_task(server, content)
    status = ended_task(server, task_id)
    assert sorted(status) == ["task"]  # nothing is next
    assert (status["task"]["id"], status["task"]["status"]) == (task_id, "FAILED")
    assert list(status["task"]["errors"]) == ["file"]
    for word in words:
        assert word in status["task"]["errors"]["file"][0]
    answer = download(server, task_id)
    assert (answer.status_code, answer.json()) == (206, status)


@pytest.mark.parametrize(
    "files, word",
    [
        ({}, "No file part"),
        ({"other": ("a.csv", PLAYS)}, "No file part"),
        ({"file": (None, PLAYS)}, "No file part"),
        ({"file": ("", PLAYS)}, "No file"),
        ({"file": ("a.txt", PLAYS)}, '"txt" is not supported'),
        ({"file": ("a.csv.gz", PLAYS)}, '"gz" is not supported'),
        ({"file": ("csv", PLAYS)}, "no extension"),
        ({"file": ("a.csv ", PLAYS)}, "not supported"),
    ],
)
def test_requests_without_a_csv_file(server, files, word):
    answer = requests.post(server.http + TASKS, files=files, timeout=ANSWER_SECONDS_MAX)
    check_failure(answer, 400, "file", word)
    assert get(server, "/api/num_jobs").json() == {"num_jobs": 0}


def test_the_extension_may_be_in_capitals_and_other_fields_are_skipped(server):
    fields = [("note", (None, "x" * KIB)), ("file", ("A.B.CSV", PLAYS)), ("file", ("second.txt", b"ignored"))]
    accepted = requests.post(server.http + TASKS, files=fields, timeout=ANSWER_SECONDS_MAX)
    assert accepted.status_code == 202, accepted.text
    task_id = accepted.json()["task"]["id"]
    ended_task(server, task_id)
    assert download(server, task_id).text == PLAYS_SUMMED


def test_a_large_file_with_the_wrong_name_gets_its_answer(server):
    check_failure(send_file(server, b"x" * (3 * 1024 * KIB), "a.txt"), 400, "file", "txt")


@pytest.mark.parametrize("task_id", [UNKNOWN_TASK, "x", "1", "%ff", "..%2f..", UNKNOWN_TASK + "0"])
def test_unknown_tasks(server, task_id):
    for step in ("/status", "/download"):
        check_failure(get(server, f"{TASKS}{task_id}{step}"), 404, "task_id", "no such task")
    answer = requests.delete(f"{server.http}{TASKS}{task_id}", timeout=ANSWER_SECONDS_MAX)
    check_failure(answer, 404, "task_id", "no such task")


def head_of_form(server: Server, content_bytes: int) -> bytes:
    """What a client sends before a file of that size, whose form would end with END_OF_FORM."""
    part = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
    body_bytes = len(part) + content_bytes + len(END_OF_FORM)
    head = (
        f"POST {TASKS} HTTP/1.1\r\nHost: {server.http_addresses[0]}\r\n"
        f"Content-Type: multipart/form-data; boundary=B\r\nContent-Length: {body_bytes}\r\n\r\n"
    )
    return head.encode() + part


END_OF_FORM = b"\r\n--B--\r\n"


def connect(server: Server) -> socket.socket:
    host, port = server.http_addresses[0].rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS_MAX)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    answer = b""
    while True:
        try:
            piece = connection.recv(64 * KIB)
        except ConnectionResetError:
            return answer
        if not piece:
            return answer
        answer += piece


def test_a_file_that_is_broken_off_leaves_nothing(server):
    for cut in (10, len(PLAYS)):  # within the file, and before the form's end
        with connect(server) as client:
            client.sendall(head_of_form(server, len(PLAYS)) + PLAYS[:cut])
            client.shutdown(socket.SHUT_WR)
            answer = read_all(client)
            assert b"202" not in answer.split(b"\r\n")[0]
    wait_until(lambda: server.leftovers() == [], "an empty tmp/")
    states = {name: value for name, value in metrics(server).items() if name.startswith("tally_jobs")}
    assert len(states) == 5 and set(states.values()) == {0}


def test_a_file_that_stops_coming_is_given_up(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--upload-idle-s", "1")
    with connect(server) as client:
        client.sendall(head_of_form(server, len(PLAYS)) + PLAYS[:10])
        assert read_all(client).startswith(b"HTTP/1.1 408 ")
    wait_until(lambda: server.leftovers() == [], "an empty tmp/")
    with connect(server) as client:
        client.sendall(b"POST /api/states_mean HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert read_all(client).startswith(b"HTTP/1.1 408 ")


def test_an_endless_file_is_bounded(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--upload-bytes-max", "100")
    answer = send_file(server, PLAYS * 100)
    assert answer.status_code == 400 and "more than 100 bytes" in answer.text
    assert start_task(server, PLAYS[:100])


# --- downloads ----------------------------------------------------------------------------------------------


def test_ranges_and_heads_are_no_downloads(server):
    task_id = completed_task(server, PLAYS)
    whole, size = PLAYS_SUMMED, len(PLAYS_SUMMED)
    head = requests.head(f"{server.http}{TASKS}{task_id}/download", timeout=ANSWER_SECONDS_MAX)
    assert (head.status_code, head.headers["Content-Length"], head.content) == (200, str(size), b"")
    assert head.headers["Accept-Ranges"] == "bytes"
    for asked, first, last in [
        ("bytes=0-3", 0, 3),
        ("bytes=5-", 5, size - 1),
        ("bytes=-7", size - 7, size - 1),
        (f"bytes={size - 1}-{size + 99}", size - 1, size - 1),
        ("bytes=0-", 0, size - 1),
    ]:
        answer = download(server, task_id, Range=asked)
        assert (answer.status_code, answer.text) == (206, whole[first : last + 1]), asked
        assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{size}"
        assert answer.headers["Content-Length"] == str(last + 1 - first)
    for asked in (f"bytes={size}-", f"bytes={size + 5}-{size + 9}", "bytes=-0"):
        answer = download(server, task_id, Range=asked)
        check_failure(answer, 416, "Range", str(size))
        assert answer.headers["Content-Range"] == f"bytes */{size}"
    tag = head.headers["ETag"]
    assert download(server, task_id, Range="bytes=0-3", If_Range=tag).status_code == 206
    # Through all of this it stayed what it was.
    assert get(server, f"{TASKS}{task_id}/status").json()["task"]["status"] == "COMPLETED"
    # What is no single range is answered with the whole, which is a download.
    answer = download(server, task_id, Range="bytes=0-1,3-4")
    assert (answer.status_code, answer.text) == (200, whole)


def test_a_range_of_another_file_is_the_whole(server):
    task_id = completed_task(server, PLAYS)
    answer = download(server, task_id, Range="bytes=0-3", If_Range='"another"')
    assert (answer.status_code, answer.text) == (200, PLAYS_SUMMED)


def test_a_download_that_is_broken_off_can_be_taken_up(server):
    """The result is larger than what fits on the way between the two programs."""
    rows = "".join(f"song {row:07},2020-01-01,{row}\n" for row in range(600_000))
    task_id = completed_task(server, b"Song,Date,Number of Plays\n" + rows.encode())
    with connect(server) as client:
        head = f"GET {TASKS}{task_id}/download HTTP/1.1\r\nHost: localhost\r\n\r\n"
        client.sendall(head.encode())
        got = client.recv(64 * KIB)
        assert got.startswith(b"HTTP/1.1 200 OK\r\n")
    # Its connection is gone when the server has written that it broke; until then nothing may have changed.
    for _ in range(20):
        assert get(server, f"{TASKS}{task_id}/status").json()["task"]["status"] == "COMPLETED"
    rest = download(server, task_id, Range="bytes=1000-")
    assert rest.status_code == 206
    assert rest.text == ("Song,Date,Total Number of Plays for Date\n" + rows)[1000:]
    assert get(server, f"{TASKS}{task_id}/status").json()["task"]["status"] == "COMPLETED"
    assert download(server, task_id).text.endswith(rows[-1000:])
    wait_until(
        lambda: get(server, f"{TASKS}{task_id}/status").json()["task"]["status"] == "DOWNLOADED", "DOWNLOADED"
    )


# --- who may ask --------------------------------------------------------------------------------------------

CHANGING = [
    ("POST", "/api/states_mean"),
    ("POST", TASKS),
    ("DELETE", f"{TASKS}{UNKNOWN_TASK}"),
    ("DELETE", "/api/jobs/1"),
    ("GET", f"{TASKS}{UNKNOWN_TASK}/download"),
    ("GET", f"{TASKS}{UNKNOWN_TASK}/download/"),
    ("GET", "/api/graceful_shutdown"),
    ("HEAD", "/api/graceful_shutdown"),
]
FOREIGN = [
    {"Host": "evil.example"},
    {"Host": "evil.example:5000"},
    {"Host": "localhost.evil.example"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize("method, path", CHANGING)
def test_foreign_pages_change_nothing(server, method, path, headers):
    answer = requests.request(method, server.http + path, headers=headers, timeout=ANSWER_SECONDS_MAX)
    assert answer.status_code == 403, answer.text
    if path == TASKS:
        check_failure(answer, 403, "request", "")
    assert ask(server, "states_mean", {"question": QUESTION}).status_code == 200


def test_local_pages_and_reading_are_allowed(server):
    port = server.http.rsplit(":", 1)[1]
    for headers in (
        {"Host": "localhost"},
        {"Host": f"127.0.0.1:{port}", "Origin": f"http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"},
        {"Host": "[::1]:1", "Origin": "http://localhost:3000"},
    ):
        assert ask(server, "states_mean", {"question": QUESTION}, headers=headers).status_code == 200
    answer = get(server, "/api/jobs", headers={"Host": "evil.example", "Origin": "http://evil.example"})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def own_address() -> str:
    """An address of this machine that is not loopback. Nothing is sent: UDP only looks up the route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            step_aside("this machine has no address but loopback")
        return probe.getsockname()[0]


@pytest.mark.parametrize("way", ["flag", "environment"])
def test_others_shut_down_with_the_token_only(start_server, tmp_path, way):
    address = own_address()
    (tmp_path / "token").write_text("s3cret\n")
    if way == "flag":
        options = ["--http", "0.0.0.0:0", "--admin-token-file", tmp_path / "token"]
        server = start_server(tmp_path / "data", *options)
    else:
        environment = {"TALLY_HTTP": "0.0.0.0:0", "TALLY_ADMIN_TOKEN_FILE": str(tmp_path / "token")}
        server = start_server(tmp_path / "data", env=environment)
    outside = f"http://{address}:{server.http.rsplit(':', 1)[1]}"

    def shut_down(**headers) -> int:
        url = outside + "/api/graceful_shutdown"
        return requests.get(url, headers=headers, timeout=ANSWER_SECONDS_MAX).status_code

    body = {"question": QUESTION}
    for headers in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "s3cret"}):
        assert shut_down(**headers) == 403
    assert requests.post(outside + "/api/states_mean", json=body, timeout=ANSWER_SECONDS_MAX).status_code == 200
    assert shut_down(Authorization="Bearer s3cret") == 200
    assert requests.post(outside + "/api/states_mean", json=body, timeout=ANSWER_SECONDS_MAX).status_code == 405


def test_a_proxy_on_this_machine_is_not_this_machine(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--http", "0.0.0.0:0")
    url = f"http://127.0.0.1:{server.http.rsplit(':', 1)[1]}/api/graceful_shutdown"
    for headers in (
        {"X-Forwarded-For": "192.0.2.1"},
        {"Forwarded": "for=192.0.2.1"},
        {"Via": "1.1 proxy"},
        {"Host": "evil.example"},  # made to point here
        {"Origin": "http://evil.example"},
    ):
        assert requests.get(url, headers=headers, timeout=ANSWER_SECONDS_MAX).status_code == 403, headers
    assert requests.get(url, timeout=ANSWER_SECONDS_MAX).status_code == 200


def test_a_token_is_asked_for_on_this_machine_too(start_server, tmp_path):
    (tmp_path / "token").write_text("s3cret\n")
    server = start_server(tmp_path / "data", "--admin-token-file", tmp_path / "token")
    assert get(server, "/api/graceful_shutdown").status_code == 403
    assert get(server, "/api/graceful_shutdown", headers={"Authorization": "Bearer s3cret"}).status_code == 200


@pytest.mark.parametrize("content", ["", "\n", "two words\n", "x" * 2000, None])
def test_a_file_without_a_token_is_no_start(start_server, tmp_path, content):
    if content is not None:
        (tmp_path / "token").write_text(content)
    with pytest.raises(ServerDidNotStart) as failure:
        start_server(tmp_path / "data", "--admin-token-file", tmp_path / "token")
    assert failure.value.exit_code == 1 and str(tmp_path / "token") in failure.value.stderr


# --- bounds -------------------------------------------------------------------------------------------------


def test_json_bodies_are_bounded(server):
    fits = {"question": "x", "padding": "y" * (JSON_BYTES_MAX - 100)}
    assert ask(server, "states_mean", fits).status_code == 200
    too_large = {"question": "x", "padding": "y" * JSON_BYTES_MAX}
    answer = ask(server, "states_mean", too_large)
    assert answer.status_code == 413 and answer.json()["status"] == "error"

    def chunks():
        yield b'{"question": "'
        for _ in range(32):
            yield b"z" * (64 * KIB)

    answer = requests.post(f"{server.http}/api/states_mean", data=chunks(), timeout=ANSWER_SECONDS_MAX)
    assert answer.status_code == 413


def test_few_large_json_bodies_at_once(server):
    head = f"POST /api/states_mean HTTP/1.1\r\nHost: localhost\r\nContent-Length: {100 * KIB}\r\n\r\n"
    large = {"question": "x", "padding": "y" * (100 * KIB)}
    with ExitStack() as held:

        def hold_one_more() -> None:
            client = held.enter_context(connect(server))
            client.sendall(head.encode() + b"{" + b" " * (50 * KIB))

        def is_full() -> bool:
            if ask(server, "states_mean", large).status_code == 429:
                return True
            hold_one_more()  # the question itself may have had the place of one that came just before it
            return False

        for _ in range(LARGE_BODIES_MAX - 1):
            hold_one_more()
        assert ask(server, "states_mean", large).status_code == 200
        wait_until(is_full, "all places are taken")
        assert ask(server, "states_mean", large).headers["Retry-After"] == "1"
        assert ask(server, "states_mean", {"question": "x"}).status_code == 200
    wait_until(lambda: ask(server, "states_mean", large).status_code == 200, "the places are free again")


def test_heads_are_bounded(server):
    def first_line(head: str) -> str:
        with connect(server) as client:
            client.sendall(head.encode())
            client.settimeout(ANSWER_SECONDS_MAX)
            return read_line(client)

    def read_line(client: socket.socket) -> str:
        line = b""
        while not line.endswith(b"\r\n"):
            piece = client.recv(1)
            if not piece:
                break
            line += piece
        return line.decode()

    long_target = "x" * (URI_BYTES_MAX + 1)
    assert "414" in first_line(f"GET /{long_target} HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert "404" in first_line(f"GET /{long_target[:-10]} HTTP/1.1\r\nHost: localhost\r\n\r\n")
    many = "".join(f"X-{number}: 1\r\n" for number in range(100))
    assert "431" in first_line(f"GET /livez HTTP/1.1\r\nHost: localhost\r\n{many}\r\n")
    assert "431" in first_line(f"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: {'x' * (200 * KIB)}\r\n\r\n")
    assert get(server, "/livez").status_code == 200


def test_silent_connections_make_room(server):
    """More than are served at once, and none of them ends a request's head."""
    with ExitStack() as silent:
        for number in range(CONNECTIONS_MAX + 8):
            client = silent.enter_context(connect(server))
            if number % 2:
                client.sendall(b"GET /livez HTTP/1.1\r\nHost: local")
        assert get(server, "/livez").status_code == 200


def test_clients_that_keep_their_connections_make_room(server):
    """As many as are served at once ask again and again, each on one connection; others get through all the same."""
    stop = threading.Event()
    connected = []

    def poll() -> None:
        with requests.Session() as session:
            while not stop.is_set():
                assert session.get(server.http + "/api/num_jobs", timeout=ANSWER_SECONDS_MAX).status_code == 200
                connected.append(1)

    with ThreadPoolExecutor(CONNECTIONS_MAX) as pool:
        polls = [pool.submit(poll) for _ in range(CONNECTIONS_MAX)]
        try:
            wait_until(lambda: len(connected) > 10 * CONNECTIONS_MAX, "polls", ANSWER_SECONDS_MAX)
            for _ in range(20):
                assert get(server, "/livez").status_code == 200
        finally:
            stop.set()
        for poll in polls:
            poll.result(CLIENT_SECONDS_MAX)


def is_busy(answer: requests.Response) -> bool:
    return answer.status_code == 429 and "limit" in answer.text and answer.headers["Retry-After"] == "1"


def test_open_forms_leave_room_for_short_calls(server):
    """Forms that move: those that do not make room for others."""
    with ExitStack() as held:
        clients, stop = [], threading.Event()

        def go_on() -> None:
            while not stop.wait(0.1):
                for client in list(clients):
                    client.sendall(b"x" * KIB)

        thread = threading.Thread(target=go_on)
        thread.start()

        def is_full() -> bool:
            if is_busy(send_file(server, PLAYS)):
                return True
            client = held.enter_context(connect(server))
            client.sendall(head_of_form(server, 100 * 1024 * KIB) + PLAYS)
            clients.append(client)
            return False

        try:
            wait_until(is_full, "all places for long calls are taken")
            assert LONG_CALLS_MAX <= len(clients) < CONNECTIONS_MAX
            for _ in range(20):
                assert get(server, "/livez").status_code == 200
                assert ask(server, "states_mean", {"question": QUESTION}).status_code == 200
        finally:
            stop.set()
            thread.join()
    wait_until(lambda: send_file(server, PLAYS).status_code == 202, "the places are free again")


def test_slow_questions_leave_room_for_short_calls(server):
    with ExitStack() as held:
        for _ in range(CONNECTIONS_MAX):
            client = held.enter_context(connect(server))
            client.sendall(b"POST /api/states_mean HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
        for _ in range(20):
            assert get(server, "/livez").status_code == 200


def test_open_downloads_leave_room_for_short_calls(server):
    rows = "".join(f"song {row:07},2020-01-01,{row}\n" for row in range(600_000))
    task_id = completed_task(server, b"Song,Date,Number of Plays\n" + rows.encode())
    with ExitStack() as held:
        head = f"GET {TASKS}{task_id}/download HTTP/1.1\r\nHost: localhost\r\n\r\n"

        for _ in range(LONG_CALLS_MAX):
            client = held.enter_context(connect(server))
            client.sendall(head.encode())
            assert client.recv(12) == b"HTTP/1.1 200"
        for _ in range(20):
            assert get(server, "/livez").status_code == 200
        # One that does not read makes room for one that does.
        assert download(server, task_id).status_code == 200
    wait_until(lambda: download(server, task_id).status_code == 200, "the places are free again")


@pytest.mark.parametrize("what", ["question", "form"])
def test_bodies_that_trickle_are_given_up(start_server, tmp_path, what):
    """Never silent for long, and never at their end."""
    server = start_server(tmp_path / "data", "--upload-idle-s", "2")
    with connect(server) as client:
        if what == "form":
            client.sendall(head_of_form(server, 1000 * KIB))
        else:
            client.sendall(b"POST /api/states_mean HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n{")

        def is_answered() -> bool:
            client.sendall(b" ")
            return bool(select.select([client], [], [], 0.1)[0])

        wait_until(is_answered, "an answer")
        assert client.recv(KIB).startswith(b"HTTP/1.1 408 ")
    wait_until(lambda: server.leftovers() == [], "an empty tmp/")


def test_what_comes_after_a_file_is_not_kept(server):
    """The head of a part that does not end: its parser would keep it until it does."""
    part = b"\r\n--B\r\nX: "
    most = [0]

    def send(_index: int) -> None:
        with connect(server) as client:
            client.sendall(head_of_form(server, 100 * 1024 * KIB) + PLAYS + part)
            try:
                for _ in range(3 * KIB // 64 + 12):
                    client.sendall(b"x" * (64 * KIB))
                    most[0] = max(most[0], server.anonymous_bytes())
            except OSError:
                pass  # it has been answered
            most[0] = max(most[0], server.anonymous_bytes())

    before = server.anonymous_bytes()
    with ThreadPoolExecutor(LONG_CALLS_MAX) as pool:
        list(pool.map(send, range(LONG_CALLS_MAX)))
    assert most[0] - before < RECEIVING_BYTES_MAX, most
    assert get(server, "/livez").status_code == 200


def test_other_paths_and_methods(server):
    for path in ("/", "/api", "/api/", "/api/v1", "/api/nothing", TASKS + "x", "/livez/"):
        assert get(server, path).status_code in (404, 405), path
    answer = requests.put(f"{server.http}/api/jobs", timeout=ANSWER_SECONDS_MAX)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET,HEAD")
    assert answer.json()["status"] == "error"
    check_failure(get(server, "/nothing"), 404, "request", "nothing")


# --- description, probes, metrics ---------------------------------------------------------------------------


def test_the_description_names_every_path(server):
    description = get(server, "/api/v1/openapi.json").json()
    assert description["openapi"].startswith("3.1.")
    expected = {f"/api/{route}" for route, _ in QUESTIONS}
    expected |= {"/api/get_results/{job_id}", "/api/jobs", "/api/jobs/{job_id}", "/api/num_jobs", "/api/graceful_shutdown"}
    expected |= {TASKS, TASKS + "{task_id}", TASKS + "{task_id}/status", TASKS + "{task_id}/download"}
    expected |= {"/livez", "/readyz", "/metrics"}
    assert set(description["paths"]) == expected
    assert all(
        operation["summary"] and operation["responses"]
        for methods in description["paths"].values()
        for operation in methods.values()
    )
    for path, methods in description["paths"].items():
        for operation in methods.values():
            assert {"414", "431"} <= set(operation["responses"]), path
            if "429" in operation["responses"]:
                assert "Retry-After" in operation["responses"]["429"]["headers"], path


def test_the_swagger_page_needs_nothing_from_elsewhere(server):
    page = get(server, "/api/v1/docs/swagger")
    assert page.status_code == 200 and page.url.endswith("/api/v1/docs/swagger/")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy and "http" not in policy
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(assets) >= 5
    for asset in assets:
        assert "//" not in asset
        assert get(server, f"/api/v1/docs/swagger/{asset}").status_code == 200
    assert "<script>" not in page.text  # the policy would not run it
    start = get(server, "/api/v1/docs/swagger/swagger-initializer.js").text
    assert "/api/v1/openapi.json" in start
    assert "//" not in re.sub(r"^ *//.*$", "", start, flags=re.MULTILINE)  # comments aside
    assert '"validatorUrl": "none"' in start  # else it asks a server whether the description is valid


def test_the_metrics_and_their_types(server):
    assert table(server).ColSum(table_pb2.ColSumReq(column="x", format="csv")).total == 0
    assert get(server, "/livez").status_code == 200
    lines = get(server, "/metrics").text.splitlines()
    assert {line.removeprefix("# TYPE tally_") for line in lines if line.startswith("# TYPE ")} == {
        "grpc_calls counter",
        "http_calls counter",
        "received_bytes counter",
        "spilled_bytes counter",
        "log_lines_lost counter",
        "stderr_lines_lost counter",
        "stderr_lines_summed counter",
        "parts gauge",
        "parts_max gauge",
        "parts_quarantined gauge",
        "damaged_files gauge",
        "jobs gauge",
        "slices_waiting gauge",
        "resident_memory_bytes gauge",
        "tokio_tasks gauge",
    }


def test_metrics_count_what_happened(server):
    before = metrics(server)
    assert before["tally_parts"] == 0 and before["tally_received_bytes_total"] == 0
    assert before["tally_resident_memory_bytes"] > 1024 * KIB
    content = b"x,y\n1,2\n"
    assert table(server).Upload(table_pb2.UploadReq(csv_data=content)).error == ""
    assert table(server).ColSum(table_pb2.ColSumReq(column="x", format="csv")).total == 1
    assert len(list(tally(server).ListParts(tally_pb2.ListPartsRequest()))) == 1
    ask(server, "states_mean", {"question": "x"})
    ask(server, "states_mean", {})
    get(server, "/api/get_results/1")
    get(server, "/api/get_results/2")
    get(server, "/made/up/by/a/client")
    requests.request("MADE-UP", server.http + "/livez", timeout=ANSWER_SECONDS_MAX)
    after = metrics(server)
    assert after["tally_parts"] == 1 and after["tally_received_bytes_total"] == len(content)
    for name, count in {
        'tally_grpc_calls_total{method="Table/Upload",code="Ok"}': 1,
        'tally_grpc_calls_total{method="Table/ColSum",code="Ok"}': 1,
        'tally_grpc_calls_total{method="tally.v1.Tally/ListParts",code="Ok"}': 1,
        'tally_http_calls_total{route="/api/states_mean",method="POST",status="200"}': 1,
        'tally_http_calls_total{route="/api/states_mean",method="POST",status="400"}': 1,
        'tally_http_calls_total{route="/api/get_results/{job_id}",method="GET",status="200"}': 2,
        'tally_http_calls_total{route="other",method="GET",status="404"}': 1,
        'tally_http_calls_total{route="/livez",method="other",status="405"}': 1,
        'tally_slices_waiting{lane="upload"}': 0,
        "tally_spilled_bytes_total": 0,
    }.items():
        assert after.get(name) == count, name
    assert sum(value for name, value in after.items() if name.startswith("tally_jobs{")) == 1


def test_probes_see_the_drain(server):
    assert get(server, "/livez").text == "alive\n"
    assert (get(server, "/readyz").status_code, get(server, "/readyz").text) == (200, "ready\n")
    sent, go_on = [b"x\n1\n", b"2\n"], []

    def chunks():
        yield tally_pb2.UploadChunk(data=sent[0])
        wait_until(lambda: go_on, "the end of the drain")
        yield tally_pb2.UploadChunk(data=sent[1])

    upload = tally(server).Upload.future(chunks())
    wait_until(lambda: metrics(server)["tally_received_bytes_total"] == len(sent[0]), "half of an upload")
    os.kill(server.pid, signal.SIGTERM)
    wait_until(lambda: get(server, "/readyz").status_code == 503, "the drain")
    assert get(server, "/livez").status_code == 200
    assert ask(server, "states_mean", {"question": "x"}).status_code == 405
    go_on.append(True)
    assert upload.result(ANSWER_SECONDS_MAX).rows == 2
    assert server.wait() == 0


def test_a_stop_lets_a_download_finish_and_closes_idle_connections(server):
    rows = "".join(f"song {row:07},2020-01-01,{row}\n" for row in range(600_000))
    task_id = completed_task(server, b"Song,Date,Number of Plays\n" + rows.encode())
    with requests.Session() as idle, connect(server) as client:
        assert idle.get(server.http + "/livez", timeout=ANSWER_SECONDS_MAX).status_code == 200
        client.sendall(f"GET {TASKS}{task_id}/download HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        got = client.recv(KIB)
        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: "draining" in server.stderr, "the drain")
        got += read_all(client)
        assert got.endswith(rows[-1000:].encode())
        assert server.wait() == 0


# --- flags --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["flag", "environment"])
def test_http_can_be_turned_off(start_server, tmp_path, way):
    if way == "flag":
        server = start_server(tmp_path / "data", "--http", "none")
    else:
        server = start_server(tmp_path / "data", env={"TALLY_HTTP": "none"})
    assert server.http_addresses == [] and "; http" not in server.ready_line
    assert table(server).Upload(table_pb2.UploadReq(csv_data=b"x\n1\n")).error == ""


def test_several_addresses(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--http", "127.0.0.1:0,127.0.0.2:0", "--http", "127.0.0.3:0")
    assert [address.split(":")[0] for address in server.http_addresses] == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    for address in server.http_addresses:
        assert requests.get(f"http://{address}/livez", timeout=ANSWER_SECONDS_MAX).status_code == 200
        url, asked = f"http://{address}/api/states_mean", {"question": QUESTION}
        assert requests.post(url, json=asked, timeout=ANSWER_SECONDS_MAX).status_code == 200
    with pytest.raises(ServerDidNotStart) as failure:
        start_server(tmp_path / "other", "--http", server.http_addresses[1])
    assert server.http_addresses[1] in failure.value.stderr


def test_by_default_only_this_machine_can_connect(start_server, tmp_path):
    try:
        server = start_server(tmp_path / "data", http_flag=False)
    except ServerDidNotStart as failure:
        if f":{DEFAULT_PORT}" in failure.stderr and "in use" in failure.stderr:
            step_aside(f"port {DEFAULT_PORT} is taken")
        raise
    assert set(server.http_addresses) <= {f"127.0.0.1:{DEFAULT_PORT}", f"[::1]:{DEFAULT_PORT}"}
    with socket.socket() as elsewhere:
        assert elsewhere.connect_ex(("127.0.0.2", DEFAULT_PORT)) != 0


# --- the log file -------------------------------------------------------------------------------------------


def stop_and_read(server: Server, path) -> list:
    server.stop()
    return path.read_text().splitlines()


def test_the_log_file_has_entry_and_exit_of_each_call(start_server, tmp_path):
    path = tmp_path / "logs" / "webserver.log"
    server = start_server(tmp_path / "data", env={"TALLY_LOG_FILE": str(path), "TALLY_LOG": "error"})
    ask(server, "state_mean", {"question": "How\nmany?", "state": "Ohio\x1b[31m"})
    get(server, "/api/get_results/1?x=y")
    lines = stop_and_read(server, path)
    start, peer = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z +http", r" peer=127\.0\.0\.1:\d+"
    asked = r'parameters asked=StateQuestion \{ question: "How\\nmany\?", state: "Ohio\\u\{1b\}\[31m" \}'
    expected = [
        start + r'\{call=1 method="POST" target="/api/state_mean"\}: entry' + peer,
        start + r'\{call=1 method="POST" target="/api/state_mean"\}: ' + asked,
        start + r'\{call=1 method="POST" target="/api/state_mean"\}: exit status=200 ms=\d+' + peer,
        start + r'\{call=2 method="GET" target="/api/get_results/1\?x=y"\}: entry' + peer,
        start + r'\{call=2 method="GET" target="/api/get_results/1\?x=y"\}: exit status=200 ms=\d+' + peer,
    ]
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected):
        assert re.fullmatch(pattern, line), line
    # The time is UTC, and this is when it was.
    logged = time.strptime(lines[0][:19], "%Y-%m-%dT%H:%M:%S")
    now = time.gmtime()
    assert abs(time.mktime(now) - time.mktime(logged)) < ANSWER_SECONDS_MAX

    # A second run goes on where the first one ended.
    server = start_server(tmp_path / "data", "--log-file", path)
    get(server, "/livez")
    after = stop_and_read(server, path)
    assert after[: len(lines)] == lines and len(after) == len(lines) + 2


def test_no_call_forges_or_floods_the_log_file(start_server, tmp_path):
    path = tmp_path / "webserver.log"
    server = start_server(tmp_path / "data", "--log-file", path)
    with connect(server) as client:
        client.sendall(b"GET /a%0aforged\xc3\xa9\x80 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        read_all(client)
    ask(server, "states_mean", {"question": "\r\n2026-01-01 forged \u2028" + "x" * 100_000})
    get(server, "/" + "y" * 8000)
    lines = stop_and_read(server, path)
    assert all("http{call=" in line and len(line) < 4 * KIB and line.isprintable() for line in lines), lines
    assert not any(line.startswith(("forged", "2026-01-01 forged")) for line in lines)


def test_a_client_that_does_not_wait_leaves_an_exit_too(start_server, tmp_path):
    path = tmp_path / "webserver.log"
    server = start_server(tmp_path / "data", "--log-file", path)
    with connect(server) as client:
        client.sendall(b"POST /api/states_mean HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
        wait_until(lambda: "entry" in path.read_text(), "the call's entry")
    wait_until(lambda: "exit" in path.read_text(), "the call's exit")


@pytest.mark.parametrize("way", ["flag", "environment"])
def test_the_log_file_is_rotated(start_server, tmp_path, way):
    path = tmp_path / "webserver.log"
    settings = {"log_file": path, "log_file_bytes_max": 2000, "log_files_kept": 2}
    if way == "flag":
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        server = start_server(tmp_path / "data", *flags)
    else:
        environment = {f"TALLY_{name.upper()}": str(value) for name, value in settings.items()}
        server = start_server(tmp_path / "data", env=environment)
    with requests.Session() as session:
        for _ in range(100):
            assert session.get(server.http + "/livez", timeout=ANSWER_SECONDS_MAX).status_code == 200
    server.stop()
    names = sorted(entry.name for entry in tmp_path.iterdir() if entry.is_file())
    assert names == ["webserver.log", "webserver.log.1", "webserver.log.2"]
    newest_first = [(tmp_path / name).read_text() for name in names]
    assert all(len(text) < 2000 + KIB for text in newest_first)
    calls = [int(call) for text in reversed(newest_first) for call in re.findall(r"call=(\d+) .*entry", text)]
    assert calls == list(range(calls[0], 101))  # none is lost on the way from file to file


def test_a_log_file_on_a_full_disk_costs_lines_and_nothing_else(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--log-file", "/dev/full")
    for _ in range(3):
        assert get(server, "/livez").status_code == 200

    def lost() -> float:
        return metrics(server)["tally_log_lines_lost_total"]

    wait_until(lambda: lost() >= 6, "the lines are counted")
    assert server.stderr.count("--log-file: lines are lost") == 1


def test_a_log_file_that_stalls_stops_nothing(start_server, tmp_path):
    """A pipe that nobody empties, in place of a disk."""
    path = tmp_path / "webserver.log"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        server = start_server(tmp_path / "data", "--log-file", path)
        with requests.Session() as session:
            for _ in range(1500):
                assert session.get(server.http + "/livez", timeout=ANSWER_SECONDS_MAX).status_code == 200
        assert metrics(server)["tally_log_lines_lost_total"] > 0
        assert table(server).Upload(table_pb2.UploadReq(csv_data=b"x\n1\n")).error == ""
    finally:
        os.close(reader)


def test_a_log_file_that_cannot_be_written_is_no_start(start_server, tmp_path):
    with pytest.raises(ServerDidNotStart) as failure:
        start_server(tmp_path / "data", "--log-file", tmp_path)  # a folder
    assert failure.value.exit_code == 1 and str(tmp_path) in failure.value.stderr
