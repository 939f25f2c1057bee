"""The console in Chromium, driven by Playwright.

    def test_something(server, open_console):   # fixtures of conftest.py
        console = open_console(server.http, "#/upload")
        console.drop(("a.csv", b"x\\n1\\n"))
        console.upload("a.csv").wait_for_state("done")

Whatever a test is about, the page must not do what it may never do: show a dialog, raise an error, break its
Content-Security-Policy, or ask another server. `close`, which the fixture calls, fails if it did.

Tests wait for what the page shows, up to PATIENCE_MS, and never for a time.
"""

import base64
import os
import re
import shutil
from contextlib import contextmanager

from conftest import INPUTS, ROOT, Server, step_aside
from playwright.sync_api import Browser, Dialog, Locator, Page, expect, sync_playwright
from uploads import stream

PATIENCE_MS = 90_000  # of one wait, on a machine that does much else
BROWSERS = ("chromium", "chromium-browser", "google-chrome")  # the names that distributions give it
START_MS_MAX = 300_000  # of Chromium, if the disk is busy
NARROW = {"width": 390, "height": 844}
WIDE = {"width": 1280, "height": 900}
AXE = ROOT / "tests" / "python" / "vendor" / "axe-core" / "axe.min.js"
SCREENSHOTS = ROOT / "target" / "screenshots"
# The files that the console offers for an empty table.
DEMO = ("simple.csv", "second.csv", "plays.csv", "survey.csv")

expect.set_options(timeout=PATIENCE_MS)

# Runs before the page's own scripts, and outside its policy.
WATCH_POLICY = """addEventListener('securitypolicyviolation', (event) =>
    reportTrouble(`policy: ${event.effectiveDirective} forbids ${event.blockedURI} ${event.sample}`))"""

# As a browser does it: the files of a real drop are in a DataTransfer, too.
DROP = """(files) => {
    const transfer = new DataTransfer();
    for (const [name, content] of files) {
        const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
        transfer.items.add(new File([bytes], name, { type: 'text/csv', lastModified: 1 }));
    }
    const target = document.querySelector('main');
    for (const kind of ['dragenter', 'dragover', 'drop']) {
        target.dispatchEvent(new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: transfer }));
    }
}"""


def chromium() -> str:
    """The path of the browser, or the test steps aside."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        step_aside("the browser tests need chromium: apt-get install chromium")
    return path


@contextmanager
def launched_browser():
    path = chromium()
    with sync_playwright() as playwright:
        # Chromium's sandbox refuses to run as root.
        browser = playwright.chromium.launch(
            executable_path=path, chromium_sandbox=os.geteuid() != 0, timeout=START_MS_MAX
        )
        yield browser
        browser.close()


class Console:
    """One page in a browser of its own: nothing is shared with other tests."""

    def __init__(self, browser: Browser, url: str, view: str = "#/", **options):
        self.url = url
        self.trouble = []
        options = {"viewport": WIDE, "reduced_motion": "reduce", **options}
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(PATIENCE_MS)
        self.context.expose_binding("reportTrouble", lambda _source, text: self.trouble.append(text))
        self.context.add_init_script(WATCH_POLICY)
        self.page: Page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.trouble.append(f"error: {error}"))
        self.page.on("console", self._heard)
        self.page.on("dialog", self._asked)
        self.page.on("request", self._requested)
        # From the beginning: Playwright sees the browser's choice of files only while somebody listens.
        self.page.on("filechooser", lambda _chooser: None)
        self.open(view)

    def _heard(self, message) -> None:
        # A refused file is such a message, too: the status of the answer is 400.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.trouble.append(f"console: {message.text}")

    def _asked(self, dialog: Dialog) -> None:
        if dialog.type == "beforeunload":  # files are on their way: the tests mean to leave
            dialog.accept()
            return
        self.trouble.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _requested(self, request) -> None:
        if not request.url.startswith((self.url + "/", "data:", "blob:" + self.url)):
            self.trouble.append(f"request: {request.url}")

    def open(self, view: str) -> None:
        self.page.goto(f"{self.url}/{view}")

    def close(self) -> None:
        self.page.evaluate("0")  # what happened before is reported before the answer
        self.context.close()
        assert self.trouble == []

    def drop(self, *files) -> None:
        """Drops files, each a name and its content, on the page."""
        self.page.evaluate(DROP, [(name, base64.b64encode(content).decode()) for name, content in files])

    def choose(self, *paths) -> None:
        """Chooses files by the button and the browser's dialog."""
        with self.page.expect_file_chooser() as chooser:
            self.page.get_by_role("button", name="Choose files").click()
        chooser.value.set_files([str(path) for path in paths])

    def upload(self, name: str) -> "UploadRow":
        """The line of a file in the list of uploads."""
        return UploadRow(self.page.get_by_test_id("upload").and_(self.page.get_by_label(name, exact=True)))

    def figure(self, name: str) -> Locator:
        """A key figure of the overview: rows, parts, columns, csv-bytes, parquet-bytes."""
        return self.page.get_by_test_id(name)

    def heading(self, name: str) -> Locator:
        return self.page.get_by_role("heading", name=name, exact=True)

    def chart(self, title: str) -> Locator:
        return self.page.get_by_role("figure", name=title)

    def table(self, caption: str) -> Locator:
        return self.page.get_by_role("table", name=caption)

    def wait_until(self, condition: str, argument=None) -> None:
        """Waits until a JavaScript function, which is not asynchronous, returns something true."""
        self.page.wait_for_function(condition, arg=argument)

    def commands(self) -> dict:
        """What "Copy as" offers, by the name of the form."""
        self.page.get_by_role("button", name="Copy as").click()
        panel = self.page.get_by_role("group", name="Copy as")
        texts = {}
        for form in ("curl", "Python", "grpcurl", "tally", "Link"):
            panel.get_by_role("button", name=form, exact=True).click()
            texts[form] = panel.get_by_label("Command").inner_text()
        self.page.keyboard.press("Escape")
        expect(panel).to_be_hidden()
        return texts


class UploadRow:
    """A file in the list of uploads."""

    def __init__(self, row: Locator):
        self.row = row

    def wait_for_state(self, state: str) -> None:
        expect(self.row).to_have_attribute("data-state", state)

    def press(self, name) -> None:
        self.row.get_by_role("button", name=name).click()


def shown(number: int) -> str:
    """A number as the console writes it."""
    return f"{number:,}".replace("-", "\N{MINUS SIGN}")


def cells(table: Locator) -> list:
    """The texts of a table's body."""
    return table.locator("tbody tr").evaluate_all(
        "rows => rows.map((row) => Array.from(row.cells, (cell) => cell.innerText.trim()))"
    )


def exactly(text: str) -> re.Pattern:
    """Matches a text that is this and nothing else, for where Playwright looks for a part."""
    return re.compile(rf"^\s*{re.escape(text)}\s*$")


def add_demo(server: Server) -> None:
    """Uploads the files that the console offers for an empty table."""
    for name in DEMO:
        stream(server, (INPUTS / name).read_bytes())


def colours_of_canvas(chart: Locator) -> int:
    """How many colours a chart's canvas has: one that was not drawn has one."""
    return chart.locator("canvas").evaluate(
        """canvas => {
            const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
            return new Set(new Uint32Array(data.buffer)).size;
        }"""
    )


def screenshot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
