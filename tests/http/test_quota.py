"""A store at its quota: what would let it grow is refused, what frees it is not, and then everything goes on."""

from __future__ import annotations

import pytest

from raftkv.operations import Alarm, AlarmKind
from raftkv.service.alarms import Quota
from raftkv.store.commands import SetAlarm
from tests.http.http_store import QUOTA_BYTES
from tests.http.native import Node

VALUE = b"v" * 400_000


@pytest.fixture
async def node():
    async with Node() as running:
        yield running


def pass_time(node: Node) -> None:
    node.log.clock.time += 60
    node.log.duties.tick()


async def test_a_full_store_refuses_what_grows_until_it_is_freed(node):
    for number in range(QUOTA_BYTES // len(VALUE) + 1):
        assert (await node.ask("PUT", f"/v1/kv/{number}", VALUE))[0] == 201
    pass_time(node)
    for method, path, body in [
        ("PUT", "/v1/kv/new", b""),
        ("POST", "/v1/txn", {"then": [{"put": {"key": "a", "value": ""}}]}),
        ("POST", "/v1/leases", {"ttl_seconds": 5}),
    ]:
        status, document = await node.ask(method, path, body)
        assert (status, document["type"], document["applied"]) == (507, "urn:raftkv:problem:space-exceeded", "no")
    assert (await node.ask("GET", "/v1/kv/0"))[1] == VALUE
    assert (await node.ask("POST", "/v1/txn", {"then": [{"get": {"key": "a"}}]}))[0] == 200
    revision = 0
    for number in range(3):
        revision = (await node.ask("DELETE", f"/v1/kv/{number}"))[1]["revision"]
    assert (await node.ask("POST", "/v1/compaction", {"revision": revision}))[0] == 200
    while node.log.machine.purge():
        pass
    pass_time(node)
    assert (await node.ask("PUT", "/v1/kv/new", b"x"))[0] == 201


def test_the_quota_raises_its_alarm_once_and_clears_no_other():
    quota = Quota(1000, "n1")
    raised = SetAlarm(Alarm(AlarmKind.NO_SPACE, "n1", is_automatic=True), is_active=True)
    assert quota.due(1000, []) == []
    assert quota.due(1001, []) == [raised]
    assert quota.due(1001, [raised.alarm]) == []
    assert quota.due(950, [raised.alarm]) == [], "not so near that it would come back with the next write"
    (cleared,) = quota.due(899, [raised.alarm])
    assert (cleared.alarm, cleared.is_active) == (raised.alarm, False)
    assert quota.due(0, [Alarm(AlarmKind.NO_SPACE, "n2")]) == [], "somebody raised it on purpose"
    assert Quota(0, "n1").due(10**12, []) == []
