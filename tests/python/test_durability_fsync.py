"""`--durability fsync`: a long upload is synced while it comes."""

import pytest
import table_pb2
import tally_pb2
from conftest import KIB, table, tally

MIB = 1024 * KIB
ROWS = 50_000  # of one message
MESSAGES = 100
SYNC_STEP_BYTES = 8 * MIB


@pytest.mark.parametrize("last, rows", [(b"", ROWS * MESSAGES), (b"x,y\n", ROWS * MESSAGES + 1)])
@pytest.mark.parametrize("durability", ["fsync", "none"])
def test_a_long_upload_is_synced_while_it_comes(start_server, tmp_path, durability, last, rows):
    server = start_server(tmp_path / "data", "--durability", durability, "--log", "tally=debug")
    block = b"1,23456\n" * ROWS
    contents = [b"a,b\n", *[block] * MESSAGES, last]
    receipt = tally(server).Upload(tally_pb2.UploadChunk(data=content) for content in contents)
    assert (receipt.rows, receipt.csv.bytes) == (rows, sum(map(len, contents)))
    if not last:
        for format in ["csv", "parquet"]:
            answer = table(server).ColSum(table_pb2.ColSumReq(column="b", format=format))
            assert (answer.total, answer.error) == (23456 * rows, "")
    assert server.leftovers() == []
    server.stop()
    synced = [line for line in server.stderr.splitlines() if "synced the part of an upload that has arrived" in line]
    if durability == "fsync":
        # A disk may be slower than the network, but the first step never waits.
        assert 1 <= len(synced) <= receipt.csv.bytes // SYNC_STEP_BYTES, server.stderr
    else:
        assert synced == []
