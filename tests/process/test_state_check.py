"""The comparison of the members' stores on real processes: a store that was changed is found, a sound one is not."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable

import pytest

from raftkv.store.backend import Space
from raftkv.store.lmdb_backend import open_plain
from tests.process.cluster import READY_SECONDS, NodeProcess, ProcessCluster

pytestmark = pytest.mark.process

CLIENTS = 64
LOAD_SECONDS = 6.0


def wait(condition: Callable[[], bool], cluster: ProcessCluster) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "\n".join(node.log() for node in cluster.nodes)
        time.sleep(0.05)


def alarms(node: NodeProcess) -> list[str]:
    _status, document = node.ask("/v3/maintenance/alarm", method="POST", body=json.dumps({"action": "GET"}).encode())
    return [alarm["alarm"] for alarm in document.get("alarms", [])]


def metric(node: NodeProcess, name: str) -> float:
    text = node.ask("/metrics")[1].decode()
    found = re.search(rf"^raftkv_{name} (\S+)$", text, re.MULTILINE)
    return 0.0 if found is None else float(found[1])


def put(cluster: ProcessCluster, value: bytes) -> None:
    assert cluster.leader().ask("/v1/kv/key", method="PUT", body=value)[0] in (200, 201)


def check(cluster: ProcessCluster) -> dict:
    status, document = cluster.leader().ask("/v1/cluster/check", method="POST", timeout=30)
    assert status == 200, document
    return document


def change_a_value(node: NodeProcess) -> None:
    """Change the value of the last event in the store of a node that is stopped."""
    backend = open_plain(node.data_dir / "store")
    with backend.write() as transaction:
        history = transaction.tree(Space.HISTORY)
        *_, (place, record) = history.scan(b"")
        history.put(place, record[:-1] + bytes([record[-1] ^ 1]))
    backend.close()


def restart_changed(node: NodeProcess) -> None:
    """Stop a node, change its store, and start it again."""
    assert node.terminate() == 0
    change_a_value(node)
    node.start()


def test_member_whose_store_was_changed_stops_with_an_alarm(tmp_path):
    with ProcessCluster(tmp_path, 3, "--corrupt-check-s=1") as cluster:
        put(cluster, b"value0")
        odd = cluster.followers()[0]
        wait(lambda: odd.ask("/v1/kv/key?consistency=stale")[0] == 200, cluster)
        assert check(cluster)["sound"]
        restart_changed(odd)
        assert odd.wait(READY_SECONDS) == 1, odd.log()
        last_line = odd.log().strip().splitlines()[-1]
        assert "the store of this node differs from those of a majority at index" in last_line
        assert "replace this member (docs/operations.md)" in last_line
        wait(lambda: alarms(cluster.leader()) == ["CORRUPT"], cluster)
        assert f"the store of {odd.name} differs from those of a majority" in cluster.leader().log()
        assert metric(cluster.leader(), "state_check_mismatches_total") == 1
        put(cluster, b"more")
        # With its alarm, it is compared as soon as it is back, however long the period.
        odd.start()
        assert odd.wait(READY_SECONDS) == 1, odd.log()
        assert all(node.is_running for node in cluster.nodes if node is not odd)


def test_leader_whose_store_was_changed_stops_with_an_alarm(tmp_path):
    with ProcessCluster(tmp_path, 3, "--corrupt-check-s=0") as cluster:
        put(cluster, b"value0")
        assert check(cluster)["sound"]
        odd = cluster.followers()[0]
        restart_changed(odd)
        cluster.wait_ready(odd.name)
        # Without the comparison it serves what it has.
        assert odd.ask("/v1/kv/key?consistency=stale") == (200, b"value1")
        body = json.dumps({"to": odd.name}).encode()
        assert cluster.leader().ask("/v1/cluster/leader", method="POST", body=body)[0] == 200
        report = check(cluster)
        assert not report["sound"]
        assert {each["name"]: each["result"] for each in report["members"]} == {
            node.name: "differs" if node is odd else "agrees" for node in cluster.nodes
        }
        assert odd.wait(READY_SECONDS) == 1, odd.log()
        assert "the store of this leader differs from those of a majority" in odd.log().strip().splitlines()[-1]
        assert cluster.leader() is not odd
        wait(lambda: alarms(cluster.leader()) == ["CORRUPT"], cluster)
        put(cluster, b"more")


def test_two_members_that_differ_go_on_with_an_alarm(tmp_path):
    with ProcessCluster(tmp_path, 2, "--corrupt-check-s=0") as cluster:
        put(cluster, b"value0")
        assert check(cluster)["sound"]
        odd = cluster.followers()[0]
        restart_changed(odd)
        cluster.wait_ready()
        report = check(cluster)
        assert [each["result"] for each in report["members"]] == ["disputed", "disputed"]
        wait(lambda: alarms(cluster.leader()) == ["CORRUPT"], cluster)
        assert "no majority of the voters has the same" in cluster.leader().log()
        put(cluster, b"more")
        assert all(node.is_running for node in cluster.nodes)


def test_sound_cluster_under_load_raises_no_alarm(tmp_path):
    with ProcessCluster(tmp_path, 3, "--corrupt-check-s=0.2", "--snapshot-journal-bytes=200000") as cluster:
        nodes, ends = cluster.nodes, time.monotonic() + LOAD_SECONDS
        done = [0] * CLIENTS
        leader = cluster.leader()

        def write(number: int) -> None:
            while time.monotonic() < ends:
                key = f"/v1/kv/key-{number}-{done[number] % 5}"
                method = "DELETE" if done[number] % 7 == 6 else "PUT"
                if leader.ask(key, method=method, body=b"v" * 100 if method == "PUT" else None)[0] in (200, 201, 404):
                    done[number] += 1

        clients = [threading.Thread(target=write, args=(number,)) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert all(done)
        assert metric(leader, "state_checks_succeeded_total") >= 3, leader.log()
        assert check(cluster)["sound"]
        for node in nodes:
            assert metric(node, "state_check_mismatches_total") == 0
            assert alarms(node) == []
            assert node.is_running
