"""Backups through both APIs."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest

from raftkv.consensus.snapshot import SnapshotManifest
from raftkv.runtime.backups import MAGIC
from raftkv.types import Consistency
from tests.etcd.test_gateway import until
from tests.http.native import Node


@pytest.fixture
async def node():
    async with Node() as running:
        yield running


def check(backup: bytes, revision: int) -> None:
    assert backup.startswith(MAGIC)
    head, _, data = backup[len(MAGIC) :].partition(b"\n")
    manifest = SnapshotManifest.decode(head, "the backup")
    assert (manifest.revision, manifest.size) == (revision, len(data))
    assert hashlib.sha256(data).hexdigest() == manifest.sha256


async def test_a_backup_is_one_file_that_checks_itself(node):
    revision = await node.put("a", "x" * 300_000)
    for query in ("", "?consistency=stale"):
        async with node.session.get(node.url + "/v1/snapshot" + query) as answer:
            assert answer.status == 200
            assert answer.headers["X-Raftkv-Revision"] == str(revision)
            backup = await answer.read()
            assert len(backup) == int(answer.headers["Content-Length"])
        check(backup, revision)
    await until(lambda: node.log.copies.names() == [])


async def test_one_backup_is_taken_at_a_time(node):
    async with node.log.backups.take(Consistency.LINEARIZABLE):
        assert (await node.problem("GET", "/v1/snapshot")).startswith("overloaded: ")
    assert (await node.ask("GET", "/v1/snapshot"))[0] == 200
    assert (await node.problem("GET", "/v1/snapshot?consistency=x")).startswith("invalid-query: ")


async def test_a_copy_that_cannot_be_made_is_a_refusal(node, monkeypatch):
    def full(_path: str, _pace: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(node.log.machine, "copy_to", full)
    assert (await node.problem("GET", "/v1/snapshot")).startswith("backup-failed: making a copy of the store failed")


async def test_the_gateway_streams_blobs_and_their_digest(node):
    revision = await node.put("a", "x" * 600_000)
    blobs, remaining = [], []
    async with node.session.post(node.url + "/v3/maintenance/snapshot", data=b"{}") as answer:
        while line := await answer.content.readuntil(b"\n"):
            result = json.loads(line)["result"]
            blobs.append(base64.b64decode(result["blob"]))
            remaining.append(int(result.get("remaining_bytes", 0)))
    backup = b"".join(blobs[:-1])
    check(backup, revision)
    assert blobs[-1] == hashlib.sha256(backup).digest()
    assert remaining == sorted(remaining, reverse=True)
    assert remaining[-2:] == [0, 0]
