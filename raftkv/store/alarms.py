"""Alarms: replicated words of warning, of which ``NO_SPACE`` makes the store refuse whatever would let it grow."""

from __future__ import annotations

from raftkv.operations import Alarm, AlarmKind, may_put
from raftkv.store.backend import ReadTransaction, Space, WriteTransaction
from raftkv.store.commands import Command, GrantLease, Guarded, Put, Transact


def all_alarms(view: ReadTransaction) -> list[Alarm]:
    """Return the alarms that are active, by kind and member."""
    return [
        Alarm(AlarmKind(name[0]), name[1:].decode(), bool(is_automatic))
        for name, is_automatic in view.view(Space.ALARMS).scan(b"")
    ]


def set_alarm(transaction: WriteTransaction, alarm: Alarm, *, is_active: bool) -> None:
    """Raise or clear an alarm, whatever it was before."""
    name = bytes([alarm.kind.value]) + alarm.member.encode()
    tree = transaction.tree(Space.ALARMS)
    if is_active:
        tree.put(name, b"1" if alarm.is_automatic else b"")
    else:
        tree.delete(name)


def is_out_of_space(view: ReadTransaction) -> bool:
    """Whether some member said that there is no space."""
    return any(alarm.kind is AlarmKind.NO_SPACE for alarm in all_alarms(view))


def grows(command: Command) -> bool:
    """Whether a command would take more space for good; etcd's rule: puts and leases do, deletions do not."""
    if isinstance(command, Guarded):
        return grows(command.command)
    if isinstance(command, Transact):
        return may_put(command.transaction)
    return isinstance(command, Put | GrantLease)
