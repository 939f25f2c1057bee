"""The OpenAPI description: it names every path, its page works offline, and calls generated from it are answered as
described.
"""

import re
import subprocess
import sys

import requests
from conftest import Server, clean_environment
from http_calls import ANSWER_SECONDS_MAX, PARTS, PLAYS, TASKS, check_failure, ended_task, get, start_task
from survey_oracle import QUESTIONS
from test_access import Tokens

SEED = 20261120
EXAMPLES = 25
EVENTS = "/api/v1/events"
RUN_SECONDS_MAX = 600

# The description cannot say that the name of a file must end with .csv, nor that a part must be CSV, so generated calls of
# these paths are refused too; and any text is CSV, also one that is made to be no text. A JSON body that is too long is refused as such, whatever else is wrong with it.
CONFIG = f"""
[checks]
negative_data_rejection.expected-statuses = ["4xx", "5xx"]

[[operations]]
include-path = "{TASKS}"
checks.positive_data_acceptance.enabled = false

[[operations]]
include-path = "/api/v1/table/groups"
checks.positive_data_acceptance.enabled = false

[[operations]]
include-path = "{PARTS}"
checks.positive_data_acceptance.enabled = false
checks.negative_data_rejection.enabled = false
"""


def make_up_calls(server: Server, folder, config: str, *flags: str) -> None:
    (folder / "schemathesis.toml").write_text(config)
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", folder / "schemathesis.toml"),
        *("run", f"{server.http}/api/v1/openapi.json", *flags),
        *("--seed", str(SEED), "--max-examples", str(EXAMPLES), "--workers", "1", "--no-color"),
    ]
    run = subprocess.run(
        command,
        cwd=folder,  # where it leaves its own notes
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=RUN_SECONDS_MAX,
    )
    assert run.returncode == 0, run.stdout
    assert server.is_running()


def test_calls_of_every_path(server, tmp_path):
    # After the shutdown the server would refuse all questions, and the events do not end.
    make_up_calls(server, tmp_path, CONFIG, "--exclude-path", "/api/graceful_shutdown", "--exclude-path", EVENTS)


def test_calls_about_tasks_that_exist(server, tmp_path):
    """Ids of existing tasks cannot be generated, so they are given."""
    for content in (PLAYS, PLAYS + b"x,y,z\n"):
        task_id = start_task(server, content)
        ended_task(server, task_id)
        config = CONFIG + f'[parameters]\ntask_id = "{task_id}"\n'
        make_up_calls(server, tmp_path, config, "--include-path-regex", "task_id")


def test_the_description_names_every_path(server):
    description = get(server, "/api/v1/openapi.json").json()
    assert description["openapi"].startswith("3.1.")
    expected = {f"/api/{route}" for route, _ in QUESTIONS}
    expected |= {
        "/api/get_results/{job_id}",
        "/api/jobs",
        "/api/jobs/{job_id}",
        "/api/num_jobs",
        "/api/graceful_shutdown",
    }
    expected |= {TASKS, TASKS + "{task_id}", TASKS + "{task_id}/status", TASKS + "{task_id}/download"}
    expected |= {PARTS, *(f"{PARTS}/{{part}}{below}" for below in ("", "/csv", "/parquet", "/rows", "/restore"))}
    expected |= {"/api/v1/table/removed", "/api/v1/table/growth", "/api/v1/table/files", "/api/v1/jobs", EVENTS}
    expected |= {"/api/v1/table", "/api/v1/table/columns", "/api/v1/table/sum", "/api/v1/table/groups"}
    expected |= {"/api/v1/survey/questions", "/api/v1/survey/states"}
    expected |= {"/livez", "/readyz", "/metrics", "/api/v1/token", "/api/v1/tickets"}
    assert set(description["paths"]) == expected
    assert all(
        operation["summary"] and operation["responses"]
        for methods in description["paths"].values()
        for operation in methods.values()
    )
    for path, methods in description["paths"].items():
        for operation in methods.values():
            assert {"414", "431"} <= set(operation["responses"]), path
            if "429" in operation["responses"]:
                assert "Retry-After" in operation["responses"]["429"]["headers"], path


def test_errors_of_the_table_are_described_as_problems(server):
    description = get(server, "/api/v1/openapi.json").json()
    problem_paths = ("/api/v1/table", "/api/v1/survey", "/api/v1/events", "/api/v1/jobs", "/api/v1/token", "/api/v1/tickets")
    seen = 0
    for path, methods in description["paths"].items():
        is_problem = path.startswith(problem_paths)
        for operation in methods.values():
            for status, response in operation["responses"].items():
                types = set(response.get("content", {}))
                if status[0] in "45" and types:
                    assert (types == {"application/problem+json"}) is is_problem, (path, status)
                    seen += is_problem
    assert seen > 40
    fields = description["components"]["schemas"]["ProblemDetails"]
    assert {"type", "title", "status", "detail"} == set(fields["required"])
    assert {"field", "part", "row", "line", "column", "column_index", "cell", "hint"} < set(fields["properties"])


def test_the_swagger_page_needs_nothing_from_elsewhere(server):
    page = get(server, "/api/v1/docs/swagger")
    assert page.status_code == 200 and page.url.endswith("/api/v1/docs/swagger/")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy and "http" not in policy
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(assets) >= 5
    for asset in assets:
        assert "//" not in asset
        assert get(server, f"/api/v1/docs/swagger/{asset}").status_code == 200
    assert "<script>" not in page.text  # the policy would not run it
    start = get(server, "/api/v1/docs/swagger/swagger-initializer.js").text
    assert "/api/v1/openapi.json" in start
    assert "//" not in re.sub(r"^ *//.*$", "", start, flags=re.MULTILINE)  # comments aside
    assert '"validatorUrl": "none"' in start  # else it asks a server whether the description is valid


def test_the_swagger_page_of_a_server_with_tokens(start_server, tmp_path):
    """A browser opens it without a token, and its button "Authorize" is for the calls that need one."""
    tokens = Tokens(tmp_path)
    server = start_server(tmp_path / "data", "--token-file", tokens.list)
    for path in ("swagger", "swagger/swagger-ui.css", "redoc", "openapi.json"):
        assert get(server, f"/api/v1/docs/{path}").status_code == 200, path
    description = get(server, "/api/v1/openapi.json").json()
    scheme = description["components"]["securitySchemes"]["token"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            names = [name for option in operation.get("security", description["security"]) for name in option]
            is_probe = path in ("/livez", "/readyz")
            assert ("token" in names) != is_probe, (method, path)
            named = re.sub(r"\{\w+\}", "7", path)
            answer = requests.request(method, server.http + named, timeout=ANSWER_SECONDS_MAX)
            assert (answer.status_code == 401) != is_probe, (method, path)


def test_other_paths_and_methods(server):
    for path in ("/api", "/api/", "/api/v1", "/api/nothing", TASKS + "x"):
        assert get(server, path).status_code in (404, 405), path
    answer = requests.put(f"{server.http}/api/jobs", timeout=ANSWER_SECONDS_MAX)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET,HEAD")
    assert answer.json()["status"] == "error"
    check_failure(get(server, "/nothing"), 404, "request", "nothing")


def test_the_original_paths_of_the_description_lead_to_it(server):
    for path, end in (("openapi.json", "/api/v1/openapi.json"), ("redoc", "/api/v1/docs/swagger/")):
        for slash in ("", "/"):
            answer = get(server, f"/api/v1/docs/{path}{slash}")
            assert answer.status_code == 200 and answer.url.endswith(end)
    assert get(server, "/api/v1/docs/openapi.json").json()["openapi"].startswith("3.1.")
