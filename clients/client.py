"""Sends random requests to NumStore: client.py PORT

Prints the server's cache hit rate and the response times. Needs only the stubs of proto/numstore.proto. Its threads
share one Python interpreter, and the time that they wait for it is included. To find the limit of a server, use
`tally load-numstore`.
"""

import argparse
import math
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

import connection
import grpc
import numstore_pb2
import numstore_pb2_grpc

KEYS_COUNT = 100
VALUES = range(1, 16)
FACTORIALS = {math.factorial(value) for value in VALUES}
SEEDS = range(2**32)  # what a run without --seed chooses from


class Request(NamedTuple):
    """SetNum of a key and a value, or Fact of a key if there is no value."""

    key: str
    value: Optional[int]


@dataclass
class Counts:
    """Counts of the requests of a thread and of their answers."""

    set_num: int = 0
    not_set: int = 0  # Fact of a key that was not set yet
    hits: int = 0
    misses: int = 0
    times_ms: list[float] = field(default_factory=list)  # of every request

    @property
    def factorials(self) -> int:
        return self.hits + self.misses

    def add(self, other: "Counts") -> None:
        self.set_num += other.set_num
        self.not_set += other.not_set
        self.hits += other.hits
        self.misses += other.misses
        self.times_ms += other.times_ms


def random_requests(seed: int, thread_index: int, count: int) -> Iterator[Request]:
    """The requests of one thread: about half of them are SetNum. They depend only on the arguments."""
    # The seed is a string, which is hashed, so threads with neighbouring indices are not related.
    numbers = random.Random(f"{seed}:{thread_index}")
    for _ in range(count):
        key = f"key{numbers.randrange(KEYS_COUNT)}"
        yield Request(key, numbers.choice(VALUES) if numbers.random() < 0.5 else None)


def send(stub: numstore_pb2_grpc.NumStoreStub, request: Request, counts: Counts) -> None:
    """Sends one request, checks the answer and counts it."""
    start = time.perf_counter()
    if request.value is None:
        reply = stub.Fact(numstore_pb2.FactRequest(key=request.key))
    else:
        reply = stub.SetNum(numstore_pb2.SetNumRequest(key=request.key, value=request.value))
    counts.times_ms.append((time.perf_counter() - start) * 1000)

    if request.value is not None:
        counts.set_num += 1  # the total cannot be checked, because other threads change it
    elif reply.error == f'key "{request.key}" is not set':
        counts.not_set += 1
    elif reply.error:
        raise connection.Failure(reply.error)
    elif reply.value not in FACTORIALS:
        raise connection.Failure(
            f'key "{request.key}": {reply.value} is no factorial of {VALUES[0]} to {VALUES[-1]}'
        )
    elif reply.hit:
        counts.hits += 1
    else:
        counts.misses += 1


def connect(channel: grpc.Channel) -> None:
    """Waits until the channel is connected, so that no request includes this time, or until connecting has failed.

    If it has failed, the first request reports why: the state of a channel has no reason.
    """
    tried = threading.Event()

    def notice(state: grpc.ChannelConnectivity) -> None:
        if state in (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE):
            tried.set()

    channel.subscribe(notice, try_to_connect=True)
    tried.wait()
    channel.unsubscribe(notice)


def load(address: str, threads_count: int, requests_count: int, seed: int) -> Counts:
    """Each thread sends requests_count requests, one after the other. Returns the counts of all threads."""
    failed = threading.Event()

    def client(thread_index: int) -> Counts:
        counts = Counts()
        try:
            for request in random_requests(seed, thread_index, requests_count):
                if failed.is_set():
                    break  # another thread has failed, and reports why
                send(stub, request, counts)
        except Exception:
            failed.set()
            raise
        return counts

    total = Counts()
    # One channel for all threads: HTTP/2 carries their calls in parallel. Several channels would share one connection
    # anyway, because grpc uses the same connection for all channels to one address.
    with connection.open_channel(address) as channel, ThreadPoolExecutor(threads_count) as pool:
        connect(channel)
        stub = numstore_pb2_grpc.NumStoreStub(channel)
        try:
            for counts in pool.map(client, range(threads_count)):
                total.add(counts)
        except grpc.RpcError as error:
            raise connection.Failure(connection.explain(error, address)) from None
    return total


def percentile(times_ms: list[float], percent: int) -> float:
    """The percentile by the nearest-rank method."""
    rank = math.ceil(len(times_ms) * percent / 100)  # from 1
    return sorted(times_ms)[rank - 1]


def print_report(counts: Counts) -> None:
    fact = counts.factorials + counts.not_set
    print(
        f"requests: {len(counts.times_ms)} ({counts.set_num} SetNum, {fact} Fact,"
        f" of which {counts.not_set} asked for a key that was not set yet)"
    )
    if counts.factorials:
        hit_percent = 100 * counts.hits / counts.factorials
        print(f"cache hit rate: {hit_percent:.1f} % of {counts.factorials} factorials")
    else:
        print("cache hit rate: none, there was no factorial")
    for percent in (50, 99):
        print(f"p{percent} response time: {percentile(counts.times_ms, percent):.3f} ms")


def port(argument: str) -> int:
    number = int(argument)
    if not 1 <= number <= 65535:
        raise ValueError
    return number


def positive(argument: str) -> int:
    number = int(argument)
    if number < 1:
        raise ValueError
    return number


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Sends random requests to NumStore and prints the response times.",
        epilog=f"Half of the requests set one of {KEYS_COUNT} keys to a value from {VALUES[0]} to"
        f" {VALUES[-1]}, the others ask for the factorial of a key's value.",
    )
    parser.add_argument("port", metavar="PORT", type=port, help="the server's port")
    parser.add_argument("--host", default=connection.DEFAULT_HOST, help="default: %(default)s")
    parser.add_argument("--threads", type=positive, default=8, help="default: %(default)s")
    parser.add_argument("--requests", type=positive, default=100, help="requests of each thread, default: %(default)s")
    seed = random.choice(SEEDS)
    parser.add_argument("--seed", type=int, default=seed, help="the same seed sends the same requests, default: random")
    connection.add_credentials(parser)
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    # An IPv6 address needs brackets, or its last group would be the port.
    is_ipv6 = ":" in options.host and "[" not in options.host and "://" not in options.host
    host = f"[{options.host}]" if is_ipv6 else options.host
    address = f"{host}:{options.port}"
    counts = load(address, options.threads, options.requests, options.seed)
    print(
        f"{options.threads} threads, {options.requests} requests each, seed {options.seed}, server {address}"
    )
    print_report(counts)


if __name__ == "__main__":
    connection.run(main)
