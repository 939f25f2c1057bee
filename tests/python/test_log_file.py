"""`--log-file`: each HTTP call is logged, the file is rotated, and a file that cannot be written stops no call."""

import os
import re
import time

import pytest
import requests
import table_pb2
from conftest import KIB, Server, ServerDidNotStart, table, wait_until
from http_calls import (
    ANSWER_SECONDS_MAX,
    PLAYS,
    TASKS,
    ask,
    completed_task,
    connect,
    ended_task,
    get,
    metrics,
    read_all,
    result_of,
    send_file,
    start_task,
)
from survey_oracle import QUESTION, survey_csv


def stop_and_read(server: Server, path) -> list:
    server.stop()
    return path.read_text().splitlines()


def test_the_log_file_has_entry_and_exit_of_each_call(start_server, tmp_path):
    path = tmp_path / "logs" / "webserver.log"
    server = start_server(tmp_path / "data", env={"TALLY_LOG_FILE": str(path), "TALLY_LOG": "error"})
    ask(server, "state_mean", {"question": "How\nmany?", "state": "Ohio\x1b[31m"})
    get(server, "/api/get_results/1?x=y")
    lines = stop_and_read(server, path)
    start, peer = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z +(?:INFO|DEBUG) +http", r" peer=127\.0\.0\.1:\d+"
    asked = r'parameters body=StateQuestion \{ question: "How\\nmany\?", state: "Ohio\\u\{1b\}\[31m" \}'
    lines = [line for line in lines if "http{" in line]
    expected = [
        start + r'\{request_id=1 method="POST" target="/api/state_mean"\}: entry' + peer,
        start + r'\{request_id=1 method="POST" target="/api/state_mean"\}: ' + asked,
        start + r'\{request_id=1 method="POST" target="/api/state_mean"\}: accepted job_id=job_id_1',
        start + r'\{request_id=1 method="POST" target="/api/state_mean"\}: exit status=200 duration_ms=\d+' + peer,
        start + r'\{request_id=2 method="GET" target="/api/get_results/1\?x=y"\}: entry' + peer,
        start + r'\{request_id=2 method="GET" target="/api/get_results/1\?x=y"\}: exit status=200 duration_ms=\d+' + peer,
    ]
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected):
        assert re.fullmatch(pattern, line), line
    # The time stamp is the current time in UTC.
    logged = time.strptime(lines[0][:19], "%Y-%m-%dT%H:%M:%S")
    now = time.gmtime()
    assert abs(time.mktime(now) - time.mktime(logged)) < ANSWER_SECONDS_MAX

    # A second run appends to the file.
    server = start_server(tmp_path / "data", "--log-file", path)
    get(server, "/livez")
    after = [line for line in stop_and_read(server, path) if "http{" in line]
    assert after[: len(lines)] == lines and len(after) == len(lines) + 2


def test_the_log_file_says_what_becomes_of_jobs(start_server, tmp_path):
    """As the log of the original servers: threads, results, the shutdown, and requests after it as errors."""
    path = tmp_path / "webserver.log"
    server = start_server(tmp_path / "data", "--log-file", path, "--statistics-at-once", "3")
    assert table(server).Upload(table_pb2.UploadReq(csv_data=survey_csv())).error == ""
    done = ask(server, "states_mean", {"question": QUESTION}).json()["job_id"]
    result_of(server, done)
    failed = ask(server, "states_mean", {"question": "nobody asks"}).json()["job_id"]
    result_of(server, failed)
    task_id = completed_task(server, PLAYS)
    for _ in range(2):
        assert get(server, "/api/graceful_shutdown").json() == {"status": "done"}
    assert ask(server, "states_mean", {"question": QUESTION}).status_code == 405
    assert requests.put(f"{server.http}/api/jobs", timeout=ANSWER_SECONDS_MAX).status_code == 405  # never taken
    assert send_file(server, PLAYS).status_code == 503
    # After the time stamp.
    lines = [line.split("Z ", 1)[1].strip() for line in stop_and_read(server, path)]
    assert lines[0] == "DEBUG statistics that run at once threads=3"
    events = [re.sub(r"http\{.*\}: ", "", line) for line in lines]  # some belong to a call
    for event in (
        f"DEBUG the result is ready job_id={done}",
        f"DEBUG the job failed job_id={failed}",
        f"DEBUG the result is ready job_id={task_id}",
        "DEBUG no more jobs are accepted",
        "DEBUG the last job has ended",
    ):
        assert events.count(event) == 1, (event, lines)
    assert events.index("DEBUG no more jobs are accepted") < events.index("DEBUG the last job has ended")
    refused = [line for line in lines if line.startswith("ERROR")]
    assert [re.search('target="([^"]+)"', line)[1] for line in refused] == ["/api/states_mean", TASKS.rstrip("/")]
    assert all("refused: the server is shutting down" in line for line in refused)
    tasks = [line for line in lines if f'target="{TASKS.rstrip("/")}"' in line]
    assert any("parameters body=Grouping { group_by: None, sum: None }" in line for line in tasks)
    assert any(f"accepted job_id={task_id}" in line for line in tasks)


def test_the_last_job_that_ends_after_a_shutdown_is_logged(start_server, tmp_path):
    path = tmp_path / "webserver.log"
    server = start_server(tmp_path / "data", "--log-file", path)
    rows = b"".join(b"song %d,2020-01-01,1\n" % row for row in range(200_000))
    task_id = start_task(server, b"Song,Date,Number of Plays\n" + rows)
    get(server, "/api/graceful_shutdown")
    ended_task(server, task_id)
    lines = [line.split("Z ", 1)[1].strip() for line in stop_and_read(server, path)]
    ends = [f"DEBUG the result is ready job_id={task_id}", "DEBUG the last job has ended"]
    assert [line for line in lines if line in ends] == ends


def test_no_call_forges_or_floods_the_log_file(start_server, tmp_path):
    path = tmp_path / "webserver.log"
    server = start_server(tmp_path / "data", "--log-file", path)
    with connect(server) as client:
        client.sendall(b"GET /a%0aforged\xc3\xa9\x80 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        read_all(client)
    ask(server, "states_mean", {"question": "\r\n2026-01-01 forged \u2028" + "x" * 100_000})
    get(server, "/" + "y" * 8000)
    lines = stop_and_read(server, path)
    lines = [line for line in lines if not re.match(r"\S+Z DEBUG (statistics that|the job failed|no more jobs|the last job)", line)]
    assert all("http{request_id=" in line and len(line) < 4 * KIB and line.isprintable() for line in lines), lines
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
    calls = [int(call) for text in reversed(newest_first) for call in re.findall(r"request_id=(\d+) .*entry", text)]
    assert calls == list(range(calls[0], 101))  # no line is lost at a rotation


def test_a_log_file_on_a_full_disk_costs_lines_and_nothing_else(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--log-file", "/dev/full")
    for _ in range(3):
        assert get(server, "/livez").status_code == 200

    def lost() -> float:
        return metrics(server)["tally_log_file_lines_dropped_total"]

    wait_until(lambda: lost() >= 6, "the lines are counted")
    server.log_line("--log-file: lines are dropped")
    assert server.stderr.count("--log-file: lines are dropped") == 1


def test_a_log_file_that_stalls_stops_nothing(start_server, tmp_path):
    """The log file is a pipe that is never read, as a disk that hangs."""
    path = tmp_path / "webserver.log"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        server = start_server(tmp_path / "data", "--log-file", path)
        with requests.Session() as session:
            for _ in range(1500):
                assert session.get(server.http + "/livez", timeout=ANSWER_SECONDS_MAX).status_code == 200
        assert metrics(server)["tally_log_file_lines_dropped_total"] > 0
        assert table(server).Upload(table_pb2.UploadReq(csv_data=b"x\n1\n")).error == ""
    finally:
        os.close(reader)


def test_a_log_file_that_cannot_be_written_is_no_start(start_server, tmp_path):
    with pytest.raises(ServerDidNotStart) as failure:
        start_server(tmp_path / "data", "--log-file", tmp_path)  # a folder
    assert failure.value.exit_code == 1 and str(tmp_path) in failure.value.stderr
