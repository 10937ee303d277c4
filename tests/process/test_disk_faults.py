"""Disks that hang or fail, and logs whose pipe is blocked, with real nodes and a cluster."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from raftkv.node import STOP_SECONDS
from tests.process.cluster import READY_SECONDS, NodeProcess, ProcessCluster
from tests.process.faulty_disk import MIN_FREE_BYTES

ELECTION_TIMEOUT_MS = 1000
SERVE_AGAIN_SECONDS = 8.0
"""Bound on the time without a write: an election timeout, an election, and the load of a busy machine."""


class FaultyCluster(ProcessCluster):
    """Nodes whose disks can be made to fail: ``faults(node) / name`` switches a fault on while it exists."""

    def __init__(self, directory: Path, count: int = 3, *flags: str) -> None:
        super().__init__(directory, count, f"--election-timeout-ms={ELECTION_TIMEOUT_MS}", *flags)
        self._directory = directory
        for node in self.nodes:
            node.command[2] = "tests.process.faulty_disk"
            self.faults(node).mkdir()

    def faults(self, node: NodeProcess) -> Path:
        return self._directory / f"faults-of-{node.name}"

    def environment_of(self, node: NodeProcess) -> dict[str, str]:
        return {"RAFTKV_FAULTS": str(self.faults(node))}

    def __exit__(self, *error: object) -> None:
        for node in self.nodes:
            for fault in ("hang", "hang-reads", "hang-receiving"):
                (self.faults(node) / fault).unlink(missing_ok=True)
        super().__exit__(*error)


def wait_for_write(nodes: list[NodeProcess], key: str, seconds: float) -> NodeProcess:
    """Put a key until a node that leads has taken it; return that."""
    deadline = time.monotonic() + seconds
    while True:
        for node in nodes:
            if node.ask(f"/v1/kv/{key}", method="PUT", body=b"x", timeout=2)[0] in (200, 201):
                return node
        assert time.monotonic() < deadline, [node.log()[-2000:] for node in nodes]
        time.sleep(0.02)


def wait_for_log(node: NodeProcess, text: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while text not in node.log():
        assert time.monotonic() < deadline, node.log()[-3000:]
        time.sleep(0.02)


def test_leader_whose_disk_hangs_is_replaced_and_comes_back(tmp_path):
    with FaultyCluster(tmp_path) as cluster:
        leader = cluster.leader()
        others = [node for node in cluster.nodes if node is not leader]
        assert leader.ask("/v1/kv/before", method="PUT", body=b"1")[0] == 201
        (cluster.faults(leader) / "hang").touch()
        began = time.monotonic()
        status, problem = leader.ask("/v1/kv/during", method="PUT", body=b"2", timeout=10)
        assert (status, problem["applied"]) == (504, "unknown"), problem
        successor = wait_for_write(others, "after", SERVE_AGAIN_SECONDS)
        assert time.monotonic() - began < SERVE_AGAIN_SECONDS
        wait_for_log(leader, "has not answered for")
        assert leader.status()["role"] == "follower"
        assert successor.ask("/v1/kv/during")[1] in (b"2", None)
        (cluster.faults(leader) / "hang").unlink()
        wait_for_log(leader, "answers again")
        leader.wait_ready()
        for key in ("before", "after"):
            assert leader.ask(f"/v1/kv/{key}")[0] == 200
        assert leader.is_running


def test_cluster_goes_on_without_a_pause_when_the_disk_of_a_follower_hangs(tmp_path):
    with FaultyCluster(tmp_path) as cluster:
        leader = cluster.leader()
        follower = cluster.followers()[0]
        (cluster.faults(follower) / "hang").touch()
        end = time.monotonic() + 4 * ELECTION_TIMEOUT_MS / 1000
        number = 0
        while time.monotonic() < end:
            assert leader.ask(f"/v1/kv/key-{number}", method="PUT", body=b"x")[0] == 201
            number += 1
        wait_for_log(follower, "has not answered for")
        (cluster.faults(follower) / "hang").unlink()
        follower.wait_ready()
        assert follower.ask(f"/v1/kv/key-{number - 1}")[0] == 200


def leader_and_member_that_needs_its_snapshot(cluster: FaultyCluster) -> tuple[NodeProcess, NodeProcess]:
    """Kill a follower and write until the leader's snapshot is all that can help it; return the leader, and it."""
    leader, away = cluster.leader(), cluster.followers()[0]
    away.kill()
    for number in range(30):
        assert leader.ask(f"/v1/kv/key-{number}", method="PUT", body=bytes(900_000))[0] == 201
    wait_for_log(leader, "took a snapshot at index")
    return leader, away


def test_writes_are_refused_while_the_disks_of_both_followers_are_nearly_full(tmp_path):
    with FaultyCluster(tmp_path, 3, f"--min-free-bytes={MIN_FREE_BYTES}") as cluster:
        leader, followers = cluster.leader(), cluster.followers()
        assert leader.ask("/v1/kv/old", method="PUT", body=b"x")[0] == 201
        for node in followers:
            (cluster.faults(node) / "little-room").touch()
        answer = wait_for_refusal(leader, "/v1/kv/new")
        assert answer["applied"] == "no"
        assert all(node.name in answer["detail"] for node in followers), answer
        assert leader.ask("/v1/kv/old", method="DELETE")[0] == 200, "what frees space is taken"
        (cluster.faults(followers[0]) / "little-room").unlink()
        assert wait_for_write([leader], "new", 20) is leader
        assert all(node.is_running for node in cluster.nodes)
        assert leader.status()["role"] == "leader"


def test_leader_whose_disk_is_nearly_full_hands_over(tmp_path):
    with FaultyCluster(tmp_path, 3, f"--min-free-bytes={MIN_FREE_BYTES}") as cluster:
        leader = cluster.leader()
        (cluster.faults(leader) / "little-room").touch()
        wait_for_log(leader, "handing the leadership to")
        successor = wait_for_write(cluster.nodes, "key", SERVE_AGAIN_SECONDS)
        assert successor is not leader
        assert leader.is_running


def wait_for_refusal(node: NodeProcess, path: str, seconds: float = 20.0) -> dict[str, Any]:
    """Put until it is refused for want of room; return the document that says so."""
    deadline = time.monotonic() + seconds
    while True:
        status, document = node.ask(path, method="PUT", body=b"x")
        if status == 507:
            return document
        assert time.monotonic() < deadline, (status, document)
        time.sleep(0.02)


def test_leader_goes_on_while_its_disk_does_not_say_how_much_is_free(tmp_path):
    with FaultyCluster(tmp_path) as cluster:
        leader = cluster.leader()
        term = leader.status()["term"]
        (cluster.faults(leader) / "hang-reads").touch()
        end = time.monotonic() + 4 * ELECTION_TIMEOUT_MS / 1000
        while time.monotonic() < end:
            assert leader.ask("/v1/kv/key", method="PUT", body=b"x")[0] in (200, 201)
        assert (leader.status()["role"], leader.status()["term"]) == ("leader", term)


def test_leader_goes_on_while_its_disk_does_not_return_the_snapshot_that_a_member_needs(tmp_path):
    with FaultyCluster(tmp_path, 3, "--snapshot-journal-bytes=1000000") as cluster:
        leader, away = leader_and_member_that_needs_its_snapshot(cluster)
        (cluster.faults(leader) / "hang-reads").touch()
        away.start(environment={"RAFTKV_FAULTS": str(cluster.faults(away))})
        wait_for_log(leader, "needs the snapshot at index")
        term = leader.status()["term"]
        end = time.monotonic() + 3 * ELECTION_TIMEOUT_MS / 1000
        while time.monotonic() < end:
            assert leader.ask("/v1/kv/key", method="PUT", body=b"x")[0] in (200, 201)
        assert (leader.status()["role"], leader.status()["term"]) == ("leader", term)
        (cluster.faults(leader) / "hang-reads").unlink()
        wait_for_log(away, "installed the snapshot at index", 60.0)


def test_follower_answers_while_its_disk_does_not_take_the_snapshot_that_it_needs(tmp_path):
    with FaultyCluster(tmp_path, 3, "--snapshot-journal-bytes=1000000") as cluster:
        leader, away = leader_and_member_that_needs_its_snapshot(cluster)
        (cluster.faults(away) / "hang-receiving").touch()
        away.start(environment=cluster.environment_of(away))
        wait_for_log(leader, "needs the snapshot at index")
        term = leader.status()["term"]
        longest = 0.0
        end = time.monotonic() + 5 * ELECTION_TIMEOUT_MS / 1000
        while time.monotonic() < end:
            began = time.monotonic()
            assert away.ask("/livez", timeout=10)[0] == 200
            longest = max(longest, time.monotonic() - began)
            assert leader.ask("/v1/kv/key", method="PUT", body=b"x")[0] in (200, 201)
        assert longest < ELECTION_TIMEOUT_MS / 1000, "the follower's event loop waited for its disk"
        assert (leader.status()["role"], leader.status()["term"]) == ("leader", term)
        assert "installed the snapshot" not in away.log()
        (cluster.faults(away) / "hang-receiving").unlink()
        wait_for_log(away, "installed the snapshot at index", 60.0)
        away.wait_ready()
        assert away.ask("/v1/kv/key-29?consistency=stale")[0] == 200


@pytest.mark.parametrize("nodes", [1, 2])
def test_leader_that_nobody_can_replace_refuses_writes_while_its_disk_hangs(tmp_path, nodes):
    with FaultyCluster(tmp_path, nodes) as cluster:
        leader = cluster.leader()
        assert leader.ask("/v1/kv/before", method="PUT", body=b"1")[0] == 201
        (cluster.faults(leader) / "hang").touch()
        leader.ask("/v1/kv/during", method="PUT", body=b"2", timeout=10)
        wait_for_log(leader, "has not answered for")
        status, problem = leader.ask("/v1/kv/refused", method="PUT", body=b"3", timeout=10)
        assert (status, problem["applied"]) == (503, "no"), problem
        assert "has not answered for" in problem["detail"]
        if nodes > 1:
            # The index of an only voter is beyond what its disk has, so its reads wait.
            assert leader.ask("/v1/kv/before") == (200, b"1")
        (cluster.faults(leader) / "hang").unlink()
        wait_for_log(leader, "answers again")
        assert leader.ask("/v1/kv/after", method="PUT", body=b"4")[0] == 201
        assert leader.ask("/v1/kv/refused")[0] == 404


def test_exception_in_the_journal_thread_ends_the_node_with_its_traceback(tmp_path):
    with FaultyCluster(tmp_path) as cluster:
        leader = cluster.leader()
        others = [node for node in cluster.nodes if node is not leader]
        (cluster.faults(leader) / "journal-exception").touch()
        status, problem = leader.ask("/v1/kv/during", method="PUT", body=b"x", timeout=10)
        assert status == 0 or problem["applied"] == "unknown" or status == 503, problem
        assert leader.wait() == 1
        assert leader.log().count("Traceback") == 1
        assert "a defect in the journal's thread" in leader.log().strip().splitlines()[-1]
        wait_for_write(others, "after", SERVE_AGAIN_SECONDS)
        (cluster.faults(leader) / "journal-exception").unlink()
        leader.start(environment={"RAFTKV_FAULTS": str(cluster.faults(leader))})
        leader.wait_ready()
        assert leader.ask("/v1/kv/after")[0] == 200


def test_node_with_a_hung_disk_stops_within_a_bound_and_loses_nothing_acknowledged(tmp_path):
    with FaultyCluster(tmp_path, 1) as cluster:
        (node,) = cluster.nodes
        for number in range(20):
            assert node.ask(f"/v1/kv/key-{number}", method="PUT", body=b"x")[0] == 201
        (cluster.faults(node) / "hang").touch()
        status, problem = node.ask("/v1/kv/during", method="PUT", body=b"x", timeout=10)
        assert (status, problem["applied"]) == (504, "unknown"), problem
        node.process.send_signal(signal.SIGTERM)
        assert node.wait(STOP_SECONDS + 10) == 1
        assert "has not stopped within" in node.log().strip().splitlines()[-1]
        assert "nothing acknowledged is lost" in node.log().strip().splitlines()[-1]
        (cluster.faults(node) / "hang").unlink()
        node.start(environment=cluster.environment_of(node))
        node.wait_ready()
        assert all(node.ask(f"/v1/kv/key-{number}") == (200, b"x") for number in range(20))


def test_node_whose_store_could_not_be_written_ends_and_rebuilds_it(tmp_path):
    with FaultyCluster(tmp_path, 1) as cluster:
        (node,) = cluster.nodes
        for number in range(20):
            assert node.ask(f"/v1/kv/key-{number}", method="PUT", body=b"x")[0] == 201
        (cluster.faults(node) / "store-error").touch()
        assert node.wait() == 1
        assert "writing the store" in node.log().strip().splitlines()[-1]
        (cluster.faults(node) / "store-error").unlink()
        node.start(environment={"RAFTKV_FAULTS": str(cluster.faults(node))})
        node.wait_ready()
        assert "the disk did not take all of its pages" in node.log()
        assert all(node.ask(f"/v1/kv/key-{number}") == (200, b"x") for number in range(20))


def full_pipe() -> tuple[int, int]:
    """Return the ends of a pipe that takes nothing more."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    # The flag belongs to the pipe's end, which the node shares.
    os.set_blocking(writer, True)
    return reader, writer


def start_with_full_pipe(node: NodeProcess) -> int:
    reader, writer = full_pipe()
    node.process = subprocess.Popen(node.command, stdout=writer, stderr=writer)
    os.close(writer)
    return reader


def test_node_serves_and_ends_while_nobody_reads_its_log(tmp_path):
    (node,) = ProcessCluster(tmp_path, 1).nodes
    reader = start_with_full_pipe(node)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not node.is_ready():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert node.ask("/v1/kv/a", method="PUT", body=b"x")[0] == 201
        assert node.terminate() == 0
    finally:
        if node.is_running:
            node.kill()
        os.close(reader)


def test_node_that_cannot_go_on_ends_while_nobody_reads_its_log_and_says_why_to_a_late_reader(tmp_path):
    (node,) = ProcessCluster(tmp_path, 1).nodes
    node.start()
    try:
        node.wait_ready()
    finally:
        node.kill()
    (segment,) = (node.data_dir / "journal").glob("*.log")
    segment.write_bytes(b"damaged" + segment.read_bytes()[7:])
    reader = start_with_full_pipe(node)
    assert node.wait() == 1
    os.close(reader)
    reader = start_with_full_pipe(node)
    with os.fdopen(reader, "rb") as pipe:
        last_line = pipe.read().splitlines()[-1].decode()
    assert node.wait() == 1
    assert f"{segment}: corrupt at byte 0" in last_line
