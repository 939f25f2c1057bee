"""The files of the table for other engines, `tally files` and GET /api/v1/table/files: they have each row exactly once, also while
parts are packed, removed and restored, and what they cannot say by themselves is refused.
"""

import io
import json
import subprocess
import threading
from pathlib import Path
from typing import Dict, List

import grpc
import pyarrow.parquet
import pytest
import requests
import table_pb2
import tally_pb2
from conftest import Server, binary, clean_environment, table, tally, wait_until
from http_calls import ANSWER_SECONDS_MAX, check_problem, get
from uploads import stream

FILES = "/api/v1/table/files"
LARGE = b"x,z\n" + b"1,large\n" * 20_000  # too large to be packed


def run_files(server: Server, *flags: str) -> subprocess.CompletedProcess:
    command = [binary(), "files", "--server", server.address, *flags]
    return subprocess.run(command, env=clean_environment(), capture_output=True, encoding="utf-8", timeout=60)


def listed(server: Server, query: str = "") -> dict:
    answer = get(server, FILES + query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    return answer.json()


def sum_in(server: Server, file_format: str) -> int:
    answer = table(server).ColumnSum(table_pb2.ColSumReq(column="x", format=file_format))
    assert answer.error == ""
    return answer.total


def sum_of(server: Server) -> int:
    """The sum of x, which is the same from both formats."""
    csv, parquet = sum_in(server, "csv"), sum_in(server, "parquet")
    assert csv == parquet
    return csv


def content_of(data: Path, path: str) -> bytes:
    """A listed file, from where it is now: what was replaced since is in removed/."""
    for candidate in (data / path, data / "removed" / Path(path).name):
        try:
            return candidate.read_bytes()
        except FileNotFoundError:
            continue
    raise AssertionError(f"{path} is gone")


def parquet_sum(server: Server, answer: dict) -> int:
    """The sum of x over the files of a list, without the rows that it says are removed."""
    total, rows = 0, 0
    removed: Dict[str, set] = {}
    for one in answer["removed"]:
        removed.setdefault(one["path"], set()).update(range(one["first_row"], one["first_row"] + one["rows"]))
    for file in answer["files"]:
        content = content_of(server.data, file["path"])
        assert len(content) == file["bytes"]
        values = pyarrow.parquet.read_table(io.BytesIO(content), columns=["x"])["x"].to_pylist()
        assert len(values) == file["rows"], file
        left_out = removed.get(file["path"], set())
        assert left_out <= set(range(len(values)))
        total += sum(value or 0 for row, value in enumerate(values) if row not in left_out)
        rows += len(values) - len(left_out)
    assert rows == answer["rows"]
    return total


def csv_sum(server: Server, answer: dict) -> int:
    """The same from the byte ranges of CSV files."""
    total, parts, contents = 0, [], {}
    for one in answer["files"]:
        assert (one["parts"], one["first_part"]) == (1, one["last_part"])
        if one["path"] not in contents:
            contents[one["path"]] = content_of(server.data, one["path"])
        content = contents[one["path"]][one["offset"] : one["offset"] + one["bytes"]]
        header, *lines = content.decode().splitlines()
        assert len(lines) == one["rows"], one
        index = header.split(",").index("x")
        total += sum(int(line.split(",")[index] or 0) for line in lines)
        parts.append(one["first_part"])
    assert parts == sorted(set(parts)) and len(parts) == answer["parts"]
    assert sum(one["rows"] for one in answer["files"]) == answer["rows"]
    return total


def fill(server: Server) -> None:
    """Part N adds 1 << N to the sum of x. Every third has other columns; part 6 is too large to be packed."""
    for number in range(1, 13):
        csv = f"note,x\nfile {number},{1 << number}\n,\n" if number % 3 == 0 else f"x,y\n{1 << number},a\n,b\n"
        stream(server, LARGE if number == 6 else csv.encode())


def pack(server: Server) -> None:
    tally(server).Pack(tally_pb2.PackRequest())


def remove(server: Server, part: int, purge: bool = False) -> None:
    tally(server).RemovePart(tally_pb2.RemovePartRequest(part=part, purge=purge))


def test_an_empty_table_has_no_files(start_server, tmp_path):
    server = start_server(tmp_path / "data")
    assert listed(server) == {"format": "parquet", "parts": 0, "rows": 0, "removed_parts": 0, "files": [], "removed": []}
    printed = run_files(server)
    assert (printed.returncode, printed.stdout, printed.stderr) == (0, "", "")


def test_each_row_is_listed_once(start_server, tmp_path):
    server = start_server(tmp_path / "data")
    fill(server)
    total = sum_of(server)
    before = listed(server)
    assert [file["path"] for file in before["files"]] == [f"parts/{number}.parquet" for number in range(1, 13)]
    assert before["files"][5]["rows"] == 20_000
    assert (before["parts"], before["rows"], before["removed_parts"]) == (12, 22 + 20_000, 0)
    assert parquet_sum(server, before) == csv_sum(server, listed(server, "?format=csv")) == total
    pack(server)
    packed = listed(server)
    paths = ["parts/1-12-1.parquet", "parts/1-12-1.1.parquet", "parts/6.parquet"]
    assert [file["path"] for file in packed["files"]] == paths
    first = packed["files"][0]
    assert first == {**first, "first_part": 1, "last_part": 12, "parts": 8, "rows": 16} and "offset" not in first
    assert parquet_sum(server, packed) == csv_sum(server, listed(server, "?format=csv")) == total
    # What the first list has is in removed/ now, and the same.
    assert parquet_sum(server, before) == total
    assert not (server.data / "parts" / "1.parquet").exists()


def test_the_command_lists_the_same(start_server, tmp_path):
    server = start_server(tmp_path / "data")
    fill(server)
    pack(server)
    paths = [file["path"] for file in listed(server)["files"]]
    assert run_files(server).stdout.splitlines() == paths
    with_data = run_files(server, "--data", str(server.data)).stdout.splitlines()
    assert with_data == [str(server.data / path) for path in paths]
    for query, flags in (("", []), ("?format=csv", ["--format", "csv"])):
        lines = [json.loads(line) for line in run_files(server, "--json", *flags).stdout.splitlines()]
        assert lines == listed(server, query)["files"]
    refused = run_files(server, "--format", "csv")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "many share a CSV file" in refused.stderr


def test_rows_of_removed_parts_are_told(start_server, tmp_path):
    server = start_server(tmp_path / "data")
    fill(server)
    pack(server)
    stream(server, b"x\n8192\n")
    for part in (2, 3, 11, 13):
        remove(server, part)
    total = sum_of(server)
    # Part 13 has its own files, which are not listed any more.
    says = "the rows of 3 removed parts, part 2 first"
    problem = check_problem(get(server, FILES), 409, None, says)
    assert (problem["part"], problem["hint"]) == (2, "send it again with ?with_removed=true")
    printed = run_files(server)
    assert (printed.returncode, printed.stdout) == (1, "") and says in printed.stderr
    answer = listed(server, "?with_removed=true")
    assert answer["removed"] == [
        {"path": "parts/1-12-1.parquet", "part": 2, "first_row": 2, "rows": 2},
        {"path": "parts/1-12-1.1.parquet", "part": 3, "first_row": 0, "rows": 2},
        {"path": "parts/1-12-1.parquet", "part": 11, "first_row": 14, "rows": 2},
    ]
    assert (answer["parts"], answer["removed_parts"]) == (9, 3)
    assert parquet_sum(server, answer) == total
    # Byte ranges of CSV leave removed parts out.
    assert csv_sum(server, listed(server, "?format=csv")) == total
    lines = [json.loads(line) for line in run_files(server, "--json", "--with-removed").stdout.splitlines()]
    assert lines[len(answer["files"])] == {"path": "parts/1-12-1.parquet", "removed_part": 2, "first_row": 2, "rows": 2}
    assert run_files(server, "--with-removed").returncode == 2
    # Restored, or purged and packed, their rows are in the table or in no file.
    tally(server).RestorePart(tally_pb2.RestorePartRequest(part=3))
    for part in (2, 11):
        remove(server, part, purge=True)
    assert get(server, FILES).status_code == 409
    pack(server)
    answer = listed(server)
    assert answer["removed"] == [] and answer["files"][0]["path"] == "parts/1-12-2.parquet"
    assert parquet_sum(server, answer) == sum_of(server) == total + (1 << 3)


def test_many_removed_parts(start_server, tmp_path):
    """More than a block of an index and than a page have, in two segments."""
    server = start_server(tmp_path / "data", "--durability", "none")
    for _segment in range(2):
        for _ in range(700):
            stream(server, b"x\n1\n")
        pack(server)
    for part in [*range(250, 420), 699, 700, 701, 1399]:
        remove(server, part)
    answer = listed(server, "?with_removed=true")
    assert len(answer["removed"]) == answer["removed_parts"] == 174
    assert parquet_sum(server, answer) == csv_sum(server, listed(server, "?format=csv")) == sum_of(server) == 1400 - 174


def test_wrong_questions(start_server, tmp_path):
    server = start_server(tmp_path / "data")
    for query, says in (
        ("?formats=csv", "unknown field `formats`"),
        ("?format=json", "unknown variant `json`"),
        ("?with_removed=2", "not `true` or `false`"),
        ("?format=csv&format=csv", "duplicate field"),
    ):
        check_problem(get(server, FILES + query), 400, "query", says)
    with pytest.raises(grpc.RpcError) as refused:
        list(tally(server).ListFiles(tally_pb2.ListFilesRequest(format=7)))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_table_with_parts_in_quarantine_has_no_list(start_server, tmp_path):
    data = tmp_path / "data"
    server = start_server(data)
    for number in range(1, 4):
        stream(server, f"x\n{number}\n".encode())
    server.stop()
    (data / "parts" / "2.parquet").write_bytes(b"damaged")
    server = start_server(data)
    assert server.quarantine_count_at_start == 1
    assert get(server, FILES).status_code == 500 and "part 2 is missing" in get(server, FILES).json()["detail"]
    printed = run_files(server)
    assert (printed.returncode, printed.stdout) == (1, "") and "part 2 is missing" in printed.stderr
    server.stop()
    server = start_server(data, "--incomplete", "answer")
    assert [file["path"] for file in listed(server)["files"]] == ["parts/1.parquet", "parts/3.parquet"]


def test_links_stay(start_server, tmp_path):
    data, links = tmp_path / "data", tmp_path / "links"
    server = start_server(data)
    fill(server)
    total = sum_of(server)
    printed = run_files(server, "--data", str(data), "--link", str(links))
    assert (printed.returncode, printed.stderr) == (0, "")
    assert printed.stdout.splitlines() == [str(links / f"{number}.parquet") for number in range(1, 13)]
    assert links.stat().st_mode & 0o777 == 0o700
    pack(server)
    tables = [pyarrow.parquet.read_table(path, columns=["x"]) for path in links.glob("*.parquet")]
    assert sum(value or 0 for one in tables for value in one["x"].to_pylist()) == total
    # A folder that is there is not added to, and of a list that is refused or cannot be linked nothing is left.
    refused = run_files(server, "--data", str(data), "--link", str(links))
    assert (refused.returncode, refused.stdout) == (1, "") and "the folder cannot be made" in refused.stderr
    assert len(list(links.iterdir())) == 12
    remove(server, 12, purge=True)
    for folder, says in ((data, "part 12, which was removed"), (tmp_path / "nothing", "not the data folder")):
        refused = run_files(server, "--data", str(folder), "--link", str(tmp_path / "others"))
        assert refused.returncode == 1 and refused.stdout == "" and says in refused.stderr
        assert not (tmp_path / "others").exists()
        pack(server)


@pytest.mark.parametrize("is_running", [True, False])
def test_files_of_another_table_are_not_taken(start_server, tally_binary, tmp_path, is_running):
    """Two tables whose files have the same names and sizes, and one forgotten flag."""
    server, other = start_server(tmp_path / "data"), start_server(tmp_path / "other")
    for each, content in ((server, b"x\n1\n"), (other, b"x\n2\n")):
        stream(each, content)
    if not is_running:
        other.stop()
    target = tmp_path / "copy"
    for command in (["backup", target], ["files", "--link", target]):
        words = [tally_binary, *command, "--data", tmp_path / "other", "--server", server.address]
        refused = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=60, env=clean_environment())
        assert refused.returncode == 1 and refused.stdout == "", refused
        assert f"{tmp_path / 'other'} is not the data folder of this server" in refused.stderr
        assert not target.exists()
    words[words.index(tmp_path / "other")] = tmp_path / "data"
    assert subprocess.run(list(map(str, words)), capture_output=True, timeout=60, env=clean_environment()).returncode == 0
    assert (target / "1.parquet").read_bytes() == (tmp_path / "data" / "parts" / "1.parquet").read_bytes()


class Uploads:
    """Threads that upload small files, each with two rows where x is 1, until they are told to end."""

    def __init__(self, server: Server, threads: int):
        self._server, self._is_over, self.failures = server, threading.Event(), []
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        number = 0
        try:
            while not self._is_over.is_set():
                number += 1
                stream(self._server, b"x,y\n1,a\n1,b\n" if number % 4 else b"y,x\na,1\nb,1\n")
        except grpc.RpcError as error:
            self.failures.append(str(error))

    def end(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()


def test_a_list_is_exact_while_parts_are_packed(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--pack-above", "50", "--durability", "none")
    uploads = Uploads(server, 3)
    try:
        seen: List[str] = []
        while len([path for path in seen if "-" in path]) < 3:
            before = sum_in(server, "csv")
            answer, csv = listed(server), listed(server, "?format=csv")
            after = sum_in(server, "parquet")
            # Each part is in one file, and every row is read once.
            assert sum(file["parts"] for file in answer["files"]) == answer["parts"]
            assert parquet_sum(server, answer) == answer["rows"] and before <= answer["rows"] <= after
            assert csv_sum(server, csv) == csv["rows"] and answer["rows"] <= csv["rows"] <= after
            seen = [file["path"] for file in answer["files"]]
    finally:
        uploads.end()
    assert uploads.failures == []
    assert parquet_sum(server, listed(server)) == sum_of(server)


def test_a_long_list_is_sent_piece_by_piece(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--durability", "none")
    for _ in range(1500):
        stream(server, b"x\n1\n")
    answer = requests.get(server.http + FILES, stream=True, timeout=ANSWER_SECONDS_MAX)
    assert answer.headers.get("Transfer-Encoding") == "chunked"
    assert [file["first_part"] for file in answer.json()["files"]] == list(range(1, 1501))
    assert len(run_files(server).stdout.splitlines()) == 1500
    # What a list has is not deleted while somebody reads the list.
    messages = tally(server).ListFiles(tally_pb2.ListFilesRequest())
    assert next(messages).head.parts == 1500
    messages.cancel()
    wait_until(lambda: get(server, FILES).status_code == 200, "a list after one that was cancelled")
