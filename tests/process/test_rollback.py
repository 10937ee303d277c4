"""Issue 15, A4: a member's directory is replaced by an older copy of itself, on real processes and disks."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from raftkv.consensus.journal import Journal
from raftkv.consensus.segments import SegmentedLog, recover
from raftkv.runtime.files import RealDirectory
from raftkv.types import ClusterId
from tests.process.cluster import READY_SECONDS, NodeProcess, ProcessCluster

pytestmark = pytest.mark.process


def put(node: NodeProcess, value: bytes) -> None:
    assert node.ask("/v1/kv/key", method="PUT", body=value)[0] in (200, 201)


def start(cluster: ProcessCluster, *nodes: NodeProcess) -> int:
    """Start some nodes; return the term in which one of them leads."""
    for node in nodes:
        node.start()
    cluster.wait_ready(*(node.name for node in nodes))
    return cluster.leader().status()["term"]


def await_status(node: NodeProcess, name: str, index: int) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while node.status()[name] < index:
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.05)


def put_back_n3(cluster: ProcessCluster, tmp_path: Path, *, in_later_term: bool = False) -> None:
    """Let n1 and n3 acknowledge a write while n2 is down, and n2 and n3 another one after n3's disk was put back."""
    n1, n2, n3 = cluster.nodes
    for node in cluster.nodes:
        node.kill()
    shutil.copytree(n3.data_dir, tmp_path / "older")
    term = start(cluster, n1, n3)
    put(cluster.leader(), b"precious")
    await_status(n1, "applied_index", cluster.leader().status()["commit_index"])
    n1.terminate()
    n3.kill()
    shutil.rmtree(n3.data_dir)
    shutil.copytree(tmp_path / "older", n3.data_dir)
    # Two nodes need each other's votes, which pre-votes settle: the term is the same one.
    assert start(cluster, n2, n3) == term
    if in_later_term:
        n2.kill()
        n3.kill()
        assert start(cluster, n2, n3) > term
    put(cluster.leader(), b"other")


def alarms(node: NodeProcess) -> list[str]:
    _status, document = node.ask("/v3/maintenance/alarm", method="POST", body=json.dumps({"action": "GET"}).encode())
    return [alarm["alarm"] for alarm in document.get("alarms", [])]


def test_node_whose_disk_is_put_back_is_refused_by_the_leader(tmp_path):
    with ProcessCluster(tmp_path) as cluster:
        follower = cluster.followers()[0]
        follower.kill()
        shutil.copytree(follower.data_dir, tmp_path / "older")
        follower.start()
        cluster.wait_ready(follower.name)
        put(cluster.leader(), b"precious")
        promised = cluster.leader().status()["commit_index"]
        await_status(follower, "applied_index", promised)
        follower.kill()
        # The same disk is welcome again.
        follower.start()
        cluster.wait_ready(follower.name)
        follower.kill()
        shutil.rmtree(follower.data_dir)
        shutil.copytree(tmp_path / "older", follower.data_dir)
        follower.start()
        assert follower.wait() == 1, follower.log()
        assert "is older than its promises: its log ended at index" in follower.log().strip().splitlines()[-1]
        put(cluster.leader(), b"more")


def test_node_whose_disk_is_put_back_is_refused_by_a_member_that_was_restarted(tmp_path):
    with ProcessCluster(tmp_path) as cluster:
        put_back_n3(cluster, tmp_path)
        n1, _n2, n3 = cluster.nodes
        n1.start()
        assert n3.wait() == 1, n3.log()
        assert "n1 says: n3 is older than its promises: its log ended at" in n3.log().strip().splitlines()[-1]


@pytest.mark.parametrize("in_later_term", [False, True], ids=["same term", "later term"])
def test_node_with_writes_that_an_older_disk_forgot_stops_with_alarm(tmp_path, in_later_term):
    with ProcessCluster(tmp_path) as cluster:
        put_back_n3(cluster, tmp_path, in_later_term=in_later_term)
        n1, _n2, n3 = cluster.nodes
        # The next process of n3 begins with a log that is long enough, so that only its content tells.
        await_status(n3, "commit_index", cluster.leader().status()["commit_index"])
        n3.kill()
        n3.start()
        cluster.wait_ready(n3.name)
        put(cluster.leader(), b"another")
        n1.start()
        assert n1.wait() == 1, n1.log()
        last_line = n1.log().strip().splitlines()[-1]
        assert "this node has other entries than a majority (n2, n3) up to index" in last_line
        assert "A disk was put back to an older state" in last_line
        deadline = time.monotonic() + READY_SECONDS
        while alarms(cluster.leader()) != ["CORRUPT"]:
            assert time.monotonic() < deadline, cluster.leader().log()
            time.sleep(0.05)
        assert "n1 has other entries than a majority (n2, n3) up to index" in cluster.leader().log()
        put(cluster.leader(), b"more")
        _status, found = cluster.leader().ask("/v3/maintenance/alarm", method="POST", body=b"{}")
        assert 'raftkv_alarm{kind="corrupt",member="n1"} 1.0' in str(cluster.leader().ask("/metrics"))
        clear = {"action": "DEACTIVATE", **found["alarms"][0]}
        assert cluster.leader().ask("/v3/maintenance/alarm", method="POST", body=json.dumps(clear).encode())[0] == 200
        assert alarms(cluster.leader()) == []


def forge_last_entry(node: NodeProcess) -> None:
    """Give a stopped node another last entry than it received, at the same index and term."""
    cluster_id = ClusterId(json.loads((node.data_dir / "identity.json").read_text())["cluster_id"])
    directory = RealDirectory(node.data_dir).child("journal")
    recovered = recover(directory, cluster_id, None)
    journal, log = Journal(recovered), SegmentedLog(directory, cluster_id, recovered)
    _command, index, term = recovered.entries[-1]
    journal.setRaftCommitIndex(index - 1)
    journal.deleteEntriesFrom(len(journal) - 1)
    journal.add(b"\0forged", index, term)
    batch = journal.take_batch()
    assert batch is not None
    log.write([batch])
    log.close()


def test_two_members_that_contradict_each_other_refuse_reads_and_writes_and_say_why(tmp_path):
    with ProcessCluster(tmp_path, 2) as cluster:
        n1, n2 = cluster.nodes
        put(cluster.leader(), b"precious")
        await_status(n2, "applied_index", cluster.leader().status()["commit_index"])
        n1.kill()
        n2.kill()
        forge_last_entry(n2)
        n1.start()
        n2.start()
        leader = cluster.leader()
        deadline = time.monotonic() + READY_SECONDS
        while "writes and linearizable reads are refused" not in leader.log():
            assert time.monotonic() < deadline, leader.log()
            time.sleep(0.05)
        began = time.monotonic()
        for node in cluster.nodes:
            status, problem = node.ask("/v1/kv/key")
            assert (status, problem["type"].rsplit(":", 1)[-1]) == (503, "logs-contradict"), problem
            assert node.ask("/v1/kv/key?consistency=stale")[0] == 200
            assert "raftkv_logs_contradict 1.0" in str(node.ask("/metrics"))
        follower = n1 if leader is n2 else n2
        status, problem = leader.ask("/v1/kv/key", method="PUT", body=b"other")
        assert (status, problem["applied"]) == (503, "no")
        assert f"{follower.name} has other entries than the leader up to index" in problem["detail"]
        assert "no majority decides which log is wrong" in leader.log()
        assert f'raftkv_peer_log_contradicts{{peer="{follower.name}"}} 1.0' in str(leader.ask("/metrics"))
        assert time.monotonic() - began < 5, "nothing waited for a timeout"
        assert n1.is_running
        assert n2.is_running
