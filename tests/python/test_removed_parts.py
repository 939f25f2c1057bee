"""Removing parts and the way back: over gRPC, HTTP and the command line, after `kill -9` at every step, and on a full disk
(test_disk_full.py).
"""

import json
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import grpc
import pytest
import requests
import table_pb2
import tally_pb2
from conftest import Server, binary, clean_environment, run_client, table, tally, wait_until
from http_calls import ANSWER_SECONDS_MAX, check_problem
from uploads import stream, unary_error

KILL_ON_CHANGE = Path(__file__).with_name("kill_on_change.py")
PARTS = "/api/v1/table/parts"
NOT_THERE = "there is no part {}: it was never there, or its files are gone"


def run_tally(server: Server, *arguments: str, stdin_text: str = "") -> subprocess.CompletedProcess:
    return subprocess.run(
        [binary(), *arguments],
        env=clean_environment(TALLY_SERVER=server.address),
        input=stdin_text,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


def sums(server: Server) -> int:
    """The sum of x, which is the same from both formats."""
    ask = table(server).ColumnSum
    answers = [ask(table_pb2.ColSumReq(column="x", format=format)) for format in ("csv", "parquet")]
    assert [answer.error for answer in answers] == ["", ""]
    assert answers[0].total == answers[1].total
    return answers[0].total


def remove(server: Server, part: int, purge: bool = False) -> tally_pb2.RemovePartResponse:
    return tally(server).RemovePart(tally_pb2.RemovePartRequest(part=part, purge=purge))


def restore(server: Server, part: int) -> tally_pb2.RestorePartResponse:
    return tally(server).RestorePart(tally_pb2.RestorePartRequest(part=part))


def upload_parts(server: Server, count: int, filler: str = "") -> None:
    """In part N, the sum of x is 10 to the power of N - 1. So a sum shows which parts the table has."""
    for number in range(count):
        stream(server, f"x,y\n{10**number},\n{filler}".encode())


LARGE = ",\n" * 100_000  # such a file has a list of checksums


def test_over_grpc(server):
    upload_parts(server, 3)
    removed = remove(server, 2)
    assert removed.parts == 2
    until = time.strptime(removed.restorable_until, "%Y-%m-%dT%H:%M:%SZ")
    assert abs(time.mktime(until) - time.mktime(time.gmtime()) - 86_400) < 600
    assert remove(server, 2) == removed
    assert sums(server) == 101
    listed = tally(server).ListParts(tally_pb2.ListPartsRequest())
    assert [receipt.part for receipt in listed] == [1, 3]
    groups = tally(server).GroupSum(tally_pb2.GroupSumRequest(by=["y"], sum=["x"]))
    assert [list(group.totals) for block in groups for group in block.groups] == [[101]]
    damaged = [file for progress in tally(server).Verify(tally_pb2.VerifyRequest()) for file in progress.damaged]
    assert damaged == []
    assert tally(server).ListQuarantine(tally_pb2.ListQuarantineRequest()).count == 0
    assert restore(server, 2).parts == 3
    assert sums(server) == 111
    assert remove(server, 1, purge=True) == tally_pb2.RemovePartResponse(parts=2)
    assert sums(server) == 110
    for call in (lambda: restore(server, 1), lambda: remove(server, 1), lambda: remove(server, 1, purge=True), lambda: remove(server, 0)):
        with pytest.raises(grpc.RpcError) as error:
            call()
        assert error.value.code() == grpc.StatusCode.NOT_FOUND
        assert error.value.details() in (NOT_THERE.format(1), NOT_THERE.format(0))


def test_the_original_clients_see_nothing_of_it(server, tmp_path):
    path = tmp_path / "file.csv"
    path.write_text("x\n5\n")
    for part in (1, 2):
        assert run_client("upload.py", path, server=server).stdout == "success\n"
        remove(server, part, purge=part == 1)
    assert run_client("upload.py", path, server=server).stdout == "success\n"
    for program in ("csvsum.py", "parquetsum.py"):
        assert run_client(program, "x", server=server).stdout.splitlines()[-1] == "5"


def test_over_http(server):
    upload_parts(server, 3)

    def delete(path: str) -> requests.Response:
        return requests.delete(f"{server.http}{PARTS}/{path}", timeout=ANSWER_SECONDS_MAX)

    answer = delete("2")
    assert answer.status_code == 200
    assert answer.json() == {"part": 2, "parts": 2, "restorable_until": answer.json()["restorable_until"]}
    assert delete("2/").json() == answer.json()
    assert sums(server) == 101
    restore(server, 2)
    assert delete("2?purge=true").json() == {"part": 2, "parts": 2, "restorable_until": None}
    for again in ("2", "2?purge=true"):
        check_problem(delete(again), 404, "part", NOT_THERE.format(2))
    for wrong in ("0", "x", "-1", "99999999999999999999", "01", "+1"):
        check_problem(delete(wrong), 404, "part", "is not the number of a part")
    check_problem(delete("1?purge=maybe"), 400, "query", "purge")
    check_problem(delete("1?other=1"), 400, "query", "other")
    assert sums(server) == 101


def test_on_the_command_line(server):
    upload_parts(server, 3)
    asked = run_tally(server, "remove", "2")
    assert asked.returncode == 2 and "use --yes" in asked.stderr and sums(server) == 111
    removed = run_tally(server, "remove", "1", "2", "--yes")
    assert removed.returncode == 0, removed.stderr
    lines = removed.stdout.splitlines()
    assert [line.split(";")[0] for line in lines] == ["part 1 is removed", "part 2 is removed"]
    assert lines[1].endswith("Z, `tally restore 2` brings it back") and sums(server) == 100
    assert run_tally(server, "restore", "2").stdout == "part 2 is back in the table\n"
    assert json.loads(run_tally(server, "restore", "1", "--json").stdout) == {"part": 1, "parts": 3}
    purged = run_tally(server, "remove", "3", "--yes", "--purge", "--json")
    assert json.loads(purged.stdout) == {"part": 3, "parts": 2, "restorable_until": None}
    for arguments in (["restore", "3"], ["remove", "3", "--yes"]):
        refused = run_tally(server, *arguments)
        assert (refused.returncode, refused.stderr) == (1, f"error: {NOT_THERE.format(3)}\n")
    assert sums(server) == 11
    # One that is refused does not keep the others.
    removed = run_tally(server, "remove", "1", "999", "2", "--yes")
    assert (removed.returncode, removed.stderr) == (1, f"error: {NOT_THERE.format(999)}\n")
    assert [line.split(";")[0] for line in removed.stdout.splitlines()] == ["part 1 is removed", "part 2 is removed"]
    restored = run_tally(server, "restore", "1", "999", "2")
    assert (restored.returncode, restored.stderr) == (1, f"error: {NOT_THERE.format(999)}\n")
    assert restored.stdout.splitlines() == ["part 1 is back in the table", "part 2 is back in the table"]
    forgotten = run_tally(server, "forget", "1", "999")
    assert forgotten.returncode == 1 and len(forgotten.stderr.splitlines()) == 2


def test_removed_parts_are_listed(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--undo-s", "3600")
    for _ in range(80):
        stream(server, b"x\n1\n")

    def numbers(*arguments: str) -> list:
        listed = run_tally(server, "parts", "--removed", "--json", *arguments)
        assert listed.returncode == 0, listed.stderr
        return [json.loads(line)["part"] for line in listed.stdout.splitlines()]

    assert numbers() == []
    for part in range(2, 81):
        remove(server, part)
    remove(server, 3, purge=True)
    restore(server, 5)
    # More than one answer has.
    removed = [2, 4, *range(6, 81)]
    assert numbers() == removed
    assert numbers("--after", "4") == removed[2:] and numbers("--limit", "40") == removed[:40]
    assert numbers("--after", "79", "--limit", "1") == [80] and numbers("--after", "80") == []
    answer = tally(server).ListRemoved(tally_pb2.ListRemovedRequest(after=3))
    assert [part.part for part in answer.parts] == removed[1:33]
    first = json.loads(run_tally(server, "parts", "--removed", "--json", "--limit", "1").stdout)
    until = remove(server, 2).restorable_until
    assert (first["rows"], first["restorable_until"]) == (1, until)
    assert first["csv_bytes"] == (server.data / "removed" / "2.csv").stat().st_size
    assert first["parquet_bytes"] == (server.data / "removed" / "2.parquet").stat().st_size
    times = [datetime.fromisoformat(first[name]) for name in ("removed_at", "restorable_until")]
    assert times[1] - times[0] == timedelta(hours=1)
    text = run_tally(server, "parts", "--removed", "--limit", "1").stdout.splitlines()
    assert text[0].split() == ["part", "rows", "csv", "bytes", "parquet", "bytes", "removed", "at", "restorable", "until"]
    assert text[1].split()[:2] == ["2", "1"] and text[1].endswith(until)
    server.kill()
    server = start_server(tmp_path / "data")
    assert numbers() == removed


def test_after_the_undo_time_the_files_are_deleted(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--undo-s", "1")
    upload_parts(server, 2, LARGE)
    remove(server, 1)
    wait_until(lambda: [path.name for path in (server.data / "removed").iterdir()] == ["1.purged"], "it is swept")
    with pytest.raises(grpc.RpcError, match="there is no part 1"):
        restore(server, 1)
    assert sums(server) == 10


def test_a_purge_waits_for_a_question_that_reads_the_part(server):
    """The answers to many sums that run meanwhile have the part or lack it, and none fails."""
    upload_parts(server, 6, LARGE)
    calls = []
    for part in range(1, 6):
        for format in ("csv", "parquet"):
            calls += [table(server).ColumnSum.future(table_pb2.ColSumReq(column="x", format=format)) for _ in range(10)]
        remove(server, part, purge=part % 2 == 0)
    expected = {111111, 111110, 111100, 111000, 110000, 100000}
    for call in calls:
        answer = call.result()
        assert (answer.error, answer.total in expected) == ("", True), answer
    assert sums(server) == 100000
    assert {path.stem for path in (server.data / "parts").iterdir()} == {"6"}


def kill_at_change(server: Server, count: int) -> subprocess.Popen:
    """Will kill the server at the COUNT-th change of a file."""
    folders = [server.data / folder for folder in ("parts", "removed", "tmp", "quarantine")]
    command = [sys.executable, str(KILL_ON_CHANGE), str(server.pid), str(count), *map(str, folders)]
    killer = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert killer.stdout.readline() == b"watching\n"
    return killer


@pytest.mark.parametrize("what", ["remove", "purge", "restore", "purge a removed part"])
def test_killed_at_every_step(start_server, tmp_path, what):
    """After a restart the part is exactly removed or not, whole, and its number is not given out again."""
    starts_removed = what in ("restore", "purge a removed part")
    outcomes = set()
    for count in range(1, 12):
        data = tmp_path / str(count)
        server = start_server(data)
        upload_parts(server, 3, LARGE)
        if starts_removed:
            remove(server, 3)
        killer = kill_at_change(server, count)
        try:
            restore(server, 3) if what == "restore" else remove(server, 3, purge=what.startswith("purge"))
            acknowledged = True
        except grpc.RpcError:
            acknowledged = False
        if acknowledged and server.is_running():
            time.sleep(0.05)  # the kill may still come
        was_killed = not server.is_running() and server.process.returncode == -signal.SIGKILL
        server.kill()
        killer.kill()
        killer.wait()

        server = start_server(data)
        assert server.quarantine_count_at_start == 0 and server.leftovers() == []
        total = sums(server)
        assert total in (11, 111)
        is_there = total == 111
        assert {path.stem for path in (data / "parts").iterdir()} == ({"1", "2", "3"} if is_there else {"1", "2"})
        is_purged = (data / "removed" / "3.purged").exists()
        assert not (is_there and list((data / "removed").iterdir()))
        if acknowledged:
            assert is_there == (what == "restore") and is_purged == what.startswith("purge")
        outcomes.add((is_there, is_purged))
        assert stream(server, b"x\n0\n").part == 4
        if not is_there and not is_purged:
            assert restore(server, 3).parts == 4
            is_there = True
        assert sums(server) == (111 if is_there else 11)
        verified = [file for progress in tally(server).Verify(tally_pb2.VerifyRequest()) for file in progress.damaged]
        assert verified == []
        server.stop()
        if not was_killed:
            break
    else:
        raise AssertionError("it takes more steps than were tried")
    assert len(outcomes) >= 1
    print(what, outcomes)


def test_a_part_in_quarantine_is_forgotten_and_not_removed(start_server, tmp_path):
    server = start_server(tmp_path / "data")
    assert unary_error(server, b"x\n5\n") == ""
    server.stop()
    (tmp_path / "data" / "parts" / "1.csv").unlink()
    server = start_server(tmp_path / "data")
    with pytest.raises(grpc.RpcError) as error:
        remove(server, 1)
    assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert error.value.details() == "part 1 is in quarantine: accept its loss with `tally forget 1`"
    answer = requests.delete(f"{server.http}{PARTS}/1", timeout=ANSWER_SECONDS_MAX)
    check_problem(answer, 409, "part", "in quarantine")


def test_a_removed_part_is_not_missing_from_quarantine(start_server, tmp_path):
    """Damaged copies of a part that was restored from a backup stay in quarantine. Removing the part does not bring back the
    complaint that it is missing.
    """
    server = start_server(tmp_path / "data")
    upload_parts(server, 2)
    server.stop()
    data = tmp_path / "data"
    backup = {path.name: path.read_bytes() for path in (data / "parts").iterdir()}
    (data / "parts" / "1.csv").write_bytes(b"short")
    start_server(data).stop()
    for name in ("1.csv", "1.parquet", "1.json"):
        (data / "parts" / name).write_bytes(backup[name])
    for purge in (False, True):
        server = start_server(data)
        assert server.quarantine_count_at_start == 0
        remove(server, 1, purge)
        server.stop()
        server = start_server(data)
        assert server.quarantine_count_at_start == 0 and sums(server) == 10
        server.stop()
        verified = subprocess.run([binary(), "verify", str(data)], capture_output=True, encoding="utf-8", timeout=60)
        assert verified.returncode == 0, verified.stdout + verified.stderr
