"""tally.v1.Tally/GroupSum: groups of the uploaded table, as a stream."""

import random
from collections import defaultdict

import grpc
import pytest
import table_pb2
import tally_pb2
import tally_pb2_grpc
from conftest import CHANNEL_OPTIONS, table, tally


def upload(server, csv: str) -> None:
    assert table(server).Upload(table_pb2.UploadReq(csv_data=csv.encode())).error == ""


def groups(server, by, sum) -> list:
    blocks = tally(server).GroupSum(tally_pb2.GroupSumRequest(by=by, sum=sum))
    return [(tuple(group.cells), tuple(group.totals)) for block in blocks for group in block.groups]


def failure(server, by, sum) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as error:
        groups(server, by, sum)
    return error.value


def test_groups_of_all_parts_that_have_the_columns(server):
    upload(server, 'song,date,plays\n"a, b",2,1\nc,1,5\n"a, b",1,7\n')
    upload(server, "plays,song\n1000,nothing counts without a date\n")
    upload(server, "plays,other,date,song\n10,x,2,\"a, b\"\n,x,3,c\n")
    assert groups(server, ["song", "date"], ["plays"]) == [
        (("a, b", "1"), (7,)),
        (("a, b", "2"), (11,)),
        (("c", "1"), (5,)),
        (("c", "3"), (0,)),
    ]
    assert groups(server, ["date"], ["plays", "song2"]) == []
    assert groups(server, ["date"], ["plays"]) == [(("1",), (12,)), (("2",), (11,)), (("3",), (0,))]


def test_many_groups_come_in_many_blocks_and_agree_with_an_oracle(server):
    numbers = random.Random(11)
    expected = defaultdict(int)
    for _ in range(5):
        rows = [(f"k{numbers.randrange(60_000)}", numbers.randrange(-1000, 1000)) for _ in range(40_000)]
        upload(server, "key,n\n" + "".join(f"{key},{n}\n" for key, n in rows))
        for key, n in rows:
            expected[key] += n
    blocks = list(tally(server).GroupSum(tally_pb2.GroupSumRequest(by=["key"], sum=["n"])))
    assert len(blocks) > 3
    answered = [(group.cells[0], group.totals[0]) for block in blocks for group in block.groups]
    assert answered == sorted(expected.items(), key=lambda item: item[0].encode())


def test_what_cannot_be_summed_is_told(server):
    upload(server, "key,n,f\na,1,1.5\n")
    upload(server, "key,n\nb,9223372036854775807\nb,1\n")
    for by, sum, code, text in [
        ([], ["n"], grpc.StatusCode.INVALID_ARGUMENT, None),
        (["key"], [], grpc.StatusCode.INVALID_ARGUMENT, None),
        (["key"], ["key"], grpc.StatusCode.INVALID_ARGUMENT, None),
        (["key"], ["n"], grpc.StatusCode.INVALID_ARGUMENT, "9223372036854775808 does not fit in 64 bits"),
        (["n"], ["f"], grpc.StatusCode.INVALID_ARGUMENT, 'part 1, column "f": its type is Float64, not an integer'),
    ]:
        error = failure(server, by, sum)
        assert error.code() == code, (by, sum, error.details())
        assert error.details() and (text is None or text in error.details())


def test_a_client_that_stops_reading_holds_up_nobody(server):
    rows, padding = 150_000, "long" * 50
    header = [tally_pb2.UploadChunk(data=b"key,n\n")]
    blocks = (
        "".join(f"{padding}{row:06},{row}\n" for row in range(start, start + 1000))
        for start in range(0, rows, 1000)
    )
    tally(server).Upload(iter(header + [tally_pb2.UploadChunk(data=block.encode()) for block in blocks]))
    request = tally_pb2.GroupSumRequest(by=["key"], sum=["n"])
    # Far more than flow control lets a server send to a client that reads nothing.
    slow = tally(server).GroupSum(request)
    read = [group.totals[0] for group in next(slow).groups]
    # A channel of its own, so that nothing of the first call's connection is in its way.
    with grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
        stub = tally_pb2_grpc.TallyStub(channel)
        for _ in range(2):
            blocks = stub.GroupSum(request, timeout=60)
            assert [group.totals[0] for block in blocks for group in block.groups] == list(range(rows))
    # And it may go on whenever it likes.
    read += [group.totals[0] for block in slow for group in block.groups]
    assert read == list(range(rows))


def test_a_group_that_is_longer_than_a_block_comes_alone(server):
    cells = {letter: letter * (900 * 1024) for letter in "bcdef"}
    upload(server, "key,n\na,1\n" + "".join(f"{cell},2\n" for cell in cells.values()) + "g,3\n")
    blocks = list(tally(server).GroupSum(tally_pb2.GroupSumRequest(by=["key"], sum=["n"])))
    assert [[group.cells[0][0] for group in block.groups] for block in blocks] == [[c] for c in "abcdefg"]
