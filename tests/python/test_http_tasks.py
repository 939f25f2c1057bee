"""File-processing tasks over HTTP: the upload of a file, its group sums, and the download of the result."""

import csv
import io
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest
import requests
from conftest import KIB, ROOT, step_aside, wait_until
from http_calls import (
    ANSWER_SECONDS_MAX,
    CLIENT_SECONDS_MAX,
    END_OF_FORM,
    PLAYS,
    PLAYS_SUMMED,
    TASKS,
    UNKNOWN_TASK,
    check_failure,
    completed_task,
    connect,
    download,
    ended_task,
    get,
    head_of_form,
    metrics,
    read_all,
    send_file,
    start_task,
)

LARGE_FILE_BYTES_MIN = 300_000_000
LONG_CALLS_MAX = 20
RECEIVING_BYTES_MAX = 64 * 1024 * KIB


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


def shared(name: str) -> bytes:
    path = ROOT.parent / "shared" / "data" / name
    if not path.exists():
        step_aside(f"{path} is missing")
    return path.read_bytes()


def test_real_plays(server):
    """A file with two kinds of row ends and with quoted commas; its 28,028 groups are compared with a simple sum."""
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
    """A file of 300 MB takes little memory, and so does one of any size."""
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
    assert sorted(status) == ["task"]  # without a next step
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


def test_the_extension_may_be_in_capitals(server):
    accepted = requests.post(server.http + TASKS, files={"file": ("A.B.CSV", PLAYS)}, timeout=ANSWER_SECONDS_MAX)
    assert accepted.status_code == 202, accepted.text
    task_id = accepted.json()["task"]["id"]
    ended_task(server, task_id)
    assert download(server, task_id).text == PLAYS_SUMMED


def test_other_fields_are_refused_by_name(server):
    file = ("file", ("a.csv", PLAYS))
    for other, word in [
        (("note", (None, "x" * KIB)), '"note"'),
        (("later", ("second.txt", b"text")), '"later"'),
        (("groupby", (None, "Song")), '"groupby"'),
        (("file", (None, "a.csv")), 'a field "file" without a file name'),
    ]:
        for fields in ([other, file], [file, other]):
            answer = requests.post(server.http + TASKS, files=fields, timeout=ANSWER_SECONDS_MAX)
            check_failure(answer, 400, "file", word)
    assert get(server, "/api/num_jobs").json() == {"num_jobs": 0}
    wait_until(lambda: server.leftovers() == [], "an empty tmp/")


def test_a_second_file_is_refused(server):
    for name in ("second.csv", "second.txt"):
        fields = [("file", ("a.csv", PLAYS)), ("file", (name, PLAYS))]
        answer = requests.post(server.http + TASKS, files=fields, timeout=ANSWER_SECONDS_MAX)
        check_failure(answer, 400, "file", "second file")
    assert get(server, "/api/num_jobs").json() == {"num_jobs": 0}
    wait_until(lambda: server.leftovers() == [], "an empty tmp/")


def test_unknown_query_parameters_are_refused_by_name(server):
    for query in ("?groupby=Song", "?sum=n&delimiter=;", "?group_by=Song&x"):
        answer = send_file(server, PLAYS, query=query)
        check_failure(answer, 400, "query", {"?groupby=Song": "groupby", "?sum=n&delimiter=;": "delimiter"}.get(query, "x"))


def test_the_grouping_may_come_as_form_fields(server):
    content = b"a,b,n,m\nx,1,1,10\ny,1,2,20\nx,2,3,30\n"

    def send(fields: list, query: str = "") -> requests.Response:
        return requests.post(server.http + TASKS + query, files=fields, timeout=ANSWER_SECONDS_MAX)

    by, sum_, file = ("group_by", (None, "a")), ("sum", (None, "n,m")), ("file", ("a.csv", content))
    for fields, query in (([by, sum_, file], ""), ([by, file], "?sum=n,m"), ([file], "?group_by=a&sum=n,m")):
        accepted = send(fields, query)
        assert accepted.status_code == 202, accepted.text
        task_id = accepted.json()["task"]["id"]
        ended_task(server, task_id)
        assert download(server, task_id).text == "a,n,m\nx,4,40\ny,2,20\n"
    check_failure(send([by, sum_, file], "?sum=n"), 400, "sum", "twice")
    check_failure(send([by, by, file]), 400, "group_by", "twice")
    check_failure(send([("sum", (None, b"\xff")), file]), 400, "sum", "UTF-8")
    check_failure(send([("sum", (None, "x" * 9 * KIB)), file]), 400, "sum", "8192 bytes")
    check_failure(send([by, file, sum_]), 400, "file", "sum after the file")


def test_compressed_bodies_are_refused(server):
    body, kind = b"--B\r\n", "multipart/form-data; boundary=B"
    for encoding in ("gzip", "br", "identity, gzip", "x"):
        headers = {"Content-Type": kind, "Content-Encoding": encoding}
        answer = requests.post(server.http + TASKS, data=body, headers=headers, timeout=ANSWER_SECONDS_MAX)
        check_failure(answer, 415, "Content-Encoding", f'"{encoding}"')
        answer = requests.post(
            f"{server.http}/api/states_mean", data=b"{}", headers={"Content-Encoding": encoding}, timeout=ANSWER_SECONDS_MAX
        )
        assert answer.status_code == 415 and f'"{encoding}"' in answer.json()["reason"]
    files = {"file": ("a.csv", PLAYS, "text/csv", {"Content-Encoding": "gzip"})}
    answer = requests.post(server.http + TASKS, files=files, timeout=ANSWER_SECONDS_MAX)
    check_failure(answer, 415, "file", '"gzip"')
    headers = {"Content-Encoding": "identity"}
    answer = requests.post(server.http + TASKS, files={"file": ("a.csv", PLAYS)}, headers=headers, timeout=ANSWER_SECONDS_MAX)
    assert answer.status_code == 202, answer.text


def test_encoded_file_names_are_read(server):
    def send(disposition: str) -> requests.Response:
        head = f"--B\r\nContent-Disposition: form-data; name=file; {disposition}\r\n\r\n"
        headers = {"Content-Type": "multipart/form-data; boundary=B"}
        body = head.encode() + PLAYS + END_OF_FORM
        return requests.post(server.http + TASKS, data=body, headers=headers, timeout=ANSWER_SECONDS_MAX)

    assert send("filename*=UTF-8''na%C3%AFve.csv").status_code == 202
    assert send("filename=\"a.txt\"; filename*=utf-8'en'b.csv").status_code == 202
    check_failure(send("filename*=UTF-8''a%2etxt"), 400, "file", '"txt"')


def test_columns_are_found_by_their_trimmed_names(server):
    content = b"Song, Date, Number of Plays\nA,2020,1\nA,2020,2\n"
    assert download(server, completed_task(server, content)).text.splitlines() == [
        "Song,Date,Total Number of Plays for Date",
        "A,2020,3",
    ]
    both = b" n,n,g\n1,10,x\n2,20,x\n"  # the exact name wins
    assert download(server, completed_task(server, both, "?group_by=g&sum=n")).text == "g,n\nx,30\n"
    two = start_task(server, b" n,n ,g\n1,10,x\n", "?group_by=g&sum=n")
    status = ended_task(server, two)["task"]
    assert status["status"] == "FAILED" and 'two columns "n"' in status["errors"]["file"][0]


def test_a_large_file_with_the_wrong_name_gets_its_answer(server):
    check_failure(send_file(server, b"x" * (3 * 1024 * KIB), "a.txt"), 400, "file", "txt")


@pytest.mark.parametrize("task_id", [UNKNOWN_TASK, "x", "1", "%ff", "..%2f..", UNKNOWN_TASK + "0"])
def test_unknown_tasks(server, task_id):
    for step in ("/status", "/download"):
        check_failure(get(server, f"{TASKS}{task_id}{step}"), 404, "task_id", "no such task")
    answer = requests.delete(f"{server.http}{TASKS}{task_id}", timeout=ANSWER_SECONDS_MAX)
    check_failure(answer, 404, "task_id", "no such task")


def test_a_file_that_is_broken_off_leaves_nothing(server):
    for cut in (10, len(PLAYS)):  # inside the file, and before the end of the form
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


def test_what_comes_after_a_file_is_not_kept(server):
    """A form part whose head does not end: a parser that waits for its end would keep all of it in memory."""
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
                pass  # the server has answered and closed
            most[0] = max(most[0], server.anonymous_bytes())

    before = server.anonymous_bytes()
    with ThreadPoolExecutor(LONG_CALLS_MAX) as pool:
        list(pool.map(send, range(LONG_CALLS_MAX)))
    assert most[0] - before < RECEIVING_BYTES_MAX, most
    assert get(server, "/livez").status_code == 200


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
    # None of this has changed its state.
    assert get(server, f"{TASKS}{task_id}/status").json()["task"]["status"] == "COMPLETED"
    # Several ranges are answered with the whole file, which counts as a download.
    answer = download(server, task_id, Range="bytes=0-1,3-4")
    assert (answer.status_code, answer.text) == (200, whole)


def test_a_range_of_another_file_is_the_whole(server):
    task_id = completed_task(server, PLAYS)
    answer = download(server, task_id, Range="bytes=0-3", If_Range='"another"')
    assert (answer.status_code, answer.text) == (200, PLAYS_SUMMED)


def test_a_download_that_is_broken_off_can_be_taken_up(server):
    """The result is larger than the socket buffers between server and client."""
    rows = "".join(f"song {row:07},2020-01-01,{row}\n" for row in range(600_000))
    task_id = completed_task(server, b"Song,Date,Number of Plays\n" + rows.encode())
    with connect(server) as client:
        head = f"GET {TASKS}{task_id}/download HTTP/1.1\r\nHost: localhost\r\n\r\n"
        client.sendall(head.encode())
        got = client.recv(64 * KIB)
        assert got.startswith(b"HTTP/1.1 200 OK\r\n")
    # The server notices the broken connection some time later. Nothing may change until then.
    for _ in range(20):
        assert get(server, f"{TASKS}{task_id}/status").json()["task"]["status"] == "COMPLETED"
    rest = download(server, task_id, Range="bytes=1000-")
    assert rest.status_code == 206
    assert rest.text == ("Song,Date,Total Number of Plays for Date\n" + rows)[1000:]
    assert get(server, f"{TASKS}{task_id}/status").json()["task"]["status"] == "COMPLETED"
    assert download(server, task_id).text.endswith(rows[-1000:])
    wait_until(lambda: get(server, f"{TASKS}{task_id}/status").json()["task"]["status"] == "DOWNLOADED", "DOWNLOADED")


def test_a_stop_lets_a_download_finish_and_closes_idle_connections(server):
    rows = "".join(f"song {row:07},2020-01-01,{row}\n" for row in range(600_000))
    task_id = completed_task(server, b"Song,Date,Number of Plays\n" + rows.encode())
    with requests.Session() as idle, connect(server) as client:
        assert idle.get(server.http + "/livez", timeout=ANSWER_SECONDS_MAX).status_code == 200
        client.sendall(f"GET {TASKS}{task_id}/download HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        got = client.recv(KIB)
        os.kill(server.pid, signal.SIGTERM)
        server.log_line("draining")
        got += read_all(client)
        assert got.endswith(rows[-1000:].encode())
        assert server.wait() == 0
