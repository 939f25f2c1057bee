"""The console's group sums: the largest groups as bars, days as a line, and the whole result as CSV."""

import csv
import io

import tally_pb2
from conftest import tally
from console import add_demo, cells, colours_of_canvas, shown
from playwright.sync_api import expect
from uploads import stream

PLAYS = "Number of Plays"


def groups_of(server, by: list, sum: list) -> list:
    """What gRPC answers: cells and totals of each group."""
    blocks = tally(server).GroupSum(tally_pb2.GroupSumRequest(by=by, sum=sum))
    return [[*group.cells, *group.totals] for block in blocks for group in block.groups]


def bars(figure) -> list:
    """Labels and values of a bar chart, from the top."""
    return figure.locator(".bar-row:has(.bar)").evaluate_all(
        "rows => rows.map((row) => ['.bar-label', '.bar-value'].map((kind) => row.querySelector(kind).innerText))"
    )


def download_all(console) -> list:
    with console.page.expect_download() as download:
        console.page.get_by_role("link", name="All groups as CSV").click()
    return list(csv.reader(io.StringIO(download.value.path().read_text())))


def test_columns_are_chosen_and_the_largest_groups_are_bars(server, open_console):
    add_demo(server)
    console = open_console(server.http, "#/groups")
    for picker, column in (("Group by", "Song"), ("Sum", PLAYS)):
        console.page.get_by_role("combobox", name=picker).fill(column[:3])
        console.page.get_by_role("option", name=column).click()
    expected = sorted(groups_of(server, ["Song"], [PLAYS]), key=lambda group: (-group[1], group[0].encode()))
    figure = console.chart(f"{PLAYS} by Song")
    expect(figure).to_be_visible()
    assert bars(figure) == [[song, shown(total)] for song, total in expected[:20]]
    widths = figure.locator(".bar").evaluate_all("bars => bars.map((bar) => parseFloat(bar.style.width))")
    for (_, total), width in zip(expected[:20], widths):
        assert abs(width / widths[0] - total / expected[0][1]) < 0.001
    assert cells(console.table("Groups")) == [[song, shown(total)] for song, total in expected[:20]]
    downloaded = download_all(console)
    assert downloaded[1:] == [[song, str(total)] for song, total in groups_of(server, ["Song"], [PLAYS])]
    assert downloaded[0][0] == "Song" and len(downloaded[0]) == 2


def test_days_are_a_line(server, open_console):
    add_demo(server)
    console = open_console(server.http, f"#/groups?by=Date&sum={PLAYS}")
    figure = console.chart(f"{PLAYS} by Date").filter(has=console.page.locator("canvas"))
    expect(figure.locator("canvas")).to_be_visible()
    # A frame after the canvas is there.
    console.wait_until("canvas => canvas.width > 0", figure.locator("canvas").element_handle())
    assert colours_of_canvas(figure) > 2
    # The same numbers, one key away.
    figure.locator(".figure-toggle").focus()
    console.page.keyboard.press("t")
    by_day = figure.get_by_role("table")
    expect(by_day).to_be_visible()
    expected = groups_of(server, ["Date"], [PLAYS])
    assert cells(by_day) == [[day, shown(total)] for day, total in reversed(expected)]
    console.page.keyboard.press("t")
    expect(figure.locator("canvas")).to_be_visible()
    assert download_all(console)[1:] == [[day, str(total)] for day, total in expected]


def test_several_columns_and_a_total_beyond_53_bits(server, open_console):
    stream(server, b'a,b,n,m\nx,"y, z",9007199254740993,1\nx,,-5,2\n,q,7,-3\nx,"y, z",9007199254740993,1\n')
    console = open_console(server.http, "#/groups?by=a&by=b&sum=n&sum=m")
    groups = console.table("Groups")
    expect(groups).to_be_visible()
    assert cells(groups) == [
        ["x", "y, z", shown(2 * 9007199254740993), "2"],
        ["empty", "q", "7", shown(-3)],
        ["x", "empty", shown(-5), "2"],
    ]
    answer = groups_of(server, ["a", "b"], ["n", "m"])
    assert download_all(console)[1:] == [[str(cell) for cell in group] for group in answer]


def test_a_question_that_cannot_be_answered_says_why(server, open_console):
    add_demo(server)
    console = open_console(server.http, "#/groups?by=Song&sum=Date")
    expect(console.page.get_by_test_id("groups-result").get_by_role("alert")).to_contain_text("Date")
    console.open("#/groups?by=Song&sum=x")  # no part has both
    expect(console.heading("No groups")).to_be_visible()
