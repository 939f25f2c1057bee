"""Jobs over HTTP: their numbers and lists, cancelling one, a full queue, and the graceful shutdown."""

import csv
import io

import pytest
import requests
import table_pb2
from conftest import KIB, table, wait_until
from http_calls import (
    ANSWER_SECONDS_MAX,
    END_OF_FORM,
    PLAYS,
    PLAYS_SUMMED,
    UNKNOWN_TASK,
    ask,
    check_failure,
    connect,
    download,
    ended_task,
    get,
    head_of_form,
    metrics,
    result_of,
    send_file,
    start_task,
)
from survey_oracle import QUESTION, QUESTIONS, SURVEY_HEADER, flat, survey_csv, survey_oracle


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


def test_a_statistic_can_be_cancelled(server):
    rows = "".join(f"{QUESTION},State {row % 50},{row % 100},Sex,Female\n" for row in range(200_000))
    assert table(server).Upload(table_pb2.UploadReq(csv_data=f"{SURVEY_HEADER}\n{rows}".encode())).error == ""

    def cancel(job_id: str) -> requests.Response:
        return requests.delete(f"{server.http}/api/jobs/{job_id}", timeout=ANSWER_SECONDS_MAX)

    def cancelled():
        job_id = ask(server, "states_mean", {"question": QUESTION}).json()["job_id"]
        answer = cancel(job_id)
        if answer.status_code == 409:  # it ended before it could be cancelled
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
    with connect(server) as client:  # a task counts before its file has been received
        client.sendall(head_of_form(server, len(content)) + content[:-10])
        wait_until(lambda: metrics(server)["tally_received_bytes_total"] > 0, "some of the file")
        refused = ask(server, "states_mean", {"question": QUESTION})
        assert refused.status_code == 429 and refused.headers["Retry-After"] == "1"
        assert refused.json()["status"] == "error" and "1 jobs" in refused.json()["reason"]
        refused = send_file(server, PLAYS)
        check_failure(refused, 429, "request", "1 jobs")
        assert refused.headers["Retry-After"] == "1"
        client.sendall(content[-10:] + END_OF_FORM)
        assert client.recv(KIB).startswith(b"HTTP/1.1 202 ")
    wait_until(lambda: send_file(server, PLAYS).status_code == 202, "a place")


def test_a_head_does_not_shut_down(server):
    answer = requests.head(f"{server.http}/api/graceful_shutdown", timeout=ANSWER_SECONDS_MAX)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, POST")
    task_id = start_task(server, PLAYS)
    ended_task(server, task_id)


def test_after_a_graceful_shutdown_nothing_new_is_taken(server):
    assert table(server).Upload(table_pb2.UploadReq(csv_data=survey_csv())).error == ""
    job_id = ask(server, "global_mean", {"question": QUESTION}).json()["job_id"]
    task_id = start_task(server, PLAYS)
    assert get(server, "/api/graceful_shutdown").json()["status"] in ("running", "done")
    for route, needed in QUESTIONS:
        refused = ask(server, route, {"question": QUESTION, **needed})
        assert (refused.status_code, refused.json()) == (405, {"status": "error", "reason": "shutting down"})
    check_failure(send_file(server, PLAYS), 503, "request", "shutting down")
    # The body is not even parsed.
    refused = requests.post(f"{server.http}/api/states_mean", data=b"[", timeout=ANSWER_SECONDS_MAX)
    assert (refused.status_code, refused.json()["reason"]) == (405, "shutting down")
    refused = send_file(server, PLAYS, name="a.txt", query="?group_by=")
    check_failure(refused, 503, "request", "shutting down")
    assert refused.headers["Retry-After"] == "1"
    # Accepted jobs are finished, and their results can be fetched.
    wait_until(lambda: get(server, "/api/num_jobs").json() == {"num_jobs": 0}, "no jobs")
    assert get(server, "/api/graceful_shutdown").json() == {"status": "done"}
    rows = list(csv.DictReader(io.StringIO(survey_csv().decode())))
    expected = pytest.approx(survey_oracle("global_mean", rows), abs=1e-9)
    assert result_of(server, job_id) == {"status": "done", "data": expected}
    assert ended_task(server, task_id)["task"]["status"] == "COMPLETED"
    assert download(server, task_id).text == PLAYS_SUMMED
    assert get(server, "/readyz").status_code == 200  # uploads and sums still work
