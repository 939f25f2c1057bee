"""`--parts-max`: a table that has as many parts as it may have, and the warning before."""

import threading
from typing import List

import grpc
import pytest
import table_pb2
import tally_pb2
from conftest import Server, table, tally, wait_until
from http_calls import ANSWER_SECONDS_MAX, completed_task, metrics


def upload(server: Server, rows: int = 1) -> tally_pb2.Receipt:
    csv = b"x,y\n" + b"1,a\n" * rows
    return tally(server).Upload(iter([tally_pb2.UploadChunk(data=csv)]), timeout=ANSWER_SECONDS_MAX)


@pytest.mark.parametrize("durability", ["none", "fsync"])
def test_a_full_table_says_so_and_warns_before(start_server, tmp_path, durability):
    data, warning = tmp_path / "data", "the table is nearly full"
    server = start_server(data, "--parts-max", "5", "--durability", durability)
    assert (metrics(server)["tally_parts"], metrics(server)["tally_parts_max"]) == (0, 5)
    for _ in range(3):
        upload(server)
    assert warning not in server.stderr
    upload(server)
    server.log_line(warning, "parts=4 parts_max=5")
    upload(server)
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as failure:
            upload(server)
        assert failure.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        said = failure.value.details()
        assert "the table is full: it has the 5 parts that --parts-max allows" in said and "higher limit" in said
    with pytest.raises(grpc.RpcError) as failure:
        table(server).Upload(table_pb2.UploadReq(csv_data=b"x\n1\n"))
    assert failure.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (metrics(server)["tally_parts"], metrics(server)["tally_parts_max"]) == (5, 5)
    # A file-processing task adds no part.
    completed_task(server, b"Song,Date,Number of Plays\na,2024-01-01,1\n")
    assert table(server).ColumnSum(table_pb2.ColSumReq(column="x", format="csv")).total == 5
    server.stop()
    assert server.stderr.count(warning) == 1, "once"

    # A lower limit later removes nothing.
    server = start_server(data, env={"TALLY_PARTS_MAX": "3"})
    server.log_line(warning, "parts=5 parts_max=3")
    assert server.stderr.count(warning) == 1
    assert table(server).ColumnSum(table_pb2.ColSumReq(column="x", format="csv")).total == 5
    with pytest.raises(grpc.RpcError):
        upload(server)
    server.stop()
    server = start_server(data, "--parts-max", "7")
    assert warning not in server.stderr and upload(server).part == 6


def test_uploads_at_once_do_not_pass_the_limit(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--parts-max", "4")
    outcomes: List[str] = []

    def send() -> None:
        try:
            upload(server, 50_000)
            outcomes.append("kept")
        except grpc.RpcError as error:
            outcomes.append(error.code().name)

    threads = [threading.Thread(target=send) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # An upload that failed may have held the last slot while another needed it.
    assert outcomes.count("kept") <= 4 and set(outcomes) <= {"kept", "RESOURCE_EXHAUSTED"}, outcomes
    while len(server.parts()) < 4:
        upload(server)
    assert metrics(server)["tally_parts"] == 4 and server.leftovers() == []
