"""The membership in the store: applied, kept, copied, restored, and part of what nodes compare."""

from __future__ import annotations

from pathlib import Path

import pytest

from raftkv.errors import CorruptData, InvariantViolated
from raftkv.membership import (
    AddMember,
    ConfirmRemovals,
    MemberId,
    PromoteMember,
    RemoveMember,
    ReplaceMember,
    UpdateMember,
    initial_membership,
)
from raftkv.operations import RefusalKind, Refused
from raftkv.store.backend import Space
from raftkv.store.commands import FORMAT_VERSION, ChangeMembers, MalformedCommand, Put, decode_commands, encode_commands
from raftkv.store.lmdb_backend import LmdbBackend
from raftkv.store.machine import Machine
from raftkv.store.members import NO_MEMBERS, change_of
from raftkv.store.memory_backend import MemoryBackend
from raftkv.store.results import MembersChanged
from raftkv.types import ClusterId, Member, NodeId
from tests.simulation.disk import VirtualDisk
from tests.store.entries import apply_to

CLUSTER = ClusterId("0123456789abcdef")
FIRST = initial_membership(CLUSTER, [Member(NodeId("n1"), "n1:1"), Member(NodeId("n2"), "n2:1")])
ADD = AddMember(MemberId(2**64 - 1), NodeId("n3"), "n3:1")


def test_a_change_is_applied_and_survives_a_restart(backend):
    machine = Machine(backend, CLUSTER)
    assert machine.membership == NO_MEMBERS
    machine.bootstrap(FIRST)
    assert (machine.applied_index, machine.membership) == (1, FIRST)
    before, revision = machine.state_hash(), machine.revision
    (result,) = apply_to(machine, ChangeMembers(ADD))
    assert isinstance(result, MembersChanged)
    assert result.membership == machine.membership
    assert machine.membership.learners == {"n3"}
    assert machine.state_hash() != before
    assert machine.revision == revision, "the membership is not part of the keys' history"
    again = Machine(backend, CLUSTER)
    assert again.membership == machine.membership
    with pytest.raises(InvariantViolated, match="before anything else"):
        again.bootstrap(FIRST)


def test_removals_and_what_confirms_them_survive_a_restart(backend):
    machine = Machine(backend, CLUSTER)
    machine.bootstrap(FIRST)
    gone = FIRST.members[0].id
    for change, unconfirmed in ((RemoveMember(gone), {gone}), (ConfirmRemovals(), set())):
        before = machine.state_hash()
        apply_to(machine, ChangeMembers(change))
        assert machine.state_hash() != before
        kept = Machine(backend, CLUSTER).membership
        assert (kept.removed, kept.unconfirmed) == ({gone}, unconfirmed)


def test_what_cannot_be_applied_is_refused_and_changes_nothing(backend):
    machine = Machine(backend, CLUSTER)
    machine.bootstrap(FIRST)
    for change, kind in (
        (PromoteMember(MemberId(5)), RefusalKind.MEMBER_UNKNOWN),
        (AddMember(MemberId(5), NodeId("n1"), "x:1"), RefusalKind.MEMBER_TAKEN),
        (PromoteMember(FIRST.members[0].id), RefusalKind.CHANGE_REFUSED),
    ):
        (result,) = apply_to(machine, ChangeMembers(change))
        assert isinstance(result, Refused)
        assert result.kind is kind
    assert machine.membership == FIRST


def test_a_copy_has_the_membership():
    disk = VirtualDisk().root
    machine = Machine(MemoryBackend(disk), CLUSTER)
    machine.bootstrap(FIRST)
    apply_to(machine, Put(b"k", b"v"))
    apply_to(machine, ChangeMembers(ADD))
    machine.copy_to(f"{disk.path}/copy")
    other = Machine(MemoryBackend(disk), CLUSTER)
    other.install_staged(other.stage(f"{disk.path}/copy"))
    assert other.membership == machine.membership
    assert other.state_hash() == machine.state_hash()


def test_a_membership_that_cannot_be_read_is_corrupt(tmp_path: Path):
    backend = LmdbBackend(tmp_path, 1_048_576)
    Machine(backend, CLUSTER).bootstrap(FIRST)
    with backend.write() as transaction:
        transaction.tree(Space.META).put(b"members", b"\x94\x00\x01\x02\x03")
    with pytest.raises(CorruptData, match="membership"):
        Machine(backend, CLUSTER)
    backend.close()


@pytest.mark.parametrize(
    "change",
    [
        ADD,
        PromoteMember(MemberId(1)),
        RemoveMember(MemberId(1)),
        ReplaceMember(MemberId(1), MemberId(2), "h:1"),
        UpdateMember(MemberId(1), "h:1"),
        ConfirmRemovals(),
    ],
)
def test_changes_survive_the_codec(change):
    assert decode_commands(encode_commands([ChangeMembers(change)])) == [ChangeMembers(change)]


@pytest.mark.parametrize("fields", [None, (), (9, 1), (1, 2), (1, "x", "y", "z"), (2, True), ("1", 1), (6, 1)])
def test_what_is_no_change_is_malformed(fields):
    with pytest.raises(ValueError, match=r"change|fields"):
        change_of(fields)


def test_a_change_takes_no_safeguards():
    import msgpack  # noqa: PLC0415 - the wire format itself

    change = (9, (2, 1))
    assert decode_commands(msgpack.packb((FORMAT_VERSION, [change], (0, 1)))) == [
        ChangeMembers(PromoteMember(MemberId(1)))
    ]
    for bad in ((7, change, None, None), (9, (2,)), (9, (2, 1), 3)):
        with pytest.raises(MalformedCommand):
            decode_commands(msgpack.packb((FORMAT_VERSION, [bad], (0, 1))))
