"""The membership of real nodes: it grows and shrinks under load, and replaces what is lost."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

import pytest

from raftkv.client import BlockingClient
from raftkv.errors import NotApplied, UnknownOutcome
from tests.process.cluster import READY_SECONDS, NodeProcess, ProcessCluster, free_ports


class Load:
    """Writes one key after another, and remembers what was acknowledged."""

    def __init__(self, endpoints: str) -> None:
        self.acknowledged: list[bytes] = []
        self.failed: list[Exception] = []
        self.longest_gap = 0.0
        self._endpoints = endpoints.split(",")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        last = time.monotonic()
        with BlockingClient(self._endpoints) as client:
            while not self._stopped.is_set():
                number += 1
                key = b"load/%06d" % number
                try:
                    client.put(key, key)
                except (NotApplied, UnknownOutcome) as error:
                    self.failed.append(error)
                    continue
                now = time.monotonic()
                self.longest_gap = max(self.longest_gap, now - last)
                last = now
                self.acknowledged.append(key)

    def wait_for_more(self, count: int = 20) -> None:
        """Wait until some more writes are acknowledged."""
        goal, deadline = len(self.acknowledged) + count, time.monotonic() + READY_SECONDS
        while len(self.acknowledged) < goal:
            assert time.monotonic() < deadline, f"{len(self.acknowledged)} of {goal} writes are acknowledged"
            time.sleep(0.01)


def raftkv(*arguments: str, endpoints: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raftkv", *arguments, "--endpoints", endpoints]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def change(*arguments: str, endpoints: str) -> None:
    result = raftkv("member", *arguments, endpoints=endpoints)
    assert result.returncode == 0, result.stderr


def joining(cluster: ProcessCluster, directory: Path, name: str, *flags: str) -> NodeProcess:
    client_port, peer_port = free_ports(2)
    return NodeProcess(name, directory, client_port, peer_port, None, f"--join={cluster.endpoints}", *flags)


def wait_until_removed(node: NodeProcess) -> None:
    assert node.wait(READY_SECONDS) == 1, node.log()
    assert "was removed" in node.log()


def missing_from(node: NodeProcess, load: Load) -> list[bytes]:
    expected = list(load.acknowledged)
    with BlockingClient([node.url]) as client:
        there = {item.key for item in client.list(b"load/", keys_only=True)}
    return [key for key in expected if key not in there]


def leader_of(cluster: ProcessCluster) -> NodeProcess:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        for node in cluster.nodes:
            if node.is_running and node.is_ready() and node.status()["role"] == "leader":
                return node
        time.sleep(0.05)
    raise AssertionError("nobody leads")


def test_a_cluster_grows_and_shrinks_under_load_and_loses_nothing(tmp_path):
    with ProcessCluster(tmp_path) as cluster, Load(cluster.endpoints) as load:
        load.wait_for_more()
        new = []
        for name in ("n4", "n5"):
            node = joining(cluster, tmp_path, name)
            new.append(node)
            cluster.nodes.append(node)
            node.start()
            node.wait_ready()
            load.wait_for_more()
        # As documented: a directory that has joined needs neither --join nor --initial-cluster.
        joined = new[0]
        joined.command = [flag for flag in joined.command if not flag.startswith("--join")]
        assert joined.terminate() == 0
        joined.start()
        joined.wait_ready()
        listing = raftkv("member", "list", endpoints=cluster.endpoints).stdout
        assert [line.split("\t")[::3] for line in listing.splitlines()] == [
            [f"n{number}", "votes"] for number in range(1, 6)
        ]
        # Five members bear the loss of two of the first three.
        lost = [cluster.nodes[0], cluster.nodes[1]]
        for node in lost:
            node.kill()
        load.wait_for_more()
        for node in lost:
            node.start()
            node.wait_ready()
        for node in new:
            change("remove", node.name, endpoints=cluster.endpoints)
            wait_until_removed(node)
            cluster.nodes.remove(node)
            load.wait_for_more()
        assert load.acknowledged
        for node in cluster.nodes:
            assert missing_from(node, load) == []
        assert new[0].data_dir.exists()
        new[0].start()
        wait_until_removed(new[0])


def test_a_rolling_restart_fails_no_request_and_loses_nothing(tmp_path):
    with ProcessCluster(tmp_path) as cluster, Load(cluster.endpoints) as load:
        load.wait_for_more()
        for node in cluster.nodes:
            assert node.terminate() == 0
            node.start()
            node.wait_ready()
            load.wait_for_more()
        print(f"the longest time between two writes was {load.longest_gap * 1000:.0f} ms")
        assert load.failed == []
        for node in cluster.nodes:
            assert missing_from(node, load) == []


def test_the_leader_can_be_removed_and_hands_over_first(tmp_path):
    with ProcessCluster(tmp_path) as cluster, Load(cluster.endpoints) as load:
        load.wait_for_more()
        leader = leader_of(cluster)
        change("remove", leader.name, endpoints=cluster.endpoints)
        wait_until_removed(leader)
        cluster.nodes.remove(leader)
        load.wait_for_more()
        for node in cluster.nodes:
            assert missing_from(node, load) == []


def test_a_member_that_lost_its_disk_comes_back_as_a_new_one(tmp_path):
    with ProcessCluster(tmp_path) as cluster, Load(cluster.endpoints) as load:
        load.wait_for_more()
        lost = next(node for node in cluster.nodes if node is not leader_of(cluster))
        others = ",".join(node.url for node in cluster.nodes if node is not lost)
        lost.kill()
        shutil.rmtree(lost.data_dir)
        lost.start()
        assert lost.wait(READY_SECONDS) == 1, "a node without memory must not go on under its old name"
        assert "other storage" in lost.log()
        shutil.rmtree(lost.data_dir)
        lost.command = [flag for flag in lost.command if not flag.startswith("--initial-cluster")]
        lost.start(f"--join={others}")
        assert lost.wait(READY_SECONDS) == 2
        assert f"raftkv member replace {lost.name}" in lost.log()
        lost.start(f"--join={others}", "--replace-lost=true")
        lost.wait_ready()
        load.wait_for_more()
        assert missing_from(lost, load) == []
        # It counts again: without another of the first three there is still a majority.
        next(node for node in cluster.nodes if node not in (lost, leader_of(cluster))).kill()
        load.wait_for_more()


def test_the_member_that_a_cluster_began_with_alone_can_be_replaced(tmp_path):
    """Its replacement begins with a membership in which somebody of its name is the only voter, and must not lead."""
    with ProcessCluster(tmp_path, 1) as cluster:
        (first,) = cluster.nodes
        with Load(cluster.endpoints) as load:
            for name in ("n2", "n3"):
                node = joining(cluster, tmp_path, name)
                node.start()
                node.wait_ready()
                cluster.nodes.append(node)
            load.wait_for_more()
        others = ",".join(node.url for node in cluster.nodes if node is not first)
        first.kill()
        shutil.rmtree(first.data_dir)
        first.command = [flag for flag in first.command if not flag.startswith("--initial-cluster")]
        mark = len(first.log())
        first.start(f"--join={others}", "--replace-lost=true")
        first.wait_ready()
        assert "term 1: leader" not in first.log()[mark:]
        assert missing_from(first, load) == []


def test_a_member_that_waits_takes_the_place_of_a_dead_voter(tmp_path):
    flags = ("--autopilot-voters=3", "--autopilot-dead-after-s=2")
    with ProcessCluster(tmp_path, 3, *flags) as cluster, Load(cluster.endpoints) as load:
        waiting = joining(cluster, tmp_path, "n4", *flags)
        waiting.start()
        leader = leader_of(cluster)

        def votes() -> dict[str, bool]:
            _status, document = leader.ask("/v1/cluster/members")
            return {member["name"]: member["votes"] for member in document["members"]}

        def wait_for(expected: dict[str, bool]) -> None:
            deadline = time.monotonic() + READY_SECONDS
            while votes() != expected:
                assert time.monotonic() < deadline, votes()
                time.sleep(0.05)

        wait_for({"n1": True, "n2": True, "n3": True, "n4": False})
        load.wait_for_more()
        deadline = time.monotonic() + READY_SECONDS
        while waiting.ask("/readyz?exclude=vote")[0] != 200:
            assert time.monotonic() < deadline, waiting.log()
            time.sleep(0.05)
        assert waiting.ask("/readyz/vote")[0] == 503
        cluster.nodes.append(waiting)
        dead = next(node for node in cluster.nodes if node not in (leader, waiting))
        dead.kill()
        wait_for({name: True for name in ("n1", "n2", "n3", "n4") if name != dead.name})
        waiting.wait_ready()
        load.wait_for_more()
        assert missing_from(waiting, load) == []
        dead.start()
        wait_until_removed(dead)
        cluster.nodes.remove(dead)


def test_what_would_stop_the_cluster_or_makes_no_sense_is_refused(tmp_path):
    with ProcessCluster(tmp_path) as cluster:
        first, second, third = cluster.nodes
        leader = leader_of(cluster)
        down = next(node for node in cluster.nodes if node is not leader)
        down.kill()
        other = next(node for node in cluster.nodes if node not in (leader, down))

        def ask(method: str, tail: str, body: bytes | None = None) -> tuple[int, str]:
            status, document = leader.ask(f"/v1/cluster/members{tail}", method=method, body=body)
            return status, document.get("type", "").rpartition(":")[2]

        assert ask("DELETE", f"/{other.name}") == (409, "member-change-refused")
        assert ask("POST", f"/{other.name}/replace", b"{}") == (409, "member-change-refused")
        assert ask("DELETE", "/n9") == (404, "member-not-found")
        assert ask("POST", "/n9/promote", b"{}") == (404, "member-not-found")
        assert ask("POST", f"/{other.name}/promote", b"{}") == (409, "member-change-refused")
        assert ask("POST", f"/{other.name}/dismiss", b"{}") == (404, "no-such-resource")
        assert ask("POST", "", b'{"name": "n1", "peer_address": "127.0.0.1:1"}') == (409, "member-exists")
        assert ask("POST", "", b'{"name": "n4", "peer_address": "127.0.0.1"}') == (400, "invalid-request")
        assert ask("POST", "", b'{"name": "n 4", "peer_address": "127.0.0.1:1"}') == (400, "invalid-request")
        assert ask("POST", "", b'{"name": "n4"}') == (400, "invalid-json")
        status, document = other.ask("/v1/cluster/members/n1", method="DELETE")
        assert (status, document["leader"]) == (307, leader.name)
        _status, document = leader.ask("/v1/cluster/members")
        assert [member["name"] for member in document["members"]] == [first.name, second.name, third.name]


def test_a_member_moves_to_another_address(tmp_path):
    with ProcessCluster(tmp_path) as cluster, Load(cluster.endpoints) as load:
        moved = next(node for node in cluster.nodes if node is not leader_of(cluster))
        (port,) = free_ports(1)
        moved.terminate()
        refused = raftkv("member", "move", moved.name, f"127.0.0.1:{port}", endpoints=cluster.endpoints)
        assert refused.returncode == 1
        assert f"{moved.name} does not answer at 127.0.0.1:{port}" in refused.stderr
        other = leader_of(cluster)
        # The list of the first members is what the cluster began with, and says where this one was then.
        moved.command = [flag for flag in moved.command if not flag.startswith(("--initial-cluster", "--listen-peer"))]
        moved.start(f"--listen-peer=127.0.0.1:{port}")
        deadline = time.monotonic() + READY_SECONDS
        while moved.ask("/livez")[0] != 200:
            assert time.monotonic() < deadline, moved.log()
            time.sleep(0.05)
        change("move", moved.name, f"127.0.0.1:{port}", endpoints=cluster.endpoints)
        moved.wait_ready()
        listing = raftkv("member", "list", endpoints=other.url).stdout
        assert f"127.0.0.1:{port}\t" in listing
        load.wait_for_more()
        assert missing_from(moved, load) == []


def test_copy_of_a_running_member_ends_and_the_member_goes_on(tmp_path):
    with ProcessCluster(tmp_path) as cluster, Load(cluster.endpoints) as load:
        load.wait_for_more()
        original = next(node for node in cluster.nodes if node is not leader_of(cluster))
        elsewhere = tmp_path / "elsewhere"
        shutil.copytree(original.data_dir, elsewhere / original.name)
        copy = NodeProcess(original.name, elsewhere, *free_ports(2), None)
        copy.start()
        assert copy.wait(READY_SECONDS) == 1, copy.log()
        assert f"another process with the data directory of {original.name}" in copy.log()
        assert "this one is a copy, and ends" in copy.log()
        load.wait_for_more()
        original.wait_ready()
        assert missing_from(original, load) == []


@pytest.mark.parametrize("version", ["v3", "v3beta"])
def test_etcds_clients_change_members_too(tmp_path, version):
    with ProcessCluster(tmp_path) as cluster:
        leader = leader_of(cluster)
        follower = next(node for node in cluster.nodes if node is not leader)

        def ask(path: str, body: bytes) -> tuple[int, dict]:
            return follower.ask(f"/{version}/cluster/member/{path}", method="POST", body=body)

        client_port, peer_port = free_ports(2)
        status, document = ask("add", b'{"peerURLs": ["http://127.0.0.1:%d"], "isLearner": true}' % peer_port)
        assert status == 200, document
        added = document["member"]
        assert added["isLearner"] is True
        assert len(document["members"]) == 4
        status, document = ask("add", b'{"peerURLs": ["http://127.0.0.1:%d"]}' % peer_port)
        assert (status, document["message"]) == (400, "etcdserver: Peer URLs already exists")
        status, document = ask("promote", b'{"ID": "%s"}' % added["ID"].encode())
        assert status == 400
        name = f"member-{int(added['ID']):016x}"
        new = NodeProcess(name, tmp_path, client_port, peer_port, None, f"--join={cluster.endpoints}")
        cluster.nodes.append(new)
        new.start()
        new.wait_ready()
        status, document = ask("remove", b'{"ID": "%s"}' % added["ID"].encode())
        assert status == 200, document
        assert len(document["members"]) == 3
        wait_until_removed(new)
        cluster.nodes.remove(new)
        status, document = ask("remove", b'{"ID": "1"}')
        assert (status, document["message"]) == (404, "etcdserver: member not found")
