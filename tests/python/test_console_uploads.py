"""The console takes files: dropped, chosen, refused, paused, interrupted, and lost with the connection."""

import itertools
import json
import re

import pytest
import requests
import table_pb2
from conftest import INPUTS, table, wait_until
from console import DEMO, cells, exactly, shown
from cutting_proxy import CuttingProxy
from http_calls import get
from playwright.sync_api import expect
from uploads import stream

LONG_NAME = "long.csv"
LONG_ROWS = 8000
HELD_AFTER = 1024 * 1024
EVENTS_MAX = 90
LINES_OF_EVENT = 3
EVENT_SECONDS_MAX = 60


def sum_of(server, column: str, format: str = "csv") -> int:
    answer = table(server).ColSum(table_pb2.ColSumReq(column=column, format=format))
    assert answer.error == ""
    return answer.total


def overview(server) -> dict:
    return get(server, "/api/v1/table").json()


def wait_for_uploads(server, condition) -> None:
    """Waits until the uploads that the server is receiving are as wanted, from the events that it sends once a second."""
    with requests.get(f"{server.http}/api/v1/events", stream=True, timeout=EVENT_SECONDS_MAX) as answer:
        events = (line for line in answer.iter_lines() if line.startswith(b"data:"))
        for event in itertools.islice(events, EVENTS_MAX):
            if condition(json.loads(event[len("data:") :])["uploads"]):
                return
    raise AssertionError(f"in vain: {EVENTS_MAX} events")


@pytest.fixture
def long_file(tmp_path):
    """8 MB: more than the buffers between a browser and a server hold."""
    path = tmp_path / LONG_NAME
    path.write_text("x,text\n" + "".join(f"{row},{'t' * 1000}\n" for row in range(LONG_ROWS)))
    return path


@pytest.fixture
def held(server):
    """A way to the server on which an upload stops after its first MiB."""
    with CuttingProxy(server.http_addresses[0], hold_after=HELD_AFTER) as proxy:
        yield proxy


def begin_upload(console, server, long_file) -> None:
    """Sends a file, and returns when the server has received some of it."""
    console.choose(long_file)
    console.upload(LONG_NAME).wait_for_state("sending")
    wait_for_uploads(server, lambda uploads: any(upload["bytes"] > 0 for upload in uploads))


def check_nothing_is_kept(server) -> None:
    wait_for_uploads(server, lambda uploads: uploads == [])
    wait_until(lambda: server.leftovers() == [], "an empty tmp/", seconds=90)
    assert server.parts() == []


def test_a_file_is_dropped_on_any_view(server, open_console):
    console = open_console(server.http)
    expect(console.heading("The table is empty")).to_be_visible()
    console.drop(("dropped.csv", b"x,y\n1,-5\n20,7\n"))
    upload = console.upload("dropped.csv")
    upload.wait_for_state("done")
    expect(upload.row).to_contain_text("Part 1 · 2 rows · 2 columns")
    assert console.page.url.endswith("#/upload")
    assert (sum_of(server, "x"), sum_of(server, "y", "parquet")) == (21, 2)
    console.open("#/")
    expect(console.figure("rows")).to_have_text("2")
    expect(console.figure("parts")).to_have_text("1")


def test_files_are_chosen(server, open_console, tmp_path):
    paths = [tmp_path / f"{number}.csv" for number in range(12)]
    for number, path in enumerate(paths):
        path.write_text(f"x\n{number}\n")
    console = open_console(server.http, "#/upload")
    console.choose(*paths)
    for path in paths:
        console.upload(path.name).wait_for_state("done")
    assert sum_of(server, "x") == sum(range(12))
    assert overview(server)["parts"] == 12


def test_of_a_chosen_folder_the_tables_are_taken(server, open_console, tmp_path):
    (tmp_path / "year" / "month").mkdir(parents=True)
    for name, content in (("a.csv", "x\n1\n"), ("month/b.tsv", "x\n20\n"), ("month/notes.md", "no table\n")):
        (tmp_path / "year" / name).write_text(content)
    console = open_console(server.http, "#/upload")
    with console.page.expect_file_chooser() as chooser:
        console.page.get_by_role("button", name="Choose a folder").click()
    chooser.value.set_files(str(tmp_path / "year"))
    for name in ("year/a.csv", "year/month/b.tsv"):
        console.upload(name).wait_for_state("done")
    expect(console.page.get_by_test_id("upload")).to_have_count(2)
    expect(console.page.get_by_role("main")).to_contain_text("1 other file in the folder was left out")
    assert sum_of(server, "x") == 21


def test_of_several_files_one_is_refused_and_the_others_are_in(server, open_console):
    console = open_console(server.http, "#/table")
    console.drop(
        ("a.csv", b"x\n1\n"), ("wrong.csv", b"x,y\n1,2\n3\n"), ("b.csv", b"x\n10\n"), ("c.csv", b"x\n100\n")
    )
    for name, state in (("a.csv", "done"), ("b.csv", "done"), ("c.csv", "done"), ("wrong.csv", "refused")):
        console.upload(name).wait_for_state(state)
    assert sum_of(server, "x") == 111
    assert len(server.parts()) == 3
    console.page.get_by_role("button", name="Refused").click()
    expect(console.page.get_by_test_id("upload")).to_have_count(1)
    expect(console.upload("wrong.csv").row).to_be_visible()


def test_a_refused_file_shows_the_row_with_the_cell_marked(server, open_console):
    console = open_console(server.http, "#/upload")
    console.drop(("plays.csv", b'Song,Date,Plays\n"Hello, again",2020-01-01,5\nYesterday,2020-01-02,7,8\n'))
    upload = console.upload("plays.csv")
    upload.wait_for_state("refused")
    expect(upload.row.get_by_role("alert")).to_contain_text("Row 2")
    expect(upload.row.get_by_text("Row 2, line 3 of the file:")).to_be_visible()
    expect(upload.row.get_by_test_id("marked-cell")).to_have_text("8")
    assert cells(upload.row.get_by_role("table")) == [["Yesterday", "2020-01-02", "7", "8"]]
    assert server.parts() == [] and server.leftovers() == []


def test_a_refused_file_is_sent_again_as_the_server_proposes(server, open_console):
    console = open_console(server.http, "#/upload")
    # Two columns with commas, so that the page has no doubt before it asks the server. 0xE4 is not UTF-8.
    console.drop(("cities.csv", "city,people\nKöln,1000\nMünster,300\n".encode("windows-1252")))
    upload = console.upload("cities.csv")
    upload.wait_for_state("refused")
    upload.press("Retry as windows-1252")
    upload.wait_for_state("done")
    assert sum_of(server, "people") == 1300
    rows = get(server, "/api/v1/table/parts/1/rows").json()["rows"]
    assert rows == [["Köln", "1000"], ["Münster", "300"]]


def test_a_header_of_one_cell_is_asked_about_before_anything_is_sent(server, open_console):
    console = open_console(server.http, "#/upload")
    console.drop(("german.csv", b"name;pieces\na;1\nb;20\n"))
    upload = console.upload("german.csv")
    upload.wait_for_state("asking")
    expect(upload.row.get_by_test_id("question")).to_contain_text("separated by semicolons")
    assert overview(server)["parts"] == 0
    upload.press("Send with semicolon as delimiter")
    upload.wait_for_state("done")
    assert sum_of(server, "pieces") == 21


def test_the_demo_is_one_click(server, open_console):
    console = open_console(server.http)
    console.page.get_by_test_id("demo").click()
    for name in DEMO:
        console.upload(name).wait_for_state("done")
    # Three at a time, so their order is open.
    stored = [(server.data / "parts" / f"{part['part']}.csv").read_bytes() for part in server.parts()]
    assert sorted(stored) == sorted((INPUTS / name).read_bytes() for name in DEMO)


def test_an_upload_is_paused_resumed_and_in_once(server, open_console, held, long_file):
    console = open_console(f"http://{held.address}", "#/upload")
    begin_upload(console, server, long_file)
    upload = console.upload(LONG_NAME)
    expect(upload.row).to_contain_text(re.compile(r"[\d.]+ MiB of 7\.\d+ MiB"))
    upload.press(f"Pause {LONG_NAME}")
    upload.wait_for_state("paused")
    held.discard()
    check_nothing_is_kept(server)
    held.release()
    upload.press(f"Resume {LONG_NAME}")
    upload.wait_for_state("done")
    expect(upload.row).to_contain_text(f"{shown(LONG_ROWS)} rows")
    assert sum_of(server, "x") == sum(range(LONG_ROWS))
    assert len(server.parts()) == 1


def test_a_cancelled_upload_leaves_nothing(server, open_console, held, long_file):
    console = open_console(f"http://{held.address}", "#/upload")
    begin_upload(console, server, long_file)
    upload = console.upload(LONG_NAME)
    upload.press(f"Cancel {LONG_NAME}")
    upload.wait_for_state("cancelled")
    held.discard()
    check_nothing_is_kept(server)


def test_a_reload_during_an_upload_leaves_nothing_and_the_page_comes_back(server, open_console, held, long_file):
    console = open_console(f"http://{held.address}", "#/upload")
    begin_upload(console, server, long_file)
    console.page.reload()
    held.discard()
    notice = console.page.get_by_test_id("interrupted")
    expect(notice).to_contain_text(LONG_NAME)
    expect(console.page.locator("#connection")).to_have_text("Connected")
    check_nothing_is_kept(server)
    held.release()
    console.choose(long_file)
    console.upload(LONG_NAME).wait_for_state("done")
    expect(notice).to_be_hidden()
    assert sum_of(server, "x") == sum(range(LONG_ROWS))
    assert len(server.parts()) == 1


def test_a_file_that_had_arrived_before_a_reload_is_not_added_twice(server, open_console, tmp_path):
    path = tmp_path / "once.csv"
    path.write_text("x\n5\n")
    console = open_console(server.http, "#/upload")
    # The page is left before it hears the answer.
    console.page.evaluate("XMLHttpRequest.prototype.addEventListener = () => {}")
    console.choose(path)
    parts = "async () => (await (await fetch('/api/v1/table')).json()).parts"
    wait_until(lambda: console.page.evaluate(parts) == 1, "the part", seconds=90)
    console.page.reload()
    expect(console.page.get_by_test_id("interrupted")).to_contain_text("once.csv")
    console.choose(path)
    console.upload("once.csv").wait_for_state("done")
    expect(console.upload("once.csv").row).to_contain_text("was in the table already")
    assert sum_of(server, "x") == 5


def test_the_server_is_stopped_and_started_again_while_the_page_is_open(start_server, open_console, tmp_path):
    first = start_server(tmp_path / "data")
    stream(first, b"x\n1\n")
    with CuttingProxy(first.http_addresses[0]) as way:
        console = open_console(f"http://{way.address}")
        columns = open_console(f"http://{way.address}", "#/table").table("Columns of the table")
        expect(columns.get_by_role("link", name="x", exact=True)).to_be_visible()
        connection = console.page.locator("#connection")
        expect(connection).to_have_text("Connected")
        expect(console.figure("parts")).to_have_text("1")
        first.stop()
        expect(connection).to_have_text("Server not reachable, trying again")
        console.drop(("meanwhile.csv", b"x\n20\n"))
        upload = console.upload("meanwhile.csv")
        upload.wait_for_state("lost")
        second = start_server(tmp_path / "data")
        stream(second, b"later\n300\n")
        way.connect_to(second.http_addresses[0])
        upload.wait_for_state("done")
        expect(connection).to_have_text("Connected")
        console.page.get_by_role("link", name="Overview", exact=True).click()
        expect(console.figure("parts")).to_have_text("3")
        assert sum_of(second, "x") == 21
        # A view that was open while the server was away shows what has changed meanwhile.
        expect(columns.get_by_role("link", name="later", exact=True)).to_be_visible()


def test_watching_browsers_leave_the_server_to_those_who_call(server, open_console, held, long_file):
    console = open_console(f"http://{held.address}", "#/upload")
    begin_upload(console, server, long_file)
    url = f"{server.http}/api/v1/events"
    watchers = [requests.get(url, stream=True, timeout=EVENT_SECONDS_MAX) for _ in range(8)]
    try:
        for number in range(20):
            stream(server, f"y\n{number}\n".encode())
            assert overview(server)["parts"] == number + 1
        assert sum_of(server, "y") == sum(range(20))
        held.release()
        console.upload(LONG_NAME).wait_for_state("done")
        for watcher in watchers:  # each still gets what happens
            lines = itertools.islice(watcher.iter_lines(), EVENTS_MAX * LINES_OF_EVENT)
            assert any(b'"parts":21' in line.replace(b" ", b"") for line in lines)
    finally:
        for watcher in watchers:
            watcher.close()
    expect(console.page.locator("#connection")).to_have_text(exactly("Connected"))
