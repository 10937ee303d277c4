"""Alarms, and the quota that raises one by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from raftkv.operations import Alarm, AlarmKind
from raftkv.service.writes import Writes
from raftkv.store.commands import SetAlarm
from raftkv.store.results import AlarmSet
from raftkv.types import Revision

_CLEARED_BELOW = 0.9
"""Share of the quota: not so near that the alarm would come back with the next write."""


class AlarmStore(Protocol):
    """What this service needs of the store."""

    def alarms(self) -> list[Alarm]:
        """Return the alarms that are active."""
        ...


class Alarms:
    """``raftkv.service.api.AlarmService``.

    Args:
        store: The local store.
        writes: The way of changes.
        quota_bytes: Size of the data at which writes are refused, 0 for none.
    """

    def __init__(self, store: AlarmStore, writes: Writes, quota_bytes: int) -> None:
        self._store = store
        self._writes = writes
        self.quota_bytes = quota_bytes

    def active(self) -> Sequence[Alarm]:
        """Return the alarms that are active, as this node knows them."""
        return self._store.alarms()

    async def set(self, alarm: Alarm, *, is_active: bool) -> Revision:
        """Raise an alarm, or clear it; return the store's revision at that moment."""
        result = await self._writes.apply(SetAlarm(alarm, is_active))
        assert isinstance(result, AlarmSet)
        return result.revision


class Quota:
    """Says when the alarm of a full store is to be raised or cleared.

    Args:
        quota_bytes: Size of the data, 0 for no bound.
        member: Under whose name the alarm is raised.
    """

    def __init__(self, quota_bytes: int, member: str) -> None:
        self._quota_bytes = quota_bytes
        self._member = member

    def due(self, used_bytes: int, active: Sequence[Alarm]) -> list[SetAlarm]:
        """Return the commands that are due.

        Args:
            used_bytes: Size of the data.
            active: The alarms that are active.
        """
        full = [alarm for alarm in active if alarm.kind is AlarmKind.NO_SPACE]
        if not self._quota_bytes:
            # A former leader had a quota, and this one has none.
            return [SetAlarm(alarm, is_active=False) for alarm in full if alarm.is_automatic]
        if used_bytes > self._quota_bytes:
            alarm = Alarm(AlarmKind.NO_SPACE, self._member, is_automatic=True)
            return [] if full else [SetAlarm(alarm, is_active=True)]
        if used_bytes < _CLEARED_BELOW * self._quota_bytes:
            return [SetAlarm(alarm, is_active=False) for alarm in full if alarm.is_automatic]
        return []
