"""What today's writers produce of each format, from fixed contents."""

from __future__ import annotations

import hashlib
import json
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from raftkv.consensus.history import LogHistory
from raftkv.consensus.messages import encode
from raftkv.consensus.records import JOURNAL_FORMATS
from raftkv.consensus.snapshot import SNAPSHOT_FORMATS, SnapshotManifest
from raftkv.membership import AddMember, ConfirmRemovals, MemberId, RemoveMember, initial_membership
from raftkv.operations import (
    Alarm,
    AlarmKind,
    Compare,
    CompareTarget,
    DeleteOperation,
    Fence,
    KeySpan,
    PutOperation,
    RangeQuery,
    Relation,
    Transaction,
)
from raftkv.runtime.backups import BACKUP_FORMATS, head_of
from raftkv.runtime.framing import PROTOCOL_VERSION, Hello, Presence, Probe, Rejected, Welcome, encode_handshake
from raftkv.runtime.identity import IDENTITY_FORMATS, Identity, store_identity
from raftkv.runtime.manifests import manifest_of_copy
from raftkv.store import commands
from raftkv.store.backend import Backend, Space
from raftkv.store.bookkeeping import STORE_FORMATS
from raftkv.store.commands import (
    ChangeMembers,
    Command,
    Compact,
    Delete,
    ForgetOutcomes,
    GrantLease,
    Guarded,
    Once,
    Put,
    RevokeLease,
    SetAlarm,
    SetClusterVersion,
    Transact,
    encode_commands,
)
from raftkv.store.lmdb_backend import LmdbBackend
from raftkv.store.machine import CommittedEntry, Machine
from raftkv.store.memory_backend import MemoryBackend
from raftkv.types import ClusterId, Condition, Index, Member, NodeId, Revision, Term
from raftkv.versions import FIRST_VERSION
from tests.consensus.test_messages import EXAMPLES
from tests.consensus.test_segments import filled_disk
from tests.simulation.disk import VirtualDisk

FILES = Path(__file__).parent / "files"

CLUSTER = ClusterId("0123456789abcdef")
MEMBERS = (Member(NodeId("a"), "10.0.0.1:2380"), Member(NodeId("b"), "10.0.0.2:2380"))
LONG_KEY = b"long/" + bytes(range(256)) * 3
"""Longer than LMDB's keys."""

TRANSACTION = Transaction(
    (Compare(KeySpan.single(b"a"), CompareTarget.VERSION, Relation.GREATER, 0),),
    (PutOperation(b"t", b"1", 0, wants_previous=True), DeleteOperation(KeySpan.single(b"b"), wants_previous=True)),
    (RangeQuery(KeySpan.prefix(b"")),),
)

COMMANDS: dict[str, Command] = {
    "put": Put(b"a", b"1"),
    "put long key": Put(LONG_KEY, b"2"),
    "put another": Put(b"b", b"3", condition=Condition(Revision(0))),
    "transaction": Transact(TRANSACTION),
    "grant lease": GrantLease(7, 60),
    "grant another lease": GrantLease(8, 60),
    "put with lease": Put(b"leased", b"4", 7),
    "put with another lease": Put(b"lost", b"5", 8),
    "revoke lease": RevokeLease(8),
    "once": Guarded(Put(b"once", b"6"), None, Once(b"key", bytes(range(16)), 100, 300)),
    "fence": Guarded(Delete(b"none"), Fence(b"lock/", 3), None),
    "alarm": SetAlarm(Alarm(AlarmKind.NO_SPACE, "a", is_automatic=True), is_active=True),
    "delete": Delete(b"a", Condition(None)),
    "compact": Compact(Revision(3)),
    "add member": ChangeMembers(AddMember(MemberId(77), NodeId("c"), "10.0.0.3:2380")),
    "remove member": ChangeMembers(RemoveMember(MemberId(77))),
    "confirm removals": ChangeMembers(ConfirmRemovals()),
    "forget outcomes": ForgetOutcomes(200),
    "cluster version": SetClusterVersion(FIRST_VERSION),
}
"""A command of every kind, in an order in which each has an effect."""

TYPED_COMMANDS: dict[str, Command] = {
    "put with content type": Put(b"a", b"1", content_type="text/plain; charset=utf-8"),
    "put with content type and lease": Put(LONG_KEY, b"2", 7, content_type="a/b"),
    "transaction with content type": Transact(
        Transaction(
            (),
            (
                PutOperation(b"a", b"2", 0, wants_previous=True, content_type="application/json"),
                PutOperation(LONG_KEY, None, None),
                PutOperation(b"b", b"3"),
            ),
            (),
        )
    ),
    "once with content type": Guarded(
        Transact(Transaction((), (PutOperation(b"a", b"4", wants_previous=True), RangeQuery(KeySpan.prefix(b""))), ())),
        None,
        Once(b"typed", bytes(range(16)), 100, 300),
    ),
    "put replaces content type": Put(b"a", b"5", content_type="image/png"),
}
"""What has content types of values, or loses them, in the same order; behind a lease of the number 7."""

ALL_COMMANDS = COMMANDS | TYPED_COMMANDS

HANDSHAKES = {
    "hello": Hello(1, CLUSTER, "a", 5, "00ff", "b", "http://a", "10.0.0.1:2380", 1, 1, "0.1", "0.1", "0.1"),
    "welcome": Welcome("b", 6, "ff00", "http://b", 1, "0.1", "0.1", ""),
    "rejected": Rejected("cluster", "b belongs to another cluster"),
    "probe": Probe(CLUSTER),
    "presence": Presence("b", 6, "ff00"),
}


def machine_of(backend: Backend, applied: Iterable[Command] = tuple(COMMANDS.values())) -> Machine:
    """Return a store that has applied commands, each in an entry of its own."""
    machine = Machine(backend, CLUSTER)
    machine.bootstrap(initial_membership(CLUSTER, MEMBERS))
    for number, command in enumerate(applied, start=2):
        machine.apply([CommittedEntry(Index(number), Term(3), encode_commands([command]))])
    return machine


def typed_machine_of(backend: Backend) -> Machine:
    """Return a store with content types of values."""
    return machine_of(backend, (GrantLease(7, 60), *TYPED_COMMANDS.values()))


def dump_of(backend: Backend) -> dict[str, dict[str, str]]:
    """Return everything in a store, in hexadecimal."""
    with backend.read() as view:
        return {space.value: {key.hex(): record.hex() for key, record in view.view(space).scan(b"")} for space in Space}


def load_dump(dump: dict[str, dict[str, str]]) -> MemoryBackend:
    """Return a store that holds a dump."""
    backend = MemoryBackend(VirtualDisk().root)
    with backend.write() as transaction:
        for space in Space:
            tree = transaction.tree(space)
            for key, record in dump[space.value].items():
                tree.put(bytes.fromhex(key), bytes.fromhex(record))
    return backend


def snapshot(make: Callable[[Backend], Machine] = machine_of) -> tuple[SnapshotManifest, bytes]:
    """Return a snapshot of an LMDB store; its data may differ in bytes that LMDB leaves unused."""
    with tempfile.TemporaryDirectory() as place:
        store = Path(place) / "store"
        store.mkdir()
        machine = make(LmdbBackend(store, 1_048_576))
        manifest = manifest_of_copy(machine.copy_to(f"{place}/copy"))
        machine.close()
        return manifest, (Path(place) / "copy").read_bytes()


FIXED_MANIFEST = SnapshotManifest(
    SNAPSHOT_FORMATS.written_at(FIRST_VERSION),
    CLUSTER,
    Index(19),
    Term(3),
    Revision(9),
    (NodeId("a"), NodeId("b")),
    4,
    "ab" * 32,
    STORE_FORMATS.written_at(FIRST_VERSION),
    str(FIRST_VERSION),
    LogHistory(2**63 - 1, ((0, 1), (3, 7)), ((9, 5), (19, 2**63 - 1))),
)


FIXED_IDENTITY = Identity(
    CLUSTER, NodeId("a"), MemberId(2**64 - 2), "ab" * 8, MEMBERS, restored_from="fedcba9876543210"
)


def written() -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each file that today's writers must produce to the byte."""
    disk = filled_disk()
    segments = {name: disk.root.read(name).hex() for name in disk.root.names()}
    yield f"journal.{JOURNAL_FORMATS.written_at(FIRST_VERSION)}.json", _json(segments)
    backend = MemoryBackend(VirtualDisk().root)
    machine_of(backend)
    yield f"store.{STORE_FORMATS.written_at(FIRST_VERSION)}.json", _json(dump_of(backend))
    typed_backend = MemoryBackend(VirtualDisk().root)
    typed_machine_of(typed_backend)
    yield f"typed-store.{STORE_FORMATS.written_at(FIRST_VERSION)}.json", _json(dump_of(typed_backend))
    yield f"manifest.{FIXED_MANIFEST.format}.json", FIXED_MANIFEST.encode() + b"\n"
    yield f"backup-head.{BACKUP_FORMATS.written_at(FIRST_VERSION)}.txt", head_of(FIXED_MANIFEST)
    store_identity(disk.root, FIXED_IDENTITY)
    yield f"identity.{IDENTITY_FORMATS.written_at(FIRST_VERSION)}.json", disk.root.read("identity.json")


def encoded() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the name and content of each file of encodings that releases may add fields to."""
    yield f"commands.{commands.FORMAT_VERSION}.json", encoded_commands()
    yield f"peer.{PROTOCOL_VERSION}.json", encoded_frames()


def encoded_commands() -> dict[str, str]:
    """Return every command as the payload of an entry, in hexadecimal."""
    return {name: encode_commands([command]).hex() for name, command in ALL_COMMANDS.items()}


def encoded_frames() -> dict[str, str]:
    """Return every message between members in hexadecimal: the handshake's as frames, others as payloads."""
    messages = {f"{number:02d} {type(each).__name__}": encode(each).hex() for number, each in enumerate(EXAMPLES)}
    return {name: encode_handshake(each).hex() for name, each in HANDSHAKES.items()} | messages


def read_only() -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each file that must be readable, and that need not be written to the byte."""
    manifest, data = snapshot()
    yield f"snapshot.{manifest.format}.z", zlib.compress(manifest.encode() + b"\n" + data)
    yield f"backup.{BACKUP_FORMATS.written_at(FIRST_VERSION)}.z", zlib.compress(head_of(manifest) + data)
    manifest, data = snapshot(typed_machine_of)
    yield f"typed-snapshot.{manifest.format}.z", zlib.compress(manifest.encode() + b"\n" + data)
    yield f"typed-backup.{BACKUP_FORMATS.written_at(FIRST_VERSION)}.z", zlib.compress(head_of(manifest) + data)


def digest_of(machine: Machine) -> str:
    """Return a digest of what clients can see of a store, whatever its format."""
    seen = [(item.key.hex(), item.value.hex(), item.mod_revision) for item in all_items(machine)]
    facts = [seen, machine.revision, machine.compacted_revision, str(machine.cluster_version)]
    facts += [[member.name for member in machine.membership.members], len(machine.leases()), len(machine.alarms())]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def content_types_of(machine: Machine) -> list[list[tuple[bytes, bytes, str]]]:
    """Return the keys of each revision of which history is kept, with values and content types."""
    revisions = range(machine.compacted_revision + 1, machine.revision + 1)
    found = [machine.range(RangeQuery(KeySpan.prefix(b""), revision=revision)).items for revision in revisions]
    return [[(item.key, item.value, item.content_type) for item in items] for items in found]


def all_items(machine: Machine) -> list:
    """Return the live keys of a store."""
    return list(machine.range(RangeQuery(KeySpan.prefix(b""))).items)


def _json(content: object) -> bytes:
    return json.dumps(content, indent=1).encode() + b"\n"
