"""The console of a server with tokens, and over TLS: it asks for a token, keeps it for its tab, and downloads with tickets."""

import signal

import pytest
import requests
import table_pb2
import table_pb2_grpc
from console import Console, expect
from http_calls import ANSWER_SECONDS_MAX, PARTS
from test_access import CSV, Tokens
from test_tls import Authority, https


@pytest.fixture
def tokens(tmp_path) -> Tokens:
    return Tokens(tmp_path)


@pytest.fixture
def closed(start_server, tokens, tmp_path):
    """A server that asks for tokens, with one part."""
    server = start_server(tmp_path / "data", "--token-file", tokens.list)
    upload = table_pb2_grpc.TableStub(server.channel()).Upload
    assert upload(table_pb2.UploadReq(csv_data=CSV), metadata=tokens.metadata("write")).error == ""
    return server


def give(console: Console, secret: str, is_known: bool = True) -> None:
    """Gives the page a token. With one that the server knows, it starts again."""
    console.page.get_by_label("The secret of the token").fill(secret)
    console.page.get_by_role("button", name="Use it").click()
    if is_known:
        expect(console.page.locator("#identity")).to_be_visible()


def test_the_console_asks_for_a_token_and_keeps_it_for_its_tab(closed, tokens, open_console):
    console = open_console(closed.http)
    question = console.page.get_by_role("dialog")
    expect(question).to_be_visible()
    for _again in range(3):
        console.page.keyboard.press("Escape")
        expect(question).to_be_visible()
    give(console, "wrong", is_known=False)
    expect(question.get_by_text("does not know this token")).to_be_visible()
    give(console, tokens.secrets["read"])
    expect(question).to_be_hidden()
    expect(console.figure("parts")).to_contain_text("1")
    expect(console.page.locator("#connection")).to_have_text("Connected")  # the events carry it, too
    expect(console.page.locator("#identity")).to_contain_text("read (read)")
    kept = console.page.evaluate("[JSON.stringify(localStorage), document.cookie, location.href]")
    assert not any(tokens.secrets["read"] in text for text in kept)
    console.page.reload()
    expect(console.figure("parts")).to_contain_text("1")
    # Another tab has to be given one, too.
    other = open_console(closed.http)
    expect(other.page.get_by_role("dialog")).to_be_visible()
    console.page.get_by_role("button", name="Forget the token").click()
    expect(question).to_be_visible()


def test_what_the_scope_does_not_allow_is_said(closed, tokens, open_console):
    console = open_console(closed.http, "#/upload")
    give(console, tokens.secrets["read"])
    expect(console.page.get_by_role("note")).to_have_text(
        "The token of this tab has the scope read: adding a file needs write."
    )
    console.drop(("a.csv", CSV))
    refusal = console.page.get_by_test_id("refusal")
    expect(refusal.get_by_text("the token read has the scope read, and this call needs write")).to_be_visible()
    writer = open_console(closed.http, "#/upload")
    give(writer, tokens.secrets["write"])
    expect(writer.page.get_by_role("dialog")).to_be_hidden()
    writer.drop(("a.csv", CSV))
    writer.upload("a.csv").wait_for_state("done")
    expect(writer.page.get_by_role("note")).to_be_hidden()


def test_downloads_use_tickets_that_count_once(closed, tokens, open_console):
    console = open_console(closed.http, "#/table?show=parts&part=1")
    give(console, tokens.secrets["read"])
    with console.page.expect_download() as download:
        console.page.get_by_role("link", name="Download part 1 as CSV").click()
    with open(download.value.path(), "rb") as file:
        assert file.read() == CSV
    link = download.value.url
    assert "ticket=" in link and tokens.secrets["read"] not in link
    assert requests.get(link, timeout=ANSWER_SECONDS_MAX).status_code == 401
    busy = {"status": 503, "content_type": "application/problem+json", "body": '{"detail": "try again"}'}
    console.page.route("**/api/v1/tickets*", lambda route: route.fulfill(**busy))
    console.page.get_by_role("link", name="Download part 1 as CSV").click()
    expect(console.page.get_by_role("alert")).to_have_text("Try again.")


def test_a_ticket_is_for_one_get_of_one_target(closed, tokens):
    def ticket(target: str, name: str = "read") -> str:
        answer = requests.post(
            f"{closed.http}/api/v1/tickets",
            params={"target": target},
            headers=tokens.header(name),
            timeout=ANSWER_SECONDS_MAX,
        )
        assert answer.status_code == 201, answer.text
        return answer.json()["ticket"]

    def status(method: str, target: str, ticket: str) -> int:
        separator = "&" if "?" in target else "?"
        url = f"{closed.http}{target}{separator}ticket={ticket}"
        return requests.request(method, url, timeout=ANSWER_SECONDS_MAX).status_code

    one = f"{PARTS}/1"
    assert status("GET", one, ticket(one)) == 200
    assert status("GET", f"{one}/rows?limit=1", ticket(f"{one}/rows?limit=1")) == 200
    assert status("GET", f"{one}/rows?limit=2", ticket(f"{one}/rows?limit=1")) == 401
    assert status("GET", f"{one}/csv", ticket(one)) == 401
    for method in ("DELETE", "POST"):
        assert status(method, one, ticket(one, "admin")) == 401
    used = ticket(one)
    assert status("GET", one, used) == 200 and status("GET", one, used) == 401
    assert status("HEAD", one, ticket(one)) == 401
    # It allows no more than its owner may, at the time when it is used.
    assert status("GET", "/api/graceful_shutdown", ticket("/api/graceful_shutdown", "write")) == 403
    assert requests.post(f"{closed.http}/api/v1/tickets?target=/x", timeout=ANSWER_SECONDS_MAX).status_code == 401
    who = requests.get(f"{closed.http}/api/v1/token", headers=tokens.header("write"), timeout=ANSWER_SECONDS_MAX)
    assert who.json() == {"name": "write", "scope": "write"}
    of_reader, of_writer = ticket(one, "read"), ticket(one, "write")
    tokens.list.write_text("".join(line for line in tokens.list.read_text().splitlines(True) if "read " not in line))
    closed.process.send_signal(signal.SIGHUP)
    closed.log_line("the tokens were read again")
    assert status("GET", one, of_reader) == 401 and status("GET", one, of_writer) == 200
    assert "ticket=" not in closed.stderr


def test_without_tokens_nobody_is_asked(server, open_console):
    answer = requests.post(f"{server.http}/api/v1/tickets?target=/x", timeout=ANSWER_SECONDS_MAX)
    assert (answer.status_code, answer.json()["ticket"]) == (201, None)
    assert requests.get(f"{server.http}/api/v1/token", timeout=ANSWER_SECONDS_MAX).json() == {"name": None, "scope": None}
    assert requests.get(f"{server.http}/api/v1/table?ticket=x", timeout=ANSWER_SECONDS_MAX).status_code == 200
    console = open_console(server.http)
    expect(console.page.locator("#connection")).to_have_text("Connected")
    expect(console.page.get_by_role("dialog")).to_be_hidden()
    expect(console.page.locator("#identity")).to_be_hidden()


def test_the_console_over_tls_with_tokens(start_server, tokens, open_console, tmp_path):
    certificate, key = Authority(tmp_path).sign("server", "DNS:localhost", "IP:127.0.0.1")
    flags = ["--token-file", tokens.list, "--tls-cert", certificate, "--tls-key", key]
    server = start_server(tmp_path / "data", *flags)
    console = open_console(https(server, ""), "#/upload", ignore_https_errors=True)
    give(console, tokens.secrets["write"])
    expect(console.page.get_by_role("dialog")).to_be_hidden()
    console.drop(("a.csv", CSV))
    console.upload("a.csv").wait_for_state("done")
    expect(console.page.locator("#connection")).to_have_text("Connected")
