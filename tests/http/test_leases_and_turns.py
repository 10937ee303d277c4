"""Leases, locks and elections through the native API."""

from __future__ import annotations

import asyncio

import pytest

from raftkv.errors import NotLeader
from raftkv.types import NodeId
from tests.http.native import SECONDS, Events, Node


@pytest.fixture
async def node():
    async with Node() as running:
        yield running


async def lease(node: Node, seconds: int = 60) -> int:
    return (await node.ask("POST", "/v1/leases", {"ttl_seconds": seconds}))[1]["id"]


async def test_the_life_of_a_lease(node):
    status, granted = await node.ask("POST", "/v1/leases", {"ttl_seconds": 30, "id": 7})
    assert (status, granted) == (201, {"id": 7, "ttl_seconds": 30})
    assert (await node.ask("PUT", "/v1/kv/a?lease=7", b"x"))[0] == 201
    async with node.session.get(node.url + "/v1/kv/a") as answer:
        assert answer.headers["X-Raftkv-Lease"] == "7"
    node.log.clock.time += 10
    assert await node.ask("GET", "/v1/leases/7?keys=true") == (
        200,
        {"id": 7, "ttl_seconds": 30, "remaining_seconds": 20, "keys": ["a"]},
    )
    assert await node.ask("PUT", "/v1/leases/7") == (200, {"id": 7, "ttl_seconds": 30})
    assert (await node.ask("GET", "/v1/leases/7"))[1]["remaining_seconds"] == 30
    assert await node.ask("GET", "/v1/leases") == (200, {"leases": [{"id": 7}]})
    assert await node.ask("DELETE", "/v1/leases/7") == (200, {"id": 7, "revoked": True})
    assert (await node.ask("GET", "/v1/kv/a"))[0] == 404
    for method in ("GET", "PUT", "DELETE"):
        assert (await node.problem(method, "/v1/leases/7")).startswith("lease-not-found: ")
        assert (await node.problem(method, "/v1/leases/x")).startswith("lease-not-found: ")


async def test_what_is_wrong_with_a_lease_is_named(node):
    assert (await node.problem("POST", "/v1/leases", {})).startswith("invalid-json: ttl_seconds must be a whole number")
    assert (await node.problem("POST", "/v1/leases", {"ttl_seconds": "5"})).startswith("invalid-json: ttl_seconds")
    assert (await node.problem("POST", "/v1/leases", {"ttl_seconds": 5, "id": 0})).startswith("invalid-json: id must")
    assert (await node.problem("PUT", "/v1/kv/a?lease=99", b"x")).startswith("lease-not-found: ")
    assert (await node.problem("PUT", "/v1/kv/a?lease=x", b"x")).startswith("invalid-query: lease must be a number")
    await node.ask("POST", "/v1/leases", {"ttl_seconds": 5, "id": 7})
    assert (await node.problem("POST", "/v1/leases", {"ttl_seconds": 5, "id": 7})).startswith("lease-exists: ")


async def test_granting_a_lease_with_an_idempotency_key_makes_one(node):
    headers = {"Idempotency-Key": "g"}
    first = await node.ask("POST", "/v1/leases", {"ttl_seconds": 9}, headers)
    assert await node.ask("POST", "/v1/leases", {"ttl_seconds": 9}, headers) == first
    assert len((await node.ask("GET", "/v1/leases"))[1]["leases"]) == 1


async def test_a_lock_has_one_holder_and_its_token_grows(node):
    first, second = await lease(node), await lease(node)
    status, held = await node.ask("POST", "/v1/locks/a%2Fb", {"lease": first})
    assert (status, held["lease"], held["ttl_seconds"]) == (200, first, 60)
    assert await node.ask("GET", "/v1/locks/a%2Fb") == (200, {"held": True, "lease": first, "token": held["token"]})
    assert (await node.problem("POST", "/v1/locks/a%2Fb", {"lease": second})).startswith("not-acquired: ")
    again = await node.ask("POST", "/v1/locks/a%2Fb", {"lease": first})
    assert again[1]["token"] == held["token"]
    assert (await node.problem("PUT", f"/v1/locks/a%2Fb?lease={second}")).startswith("not-held: ")
    assert (await node.ask("PUT", f"/v1/locks/a%2Fb?lease={first}"))[1]["token"] == held["token"]
    assert await node.ask("DELETE", f"/v1/locks/a%2Fb?lease={first}") == (200, {"released": True})
    assert await node.ask("DELETE", f"/v1/locks/a%2Fb?lease={first}") == (200, {"released": False})
    assert await node.ask("GET", "/v1/locks/a%2Fb") == (200, {"held": False})
    assert (await node.ask("POST", "/v1/locks/a%2Fb", {"lease": second}))[1]["token"] > held["token"]


async def test_a_lock_is_waited_for_and_goes_to_who_came_first(node):
    leases = [await lease(node) for _ in range(3)]
    await node.ask("POST", "/v1/locks/l", {"lease": leases[0]})
    order: list[int] = []

    async def acquire(each: int) -> None:
        status, _document = await node.ask("POST", "/v1/locks/l", {"lease": each, "wait_seconds": 30})
        assert status == 200
        order.append(each)
        await node.ask("DELETE", f"/v1/locks/l?lease={each}")

    waiting = []
    for number, each in enumerate(leases[1:], start=2):
        waiting.append(asyncio.create_task(acquire(each)))
        await queue_has(node, number)
    await node.ask("DELETE", f"/v1/leases/{leases[0]}")
    await asyncio.gather(*waiting)
    assert order == leases[1:]


async def queue(node: Node) -> list[str]:
    document = {"then": [{"get": {"prefix": "raftkv/locks/", "keys_only": True}}]}
    return [item["key"] for item in (await node.ask("POST", "/v1/txn", document))[1]["results"][0]["get"]["items"]]


async def queue_has(node: Node, number: int) -> None:
    async with asyncio.timeout(SECONDS):
        while len(await queue(node)) != number:
            pass


async def test_who_gives_up_or_goes_away_leaves_nothing_in_the_queue(node):
    await node.ask("POST", "/v1/locks/l", {"lease": await lease(node)})
    found = await node.problem("POST", "/v1/locks/l", {"wait_seconds": 0.05})
    assert found.startswith("not-acquired: ")
    assert len(await queue(node)) == 1
    assert len(node.log.machine.leases()) == 1
    waiting = asyncio.create_task(node.ask("POST", "/v1/locks/l", {"wait_seconds": 30}))
    await queue_has(node, 2)
    waiting.cancel()
    await queue_has(node, 1)
    assert len(node.log.machine.leases()) == 1


async def test_a_fence_refuses_who_lost_the_lock(node):
    first, second = await lease(node), await lease(node)
    token = (await node.ask("POST", "/v1/locks/deploy%3A1", {"lease": first}))[1]["token"]
    fence = {"X-Raftkv-Fence": f"deploy%3A1:{token}"}
    assert (await node.ask("PUT", "/v1/kv/a", b"1", fence))[0] == 201
    await node.ask("DELETE", f"/v1/leases/{first}")
    assert (await node.problem("PUT", "/v1/kv/a", b"2", fence)).startswith("fence-lost: ")
    newer = (await node.ask("POST", "/v1/locks/deploy%3A1", {"lease": second}))[1]["token"]
    assert (await node.problem("PUT", "/v1/kv/a", b"2", fence)).startswith("fence-lost: ")
    assert (await node.problem("DELETE", "/v1/kv/a", None, fence)).startswith("fence-lost: ")
    assert (await node.ask("PUT", "/v1/kv/a", b"3", {"X-Raftkv-Fence": f"deploy%3A1:{newer}"}))[0] == 200


@pytest.mark.parametrize("kind", ["locks", "elections"])
async def test_what_is_wrong_with_a_queue_is_named(node, kind):
    path = f"/v1/{kind}/n"
    assert (await node.problem("POST", path, {"wait_seconds": 601})).startswith("invalid-json: wait_seconds must be")
    assert (await node.problem("POST", path, {"wait_seconds": -1})).startswith("invalid-json: wait_seconds must be")
    assert (await node.problem("POST", path, {"lease": 12345})).startswith("lease-not-found: ")
    assert (await node.problem("POST", f"/v1/{kind}/", {})).startswith("invalid-key: a name has 1 to 1024 bytes")
    assert (await node.problem("DELETE", path)).startswith("invalid-query: lease must be given")
    assert (await node.problem("PUT", path)).startswith("invalid-query: lease must be given")
    assert (await node.problem("DELETE", f"{path}?lease=1&revoke=yes")).startswith("invalid-query: revoke must be")


async def test_only_the_leader_lets_anybody_enter(node):
    node.log.refusal = NotLeader(NodeId("n2"), "http://127.0.0.1:9")
    status, document = await node.ask("POST", "/v1/locks/l", {"wait_seconds": 5})
    assert (status, document["type"]) == (307, "urn:raftkv:problem:not-leader")


async def test_an_election(node):
    first, second = await lease(node), await lease(node)
    assert (await node.problem("GET", "/v1/elections/e")).startswith("not-elected: ")
    status, place = await node.ask("POST", "/v1/elections/e", {"value": "n1", "lease": first})
    assert status == 200
    leader = (await node.ask("GET", "/v1/elections/e"))[1]
    assert leader == {"value": "n1", "lease": first, "token": place["token"], "revision": place["token"]}
    waiting = asyncio.create_task(
        node.ask("POST", "/v1/elections/e", {"value": "n2", "lease": second, "wait_seconds": 30})
    )
    async with node.session.get(node.url + "/v1/elections/e?observe=true") as answer:
        events = Events(answer)
        assert (await events.next())[1]["value"] == "n1"
        assert (await node.ask("PUT", f"/v1/elections/e?lease={first}", {"value": "n1 again"}))[0] == 200
        assert (await events.next())[1]["value"] == "n1 again"
        assert (await node.problem("PUT", f"/v1/elections/e?lease={second}", {"value": "x"})).startswith("not-held: ")
        assert await node.ask("DELETE", f"/v1/elections/e?lease={first}&revoke=true") == (200, {"resigned": True})
        status, place = await waiting
        assert (status, place["lease"]) == (200, second)
        assert (await events.next())[1] | {"revision": 0} == {
            "value": "n2",
            "lease": second,
            "token": place["token"],
            "revision": 0,
        }
    assert (await node.problem("GET", f"/v1/leases/{first}")).startswith("lease-not-found: ")
