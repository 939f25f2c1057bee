"""P2's service through grpcio: numbers, total, factorials and the cache, beside an oracle of a few lines.

The second half runs its load client, clients/client.py, as a user runs it.
"""

import json
import math
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter, OrderedDict
from concurrent.futures import ThreadPoolExecutor

import grpc
import numstore_pb2
import numstore_pb2_grpc
import pytest
import table_pb2
from conftest import CHANNEL_OPTIONS, CLIENTS, PROTO, clean_environment, numstore, run_client, table
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
CACHED_MAX = 10
FACTORIAL_OF_MAX = 20  # 21! does not fit in 64 bits
KEY_BYTES_MAX = 128
KEYS_MAX = 50_000
QUOTED_CHARS_MAX = 64  # a message shows so much of a key


def set_num(server, key: str, value: int) -> int:
    return numstore(server).SetNum(numstore_pb2.SetNumRequest(key=key, value=value)).total


def set_num_refused(server, key: str, value: int) -> tuple:
    """The status of a SetNum that must fail, and its text."""
    with pytest.raises(grpc.RpcError) as failure:
        set_num(server, key, value)
    return failure.value.code(), failure.value.details()


def fact(server, key: str) -> tuple:
    """(value, hit, error)"""
    reply = numstore(server).Fact(numstore_pb2.FactRequest(key=key))
    return reply.value, reply.hit, reply.error


def fact_error(server, key: str) -> str:
    value, hit, error = fact(server, key)
    assert (value, hit) == (0, False)
    return error


class Oracle:
    """What NumStore must answer, one request after the other. It adds up all numbers every time."""

    def __init__(self):
        self.numbers = {}
        self.cache = OrderedDict()  # number: factorial, the one used last at the end

    def set_num(self, key: str, value: int):
        """The total, or what the refused change would have made it."""
        total = sum({**self.numbers, key: value}.values())
        if INT64_MIN <= total <= INT64_MAX:
            self.numbers[key] = value
            return total
        return f'key "{key}": the total {total} would not fit in 64 bits'

    def fact(self, key: str) -> tuple:
        if key not in self.numbers:
            return 0, False, f'key "{key}" is not set'
        number = self.numbers[key]
        if number < 0:
            return 0, False, f'key "{key}": {number} has no factorial'
        if number > FACTORIAL_OF_MAX:
            return 0, False, f'key "{key}": the factorial of {number} does not fit in 64 bits'
        hit = number in self.cache
        self.cache[number] = math.factorial(number)
        self.cache.move_to_end(number)
        if len(self.cache) > CACHED_MAX:
            self.cache.popitem(last=False)
        return self.cache[number], hit, ""


def test_p2s_manual_session(server):
    stub = numstore(server)
    for key, value, total in (("A", 1, 1), ("B", 10, 11), ("A", 5, 15), ("B", 0, 5)):
        resp = stub.SetNum(numstore_pb2.SetNumRequest(key=key, value=value))
        assert resp.total == total
    resp = stub.Fact(numstore_pb2.FactRequest(key="A"))
    assert (resp.value, resp.hit, resp.error) == (120, False, "")
    resp = stub.Fact(numstore_pb2.FactRequest(key="A"))
    assert (resp.value, resp.hit, resp.error) == (120, True, "")


# Factorials and what has none.


def test_every_factorial_that_fits(server):
    for number in range(FACTORIAL_OF_MAX + 1):
        set_num(server, "n", number)
        assert fact(server, "n") == (math.factorial(number), False, "")
    assert fact(server, "n") == (2_432_902_008_176_640_000, True, "")


def test_what_has_no_factorial(server):
    assert fact_error(server, "x") == 'key "x" is not set'
    for number in (-1, -20, INT64_MIN):
        set_num(server, "x", number)
        assert fact_error(server, "x") == f'key "x": {number} has no factorial'
    for number in (21, 120, INT64_MAX):
        set_num(server, "x", number)
        assert fact_error(server, "x") == f'key "x": the factorial of {number} does not fit in 64 bits'
    set_num(server, "x", 3)
    assert fact(server, "x") == (6, False, "")
    assert fact_error(server, "X") == 'key "X" is not set'


# The cache.


def test_the_number_that_was_used_longest_ago_leaves_the_cache(server):
    for number in range(CACHED_MAX + 1):
        set_num(server, f"is {number}", number)
    for number in range(CACHED_MAX):
        assert fact(server, f"is {number}") == (math.factorial(number), False, "")
    assert fact(server, "is 0")[1]  # 0 is not the oldest any more: 1 is
    assert not fact(server, f"is {CACHED_MAX}")[1]
    hits = {number: fact(server, f"is {number}")[1] for number in (0, *range(2, CACHED_MAX + 1))}
    assert all(hits.values()), hits
    assert not fact(server, "is 1")[1]


def test_the_cache_knows_numbers_not_keys(server):
    for key in ("a", "b", "c"):
        set_num(server, key, 7)
    assert [fact(server, key)[1] for key in ("a", "b", "c")] == [False, True, True]
    set_num(server, "a", 8)  # and the 7 stays, which b and c still have
    assert [fact(server, key) for key in ("a", "b")] == [(40_320, False, ""), (5_040, True, "")]


def test_what_has_no_factorial_takes_no_place_in_the_cache(server):
    for number in range(CACHED_MAX):
        set_num(server, f"is {number}", number)
        fact(server, f"is {number}")
    for number in range(-CACHED_MAX, 0):
        set_num(server, "x", number)
        set_num(server, "y", FACTORIAL_OF_MAX - number)
        for key in ("x", "y", f"unknown {number}"):
            assert fact_error(server, key)
    assert all(fact(server, f"is {number}")[1] for number in range(CACHED_MAX))


@pytest.mark.parametrize("seed", range(3))
def test_hits_are_those_of_an_lru_cache(server, seed):
    """Fewer keys than numbers in some runs of requests, more in others: several keys have one number."""
    numbers = random.Random(f"lru {seed}")
    oracle = Oracle()
    hits = misses = 0
    for step in range(1500):
        key = f"k{numbers.randrange(4 if step % 500 < 100 else 40)}"
        if numbers.random() < 0.4:
            value = numbers.randrange(FACTORIAL_OF_MAX + 1)
            assert set_num(server, key, value) == oracle.set_num(key, value), (seed, step)
        else:
            expected = oracle.fact(key)
            assert fact(server, key) == expected, (seed, step)
            hits += expected[1]
            misses += not expected[1] and not expected[2]
    assert hits > 200 and misses > 200  # or the sequence would tell little


# The total.


@pytest.mark.parametrize("seed", range(3))
def test_totals_at_the_limits_of_64_bits(server, seed):
    numbers = random.Random(f"total {seed}")
    oracle = Oracle()
    edges = [0, 1, -1, INT64_MAX, INT64_MIN, INT64_MAX - 1, INT64_MIN + 1, 2**62, -(2**62)]
    refused = 0
    for step in range(1000):
        key = f"k{numbers.randrange(6)}"
        anywhere = numbers.randint(INT64_MIN, INT64_MAX)
        value = numbers.choice(edges) if numbers.random() < 0.6 else anywhere
        expected = oracle.set_num(key, value)
        if isinstance(expected, int):
            assert set_num(server, key, value) == expected, (seed, step)
            continue
        refused += 1
        assert set_num_refused(server, key, value) == (grpc.StatusCode.OUT_OF_RANGE, expected), (seed, step)
        # Nothing changed: neither this number, if there is one, nor the total.
        error = oracle.fact(key)[2]
        assert not error or fact_error(server, key) == error, (seed, step)
        same_key, same = (key, oracle.numbers[key]) if key in oracle.numbers else ("zero", 0)
        assert set_num(server, same_key, same) == oracle.set_num(same_key, same), (seed, step)
    assert 100 < refused < 900


def test_a_total_that_does_not_fit_changes_nothing(server):
    set_num(server, "five", 5)
    assert set_num(server, "x", INT64_MAX - 5) == INT64_MAX
    text = 'key "x": the total 9223372036854775808 would not fit in 64 bits'
    assert set_num_refused(server, "x", INT64_MAX - 4) == (grpc.StatusCode.OUT_OF_RANGE, text)
    text = 'key "new": the total 9223372036854775808 would not fit in 64 bits'
    assert set_num_refused(server, "new", 1) == (grpc.StatusCode.OUT_OF_RANGE, text)
    assert fact_error(server, "new") == 'key "new" is not set'
    assert fact_error(server, "x") == f'key "x": the factorial of {INT64_MAX - 5} does not fit in 64 bits'
    assert set_num(server, "five", 5) == INT64_MAX
    # A way through numbers that would not fit together: only the total must.
    assert set_num(server, "x", INT64_MIN) == INT64_MIN + 5
    text = 'key "five": the total -9223372036854775809 would not fit in 64 bits'
    assert set_num_refused(server, "five", -1) == (grpc.StatusCode.OUT_OF_RANGE, text)
    assert set_num(server, "x", 0) == 5


def test_the_total_is_exact_after_many_threads_at_once(server):
    threads_count, requests_count, shared_keys_count = 16, 250, 20
    all_ready = threading.Barrier(threads_count)

    def client(thread_index: int) -> int:
        """The last large number of this thread's own key."""
        numbers = random.Random(f"threads {thread_index}")
        large = 0
        all_ready.wait(60)
        for _ in range(requests_count):
            shared_key = f"shared {numbers.randrange(shared_keys_count)}"
            choice = numbers.randrange(3)
            if choice == 0:
                set_num(server, shared_key, numbers.randint(1, FACTORIAL_OF_MAX))
            elif choice == 1:
                large = numbers.randint(-(2**50), 2**50)
                set_num(server, f"own {thread_index}", large)
            else:
                value, _, error = fact(server, shared_key)
                assert error == f'key "{shared_key}" is not set' if error else value in number_of
        return large

    # No two numbers from 1 to 20 have one factorial, so the server can be asked who was last on a shared key.
    number_of = {math.factorial(number): number for number in range(1, FACTORIAL_OF_MAX + 1)}
    with ThreadPoolExecutor(threads_count) as pool:
        total = sum(pool.map(client, range(threads_count)))
    for index in range(shared_keys_count):
        total += number_of[fact(server, f"shared {index}")[0]]
    assert set_num(server, "last", 0) == total


# Keys and their limits.


def quoted(key: str) -> str:
    """A key as messages have it."""
    return f'"{key}"' if len(key) <= QUOTED_CHARS_MAX else f'"{key[:QUOTED_CHARS_MAX]}…"'


@pytest.mark.parametrize("key", ["a" * 128, "é" * 64, "€" * 42 + "ab", "🙂" * 32, "", " ", "a\0b", "a\nb"])
def test_keys_of_all_kinds(server, key):
    assert len(key.encode()) <= KEY_BYTES_MAX
    if key.isprintable():
        assert fact_error(server, key) == f"key {quoted(key)} is not set"
    assert set_num(server, key, 4) == 4
    assert set_num(server, "x", 1) == 5  # another key
    assert fact(server, key) == (24, False, "")
    assert set_num(server, key, 3) == 4


@pytest.mark.parametrize("key", ["a" * 129, "é" * 64 + "a", "é" * 65, "🙂" * 33, "\0" * 129, "a" * 10_000])
def test_a_key_that_is_too_long(server, key):
    set_num(server, "x", 5)
    text = f"the key has {len(key.encode())} bytes, at most 128 are allowed"
    assert set_num_refused(server, key, 1) == (grpc.StatusCode.INVALID_ARGUMENT, text)
    assert fact_error(server, key) == text
    assert set_num(server, "x", 5) == 5


def test_a_message_shows_no_control_characters(server):
    error = fact_error(server, 'say "hi"\n\x1b[31m\0')
    assert error.isprintable() and error.startswith('key "say \\"hi\\"\\n') and error.endswith('" is not set')


def test_the_number_of_keys_has_a_limit(server):
    requests = [numstore_pb2.SetNumRequest(key=f"key {index}", value=index) for index in range(KEYS_MAX)]
    stub = numstore(server)
    calls_at_once = 500  # several times faster than one by one
    for first in range(0, KEYS_MAX, calls_at_once):
        calls = [stub.SetNum.future(request) for request in requests[first : first + calls_at_once]]
        for call in calls:
            call.result()
    total = sum(range(KEYS_MAX))
    refusal = (grpc.StatusCode.RESOURCE_EXHAUSTED, "there are 50000 keys, which is the limit")
    for key in ("new", ""):
        assert set_num_refused(server, key, 1) == refusal
        assert fact_error(server, key) == f'key "{key}" is not set'
    # The keys that are there go on.
    assert set_num(server, "key 7", 7) == total
    assert set_num(server, "key 49999", 0) == total - 49_999
    assert fact(server, "key 7") == (5_040, False, "")
    assert set_num_refused(server, "new", 1) == refusal


# The service among the others.


def test_health_and_reflection_know_the_service(server):
    health = health_pb2_grpc.HealthStub(server.channel())
    answer = health.Check(health_pb2.HealthCheckRequest(service="NumStore"))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    database = ProtoReflectionDescriptorDatabase(server.channel())
    assert "NumStore" in database.get_services()
    service = descriptor_pool.DescriptorPool(database).FindServiceByName("NumStore")
    assert set(service.methods_by_name) == {"SetNum", "Fact"}


def test_beside_the_table_and_gone_with_the_server(start_server, tmp_path):
    first = start_server(tmp_path / "data")
    set_num(first, "x", 5)
    assert table(first).Upload(table_pb2.UploadReq(csv_data=b"x\n7\n")).error == ""
    question = table_pb2.ColSumReq(column="x", format="csv")
    assert table(first).ColSum(question).total == 7
    assert fact(first, "x") == (120, False, "")
    first.stop()
    again = start_server(tmp_path / "data")
    assert table(again).ColSum(question).total == 7
    assert fact_error(again, "x") == 'key "x" is not set'
    assert set_num(again, "y", 1) == 1


# client.py

REPORT = re.compile(
    r"(?P<threads>\d+) threads, (?P<each>\d+) requests each, seed (?P<seed>-?\d+), server (?P<server>\S+)\n"
    r"requests: (?P<requests>\d+) \((?P<set_num>\d+) SetNum, (?P<fact>\d+) Fact,"
    r" of which (?P<not_set>\d+) asked for a key that was not set yet\)\n"
    r"cache hit rate: (?P<hit_percent>\d+\.\d) % of (?P<factorials>\d+) factorials\n"
    r"p50 response time: (?P<p50_ms>\d+\.\d{3}) ms\n"
    r"p99 response time: (?P<p99_ms>\d+\.\d{3}) ms\n"
)


def report(result: subprocess.CompletedProcess) -> dict:
    """The numbers of a run of client.py that went well, those that depend on each other checked."""
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
    """A server that counts, remembers nothing and answers Fact as a test says."""

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
    """The port alone is said; the server listens on 127.0.0.1, which localhost must be among others."""
    numbers = report(run_client("client.py", server.port))
    assert (numbers["threads"], numbers["each"]) == (8, 100)
    assert numbers["server"] == f"localhost:{server.port}"
    # Half of 800: far from it only once in many millions of runs.
    assert 300 < numbers["set_num"] < 500
    assert 0 < numbers["not_set"] < 200
    # 15 numbers of which 10 are cached.
    assert 45 < numbers["hit_percent"] < 85


def evaluate(expression: str):
    """A value of client.py's, from another process: in this one its modules would change what Ctrl-C does."""
    command = [sys.executable, "-c", f"import client, json; print(json.dumps({expression}))"]
    return json.loads(subprocess.check_output(command, cwd=CLIENTS, env=clean_environment()))


def requests_of(seed: int, thread_index: int, count: int) -> list:
    """What client.py sends."""
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
    """With one thread a seed decides everything but the times."""
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
        # The server has in the end what the oracle has.
        assert set_num(fresh, "last", 0) == sum(oracle.numbers.values())


def test_client_sends_what_p2_asks_for(stand_in):
    run = report(run_client_on(stand_in, "--requests=1000", "--seed=3"))
    keys = {key for key, _ in stand_in.requests}
    values = [value for _, value in stand_in.requests if value is not None]
    assert len(stand_in.requests) == 8000
    assert len(keys) == 100
    assert set(values) == set(range(1, 16))
    assert len(values) == run["set_num"] and 3700 < len(values) < 4300
    # The threads settle their order among themselves. No two of them send the same.
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
    """As P2 has it: a folder with the client and the stubs of numstore.proto alone."""
    for name in ("client.py", "connection.py"):
        shutil.copy(CLIENTS / name, tmp_path)
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}"]
    outputs = [f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
    subprocess.run([*protoc, *outputs, str(PROTO / "numstore.proto")], check=True)
    command = [sys.executable, "client.py", str(server.port)]
    result = subprocess.run(command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True)
    assert report(result)["requests"] == 800
