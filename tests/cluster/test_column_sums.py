"""Column sums of a cluster: real processes, compared with a server that reads the parts itself, byte for byte."""

import random
import signal
import threading
import time

import grpc
import pytest
from shared import KIB, table, tally, wait_until

import table_pb2
import tally_pb2

COLUMNS = ["x", "y", "z", "text", "double", "day", "negative", "huge", "sparse", "nothing", ""]
FORMATS = ["csv", "parquet"]


def upload(server, *files: bytes) -> None:
    for file in files:
        assert table(server).Upload(table_pb2.UploadReq(csv_data=file)).error == ""


def csv(header: str, rows) -> bytes:
    return (header + "\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)).encode()


def bigdata_part(index: int, rows: int = 100) -> bytes:
    """As bigdata.py makes them: x is 1, y and z are numbers."""
    numbers = random.Random(index)
    return csv("x,y,z", ((1, numbers.randrange(10**6), numbers.randrange(-(10**9), 10**9)) for _row in range(rows)))


def other_parts() -> list:
    """Other columns, in another order or missing, texts, doubles, dates, negative and huge numbers."""
    return [
        csv("z,x", [(5, 6), (-7, 8)]),
        csv("text,x", [("one", 1), ("two", 2)]),
        csv("double,x", [("1.5", 1), ("2.0", "")]),
        csv("day,negative", [("2026-01-01", -1), ("2026-01-02", -2)]),
        csv("huge", [(2**63 - 1,)] * 3),
        csv("huge", [(-(2**63),)]),
        csv("sparse,x", [("", 1), ("", 2)]),
        csv("sparse,x", [("4", 1), ("", 2)]),
        csv("x", [(" 12 ",), ("",), ("+3",)]),
        csv('"q""u,o",x', [('"a\nb"', 9)]),
        csv("x", []),
        csv("y,x", ((index, index) for index in range(30_000))),
    ]


def ask(server, column: str, text_format: str):
    """Everything that a client gets, as bytes or as a status."""
    try:
        answer = table(server).ColSum(table_pb2.ColSumReq(column=column, format=text_format), timeout=120)
        return answer.SerializeToString()
    except grpc.RpcError as error:
        return error.code(), error.details()


def answers(server) -> dict:
    return {(column, text_format): ask(server, column, text_format) for column in COLUMNS for text_format in FORMATS}


def figures(server) -> list:
    """What was read, of the columns that have a sum."""
    found = []
    for column in ["x", "y", "z", "nothing"]:
        request = tally_pb2.SumRequest(column=column, formats=[tally_pb2.CSV, tally_pb2.PARQUET])
        for one in tally(server).Sum(request, timeout=120).sums:
            one.elapsed_ms = 0
            found.append((column, one.SerializeToString()))
    return found


def status_of(server, column: str = "x", text_format: str = "csv"):
    found = ask(server, column, text_format)
    assert isinstance(found, tuple), f"an answer: {table_pb2.ColSumResp.FromString(found)}"
    return found


def total_of(server, column: str = "x", text_format: str = "csv") -> int:
    found = ask(server, column, text_format)
    assert isinstance(found, bytes), found
    answer = table_pb2.ColSumResp.FromString(found)
    assert answer.error == ""
    return answer.total


@pytest.fixture
def parts(start_server, tmp_path):
    """A data folder with 200 parts, whose column x adds up to 20,000."""
    server = start_server(tmp_path / "data", "--durability", "none", "--pack-above", "100000")
    upload(server, *(bigdata_part(index) for index in range(200)))
    assert total_of(server) == 20_000
    server.stop()
    return tmp_path / "data"


def test_answers_are_those_of_one_machine(start_server, start_cluster, parts):
    local = start_server(parts, "--durability", "none", "--pack-above", "100000")
    upload(local, *other_parts())
    expected, expected_figures = answers(local), figures(local)
    local.stop()
    cluster = start_cluster(parts, "", "")
    server = start_server(parts, "--scheduler", cluster.address, "--pack-above", "100000")
    assert answers(server) == expected
    assert figures(server) == expected_figures
    errors = [a for a in expected.values() if isinstance(a, tuple) or table_pb2.ColSumResp.FromString(a).error]
    assert len(errors) >= 6, expected

    # A bad cell, and parts that are packed, removed and damaged.
    upload(server, csv("x,bad", [(1, 2), (3, "no number")]), csv("bad", [("x" * 10 * KIB,)]))
    tally(server).RemovePart(tally_pb2.RemovePartRequest(part=3), timeout=60)
    for step in ["own files", "packed", "damaged"]:
        if step == "packed":
            tally(server).Pack(tally_pb2.PackRequest(), timeout=120)
            upload(server, bigdata_part(1000))
        if step == "damaged":
            last = max(parts.glob("parts/*.csv"), key=lambda path: int(path.stem.split("-")[0]))
            content = bytearray(last.read_bytes())
            content[20] ^= 1
            last.write_bytes(content)
        columns = [*COLUMNS, "bad"]
        seen = {(column, text_format): ask(server, column, text_format) for column in columns for text_format in FORMATS}
        server.stop()
        local = start_server(parts, "--durability", "none", "--pack-above", "100000")
        here = {(column, text_format): ask(local, column, text_format) for column in columns for text_format in FORMATS}
        local.stop()
        assert seen == here, step
        server = start_server(parts, "--scheduler", cluster.address, "--pack-above", "100000")


def test_without_executors_the_answer_comes_at_once(start_server, start_cluster, parts):
    cluster = start_cluster(parts)
    server = start_server(parts, "--scheduler", cluster.address)
    started = time.monotonic()
    code, details = status_of(server)
    assert code == grpc.StatusCode.UNAVAILABLE and "has no executors" in details
    assert time.monotonic() - started < 2
    cluster.start_executor()
    cluster.wait_for_executors(1)
    assert total_of(server) == 20_000


def test_without_a_scheduler_the_answer_comes_at_once(start_server, parts, start_cluster):
    cluster = start_cluster(parts, "")
    server = start_server(parts, "--scheduler", cluster.address)
    assert total_of(server) == 20_000
    cluster.scheduler.kill()
    started = time.monotonic()
    code, details = status_of(server)
    assert code == grpc.StatusCode.UNAVAILABLE and "cannot be reached" in details, details
    assert time.monotonic() - started < 10
    upload(server, bigdata_part(1))  # the server goes on
    cluster.start_scheduler()
    cluster.wait_for_executors(1)  # it registers again by itself
    assert total_of(server) == 20_100


@pytest.mark.parametrize("text_format", FORMATS)
def test_an_executor_dies_between_two_parts(start_server, start_cluster, parts, text_format):
    cluster = start_cluster(parts, "", "die-after:30")
    server = start_server(parts, "--scheduler", cluster.address)
    assert total_of(server, "x", text_format) == 20_000
    for _again in range(20):
        if not cluster.executors[1].is_running():
            break
        assert total_of(server, "x", text_format) == 20_000
    assert not cluster.executors[1].is_running(), "it has not read 30 parts"


def test_all_executors_die(start_server, start_cluster, parts):
    cluster = start_cluster(parts, "die-after:20", "die-after:20")
    server = start_server(parts, "--scheduler", cluster.address)
    code, _details = status_of(server)
    assert code == grpc.StatusCode.UNAVAILABLE
    cluster.start_executor()
    cluster.wait_for_executors(1)
    assert total_of(server) == 20_000


def test_the_scheduler_dies_while_it_has_a_job(start_server, start_cluster, parts):
    cluster = start_cluster(parts, "slow-ms:50", "slow-ms:50")
    server = start_server(parts, "--scheduler", cluster.address)
    found = []
    asking = threading.Thread(target=lambda: found.append(ask(server, "x", "csv")))
    asking.start()
    wait_until(lambda: any("Execute task" in it.stderr for it in cluster.executors), "an executor has a task")
    assert not found, "the job is to run still"
    cluster.scheduler.kill()
    asking.join(60)
    assert found and found[0][0] == grpc.StatusCode.UNAVAILABLE, found
    cluster.start_scheduler()
    cluster.wait_for_executors(2)
    assert total_of(server) == 20_000


# The second waits in the middle of the submission.
@pytest.mark.parametrize("fault", ["", "submit-ms:3000"])
def test_the_job_of_a_client_that_has_gone_is_cancelled(start_server, start_cluster, parts, fault):
    cluster = start_cluster(parts, "slow-ms:200")
    server = start_server(parts, "--scheduler", cluster.address, env={"TALLY_CLUSTER_FAULT": fault})
    call = table(server).ColSum.future(table_pb2.ColSumReq(column="x", format="csv"), timeout=60)
    executor = cluster.executors[0]
    wait_until(lambda: "Execute task" in executor.stderr, "the executor has a task")
    call.cancel()
    wait_until(lambda: "Received cancellation request for job" in cluster.scheduler.stderr, "the scheduler hears of it")
    wait_until(lambda: "Cancelling tasks" in executor.stderr, "the executor hears of it", 10)


def test_a_server_that_stops_ends_its_jobs(start_server, start_cluster, parts):
    cluster = start_cluster(parts, "slow-ms:200")
    server = start_server(parts, "--scheduler", cluster.address, env={"TALLY_CLUSTER_FAULT": "submit-ms:3000"})
    call = table(server).ColSum.future(table_pb2.ColSumReq(column="x", format="csv"), timeout=60)
    wait_until(lambda: "Execute task" in cluster.executors[0].stderr, "the executor has a task")
    call.cancel()
    server.stop()
    wait_until(lambda: "Received cancellation request for job" in cluster.scheduler.stderr, "the scheduler hears of it")


def test_a_question_has_a_deadline(start_server, start_cluster, parts):
    cluster = start_cluster(parts, "slow-ms:500")
    server = start_server(parts, "--scheduler", cluster.address, "--answer-within-s", "2")
    started = time.monotonic()
    code, details = status_of(server)
    assert code == grpc.StatusCode.UNAVAILABLE and "it took more than 2 s" in details, details
    assert time.monotonic() - started < 5


def test_a_stopped_executor_is_left_out(start_server, start_cluster, parts):
    cluster = start_cluster(parts, "", "")
    server = start_server(parts, "--scheduler", cluster.address)
    cluster.executors[1].signal(signal.SIGSTOP)
    try:
        assert total_of(server) == 20_000
    finally:
        cluster.executors[1].signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("fault", "text"),
    [("twice", "was answered twice"), ("rows", "99 rows were read, its receipt says 100")],
)
def test_wrong_answers_are_errors(start_server, start_cluster, parts, fault, text):
    cluster = start_cluster(parts, fault, fault)
    server = start_server(parts, "--scheduler", cluster.address)
    code, details = status_of(server)
    assert code == grpc.StatusCode.INTERNAL and text in details, details
    assert text in server.log_line("a wrong answer of the cluster")


def test_parts_without_an_answer_are_asked_about_again(start_server, start_cluster, parts):
    cluster = start_cluster(parts, "leave-out:20")
    server = start_server(parts, "--scheduler", cluster.address)
    assert total_of(server) == 20_000
    assert "asked about again" in server.log_line("parts were not answered")


def test_an_executor_with_another_folder_is_no_damage(start_server, start_cluster, parts, tmp_path):
    other = tmp_path / "other"
    (other / "parts").mkdir(parents=True)
    cluster = start_cluster(parts)
    cluster.start_executor(data=other)
    cluster.wait_for_executors(1)
    server = start_server(parts, "--scheduler", cluster.address)
    code, details = status_of(server)
    assert code == grpc.StatusCode.UNAVAILABLE and "cannot read 16 parts that this server can read" in details


def test_executors_need_a_data_folder(tmp_path, start_cluster):
    cluster = start_cluster(tmp_path)
    with pytest.raises(AssertionError, match="data folder"):
        cluster.start_executor(data=tmp_path / "missing")


def test_nothing_is_left_after_a_question(start_server, start_cluster, parts, tmp_path):
    cluster = start_cluster(parts, "")
    server = start_server(parts, "--scheduler", cluster.address)
    assert total_of(server) == 20_000
    rows = list(cluster.work_dirs[0].rglob("*"))
    wait_until(lambda: not any(path.is_file() for path in cluster.work_dirs[0].rglob("*")), f"{rows} are removed", 10)
