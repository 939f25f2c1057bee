"""Uploads that are repeated with the same idempotency-key are added once, whatever broke before."""

import os
import random
import socket
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import requests
import table_pb2
import table_pb2_grpc
import tally_pb2
import tally_pb2_grpc
from conftest import CHANNEL_OPTIONS, CLIENTS, Server, binary, clean_environment, run_client, table, tally, wait_until
from cutting_proxy import CuttingProxy
from http_calls import PARTS, connect

SEED = int(os.environ.get("TALLY_TEST_SEED", "1"))
UPLOADS = 500
CHUNK_BYTES = 64 * 1024
BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED, grpc.StatusCode.CANCELLED,
          grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)  # fmt: skip


def metadata(key: str) -> list:
    return [("idempotency-key", key)]


def chunks(csv: bytes):
    for start in range(0, len(csv), CHUNK_BYTES):
        yield tally_pb2.UploadChunk(data=csv[start : start + CHUNK_BYTES])


def unary(channel: grpc.Channel, csv: bytes, key: str, timeout=None) -> bool:
    """Whether an earlier upload had added it."""
    call = table_pb2_grpc.TableStub(channel).Upload
    reply, ended = call.with_call(table_pb2.UploadReq(csv_data=csv), metadata=metadata(key), timeout=timeout)
    assert reply.error == ""
    return dict(ended.initial_metadata()).get("idempotency-replayed") == "true"


def stream(channel: grpc.Channel, csv: bytes, key: str, timeout=None) -> bool:
    receipt = tally_pb2_grpc.TallyStub(channel).Upload(chunks(csv), metadata=metadata(key), timeout=timeout)
    assert receipt.csv.bytes == len(csv)
    return receipt.replayed


def sum_of_x(server: Server) -> int:
    ask = table(server).ColumnSum
    answers = [ask(table_pb2.ColSumReq(column="x", format=format)) for format in ("csv", "parquet")]
    assert [answer.error for answer in answers] == ["", ""] and answers[0].total == answers[1].total
    return answers[0].total


def refused(call) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as error:
        call()
    return error.value


SMALL = b"x\n5\n"
LARGE = b"x,y\n5,1\n" + b"0,2\n" * 200_000


@pytest.mark.parametrize("csv", [SMALL, LARGE], ids=["small", "large"])
def test_a_used_key_returns_the_first_receipt(server, csv):
    first = tally(server).Upload(chunks(csv), metadata=metadata("k1"))
    assert (first.part, first.replayed) == (1, False)
    for _ in range(2):
        again, call = tally(server).Upload.with_call(chunks(csv), metadata=metadata("k1"))
        assert again.replayed and ("idempotency-replayed", "true") in list(call.initial_metadata())
        again.replayed = False
        assert again == first
    assert unary(server.channel(), csv, "k1")
    assert not unary(server.channel(), csv, "k2")
    assert unary(server.channel(), csv, "k2") and stream(server.channel(), csv, "k2")
    # Without a key, or with another one, the same bytes are a further part.
    assert not tally(server).Upload(chunks(csv)).replayed
    assert not stream(server.channel(), csv, "K1")
    assert sum_of_x(server) == 4 * 5


def test_the_same_key_with_other_bytes_is_an_error(server):
    for first in (SMALL, LARGE):
        key = str(len(first))
        part = tally(server).Upload(chunks(first), metadata=metadata(key)).part
        others = (b"x\n6\n", b"", b"x\n5", first[:-1], first + b"7\n", b"x\n" + b"7\n" * 200_000, b"a,a\n1\n")
        for other in others:
            for upload in (unary, stream):
                error = refused(lambda: upload(server.channel(), other, key))
                assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
                expected = f'the idempotency-key "{key}" was used for other bytes, which are part {part}: use a new key'
                assert error.details() == expected
    assert sum_of_x(server) == 10


def test_an_upload_that_was_refused_does_not_use_its_key(server):
    assert table(server).Upload(table_pb2.UploadReq(csv_data=b"a,a\n1,2\n"), metadata=metadata("k")).error != ""
    assert not unary(server.channel(), SMALL, "k")
    assert unary(server.channel(), SMALL, "k")


@pytest.mark.parametrize("keys", [[""], ["with space"], ["k" * 129], ["caf\u00e9".encode()], ["a", "a"], ["a", "b"]], ids=str)
def test_what_is_no_key_is_refused(server, keys):
    if isinstance(keys[0], bytes):
        pytest.skip("gRPC refuses such metadata itself")
    error = refused(lambda: tally(server).Upload(chunks(SMALL), metadata=[("idempotency-key", key) for key in keys]))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().endswith("an idempotency-key has 1 to 128 visible ASCII characters")
    assert not stream(server.channel(), SMALL, "k" * 128) and stream(server.channel(), SMALL, "k" * 128)


def test_keys_are_known_after_a_kill_and_after_a_removal(start_server, tmp_path):
    data = tmp_path / "data"
    server = start_server(data)
    for key, csv in (("small", SMALL), ("large", LARGE)):
        assert not stream(server.channel(), csv, key)
    for removed in (False, True):
        if removed:
            for part in (1, 2):
                tally(server).RemovePart(tally_pb2.RemovePartRequest(part=part))
        for killed in (False, True):
            if killed:
                server.kill()
                server = start_server(data)
            for key, csv in (("small", SMALL), ("large", LARGE)):
                assert stream(server.channel(), csv, key) and unary(server.channel(), csv, key)
                error = refused(lambda: unary(server.channel(), csv + b"0\n", key))
                assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
            assert sum_of_x(server) == (0 if removed else 10)
    tally(server).RestorePart(tally_pb2.RestorePartRequest(part=2))
    assert stream(server.channel(), LARGE, "large") and sum_of_x(server) == 5
    for part in (1, 2):
        tally(server).RemovePart(tally_pb2.RemovePartRequest(part=part, purge=True))
    # A purged part is forgotten with its key.
    for key, csv in (("small", SMALL), ("large", LARGE)):
        assert not stream(server.channel(), csv, key)
    assert sum_of_x(server) == 10


def with_options(csv: bytes, **options):
    yield tally_pb2.UploadChunk(options=tally_pb2.UploadOptions(**options))
    yield from chunks(csv)


@pytest.mark.parametrize("csv", [SMALL, LARGE], ids=["small", "large"])
def test_the_first_message_of_a_stream_may_have_the_key(start_server, tmp_path, csv):
    data = tmp_path / "data"
    server = start_server(data, "--parts-max", "2")
    first = tally(server).Upload(with_options(csv, idempotency_key="k"))
    assert (first.part, first.replayed, first.HasField("source")) == (1, False, False)
    assert (data / "parts" / "1.csv").read_bytes() == csv
    # It is the same key as that in metadata, of a plain file and of any other.
    assert stream(server.channel(), csv, "k") and unary(server.channel(), csv, "k")
    assert tally(server).Upload(with_options(csv, idempotency_key="k"), metadata=metadata("k")).replayed
    error = refused(lambda: tally(server).Upload(with_options(csv + b"0\n", idempotency_key="k")))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    spaces = csv.replace(b"\n", b" \n")
    trimmed = tally(server).Upload(with_options(spaces, idempotency_key="t", trim=True))
    assert (trimmed.part, trimmed.replayed, trimmed.source.options.idempotency_key) == (2, False, "")
    assert trimmed.csv == first.csv
    server.kill()
    server = start_server(data, "--parts-max", "2")
    # Also when there is no room for another part.
    assert tally(server).Upload(with_options(csv, idempotency_key="k")).replayed
    assert tally(server).Upload(with_options(spaces, trim=True), metadata=metadata("t")).replayed
    error = refused(lambda: tally(server).Upload(with_options(csv, idempotency_key="n")))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "the table is full" in error.details()
    assert sum_of_x(server) == 2 * 5


def test_wrong_keys_in_the_first_message_are_refused(server):
    for wrong in ("with space", "k" * 129, "caf\u00e9"):
        error = refused(lambda: tally(server).Upload(with_options(SMALL, idempotency_key=wrong)))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert error.details().endswith("options: an idempotency-key has 1 to 128 visible ASCII characters")
    error = refused(lambda: tally(server).Upload(with_options(SMALL, idempotency_key="a"), metadata=metadata("b")))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().endswith("have different idempotency keys: send one of them")
    # None of them is used, and an empty one is none.
    for key in ("a", "b"):
        assert not stream(server.channel(), SMALL, key)
    for _ in range(2):
        assert not tally(server).Upload(with_options(SMALL, idempotency_key="")).replayed


class HeldUpload:
    """An upload whose last chunk is not sent until `go_on`."""

    def __init__(self, server: Server, csv: bytes, key: str):
        self._may_go_on = threading.Event()
        self._sent = threading.Event()
        self.call = tally(server).Upload.future(self._chunks(csv), metadata=metadata(key))
        assert self._sent.wait(30)

    def _chunks(self, csv: bytes):
        yield tally_pb2.UploadChunk(data=csv[: len(csv) // 2])
        self._sent.set()
        self._may_go_on.wait(60)
        yield tally_pb2.UploadChunk(data=csv[len(csv) // 2 :])

    def go_on(self) -> None:
        self._may_go_on.set()


@pytest.mark.parametrize("csv", [SMALL, LARGE], ids=["small", "large"])
def test_of_uploads_at_the_same_time_one_is_added(server, csv):
    """Also while an upload with the same key, perhaps of a client that is gone, has not sent everything."""
    held = [HeldUpload(server, csv, "k") for _ in range(3)]
    at_once = [tally(server).Upload.future(chunks(csv), metadata=metadata("k")) for _ in range(8)]
    receipts = [call.result() for call in at_once]
    assert sorted(receipt.replayed for receipt in receipts) == [False] + [True] * 7
    assert not held[0].call.done()
    for upload in held:
        upload.go_on()
    receipts += [upload.call.result() for upload in held]
    assert {receipt.part for receipt in receipts} == {1} and all(receipt.replayed for receipt in receipts[-3:])
    assert sum_of_x(server) == 5 and server.leftovers() == []


def test_uploads_at_the_same_time_with_other_bytes(server):
    held = HeldUpload(server, LARGE, "k")
    assert not stream(server.channel(), SMALL, "k")
    held.go_on()
    assert held.call.exception().code() == grpc.StatusCode.FAILED_PRECONDITION
    wait_until(lambda: server.leftovers() == [], "the draft is removed")
    assert sum_of_x(server) == 5


def test_if_the_first_breaks_the_other_is_added(server):
    first = HeldUpload(server, LARGE, "k")
    first.call.cancel()
    first.go_on()
    assert not stream(server.channel(), LARGE, "k") and stream(server.channel(), LARGE, "k")
    assert sum_of_x(server) == 5


def test_a_used_key_is_answered_when_there_is_no_room(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--parts-max", "1")
    assert not stream(server.channel(), SMALL, "k") and stream(server.channel(), SMALL, "k")
    error = refused(lambda: stream(server.channel(), SMALL, "other"))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "the table is full" in error.details()


def post(server: Server, body, key, **options) -> requests.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    return requests.post(server.http + PARTS, data=body, headers=headers, timeout=60, **options)


def is_replayed(answer: requests.Response) -> bool:
    assert answer.status_code == 201, answer.text
    assert answer.headers.get("Idempotency-Replayed") in (None, "true")
    return "Idempotency-Replayed" in answer.headers


@pytest.mark.parametrize("csv", [SMALL, LARGE], ids=["small", "large"])
def test_over_http(start_server, tmp_path, csv):
    data = tmp_path / "data"
    server = start_server(data)
    first = post(server, csv, "k")
    assert not is_replayed(first) and first.json()["part"] == 1
    form = {"file": ("a.csv", csv)}
    for killed in (False, True):
        if killed:
            server.kill()
            server = start_server(data)
        for again in (post(server, csv, "k"), post(server, iter([csv[:5], csv[5:]]), "k"), post(server, None, "k", files=form)):
            assert is_replayed(again) and again.json() == first.json()
        assert stream(server.channel(), csv, "k"), "a key is the same over gRPC"
        for other in (csv + b"0\n", csv[:-2], b"x\n" + b"7\n" * 200_000):
            refusal = post(server, other, "k")
            assert refusal.status_code == 409
            assert "was used for other bytes, which are part 1: use a new key" in refusal.text
    # Without a key, or with another one, the same bytes are a further part.
    assert not is_replayed(post(server, csv, None)) and not is_replayed(post(server, csv, "K"))
    assert sum_of_x(server) == 3 * 5
    assert server.leftovers() == []


@pytest.mark.parametrize("key", ["", "with space", "k" * 129, "caf\u00e9".encode(), "a,\tb"], ids=str)
def test_what_is_no_key_is_refused_over_http(server, key):
    answer = post(server, SMALL, key)
    assert answer.status_code == 400
    assert "Idempotency-Key" in answer.text
    assert "an idempotency-key has 1 to 128 visible ASCII characters" in answer.text
    assert server.parts() == []


def test_two_keys_over_http_are_refused(server):
    with connect(server) as connection:
        keys = b"Idempotency-Key: a\r\nIdempotency-Key: a\r\n"
        connection.sendall(b"POST %s HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: 4\r\n\r\nx\n5\n" % (PARTS.encode(), keys))
        assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")
    assert server.parts() == []


@pytest.mark.parametrize("csv", [SMALL, LARGE], ids=["small", "large"])
def test_over_http_while_the_first_one_runs(server, csv):
    may_go_on, sent = threading.Event(), threading.Event()

    def held():
        yield csv[: len(csv) // 2]
        sent.set()
        may_go_on.wait(60)
        yield csv[len(csv) // 2 :]

    with ThreadPoolExecutor(1) as other:
        first = other.submit(post, server, held(), "k")
        try:
            assert sent.wait(30)
            assert not is_replayed(post(server, csv, "k")), "nobody waits for a body that may never come"
            assert stream(server.channel(), csv, "k")
        finally:
            may_go_on.set()
        assert is_replayed(first.result())
    assert sum_of_x(server) == 5 and server.leftovers() == []


def test_500_uploads_that_are_cut_or_late_are_added_once(start_server, tmp_path):
    """Each is cut, or its deadline ends, at a random moment, and it is repeated with its key until it is answered."""
    print(f"seed {SEED}")
    server = start_server(tmp_path / "data")
    sizes = (1, 10, 5_000, 60_000)
    counts = {"broken": 0, "replayed": 0}
    changes = threading.Lock()

    def upload(index: int) -> int:
        numbers = random.Random(f"{SEED}:{index}")
        rows = numbers.choice(sizes)
        csv = b"x,y\n" + b"%d,%d\n" % (index + 1, index) + b"0,7\n" * (rows - 1)
        key = str(uuid.UUID(int=numbers.getrandbits(128)))
        send = numbers.choice((unary, stream))
        for attempt in range(100):
            fault = numbers.choice(("cut", "late")) if attempt < numbers.randrange(1, 5) else "none"
            address = cutting[rows].address if fault == "cut" else server.address
            timeout = numbers.uniform(0, 0.05) if fault == "late" else 60
            try:
                with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
                    replayed = send(channel, csv, key, timeout)
            except grpc.RpcError as error:
                assert error.code() in BROKEN, error
                with changes:
                    counts["broken"] += 1
                continue
            with changes:
                counts["replayed"] += replayed
            return index + 1
        raise AssertionError("it is never answered")

    # About half of the connections are cut while the file is sent, and some after that.
    cutting = {rows: CuttingProxy(server.address, 2_000 + 8 * rows, seed=SEED + rows) for rows in sizes}
    with ThreadPoolExecutor(8) as clients:
        expected = sum(clients.map(upload, range(UPLOADS)))
    for proxy in cutting.values():
        proxy.__exit__()
    print(counts)
    assert counts["broken"] > UPLOADS / 4 and counts["replayed"] > 10
    assert sum_of_x(server) == expected == UPLOADS * (UPLOADS + 1) // 2
    assert len(server.parts()) == UPLOADS
    server.kill()
    server = start_server(tmp_path / "data")
    assert sum_of_x(server) == expected


# --- clients ------------------------------------------------------------------------------------------------


def lose_answers(server: Server, proxy: CuttingProxy, count: int) -> threading.Thread:
    """Breaks the connections through the proxy when each of the first `count` parts has been added."""

    def cut() -> None:
        for part in range(1, count + 1):
            receipt = server.data / "parts" / f"{part}.json"
            wait_until(receipt.exists, f"part {part} is added")
            proxy.cut_all()

    thread = threading.Thread(target=cut)
    thread.start()
    return thread


ANSWER_DELAY_S = 0.2  # long enough to see that a part was added, and to break the connection before the answer


@pytest.mark.parametrize("rows", [1, 4_000_000], ids=["one message", "stream"])
def test_upload_py_survives_a_lost_answer(server, tmp_path, rows):
    path = tmp_path / "file.csv"
    path.write_bytes(b"x,y\n5,1\n" + b"0,22\n" * (rows - 1))
    with CuttingProxy(server.address, delay_s=ANSWER_DELAY_S if rows == 1 else 0.02) as proxy:
        loses = lose_answers(server, proxy, 1)
        run = run_client("upload.py", path, server=proxy.address)
        loses.join()
    assert (run.returncode, run.stdout) == (0, "success\n"), run.stderr
    assert "attempt 1 of 6 to send it again in 0.25 s" in run.stderr and run.stderr.startswith(f"{path}: ")
    assert len(server.parts()) == 1 and sum_of_x(server) == 5


def test_bigdata_py_survives_lost_answers_and_a_restart(start_server, tmp_path):
    server = start_server(tmp_path / "data")
    with CuttingProxy(server.address, delay_s=0.05) as proxy:
        loses = lose_answers(server, proxy, 6)
        arguments = ("--batches", "12", "--rows", "2000", "--clients", "1")
        run = run_client("bigdata.py", *arguments, server=proxy.address)
        loses.join()
    assert run.returncode == 0, run.stderr
    assert "to send it again in 0.25 s" in run.stderr
    assert len(server.parts()) == 12


def test_a_pipe_is_not_sent_again(server, tmp_path):
    """A larger file from a pipe is gone once it is sent."""
    with CuttingProxy(server.address, delay_s=0.02) as proxy:
        loses = lose_answers(server, proxy, 1)
        client = [sys.executable, str(CLIENTS / "upload.py"), "/dev/stdin"]
        environment = clean_environment(TALLY_SERVER=proxy.address)
        content = b"x,y\n5,1\n" + b"0,22\n" * 4_000_000
        run = subprocess.run(client, input=content, env=environment, capture_output=True, timeout=120)
        loses.join()
    assert run.returncode == 1
    assert b"a pipe cannot be read again, so it was not sent again" in run.stderr


def tally_upload(server, *arguments: str, content: bytes = b"") -> subprocess.CompletedProcess:
    command = [str(binary()), "upload", *map(str, arguments), "--server", getattr(server, "address", server)]
    return subprocess.run(command, env=clean_environment(), input=content, capture_output=True, timeout=120)


@pytest.mark.parametrize("rows", [1, 1_000_000], ids=["small", "large"])
def test_tally_upload_survives_a_lost_answer(server, tmp_path, rows):
    path = tmp_path / "file.csv"
    path.write_bytes(b"x,y\n5,1\n" + b"0,22\n" * (rows - 1))
    with CuttingProxy(server.address, delay_s=ANSWER_DELAY_S if rows == 1 else 0.02) as proxy:
        loses = lose_answers(server, proxy, 1)
        run = tally_upload(proxy, path)
        loses.join()
        assert run.returncode == 0, run.stderr
        assert run.stdout.decode().endswith(" bytes (added by an earlier attempt)\n")
        assert b"attempt 1 of 6 to send it again in 0.25 s" in run.stderr
        assert len(server.parts()) == 1 and sum_of_x(server) == 5
    # Without retries the error is what it was, and a pipe says that it is not sent again.
    with CuttingProxy(server.address, delay_s=ANSWER_DELAY_S) as proxy:
        threading.Timer(0.5, proxy.cut_all).start()
        held = subprocess.Popen(
            [str(binary()), "upload", "-", "--server", proxy.address],
            env=clean_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        held.stdin.write(SMALL)
        held.stdin.flush()
        time.sleep(1)
        _, error = held.communicate(timeout=60)
        assert held.returncode == 1
        assert b"a pipe cannot be read again, so it was not sent again: look with `tally parts`" in error


def test_tally_upload_gives_up_at_last(tmp_path):
    """The stand-in for a server breaks each connection when a call comes."""
    path = tmp_path / "file.csv"
    path.write_bytes(SMALL)
    listener = socket.create_server(("127.0.0.1", 0))

    def break_connections() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"\0\0\0\4\0\0\0\0\0")  # an empty SETTINGS frame
                received = b""
                while len(received) < 120:  # more than the preface: a call
                    received += connection.recv(4096)

    threading.Thread(target=break_connections, daemon=True).start()
    run = tally_upload(f"127.0.0.1:{listener.getsockname()[1]}", path, "--retries", "2")
    listener.close()
    assert run.returncode == 1
    lines = run.stderr.decode().splitlines()
    assert [line.split("; ")[-1] for line in lines[:-1]] == [
        "attempt 1 of 2 to send it again in 0.25 s",
        "attempt 2 of 2 to send it again in 0.5 s",
    ]
    assert lines[-1].startswith(f"error: {path}: no answer from 127.0.0.1:")
