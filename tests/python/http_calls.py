"""Calls of the HTTP API: statistics jobs and file-processing tasks as the original clients make them, and raw
connections.
"""

import socket

import requests
from conftest import KIB, Server, wait_until

TASKS = "/api/v1/file-processing/tasks/"
PARTS = "/api/v1/table/parts"
ANSWER_SECONDS_MAX = 60
CLIENT_SECONDS_MAX = 600
UNKNOWN_TASK = "00000000-0000-4000-8000-000000000000"
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
    """Sends a file, which must be accepted; returns the id of the task."""
    accepted = send_file(server, content, query=query)
    assert accepted.status_code == 202, accepted.text
    task = accepted.json()["task"]
    assert task["status"] == "QUEUED"
    assert accepted.json()["next"] == f"{TASKS}{task['id']}/status"
    return task["id"]


def ended_task(server: Server, task_id: str) -> dict:
    """Polls until the task has ended; returns its status."""

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
    """Checks an error, in the form that the file-processing API gives it."""
    assert answer.status_code == status, answer.text
    failure = answer.json()
    assert sorted(failure) == ["code", "details", "message"]
    assert failure["code"] == answer.reason and failure["message"]
    assert [sorted(detail) for detail in failure["details"]] == [["field", "message"]]
    assert failure["details"][0]["field"] == field
    assert word in failure["details"][0]["message"]


def check_problem(answer: requests.Response, status: int, field, words: str) -> dict:
    """Checks an error of the table's own paths (RFC 9457), and returns it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["type"], problem["title"], problem["status"]) == ("about:blank", answer.reason, status)
    assert problem.get("field") == field, problem
    assert words in problem["detail"], problem
    return problem


def metrics(server: Server, **options) -> dict:
    """The value of each metric, by its name and labels."""
    answer = get(server, "/metrics", **options)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")
    samples = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return {sample.rsplit(" ", 1)[0]: float(sample.rsplit(" ", 1)[1]) for sample in samples}


END_OF_FORM = b"\r\n--B--\r\n"


def head_of_form(server: Server, content_bytes: int) -> bytes:
    """The request head and the beginning of a form with a file of that size. The form ends with END_OF_FORM."""
    part = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
    body_bytes = len(part) + content_bytes + len(END_OF_FORM)
    head = (
        f"POST {TASKS} HTTP/1.1\r\nHost: {server.http_addresses[0]}\r\n"
        f"Content-Type: multipart/form-data; boundary=B\r\nContent-Length: {body_bytes}\r\n\r\n"
    )
    return head.encode() + part


def connect(server: Server) -> socket.socket:
    host, port = server.http_addresses[0].rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS_MAX)


def read_all(connection: socket.socket) -> bytes:
    """All bytes that are received until the server closes the connection."""
    answer = b""
    while True:
        try:
            piece = connection.recv(64 * KIB)
        except ConnectionResetError:
            return answer
        if not piece:
            return answer
        answer += piece
