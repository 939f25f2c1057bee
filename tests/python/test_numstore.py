"""NumStore over gRPC: numbers, the total, factorials and their cache, compared with a simple computation."""

import math
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numstore_pb2
import pytest
import table_pb2
from conftest import numstore, table
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from numstore_oracle import CACHED_MAX, FACTORIAL_OF_MAX, INT64_MAX, INT64_MIN, Oracle, set_num

KEY_BYTES_MAX = 128
KEYS_MAX = 50_000
QUOTED_CHARS_MAX = 64  # a message shows this much of a key


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


def test_p2s_manual_session(server):
    stub = numstore(server)
    for key, value, total in (("A", 1, 1), ("B", 10, 11), ("A", 5, 15), ("B", 0, 5)):
        resp = stub.SetNum(numstore_pb2.SetNumRequest(key=key, value=value))
        assert resp.total == total
    resp = stub.Fact(numstore_pb2.FactRequest(key="A"))
    assert (resp.value, resp.hit, resp.error) == (120, False, "")
    resp = stub.Fact(numstore_pb2.FactRequest(key="A"))
    assert (resp.value, resp.hit, resp.error) == (120, True, "")


# --- factorials, and numbers without one ---------------------------------------------------------------------


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


# --- the cache ----------------------------------------------------------------------------------------------


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
    set_num(server, "a", 8)  # b and c still have the 7, so it stays
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
    assert hits > 200 and misses > 200  # otherwise the sequence tests little


# --- the total ----------------------------------------------------------------------------------------------


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
    # The numbers may be of any size as long as their total fits.
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

    # No two numbers from 1 to 20 have one factorial, so a factorial shows which number was set last for a shared key.
    number_of = {math.factorial(number): number for number in range(1, FACTORIAL_OF_MAX + 1)}
    with ThreadPoolExecutor(threads_count) as pool:
        total = sum(pool.map(client, range(threads_count)))
    for index in range(shared_keys_count):
        total += number_of[fact(server, f"shared {index}")[0]]
    assert set_num(server, "last", 0) == total


# --- keys and their limits ----------------------------------------------------------------------------------


def quoted(key: str) -> str:
    """A key as it is quoted in messages."""
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
    # Existing keys can still be changed.
    assert set_num(server, "key 7", 7) == total
    assert set_num(server, "key 49999", 0) == total - 49_999
    assert fact(server, "key 7") == (5_040, False, "")
    assert set_num_refused(server, "new", 1) == refusal


# --- beside the other services ------------------------------------------------------------------------------


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
