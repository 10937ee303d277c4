"""Alarms of the native API: every node lists them, the leader clears them."""

from __future__ import annotations

import pytest

from raftkv.errors import NotLeader
from raftkv.http import FrontEnd
from raftkv.operations import Alarm, AlarmKind
from raftkv.types import NodeId
from tests.http.http_fakes import FakeClusterService
from tests.http.http_raw import Raw
from tests.http.http_store import InstantLog, services_of

NO_SPACE = {"kind": "NOSPACE", "member": "n1", "automatic": True}
CORRUPT = {"kind": "CORRUPT", "member": "n3", "automatic": False}


@pytest.fixture
async def log():
    log = InstantLog()
    await log.alarms.set(Alarm(AlarmKind.NO_SPACE, "n1", is_automatic=True), is_active=True)
    await log.alarms.set(Alarm(AlarmKind.CORRUPT, "n3"), is_active=True)
    return log


@pytest.fixture
async def client(log):
    front_end = FrontEnd(services_of(log.kv, FakeClusterService(), log))
    async with Raw(await front_end.start("127.0.0.1", 0)) as raw:
        yield raw
    await front_end.stop(1)


async def test_alarms_are_cleared_by_kind_and_member(client):
    assert (await client.ask("GET", "/v1/alarms")).json() == {"alarms": [NO_SPACE, CORRUPT]}
    assert (await client.ask("DELETE", "/v1/alarms?kind=CORRUPT&member=n1")).json() == {"cleared": []}
    assert (await client.ask("DELETE", "/v1/alarms?kind=CORRUPT")).json() == {"cleared": [CORRUPT]}
    assert (await client.ask("GET", "/v1/alarms")).json() == {"alarms": [NO_SPACE]}
    assert (await client.ask("DELETE", "/v1/alarms")).json() == {"cleared": [NO_SPACE]}
    assert (await client.ask("DELETE", "/v1/alarms")).json() == {"cleared": []}
    assert (await client.ask("DELETE", "/v1/alarms?kind=nospace")).problem() == "invalid-query"


async def test_a_follower_lists_alarms_and_redirects_who_clears_them(client, log):
    log.refusal = NotLeader(NodeId("n2"), "http://n2:2379")
    assert (await client.ask("GET", "/v1/alarms")).json() == {"alarms": [NO_SPACE, CORRUPT]}
    redirect = await client.ask("DELETE", "/v1/alarms?member=nobody")
    assert redirect.status == 307
    assert redirect.headers["location"] == "http://n2:2379/v1/alarms?member=nobody"
