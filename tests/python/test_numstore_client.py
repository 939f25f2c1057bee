"""clients/client.py, the load client of NumStore, run as a user runs it."""

import json
import math
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import numstore_pb2
import numstore_pb2_grpc
import pytest
from conftest import CHANNEL_OPTIONS, CLIENTS, PROTO, clean_environment, run_client
from numstore_oracle import Oracle, set_num

REPORT = re.compile(
    r"(?P<threads>\d+) threads, (?P<each>\d+) requests each, seed (?P<seed>-?\d+), server (?P<server>\S+)\n"
    r"requests: (?P<requests>\d+) \((?P<set_num>\d+) SetNum, (?P<fact>\d+) Fact,"
    r" of which (?P<not_set>\d+) asked for a key that was not set yet\)\n"
    r"cache hit rate: (?P<hit_percent>\d+\.\d) % of (?P<factorials>\d+) factorials\n"
    r"p50 response time: (?P<p50_ms>\d+\.\d{3}) ms\n"
    r"p99 response time: (?P<p99_ms>\d+\.\d{3}) ms\n"
)


def report(result: subprocess.CompletedProcess) -> dict:
    """The numbers that a successful run of client.py printed. Those that depend on each other are checked."""
    assert (result.returncode, result.stderr) == (0, ""), result
    match = REPORT.fullmatch(result.stdout)
    assert match, result.stdout
    texts = match.groupdict()
    server = texts.pop("server")
    numbers = {name: float(text) if "." in text else int(text) for name, text in texts.items()}
    assert numbers["requests"] == numbers["threads"] * numbers["each"] == numbers["set_num"] + numbers["fact"]
    assert numbers["factorials"] == numbers["fact"] - numbers["not_set"]
    assert 0 <= numbers["hit_percent"] <= 100
    assert 0 < numbers["p50_ms"] <= numbers["p99_ms"]
    return {**numbers, "server": server}


def failed_with(result: subprocess.CompletedProcess) -> str:
    """The one line of a run that failed as it should: exit code 1, nothing on standard output."""
    assert (result.returncode, result.stdout) == (1, ""), result
    assert result.stderr.endswith("\n") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr[:-1]


def run_client_on(server, *flags) -> subprocess.CompletedProcess:
    return run_client("client.py", server.port, *flags, "--host=127.0.0.1")


class StandIn(numstore_pb2_grpc.NumStoreServicer):
    """A server that records requests, stores nothing, and answers Fact as a test says."""

    def __init__(self):
        self.fact_reply = numstore_pb2.FactResponse(value=1)
        self.first_fact_replies = []  # before it comes to that one
        self.lock = threading.Lock()
        self.abort_fact_with = None  # (code, details)
        self.requests = []

    def SetNum(self, request, context):
        self.requests.append((request.key, request.value))
        return numstore_pb2.SetNumResponse(total=0)

    def Fact(self, request, context):
        self.requests.append((request.key, None))
        if self.abort_fact_with:
            context.abort(*self.abort_fact_with)
        with self.lock:
            return self.first_fact_replies.pop() if self.first_fact_replies else self.fact_reply


@pytest.fixture
def stand_in():
    servicer = StandIn()
    server = grpc.server(ThreadPoolExecutor(8), options=CHANNEL_OPTIONS)
    numstore_pb2_grpc.add_NumStoreServicer_to_server(servicer, server)
    servicer.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer
    server.stop(None).wait()


def test_client_as_p2_runs_it(server):
    """With the port alone. The server listens on 127.0.0.1, one of the addresses of localhost."""
    numbers = report(run_client("client.py", server.port))
    assert (numbers["threads"], numbers["each"]) == (8, 100)
    assert numbers["server"] == f"localhost:{server.port}"
    # Half of 800: far from it only once in many millions of runs.
    assert 300 < numbers["set_num"] < 500
    assert 0 < numbers["not_set"] < 200
    # 15 numbers of which 10 are cached.
    assert 45 < numbers["hit_percent"] < 85


def evaluate(expression: str):
    """The value of an expression in client.py, from another process, because its modules change what Ctrl-C does."""
    command = [sys.executable, "-c", f"import client, json; print(json.dumps({expression}))"]
    return json.loads(subprocess.check_output(command, cwd=CLIENTS, env=clean_environment()))


def requests_of(seed: int, thread_index: int, count: int) -> list:
    """The requests that client.py sends."""
    requests = evaluate(f"list(client.random_requests({seed}, {thread_index}, {count}))")
    return [tuple(request) for request in requests]


def test_percentiles_are_by_nearest_rank():
    cases = {
        "[7.0], 50": 7,
        "[7.0], 99": 7,
        "[4, 1, 3, 2], 50": 2,
        "[4, 1, 3, 2], 51": 3,
        "list(range(1, 101)), 99": 99,
        "list(range(1, 102)), 99": 100,
        "list(range(800, 0, -1)), 50": 400,
        "list(range(800, 0, -1)), 99": 792,
    }
    calls = ", ".join(f"client.percentile({arguments})" for arguments in cases)
    assert dict(zip(cases, evaluate(f"[{calls}]"))) == cases


@pytest.mark.parametrize("seed", [1, 2])
def test_client_counts_what_an_oracle_counts(start_server, tmp_path, seed):
    """With one thread everything but the times depends on the seed."""
    oracle = Oracle()
    answers = []
    requests = requests_of(seed, 0, 1000)
    for key, value in requests:
        if value is None:
            answers.append(oracle.fact(key))
        else:
            oracle.set_num(key, value)
    hits = [hit for _, hit, error in answers if not error]
    expected = {
        "requests": 1000,
        "fact": len(answers),
        "not_set": len(answers) - len(hits),
        "factorials": len(hits),
        "hit_percent": float(f"{100 * sum(hits) / len(hits):.1f}"),
        "seed": seed,
    }
    for run in (1, 2):
        fresh = start_server(tmp_path / f"run {run}")
        numbers = report(run_client_on(fresh, "--threads=1", "--requests=1000", f"--seed={seed}"))
        assert {name: numbers[name] for name in expected} == expected
        # In the end the server has the same numbers as the simple computation.
        assert set_num(fresh, "last", 0) == sum(oracle.numbers.values())


def test_client_sends_what_p2_asks_for(stand_in):
    run = report(run_client_on(stand_in, "--requests=1000", "--seed=3"))
    keys = {key for key, _ in stand_in.requests}
    values = [value for _, value in stand_in.requests if value is not None]
    assert len(stand_in.requests) == 8000
    assert len(keys) == 100
    assert set(values) == set(range(1, 16))
    assert len(values) == run["set_num"] and 3700 < len(values) < 4300
    # The order of the threads is random. No two of them send the same requests.
    threads = [requests_of(3, thread_index, 1000) for thread_index in range(8)]
    assert Counter(stand_in.requests) == sum(map(Counter, threads), Counter())
    assert len(set(map(tuple, threads))) == 8


def test_client_repeats_a_seed_and_chooses_one_without(stand_in):
    first, second = (report(run_client_on(stand_in, "--threads=2")) for _ in range(2))
    assert first["seed"] != second["seed"]
    sent = Counter(stand_in.requests[:200])
    stand_in.requests.clear()
    again = report(run_client_on(stand_in, "--threads=2", f"--seed={first['seed']}"))
    assert Counter(stand_in.requests) == sent
    assert again["set_num"] == first["set_num"]


def test_client_counts_hits(stand_in):
    stand_in.fact_reply = numstore_pb2.FactResponse(value=math.factorial(15), hit=True)
    numbers = report(run_client_on(stand_in))
    assert (numbers["hit_percent"], numbers["not_set"]) == (100.0, 0)
    stand_in.fact_reply.hit = False
    assert report(run_client_on(stand_in))["hit_percent"] == 0.0


def test_client_without_a_factorial_has_no_hit_rate(server):
    result = run_client_on(server, "--threads=1", "--requests=1")
    assert result.returncode == 0, result.stderr
    assert "cache hit rate: none, there was no factorial\n" in result.stdout


@pytest.mark.parametrize("value", [0, 3, 119, -1, math.factorial(16), math.factorial(20)])
def test_client_believes_no_wrong_factorial(stand_in, value):
    stand_in.fact_reply = numstore_pb2.FactResponse(value=value)
    message = failed_with(run_client_on(stand_in))
    assert re.fullmatch(rf'key "key\d+": {value} is no factorial of 1 to 15', message)


def test_client_stops_all_threads_when_one_fails(stand_in):
    stand_in.first_fact_replies = [numstore_pb2.FactResponse(error="on fire")]
    assert failed_with(run_client_on(stand_in, "--requests=5000")) == "on fire"
    assert len(stand_in.requests) < 5000  # of 40,000


@pytest.mark.parametrize("error", ["on fire", 'key "someone else" is not set'])
def test_client_fails_with_an_error_it_does_not_expect(stand_in, error):
    stand_in.fact_reply = numstore_pb2.FactResponse(error=error)
    assert failed_with(run_client_on(stand_in)) == error


def test_client_fails_with_a_failed_call(stand_in):
    stand_in.abort_fact_with = (grpc.StatusCode.INTERNAL, "on fire")
    assert failed_with(run_client_on(stand_in)) == f"127.0.0.1:{stand_in.port}: on fire (INTERNAL)"


def test_client_without_a_server():
    with socket.socket() as bound:  # nobody listens, and nobody else can start to
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        for host in ("127.0.0.1", "localhost"):
            message = failed_with(run_client("client.py", port, f"--host={host}"))
            assert message == f"no server at {host}:{port}: Connection refused"
        # Not every machine has IPv6, so the reason is left open.
        for host in ("::1", "[::1]"):
            message = failed_with(run_client("client.py", port, f"--host={host}"))
            assert message.startswith(f"no server at [::1]:{port}: ")
    message = failed_with(run_client("client.py", 1, "--host=not/a host"))
    assert message == "no server at not/a host:1: not a known host and a port"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["5440", "5441"],
        ["port"],
        ["0"],
        ["65536"],
        ["-1"],
        ["5440", "--threads=0"],
        ["5440", "--requests=0"],
        ["5440", "--requests=1e3"],
        ["5440", "--seed=one"],
        ["5440", "--unknown"],
    ],
)
def test_client_refuses_what_makes_no_sense(arguments):
    result = run_client("client.py", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: client.py")


def test_client_needs_no_other_stubs(server, tmp_path):
    """As in the P2 assignment: a folder with the client and the stubs of numstore.proto only."""
    for name in ("client.py", "connection.py"):
        shutil.copy(CLIENTS / name, tmp_path)
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}"]
    outputs = [f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
    subprocess.run([*protoc, *outputs, str(PROTO / "numstore.proto")], check=True)
    command = [sys.executable, "client.py", str(server.port)]
    result = subprocess.run(command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True)
    assert report(result)["requests"] == 800
