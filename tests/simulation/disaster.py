"""The loss of a majority for good: one surviving member is recovered into a new cluster, and killed on the way.

The code of ``raftkv recover --force-new-cluster`` runs as it is, on real files in a temporary directory that the files
of the survivor's virtual disk are copied to; only the stores are the memory twin of LMDB. The new cluster is another
simulated one: the survivor with the recovered directory, the others restored from the backup that recovery made. One
member comes back with its old directory first, and must be refused.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from raftkv.cli import recover as recover_command
from raftkv.errors import RaftkvError
from raftkv.operations import RangeQuery, RangeResult
from raftkv.runtime import backup_files, disaster
from raftkv.runtime.backup_files import BackupReader
from raftkv.runtime.files import RealDirectory
from raftkv.runtime.identity import Identity
from raftkv.runtime.recovery import Storage, recover_storage
from raftkv.store.copies import StoreCopy, copy_store
from raftkv.store.machine import Machine
from raftkv.store.memory_backend import MemoryBackend
from raftkv.store.rewriting import NewOwner, rewrite
from raftkv.types import Member, NodeId, Revision
from tests.simulation.archive import EVERYTHING, Restoration, opened, values_of
from tests.simulation.disk import SimulatedCrash, VirtualDisk
from tests.simulation.faults import OF_DISKS_LOST, STATE_FLIP
from tests.simulation.versions import NEWER

if TYPE_CHECKING:
    from tests.simulation.node import SimulatedNode
    from tests.simulation.world import World

_FILES = ("", "journal", "snapshots")
_CALLS = ("open", "write", "fsync", "fdatasync", "ftruncate", "rename", "replace", "unlink", "rmdir", "mkdir")
_COPYING_CALLS = ("chmod", "utime", "sendfile")
_MOST_OPERATIONS = 160
_LEAST_NODES = 3
_SPOILING = OF_DISKS_LOST | {STATE_FLIP}

Files = Mapping[str, Mapping[str, bytes]]
"""The contents of a data directory: names and data of the files in each directory below it."""


@dataclass(frozen=True)
class Recovery(Restoration):
    """What a cluster is begun from after a majority was lost.

    Attributes:
        survivor: The member that was recovered.
        files: Its new data directory.
        old: A member of the old cluster that comes back, and its disk.
    """

    survivor: NodeId | None = None
    files: Files | None = None
    old: tuple[NodeId, VirtualDisk] | None = None

    def restore(self, disk: VirtualDisk, member: Member, members: tuple[Member, ...], storage_id: str) -> None:
        """Give the survivor its new directory, and restore another member from the backup."""
        if member.name != self.survivor:
            super().restore(disk, member, members, storage_id)
            return
        assert self.files is not None
        for below, files in self.files.items():
            directory = disk.root.child(below) if below else disk.root
            for name, data in files.items():
                directory.replace(name, data)


class Disaster:
    """Takes a majority away, and recovers what is left.

    Args:
        world: The cluster.
        rng: Where chance comes from.

    Attributes:
        seconds: When that happens.
    """

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self._rng = rng
        self.seconds = rng.uniform(0.2, 1.0) * world.plan.seconds

    @classmethod
    def of(cls, world: World) -> Disaster | None:
        """Return the disaster that the faults of a run end in, None when they do not."""
        rng = random.Random(f"disaster of {world.plan.seed}")
        # A survivor whose disk was put back or whose state was damaged may not have what it had a part in.
        is_due = "disaster" in world.plan.faults and not _SPOILING & {*world.faults.enabled}
        is_due = is_due and rng.random() < world.plan.disasters
        return cls(world, rng) if is_due and world.plan.nodes >= _LEAST_NODES else None

    def strike(self) -> Recovery | None:
        """End all nodes, and recover the member of the highest revision among the survivors of a minority.

        Returns:
            What the new cluster begins with; None when no member that it may consist of has survived.
        """
        world = self._world
        for node in world.nodes.values():
            if node.is_up:
                world.faults.kill(node)
            node._mend()
            world.faults.mend_disk(node)
        names = [member.name for member in world.initial_members]
        self._rng.shuffle(names)
        lost = len(names) // 2 + 1
        survivors = [node for name in names[lost:] if _has_data(node := world.nodes[name])]
        world.log(f"a majority is lost for good: {', '.join(names[:lost])}")
        if not survivors:
            return None
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as directory:
            try:
                return self._recover(survivors, names[:lost], Path(directory))
            except RaftkvError as error:
                world.violate(f"the recovery failed: {type(error).__name__}: {error}")
                return None

    def _recover(self, survivors: list[SimulatedNode], lost: list[NodeId], place: Path) -> Recovery:
        world = self._world
        tool = RecoveryTool(world.initial_members, self._rng)
        revisions = {
            node.name: tool.revision_of(_written(node.disk, place / f"{node.name}.looked-at")) for node in survivors
        }
        node = max(survivors, key=lambda node: revisions[node.name])
        data_dir = _written(node.disk, place / "data")
        before = read_files(data_dir)
        committed = tool.committed_of(data_dir, world.committed_terms())
        crash_at = self._rng.randrange(_MOST_OPERATIONS)
        # Each run of the command names the old directory after the time.
        asides = [place / "data.first", place / "data.second"]
        if not tool.recover(data_dir, asides[0], crash_at):
            world.counts["recoveries that were killed"] += 1
            tool.recover(data_dir, asides[1], None)
        world.counts["recoveries"] += 1
        # A command that was killed at its very end is done; the next one recovers the new cluster once more.
        if before not in [read_files(aside) for aside in asides if aside.exists()]:
            world.violate(f"the recovery of {node.name} has changed the old directory")
        backups = [file for aside in asides if (file := aside.with_suffix(".snapshot")).exists()]
        reader = BackupReader("the backup")
        copy = reader.feed(backups[-1].read_bytes())
        manifest = reader.finish()
        recovered = Machine(opened(VirtualDisk(), copy), manifest.cluster_id, NEWER)
        world.log(f"{node.name} is recovered at revision {manifest.revision}, killed at {crash_at}")
        self._check(node, recovered, committed)
        returning = [name for name in lost if _has_data(world.nodes[name])]
        old = (name := self._rng.choice(returning), world.nodes[name].disk) if returning else None
        files = read_files(data_dir)
        return Recovery(
            manifest, copy, manifest.revision, values_of(recovered), survivor=node.name, files=files, old=old
        )

    def _check(self, node: SimulatedNode, recovered: Machine, committed: int) -> None:
        """Check that everything is there that was committed with the member's part in it."""
        world = self._world
        revision = world.revision_at(committed)
        found = recovered.range(RangeQuery(EVERYTHING))
        assert isinstance(found, RangeResult)
        items = {item.key: item for item in found.items}
        if recovered.revision < revision:
            world.violate(f"{node.name} is recovered at revision {recovered.revision}, and had {revision}")
        for key, value in world.archive.values_at(revision).items():
            item = items.get(key)
            # What the member does not know to be committed is taken over, too, and may have changed more.
            if item is None and recovered.revision == revision:
                world.violate(f"{node.name} is recovered without {key!r}")
            elif item is not None and item.mod_revision <= revision and item.value != value:
                world.violate(f"{node.name} is recovered with {key!r} as {item.value!r} instead of {value!r}")


def _has_data(node: SimulatedNode) -> bool:
    return node.was_started and not node.is_lost and not node.is_retired and "identity.json" in node.disk.root.names()


class RecoveryTool:
    """``raftkv recover --force-new-cluster`` without its questions.

    Args:
        members: The members of the new cluster.
        rng: Where storage ids come from.
    """

    def __init__(self, members: tuple[Member, ...], rng: random.Random) -> None:
        self._members = members
        self._rng = rng
        self._storages: list[Storage] = []

    def revision_of(self, data_dir: Path) -> Revision:
        """Return the revision that a member would be recovered with."""
        with self._running(None), disaster.open_survivor(data_dir) as survivor:
            return survivor.write_backup(data_dir.with_suffix(".snapshot")).revision

    def committed_of(self, data_dir: Path, terms: Mapping[int, int]) -> int:
        """Return the last of some committed entries, given by index and term, that a member has."""
        with self._running(None), disaster.open_survivor(data_dir) as survivor:
            journal = survivor._storage.journal
            has = (
                index for index, term in terms.items() if index <= journal.base_index or journal.term_at(index) == term
            )
            return max(has, default=0)

    def recover(self, data_dir: Path, aside: Path, crash_at: int | None) -> bool:
        """Recover a member; return whether it was done before the file operation at which the process is killed."""
        with self._running(crash_at), redirect_stdout(io.StringIO()):
            try:
                if not disaster.finish_interrupted(data_dir, aside):
                    with disaster.open_survivor(data_dir) as survivor:
                        recover_command.recover_into(survivor, data_dir, aside, self._members)
            except SimulatedCrash:
                return False
        return True

    @contextmanager
    def _running(self, crash_at: int | None) -> Iterator[None]:
        operations = 0

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def run(*arguments: Any, **options: Any) -> Any:
                nonlocal operations
                operations += 1
                if crash_at is not None and operations > crash_at:
                    # And so does every later one: a dead process cleans nothing up.
                    raise SimulatedCrash
                return call(*arguments, **options)

            return run

        changes: list[Any] = [mock.patch.object(os, name, counted(getattr(os, name))) for name in _CALLS]
        changes += [
            mock.patch.object(os, name, counted(getattr(os, name))) for name in _COPYING_CALLS if hasattr(os, name)
        ]
        changes += [
            mock.patch.object(disaster, "exchange", counted(disaster.exchange)),
            mock.patch.object(disaster, "_open", self._open),
            mock.patch.object(backup_files, "rewrite_copy", _rewrite_copy),
            mock.patch.object(backup_files, "SUPPORTED_VERSIONS", NEWER),
            mock.patch.object(recover_command, "RealRandomness", return_value=self),
        ]
        for change in changes:
            change.start()
        try:
            yield
        finally:
            for change in reversed(changes):
                change.stop()
            for storage in self._storages:
                with suppress(OSError):
                    storage.segments.close()
            self._storages.clear()

    def _open(self, data_dir: Path, identity: Identity) -> Storage:
        files = RealDirectory(data_dir.parent)
        storage = recover_storage(
            RealDirectory(data_dir),
            identity.name,
            identity.members,
            self,
            lambda cluster_id: Machine(MemoryBackend(files), cluster_id, NEWER),
        )
        self._storages.append(storage)
        return storage

    def random(self) -> float:
        """Return a random number from 0 to 1."""
        return self._rng.random()

    def token(self) -> str:
        """Return a random storage id."""
        return f"{self._rng.getrandbits(64):016x}"


def _rewrite_copy(
    source: Path, target: str, workplace: Path, owner: NewOwner, revision: int | None, bump: int
) -> StoreCopy:
    """Do what ``raftkv.store.rewriting.rewrite_copy`` does, with a store in memory."""
    workplace.mkdir()
    source.replace(workplace / "data")
    backend = MemoryBackend(RealDirectory(workplace.parent))
    backend.replace_by(backend.stage(str(workplace / "data")))
    rewrite(backend, owner, revision, bump)
    copy = copy_store(backend, target)
    shutil.rmtree(workplace)
    return copy


def _written(disk: VirtualDisk, data_dir: Path) -> Path:
    """Write the files of a virtual disk that recovery reads into a real directory; return it."""
    for below in _FILES:
        files = disk.directories.get(f"disk/{below}" if below else "disk")
        place = data_dir / below
        place.mkdir()
        for name in () if files is None else files.names():
            (place / name).write_bytes(files.read(name))
    return data_dir


def read_files(data_dir: Path) -> dict[str, dict[str, bytes]]:
    """Return the files of a data directory, but for its lock."""
    return {
        below: {
            path.name: path.read_bytes()
            for path in sorted((data_dir / below).iterdir())
            if path.is_file() and path.name != "lock"
        }
        for below in _FILES
        if (data_dir / below).exists()
    }
