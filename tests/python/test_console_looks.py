"""How the console looks on each view, in light and dark, and on a phone: what axe-core finds, and what does not fit.

The screenshots are in target/screenshots/ after a run. No test compares them.
"""

import re

import pytest
from conftest import Server
from console import AXE, NARROW, WIDE, Console, add_demo, colours_of_canvas, screenshot
from http_calls import PLAYS, ask, completed_task, ended_task, result_of, start_task
from playwright.sync_api import expect
from uploads import stream

SURVEY = "Percent of adults aged 18 years and older who have obesity"
PLAYS_BY = "#/groups?sum=Number+of+Plays&by="

# Each view: its link, and what is there when it is complete.
VIEWS = {
    "overview": ("#/", "section:has-text('Waiting for a worker'):has(canvas) dd"),
    "upload": ("#/upload", "text=Drop CSV files or folders anywhere"),
    "upload-options": ("#/upload?delimiter=%3B&null=NA&trim=true", "details[open] select"),
    "columns": ("#/table", "table:has(caption:text('Columns of the table')) tbody tr"),
    "sum": ("#/table?column=Number+of+Plays", "[data-testid=total]"),
    "parts": ("#/table?show=parts", "table:has(caption:text('Parts of the table')) tbody tr"),
    "part": ("#/table?show=parts&part=3", "table:has(caption:text('First rows')) tbody tr"),
    "part-unknown": ("#/table?show=parts&part=4711", "[role=alert]"),
    "groups-empty": ("#/groups", "text=Nothing asked yet"),
    "groups": (PLAYS_BY + "Song", "table:has(caption:text('Groups')) tbody tr"),
    "days": (PLAYS_BY + "Date", "figure canvas"),
    "statistics": ("#/statistics", "[data-testid=statistics-result] .bar"),
    "best-and-worst": (f"#/statistics?show=ranks&question={SURVEY}", "[data-testid=statistics-result] .bar"),
    "difference": (f"#/statistics?show=difference&question={SURVEY}", "[data-testid=statistics-result] .bar"),
    "categories": (f"#/statistics?show=categories&question={SURVEY}", "[data-testid=statistics-result] tbody tr"),
    "categories-of-a-state": (
        f"#/statistics?show=categories&state=Colorado&question={SURVEY}",
        "[data-testid=statistics-result] .bar",
    ),
    "jobs": ("#/jobs", "table:has(caption:text('Jobs')) tbody tr"),
}
LOOKS = {
    "light": {"color_scheme": "light", "viewport": WIDE},
    "dark": {"color_scheme": "dark", "viewport": WIDE},
    "phone": {"color_scheme": "dark", "viewport": NARROW, "has_touch": True, "is_mobile": True},
}
EMPTY = {
    "empty-overview": ("#/", "text=The table is empty"),
    "empty-columns": ("#/table", "text=No columns yet"),
    "empty-parts": ("#/table?show=parts", "text=No parts yet"),
    "empty-groups": ("#/groups", "text=The table has no columns yet"),
    "empty-statistics": ("#/statistics", "text=No survey in the table"),
    "empty-jobs": ("#/jobs", "text=No jobs yet"),
}


@pytest.fixture(scope="module")
def shown_server(tmp_path_factory):
    """A server with the demo's files, files with odd shapes, and jobs of all kinds."""
    with Server(tmp_path_factory.mktemp("looks") / "data") as running:
        add_demo(running)
        many = 60
        names = ",".join(f"a_column_with_a_long_name_{number}" for number in range(many))
        stream(running, f"{names}\n{','.join(['1234567890'] * many)}\n".encode())
        stream(running, f"{'w' * 300},text\n1,{'t' * 2000}\n".encode())
        result_of(running, ask(running, "states_mean", {"question": SURVEY}).json()["job_id"])
        completed_task(running, PLAYS)
        ended_task(running, start_task(running, b"Song,Date,Number of Plays\na,2020-01-01,many\n"))
        yield running


@pytest.fixture(scope="module")
def empty_server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("empty") / "data") as running:
        yield running


def violations(console: Console) -> list:
    """What axe-core calls serious or critical, with the elements."""
    found = console.page.evaluate(
        """async () => (await axe.run(document, { resultTypes: ['violations'] })).violations
            .filter(({ impact }) => impact === 'serious' || impact === 'critical')
            .map(({ id, help, nodes }) => {
                const where = nodes.slice(0, 3).map(({ html, failureSummary }) => `${html} ${failureSummary}`);
                return [id, help, ...where];
            })"""
    )
    return found


def show(console: Console, view: str, complete: str) -> None:
    """Opens a view anew, and waits until all of it is there."""
    console.page.goto("about:blank")
    console.open(view)
    expect(console.page.locator(complete).first).to_be_visible()
    expect(console.page.locator("#connection")).to_have_text("Connected")
    expect(console.page.locator("[aria-busy=true]")).to_have_count(0)


def check_view(console: Console, name: str, look: str) -> list:
    """Keeps a picture of the view that is shown, and returns what is wrong with it."""
    screenshot(console.page, f"{name}-{look}")
    return wrong_with(console, name)


def wrong_with(console: Console, name: str) -> list:
    console.page.evaluate(AXE.read_text(encoding="utf-8") + ";0")
    wrong = [(name, *violation) for violation in violations(console)]
    # What is wider than the page would be cut off, or make it scroll to the side.
    width, wanted = console.page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    if width > wanted:
        wrong.append((name, "scrolls to the side", width, wanted))
    return wrong


@pytest.mark.parametrize("look", LOOKS)
def test_views_are_accessible_and_fit(shown_server, open_console, look):
    console = open_console(shown_server.http, **LOOKS[look])
    wrong = []
    for name, (view, complete) in VIEWS.items():
        show(console, view, complete)
        wrong += check_view(console, name, look)
    assert wrong == []


@pytest.mark.parametrize("look", ["light", "phone"])
def test_an_empty_table_says_what_to_do_first(empty_server, open_console, look):
    console = open_console(empty_server.http, **LOOKS[look])
    wrong = []
    for name, (view, complete) in EMPTY.items():
        show(console, view, complete)
        wrong += check_view(console, name, look)
    assert wrong == []


@pytest.mark.parametrize("look", ["light", "phone"])
def test_uploads_in_all_states_are_accessible_and_fit(server, open_console, look):
    console = open_console(server.http, "#/upload", **LOOKS[look])
    console.drop(
        ("in the table.csv", b"x,y\n1,2\n3,4\n"),
        (f"a long name that does not fit into one line of a phone_{'y' * 120}.csv", b"x\n1\n"),
        ("refused.csv", b"name,value,other\nfirst,1,2\nsecond,2,3,4\n"),
        ("question.csv", b"name;value;other\na;1;2\n"),
    )
    for state, count in (("done", 2), ("refused", 1), ("asking", 1)):
        expect(console.page.locator(f"[data-testid=upload][data-state={state}]")).to_have_count(count)
    expect(console.page.get_by_test_id("marked-cell")).to_be_visible()
    assert check_view(console, "uploads", look) == []
    console.page.get_by_role("button", name="Copy as").click()
    expect(console.page.get_by_label("Command")).to_be_visible()
    assert check_view(console, "copy-as", look) == []


def test_dark_mode_follows_the_system_while_the_page_is_open(shown_server, open_console):
    console = open_console(shown_server.http, color_scheme="light")
    chart = console.chart("Rows in the table")
    expect(chart.locator("canvas")).to_be_visible()
    console.wait_until("() => document.querySelector('figure canvas').width > 0")
    colours = "['backgroundColor', 'color'].map((name) => getComputedStyle(document.body)[name])"

    def brightness(colour: str) -> int:
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    background, text = map(brightness, console.page.evaluate(colours))
    assert background > 700 and text < 150
    light = chart.locator("canvas").evaluate("canvas => canvas.toDataURL()")
    console.page.emulate_media(color_scheme="dark")
    background, text = map(brightness, console.page.evaluate(colours))
    assert background < 150 and text > 600
    console.wait_until("light => document.querySelector('figure canvas').toDataURL() !== light", light)
    assert colours_of_canvas(chart) > 2


def test_what_axe_finds_is_seen(shown_server, open_console):
    """The checks above see what they look for."""
    console = open_console(shown_server.http)
    expect(console.figure("rows")).to_be_visible()
    console.page.evaluate(
        """() => {
            const image = document.createElement('button');
            image.style.cssText = 'width: 3000px; height: 20px';
            document.querySelector('main').append(image);
        }"""
    )
    wrong = [(kind, *_) for _, kind, *_ in wrong_with(console, "with mistakes")]
    assert [kind for kind, *_ in wrong] == ["button-name", "scrolls to the side"]
