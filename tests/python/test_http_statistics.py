"""Statistics over HTTP: the answers, compared with a simple computation, and what is wrong with a question."""

import csv
import io
import os

import pytest
import requests
import table_pb2
from conftest import KIB, ROOT, step_aside, table
from http_calls import ANSWER_SECONDS_MAX, answer_of, ask, get, result_of
from survey_oracle import ORDERED, QUESTION, QUESTIONS, SURVEY_HEADER, flat, survey_csv, survey_oracle


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
            if route in ("best5", "worst5"):  # states with the same mean may come in any order
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
    """Other fields of any type, and any content type."""
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


def test_json_may_begin_with_a_byte_order_mark(server):
    for body in (b'\xef\xbb\xbf{"question": "a"}', b'\xef\xbb\xbf \r\n{"question": "a"}'):
        answer = requests.post(f"{server.http}/api/states_mean", data=body, timeout=ANSWER_SECONDS_MAX)
        assert answer.status_code == 200, answer.text
    answer = requests.post(f"{server.http}/api/states_mean", data=b"\xef\xbb\xbf" * 2 + b"{}", timeout=ANSWER_SECONDS_MAX)
    assert answer.status_code == 400


def test_slashes_in_a_path_count_once_and_not_at_its_end(server):
    """The documentation of the original servers has //api/states_mean."""
    assert table(server).Upload(table_pb2.UploadReq(csv_data=survey_csv())).error == ""
    for path in ("//api/states_mean", "/api//states_mean/", "///api///states_mean//"):
        answer = requests.post(server.http + path, json={"question": QUESTION}, timeout=ANSWER_SECONDS_MAX)
        assert answer.status_code == 200, answer.text
        assert result_of(server, answer.json()["job_id"])["status"] == "done"
    for path in ("//api/jobs/", "/api/get_results//1/", "//livez/", "/metrics/"):
        assert get(server, path).status_code == 200, path
    assert get(server, "/api/jobs/?a=//").status_code == 200
    page = get(server, "//api/v1/docs//swagger")
    assert page.status_code == 200 and page.url.endswith("/api/v1/docs/swagger/")


def test_the_shutdown_may_be_a_post(server):
    assert requests.post(f"{server.http}/api/graceful_shutdown", timeout=ANSWER_SECONDS_MAX).json() == {"status": "done"}
    assert ask(server, "states_mean", {"question": QUESTION}).status_code == 405


@pytest.mark.parametrize(
    "flags, environment, at_once",
    [
        (["--statistics-at-once", "3"], {"TP_NUM_OF_THREADS": "1"}, 3),
        ([], {"TALLY_STATISTICS_AT_ONCE": "4", "TP_NUM_OF_THREADS": "1"}, 4),
        ([], {"TP_NUM_OF_THREADS": "5"}, 5),
        ([], {"TP_NUM_OF_THREADS": "100"}, 8),
        ([], {}, min(8, len(os.sched_getaffinity(0)))),
    ],
)
def test_how_many_statistics_run_at_once(start_server, tmp_path, flags, environment, at_once):
    log = tmp_path / "log"
    server = start_server(tmp_path / "data", "--log-file", log, *flags, env=environment)
    assert table(server).Upload(table_pb2.UploadReq(csv_data=survey_csv())).error == ""
    # More than there is memory for: the last ones wait and are answered, too.
    asked = [ask(server, route, {"question": QUESTION, **needed}).json() for route, needed in QUESTIONS * 3]
    results = [result_of(server, job["job_id"]) for job in asked]
    assert all(result["status"] == "done" for result in results), results
    assert results[: len(QUESTIONS)] == results[len(QUESTIONS) : 2 * len(QUESTIONS)]
    server.stop()
    assert f"threads={at_once}" in log.read_text().splitlines()[0]
