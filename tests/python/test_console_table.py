"""The console shows the table: sums of columns, parts and their rows, downloads, removal, and many parts."""

import csv
import io
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import table_pb2
import table_pb2_grpc
import tally_pb2
from conftest import CHANNEL_OPTIONS, INPUTS, Server, table, tally
from console import add_demo, cells, shown
from http_calls import get
from playwright.sync_api import expect
from uploads import stream

MANY = 10_000
MANY_CLIENTS = 16


def sum_of(server, column: str, format: str) -> int:
    answer = table(server).ColSum(table_pb2.ColSumReq(column=column, format=format))
    assert answer.error == ""
    return answer.total


def check_sum(console, server, column: str) -> None:
    """The panel that is open shows what gRPC answers for both formats."""
    panel = console.page.get_by_test_id("sum-panel")
    expect(panel.get_by_test_id("total")).to_have_text(shown(sum_of(server, column, "csv")))
    assert sum_of(server, column, "parquet") == sum_of(server, column, "csv")
    expect(panel).to_contain_text("the same total from both formats")
    for name in ("csv-time", "csv-bytes", "parquet-time", "parquet-bytes"):
        expect(panel.get_by_test_id(name)).to_contain_text("CSV" if name.startswith("csv") else "Parquet")


def parts_of(server) -> list:
    return list(tally(server).ListParts(tally_pb2.ListPartsRequest()))


def test_a_click_on_a_column_sums_it_from_both_formats(server, open_console):
    add_demo(server)
    # Beyond the 53 bits that a JSON number keeps.
    stream(server, b"x,large\n-7,9007199254740993\n0,1152921504606846977\n")
    console = open_console(server.http, "#/table")
    for column in ("x", "large", "Number of Plays"):
        console.page.get_by_role("link", name=column, exact=True).click()
        expect(console.heading(f"Sum of {column}")).to_be_visible()
        check_sum(console, server, column)
    console.page.get_by_role("button", name="Run again").click()
    check_sum(console, server, "Number of Plays")
    answer = get(server, "/api/v1/table/sum?column=x&format=csv").json()
    console.page.get_by_role("link", name="x", exact=True).click()
    panel = console.page.get_by_test_id("sum-panel")
    expect(panel).to_contain_text(f"{answer['rows']} rows in {answer['parts']} of {answer['table_parts']} parts")
    expect(panel.get_by_test_id("csv-bytes")).to_contain_text(f"{answer['bytes']}")


def test_a_damaged_receipt_is_marked_among_the_parts(server, open_console):
    for row in range(3):
        stream(server, f"a\n{row}\n".encode())
    (server.data / "parts" / "2.json").write_bytes(b"{}")
    console = open_console(server.http, "#/table?show=parts")
    rows = console.page.get_by_role("row")
    expect(rows.filter(has_text="damaged receipt")).to_have_count(1)
    expect(rows.filter(has=console.page.get_by_role("link", name="2", exact=True))).to_contain_text("damaged receipt")
    expect(rows).to_have_count(4)
    console.page.goto(f"{server.http}/#/")
    expect(console.page.get_by_text("damaged receipt")).to_have_count(1)


def test_columns_are_listed_found_and_sorted(server, open_console):
    add_demo(server)
    stream(server, b"x,mixed\n1,a\n2,\n")
    stream(server, b"mixed\n1\n")
    console = open_console(server.http, "#/table")
    listed = console.table("Columns of the table")
    expect(listed.get_by_role("link", name="mixed", exact=True)).to_be_visible()
    rows = {row[0]: row for row in cells(listed)}
    header = next(csv.reader(io.StringIO((INPUTS / "survey.csv").read_text())))
    assert {"x", "y", "z", "Song", "Date", "Number of Plays", "mixed", *header} == set(rows)
    assert rows["x"][1:4] == ["integer", "3", "6"]
    assert rows["mixed"][1] == "integer 1, text 1"
    assert rows["mixed"][2:5] == ["2", "3", "1 (33 %)"]
    assert rows["Date"][1] == "date"
    listed.get_by_role("button", name="Rows").click()
    expect(listed.locator("tbody tr").first).to_contain_text(shown(200))
    console.page.get_by_label("Find a column").fill("PLAY")
    expect(listed.locator("tbody tr")).to_have_count(1)


def test_a_sum_that_is_refused_names_the_cell(server, open_console):
    stream(server, b"word\nabc\n")
    console = open_console(server.http, "#/table?column=word")
    expect(console.page.get_by_test_id("sum-panel").get_by_role("alert")).to_contain_text("word")


def test_a_part_is_previewed_downloaded_removed_and_restored(server, open_console):
    add_demo(server)
    console = open_console(server.http, "#/table?show=parts")
    console.table("Parts of the table").get_by_role("link", name="3", exact=True).click()
    preview = console.table("First rows of part 3")
    expect(preview).to_be_visible()
    rows = list(csv.reader(io.StringIO((INPUTS / "plays.csv").read_text())))
    assert preview.locator("thead th").all_inner_texts() == rows[0]
    assert cells(preview) == rows[1:21]
    for kind in ("CSV", "Parquet"):
        with console.page.expect_download() as download:
            console.page.get_by_role("link", name=f"Download part 3 as {kind}").click()
        stored = (server.data / "parts" / f"3.{kind.lower()}").read_bytes()
        assert download.value.suggested_filename == f"3.{kind.lower()}"
        assert download.value.path().read_bytes() == stored
    console.page.get_by_role("button", name="Remove", exact=True).click()
    console.page.get_by_role("button", name="Keep", exact=True).click()
    console.page.get_by_role("button", name="Remove", exact=True).click()
    console.page.get_by_role("button", name="Remove", exact=True).click()
    expect(console.page.get_by_role("button", name="Restore")).to_be_visible()
    assert [part.part for part in parts_of(server)] == [1, 2, 4]
    console.page.get_by_role("button", name="Restore").click()
    expect(preview).to_be_visible()
    assert [part.part for part in parts_of(server)] == [1, 2, 3, 4]


@pytest.fixture(scope="module")
def many_parts(tmp_path_factory):
    """A server with MANY parts of one row; the row of part N has a number between 0 and MANY."""
    flags = ("--durability", "none", "--parts-max", str(MANY + 1))
    with Server(tmp_path_factory.mktemp("many") / "data", *flags) as running:
        with grpc.insecure_channel(running.address, options=CHANNEL_OPTIONS) as channel:
            upload = table_pb2_grpc.TableStub(channel).Upload

            def add(number: int) -> str:
                return upload(table_pb2.UploadReq(csv_data=f"n,even\n{number},{number % 2}\n".encode())).error

            with ThreadPoolExecutor(MANY_CLIENTS) as clients:
                assert set(clients.map(add, range(MANY))) == {""}
        yield running


def test_ten_thousand_parts_are_shown_by_pages(many_parts, open_console):
    console = open_console(many_parts.http)
    expect(console.figure("parts")).to_have_text(shown(MANY))
    expect(console.chart("Rows in the table").locator("canvas")).to_be_visible()
    console.page.get_by_role("link", name="All parts").click()
    listed = console.table("Parts of the table")
    first = listed.locator("tbody tr").first
    expect(first).to_contain_text(shown(MANY))
    size = listed.locator("tbody tr").count()
    assert 10 <= size <= 100, "a page has some parts, and no more than a browser shows at once"
    seen = [row[0] for row in cells(listed)]
    for page in range(1, 3):
        console.page.get_by_role("button", name="Older parts").click()
        expect(first).to_contain_text(shown(MANY - page * size))
        seen += [row[0] for row in cells(listed)]
    assert seen == [shown(part) for part in range(MANY, MANY - 3 * size, -1)]
    console.page.reload()
    expect(first).to_contain_text(shown(MANY - 2 * size))
    console.page.get_by_label("Go to a part by its number").fill("4711")
    console.page.get_by_role("button", name="Go", exact=True).click()
    preview = console.table("First rows of part 4711")
    expect(preview).to_be_visible()
    stored = (many_parts.data / "parts" / "4711.csv").read_text().split()
    assert [",".join(row) for row in cells(preview)] == stored[1:]


def test_sums_over_ten_thousand_parts(many_parts, open_console):
    console = open_console(many_parts.http, "#/table?column=n")
    check_sum(console, many_parts, "n")
    expect(console.page.get_by_test_id("total")).to_have_text(shown(sum(range(MANY))))
    console.open("#/groups?by=even&sum=n")
    groups = console.table("Groups")
    expect(groups).to_be_visible()
    odd, even = sum(range(1, MANY, 2)), sum(range(0, MANY, 2))
    assert cells(groups) == [["1", shown(odd)], ["0", shown(even)]]
