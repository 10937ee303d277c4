"""How clusters begin: in any order, once, and never over the data of a cluster that is only away."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from tests.process.cluster import READY_SECONDS, NodeProcess, ProcessCluster

pytestmark = pytest.mark.process

WAITS = "before a cluster is begun"


def wait_for_log(node: NodeProcess, text: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while text not in node.log():
        assert node.is_running, node.log()
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.02)


def wipe(node: NodeProcess) -> None:
    node.kill()
    shutil.rmtree(node.data_dir)
    node.log_path.unlink()


def has_begun(node: NodeProcess) -> bool:
    return (node.data_dir / "identity.json").exists()


def expect_refusal(node: NodeProcess, *words: str) -> None:
    assert node.wait(READY_SECONDS) == 1, node.log()
    assert all(word in node.log().splitlines()[-1] for word in words), node.log()
    assert not has_begun(node)


@pytest.fixture
def cluster(tmp_path):
    cluster = ProcessCluster(tmp_path)
    yield cluster
    cluster.__exit__()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_nodes_that_start_one_by_one_wait_for_all_and_begin_one_cluster(cluster, order):
    first, second, third = (cluster.nodes[at] for at in order)
    first.start()
    wait_for_log(first, WAITS)
    second.start()
    wait_for_log(second, WAITS)
    assert not has_begun(first)
    assert not has_begun(second)
    third.start()
    cluster.wait_ready()


def test_wiped_members_do_not_begin_a_cluster_and_the_survivor_goes_on(cluster):
    with cluster:
        survivor, *others = cluster.nodes
        assert cluster.leader().ask("/v1/kv/a", method="PUT", body=b"x")[0] == 201
        for node in others:
            wipe(node)
        for node in others:
            node.start()
        for node in others:
            expect_refusal(node, f"{survivor.name} refuses this node", f"member replace {node.name}")
        assert survivor.is_running
        assert survivor.ask("/v1/kv/a?consistency=stale") == (200, b"x")


def test_wiped_members_wait_for_a_survivor_that_is_away(cluster):
    with cluster:
        survivor, *others = cluster.nodes
        assert cluster.leader().ask("/v1/kv/a", method="PUT", body=b"x")[0] == 201
        # The majority that acknowledged the write may be the other two: a read here waits until the survivor has it.
        assert survivor.ask("/v1/kv/a") == (200, b"x")
        survivor.kill()
        for node in others:
            wipe(node)
        for node in others:
            node.start()
        for node in others:
            wait_for_log(node, WAITS)
            assert not has_begun(node)
        survivor.start()
        for node in others:
            expect_refusal(node, f"{survivor.name} refuses this node")
        assert survivor.is_running
        assert survivor.ask("/v1/kv/a?consistency=stale") == (200, b"x")


def test_state_new_begins_without_a_peer_that_is_away_which_then_comes(cluster):
    first, second, third = cluster.nodes
    for node in (first, second):
        node.start("--initial-cluster-state=new")
    cluster.wait_ready(first.name, second.name)
    assert cluster.leader().ask("/v1/kv/a", method="PUT", body=b"x")[0] == 201
    third.start()
    cluster.wait_ready()
    assert third.ask("/v1/kv/a?consistency=stale") == (200, b"x")


def test_state_new_does_not_begin_over_the_data_of_a_peer_that_answers(cluster):
    with cluster:
        victim = cluster.nodes[1]
        wipe(victim)
        victim.start("--initial-cluster-state=new")
        expect_refusal(victim, "refuses this node")


def test_state_existing_never_begins_a_cluster(cluster):
    node = cluster.nodes[0]
    node.start("--initial-cluster-state=existing")
    assert node.wait() == 2
    assert "initial-cluster-state is existing" in node.log()
    assert not Path(node.data_dir / "identity.json").exists()


def test_state_existing_changes_nothing_for_a_node_with_data(cluster):
    with cluster:
        node = cluster.nodes[0]
        node.terminate()
        node.start("--initial-cluster-state=existing")
        cluster.wait_ready()
