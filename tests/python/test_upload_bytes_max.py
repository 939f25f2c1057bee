"""`--upload-bytes-max` at a size that takes many blocks, messages and frames: exactly at it, and one byte beyond."""

import grpc
import pytest
import requests
import table_pb2
import tally_pb2
from conftest import KIB, Server, table, tally, wait_until

BYTES_MAX = 5_000_011  # no multiple of any block
ANSWER_SECONDS_MAX = 60
MESSAGE = f"the upload has more than {BYTES_MAX} bytes"
TASKS = "/api/v1/file-processing/tasks/"


def file_of(size: int, is_text: bool) -> bytes:
    """A file of exactly so many bytes: all integers, which is converted while it is received, or not."""
    header = b"Song,Date,Number of Plays\n"
    row = b"Umbrella,2020-01-02,123456\n" if is_text else b"7,20200102,123456\n"
    rows, rest = divmod(size - len(header), len(row))
    # The remaining bytes are leading zeros of the last number, which do not change the sum.
    last = row[: -len(b"123456\n")] + b"0" * rest + b"123456\n"
    content = header + row * (rows - 1) + last
    assert len(content) == size
    return content


def unary(server: Server, content: bytes) -> str:
    return table(server).Upload(table_pb2.UploadReq(csv_data=content), timeout=ANSWER_SECONDS_MAX).error


def stream_of(message_bytes: int):
    def stream(server: Server, content: bytes) -> str:
        starts = range(0, len(content), message_bytes)
        chunks = (tally_pb2.UploadChunk(data=content[start : start + message_bytes]) for start in starts)
        try:
            receipt = tally(server).Upload(chunks, timeout=ANSWER_SECONDS_MAX)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
            return error.details()
        assert receipt.csv.bytes == len(content)
        return ""

    return stream


def task(server: Server, content: bytes) -> str:
    url = server.http + TASKS
    answer = requests.post(url, files={"file": ("plays.csv", content)}, timeout=ANSWER_SECONDS_MAX)
    if answer.status_code == 202:
        return ""
    assert answer.status_code == 400, answer.text
    assert MESSAGE in answer.text
    return MESSAGE


WAYS = {"unary": unary, "stream, 64 KiB": stream_of(64 * KIB), "stream, 1 MiB": stream_of(1024 * KIB), "task": task}


@pytest.mark.parametrize("is_text", [False, True], ids=["integers", "text"])
def test_the_limit_is_exact_at_a_real_size(start_server, tmp_path, is_text):
    server = start_server(tmp_path / "data", "--upload-bytes-max", str(BYTES_MAX))
    within, beyond = file_of(BYTES_MAX, is_text), file_of(BYTES_MAX + 1, is_text)
    for way, upload in WAYS.items():
        assert upload(server, within) == "", way
        assert upload(server, beyond) == MESSAGE, way
        assert upload(server, within + b"7,7,7\n" * 500_000) == MESSAGE, f"{way}, far beyond"
    wait_until(lambda: server.leftovers() == [], "nothing is left of what was refused")
    parts = server.parts()
    assert [part["csv"]["bytes"] for part in parts] == [BYTES_MAX] * (len(WAYS) - 1)
    answer = table(server).ColSum(table_pb2.ColSumReq(column="Number of Plays", format="parquet"))
    assert (answer.total, answer.error) == (123456 * sum(part["rows"] for part in parts), "")
    server.stop()
