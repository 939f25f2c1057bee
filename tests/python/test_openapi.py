"""Calls made up from the server's own description, right and wrong ones: each answer must be as it is described."""

import subprocess
import sys

from conftest import Server, clean_environment
from test_http import PLAYS, TASKS, ended_task, start_task

SEED = 20261120
EXAMPLES = 25
RUN_SECONDS_MAX = 600

# That a file's name ends with .csv cannot be described, so right calls of this path are refused, too.
CONFIG = f"""
[[operations]]
include-path = "{TASKS}"
checks.positive_data_acceptance.enabled = false
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
    # After the shutdown the server would take no questions any more.
    make_up_calls(server, tmp_path, CONFIG, "--exclude-path", "/api/graceful_shutdown")


def test_calls_about_tasks_that_exist(server, tmp_path):
    """Nobody could make up their ids."""
    for content in (PLAYS, PLAYS + b"x,y,z\n"):
        task_id = start_task(server, content)
        ended_task(server, task_id)
        config = CONFIG + f'[parameters]\ntask_id = "{task_id}"\n'
        make_up_calls(server, tmp_path, config, "--include-path-regex", "task_id")
