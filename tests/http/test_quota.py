"""A store at its quota: what would let it grow is refused, what frees it is not, and then everything goes on."""

from __future__ import annotations

from typing import Any

import pytest

from raftkv.operations import Alarm, AlarmKind
from raftkv.service.alarms import Quota
from raftkv.store.commands import SetAlarm
from tests.http.http_store import OUTCOME_SECONDS, QUOTA_BYTES
from tests.http.native import Node

VALUE = b"v" * 400_000


@pytest.fixture
async def node():
    async with Node() as running:
        yield running


def pass_time(node: Node) -> None:
    node.log.clock.time += 60
    node.log.duties.tick()


async def test_a_full_store_refuses_what_grows_until_it_is_freed(node, caplog):
    caplog.set_level("INFO", "raftkv")
    for number in range(QUOTA_BYTES // len(VALUE) + 1):
        assert (await node.ask("PUT", f"/v1/kv/{number}", VALUE))[0] == 201
    pass_time(node)
    assert [record.levelname for record in caplog.records if "NOSPACE" in record.getMessage()] == ["WARNING"]
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
    caplog.clear()
    pass_time(node)
    assert len([record for record in caplog.records if "NOSPACE" in record.getMessage()]) == 1, "its end is logged, too"
    assert (await node.ask("PUT", "/v1/kv/new", b"x"))[0] == 201


async def put_once(node: Node, number: int, value: bytes = b"v") -> tuple[int, Any]:
    return await node.ask("PUT", "/v1/kv/k", value, {"Idempotency-Key": f"{number:0200}"})


async def test_alarm_of_a_store_full_of_outcomes_ends_when_they_expire(node):
    # Results with a large value that was read take the room; the history is small.
    await node.ask("PUT", "/v1/kv/large", b"v" * 60_000)
    steps = [{"get": {"key": "large"}}, {"put": {"key": "k", "value": ""}}]
    number = 0
    while node.log.machine.used_bytes <= QUOTA_BYTES:
        headers = {"Idempotency-Key": f"{number}"}
        assert (await node.ask("POST", "/v1/txn", {"then": steps}, headers))[0] == 200
        number += 1
    node.log.clock.time += 2
    node.log.duties.tick()
    assert (await node.ask("PUT", "/v1/kv/other", b"x"))[0] == 507
    assert [alarm.kind for alarm in node.log.machine.alarms()] == [AlarmKind.NO_SPACE]
    node.log.clock.time += OUTCOME_SECONDS + 1
    for _ in range(3):
        node.log.clock.time += 2
        node.log.duties.tick()
    assert node.log.machine.alarms() == []
    assert (await node.ask("PUT", "/v1/kv/other", b"x"))[0] == 201


async def test_outcomes_expire_without_further_writes(node):
    for number in range(600):
        await put_once(node, number)
    assert node.log.machine.outcome_bytes > 600 * 400
    node.log.clock.time += OUTCOME_SECONDS + 1
    for _ in range(3):
        node.log.clock.time += 1
        node.log.duties.tick()
    assert node.log.machine.outcome_bytes == 0


async def test_outcomes_beyond_their_bound_refuse_new_keys_only(node, monkeypatch):
    monkeypatch.setattr(node.log.writes, "_max_bytes", 10_000)
    number = 0
    while (answer := await put_once(node, number))[0] != 429:
        number += 1
    assert answer[1]["type"] == "urn:raftkv:problem:outcomes-full"
    assert answer[1]["applied"] == "no"
    assert 10 < number < 25
    revision = node.log.machine.revision
    assert (await put_once(node, 0))[0] == 201, "it was applied before, and is answered as then"
    assert node.log.machine.revision == revision
    assert (await node.ask("PUT", "/v1/kv/other", b"x"))[0] == 201
    node.log.clock.time += OUTCOME_SECONDS + 1
    node.log.duties.tick()
    assert (await put_once(node, number))[0] in (200, 201)


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
