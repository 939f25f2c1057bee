"""A part in quarantine: answers are refused until it is restored, or its loss is accepted, and everybody is told."""

import json
import re
import subprocess
import threading
from pathlib import Path
from typing import List
from urllib.request import Request, urlopen

import grpc
import pytest
import table_pb2
import tally_pb2
from conftest import Server, binary, clean_environment, table, tally, wait_until

# Three parts whose sums tell them apart, each with the columns of the survey.
HEADER = "Question,LocationDesc,Data_Value,StratificationCategory1,Stratification1,x"
CSVS = [f"{HEADER}\nq,Ohio,{part},c,s,{10**part}\n".encode() for part in (1, 2, 3)]
ANSWER_SECONDS_MAX = 60


def upload(server: Server, csv: bytes) -> int:
    return tally(server).Upload(iter([tally_pb2.UploadChunk(data=csv)])).part


@pytest.fixture
def data(tmp_path) -> Path:
    """A folder with the three parts, whose server has stopped."""
    folder = tmp_path / "data"
    with Server(folder) as server:
        assert [upload(server, csv) for csv in CSVS] == [1, 2, 3]
        server.stop()
    return folder


def cut_last_byte(path: Path) -> bytes:
    """Damages a file, and returns its content before."""
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    return whole


def column_sum(server: Server, file_format: str) -> int:
    answer = table(server).ColumnSum(table_pb2.ColSumReq(column="x", format=file_format))
    assert answer.error == ""
    return answer.total


def group_sums(server: Server) -> int:
    request = tally_pb2.GroupSumRequest(by=["LocationDesc"], sum=["x"])
    blocks = list(tally(server).GroupSum(request))
    return sum(group.totals[0] for block in blocks for group in block.groups)


def statistic(server: Server) -> dict:
    """The result of a job: the mean of the values of the parts, in an object, or why there is none."""
    body = json.dumps({"question": "q"}).encode()
    request = Request(f"{server.http}/api/global_mean", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=ANSWER_SECONDS_MAX) as answer:
        job = json.load(answer)["job_id"]

    def ended():
        with urlopen(f"{server.http}/api/jobs/{job}", timeout=ANSWER_SECONDS_MAX) as answer:
            state = json.load(answer)
            return state if state["state"] in ("done", "failed") else None

    state = wait_until(ended, "the job ends")
    if state["state"] == "failed":
        return state
    with urlopen(f"{server.http}/api/get_results/{job}", timeout=ANSWER_SECONDS_MAX) as answer:
        return json.load(answer)["data"]


def check_answers(server: Server, parts: List[int]) -> None:
    """Every kind of question is answered from exactly these parts."""
    total = sum(10**part for part in parts)
    assert [column_sum(server, "csv"), column_sum(server, "parquet"), group_sums(server)] == [total] * 3
    assert statistic(server) == {"global_mean": sum(parts) / len(parts)}


def check_refuses(server: Server, missing: List[int]) -> None:
    """Every kind of question is refused, and told which part is missing, how many are, and what to do."""
    told = []
    for ask in (lambda: column_sum(server, "csv"), lambda: column_sum(server, "parquet"), lambda: group_sums(server)):
        with pytest.raises(grpc.RpcError) as failure:
            ask()
        assert failure.value.code() == grpc.StatusCode.DATA_LOSS
        told.append(failure.value.details())
    job = statistic(server)
    assert job["state"] == "failed", job
    told.append(job["reason"])
    for text in told:
        assert f"part {missing[0]}" in text and f"`tally forget {missing[0]}`" in text and "parts/" in text, text
        assert len(missing) == 1 or re.match(rf"{len(missing)} parts\b", text), text


def fetched(server: Server, path: str) -> str:
    with urlopen(f"{server.http}{path}", timeout=ANSWER_SECONDS_MAX) as answer:
        assert answer.status == 200
        return answer.read().decode()


def run_tally(server: Server, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(binary()), *map(str, arguments)],
        env=clean_environment(TALLY_SERVER=server.address),
        capture_output=True,
        encoding="utf-8",
        timeout=ANSWER_SECONDS_MAX,
    )


def check_told(server: Server, missing: List[int]) -> None:
    """Every place that reports the quarantine does so, unless it is empty."""
    assert server.quarantine_count_at_start >= len(missing)
    assert f"tally_parts_quarantined {len(missing)}\n" in fetched(server, "/metrics")
    plural = "" if len(missing) == 1 else "s"
    assert fetched(server, "/readyz") == ("ready" + (f", {len(missing)} part{plural} in quarantine" if missing else "")) + "\n"
    listed = run_tally(server, "parts")
    assert listed.returncode == 0
    quarantined = [line for line in listed.stdout.splitlines() if "in quarantine" in line]
    assert [int(line.split()[0]) for line in quarantined] == missing
    objects = [json.loads(line) for line in run_tally(server, "parts", "--json").stdout.splitlines()]
    assert [one["part"] for one in objects if one.get("in_quarantine")] == missing
    assert [one["part"] for one in objects] == sorted(one["part"] for one in objects)


def test_a_missing_part_refuses_every_question(start_server, data):
    cut_last_byte(data / "parts" / "2.parquet")
    server = start_server(data)
    check_refuses(server, [2])
    check_told(server, [2])
    # Uploads and lists still work.
    assert upload(server, CSVS[0]) == 4
    assert [receipt.part for receipt in tally(server).ListParts(tally_pb2.ListPartsRequest())] == [1, 3, 4]
    server.stop()
    server = start_server(data)
    check_refuses(server, [2])


def test_the_first_of_several_and_their_number_are_told(start_server, data):
    cut_last_byte(data / "parts" / "3.csv")
    cut_last_byte(data / "parts" / "1.json")
    server = start_server(data)
    check_refuses(server, [1, 3])
    check_told(server, [1, 3])
    # A list in pieces has each part once.
    for flags, expected in (
        (["--limit", 1], [1, 2]),
        (["--after", 2, "--limit", 1], [3]),
        (["--after", 1], [2, 3]),
        (["--after", 3], []),
    ):
        lines = run_tally(server, "parts", "--json", *flags).stdout.splitlines()
        assert [json.loads(line)["part"] for line in lines] == expected, flags


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_incomplete_answers_are_given_to_who_wants_them(start_server, data, how):
    cut_last_byte(data / "parts" / "2.csv")
    if how == "flag":
        server = start_server(data, "--incomplete", "answer")
    else:
        server = start_server(data, env={"TALLY_INCOMPLETE": "answer"})
    check_answers(server, [1, 3])
    check_told(server, [2])


def test_a_part_moved_back_whole_is_served_again(start_server, data):
    whole = cut_last_byte(data / "parts" / "2.csv")
    start_server(data).stop()
    (data / "quarantine" / "2.csv").write_bytes(whole)
    for kind in ("csv", "parquet", "json"):
        (data / "quarantine" / f"2.{kind}").rename(data / "parts" / f"2.{kind}")
    server = start_server(data)
    assert server.quarantine_count_at_start == 0
    check_answers(server, [1, 2, 3])
    check_told(server, [])
    server.stop()
    # The same if copies are left in quarantine.
    (data / "quarantine" / "2.csv").write_bytes(whole)
    (data / "quarantine" / "2.json").write_bytes(b"")
    server = start_server(data)
    check_answers(server, [1, 2, 3])
    check_told(server, [])
    with pytest.raises(grpc.RpcError) as failure:
        tally(server).Forget(tally_pb2.ForgetRequest(part=2))
    assert failure.value.code() == grpc.StatusCode.NOT_FOUND


def test_files_put_back_without_their_receipt_are_not_taken_for_leftovers(start_server, data):
    cut_last_byte(data / "parts" / "2.parquet")
    files = {path.name: path.read_bytes() for path in (data / "parts").glob("2.*")}
    start_server(data).stop()
    for kind in ("csv", "parquet"):
        (data / "quarantine" / f"2.{kind}").rename(data / "parts" / f"2.{kind}")
    server = start_server(data)
    check_refuses(server, [2])
    assert not list((data / "parts").glob("2.*"))
    assert {path.name: path.read_bytes() for path in (data / "quarantine").iterdir()} == files


def test_a_part_is_in_quarantine_whichever_of_its_files_is_there(start_server, data):
    cut_last_byte(data / "parts" / "2.parquet")
    start_server(data).stop()
    for kind in ("json", "csv"):
        (data / "quarantine" / f"2.{kind}").unlink()
        server = start_server(data)
        check_refuses(server, [2])
        server.stop()


def test_a_loss_that_is_accepted_stays_so(start_server, data):
    for part in (1, 3):
        cut_last_byte(data / "parts" / f"{part}.parquet")
    server = start_server(data)
    forgotten = run_tally(server, "forget", 3, "--json")
    assert forgotten.returncode == 0 and json.loads(forgotten.stdout) == {"part": 3, "quarantined": 1}
    check_refuses(server, [1])
    check_told(server, [1])
    server.kill()  # what was answered is on disk
    server = start_server(data)
    check_refuses(server, [1])
    forgotten = run_tally(server, "forget", 1)
    assert forgotten.returncode == 0 and "0 parts in quarantine" in forgotten.stdout
    for _again in range(2):
        check_answers(server, [2])
        check_told(server, [])
        server.stop()
        server = start_server(data)
        assert server.quarantine_count_at_start == 0
    kept = sorted(path.name for path in (data / "quarantine").iterdir() if path.suffix != ".forgotten")
    assert kept == [f"{part}.{kind}" for part in (1, 3) for kind in ("csv", "json", "parquet")]
    # Their ids are not used again.
    assert upload(server, CSVS[0]) == 4


def test_a_part_that_was_forgotten_restored_and_damaged_again_is_missing_again(start_server, data):
    whole = cut_last_byte(data / "parts" / "2.csv")
    server = start_server(data)
    assert tally(server).Forget(tally_pb2.ForgetRequest(part=2)).quarantined == 0
    server.stop()
    for kind in ("csv", "parquet", "json"):
        (data / "quarantine" / f"2.{kind}").rename(data / "parts" / f"2.{kind}")
    # It is still damaged.
    server = start_server(data)
    check_refuses(server, [2])
    assert tally(server).Forget(tally_pb2.ForgetRequest(part=2)).quarantined == 0
    server.stop()
    for kind in ("csv", "parquet", "json"):
        (data / "quarantine" / f"2.{kind}").rename(data / "parts" / f"2.{kind}")
    (data / "parts" / "2.csv").write_bytes(whole)
    server = start_server(data)
    check_answers(server, [1, 2, 3])
    server.stop()
    cut_last_byte(data / "parts" / "2.csv")
    check_refuses(start_server(data), [2])


def test_what_is_not_in_quarantine_cannot_be_forgotten(start_server, data):
    cut_last_byte(data / "parts" / "2.csv")
    server = start_server(data)
    for part in (0, 1, 4, 2**64 - 1):
        with pytest.raises(grpc.RpcError) as failure:
            tally(server).Forget(tally_pb2.ForgetRequest(part=part))
        assert failure.value.code() == grpc.StatusCode.NOT_FOUND
        assert failure.value.details() == f"part {part} is not in quarantine"
    said = run_tally(server, "forget", 1)
    assert (said.returncode, said.stdout, said.stderr) == (1, "", "error: part 1 is not in quarantine\n")
    check_refuses(server, [2])
    assert not list((data / "quarantine").glob("*.forgotten"))


def test_the_same_loss_accepted_by_many_at_once_counts_once(start_server, data):
    for part in (1, 2):
        cut_last_byte(data / "parts" / f"{part}.csv")
    server = start_server(data)
    answers = []

    def forget():
        answers.append(tally(server).Forget(tally_pb2.ForgetRequest(part=1)).quarantined)

    threads = [threading.Thread(target=forget) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ANSWER_SECONDS_MAX)
    assert answers == [1] * 8
    check_refuses(server, [2])
    check_told(server, [2])
