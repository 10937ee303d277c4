"""Members of two releases under load: upgraded and downgraded one by one, as docs/upgrade.md says."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import msgpack
import pytest

from raftkv import __version__
from raftkv.client import Client, Found
from raftkv.consensus.frames import FRAME_HEADER_BYTES, read_frames
from raftkv.consensus.records import HEADER_BYTES
from raftkv.runtime.backups import MAGIC
from tests.process.cluster import NodeProcess, ProcessCluster, free_ports
from tests.process.later_release import (
    LATER_FORMATS,
    LATER_VERSION,
    STAMP,
    STAMPED,
    THESE_FORMATS,
    THIS_VERSION,
    LaterRelease,
    WrittenFormats,
)
from tests.process.test_kills import Writer

WRITERS = 4
SECONDS = 20.0

pytestmark = pytest.mark.process

# Small enough that snapshots are taken, and sent to members that were away, between the restarts.
FLAGS = ("--snapshot-journal-bytes=200000",)
HELD = f"--max-cluster-version={THIS_VERSION}"


@contextmanager
def writers_at(cluster: ProcessCluster) -> Iterator[list[Writer]]:
    """Let writers write until the end, which fails if one of them saw something wrong."""
    writers = [Writer(number, number) for number in range(WRITERS)]
    stop = threading.Event()
    failures: list[BaseException] = []

    async def write() -> None:
        ended = asyncio.Event()
        async with Client(cluster.endpoints.split(","), timeout_seconds=20) as client, asyncio.TaskGroup() as tasks:
            for writer in writers:
                tasks.create_task(writer.run(client, ended))
            await asyncio.to_thread(stop.wait)
            ended.set()

    def run() -> None:
        try:
            asyncio.run(write())
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield writers
    finally:
        stop.set()
        thread.join(60)
    if failures:
        raise failures[0]


def until(what: str, condition) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {SECONDS} s: {what}"
        time.sleep(0.05)


def restart(node: NodeProcess, release: LaterRelease | None, *flags: str) -> None:
    """Stop a node in good order and start it with a release, this one for None."""
    assert node.terminate() == 0, node.log()
    node.start(*flags, environment=None if release is None else release.environment)
    node.wait_ready()


def described(node: NodeProcess) -> dict:
    status, document = node.ask("/v1/cluster")
    assert status == 200
    return document


def metric(node: NodeProcess, name: str) -> float:
    _status, text = node.ask("/metrics")
    return next(float(line.split()[1]) for line in text.decode().splitlines() if line.startswith(f"raftkv_{name} "))


def highest_versions(node: NodeProcess) -> list[str | None]:
    return [(member["status"] or {}).get("highest_cluster_version") for member in described(node)["members"]]


def formats_of(node: NodeProcess) -> WrittenFormats | None:
    """Return what formats a node writes now; None when a segment of its journal is just being made."""
    newest = max((node.data_dir / "journal").glob("*.log")).read_bytes()
    frame = next(read_frames(newest), None)
    if frame is None:
        return None
    header = msgpack.unpackb(newest[FRAME_HEADER_BYTES + HEADER_BYTES : frame.body_end])
    status, backup = node.ask("/v1/snapshot")
    assert status == 200
    first, manifest, _rest = backup.split(b"\n", 2)
    fields = json.loads(manifest)["manifest"]
    return WrittenFormats(header[1], fields["store_format"], fields["format"], int(first.removeprefix(MAGIC)))


def assert_writes_these_formats(cluster: ProcessCluster) -> None:
    for node in cluster.nodes:
        until(f"{node.name} writes what this release reads", lambda node=node: formats_of(node) == THESE_FORMATS)


def segments_of(node: NodeProcess) -> int:
    return int(max((node.data_dir / "journal").glob("*.log")).stem)


def put_stamped(node: NodeProcess, name: str, value: bytes) -> tuple[int, dict]:
    return node.ask(f"/v1/kv/{quote(STAMPED.decode() + name, safe='')}", method="PUT", body=value)


def let_lead(cluster: ProcessCluster, node: NodeProcess) -> None:
    def leads() -> bool:
        leader = cluster.leader()
        if leader is not node:
            leader.ask("/v1/cluster/leader", method="POST", body=json.dumps({"to": node.name}).encode())
        return cluster.leader() is node

    until(f"{node.name} leads", leads)


def assert_refused_for_its_version(cluster: ProcessCluster, node: NodeProcess) -> None:
    let_lead(cluster, node)
    status, problem = put_stamped(node, "early", b"x")
    assert (status, problem["type"], problem["applied"]) == (409, "urn:raftkv:problem:cluster-version-too-low", "no")
    assert f"needs cluster version {LATER_VERSION}" in problem["detail"]
    assert f"at version {THIS_VERSION}" in problem["detail"]


async def check_everything(cluster: ProcessCluster, writers: list[Writer]) -> None:
    """Check that no node misses an acknowledged write, and that all have the same history."""
    revision = 0
    for node in cluster.nodes:
        async with Client([node.url], timeout_seconds=20) as client:
            for writer in writers:
                stored = {item.key: item.value async for item in client.list(writer.prefix)}
                missing = [key for key, value in writer.acknowledged.items() if stored.get(key) != value]
                assert not missing, f"{len(missing)} acknowledged writes are missing at {node.name}: {missing[:5]}"
                assert not writer.refused & stored.keys(), "a refused write was applied"
            found = await client.get(STAMPED + b"late")
            assert isinstance(found, Found)
            assert found.item.value == STAMP + b"x"
            assert not isinstance(await client.get(STAMPED + b"early"), Found)
            revision = revision or found.revision
    body = json.dumps({"revision": str(revision)}).encode()
    answers = {node.name: node.ask("/v3/maintenance/hashkv", method="POST", body=body) for node in cluster.nodes}
    assert {status for status, _document in answers.values()} == {200}, answers
    assert len({document["hash"] for _status, document in answers.values()}) == 1, answers
    assert min(len(writer.acknowledged) for writer in writers) > 20


def test_a_rolling_upgrade_under_load_forward_and_back(tmp_path):
    later = LaterRelease(tmp_path / "later")
    with ProcessCluster(tmp_path, 3, *FLAGS) as cluster:
        n1, n2, n3 = cluster.nodes
        with writers_at(cluster) as writers:
            # One member of the later release: it may lead, and refuses what the others do not know.
            restart(n1, later)
            assert_refused_for_its_version(cluster, n1)
            until("this release ignores messages of the later one", lambda: metric(n2, "peer_messages_unknown_total"))
            assert metric(n2, "peer_messages_malformed_total") == 0
            # And back: nothing was written that this release cannot read.
            restart(n1, None)
            # All of the later release, and held back.
            for node in cluster.nodes:
                restart(node, later, HELD)
            until("all announce it", lambda: highest_versions(n2) == [str(LATER_VERSION)] * 3)
            assert_refused_for_its_version(cluster, n2)
            began = {node.name: segments_of(node) for node in cluster.nodes}
            until(
                "the later release begins segments of the journal",
                lambda: all(segments_of(node) > began[node.name] for node in cluster.nodes),
            )
            assert_writes_these_formats(cluster)
            # The downgrade is still possible, of all members: this release reads everything that was written.
            for node in cluster.nodes:
                restart(node, None)
            assert_writes_these_formats(cluster)
            for node in cluster.nodes:
                assert described(node)["cluster_version"] == str(THIS_VERSION)
                restart(node, later)
            # No member holds it back any more.
            until(
                "the version rises at every node",
                lambda: {described(node)["cluster_version"] for node in cluster.nodes} == {str(LATER_VERSION)},
            )
            assert put_stamped(cluster.leader(), "late", b"x")[0] == 201
            for node in cluster.nodes:
                until(f"{node.name} writes the later formats", lambda node=node: formats_of(node) == LATER_FORMATS)
            assert_too_old(cluster, n3)
            n3.start(environment=later.environment)
            n3.wait_ready()
            assert_cannot_join(tmp_path, cluster)
        asyncio.run(check_everything(cluster, writers))


def assert_too_old(cluster: ProcessCluster, node: NodeProcess) -> None:
    """Check that this release refuses to start over the data of the later one, and leaves it as it is."""
    assert node.terminate() == 0
    node.start()
    assert node.wait() == 1
    said = node.log().splitlines()[-1]
    # Of the snapshot or of the store, whichever it reads first.
    assert f"is newer than this release, raftkv {__version__}, which reads" in said
    assert f"raftkv {LATER_VERSION} or a later one reads it" in said


def assert_cannot_join(directory: Path, cluster: ProcessCluster) -> None:
    """Check that a new node of this release is refused, and that no member is added for it."""
    client, peer = free_ports(2)
    newcomer = NodeProcess("n4", directory, client, peer, None, f"--join={cluster.endpoints}")
    newcomer.start()
    assert newcomer.wait() == 1
    said = newcomer.log().splitlines()[-1]
    assert f"the cluster is at version {LATER_VERSION}, and n4 supports version {THIS_VERSION} only" in said
    assert len(described(cluster.nodes[0])["members"]) == 3


def test_the_version_is_shown_by_the_command(tmp_path):
    with ProcessCluster(tmp_path, 1) as cluster:
        command = [sys.executable, "-m", "raftkv", "cluster", "version", "--endpoints", cluster.endpoints]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[0] == f"cluster version {THIS_VERSION}"
