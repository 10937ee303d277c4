"""Applies committed entries to the store in slices of the event loop's iterations, a group of entries a transaction."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from raftkv.consensus.entries import Committed
from raftkv.ports import Clock
from raftkv.service.slices import SlicePolicy, Slices
from raftkv.store.machine import CommittedEntry, Machine
from raftkv.store.results import Result
from raftkv.store.steps import Steps
from raftkv.types import Index

GROUP_ENTRIES = 256
"""Entries that one transaction of the store applies at most: a backlog becomes visible little by little."""

GROUP_BYTES = 1_048_576
"""A group ends once its payloads reach this size."""


class ApplyLoop:
    """The entries that are committed and not applied yet, and the group that is being applied.

    A group is applied in steps. Until its last step nothing of it is visible: not in the store, not to proposers, not
    to watches. Heartbeats, votes, acknowledgements and reads of the state before it go on between the steps.

    Args:
        machine: The store.
        clock: Monotonic time.
        policy: How much of an iteration of the event loop it may take.
        observe: Called with the seconds that applying a group took.

    Attributes:
        group_end: A group ends with the entry of this index, so that the store is exactly there; None for none.
    """

    def __init__(self, machine: Machine, clock: Clock, policy: SlicePolicy, observe: Callable[[float], None]) -> None:
        self._machine = machine
        self._clock = clock
        self._slices = Slices(clock, policy)
        self._observe = observe
        self._entries: deque[Committed] = deque()
        self._taken = machine.applied_index
        self._group: list[Committed] = []
        self._steps: Steps[list[list[Result]]] | None = None
        self._seconds = 0.0
        self.group_end: Index | None = None

    @property
    def is_busy(self) -> bool:
        """Whether there is more to apply."""
        return self._steps is not None or bool(self._entries)

    def will_apply(self, index: Index) -> bool:
        """Return whether the entry at an index is committed and not applied yet."""
        return self._machine.applied_index < index <= self._taken

    def take(self, committed: Iterable[Committed]) -> None:
        """Queue entries; those that are queued already are left out.

        The core delivers again what is not applied when it starts its engine anew.
        """
        for entry in committed:
            if entry.index > self._taken:
                self._entries.append(entry)
                self._taken = entry.index

    def run(self, applied: Callable[[Sequence[Committed], Sequence[list[Result]]], None]) -> None:
        """Apply for as long as this iteration allows.

        Args:
            applied: Called after each group with its entries and their results.
        """
        while self.is_busy and not self._slices.is_full:
            if self._steps is None:
                self._begin_group()
            assert self._steps is not None, "a group was begun"
            began = self._clock.now()
            try:
                self._slices.step(self._steps)
            except StopIteration as stop:
                self._seconds += self._clock.now() - began
                group, self._group, self._steps = self._group, [], None
                self._observe(self._seconds)
                applied(group, stop.value)
            else:
                self._seconds += self._clock.now() - began

    def _begin_group(self) -> None:
        size = 0
        while self._entries and len(self._group) < GROUP_ENTRIES and size < GROUP_BYTES:
            entry = self._entries.popleft()
            size += len(entry.payload or b"")
            self._group.append(entry)
            if entry.index == self.group_end:
                break
        self._seconds = 0.0
        self._steps = self._machine.apply_steps(
            [CommittedEntry(entry.index, entry.term, entry.payload) for entry in self._group]
        )

    def skip_to(self, index: Index) -> None:
        """A snapshot took the store to an index: what was queued up to there is not applied any more.

        The machine has abandoned what was being applied when it was replaced.
        """
        self._steps = None
        self._group.clear()
        while self._entries and self._entries[0].index <= index:
            self._entries.popleft()
        self._taken = max(self._taken, index)

    def stop(self) -> None:
        """Undo what is being applied, and apply nothing more: the next life of the node applies it again."""
        self._steps = None
        self._group.clear()
        self._entries.clear()
        self._machine.abandon()
