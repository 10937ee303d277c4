"""A real cluster in its ordinary life: redirects, reads everywhere, hand-over, and what a minority does."""

from __future__ import annotations

import http.client
import json
import time
from urllib.parse import urlsplit

import pytest

from tests.process.cluster import ProcessCluster

pytestmark = pytest.mark.process


@pytest.fixture
def cluster(tmp_path):
    with ProcessCluster(tmp_path) as running:
        yield running


def request(url: str, method: str, path: str, body: bytes | None = None, **headers: str):
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def test_a_follower_sends_writes_to_the_leader_and_answers_reads_itself(cluster):
    leader, follower = cluster.leader(), cluster.followers()[0]
    status, headers, body = request(follower.url, "PUT", "/v1/kv/a%2Fb//c?", b"value")
    assert (status, headers["Location"]) == (307, f"{leader.url}/v1/kv/a%2Fb//c?")
    assert json.loads(body)["leader"] == leader.name
    status, headers, _ = request(leader.url, "PUT", "/v1/kv/a%2Fb//c", b"value")
    assert (status, headers["ETag"]) == (201, '"2"')
    for node in cluster.nodes:
        status, headers, body = request(node.url, "GET", "/v1/kv/a/b//c")
        assert (status, body) == (200, b"value")
        assert (headers["X-Raftkv-Revision"], headers["X-Raftkv-Create-Revision"], headers["X-Raftkv-Version"]) == (
            "2",
            "2",
            "1",
        )
    assert request(leader.url, "PUT", "/v1/kv/a/b//c", b"x", If_Match='"9"')[0] == 412
    assert request(leader.url, "PUT", "/v1/kv/a/b//c", b"x", If_None_Match="*")[0] == 412
    assert request(leader.url, "DELETE", "/v1/kv/a/b//c", If_Match='"2"')[0] == 200


def test_the_cluster_describes_itself_at_every_node(cluster):
    for node in cluster.nodes:
        _status, document = node.ask("/v1/cluster")
        assert document["answered_by"] == node.name
        assert document["leader"] == cluster.leader().name
        assert [member["name"] for member in document["members"]] == ["n1", "n2", "n3"]
        roles = [member["status"]["role"] for member in document["members"]]
        assert sorted(roles) == ["follower", "follower", "leader"]
        for member in document["members"]:
            status = member["status"]
            assert 2 <= status["applied_index"] <= status["commit_index"] <= status["last_index"]


def test_leadership_is_handed_over_when_the_leader_is_told_to_stop(cluster):
    leader = cluster.leader()
    term = leader.status()["term"]
    assert leader.terminate() == 0
    successor = cluster.leader()
    assert successor.status()["term"] == term + 1
    assert successor.ask("/v1/kv/after", method="PUT", body=b"x")[0] == 201
    leader.start()
    cluster.wait_ready()
    assert leader.ask("/v1/kv/after") == (200, b"x")


def test_a_minority_refuses_writes_and_linearizable_reads_and_stays_alive(cluster):
    leader = cluster.leader()
    assert leader.ask("/v1/kv/a", method="PUT", body=b"x")[0] == 201
    survivor = cluster.followers()[0]
    assert survivor.ask("/v1/kv/a") == (200, b"x")
    for node in cluster.nodes:
        if node is not survivor:
            node.kill()
    status, headers, body = request(survivor.url, "PUT", "/v1/kv/a", b"y")
    assert (status, json.loads(body)["applied"]) == (503, "no")
    assert headers["Retry-After"] == "1"
    assert request(survivor.url, "GET", "/v1/kv/a")[0] == 503
    status, headers, body = request(survivor.url, "GET", "/v1/kv/a?consistency=stale")
    assert (status, body, headers["X-Raftkv-Consistency"]) == (200, b"x", "stale")
    assert survivor.ask("/livez")[0] == 200
    assert survivor.ask("/readyz")[0] == 503
    deadline = time.monotonic() + 10
    while (status := survivor.status())["leader"] is not None:
        assert time.monotonic() < deadline, status
        time.sleep(0.02)
    assert b"\nraftkv_has_leader 0.0\n" in survivor.ask("/metrics")[1]
    for node in cluster.nodes:
        if node is not survivor:
            node.start()
    cluster.wait_ready()
    assert survivor.ask("/v1/kv/a") == (200, b"x")


def test_a_leader_that_loses_its_followers_says_that_the_outcome_is_unknown(cluster):
    leader = cluster.leader()
    for node in cluster.followers():
        node.kill()
    status, problem = leader.ask("/v1/kv/a", method="PUT", body=b"x", timeout=15)
    assert status in (503, 504)
    assert problem["applied"] == ("unknown" if status == 504 else "no")
    for node in cluster.nodes:
        if not node.is_running:
            node.start()
    cluster.wait_ready()
    found = {node.ask("/v1/kv/a")[0] for node in cluster.nodes}
    assert len(found) == 1
    if status == 503:
        assert found == {404}
