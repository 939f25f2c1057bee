"""Names from data that look like code or markup: the console shows them, runs nothing, and asks nobody else.

Each Console also fails at its end if there was a dialog, an error, a breach of the page's policy, or a request to
another server.
"""

import csv
import io
from urllib.parse import urlencode

import tally_pb2
from conftest import tally
from console import cells
from playwright.sync_api import expect
from test_console_groups import groups_of
from uploads import stream

IMAGE = "<img src=x onerror=window.ranCode=1>"
NAMES = [
    IMAGE,
    "<script>window.ranCode=1</script>",
    "\"><svg onload='window.ranCode=1'>",
    "javascript:window.ranCode=1",
    "{{constructor.constructor('window.ranCode=1')()}}",
    "__proto__",
    "constructor",
    "a&amp;b&column=x#/upload?delimiter=;",
    "'; rm -rf ~; echo $(id) `id`",
    "\N{RIGHT-TO-LEFT OVERRIDE}evil",
    "line\nbreak",
    " spaces ",
    "long" * 200,
]
OTHER_ORIGIN = "<img src=http://192.0.2.1/x.png>"


def hostile_csv() -> bytes:
    """A column of integers for each name, and a column of texts that are names."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["text", *NAMES])
    for number, name in enumerate([*NAMES, OTHER_ORIGIN]):
        rows.writerow([name, *range(number, number + len(NAMES))])
    return text.getvalue().encode()


def total_of(name: str) -> int:
    at = NAMES.index(name)
    return sum(range(at, at + len(NAMES) + 1))


def check_nothing_ran(console) -> None:
    assert console.page.evaluate("window.ranCode") is None
    assert console.page.locator("main img, main script").count() == 0
    assert console.trouble == []


def plainly(name: str) -> str:
    """A name as the console shows it: what would change how the text around it reads is a symbol."""
    return name.replace("\N{RIGHT-TO-LEFT OVERRIDE}", "\ufffd").replace("\n", "\N{SYMBOL FOR LINE FEED}").strip()


def test_hostile_columns_are_listed_and_summed(server, open_console):
    stream(server, hostile_csv())
    console = open_console(server.http, "#/table")
    listed = console.table("Columns of the table")
    expect(listed).to_be_visible()
    assert sorted(row[0] for row in cells(listed)) == sorted(["text", *map(plainly, NAMES)])
    for name in NAMES:
        row = sorted(["text", *NAMES], key=str.encode).index(name)  # the order of the list
        listed.locator("tbody tr").nth(row).get_by_role("link").click()
        expect(console.page.get_by_test_id("total")).to_have_text(str(total_of(name)))
    for name in NAMES[:1] + NAMES[5:11]:  # a link of which parts could be taken for something else
        console.page.goto("about:blank")
        console.open(f"#/table?{urlencode({'column': name})}")
        expect(console.page.get_by_test_id("total")).to_have_text(str(total_of(name)))
    check_nothing_ran(console)


def test_hostile_cells_are_previewed_and_grouped(server, open_console):
    stream(server, hostile_csv())
    console = open_console(server.http, "#/table?show=parts&part=1")
    preview = console.table("First rows of part 1")
    expect(preview).to_be_visible()
    assert [row[0] for row in cells(preview)][:2] == NAMES[:2]
    check_nothing_ran(console)
    console.open("#/groups")
    for picker, name in (("Group by", "text"), ("Group by", "__proto__"), ("Sum", IMAGE), ("Sum", "constructor")):
        field = console.page.get_by_role("combobox", name=picker)
        field.fill(name)
        expect(console.page.get_by_role("option").filter(has_text=name)).not_to_have_count(0)
        field.press("Enter")
    groups = console.table("Groups")
    expect(groups).to_be_visible()
    answer = groups_of(server, ["text", "__proto__"], [IMAGE, "constructor"])
    assert len(cells(groups)) == len(answer) == len(NAMES) + 1
    assert {row[2] for row in cells(groups)} == {str(group[2]) for group in answer}
    with console.page.expect_download() as download:
        console.page.get_by_role("link", name="All groups as CSV").click()
    with open(download.value.path(), newline="", encoding="utf-8") as file:
        assert list(csv.reader(file))[1:] == [[str(cell) for cell in group] for group in answer]
    check_nothing_ran(console)


def test_hostile_file_names_and_refused_cells(server, open_console):
    console = open_console(server.http, "#/upload")
    wrong = io.StringIO()
    csv.writer(wrong).writerows([[IMAGE, "b"], ["1", "2"], [IMAGE, OTHER_ORIGIN, NAMES[1]]])
    console.drop(
        (f"{IMAGE}.csv", b"x\n1\n"),
        (f"{NAMES[1]}.csv", wrong.getvalue().encode()),
        ("..\\..\\x?.csv", f"{IMAGE};b\n1;2\n".encode()),
    )
    for state in ("done", "refused", "asking"):
        expect(console.page.locator(f"[data-testid=upload][data-state={state}]")).to_have_count(1)
    expect(console.page.get_by_test_id("marked-cell")).to_have_text(NAMES[1])
    expect(console.page.get_by_test_id("question").get_by_text(IMAGE)).to_be_visible()
    check_nothing_ran(console)
    console.page.get_by_role("link", name="Part 1").click()
    expect(console.table("First rows of part 1")).to_be_visible()
    check_nothing_ran(console)


def test_hostile_questions_and_states(server, open_console):
    rows = [["Question", "LocationDesc", "Data_Value", "StratificationCategory1", "Stratification1"]]
    rows += [[IMAGE, name, "1.5", NAMES[1], OTHER_ORIGIN] for name in NAMES]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    stream(server, text.getvalue().encode())
    console = open_console(server.http, "#/statistics")
    figure = console.chart("Mean of each state")
    expect(figure).to_be_visible()
    expect(figure.locator(".bar")).to_have_count(len(NAMES))
    console.page.locator("select[name=state]").select_option(IMAGE)
    console.page.get_by_role("link", name="By category").click()
    expect(console.page.get_by_role("figure").filter(has_text=NAMES[1])).to_be_visible()
    check_nothing_ran(console)
    console.page.get_by_role("link", name="Jobs", exact=True).click()
    expect(console.table("Jobs")).to_be_visible()
    check_nothing_ran(console)


def test_hostile_links_are_only_links(server, open_console):
    stream(server, hostile_csv())
    console = open_console(server.http)
    for hash in (
        f"#/{IMAGE}",
        f"#/table?column={IMAGE}&find={NAMES[1]}",
        f"#/table?show=parts&part={IMAGE}",
        "#/table?show=parts&part=../../jobs",
        f"#/table?show=parts&before={IMAGE}&newer={IMAGE}",
        f"#/groups?by={IMAGE}&sum={IMAGE}&limit={IMAGE}",
        f"#/statistics?question={IMAGE}&state={IMAGE}&show=__proto__",
        "#/jobs?state=__proto__",
        f"#/upload?delimiter={IMAGE}&encoding={IMAGE}&null={IMAGE}",
    ):
        console.page.goto("about:blank")
        console.open(hash)
        expect(console.page.locator("#connection")).to_have_text("Connected")
        expect(console.page.locator("h1")).to_be_visible()
        expect(console.page.locator("[aria-busy=true]")).to_have_count(0)
        check_nothing_ran(console)


def test_the_answers_that_hold_the_names_are_those_of_grpc(server):
    """The tests above would pass with a server that drops the names: it does not."""
    stream(server, hostile_csv())
    columns = [column.name for column in tally(server).ListColumns(tally_pb2.ListColumnsRequest())]
    assert sorted(columns) == sorted(["text", *NAMES])


def test_what_is_forbidden_is_noticed(server, open_console):
    """What the other tests rely on: were something run, they would fail."""
    console = open_console(server.http)
    console.page.evaluate(
        """async () => {
            const noticed = new Promise((resolve) => addEventListener('securitypolicyviolation', resolve));
            const script = document.createElement('script');
            script.textContent = 'window.ranCode = 1';
            document.body.append(script);
            await noticed;
            alert('hello');
            setTimeout(() => { throw new Error('thrown'); });
            await new Promise((resolve) => setTimeout(resolve));
        }"""
    )
    assert console.page.evaluate("window.ranCode") is None
    for word in ("policy: script-src", "dialog: hello", "error: thrown"):
        assert any(text.startswith(word) for text in console.trouble), console.trouble
    console.trouble.clear()
