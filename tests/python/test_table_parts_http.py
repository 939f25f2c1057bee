"""The parts of the table over HTTP: added from bodies and forms, listed, looked at, removed and restored."""

import gzip
import json
import socket
import subprocess
from urllib.parse import quote

import pyarrow
import pytest
import requests
import tally_pb2
from conftest import KIB, Server, clean_environment, tally, wait_until
from http_calls import ANSWER_SECONDS_MAX, PARTS, check_problem, connect, get, read_all

MIB = KIB * KIB
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    'a "quoted" name',
    "two\nlines",
    "\u202egnp.exe",
    "'; DROP TABLE parts; --",
    "${7*7}{{7*7}}",
]


def post(server: Server, body=None, query: str = "", headers=None, files=None) -> requests.Response:
    url = f"{server.http}{PARTS}{query}"
    return requests.post(url, data=body, files=files, headers=headers, timeout=ANSWER_SECONDS_MAX)


def added(server: Server, body, query: str = "", **options) -> dict:
    answer = post(server, body, query, **options)
    assert answer.status_code == 201, answer.text
    return answer.json()


def listed(server: Server, query: str = "") -> dict:
    answer = get(server, PARTS + query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def numbers(page: dict) -> list:
    return [part["part"] for part in page["parts"]]


def form_of(*contents: bytes) -> list:
    return [("file", (f"{index}.csv", content)) for index, content in enumerate(contents)]


# --- lists and receipts -------------------------------------------------------------------------------------


def test_parts_are_listed_page_by_page_in_both_orders(server):
    receipts = [added(server, f"x,y\n{row},\n".encode()) for row in range(5)]
    whole = listed(server)
    assert (whole["next"], whole["total"]) == (None, 5)
    for part, receipt in zip(whole["parts"], receipts):
        columns = receipt.pop("columns")
        assert part == {**receipt, "columns_count": len(columns)}

    pages = [listed(server, "?limit=2"), listed(server, "?limit=2&after=2"), listed(server, "?limit=2&after=4")]
    assert [numbers(page) for page in pages] == [[1, 2], [3, 4], [5]]
    assert [page["next"] for page in pages] == [2, 4, None]
    pages = [listed(server, f"?order=newest&limit=3{before}") for before in ("", "&before=3", "&before=1", "&before=0")]
    assert [numbers(page) for page in pages] == [[5, 4, 3], [2, 1], [], []]
    assert [page["next"] for page in pages] == [3, None, None, None]
    assert numbers(listed(server, "?order=oldest&after=5")) == []
    assert numbers(listed(server, "?limit=5")) == [1, 2, 3, 4, 5] and listed(server, "?limit=5")["next"] is None

    assert requests.delete(f"{server.http}{PARTS}/3", timeout=ANSWER_SECONDS_MAX).status_code == 200
    assert numbers(listed(server)) == [1, 2, 4, 5] and listed(server)["total"] == 4
    assert numbers(listed(server, "?after=2")) == [4, 5]


def test_a_query_that_means_nothing_is_refused(server):
    added(server, b"x\n1\n")
    for query, field, words in [
        ("?limit=0", "limit", "limit=0: it is 1 to 1000"),
        ("?limit=1001", "limit", "1 to 1000"),
        ("?limit=x", "query", "limit"),
        ("?order=up", "query", "order"),
        ("?before=2", "before", "order=newest"),
        ("?order=newest&after=2", "after", "before"),
        ("?page=1", "query", "page"),
    ]:
        check_problem(get(server, PARTS + query), 400, field, words)
    check_problem(get(server, f"{PARTS}/1/rows?limit=101"), 400, "limit", "1 to 100")
    check_problem(get(server, "/api/v1/table/growth?points=0"), 400, "points", "1 to 200")
    check_problem(get(server, "/api/v1/jobs?limit=0"), 400, "limit", "1 to 100")


def test_a_page_of_parts_is_bounded_in_bytes(server):
    """Texts that mean no value are in the list: 500 parts with 1 KiB of them are no answer of 500 KiB."""
    null = "&".join("null=" + f"{text:x>32}" for text in range(30))
    for row in range(120):
        added(server, f"x\n{row}\n".encode(), "?" + null)
    found, after, pages = [], 0, 0
    while after is not None:
        page = get(server, f"{PARTS}?limit=1000&after={after}")
        assert len(page.content) < 64 * KIB
        found += numbers(page.json())
        after, pages = page.json()["next"], pages + 1
    assert found == list(range(1, 121)) and pages > 1


def test_a_receipt_is_that_of_the_upload(server):
    receipt = added(server, b"x,y\n1,\n2,a\n", "?trim=true")
    answer = get(server, f"{PARTS}/1")
    assert answer.json() == receipt
    assert answer.json()["columns"][1] == {"name": "y", "type": "utf8", "nulls": 1}
    for below in ("", "/csv", "/parquet", "/rows"):
        check_problem(get(server, f"{PARTS}/2{below}"), 404, "part", "there is no part 2")
        for wrong in ("0", "-1", "x", "99999999999999999999", "1.0", "01", "+1"):
            answer = check_problem(get(server, f"{PARTS}/{wrong}{below}"), 404, "part", "is not the number of a part")
            assert "part" not in answer
    assert check_problem(get(server, f"{PARTS}/2"), 404, "part", "")["part"] == 2


def test_a_receipt_with_thousands_of_columns_comes_whole(server):
    names = [f"column number {index} <{'x' * 100}>" for index in range(4096)]
    row = ",".join("1" for _ in names)
    receipt = added(server, (",".join(names) + "\n" + row + "\n").encode())
    assert "columns" not in receipt and receipt.pop("columns_count") == 4096, "an answer that is not read is short"
    answer = get(server, f"{PARTS}/1")
    assert answer.headers["Content-Type"] == "application/json"
    columns = [{"name": name, "type": "int64", "nulls": 0} for name in names]
    assert answer.json() == {**receipt, "columns": columns}
    # The permit for such an answer comes back, also if it is not read.
    for _ in range(3):
        with requests.get(f"{server.http}{PARTS}/1", stream=True, timeout=ANSWER_SECONDS_MAX):
            pass
    wait_until(lambda: get(server, f"{PARTS}/1").status_code == 200, "the permit")
    preview = get(server, f"{PARTS}/1/rows").json()
    assert (len(preview["columns"]), preview["columns_left_out"]) == (256, 4096 - 256)
    assert preview["rows"] == [["1"] * 256] and preview["more"] is False


# --- removal ------------------------------------------------------------------------------------------------


def test_a_removed_part_is_restored(server):
    receipts = [added(server, b"x\n1\n"), added(server, b"x\n2\n")]
    assert get(server, "/api/v1/table/removed").json() == {"removed": [], "next": None}
    removed = requests.delete(f"{server.http}{PARTS}/1", timeout=ANSWER_SECONDS_MAX).json()
    (entry,) = get(server, "/api/v1/table/removed").json()["removed"]
    times = {name: entry[name] for name in ("removed_at", "restorable_until")}
    sizes = {f"{kind}_bytes": receipts[0][kind]["bytes"] for kind in ("csv", "parquet")}
    assert entry == {"part": 1, "rows": 1, **sizes, **times}
    assert entry["restorable_until"] == removed["restorable_until"]
    assert entry["removed_at"] < entry["restorable_until"]
    for below in ("", "/csv", "/parquet", "/rows"):
        problem = check_problem(get(server, f"{PARTS}/1{below}"), 404, "part", "part 1 was removed")
        assert removed["restorable_until"] in problem["detail"] and problem["part"] == 1
    assert get(server, "/api/v1/table/removed?after=1").json()["removed"] == []

    for _ in range(2):  # the second changes nothing
        restored = requests.post(f"{server.http}{PARTS}/1/restore", timeout=ANSWER_SECONDS_MAX)
        assert (restored.status_code, restored.json()) == (200, {"part": 1, "parts": 2})
    assert get(server, f"{PARTS}/1").json() == receipts[0]
    assert get(server, "/api/v1/table/removed").json()["removed"] == []
    unknown = requests.post(f"{server.http}{PARTS}/7/restore", timeout=ANSWER_SECONDS_MAX)
    check_problem(unknown, 404, "part", "there is no part 7")
    requests.delete(f"{server.http}{PARTS}/2?purge=true", timeout=ANSWER_SECONDS_MAX)
    check_problem(get(server, f"{PARTS}/2"), 404, "part", "there is no part 2")
    gone = requests.post(f"{server.http}{PARTS}/2/restore", timeout=ANSWER_SECONDS_MAX)
    check_problem(gone, 404, "part", "there is no part 2")


def test_a_page_of_another_site_cannot_restore(server):
    added(server, b"x\n1\n")
    requests.delete(f"{server.http}{PARTS}/1", timeout=ANSWER_SECONDS_MAX)
    url, headers = f"{server.http}{PARTS}/1/restore", {"Sec-Fetch-Site": "cross-site"}
    check_problem(requests.post(url, headers=headers, timeout=ANSWER_SECONDS_MAX), 403, None, "another origin")
    assert len(get(server, "/api/v1/table/removed").json()["removed"]) == 1


# --- the first rows -----------------------------------------------------------------------------------------


def test_the_first_rows_are_the_cells_of_the_csv(server):
    rows = b'007,,"two\nlines"\n1.50," ","a ""quote"""\n\xc3\xa9,x,\n'
    added(server, b"a,b,c\n" + rows)
    preview = get(server, f"{PARTS}/1/rows").json()
    cells = [["007", None, "two\nlines"], ["1.50", " ", 'a "quote"'], ["é", "x", None]]
    assert preview == {"columns": ["a", "b", "c"], "columns_left_out": 0, "rows": cells, "more": False}
    for limit in (1, 2, 3, 100):
        preview = get(server, f"{PARTS}/1/rows?limit={limit}").json()
        assert (preview["rows"], preview["more"]) == (cells[:limit], limit < 3)


def test_a_preview_is_bounded(server):
    added(server, b"t\n" + ("é" * 300).encode() + b"\n")
    assert get(server, f"{PARTS}/1/rows").json()["rows"] == [["é" * 256 + "…"]]
    # A row that is longer than what is read.
    added(server, b"t\n" + b"x" * 200_000 + b"\n1\n")
    preview = get(server, f"{PARTS}/2/rows").json()
    assert (preview["rows"], preview["more"]) == ([], True)
    # Control characters, which take six bytes in JSON.
    row = ",".join(["\x01" * 250] * 10)
    added(server, (",".join("abcdefghij") + "\n" + f"{row}\n" * 100).encode())
    answer = get(server, f"{PARTS}/3/rows?limit=100")
    assert answer.json()["more"] is True and len(answer.json()["rows"]) > 1
    assert len(answer.content) < 128 * KIB
    added(server, b"x\n")
    assert get(server, f"{PARTS}/4/rows").json() == {"columns": ["x"], "columns_left_out": 0, "rows": [], "more": False}


# --- growth -------------------------------------------------------------------------------------------------


def test_the_growth_of_the_table_adds_up(server):
    assert get(server, "/api/v1/table/growth").json() == {"points": []}
    receipts = [added(server, b"x\n" + b"1\n" * rows) for rows in (3, 1, 2)]
    points = get(server, "/api/v1/table/growth").json()["points"]
    assert [(point["part"], point["rows"]) for point in points] == [(1, 3), (2, 4), (3, 6)]
    assert [point["uploaded_at"] for point in points] == [receipt["uploaded_at"] for receipt in receipts]
    for kind in ("csv", "parquet"):
        sizes = [receipt[kind]["bytes"] for receipt in receipts]
        assert [point[f"{kind}_bytes"] for point in points] == [sum(sizes[: count + 1]) for count in range(3)]
    (last,) = get(server, "/api/v1/table/growth?points=1").json()["points"]
    assert last == points[-1]
    assert [point["part"] for point in get(server, "/api/v1/table/growth?points=2").json()["points"]] == [2, 3]
    # The receipt of a part cannot be read: its time is not known, the rest is.
    (server.data / "parts" / "2.json").write_bytes(b"{}")
    found = get(server, "/api/v1/table/growth").json()["points"]
    assert found[1] == {**points[1], "uploaded_at": None} and found[2] == points[2]


# --- several files ------------------------------------------------------------------------------------------


def test_each_file_of_a_form_becomes_a_part(server):
    contents = [b"x\n1\n", b"x,y\n2,a\n", b"z\n" + b"3\n" * 50_000, b"x\n"]
    answer = post(server, files=form_of(*contents))
    assert answer.status_code == 201, answer.text
    parts = answer.json()["parts"]
    assert [(part["part"], part["rows"]) for part in parts] == [(1, 1), (2, 1), (3, 50_000), (4, 0)]
    assert [get(server, f"{PARTS}/{part['part']}").json() for part in parts] == parts
    for part, content in zip(parts, contents):
        assert (server.data / "parts" / f"{part['part']}.csv").read_bytes() == content
    assert "Idempotency-Replayed" not in answer.headers
    # One file is answered as a body is.
    assert post(server, files=form_of(b"x\n5\n")).json()["part"] == 5


def test_a_bad_file_ends_the_request_and_says_what_was_added(server):
    answer = post(server, files=form_of(b"x\n1\n", b'x,y\n1,2\n3,"a"b\n', b"x\n3\n"))
    problem = check_problem(answer, 400, "file", "text after a closing quote")
    assert (problem["file"], problem["index"], problem["uploaded"]) == ("1.csv", 1, [1])
    assert (problem["row"], problem["line"], problem["column"], problem["column_index"]) == (2, 3, "y", 1)
    assert numbers(listed(server)) == [1] and server.leftovers() == []
    # A field that is no file: what came before its file is whole, and the file before it is not added.
    for form, uploaded in [
        ([("trim", (None, "true")), *form_of(b"x\n1\n")], None),
        ([*form_of(b"x\n1\n"), ("trim", (None, "true"))], []),
        ([*form_of(b"x\n1\n", b"x\n2\n"), ("other", ("a.csv", b"x\n3\n"))], [2]),
        ([*form_of(b"x\n1\n"), ("file", ("", b"x\n2\n"))], [3]),
    ]:
        problem = check_problem(post(server, files=form), 400, "file", "")
        assert problem.get("uploaded") == uploaded, problem
    check_problem(post(server, files=[("file", ("", b""))]), 400, "file", "No file")
    empty = {"Content-Type": "multipart/form-data; boundary=B"}
    check_problem(post(server, b"--B--\r\n", headers=empty), 400, "file", "No file part")


def form_text(*heads_and_contents) -> bytes:
    """A form whose fields have these heads, as bytes."""
    fields = [b"--B\r\n" + head + b"\r\n\r\n" + content + b"\r\n" for head, content in heads_and_contents]
    return b"".join(fields) + b"--B--\r\n"


FORM = {"Content-Type": "multipart/form-data; boundary=B"}
FILE_HEAD = b'Content-Disposition: form-data; name="file"; filename="a.csv"'


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (FILE_HEAD.replace(b"a.csv", b"\xff.csv"), "the name of the file is not UTF-8"),
        (b"no header", "the form: "),
        (FILE_HEAD + b"\r\nContent-Transfer-Encoding: base64", 'Content-Transfer-Encoding "base64" is not supported'),
    ],
)
def test_a_file_with_a_wrong_head_is_blamed_itself(server, head, words):
    """And not the file before it, which is whole."""
    status = 415 if b"base64" in head else 400
    answer = post(server, form_text((head, b"x\n1\n")), headers=FORM)
    assert answer.status_code == status and words in answer.json()["detail"], answer.text
    assert listed(server)["total"] == 0
    answer = post(server, form_text((FILE_HEAD, b"x\n1\n"), (head, b"x\n2\n")), headers=FORM)
    assert answer.status_code == status, answer.text
    problem = answer.json()
    assert words in problem["detail"] and (problem["index"], problem["uploaded"]) == (1, [1]), problem
    assert "file" not in problem and numbers(listed(server)) == [1]


@pytest.mark.parametrize("encoding", [b"7bit", b"8bit", b"Binary"])
def test_transfer_encodings_that_change_nothing(server, encoding):
    head = FILE_HEAD + b"\r\nContent-Transfer-Encoding: " + encoding
    assert post(server, form_text((head, b"x\n1\n")), headers=FORM).status_code == 201
    answer = get(server, f"{PARTS}/1/csv")
    assert answer.content == b"x\n1\n"


def test_a_form_without_a_boundary(server):
    for path in (PARTS, "/api/v1/file-processing/tasks/"):
        url, headers = server.http + path, {"Content-Type": "multipart/form-data"}
        answer = requests.post(url, data=form_text((FILE_HEAD, b"x\n1\n")), headers=headers, timeout=ANSWER_SECONDS_MAX)
        assert answer.status_code == 400 and "Content-Type has no boundary" in answer.text, answer.text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/table"),
        ("GET", "/api/v1/events"),
        ("GET", f"{PARTS}/1"),
        ("GET", f"{PARTS}/1/csv"),
        ("GET", f"{PARTS}/1/parquet"),
        ("POST", f"{PARTS}/1/restore"),
    ],
)
def test_paths_without_parameters_refuse_them(server, method, path):
    added(server, b"x\n1\n")
    with requests.request(method, f"{server.http}{path}?columns=x", timeout=ANSWER_SECONDS_MAX, stream=True) as answer:
        assert answer.status_code == 400  # before its text is read, which may have no end
        check_problem(answer, 400, "query", "takes no query parameters")
    with requests.request(method, f"{server.http}{path}?", timeout=ANSWER_SECONDS_MAX, stream=True) as answer:
        assert answer.status_code == 200


def test_the_cell_too_many_that_has_a_text_is_marked(server):
    for query, rows, index in [
        ("?drop_trailing_empty=true", b"a,b,,\n1,2,,x\n", 3),
        ("?drop_trailing_empty=true", b"a,b\n1,2,x,\n", 2),
        ("?drop_trailing_empty=true", b'a,b\n1,"2,3",,"",x,,y\n', 4),
        ("", b"a,b\n1,2,,x\n", 3),
        ("", b"a,b\n1,2,,\n", 2),
    ]:
        problem = check_problem(post(server, rows, query), 400, "file", "the header has 2")
        assert (problem["row"], problem["column_index"]) == (1, index), problem


def test_a_form_that_breaks_off_keeps_the_files_that_came_whole(server):
    whole = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\nx\n1\n\r\n'
    answer = post(server, whole * 2 + whole[:-3], headers={"Content-Type": "multipart/form-data; boundary=B"})
    problem = check_problem(answer, 400, "file", "ends before its last boundary")
    assert (problem["index"], problem["uploaded"]) == (2, [1, 2])
    assert numbers(listed(server)) == [1, 2] and server.leftovers() == []


@pytest.mark.parametrize("damage", ["flipped", "emptied", "deleted"])
def test_a_damaged_receipt_is_marked_in_the_lists(server, tally_binary, damage):
    added(server, b"a,b\n1,2\n")
    receipts = [added(server, f"a,b\n{row},x\n{row},\n".encode(), "?trim=true") for row in range(3)]
    whole = listed(server)
    path = server.data / "parts" / "3.json"
    good = path.read_bytes()
    path.unlink() if damage == "deleted" else path.write_bytes(good[:90] + b"~" + good[91:] if damage == "flipped" else b"")
    page = listed(server)
    damaged = page["parts"].pop(2)
    undamaged = whole["parts"].pop(2)
    assert page == whole and (page["total"], page["next"]) == (4, None)
    assert "part 3" in damaged.pop("damaged")
    source = undamaged.pop("source")
    assert source["trim"]
    unknown = {"uploaded_at": None, **{kind: {**undamaged[kind], "xxh3": None} for kind in ("csv", "parquet")}}
    assert damaged == {**undamaged, **unknown}
    pages = [listed(server, f"?limit=1&order=newest&before={before}")["parts"][0] for before in (5, 4, 3, 2)]
    assert ["damaged" in part for part in pages] == [False, True, False, False]

    over_grpc = list(tally(server).ListParts(tally_pb2.ListPartsRequest()))
    assert [bool(receipt.damaged) for receipt in over_grpc] == [False, False, True, False]
    found = over_grpc[2]
    assert (found.rows, found.csv.bytes, found.parquet.bytes) == (2, undamaged["csv"]["bytes"], undamaged["parquet"]["bytes"])
    assert (len(found.columns), found.uploaded_at, found.csv.xxh3) == (0, "", "")
    for flags, line in ([[], "damaged: part 3"], [["--columns"], "damaged: part 3"], [["--json"], '"damaged":"part 3']):
        command = [tally_binary, "parts", "--server", server.address, *flags]
        printed = subprocess.run(command, env=clean_environment(), capture_output=True, encoding="utf-8", timeout=60)
        assert printed.returncode == 1 and "the receipt of 1 part is damaged" in printed.stderr
        assert sum(line in text for text in printed.stdout.splitlines()) == 1, printed.stdout
    check_problem(get(server, f"{PARTS}/3"), 500, None, "part 3")
    path.write_bytes(good)
    whole["parts"].insert(2, {**undamaged, "source": source})
    assert listed(server) == whole and numbers(whole) == [1, *(receipt["part"] for receipt in receipts)]


def test_a_client_that_does_not_read_a_wide_receipt_makes_room_for_another(server):
    names = [f"{index:04}{'x' * 240}" for index in range(4000)]  # more than is buffered on the way
    added(server, (",".join(names) + "\n").encode())
    path = f"{PARTS}/1"
    with connect(server) as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KIB)
        silent.sendall(f"GET {path} HTTP/1.1\r\nHost: {server.http_addresses[0]}\r\n\r\n".encode())
        assert silent.recv(12) == b"HTTP/1.1 200"
        for _ in range(2):  # the second has the permit of the first
            receipt = get(server, path)
            assert receipt.status_code == 200, receipt.text
            assert [column["name"] for column in receipt.json()["columns"]] == names
        assert not read_all(silent).endswith(b"]}\r\n0\r\n\r\n"), "its answer is cut off"


def test_a_form_may_have_a_hundred_files(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--durability", "none")
    answer = post(server, files=form_of(*[b"x\n1\n"] * 101))
    problem = check_problem(answer, 400, "file", "more than 100 files")
    assert (problem["index"], problem["uploaded"]) == (100, list(range(1, 101)))
    assert listed(server)["total"] == 100
    # Receipts that are too long together come without their columns.
    wide = (",".join(f"{'x' * 200}{index}" for index in range(300)) + "\n").encode()
    parts = post(server, files=form_of(wide, wide)).json()["parts"]
    assert [("columns" in part, part["columns_count"]) for part in parts] == [(False, 300)] * 2


def test_a_form_with_a_key_is_repeated(server):
    contents, key = [b"x\n1\n", b"x\n2\n", b"x\n3\n"], {"Idempotency-Key": "k"}
    first = post(server, files=form_of(*contents[:2]), headers=key)
    assert numbers(first.json()) == [1, 2] and "Idempotency-Replayed" not in first.headers
    again = post(server, files=form_of(*contents[:2]), headers=key)
    assert again.json() == first.json() and again.headers["Idempotency-Replayed"] == "true"
    more = post(server, files=form_of(*contents), headers=key)
    assert numbers(more.json()) == [1, 2, 3] and "Idempotency-Replayed" not in more.headers
    # The first file of a form has the key itself, the others have their index after it.
    assert added(server, contents[0], headers=key)["part"] == 1
    assert added(server, contents[2], headers={"Idempotency-Key": "k/2"})["part"] == 3
    other = post(server, files=form_of(contents[0], b"x\n9\n"), headers=key)
    problem = check_problem(other, 409, None, "was used for other bytes")
    assert (problem["part"], problem["index"], problem["uploaded"]) == (2, 1, [1])
    assert listed(server)["total"] == 3
    long = post(server, files=form_of(*contents[:2]), headers={"Idempotency-Key": "k" * 128})
    problem = check_problem(long, 400, "Idempotency-Key", "too long")
    assert problem["uploaded"] == [4]


# --- encodings ----------------------------------------------------------------------------------------------


def zstd(content: bytes) -> bytes:
    return pyarrow.Codec("zstd").compress(content, asbytes=True)


@pytest.mark.parametrize("encoding, compress", [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("ZSTD", zstd)])
def test_a_content_encoding_is_decoded(server, encoding, compress):
    content = b"x,t\n" + b"".join(b"%d,text %d\n" % (row, row) for row in range(50_000))
    receipt = added(server, compress(content), headers={"Content-Encoding": encoding})
    assert (receipt["rows"], receipt["csv"]["bytes"]) == (50_000, len(content))
    assert (server.data / "parts" / "1.csv").read_bytes() == content
    # In pieces, with another option.
    packed = compress(b"x;t\n1;2\n")
    pieces = (packed[at : at + 3] for at in range(0, len(packed), 3))
    assert len(added(server, pieces, "?delimiter=%3B", headers={"Content-Encoding": encoding})["columns"]) == 2
    problem = check_problem(
        post(server, compress(b"x\n1,2\n"), headers={"Content-Encoding": encoding}), 400, "file", "row 1"
    )
    assert (problem["row"], problem["line"], problem["column_index"]) == (1, 2, 1)
    damaged = post(server, compress(content)[:-20], headers={"Content-Encoding": encoding})
    check_problem(damaged, 400, "file", "it is incomplete")
    assert listed(server)["total"] == 2 and server.leftovers() == []


def test_a_content_encoding_that_is_not_known_is_refused(server):
    body = gzip.compress(b"x\n1\n")
    for encoding in ("br", "deflate", "gzip, gzip", "gzip;q=1"):
        answer = post(server, body, headers={"Content-Encoding": encoding})
        check_problem(answer, 415, "Content-Encoding", "send gzip, zstd, or the file as it is")
    both = post(server, body, "?decompress=gzip", headers={"Content-Encoding": "gzip"})
    check_problem(both, 400, "decompress", "send one of the two")
    headers = {"Content-Encoding": "gzip", "Content-Type": "multipart/form-data; boundary=B"}
    check_problem(post(server, body, headers=headers), 415, "Content-Encoding", "decompress=auto")
    assert listed(server)["total"] == 0
    assert added(server, b"x\n1\n", headers={"Content-Encoding": "identity"})["rows"] == 1
    # A file of a form may be compressed in itself.
    answer = post(server, query="?decompress=auto", files=form_of(body, zstd(b"x\n2\n"), b"x\n3\n"))
    assert numbers(answer.json()) == [2, 3, 4]


@pytest.mark.parametrize("encoding, compress", [("gzip", gzip.compress), ("zstd", zstd)])
def test_a_bomb_ends_at_the_limit_of_an_upload(start_server, tmp_path, encoding, compress):
    server = start_server(tmp_path / "data", "--upload-bytes-max", MIB)
    bomb = compress(b"x\n" + b"0\n" * (32 * MIB))
    assert len(bomb) < MIB
    answer = post(server, bomb, headers={"Content-Encoding": encoding})
    check_problem(answer, 400, "file", f"the upload has more than {MIB} bytes")
    assert listed(server)["total"] == 0 and server.leftovers() == []


# --- names --------------------------------------------------------------------------------------------------


def test_hostile_names_come_back_as_they_are(server):
    header = ",".join('"' + name.replace('"', '""') + '"' for name in HOSTILE)
    receipt = added(server, f"{header}\n{header}\n".encode())
    assert [column["name"] for column in receipt["columns"]] == HOSTILE
    preview = get(server, f"{PARTS}/1/rows")
    assert preview.headers["Content-Type"] == "application/json"
    assert preview.json()["columns"] == HOSTILE and preview.json()["rows"] == [HOSTILE]
    for name in HOSTILE:
        body = f'"{name.replace(chr(34), chr(34) * 2)}"\n\x00\n'.encode()
        head = f"Content-Disposition: form-data; name=\"file\"; filename*=UTF-8''{quote(name, safe='')}"
        form = b"--B\r\n" + head.encode() + b"\r\n\r\n" + body + b"\r\n--B--\r\n"
        answer = post(server, form, headers={"Content-Type": "multipart/form-data; boundary=B"})
        problem = check_problem(answer, 400, "file", "a NUL byte")
        assert (problem["file"], problem["column"], problem["uploaded"]) == (name, name, [])
    # A form's header lines end its own names, and nothing of them gets into a header of the answer.
    answer = post(server, files={"file": ('a"\r\nX-Evil: 1', b"x\n\x00\n")})
    assert answer.status_code == 400 and "X-Evil" not in answer.headers


def test_texts_of_a_client_are_cut_in_a_problem(server):
    answer = post(server, files={"file": ("n" * 1000 + ".csv", b"x\n\x00\n")})
    problem = check_problem(answer, 400, "file", "a NUL byte")
    assert problem["file"] == "n" * 256 + "…"


def test_hints_say_which_parameter_helps(server):
    for body, parameter in [
        (b"a;b\n1;2\n", "delimiter=%3B"),
        (b"a\tb\n1\t2\n", "delimiter=tab"),
        (b"a|b\n1|2\n", "delimiter=%7C"),
        ("a,b\n1,2\n".encode("utf-16"), "encoding=utf-16le"),
        (b"a\n\xe9\n", "encoding=windows-1252"),
        (b"a,b\n1,2,,\n", "drop_trailing_empty=true"),
        (gzip.compress(b"a\n1\n"), "decompress=gzip"),
        (zstd(b"a\n1\n"), "decompress=zstd"),
    ]:
        problem = check_problem(post(server, body), 400, "file", "")
        assert problem["hint"].endswith("?" + parameter), problem
        assert added(server, body, "?" + parameter)["rows"] == 1


# --- jobs ---------------------------------------------------------------------------------------------------


def test_all_jobs_are_listed_the_newest_first(server):
    assert get(server, "/api/v1/jobs").json() == {"jobs": [], "undone": 0}
    question = {"question": "<img onerror=x>"}
    survey = requests.post(f"{server.http}/api/global_mean", json=question, timeout=ANSWER_SECONDS_MAX).json()["job_id"]
    url = f"{server.http}/api/v1/file-processing/tasks/?group_by=a&sum=b"
    task = requests.post(url, files={"file": ("a.csv", b"a,b\nx,1\n")}, timeout=ANSWER_SECONDS_MAX).json()["task"]["id"]
    jobs = wait_until(lambda: ended(server), "the end of both jobs")
    assert [(job["id"], job["kind"], job["state"]) for job in jobs] == [
        (task, "task", "done"),
        (survey, "statistic", "failed"),
    ]
    assert jobs[0]["bytes"] > 0 and "reason" not in jobs[0]
    assert "no row with a value" in jobs[1]["reason"] and jobs[1]["result"] is None
    assert [job["id"] for job in get(server, "/api/v1/jobs?limit=1").json()["jobs"]] == [task]
    download = get(server, jobs[0]["result"])
    assert download.text.startswith("a,b\nx,1") and len(download.content) == jobs[0]["bytes"]
    wait_until(lambda: get(server, "/api/v1/jobs").json()["jobs"][0]["state"] == "downloaded", "the note of the download")
    json.dumps(jobs)


def ended(server: Server) -> list:
    answer = get(server, "/api/v1/jobs").json()
    return answer["jobs"] if answer["undone"] == 0 else None
