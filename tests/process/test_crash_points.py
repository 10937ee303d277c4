"""kill -9 at every step of a snapshot, of the installation of one, and of a change of the membership.

Each round ends a node at the next touch of its disk, and starts it again: it must come back by itself, with everything
that was acknowledged, until a round passes in which the whole thing was done before the chosen step. By day every n-th
step is taken (``TEST_CRASH_STRIDE``, 1 for all), from another one on each day.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from datetime import date
from functools import partial
from pathlib import Path

import pytest

from raftkv.client import BlockingClient
from raftkv.errors import NotApplied, UnknownOutcome
from tests.process.cluster import READY_SECONDS, NodeProcess, ProcessCluster

pytestmark = pytest.mark.process

STRIDE = int(os.environ.get("TEST_CRASH_STRIDE", "8"))
MOST_STEPS = 2000


def steps() -> range:
    """Return the steps of today."""
    first = 1 + date.today().toordinal() % STRIDE  # noqa: DTZ011 - any day will do
    print(f"from step {first} on, every {STRIDE}.: ", end="")
    return range(first, MOST_STEPS, STRIDE)


class Crashing(ProcessCluster):
    """Nodes that can be told to end at a step."""

    def __init__(self, directory: Path, count: int) -> None:
        # Without its history the store stays small, and so does the number of steps. No log is kept for members that
        # are behind, so that each of them is sent a snapshot.
        flags = ("--snapshot-journal-bytes=4096", "--snapshot-catch-up-bytes=0", "--compact-keep-revisions=50")
        super().__init__(directory, count, *flags)
        for node in self.nodes:
            at = node.command.index("raftkv")
            node.command[at] = "tests.process.crash_point"
        self.expected: dict[bytes, bytes] = {}
        self.written = 0

    def write(self, count: int, *nodes: NodeProcess) -> None:
        """Write keys, which must be there from then on; those whose outcome is unknown may be."""
        urls = [node.url for node in nodes or self.nodes if node.is_running]
        with BlockingClient(urls, 3.0) as client:
            for _ in range(count):
                self.written += 1
                key, value = b"key/%03d" % (self.written % 300), b"%09d" % self.written * 60
                self.expected.pop(key, None)
                client.put(key, value)
                self.expected[key] = value

    def check(self, node: NodeProcess) -> None:
        """Demand that a node has everything that was acknowledged."""
        with BlockingClient([node.url], 10.0) as client:
            found = {item.key: item.value for item in client.list(b"key/")}
        assert self.expected.items() <= found.items(), node.log()[-3000:]


def crash(node: NodeProcess, what: str, step: int) -> None:
    node.start(environment={"RAFTKV_CRASH": f"{what}:{step}"})


def start_again(node: NodeProcess) -> bool:
    """Start a node that has died, or that has come past its step; return whether it had died, by its own hand."""
    died = not node.is_running
    if died:
        assert node.wait() == -signal.SIGKILL, node.log()[-3000:]
    else:
        node.kill()
    node.start()
    return died


def since_start(node: NodeProcess, mark: int) -> str:
    return node.log()[mark:]


def has_installed(node: NodeProcess, mark: int) -> bool:
    return "installed the snapshot" in since_start(node, mark) and node.is_ready()


def until(node: NodeProcess, is_done) -> None:
    """Wait until something is done, or the node has died."""
    deadline = time.monotonic() + READY_SECONDS
    while node.is_running and not is_done():
        assert time.monotonic() < deadline, node.log()[-3000:]
        time.sleep(0.01)


def test_a_kill_at_any_step_of_a_snapshot(tmp_path):
    crashes = 0
    with Crashing(tmp_path, 1) as cluster:
        (node,) = cluster.nodes
        for step in steps():
            node.kill()
            mark = len(node.log())
            crash(node, "snapshot", step)
            node.wait_ready()
            try:
                while node.is_running and "took a snapshot" not in since_start(node, mark):
                    cluster.write(5)
            except (NotApplied, UnknownOutcome):
                node.wait()
            died = start_again(node)
            cluster.wait_ready()
            cluster.check(node)
            if not died:
                break
            crashes += 1
            cluster.write(1)
    print(f"killed at {crashes} steps of a snapshot")
    assert crashes * STRIDE >= 12


def test_a_kill_at_any_step_of_an_installation(tmp_path):
    crashes = 0
    with Crashing(tmp_path, 3) as cluster:
        for step in steps():
            cluster.wait_ready()
            node = cluster.followers()[0]
            others = [other for other in cluster.nodes if other is not node]
            node.kill()
            cluster.write(60, *others)
            mark = len(node.log())
            crash(node, "install", step)
            until(node, partial(has_installed, node, mark))
            died = start_again(node)
            cluster.wait_ready()
            cluster.check(node)
            if not died:
                assert "installed the snapshot" in since_start(node, mark)
                break
            crashes += 1
    print(f"killed at {crashes} steps of an installation")
    assert crashes * STRIDE >= 15


@pytest.mark.parametrize("side", ["leader", "follower"])
def test_a_kill_at_any_step_of_a_change_of_the_membership(tmp_path, side):
    crashes, added = 0, 0
    with Crashing(tmp_path, 3) as cluster:
        for step in steps():
            node = cluster.leader() if side == "leader" else cluster.followers()[0]
            node.kill()
            crash(node, "membership", step)
            cluster.wait_ready()
            if side == "leader":
                hand_to(cluster, node)
            added += 1
            change(cluster, f"m{added}")
            # What is written after the change takes the node past it.
            until(node, lambda: write_one(cluster) and write_one(cluster) and write_one(cluster))
            died = start_again(node)
            cluster.wait_ready()
            cluster.check(node)
            await_agreement(cluster)
            if not died:
                break
            crashes += 1
    print(f"killed at {crashes} steps of a change at the {side}")
    assert crashes * STRIDE >= 4


def write_one(cluster: Crashing) -> bool:
    try:
        cluster.write(1)
    except (NotApplied, UnknownOutcome):
        return False
    return True


def hand_to(cluster: Crashing, node: NodeProcess) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while (leader := cluster.leader()) is not node:
        assert time.monotonic() < deadline
        leader.ask("/v1/cluster/leader", method="POST", body=b'{"to": "%s"}' % node.name.encode())


def change(cluster: Crashing, name: str) -> None:
    """Add a member that never comes, and remove it again, whatever becomes of the leader meanwhile."""
    urls = ",".join(other.url for other in cluster.nodes)
    for arguments in (("add", name, "127.0.0.1:1"), ("remove", name)):
        deadline = time.monotonic() + READY_SECONDS
        while has(cluster, name) is not (arguments[0] == "add"):
            assert time.monotonic() < deadline, [node.log()[-2000:] for node in cluster.nodes]
            command = [cluster.nodes[0].command[0], "-m", "raftkv", "member", *arguments, f"--endpoints={urls}"]
            subprocess.run(command, capture_output=True, check=False, timeout=60)


def members(node: NodeProcess) -> list[tuple[str, str, bool]]:
    _status, document = node.ask("/v1/cluster/members")
    return [] if document is None else sorted((m["name"], m["id"], m["votes"]) for m in document.get("members", []))


def has(cluster: Crashing, name: str) -> bool:
    return any(found == name for found, _id, _votes in members(cluster.leader()))


def await_agreement(cluster: Crashing) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while len({str(members(node)) for node in cluster.nodes}) > 1 or len(members(cluster.nodes[0])) != 3:
        assert time.monotonic() < deadline, [members(node) for node in cluster.nodes]
        time.sleep(0.05)
