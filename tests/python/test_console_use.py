"""The console without a mouse, by its links, and what its "Copy as" gives to other programs."""

import json
import os
import shlex
import subprocess
import sys

import pytest
import tally_pb2
from conftest import INPUTS, clean_environment, tally, wait_until
from console import add_demo, cells, shown
from google.protobuf import json_format
from http_calls import ask, get, result_of
from playwright.sync_api import expect
from survey_oracle import QUESTION, survey_csv
from uploads import stream

STOPS_MAX = 200
COMMAND_SECONDS_MAX = 120

FOCUS = """() => {
    const { activeElement: element } = document;
    // The field among chosen columns has its outline around all of them.
    const { outlineStyle, outlineWidth } = getComputedStyle(element.closest('.picker-box') ?? element);
    const name = (element.getAttribute('aria-label') ?? element.innerText ?? '').trim();
    return { tag: element.tagName, name, outline: outlineStyle === 'none' ? 0 : parseFloat(outlineWidth) };
}"""


def tab_to(console, name: str, key: str = "Tab") -> None:
    """Presses a key until the focus is on what has this name. Each stop on the way must be visible."""
    for _ in range(STOPS_MAX):
        console.page.keyboard.press(key)
        focus = console.page.evaluate(FOCUS)
        assert focus["tag"] == "BODY" or focus["outline"] >= 1, f"the focus is not visible: {focus}"
        if focus["name"] == name:
            return
    raise AssertionError(f"{name} is not reached by {key}")


def test_all_is_reached_by_the_keyboard(server, open_console, tmp_path):
    path = tmp_path / "keys.csv"
    path.write_text("x,day,song\n1,2024-01-01,a\n20,2024-01-02,b\n")
    console = open_console(server.http)
    keyboard = console.page.keyboard
    expect(console.heading("The table is empty")).to_be_visible()
    keyboard.press("Tab")
    assert console.page.evaluate(FOCUS)["name"] == "Skip to the content"
    tab_to(console, "Upload")
    keyboard.press("Enter")
    expect(console.page.locator("h1")).to_have_text("Upload")
    tab_to(console, "Choose files")
    with console.page.expect_file_chooser() as chooser:
        keyboard.press("Enter")
    chooser.value.set_files(path)
    console.upload("keys.csv").wait_for_state("done")
    tab_to(console, "Table", "Shift+Tab")
    keyboard.press("Enter")
    expect(console.page.locator("h1")).to_have_text("Table")
    expect(console.table("Columns of the table")).to_be_visible()
    tab_to(console, "x")
    keyboard.press("Enter")
    expect(console.page.get_by_test_id("total")).to_have_text("21")
    tab_to(console, "Group sums", "Shift+Tab")
    keyboard.press("Enter")
    expect(console.page.locator("h1")).to_have_text("Group sums")
    for picker, column in (("Group by", "song"), ("Sum", "x")):
        console.page.get_by_role("combobox", name=picker).focus()
        keyboard.type(column)
        # The other list may still be closing.
        options = console.page.get_by_role("listbox", name=picker).get_by_role("option", name=column)
        expect(options).to_be_visible()
        keyboard.press("ArrowDown")
        keyboard.press("Enter")
        expect(console.page.get_by_role("button", name=f"Remove {column}")).to_be_visible()
    expect(console.table("Groups")).to_be_visible()
    assert cells(console.table("Groups")) == [["b", "20"], ["a", "1"]]
    tab_to(console, "Copy as", "Shift+Tab")
    keyboard.press("Enter")
    expect(console.page.get_by_label("Command")).to_be_visible()
    keyboard.press("Escape")
    expect(console.page.get_by_label("Command")).to_be_hidden()


# Each link, and a text that only this state of the view has.
LINKS = {
    "#/upload?delimiter=%3B&null=NA&null=-": "delimiter semicolon, null \"NA\", null \"-\"",
    "#/table?find=Plays": "1 column",
    "#/table?column=Number+of+Plays": "Sum of Number of Plays",
    "#/table?show=parts": "4 parts",
    "#/table?show=parts&part=2": "XXH3 of the CSV",
    "#/groups?by=Song&by=Date&sum=Number+of+Plays&limit=50": "The largest 50 of",
    "#/statistics?show=ranks": "The five best states",
    "#/jobs?state=failed": "Failed",
}


@pytest.mark.parametrize("link", LINKS)
def test_a_link_reopens_a_view_as_it_is(server, open_console, link):
    add_demo(server)
    console = open_console(server.http, link)
    content = console.page.get_by_role("main")
    expect(content).to_contain_text(LINKS[link])
    expect(console.page.locator("[aria-busy=true]")).to_have_count(0)
    copied = console.commands()["Link"]
    other = open_console(server.http, copied.removeprefix(server.http + "/"))
    assert other.page.url == copied
    expect(other.page.get_by_role("main")).to_contain_text(LINKS[link])


def test_what_is_done_on_a_view_is_in_its_link(server, open_console):
    add_demo(server)
    console = open_console(server.http, "#/groups")
    console.page.get_by_role("button", name="Plays by song").click()
    expect(console.table("Groups")).to_be_visible()
    console.page.locator("select[name=limit]").select_option("10")
    expect(console.table("Groups").locator("tbody tr")).to_have_count(10)
    other = open_console(server.http, console.page.url.removeprefix(server.http + "/"))
    expect(other.table("Groups").locator("tbody tr")).to_have_count(10)
    assert cells(other.table("Groups")) == cells(console.table("Groups"))
    # And back: the browser's own button.
    console.page.get_by_role("link", name="Table", exact=True).click()
    expect(console.page.locator("h1")).to_have_text("Table")
    console.page.go_back()
    expect(console.table("Groups").locator("tbody tr")).to_have_count(10)


def run(command: str, folder, **environment) -> str:
    ended = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=clean_environment(**environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=COMMAND_SECONDS_MAX,
    )
    assert ended.returncode == 0, (command, ended.stderr)
    return ended.stdout


@pytest.fixture
def run_copied(server, tally_binary, tmp_path):
    """Runs a copied command as it is, in a folder with the file that it may name, and a `tally` on the path."""
    programs = tmp_path / "programs"
    programs.mkdir()
    os.symlink(tally_binary, programs / "tally")
    (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (programs / "python").chmod(0o755)
    (tmp_path / "file.csv").write_bytes((INPUTS / "plays.csv").read_bytes())

    def run_text(form: str, text: str) -> str:
        command = f"python -c {shlex.quote(text)}" if form == "Python" else text
        path = f"{programs}:{os.environ['PATH']}"
        return run(command, tmp_path, PATH=path, TALLY_SERVER=server.address, no_proxy="127.0.0.1")

    return run_text


def untimed(answer: dict) -> dict:
    """An answer without the time that it took."""
    return {key: value for key, value in answer.items() if key != "elapsed_ms"}


REQUESTS = {
    "ListParts": (tally_pb2.ListPartsRequest, list),
    "ListColumns": (tally_pb2.ListColumnsRequest, list),
    "GroupSum": (tally_pb2.GroupSumRequest, list),
    "Sum": (tally_pb2.SumRequest, None),
}


def call_as_grpcurl(server, command: str):
    """What grpcurl would do: it may not be on this machine."""
    words = shlex.split(command)
    message = json.loads(words[words.index("-d") + 1]) if "-d" in words else {}
    service, method = words[-1].split("/")
    assert words[0] == "grpcurl" and service == "tally.v1.Tally"
    request, read = REQUESTS[method]
    answer = getattr(tally(server), method)(json_format.ParseDict(message, request()))
    return read(answer) if read else answer


COPIED = {
    "#/": ("/api/v1/table", "ListParts"),
    "#/table": ("/api/v1/table/columns", "ListColumns"),
    "#/table?show=parts": ("/api/v1/table/parts?limit=100", "ListParts"),
    "#/table?show=parts&part=2": ("/api/v1/table/parts/2", "ListParts"),
    "#/table?column=Number+of+Plays": ("/api/v1/table/sum?column=Number+of+Plays&format=parquet", "Sum"),
    "#/groups?by=Song&by=Date&sum=Number+of+Plays": (
        "/api/v1/table/groups?by=Song&by=Date&sum=Number+of+Plays&order=total&limit=20",
        "GroupSum",
    ),
    "#/jobs": ("/api/v1/jobs", None),
}


@pytest.mark.parametrize("view", COPIED)
def test_copied_commands_do_what_the_view_does(server, open_console, run_copied, view):
    add_demo(server)
    stream(server, survey_csv())
    result_of(server, ask(server, "global_mean", {"question": QUESTION}).json()["job_id"])
    target, method = COPIED[view]
    commands = open_console(server.http, view).commands()
    expected = untimed(get(server, target).json())
    assert untimed(json.loads(run_copied("curl", commands["curl"]))) == expected
    assert run_copied("Python", commands["Python"]).strip() != ""
    if method is None:
        return
    answer = call_as_grpcurl(server, commands["grpcurl"])
    tally_output = run_copied("tally", commands["tally"])
    if method == "ListParts":
        assert [part.part for part in answer] == ([2] if "part=2" in view else [1, 2, 3, 4, 5])
        assert tally_output.count("\n") >= 5
    elif method == "ListColumns":
        assert [column.name for column in answer] == [column["name"] for column in expected["columns"]]
        assert all(column.name in tally_output for column in answer)
    elif method == "Sum":
        assert len(answer.sums) == 2 and str(expected["total"]) in tally_output
    else:
        groups = [group for block in answer for group in block.groups]
        assert expected["groups"][0]["key"] in [list(group.cells) for group in groups]
        assert len(tally_output.splitlines()) == len(groups) + 1


def test_copied_uploads_and_statistics_run(server, open_console, run_copied):
    stream(server, survey_csv())
    console = open_console(server.http, "#/upload")
    commands = console.commands()
    for part, form in enumerate(("curl", "Python", "tally"), start=2):
        assert run_copied(form, commands[form]) != ""
        assert [receipt["part"] for receipt in server.parts()][-1] == part
    assert {receipt["rows"] for receipt in server.parts()[1:]} == {200}
    console.open("#/statistics")
    expect(console.page.get_by_test_id("statistics-result").locator(".bar").first).to_be_visible()
    commands = console.commands()
    assert json.loads(run_copied("curl", commands["curl"]).splitlines()[-1])["status"] in ("done", "running")
    assert "'status': 'done'" in run_copied("Python", commands["Python"])


def test_copy_puts_the_command_on_the_clipboard(server, open_console):
    add_demo(server)
    console = open_console(server.http, "#/table?column=x", permissions=["clipboard-read", "clipboard-write"])
    expect(console.page.get_by_test_id("total")).to_have_text(shown(10))
    console.page.get_by_role("button", name="Copy as").click()
    console.page.get_by_role("button", name="tally", exact=True).click()
    text = console.page.get_by_label("Command").inner_text()
    console.page.get_by_role("button", name="Copy", exact=True).click()
    wait_until(lambda: console.page.evaluate("navigator.clipboard.readText()") == text, "the text", seconds=90)
