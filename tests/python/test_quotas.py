"""Quotas: what one token, or one address while there are no tokens, may use; and when it may come again."""

import signal
import time

import grpc
import pytest
import requests
import table_pb2
import table_pb2_grpc
import tally_pb2
import tally_pb2_grpc
from conftest import start_with, wait_until
from http_calls import ANSWER_SECONDS_MAX, PARTS, PLAYS, TASKS
from test_access import CSV, Tokens

SECONDS_A_DAY = 24 * 60 * 60


@pytest.fixture
def tokens(tmp_path) -> Tokens:
    tokens = Tokens(tmp_path)
    tokens.add("other", "write")
    return tokens


def upload(server, content=CSV, metadata=None, key=None) -> None:
    metadata = [*(metadata or ()), *([("idempotency-key", key)] if key else [])]
    request = table_pb2.UploadReq(csv_data=content)
    answer = table_pb2_grpc.TableStub(server.channel()).Upload(request, metadata=metadata, timeout=ANSWER_SECONDS_MAX)
    assert answer.error == ""


def refusal(call, *arguments, **options) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as failure:
        call(*arguments, **options)
    assert failure.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, failure.value
    return failure.value


def pushback_s(error: grpc.RpcError) -> float:
    metadata = [*(error.initial_metadata() or ()), *(error.trailing_metadata() or ())]
    return int(dict(metadata)["grpc-retry-pushback-ms"]) / 1000


@pytest.fixture
def early_in_the_day():
    """A day that ends while the test runs would begin its counts anew."""
    wait_until(lambda: time.time() % SECONDS_A_DAY < SECONDS_A_DAY - 60, "the next day", 90)


@pytest.mark.parametrize("way", ["flag", "environment"])
def test_parts_a_day(start_server, tokens, tmp_path, early_in_the_day, way):
    server = start_with(start_server, tmp_path / "data", way, quota_parts_per_day=2, token_file=tokens.list)
    upload(server, metadata=tokens.metadata("write"), key="one")
    with pytest.raises(AssertionError):  # a wrong file adds no part
        upload(server, b"x\n1,2\n", metadata=tokens.metadata("write"))
    upload(server, metadata=tokens.metadata("write"), key="one")  # nor does a repeated one
    upload(server, metadata=tokens.metadata("write"))
    error = refusal(upload, server, metadata=tokens.metadata("write"))
    assert "2 parts a day" in error.details()
    assert 0 < pushback_s(error) <= SECONDS_A_DAY
    # A client that did not get the answer is told that the part was added, though nothing is left of the quota.
    upload(server, metadata=tokens.metadata("write"), key="one")
    refusal(upload, server, metadata=tokens.metadata("write"), key="two")
    headers = {**tokens.header("write"), "Idempotency-Key": "one"}
    answer = requests.post(server.http + PARTS, data=CSV, headers=headers, timeout=ANSWER_SECONDS_MAX)
    assert answer.ok and answer.headers["Idempotency-Replayed"] == "true"
    answer = requests.post(
        server.http + PARTS, data=CSV, headers=tokens.header("write"), timeout=ANSWER_SECONDS_MAX
    )
    assert answer.status_code == 429 and "2 parts a day" in answer.json()["detail"]
    assert 1 < int(answer.headers["Retry-After"]) <= SECONDS_A_DAY
    upload(server, metadata=tokens.metadata("other"))
    # Reading the tokens again gives nobody a new quota.
    server.process.send_signal(signal.SIGHUP)
    server.log_line("the tokens were read again")
    refusal(upload, server, metadata=tokens.metadata("write"))


def test_bytes_a_day_of_an_address(start_server, tmp_path, early_in_the_day):
    server = start_server(tmp_path / "data", "--quota-bytes-per-day", 1_000_000)
    upload(server, b"x\n" + b"1\n" * 100_000)
    error = refusal(upload, server, b"x\n" + b"1\n" * 1_000_000)
    assert "1000000 bytes a day" in error.details() and pushback_s(error) > 0
    assert len(server.parts()) == 1
    wait_until(lambda: server.leftovers() == [], "nothing of it is left")
    for path, options in ((PARTS, {"data": b"x\n" + b"1\n" * 1_000_000}),
                          (TASKS, {"files": {"file": ("a.csv", PLAYS + b"x,2020-01-01,1\n" * 1_000_000)}})):  # fmt: skip
        answer = requests.post(server.http + path, timeout=ANSWER_SECONDS_MAX, **options)
        assert answer.status_code == 429 and "bytes a day" in answer.text, path
        assert int(answer.headers["Retry-After"]) > 1


def test_uploads_at_once(start_server, tokens, tmp_path):
    server = start_server(tmp_path / "data", "--quota-uploads", 1, "--token-file", tokens.list)
    stub, more = tally_pb2_grpc.TallyStub(server.channel()), []

    def chunks():
        yield tally_pb2.UploadChunk(data=b"x\n1\n")
        wait_until(lambda: more, "the others were refused", ANSWER_SECONDS_MAX)

    def begin():
        return stub.Upload.future(chunks(), metadata=tokens.metadata("write"), timeout=ANSWER_SECONDS_MAX)

    streams = [begin()]

    def is_refused() -> bool:
        if streams[-1].done():
            streams.append(begin())  # it was refused, because the upload below was there first
        try:
            upload(server, metadata=tokens.metadata("write"))
        except grpc.RpcError as error:
            assert "1 uploads at once" in error.details() and pushback_s(error) == 1
            return True
        return False

    wait_until(is_refused, "the first upload has begun")
    upload(server, metadata=tokens.metadata("other"))
    more.append(True)
    assert streams[-1].result().rows == 1
    upload(server, metadata=tokens.metadata("write"))


def test_calls_a_second(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--quota-calls-per-s", 3)
    stub = table_pb2_grpc.TableStub(server.channel())

    def until_refused(call):
        for _ in range(1000):
            if (refused := call()) is not None:
                return refused
        raise AssertionError("no call was refused")

    def sum_of():
        try:
            stub.ColumnSum(table_pb2.ColSumReq(column="x", format="csv"), timeout=ANSWER_SECONDS_MAX)
        except grpc.RpcError as error:
            return error

    error = until_refused(sum_of)
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "3 calls a second" in error.details()
    assert pushback_s(error) == 1

    def jobs():
        answer = requests.get(server.http + "/api/jobs", timeout=ANSWER_SECONDS_MAX)
        return answer if answer.status_code != 200 else None

    answer = until_refused(jobs)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    for _ in range(20):
        assert requests.get(server.http + "/livez", timeout=ANSWER_SECONDS_MAX).status_code == 200
    wait_until(lambda: sum_of() is None, "the next second")
