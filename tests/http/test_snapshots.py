"""Snapshots that a node is asked to take of itself."""

from __future__ import annotations

import pytest

from raftkv.errors import BackupFailed
from tests.http.native import Node


@pytest.fixture
async def node():
    async with Node() as running:
        yield running


async def test_a_node_says_what_it_has_taken(node):
    revision = await node.put("a", "1")
    status, document = await node.ask("POST", "/v1/snapshot")
    assert status == 200
    assert document["revision"] == revision
    assert document["index"] == node.log.machine.applied_index
    assert (document["term"], document["members"], document["bytes"], document["sha256"]) == (1, ["n1"], 7, "ab" * 32)
    assert {"cluster_id", "answered_by"} <= document.keys()


async def test_what_cannot_be_taken_is_a_refusal(node):
    node.log.refusal = BackupFailed("taking a snapshot failed: no room")
    assert (await node.problem("POST", "/v1/snapshot")) == "backup-failed: taking a snapshot failed: no room"


async def test_it_takes_neither_a_body_nor_parameters(node):
    assert (await node.problem("POST", "/v1/snapshot", {})).startswith("unexpected-body: ")
    assert (await node.problem("POST", "/v1/snapshot?x=1")).startswith("invalid-query: ")
    assert node.log.snapshots_taken == 0
