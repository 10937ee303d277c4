"""The membership as part of the replicated state: where it is kept, and its codec."""

from __future__ import annotations

from typing import Any

import msgpack

from raftkv.errors import CorruptData
from raftkv.membership import (
    AddMember,
    ClusterMember,
    ConfirmRemovals,
    MemberChange,
    MemberId,
    Membership,
    PromoteMember,
    RemoveMember,
    ReplaceMember,
    UpdateMember,
)
from raftkv.store.backend import ReadTransaction, Space, WriteTransaction
from raftkv.types import NodeId

NO_MEMBERS = Membership(0, ())
"""The membership of a store that was never told of one."""

_PLACE = b"members"

_KINDS: dict[int, tuple[type[Any], tuple[type, ...]]] = {
    1: (AddMember, (int, str, str)),
    2: (PromoteMember, (int,)),
    3: (RemoveMember, (int,)),
    4: (ReplaceMember, (int, int, str)),
    5: (UpdateMember, (int, str)),
    6: (ConfirmRemovals, ()),
}
_NUMBERS = {kind: number for number, (kind, _types) in _KINDS.items()}


def write_membership(transaction: WriteTransaction, membership: Membership) -> None:
    """Keep a membership."""
    members = [(member.id, member.name, member.peer_address, member.is_voter) for member in membership.members]
    fields = (membership.version, members, sorted(membership.removed), sorted(membership.unconfirmed))
    transaction.tree(Space.META).put(_PLACE, bytes(msgpack.packb(fields)))


def membership_bytes(view: ReadTransaction) -> bytes:
    """Return the membership as bytes to compare."""
    return view.view(Space.META).get(_PLACE) or b""


def read_membership(view: ReadTransaction, source: str) -> Membership:
    """Return the membership that is kept.

    Raises:
        CorruptData: It does not check.
    """
    data = membership_bytes(view)
    if not data:
        return NO_MEMBERS
    try:
        version, members, removed, unconfirmed = msgpack.unpackb(data, use_list=False)
        return Membership(
            version,
            tuple(
                ClusterMember(MemberId(number), NodeId(name), address, is_voter)
                for number, name, address, is_voter in members
            ),
            frozenset(MemberId(number) for number in removed),
            frozenset(MemberId(number) for number in unconfirmed),
        )
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise CorruptData(source, 0, f"its membership cannot be read ({error})") from error


def change_fields(change: MemberChange) -> tuple[Any, ...]:
    """Return a change as msgpack values."""
    kind = _NUMBERS[type(change)]
    return (kind, *(getattr(change, name) for name in change.__slots__))


def change_of(fields: Any) -> MemberChange:
    """Read what ``change_fields`` returned.

    Raises:
        ValueError: It is no change.
    """
    if type(fields) is not tuple or not fields or type(fields[0]) is not int or fields[0] not in _KINDS:
        raise ValueError("not a change of the membership")
    kind, types = _KINDS[fields[0]]
    if tuple(type(field) for field in fields[1:]) != types:
        raise ValueError(f"{kind.__name__} has fields of other types")
    change: MemberChange = kind(*fields[1:])
    return change
