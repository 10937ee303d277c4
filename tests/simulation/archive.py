"""Backups of a simulated cluster: each is checked as a read of everything, and the last makes a new cluster."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raftkv.consensus.snapshot import SnapshotCatalog, SnapshotManifest
from raftkv.errors import BackupFailed, CorruptData, NotApplied, UnknownOutcome
from raftkv.membership import initial_member_id, initial_membership
from raftkv.operations import EventKind, KeySpan, RangeQuery, RangeResult
from raftkv.runtime.backup_files import BackupReader, put_journal, restored_cluster_id
from raftkv.runtime.identity import Identity, store_identity
from raftkv.runtime.manifests import manifest_of_copy
from raftkv.store.copies import copy_store
from raftkv.store.machine import Machine
from raftkv.store.memory_backend import MemoryBackend
from raftkv.store.rewriting import NewOwner, rewrite
from raftkv.types import ClusterId, Consistency, Member, Revision
from raftkv.verification.history import Kind, Operation, Outcome
from tests.simulation.disk import VirtualDisk
from tests.simulation.versions import NEWER
from tests.simulation.workload import KEYS

if TYPE_CHECKING:
    from tests.simulation.node import SimulatedNode
    from tests.simulation.world import World

_COPY_NAME = "received"
EVERYTHING = KeySpan(b"", None)


@dataclass(frozen=True)
class Restoration:
    """What a cluster is restored from.

    Attributes:
        manifest: What the backup says of itself.
        copy: Its data.
        revision: The revision to go back to.
        expected: Every key and value that the restored cluster must have.
        positions: Where watches of the first cluster would go on; each must end with an error.
        tokens: Idempotency keys of writes of the first cluster, which are sent again.
    """

    manifest: SnapshotManifest
    copy: bytes
    revision: Revision
    expected: dict[bytes, bytes]
    positions: tuple[int, ...] = ()
    tokens: tuple[bytes, ...] = ()

    def cluster_id(self, members: tuple[Member, ...]) -> ClusterId:
        """Return the id of the cluster that some members make of it."""
        return restored_cluster_id(self.manifest, members, self.revision)

    def restore(self, disk: VirtualDisk, member: Member, members: tuple[Member, ...], storage_id: str) -> None:
        """Make an empty disk that of a member, in the steps of ``raftkv.runtime.backup_files.restore_backup``."""
        cluster_id = self.cluster_id(members)
        backend = opened(disk, self.copy)
        rewrite(backend, NewOwner(cluster_id, initial_membership(cluster_id, members)), self.revision)
        catalog = SnapshotCatalog(disk.root.child("snapshots"), cluster_id)
        catalog.adopt_copy(manifest_of_copy(copy_store(backend, catalog.copy_path)))
        disk.root.remove(_COPY_NAME)
        put_journal(disk.root, self.manifest, cluster_id)
        member_id = initial_member_id(cluster_id, member.name)
        store_identity(disk.root, Identity(cluster_id, member.name, member_id, storage_id, members))


def values_of(machine: Machine) -> dict[bytes, bytes]:
    """Return every key and value of a store."""
    found = machine.range(RangeQuery(EVERYTHING))
    assert isinstance(found, RangeResult)
    return {item.key: item.value for item in found.items}


class Archive:
    """Takes backups, and checks them.

    Args:
        world: The cluster.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._tasks: set[asyncio.Task[None]] = set()
        self.last: Restoration | None = None

    def begin(self, rng: random.Random) -> None:
        """Take a backup from some node. It does not end if the node dies, and nobody waits for it."""
        up = [node for node in self._world.present() if node.is_up]
        own_rng = random.Random(rng.getrandbits(64))
        if up:
            node = own_rng.choice(up)
            node.enter(self._start, node, own_rng)

    def _start(self, node: SimulatedNode, rng: random.Random) -> None:
        task = self._world.loop.create_task(self._take(node, rng))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(self, node: SimulatedNode, rng: random.Random) -> None:
        started = self._world.loop.time()
        try:
            async with node.backups.take(Consistency.LINEARIZABLE) as backup:
                data = b"".join([piece async for piece in backup.pieces()])
        except (NotApplied, UnknownOutcome, BackupFailed) as error:
            self._world.log(f"a backup of {node.name} failed: {type(error).__name__}")
            return
        self._world.log(f"a backup of {node.name} at revision {backup.revision}")
        reader = BackupReader(f"a backup of {node.name}")
        try:
            copy = reader.feed(data)
            manifest = reader.finish()
        except CorruptData as error:
            self._world.violate(str(error))
            return
        self._check(node, manifest, copy, started)
        self._world.counts["backups"] += 1
        compacted = Machine(opened(VirtualDisk(), copy), manifest.cluster_id, NEWER).compacted_revision
        revision = Revision(rng.randint(max(1, compacted), manifest.revision))
        self.last = Restoration(manifest, copy, revision, self.values_at(revision))

    def _check(self, node: SimulatedNode, manifest: SnapshotManifest, copy: bytes, started: float) -> None:
        """A backup is a read of every key, so it has everything that was acknowledged before it was asked for."""
        values = values_of(Machine(opened(VirtualDisk(), copy), manifest.cluster_id, NEWER))
        if values != self.values_at(manifest.revision):
            self._world.violate(f"a backup of {node.name} has other values than revision {manifest.revision}")
        ended = self._world.loop.time()
        for key in KEYS:
            read = Operation(
                "backup",
                key,
                Kind.GET,
                values.get(key),
                started,
                ended,
                Outcome.DONE,
                revision=manifest.revision,
            )
            self._world.workload.history.append(read)

    def values_at(self, revision: int) -> dict[bytes, bytes]:
        """Return what every key was at a revision, by the changes that nodes told of."""
        values: dict[bytes, bytes] = {}
        for number, events in sorted(self._world.changes.items()):
            if number > revision:
                break
            for event in events:
                if event.kind is EventKind.PUT:
                    values[event.item.key] = event.item.value
                else:
                    values.pop(event.item.key, None)
        return values


def opened(disk: VirtualDisk, copy: bytes) -> MemoryBackend:
    """Return a store that is the copy in a backup.

    Args:
        disk: A disk for the copy.
        copy: The data of the backup.
    """
    file = disk.root.create(_COPY_NAME)
    file.append(copy)
    backend = MemoryBackend(disk.root)
    backend.replace_by(backend.stage(f"{disk.root.path}/{_COPY_NAME}"))
    return backend
