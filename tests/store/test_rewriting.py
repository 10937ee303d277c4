"""Going back: a store is what it was at a revision, whatever happened since, and goes on from there."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.errors import ConfigurationError
from raftkv.membership import initial_membership
from raftkv.operations import DeleteOperation, KeySpan, PutOperation, RangeQuery, RefusalKind, Transaction
from raftkv.store import mvcc
from raftkv.store.commands import (
    Compact,
    Delete,
    GrantLease,
    Guarded,
    Once,
    Put,
    RevokeLease,
    Transact,
)
from raftkv.store.lmdb_backend import LmdbBackend
from raftkv.store.machine import Machine
from raftkv.store.memory_backend import MemoryBackend
from raftkv.store.results import Granted
from raftkv.store.rewriting import DEFAULT_REVISION_BUMP, NewOwner, rewrite
from raftkv.types import ClusterId, Member, NodeId, Revision
from tests.simulation.disk import VirtualDisk
from tests.store.entries import apply_to

OLD, NEW = ClusterId("0123456789abcdef"), ClusterId("fedcba9876543210")
OWNER = NewOwner(NEW, initial_membership(NEW, [Member(NodeId("n9"), "h9:1")]))
ALL = KeySpan(b"", None)

keys = st.sampled_from([b"a", b"b", b"c" * 600, b"d"])
values = st.binary(max_size=3)
leases = st.sampled_from([0, 0, 1, 2])
commands = st.one_of(
    st.builds(Put, keys, values, leases, content_type=st.sampled_from(["", "", "text/plain", "application/json"])),
    st.builds(Delete, keys),
    st.builds(
        lambda key, value, other: Transact(
            Transaction((), (PutOperation(key, value), DeleteOperation(KeySpan.single(other))), ())
        ),
        st.just(b"a"),
        values,
        st.sampled_from([b"b", b"c" * 600]),
    ),
    st.builds(GrantLease, st.sampled_from([1, 2]), st.just(60)),
    st.builds(RevokeLease, st.sampled_from([1, 2])),
    st.builds(lambda revision: Compact(Revision(revision)), st.integers(1, 12)),
)


def content(machine: Machine, revision: int = 0) -> list[tuple[object, ...]]:
    found = machine.range(RangeQuery(ALL, revision=revision))
    return [
        (item.key, item.value, item.content_type, item.create_revision, item.mod_revision, item.version)
        for item in found.items
    ]


def check(machine: Machine, backend, history: dict[int, list[tuple[object, ...]]], revision: int) -> None:
    existing = {lease.id for lease in machine.leases()}
    info = rewrite(backend, OWNER, revision, 0)
    assert (info.revision, info.cluster_id) == (revision, NEW)
    restored = Machine(backend, NEW)
    assert restored.membership == OWNER.membership
    assert (restored.revision, restored.applied_index) == (revision, machine.applied_index)
    assert content(restored) == history[revision]
    for earlier in range(max(1, restored.compacted_revision), revision + 1):
        assert content(restored, earlier) == history[earlier]
    assert {lease.id for lease in restored.leases()} == existing
    attached = {key: lease for lease in existing for key in restored.attached_keys(lease)}
    items = restored.range(RangeQuery(ALL)).items
    assert attached == {item.key: item.lease for item in items if item.lease}
    # It goes on as if nothing had been: with the next revision, and with its own history.
    apply_to(restored, Put(b"a", b"after"))
    assert restored.revision == revision + 1
    assert content(restored, revision) == history[revision]
    after = content(restored)
    apply_to(restored, Compact(restored.revision))
    while restored.purge():
        pass
    assert content(restored) == after
    for lease in existing:
        apply_to(restored, RevokeLease(lease))
    assert not any(item.lease for item in restored.range(RangeQuery(ALL)).items)


@settings(max_examples=300, deadline=None)
@given(st.lists(commands, min_size=1, max_size=25), st.sampled_from([1, 2, 16]), st.data())
def test_every_revision_of_which_history_is_kept_can_be_gone_back_to(steps, apart, data):
    with patch.object(mvcc, "_VERSIONS_APART", apart):
        go_back(steps, data)


def go_back(steps, data):
    backend = MemoryBackend(VirtualDisk().root)
    machine = Machine(backend, OLD)
    history = {1: content(machine)}
    for step in steps:
        apply_to(machine, step)
        history[machine.revision] = content(machine)
    while machine.purge():
        pass
    revision = data.draw(st.integers(max(1, machine.compacted_revision), machine.revision))
    check(machine, backend, history, revision)


def test_lmdb_goes_back_too(tmp_path):
    backend = LmdbBackend(tmp_path)
    machine = Machine(backend, OLD)
    history = {1: content(machine)}
    for number in range(200):
        apply_to(machine, Delete(b"k5") if number % 7 == 0 else Put(b"k%d" % (number % 10), b"%d" % number))
        history[machine.revision] = content(machine)
    check(machine, backend, history, 77)
    backend.close()


@pytest.mark.parametrize("revision", [0, 2, 100])
def test_what_is_not_known_any_more_or_not_yet_is_refused(revision):
    backend = MemoryBackend(VirtualDisk().root)
    machine = Machine(backend, OLD)
    for number in range(5):
        apply_to(machine, Put(b"k", b"%d" % number))
    apply_to(machine, Compact(Revision(4)))
    before = machine.state_hash()
    with pytest.raises(ConfigurationError, match="has the history from revision 4 to 6"):
        rewrite(backend, OWNER, revision)
    assert machine.state_hash() == before


def test_rewritten_store_has_higher_revision_and_compacted_history():
    backend = MemoryBackend(VirtualDisk().root)
    machine = Machine(backend, OLD)
    for number in range(11):
        apply_to(machine, Put(b"k%d" % (number % 3), b"%d" % number))
    before = content(machine)
    at_eight = content(machine, 8)
    rewrite(backend, OWNER, None)
    restored = Machine(backend, NEW)
    assert restored.revision == restored.compacted_revision == 12 + DEFAULT_REVISION_BUMP
    assert content(restored) == before, "keys keep their own revisions, so conditions on them still hold"
    for revision in (1, 8, 12, 13, 11 + DEFAULT_REVISION_BUMP):
        assert restored.range(RangeQuery(ALL, revision=revision)).kind is RefusalKind.COMPACTED
    assert content(restored, 12 + DEFAULT_REVISION_BUMP) == before
    apply_to(restored, Put(b"k1", b"after"))
    assert restored.revision == 13 + DEFAULT_REVISION_BUMP
    while restored.purge():
        pass
    assert content(restored, 12 + DEFAULT_REVISION_BUMP) == before
    assert [revision for revision, _event in restored.events(1, restored.revision, 100)][-1] == restored.revision
    rewrite(backend, OWNER, None, 0)
    again = Machine(backend, NEW)
    assert (again.revision, again.compacted_revision) == (13 + DEFAULT_REVISION_BUMP, 12 + DEFAULT_REVISION_BUMP)
    assert at_eight != before


def once(command, key: bytes) -> Guarded:
    return Guarded(command, None, Once(key, key.ljust(16, b"."), 5, 3600))


def test_retry_of_undone_write_is_applied_again_and_of_kept_write_is_not():
    backend = MemoryBackend(VirtualDisk().root)
    machine = Machine(backend, OLD)
    kept, undone = once(Put(b"kept", b"1"), b"one"), once(Put(b"undone", b"1"), b"two")
    granted = once(GrantLease(7, 60), b"three")
    (first,) = apply_to(machine, kept)
    apply_to(machine, undone)
    (lease,) = apply_to(machine, granted)
    rewrite(backend, OWNER, first.revision)
    restored = Machine(backend, NEW)
    assert apply_to(restored, kept) == [first]
    assert restored.get(b"undone") is None
    assert apply_to(restored, undone)[0].revision == first.revision + DEFAULT_REVISION_BUMP + 1
    assert restored.get(b"undone").version == restored.get(b"kept").version == 1
    # Leases are not undone, and neither is what is known of their grants.
    assert apply_to(restored, granted) == [lease]
    assert isinstance(lease, Granted)
    (again,) = apply_to(restored, undone)
    assert again.revision == restored.revision, "the new outcome is kept"
