"""Paths and methods, health, cluster and version."""

from __future__ import annotations

import logging

import pytest

import raftkv
from raftkv.errors import ConfigurationError, NotLeader, TransferFailed
from raftkv.http import FrontEnd, FrontEndSettings
from raftkv.service.api import HealthCheck
from raftkv.types import NodeId
from tests.http.http_raw import Raw
from tests.http.http_store import services_of

KEY_METHODS = "DELETE, GET, HEAD, OPTIONS, PUT"
READ_METHODS = "GET, HEAD, OPTIONS"


@pytest.mark.parametrize(
    "target",
    ["/", "/v1", "/v1/", "/v2/kv/a", "//v1/kv/a", "/V1/kv/a", "/livez2", "/version/", "/v1/cluster/x", "/%"],
)
async def test_an_unknown_path_is_404(client, target):
    answer = await client.ask("GET", target)
    assert (answer.status, answer.problem()) == (404, "no-such-resource")
    assert target in answer.json()["detail"]


@pytest.mark.parametrize("method", ["POST", "PATCH", "TRACE", "MKCOL", "PROPFIND"])
@pytest.mark.parametrize(
    ("target", "allow"),
    [
        ("/v1/kv/a", KEY_METHODS),
        ("/v1/kv", "DELETE, GET, HEAD, OPTIONS"),
        ("/livez", READ_METHODS),
        ("/readyz/x", READ_METHODS),
    ],
)
async def test_a_wrong_method_is_405_with_allow(client, target, allow, method):
    answer = await client.ask(method, target, b"x")
    assert (answer.status, answer.problem()) == (405, "method-not-allowed")
    assert answer.headers["allow"] == allow
    assert method in answer.json()["detail"]


async def test_options(client):
    every = "DELETE, GET, HEAD, OPTIONS, POST, PUT"
    for target, allow in (("/v1/kv/a", KEY_METHODS), ("/version", READ_METHODS), ("*", every)):
        answer = await client.ask("OPTIONS", target)
        assert (answer.status, answer.headers["allow"]) == (204, allow)
    assert (await client.ask("OPTIONS", "/none")).status == 404


async def test_absolute_form_is_understood_and_a_fragment_is_not(client, kv):
    assert (await client.ask("PUT", "http://anything:80/v1/kv/a?", b"x")).status == 201
    assert list(kv.keys) == [b"a"]
    for target in ("/v1/kv/a#b", "http://anything", "ftp://anything/v1/kv/a"):
        answer = await client.ask("PUT", target, b"x")
        assert (answer.status, answer.problem()) == (400, "invalid-target"), target
    assert list(kv.keys) == [b"a"]


async def test_cluster(client):
    answer = await client.ask("GET", "/v1/cluster")
    assert answer.status == 200
    status = {
        "role": "leader",
        "term": 3,
        "leader": "n1",
        "commit_index": 10,
        "applied_index": 9,
        "last_index": 11,
        "revision": 7,
        "client_url": "http://127.0.0.1:2379",
        "version": "0.1.0",
        "cluster_version": "0.1",
        "lowest_cluster_version": "0.1",
        "highest_cluster_version": "0.1",
    }
    assert answer.json() == {
        "cluster_id": "0123456789abcdef",
        "answered_by": "n1",
        "cluster_version": "0.1",
        "leader": "n1",
        "leader_url": "http://127.0.0.1:2379",
        "term": 3,
        "members": [
            {
                "name": "n1",
                "id": "0000000000000001",
                "peer_address": "127.0.0.1:2380",
                "votes": True,
                "status": status,
            },
            {
                "name": "n2",
                "id": "0000000000000002",
                "peer_address": "127.0.0.1:2390",
                "votes": False,
                "status": None,
            },
        ],
    }
    assert (await client.ask("GET", "/v1/cluster?x=1")).problem() == "invalid-query"


async def test_version(client):
    assert (await client.ask("GET", "/v1/version")).json() == {"raftkv": raftkv.__version__, "api": "v1"}
    # etcd3-py refuses an answer that has more.
    assert (await client.ask("GET", "/version")).json() == {"etcdserver": "3.4.23", "etcdcluster": "3.4.23"}
    assert (await client.ask("GET", "/v1/version?x=1")).problem() == "invalid-query"


async def test_healthy(client):
    live = await client.ask("GET", "/livez")
    assert live.status == 200
    assert live.json() == {
        "healthy": True,
        "checks": [{"name": "store", "healthy": True, "detail": "it is sound"}],
        "excluded": [],
        "unmatched": [],
    }
    assert (await client.ask("HEAD", "/readyz")).status == 200
    ready = await client.ask("GET", "/readyz?verbose")
    assert ready.headers["content-type"].startswith("text/plain")
    assert ready.body.decode() == "[+]store ok\n[+]leader ok\nreadyz check passed\n"


async def test_unhealthy(client, cluster):
    cluster.checks[1] = HealthCheck("leader", False, "none is known")
    assert (await client.ask("GET", "/livez")).status == 200
    ready = await client.ask("GET", "/readyz")
    assert ready.status == 503
    assert ready.json()["healthy"] is False
    verbose = await client.ask("GET", "/readyz?verbose=1")
    assert verbose.status == 503
    assert verbose.body.decode() == "[+]store ok\n[-]leader failed: none is known\nreadyz check failed\n"
    assert (await client.ask("GET", "/readyz/store")).status == 200
    single = await client.ask("GET", "/readyz/leader?verbose=false")
    assert (single.status, [check["name"] for check in single.json()["checks"]]) == (503, ["leader"])
    unknown = await client.ask("GET", "/readyz/nothing")
    assert (unknown.status, unknown.problem()) == (404, "no-such-resource")
    assert "store, leader" in unknown.json()["detail"]


async def test_excluded_checks_do_not_count_and_a_stranger_is_told(client, cluster):
    cluster.checks[1] = HealthCheck("leader", False, "none is known")
    answer = await client.ask("GET", "/readyz?exclude=leader&exclude=other")
    assert answer.status == 200
    assert answer.json()["excluded"] == ["leader"]
    assert answer.json()["unmatched"] == ["other"]
    verbose = await client.ask("GET", "/readyz?verbose&exclude=leader&exclude=other")
    assert verbose.body.decode().splitlines() == [
        "[+]store ok",
        "[+]leader excluded: ok",
        "warn: no check is named 'other', so it cannot be excluded",
        "readyz check passed",
    ]
    assert (await client.ask("GET", "/readyz?verbose=maybe")).problem() == "invalid-query"
    assert (await client.ask("GET", "/livez?verbos")).problem() == "invalid-query"


@pytest.mark.parametrize("enabled", [True, False])
async def test_the_access_log_is_off_unless_asked_for(kv, cluster, caplog, enabled):
    front_end = FrontEnd(services_of(kv, cluster), FrontEndSettings(access_log=enabled))
    with caplog.at_level(logging.DEBUG):
        async with Raw(await front_end.start("127.0.0.1", 0)) as client:
            await client.ask("GET", "/v1/kv/some-key")
        await front_end.stop(1)
    assert [record.name for record in caplog.records if "some-key" in record.message] == (
        ["raftkv.http.access"] if enabled else []
    )


async def test_a_port_in_use_and_a_bad_host_are_named(kv, cluster, address):
    second = FrontEnd(services_of(kv, cluster))
    with pytest.raises(ConfigurationError, match=f"127.0.0.1:{address[1]}"):
        await second.start(*address)
    with pytest.raises(ConfigurationError, match="70000"):
        await second.start("127.0.0.1", 70000)
    await second.stop(0)


@pytest.mark.parametrize("name", ["request_timeout_seconds", "keepalive_seconds"])
def test_times_must_be_positive(name):
    with pytest.raises(ConfigurationError, match=name):
        FrontEndSettings(**{name: 0})


async def test_leadership_is_transferred_on_request(client, cluster):
    moved = await client.ask("POST", "/v1/cluster/leader", b'{"to": "n2"}')
    assert moved.json() == {"transferred": True, "leader": "n1"}, "the fake goes on to lead"
    assert (await client.ask("POST", "/v1/cluster/leader", b"")).status == 200
    assert cluster.transfers == ["n2", None]
    assert (await client.ask("POST", "/v1/cluster/leader", b'{"too": 1}')).problem() == "invalid-json"
    cluster.failure = TransferFailed("nobody")
    assert (await client.ask("POST", "/v1/cluster/leader", b"")).problem() == "transfer-failed"


async def test_stores_are_compared_on_request(client, cluster):
    assert (await client.ask("POST", "/v1/cluster/check")).json() == {
        "index": 9,
        "sound": False,
        "members": [{"name": "n1", "result": "agrees"}, {"name": "n2", "result": "unknown"}],
    }
    assert (await client.ask("POST", "/v1/cluster/check", b"{}")).status == 400
    cluster.failure = NotLeader(NodeId("n2"), "http://n2:2379")
    assert (await client.ask("POST", "/v1/cluster/check")).status == 307


async def test_status_is_the_nodes_own_and_tries_a_read_only_on_request(client, cluster):
    document = (await client.ask("GET", "/v1/status")).json()
    assert (document["name"], document["id"], document["votes"]) == ("n1", "0000000000000001", True)
    assert (document["role"], document["commit_index"], document["applied_index"]) == ("leader", 10, 9)
    assert document["followers"] == [{"name": "n2", "lag_entries": 3, "lag_bytes": 120}]
    assert document["disk"] == {"free_bytes": 10_000_000, "reserve_bytes": 1_000_000}
    assert document["alarms"] == []
    assert "checks" not in document
    cluster.checks = [HealthCheck("read", False, "no majority")]
    unhealthy = await client.ask("GET", "/v1/status?health=true")
    assert unhealthy.status == 200, "that it can be asked does not make it healthy"
    assert unhealthy.json()["checks"] == [{"name": "read", "healthy": False, "detail": "no majority"}]
    assert (await client.ask("GET", "/v1/status?health=maybe")).problem() == "invalid-query"
    assert (await client.ask("GET", "/v1/status", b"x")).problem() == "unexpected-body"
