"""tally.v1.Tally/GroupSum: groups of the uploaded table, as a stream."""

import random
from collections import defaultdict
from contextlib import ExitStack

import grpc
import pytest
import table_pb2
import tally_pb2
import tally_pb2_grpc
from conftest import CHANNEL_OPTIONS, table, tally, wait_until
from h2.settings import SettingCodes
from http_calls import ANSWER_SECONDS_MAX
from raw_grpc import Connection, message

GROUP_CALLS_MAX = 16


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
        (["n"], ["f"], grpc.StatusCode.INVALID_ARGUMENT, 'part 1, row 1, column "f": "1.5" is not an integer'),
    ]:
        error = failure(server, by, sum)
        assert error.code() == code, (by, sum, error.details())
        assert error.details() and (text is None or text in error.details())


def upload_long(server, rows: int) -> None:
    """Uploads more groups than HTTP/2 flow control lets the server send to a client that reads nothing."""
    padding = "long" * 50
    header = [tally_pb2.UploadChunk(data=b"key,n\n")]
    blocks = (
        "".join(f"{padding}{row:06},{row}\n" for row in range(start, start + 1000))
        for start in range(0, rows, 1000)
    )
    tally(server).Upload(iter(header + [tally_pb2.UploadChunk(data=block.encode()) for block in blocks]))


def test_a_client_that_stops_reading_holds_up_nobody(server):
    rows = 150_000
    upload_long(server, rows)
    request = tally_pb2.GroupSumRequest(by=["key"], sum=["n"])
    slow = tally(server).GroupSum(request)
    read = [group.totals[0] for group in next(slow).groups]
    # On another channel, because the connection of the first call is blocked.
    with grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
        stub = tally_pb2_grpc.TallyStub(channel)
        for _ in range(2):
            blocks = stub.GroupSum(request, timeout=60)
            assert [group.totals[0] for block in blocks for group in block.groups] == list(range(rows))
    # The slow client can go on at any time.
    read += [group.totals[0] for block in slow for group in block.groups]
    assert read == list(range(rows))


def open_connections(server) -> int:
    """Connections of the server's port that are established, as Linux lists them (proc_pid_net(5))."""
    port = f":{int(server.address.rsplit(':', 1)[1]):04X}"
    rows = [line.split() for name in ("tcp", "tcp6") for line in open(f"/proc/net/{name}").readlines()[1:]]
    return sum(local.endswith(port) and state == "01" for _, local, _, state, *_ in rows)


def test_a_client_that_stops_reading_for_too_long_loses_its_place(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--call-timeout-s", "1")
    rows = 60_000
    upload_long(server, rows)
    request = tally_pb2.GroupSumRequest(by=["key"], sum=["n"])
    slow = tally(server).GroupSum(request)
    next(slow)
    server.log_line("not read: the connection is closed")
    # The server sends GOAWAY first, and gives it a moment to read the rest.
    wait_until(lambda: open_connections(server) == 0, "its connection is closed")
    with pytest.raises(grpc.RpcError) as error:
        list(slow)
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    # A client that reads is served, on another connection, because the first one is closing.
    with grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
        blocks = tally_pb2_grpc.TallyStub(channel).GroupSum(request, timeout=60)
        assert sum(len(block.groups) for block in blocks) == rows


def totals_of(blocks) -> list:
    return [group.totals[0] for block in blocks for group in block.groups]


def until_admitted(call):
    """The result of a call, which is repeated for as long as the server says to try again."""

    def admitted():
        try:
            return [call()]
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error
            return None

    return wait_until(admitted, "a permit", ANSWER_SECONDS_MAX)[0]


def test_one_connection_with_many_unread_answers_keeps_nobody_out(server):
    rows = 60_000
    upload_long(server, rows)
    request = tally_pb2.GroupSumRequest(by=["key"], sum=["n"])
    slow = []
    for _ in range(2):
        slow += [tally(server).GroupSum(request) for _ in range(GROUP_CALLS_MAX // 2)]
        for call in slow:
            call.initial_metadata()  # it has a permit, or was refused
    with grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
        blocks = tally_pb2_grpc.TallyStub(channel).GroupSum(request, timeout=ANSWER_SECONDS_MAX)
        assert totals_of(blocks) == list(range(rows))
    for call in slow:
        call.cancel()


def test_the_slowest_reader_of_all_connections_makes_room(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--call-timeout-s", "600")
    rows = 60_000
    upload_long(server, rows)
    request = tally_pb2.GroupSumRequest(by=["key"], sum=["n"])
    with ExitStack() as stack:

        def stub() -> tally_pb2_grpc.TallyStub:
            channel = grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS)
            return tally_pb2_grpc.TallyStub(stack.enter_context(channel))

        slow = []
        for connection in (stub(), stub()):
            slow += [connection.GroupSum(request) for _ in range(GROUP_CALLS_MAX // 2)]
        for call in slow:
            call.initial_metadata()  # it has a permit
        newcomer = stub()
        assert until_admitted(lambda: totals_of(newcomer.GroupSum(request))) == list(range(rows))
        ended = 0
        for call in slow:
            try:
                assert totals_of(call) == list(range(rows))
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
                assert error.details() == "the transfer was 2 s behind 1 KiB/s, and was ended"
                ended += 1
        assert 0 < ended < len(slow)


def test_a_verification_that_is_not_read_makes_room(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--call-timeout-s", "600")
    upload_long(server, 100_000)  # more than is verified in one step
    with Connection(server) as connection:
        connection.http2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        connection.round_trip()
        unread = connection.start("/tally.v1.Tally/Verify")
        connection.send(unread, message(b""), end=True)
        connection.receive_until(lambda: ":status" in unread.headers)

        def verify() -> list:
            connection.round_trip()  # it answers pings
            return list(tally(server).Verify(tally_pb2.VerifyRequest()))

        assert until_admitted(verify)


def test_a_group_that_is_too_long_for_an_answer_is_refused_before_any_is_sent(server):
    cell = "b" * (100 * 1024)
    upload(server, f"key,n\na,1\n{cell},2\n{cell},3\nc,4\n")
    assert groups(server, ["key"], ["n"]) == [(("a",), (1,)), ((cell,), (5,)), (("c",), (4,))]
    upload(server, f"key,n\n{cell}{cell},1\n")
    error = failure(server, ["key"], ["n"])
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().endswith(": it has more than 131072 bytes, which is the limit for an answer")
    assert len(error.details()) < 1024
