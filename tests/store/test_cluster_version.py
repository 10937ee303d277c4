"""The replicated cluster version, and entries that this release cannot read."""

from __future__ import annotations

import msgpack
import pytest

from raftkv.errors import UndecodableEntry, UnsupportedVersion
from raftkv.store import commands
from raftkv.store.commands import (
    FORMAT_VERSION,
    Guarded,
    MalformedCommand,
    Once,
    Put,
    SetClusterVersion,
    decode_commands,
    encode_commands,
    required_version,
)
from raftkv.store.machine import CommittedEntry, Machine
from raftkv.store.memory_backend import MemoryBackend
from raftkv.store.results import ClusterVersionSet
from raftkv.types import ClusterId, Index, Term
from raftkv.versions import FIRST_VERSION, SUPPORTED_VERSIONS, ClusterVersion, SupportedVersions
from tests.simulation.disk import VirtualDisk

CLUSTER = ClusterId("0123456789abcdef")
NEXT = ClusterVersion(0, 2)
BOTH = SupportedVersions(FIRST_VERSION, NEXT)


def entry(machine: Machine, payload: bytes | None) -> CommittedEntry:
    return CommittedEntry(Index(machine.applied_index + 1), Term(3), payload)


def apply(machine: Machine, *group):
    return machine.apply([entry(machine, encode_commands(group))])[0]


@pytest.fixture
def backend():
    return MemoryBackend(VirtualDisk().root)


def test_a_new_store_is_at_the_first_version(backend):
    assert Machine(backend, CLUSTER).cluster_version == FIRST_VERSION


def test_the_version_rises_and_never_falls(backend):
    machine = Machine(backend, CLUSTER, BOTH)
    before = machine.state_hash()
    assert apply(machine, SetClusterVersion(NEXT)) == [ClusterVersionSet(machine.revision, NEXT)]
    assert machine.cluster_version == NEXT
    assert machine.state_hash() != before
    assert apply(machine, SetClusterVersion(FIRST_VERSION)) == [ClusterVersionSet(machine.revision, NEXT)]
    assert Machine(backend, CLUSTER, BOTH).cluster_version == NEXT


def test_the_version_is_part_of_the_state_hash(backend):
    raised, other = Machine(backend, CLUSTER, BOTH), Machine(MemoryBackend(VirtualDisk().root), CLUSTER, BOTH)
    apply(raised, SetClusterVersion(NEXT))
    apply(other, SetClusterVersion(FIRST_VERSION))
    assert raised.state_hash() != other.state_hash()


def test_a_node_that_does_not_support_the_version_refuses_to_apply_it_and_changes_nothing(backend):
    machine = Machine(backend, CLUSTER)
    apply(machine, Put(b"a", b"1"))
    before = machine.state_hash()
    with pytest.raises(UnsupportedVersion, match=r"at version 0\.2, and this release supports version 0\.1 only"):
        apply(machine, Put(b"b", b"2"), SetClusterVersion(NEXT))
    assert machine.state_hash() == before
    assert Machine(backend, CLUSTER, BOTH).state_hash() == before


@pytest.mark.parametrize(
    "supported", [SUPPORTED_VERSIONS, SupportedVersions(ClusterVersion(0, 3), ClusterVersion(1, 0))]
)
def test_a_store_of_an_unsupported_version_is_refused_and_stays_as_it_is(backend, supported):
    machine = Machine(backend, CLUSTER, BOTH)
    apply(machine, SetClusterVersion(NEXT))
    before = machine.state_hash()
    with pytest.raises(UnsupportedVersion) as refused:
        Machine(backend, CLUSTER, supported)
    assert "0.2" in str(refused.value)
    assert str(supported) in str(refused.value)
    assert Machine(backend, CLUSTER, BOTH).state_hash() == before


PAYLOADS = {
    "format": msgpack.packb((FORMAT_VERSION + 1, [], (0, 1))),
    "kind": msgpack.packb((FORMAT_VERSION, [(77, b"a", b"b")], (0, 1))),
    "fields": msgpack.packb((FORMAT_VERSION, [(1, b"a", b"b", 0, -1, b"a field more")], (0, 1))),
    "numbers": msgpack.packb((FORMAT_VERSION, [(77, 1)], (0, 1))),
    "guarded": msgpack.packb((FORMAT_VERSION, [(7, (77, 1), None, None)], (0, 1))),
    "version": msgpack.packb((FORMAT_VERSION, [(77, 1)], (0, 2))),
    "no version": msgpack.packb((FORMAT_VERSION, [])),
    "nil version": msgpack.packb((FORMAT_VERSION, [], None)),
    "bytes": b"\xc1",
    "nothing": b"",
    "no array": b"\x07",
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_an_entry_that_cannot_be_read_is_fatal_and_never_skipped(backend, payload):
    machine = Machine(backend, CLUSTER)
    first = CommittedEntry(Index(1), Term(3), encode_commands([Put(b"a", b"1")]))
    before = machine.state_hash()
    with pytest.raises(UndecodableEntry, match="entry 2 of term 3 cannot be applied"):
        machine.apply([first, CommittedEntry(Index(2), Term(3), payload)])
    assert (machine.applied_index, machine.state_hash()) == (0, before)


def test_the_error_names_the_unknown_kind_and_the_version_that_is_needed(backend):
    machine = Machine(backend, CLUSTER)
    with pytest.raises(UndecodableEntry, match=r"kind 77.*supports version 0\.1 only"):
        machine.apply([entry(machine, PAYLOADS["kind"])])
    with pytest.raises(UndecodableEntry, match=r"needs cluster version 0\.2.*at version 0\.1.*version 0\.1 only"):
        machine.apply([entry(machine, PAYLOADS["version"])])


def test_a_command_is_gated_by_the_version_at_its_index(backend, monkeypatch):
    monkeypatch.setitem(commands.REQUIRED_VERSIONS, Put, NEXT)
    machine = Machine(backend, CLUSTER, BOTH)
    with pytest.raises(UndecodableEntry, match=r"needs cluster version 0\.2"):
        apply(machine, Put(b"a", b"1"))
    apply(machine, SetClusterVersion(NEXT))
    apply(machine, Put(b"a", b"1"))
    assert machine.get(b"a").value == b"1"


def test_a_group_needs_the_highest_version_of_its_commands(monkeypatch):
    monkeypatch.setitem(commands.REQUIRED_VERSIONS, Put, NEXT)
    envelope = Guarded(Put(b"a", b"1"), None, Once(b"key", bytes(16), 1, 1))
    assert required_version(envelope) == NEXT
    payload = encode_commands([SetClusterVersion(NEXT), envelope])
    with pytest.raises(MalformedCommand, match=r"0\.2"):
        decode_commands(payload, FIRST_VERSION)
    assert decode_commands(payload, NEXT) == decode_commands(payload) == [SetClusterVersion(NEXT), envelope]


@pytest.mark.parametrize("text", ["", "1", "1.2.3", "-1.0", "01.0", "1.a", " 1.0", "1.0\n", "1.9999999"])
def test_what_is_no_version_is_refused(text):
    with pytest.raises(ValueError, match="no cluster version"):
        ClusterVersion.parse(text)


def test_versions_are_ordered_by_their_numbers():
    texts = ["0.1", "0.9", "0.10", "1.0", "9.0", "10.0"]
    assert sorted(map(ClusterVersion.parse, texts)) == [ClusterVersion.parse(text) for text in texts]
    assert [str(ClusterVersion.parse(text)) for text in texts] == texts
