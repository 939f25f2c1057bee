"""Who may do what over HTTP: pages of other sites, other machines, the admin token, and the addresses that the
server listens on.
"""

import socket

import pytest
import requests
import table_pb2
from conftest import ServerDidNotStart, step_aside, table
from http_calls import ANSWER_SECONDS_MAX, TASKS, UNKNOWN_TASK, ask, check_failure, get
from survey_oracle import QUESTION

DEFAULT_PORT = 5000
CHANGING = [
    ("POST", "/api/states_mean"),
    ("POST", TASKS),
    ("DELETE", f"{TASKS}{UNKNOWN_TASK}"),
    ("DELETE", "/api/jobs/1"),
    ("DELETE", "/api/v1/table/parts/1"),
    ("POST", "/api/v1/table/parts/1/restore"),
    ("GET", f"{TASKS}{UNKNOWN_TASK}/download"),
    ("GET", f"{TASKS}{UNKNOWN_TASK}/download/"),
    ("GET", "/api/graceful_shutdown"),
    ("HEAD", "/api/graceful_shutdown"),
]
FOREIGN = [
    {"Host": "evil.example"},
    {"Host": "evil.example:5000"},
    {"Host": "localhost.evil.example"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize("method, path", CHANGING)
def test_foreign_pages_change_nothing(server, method, path, headers):
    answer = requests.request(method, server.http + path, headers=headers, timeout=ANSWER_SECONDS_MAX)
    assert answer.status_code == 403, answer.text
    if path == TASKS:
        check_failure(answer, 403, "request", "")
    assert ask(server, "states_mean", {"question": QUESTION}).status_code == 200


def test_local_pages_and_reading_are_allowed(server):
    port = server.http.rsplit(":", 1)[1]
    for headers in (
        {"Host": "localhost"},
        {"Host": f"127.0.0.1:{port}", "Origin": f"http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"},
        {"Host": "[::1]:1", "Origin": "http://[::1]:1"},
    ):
        assert ask(server, "states_mean", {"question": QUESTION}, headers=headers).status_code == 200
    answer = get(server, "/api/jobs", headers={"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 200  # which the browser shows to no page of that origin
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_a_name_of_another_machine_reads_nothing_on_loopback(server):
    for path in ("/api/jobs", "/livez", "/metrics", "/api/v1/openapi.json", "/nothing"):
        for host in ("evil.example", "localhost.evil.example:5000"):
            assert get(server, path, headers={"Host": host}).status_code == 403, path
        assert get(server, path, headers={"Host": "localhost"}).status_code in (200, 404), path


def test_a_shutdown_from_a_browser_needs_the_token(start_server, tmp_path):
    (tmp_path / "token").write_text("s3cret\n")
    server = start_server(tmp_path / "data")
    with_token = start_server(tmp_path / "other", "--admin-token-file", tmp_path / "token")
    for headers in (
        {"Origin": "{own}"},
        {"Referer": "{own}/api/v1/docs/swagger/"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"},
        {"Cookie": "a=b"},
    ):
        for method in ("GET", "POST"):
            for target, token, status in ((server, {}, 403), (with_token, {"Authorization": "Bearer s3cret"}, 200)):
                sent = {name: value.replace("{own}", target.http) for name, value in headers.items()}
                url = target.http + "/api/graceful_shutdown"
                answer = requests.request(method, url, headers={**sent, **token}, timeout=ANSWER_SECONDS_MAX)
                assert answer.status_code == status, (method, sent, answer.text)
    assert ask(server, "states_mean", {"question": QUESTION}).status_code == 200
    assert get(server, "/api/graceful_shutdown").status_code == 200


FRONT_END = "http://front.example:3000"


@pytest.mark.parametrize("way", ["flag", "environment"])
def test_pages_of_an_allowed_origin_may_do_what_own_pages_may(start_server, tmp_path, way):
    origins = f"{FRONT_END}/,https://Other.example:443"
    if way == "flag":
        first, second = origins.split(",")
        server = start_server(tmp_path / "data", "--allowed-origin", first, "--allowed-origin", second)
    else:
        server = start_server(tmp_path / "data", env={"TALLY_ALLOWED_ORIGIN": origins})

    def preflight(origin: str, method: str = "POST") -> requests.Response:
        asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": "content-type"}
        url = f"{server.http}/api/states_mean"
        return requests.options(url, headers={"Origin": origin, **asked}, timeout=ANSWER_SECONDS_MAX)

    for origin in (FRONT_END, "https://other.example"):
        answer = preflight(origin)
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == origin
        assert "POST" in answer.headers["Access-Control-Allow-Methods"]
        assert "content-type" in answer.headers["Access-Control-Allow-Headers"].lower()
        page = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
        answer = ask(server, "states_mean", {"question": QUESTION}, headers=page)
        assert answer.status_code == 200 and answer.headers["Access-Control-Allow-Origin"] == origin
        answer = get(server, "/api/jobs", headers=page)
        assert answer.status_code == 200 and answer.headers["Access-Control-Allow-Origin"] == origin
        assert "origin" in answer.headers["Vary"].lower()
        # Not even these may shut the server down.
        assert get(server, "/api/graceful_shutdown", headers=page).status_code == 403
        # The page can read why it is refused.
        refused = get(server, "/api/jobs", headers={"Host": "elsewhere.example", **page})
        assert refused.status_code == 403 and "--allowed-host" in refused.text
        assert refused.headers["Access-Control-Allow-Origin"] == origin
    for origin in ("http://front.example", "https://front.example:3000", "http://evil.example", "null"):
        assert "Access-Control-Allow-Origin" not in preflight(origin).headers, origin
        answer = ask(server, "states_mean", {"question": QUESTION}, headers={"Origin": origin})
        assert answer.status_code == 403 and "Access-Control-Allow-Origin" not in answer.headers, origin
        assert "Access-Control-Allow-Origin" not in get(server, "/api/jobs", headers={"Origin": origin}).headers


def test_without_allowed_origins_there_is_no_preflight(server):
    asked = {"Origin": FRONT_END, "Access-Control-Request-Method": "POST"}
    answer = requests.options(f"{server.http}/api/states_mean", headers=asked, timeout=ANSWER_SECONDS_MAX)
    assert answer.status_code == 405


def test_foreign_pages_change_nothing_beyond_loopback(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--http", "0.0.0.0:0", "--insecure-allow-anyone")
    for host, origin, status in (
        (None, None, 200),
        ("tally.example", None, 200),
        ("tally.example", "http://tally.example", 200),
        ("tally.example", "https://tally.example", 200),  # a proxy adds the encryption
        ("tally.example:5000", "http://tally.example:5000", 200),
        ("tally.example:5000", "http://tally.example", 403),
        ("tally.example", "http://evil.example", 403),
        (None, "http://evil.example", 403),
        (None, "http://localhost:3000", 403),
        (None, "null", 403),
    ):
        headers = {name: value for name, value in (("Host", host), ("Origin", origin)) if value}
        for path in ("/api/states_mean", TASKS):
            url = server.http + path
            answer = requests.post(url, json={"question": QUESTION}, headers=headers, timeout=ANSWER_SECONDS_MAX)
            expected = status if path != TASKS or status == 403 else 400  # not a form
            assert answer.status_code == expected, (path, headers, answer.text)


@pytest.mark.parametrize("way", ["flag", "environment"])
def test_a_proxy_is_allowed_by_name(start_server, tmp_path, way):
    names = ["tally.example", "192.0.2.7"]
    if way == "flag":
        server = start_server(tmp_path / "data", *(f"--allowed-host={name}" for name in names))
    else:
        server = start_server(tmp_path / "data", env={"TALLY_ALLOWED_HOST": ",".join(names)})
    body = {"question": QUESTION}
    for headers in (
        {"Host": "tally.example"},
        {"Host": "TALLY.example:443", "Origin": "https://tally.example"},
        {"Host": "192.0.2.7:80", "Origin": "http://192.0.2.7"},
        {},
    ):
        assert ask(server, "states_mean", body, headers=headers).status_code == 200, headers
        assert get(server, "/api/jobs", headers=headers).status_code == 200, headers
    for headers in (
        {"Host": "evil.example"},
        {"Host": "www.tally.example"},
        {"Host": "tally.example.evil.example"},
        {"Host": "evil@tally.example"},
    ):
        answer = ask(server, "states_mean", body, headers=headers)
        assert answer.status_code == 403 and "--allowed-host NAME" in answer.json()["reason"], headers
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = ask(server, "states_mean", body, headers={"Host": "tally.example", **headers})
        assert answer.status_code == 403, headers
    # The name is the proxy's, and the shutdown is not for those behind it.
    assert get(server, "/api/graceful_shutdown", headers={"Host": "tally.example"}).status_code == 403


def own_address() -> str:
    """An address of this machine that is not loopback. Nothing is sent: UDP only looks up the route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            step_aside("this machine has no address but loopback")
        return probe.getsockname()[0]


@pytest.mark.parametrize("way", ["flag", "environment"])
def test_others_shut_down_with_the_token_only(start_server, tmp_path, way):
    address = own_address()
    (tmp_path / "token").write_text("s3cret\n")
    if way == "flag":
        options = ["--http", "0.0.0.0:0", "--insecure-allow-anyone", "--admin-token-file", tmp_path / "token"]
        server = start_server(tmp_path / "data", *options)
    else:
        environment = {"TALLY_HTTP": "0.0.0.0:0", "TALLY_ADMIN_TOKEN_FILE": str(tmp_path / "token")}
        environment["TALLY_INSECURE_ALLOW_ANYONE"] = "true"
        server = start_server(tmp_path / "data", env=environment)
    outside = f"http://{address}:{server.http.rsplit(':', 1)[1]}"

    def shut_down(**headers) -> int:
        url = outside + "/api/graceful_shutdown"
        return requests.get(url, headers=headers, timeout=ANSWER_SECONDS_MAX).status_code

    body = {"question": QUESTION}
    for headers in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "s3cret"}):
        assert shut_down(**headers) == 403
    assert requests.post(outside + "/api/states_mean", json=body, timeout=ANSWER_SECONDS_MAX).status_code == 200
    assert shut_down(Authorization="Bearer s3cret") == 200
    assert requests.post(outside + "/api/states_mean", json=body, timeout=ANSWER_SECONDS_MAX).status_code == 405


def test_a_proxy_on_this_machine_is_not_this_machine(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--http", "0.0.0.0:0", "--insecure-allow-anyone")
    url = f"http://127.0.0.1:{server.http.rsplit(':', 1)[1]}/api/graceful_shutdown"
    for headers in (
        {"X-Forwarded-For": "192.0.2.1"},
        {"Forwarded": "for=192.0.2.1"},
        {"Via": "1.1 proxy"},
        {"Host": "evil.example"},  # a name of somebody else that resolves to this machine
        {"Origin": "http://evil.example"},
    ):
        assert requests.get(url, headers=headers, timeout=ANSWER_SECONDS_MAX).status_code == 403, headers
    assert requests.get(url, timeout=ANSWER_SECONDS_MAX).status_code == 200


def test_a_token_is_asked_for_on_this_machine_too(start_server, tmp_path):
    (tmp_path / "token").write_text("s3cret\n")
    server = start_server(tmp_path / "data", "--admin-token-file", tmp_path / "token")
    assert get(server, "/api/graceful_shutdown").status_code == 403
    assert get(server, "/api/graceful_shutdown", headers={"Authorization": "Bearer s3cret"}).status_code == 200


@pytest.mark.parametrize("content", ["", "\n", "two words\n", "x" * 2000, None])
def test_a_file_without_a_token_is_no_start(start_server, tmp_path, content):
    if content is not None:
        (tmp_path / "token").write_text(content)
    with pytest.raises(ServerDidNotStart) as failure:
        start_server(tmp_path / "data", "--admin-token-file", tmp_path / "token")
    assert failure.value.exit_code == 1 and str(tmp_path / "token") in failure.value.stderr


# --- addresses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["flag", "environment"])
def test_http_can_be_turned_off(start_server, tmp_path, way):
    if way == "flag":
        server = start_server(tmp_path / "data", "--http", "none")
    else:
        server = start_server(tmp_path / "data", env={"TALLY_HTTP": "none"})
    assert server.http_addresses == [] and "; http" not in server.ready_line
    assert table(server).Upload(table_pb2.UploadReq(csv_data=b"x\n1\n")).error == ""


def test_several_addresses(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--http", "127.0.0.1:0,127.0.0.2:0", "--http", "127.0.0.3:0")
    assert [address.split(":")[0] for address in server.http_addresses] == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    for address in server.http_addresses:
        assert requests.get(f"http://{address}/livez", timeout=ANSWER_SECONDS_MAX).status_code == 200
        url, asked = f"http://{address}/api/states_mean", {"question": QUESTION}
        assert requests.post(url, json=asked, timeout=ANSWER_SECONDS_MAX).status_code == 200
    with pytest.raises(ServerDidNotStart) as failure:
        start_server(tmp_path / "other", "--http", server.http_addresses[1])
    assert server.http_addresses[1] in failure.value.stderr


def test_by_default_only_this_machine_can_connect(start_server, tmp_path):
    try:
        server = start_server(tmp_path / "data", http_flag=False)
    except ServerDidNotStart as failure:
        if f":{DEFAULT_PORT}" in failure.stderr and "in use" in failure.stderr:
            step_aside(f"port {DEFAULT_PORT} is taken")
        raise
    assert set(server.http_addresses) <= {f"127.0.0.1:{DEFAULT_PORT}", f"[::1]:{DEFAULT_PORT}"}
    with socket.socket() as elsewhere:
        assert elsewhere.connect_ex(("127.0.0.2", DEFAULT_PORT)) != 0
