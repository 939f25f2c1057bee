"""Files as people really send them: tests/wild/expected.toml says what each gives over gRPC, over HTTP and on the command
line. Another file or another way to send one is a row more.
"""

import subprocess
import tomllib

import pytest
import table_pb2
from conftest import ROOT, clean_environment, run_client, table
from http_calls import completed_task, download, ended_task, start_task
from uploads import stream_error, unary_error

WILD = ROOT / "tests" / "wild"
ROWS = tomllib.loads((WILD / "expected.toml").read_text(encoding="utf-8"))["files"]
BY_K = "?group_by=k&sum=x"

each_file = pytest.mark.parametrize("row", ROWS, ids=[row["file"] for row in ROWS])


def command(tally_binary, *arguments) -> subprocess.CompletedProcess:
    """A command that is run in tests/wild/, so that a file is its name."""
    return subprocess.run(
        [str(tally_binary), *map(str, arguments)],
        cwd=WILD,
        env=clean_environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


def said(process: subprocess.CompletedProcess) -> tuple:
    return process.returncode, process.stdout, process.stderr


def test_each_file_has_a_row_and_each_row_a_file():
    assert sorted(path.name for path in WILD.glob("*.csv")) == sorted(row["file"] for row in ROWS)
    for row in ROWS:
        assert ("upload_error" in row) + ("sum" in row) + ("sum_error" in row) == 1, row
        assert ("file_error" in row) + ("groups" in row) == 1, row


def outcome(row: dict, error: str, value: str) -> str:
    """A cell of the table in README.md."""
    text = row[error] if error in row else str(row[value])
    text = text.replace("\n", " ").strip().replace("|", "\\|")
    return f"`{text}`"


def test_the_readme_has_the_same_table():
    lines = ["| file | what is in it | upload, or the sum of `x` | group sum of the file |", "| --- | --- | --- | --- |"]
    for row in ROWS:
        uploaded = outcome(row, "upload_error" if "upload_error" in row else "sum_error", "sum")
        what = row["what"].replace("|", "\\|")
        lines.append(f"| {row['file']} | {what} | {uploaded} | {outcome(row, 'file_error', 'groups')} |")
    assert "\n".join(lines) + "\n" in (WILD / "README.md").read_text(encoding="utf-8")


def check_sums(server, row: dict) -> None:
    for file_format in ("csv", "parquet"):
        reply = table(server).ColumnSum(table_pb2.ColSumReq(column="x", format=file_format))
        assert (reply.error, reply.total) == (row.get("sum_error", ""), row.get("sum", 0))


@each_file
def test_over_grpc(server, row):
    csv = (WILD / row["file"]).read_bytes()
    expected = row.get("upload_error", "")
    assert stream_error(server, csv) == expected
    if not expected:
        check_sums(server, row)
        return
    assert unary_error(server, csv) == expected
    assert server.parts() == [] and server.leftovers() == []


@each_file
def test_on_the_command_line(server, tally_binary, row):
    name = row["file"]
    uploaded = command(tally_binary, "upload", "--server", server.address, name)
    if "upload_error" in row:
        assert said(uploaded) == (1, "", f"error: {name}: {row['upload_error']}\n")
        assert server.parts() == []
    else:
        assert (uploaded.returncode, uploaded.stderr) == (0, "")
        summed = command(tally_binary, "sum", "--server", server.address, "x")
        if "sum" in row:
            assert said(summed) == (0, f"{row['sum']}\n", "")
        else:
            assert said(summed) == (1, "", f"error: {row['sum_error']}\n")
    alone = command(tally_binary, "group-sum", name, "--by", "k", "--sum", "x")
    if "file_error" in row:
        assert said(alone) == (1, "", f"error: {name}: {row['file_error']}\n")
    else:
        assert said(alone) == (0, row["groups"], "")


@each_file
def test_over_http(server, row):
    csv = (WILD / row["file"]).read_bytes()
    if "groups" in row:
        assert download(server, completed_task(server, csv, BY_K)).text == row["groups"]
        return
    task_id = start_task(server, csv, BY_K)
    task = ended_task(server, task_id)["task"]
    assert (task["status"], task["errors"]) == ("FAILED", {"file": [row["file_error"]]})
    answer = download(server, task_id)
    assert (answer.status_code, answer.json()) == (206, {"task": task})


def test_a_large_file_is_refused_by_its_beginning(server, tally_binary, tmp_path):
    """The answer comes while the client still sends, and every client shows it."""
    path = tmp_path / "large.csv"
    path.write_bytes(b"k;x\n" + b"a;1\n" * 10_000_000)
    hint = 'the separator looks like ";": upload with --delimiter ";"'
    assert unary_error(server, path.read_bytes()) == hint
    assert stream_error(server, path.read_bytes()) == hint
    uploaded = command(tally_binary, "upload", "--server", server.address, path)
    assert said(uploaded) == (1, "", f"error: {path}: {hint}\n")
    by_program = run_client("upload.py", path, server=server)
    assert (by_program.returncode, by_program.stdout) == (1, "") and hint in by_program.stderr
    assert server.parts() == [] and server.leftovers() == []
