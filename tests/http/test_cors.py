"""Which pages a browser lets watch: CORS of ``/v1/watch``."""

from __future__ import annotations

import pytest

from raftkv.http import FrontEnd
from raftkv.http.frontend import FrontEndSettings
from tests.http.http_fakes import FakeClusterService
from tests.http.http_store import services_of
from tests.http.native import Events, Node

PAGE, OTHER = "https://ui.example.com", "https://evil.example.com"


def node_with(*origins: str) -> Node:
    node = Node()
    services = services_of(node.log.kv, FakeClusterService(), node.log)
    node.front_end = FrontEnd(services, FrontEndSettings(watch_origins=origins))
    return node


async def answers(node, origin):
    """Return the headers of a stream, of a refusal, and of a preflight."""
    preflight = {"Origin": origin, "Access-Control-Request-Method": "GET"}
    async with (
        node.session.get(f"{node.url}/v1/watch?key=k", headers={"Origin": origin}) as stream,
        node.session.get(f"{node.url}/v1/watch?kee=k", headers={"Origin": origin}) as refusal,
        node.session.options(f"{node.url}/v1/watch", headers=preflight) as before,
    ):
        assert (stream.status, refusal.status, before.status) == (200, 400, 204)
        problem = await refusal.json(content_type=None)
        assert problem["type"] == "urn:raftkv:problem:invalid-query"
        assert problem["request_id"] == refusal.headers["X-Request-Id"]
        await node.put("k", "v")
        assert (await Events(stream).next())[1]["events"][0]["value"] == "v"
        return stream.headers, refusal.headers, before.headers


@pytest.mark.parametrize(("origins", "allowed"), [((PAGE, "http://localhost:3000"), PAGE), (("*",), "*")])
async def test_pages_of_origins_that_are_named_may_watch(origins, allowed):
    async with node_with(*origins) as node:
        stream, refusal, preflight = await answers(node, PAGE)
        for headers in (stream, refusal, preflight):
            assert headers["Access-Control-Allow-Origin"] == allowed
            assert headers["Access-Control-Expose-Headers"] == "X-Raftkv-Cluster-Id, X-Request-Id"
            assert headers.get("Vary") == (None if allowed == "*" else "Origin")
        assert preflight["Access-Control-Allow-Methods"] == preflight["Allow"] == "GET, OPTIONS"
        assert preflight["Access-Control-Allow-Headers"] == "Last-Event-ID"
        async with node.session.get(f"{node.url}/v1/kv/k", headers={"Origin": PAGE}) as read:
            assert "Access-Control-Allow-Origin" not in read.headers


@pytest.mark.parametrize("origins", [(), (PAGE,)])
async def test_pages_of_other_origins_may_not(origins):
    async with node_with(*origins) as node:
        for origin in (OTHER, "null", PAGE + ":8443", "*"):
            for headers in await answers(node, origin):
                assert not [name for name in headers if name.startswith("Access-Control")]
                assert headers.get("Vary") == ("Origin" if origins else None)
