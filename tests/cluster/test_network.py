"""An executor whose network is cut, in a network namespace of its own. That needs root, and `ip` of iproute2."""

import os
import random
import shutil
import subprocess
import threading

import pytest
from shared import step_aside, wait_until
from test_column_sums import parts, total_of  # noqa: F401 (a fixture)
from test_group_sums import group_sum

OPEN = ["--insecure-allow-anyone"]


def ip(*arguments) -> None:
    subprocess.run(["ip", *map(str, arguments)], check=True, capture_output=True)


class Namespace:
    """A network namespace, which a pair of interfaces connects with this one."""

    def __init__(self):
        number = random.randrange(1, 250)
        self.name = f"tally{os.getpid()}x{number}"
        self.ours, self.inner = f"ta{os.getpid() % 10**6}o{number}", f"ta{os.getpid() % 10**6}i{number}"
        self.our_address, self.address = f"10.213.{number}.1", f"10.213.{number}.2"
        ip("netns", "add", self.name)
        try:
            ip("link", "add", self.ours, "type", "veth", "peer", "name", self.inner, "netns", self.name)
            ip("address", "add", f"{self.our_address}/30", "dev", self.ours)
            ip("link", "set", self.ours, "up")
            ip("-n", self.name, "address", "add", f"{self.address}/30", "dev", self.inner)
            ip("-n", self.name, "link", "set", "lo", "up")
            self.join()
        except subprocess.CalledProcessError:
            self.remove()
            raise

    def cut(self) -> None:
        ip("-n", self.name, "link", "set", self.inner, "down")

    def join(self) -> None:
        ip("-n", self.name, "link", "set", self.inner, "up")

    def remove(self) -> None:
        ip("netns", "delete", self.name)  # with both interfaces


@pytest.fixture
def namespace():
    if os.geteuid() != 0 or shutil.which("ip") is None:
        step_aside("there is no root, or no ip")
    try:
        space = Namespace()
    except subprocess.CalledProcessError as error:
        step_aside(f"there are no network namespaces: {error.stderr.decode()}")
    yield space
    space.remove()


@pytest.mark.parametrize("question", ["sum", "groups"])
def test_an_executor_whose_network_is_cut_is_left_out(start_server, start_cluster, parts, namespace, question):  # noqa: F811
    cluster = start_cluster(parts, tls=OPEN, host=namespace.our_address)
    here = ["--listen", namespace.our_address]
    there = ["--listen", namespace.address]
    cluster.start_executor(more=here)
    far = cluster.start_executor("slow-ms:40", more=there, prefix=["ip", "netns", "exec", namespace.name])
    cluster.wait_for_executors(2)
    server = start_server(parts, "--scheduler", cluster.address)
    asked = {
        "sum": lambda: total_of(server),
        "groups": lambda: len(group_sum(server, ["x"], ["y"])),
    }[question]
    expected = asked()
    assert expected == {"sum": 20_000, "groups": 1}[question]

    tasks_before = far.stderr.count("Execute task")
    found = []
    asking = threading.Thread(target=lambda: found.append(asked()))
    asking.start()
    wait_until(lambda: far.stderr.count("Execute task") > tasks_before, "the far executor has a task")
    assert not found, "the job is to run still"
    namespace.cut()
    asking.join(90)
    assert found == [expected]
    cluster.wait_for_executors(1)

    # The scheduler has told it to stop, which it may hear now. What supervises it starts it again.
    namespace.join()
    wait_until(lambda: not far.is_running() or cluster.executors_count() == 2, "it stops, or registers again", 60)
    if not far.is_running():
        cluster.start_executor(more=there, prefix=["ip", "netns", "exec", namespace.name])
    cluster.wait_for_executors(2)
    assert asked() == expected
