"""Group sums and statistics of a cluster: real processes, compared with a server that reads the parts itself, byte for byte."""

import random

import grpc
import pytest
import requests
from shared import tally, wait_until
from survey_oracle import QUESTION, QUESTIONS, SURVEY_HEADER, survey_csv
from test_column_sums import bigdata_part, csv, other_parts, parts, upload  # noqa: F401 (a fixture)
from test_column_sums import status_of as column_sum_status_of

import tally_pb2

GROUP_SUMS = [  # columns to group by, columns to sum
    (["x"], ["y"]),
    (["y"], ["x"]),
    (["x"], ["z", "y"]),
    (["text"], ["x"]),
    (["day"], ["negative"]),
    (["k", "l"], ["n"]),
    (["k"], ["x", "n"]),
    (["x"], ["sparse"]),
    (["x"], ["text"]),
    (["x"], ["double"]),
    (["huge"], ["huge2"]),
    (['q"u,o'], ["x"]),
    (["nothing"], ["x"]),
    (["k"], ["l"]),
    (["long"], ["m"]),
]
OTHER_QUESTION = "Another?"


def keyed_part(index: int) -> bytes:
    """Few groups of two columns, texts that need quotes, empty cells."""
    numbers = random.Random(index)
    keys = ["a", '"b,c"', "", "ä", '"d""e"']
    rows = [(numbers.choice(keys), numbers.randrange(3), numbers.randrange(-9, 9)) for _row in range(40)]
    return csv("k,l,n", rows)


def group_sum(server, by, sums):
    """Everything that a client gets, as bytes or as a status."""
    blocks = tally(server).GroupSum(tally_pb2.GroupSumRequest(by=by, sum=sums), timeout=180)
    found = []
    try:
        for block in blocks:
            found.extend(group.SerializeToString() for group in block.groups)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return found


def largest(server, by, sums):
    """The groups with the largest totals, over HTTP."""
    query = [*(("by", name) for name in by), *(("sum", name) for name in sums), ("order", "total"), ("limit", 5)]
    answer = requests.get(f"{server.http}/api/v1/table/groups", params=query, timeout=180)
    return answer.status_code, without_times(answer.json())


def without_times(answer):
    if isinstance(answer, dict):
        return {name: value for name, value in answer.items() if name not in ("elapsed_ms", "request_id", "instance")}
    return answer


def statistic(server, route: str, body: dict) -> dict:
    accepted = requests.post(f"{server.http}/api/{route}", json=body, timeout=60)
    assert accepted.status_code == 200, accepted.text

    def ended():
        url = f"{server.http}/api/get_results/{accepted.json()['job_id']}"
        answer = requests.get(url, timeout=60).json()
        return answer if answer["status"] != "running" else None

    return wait_until(ended, f"the answer to {route}", 120)


def statistics(server) -> dict:
    found = {}
    for route, arguments in QUESTIONS:
        for question in [QUESTION, OTHER_QUESTION, "nobody asks this"]:
            # As text, in which the order counts.
            found[route, question] = repr(statistic(server, route, {"question": question, **arguments}))
    return found


def all_answers(server) -> dict:
    found = {("groups", *by, "|", *sums): group_sum(server, by, sums) for by, sums in GROUP_SUMS}
    found |= {("largest", *by, "|", *sums): largest(server, by, sums) for by, sums in GROUP_SUMS[:6]}
    return found | statistics(server)


def differences(found: dict, expected: dict) -> dict:
    return {key: (str(found[key])[:300], str(expected[key])[:300]) for key in expected if found[key] != expected[key]}


def status_of(server, by=("y",), sums=("x",)):
    found = group_sum(server, by, sums)
    assert isinstance(found, tuple), f"{len(found)} groups"
    return found


FLAGS = ["--durability", "none", "--pack-above", "100000"]


def test_answers_are_those_of_one_machine(start_server, start_cluster, parts):  # noqa: F811
    local = start_server(parts, *FLAGS)
    upload(local, *other_parts(), *(keyed_part(index) for index in range(30)), *(survey_csv() for _part in range(3)))
    upload(local, csv("huge,huge2", [(1, 2**63 - 1), (1, 1)]))
    upload(local, *(csv("long,m", [(f"{row % 150}-" * 15_000, row) for row in range(100 * part)]) for part in range(1, 4)))
    upload(local, f"{SURVEY_HEADER}\n{OTHER_QUESTION},Ohio,1e300,Sex,Male\n".encode())
    cluster = start_cluster(parts, "", "")
    for step in ["own files", "removed", "bad cells", "packed", "damaged"]:
        if step == "removed":
            tally(local).RemovePart(tally_pb2.RemovePartRequest(part=3), timeout=60)
        if step == "bad cells":
            upload(local, csv("x,y,n,k", [(1, 2, "no number", "a")]), csv("x,y", [(1, "bad")]))
            upload(local, f"{SURVEY_HEADER}\n{QUESTION},Ohio,bad,Sex,Male\n".encode())
        if step == "packed":
            tally(local).Pack(tally_pb2.PackRequest(), timeout=120)
            upload(local, bigdata_part(1000))
        if step == "damaged":
            last = max(parts.glob("parts/*.csv"), key=lambda path: int(path.stem.split("-")[0]))
            content = bytearray(last.read_bytes())
            content[20] ^= 1
            last.write_bytes(content)
        expected = all_answers(local)
        local.stop()
        server = start_server(parts, *FLAGS, "--scheduler", cluster.address)
        found = all_answers(server)
        server.stop()
        assert not differences(found, expected), step
        if step == "own files":
            assert len(expected["groups", "y", "|", "x"]) > 40_000
            errors = [answer for answer in expected.values() if isinstance(answer, tuple)]
            assert len(errors) >= 3, expected.keys()
        if step == "bad cells":
            assert "no number" in str(expected["groups", "k", "|", "x", "n"]), expected["groups", "k", "|", "x", "n"]
        local = start_server(parts, *FLAGS)


@pytest.fixture
def right(start_server, parts):  # noqa: F811
    """The groups of y."""
    server = start_server(parts, *FLAGS)
    found = group_sum(server, ["y"], ["x"])
    server.stop()
    assert len(found) > 15_000, found
    return found


def test_an_executor_dies_in_a_group_sum(start_server, start_cluster, parts, right):  # noqa: F811
    cluster = start_cluster(parts, "", "die-after:30")
    server = start_server(parts, "--scheduler", cluster.address)
    for _again in range(20):
        assert group_sum(server, ["y"], ["x"]) == right
        if not cluster.executors[1].is_running():
            return
    pytest.fail("it has not read 30 parts")


def test_all_executors_die_in_a_group_sum(start_server, start_cluster, parts, right):  # noqa: F811
    cluster = start_cluster(parts, "die-after:20", "die-after:20")
    server = start_server(parts, "--scheduler", cluster.address)
    code, _details = status_of(server)
    assert code == grpc.StatusCode.UNAVAILABLE
    cluster.start_executor()
    cluster.wait_for_executors(1)
    assert group_sum(server, ["y"], ["x"]) == right


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("twice", "was answered twice"),
        ("rows", "99 rows were read, its receipt says 100"),
        ("groups-twice", "its groups have 40000 rows, the receipts of the parts say 20000"),
        ("lose-group", "rows, the receipts of the parts say 20000"),
        ("swap-groups", "its groups are not those that were found in the parts"),
    ],
)
def test_wrong_groups_are_errors(start_server, start_cluster, parts, fault, text):  # noqa: F811
    cluster = start_cluster(parts, fault, fault)
    server = start_server(parts, "--scheduler", cluster.address)
    code, details = status_of(server)
    assert code == grpc.StatusCode.INTERNAL and text in details, details
    assert text in server.log_line("a wrong answer of the cluster")


def test_parts_that_are_never_answered_are_an_error(start_server, start_cluster, parts):  # noqa: F811
    cluster = start_cluster(parts, "leave-out:20")
    server = start_server(parts, "--scheduler", cluster.address)
    code, details = status_of(server)
    assert code == grpc.StatusCode.UNAVAILABLE and "parts were not answered" in details, details
    assert "asked about again" in server.log_line("parts are")


def test_an_executor_with_another_folder_is_no_damage(start_server, start_cluster, parts, tmp_path):  # noqa: F811
    other = tmp_path / "other"
    (other / "parts").mkdir(parents=True)
    cluster = start_cluster(parts)
    cluster.start_executor(data=other)
    cluster.wait_for_executors(1)
    server = start_server(parts, "--scheduler", cluster.address)
    code, details = status_of(server)
    assert code == grpc.StatusCode.UNAVAILABLE and "cannot read 16 parts that this server can read" in details


@pytest.mark.parametrize("question", ["sum", "groups"])
def test_a_leaf_that_ballista_does_not_know_is_noticed(start_server, start_cluster, parts, question):  # noqa: F811
    """Every task would read the same parts, and each would count as often as there are tasks."""
    cluster = start_cluster(parts, "", "")
    server = start_server(parts, "--scheduler", cluster.address, env={"TALLY_CLUSTER_FAULT": "leaf"})
    code, details = column_sum_status_of(server) if question == "sum" else status_of(server)
    assert code == grpc.StatusCode.INTERNAL and "was answered twice" in details, details
    assert server.log_line("a wrong answer of the cluster")


def test_statistics_are_unavailable_without_executors(start_server, start_cluster, parts):  # noqa: F811
    server = start_server(parts, "--scheduler", start_cluster(parts).address)
    result = statistic(server, "global_mean", {"question": QUESTION})
    assert result["status"] != "done" and "has no executors" in str(result), result
    assert requests.get(f"{server.http}/api/v1/table", timeout=60).status_code == 200  # the server goes on
