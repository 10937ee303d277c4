"""Whether a history could have happened on one copy of the data, one operation after the other.

Linearizability is local (Herlihy and Wing, 1990): a history is linearizable when the part of each key is. For one key
the search tries to take operations one by one, each between its start and its end, so that every result is what a
register would have given; a set of (operations taken, value) that was seen before is not tried again (Lowe, "Testing
for linearizability", 2017). An operation of unknown outcome may be taken at any time after its start, or never.

The search is exponential at worst, so it is bounded; what it could not decide is ``UNKNOWN``, which is no pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from raftkv.verification.history import Kind, Operation, Outcome

DEFAULT_MAX_CONFIGURATIONS = 2_000_000


class Verdict(Enum):
    """What a check found."""

    LINEARIZABLE = "linearizable"
    VIOLATION = "violation"
    UNKNOWN = "unknown"
    """The bound was reached first."""


@dataclass(frozen=True, slots=True)
class Report:
    """The verdict on a history.

    Attributes:
        verdict: The worst verdict of any key.
        key: The key that it comes from, None when all is well.
        operations: The shortest beginning of the key's history that is no longer linearizable, by the ends of its
            operations; empty unless there is a violation.
        checked: Operations that were checked.
    """

    verdict: Verdict
    key: bytes | None
    operations: tuple[Operation, ...]
    checked: int


def check_history(operations: Iterable[Operation], max_configurations: int = DEFAULT_MAX_CONFIGURATIONS) -> Report:
    """Check a whole history, key by key; every key begins without a value.

    Args:
        operations: The history, in any order.
        max_configurations: Bound on the search of each key: about 200 bytes of memory each.
    """
    by_key: dict[bytes, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.outcome is not Outcome.REFUSED:
            by_key[operation.key].append(operation)
    undecided: bytes | None = None
    checked = sum(len(of_key) for of_key in by_key.values())
    for key in sorted(by_key):
        verdict = check_key(by_key[key], max_configurations)
        if verdict is Verdict.VIOLATION:
            return Report(verdict, key, _shortest_violation(by_key[key], max_configurations), checked)
        if verdict is Verdict.UNKNOWN and undecided is None:
            undecided = key
    if undecided is not None:
        return Report(Verdict.UNKNOWN, undecided, (), checked)
    return Report(Verdict.LINEARIZABLE, None, (), checked)


def check_key(operations: Sequence[Operation], max_configurations: int = DEFAULT_MAX_CONFIGURATIONS) -> Verdict:
    """Check the operations of one key, none of them refused."""
    return _Search(operations).run(max_configurations)


def _shortest_violation(operations: Sequence[Operation], max_configurations: int) -> tuple[Operation, ...]:
    """Return the operations that had started when the history stopped being linearizable."""
    ends = sorted({operation.ended for operation in operations if operation.outcome is not Outcome.UNKNOWN})
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        if check_key(_until(operations, ends[middle]), max_configurations) is Verdict.VIOLATION:
            high = middle
        else:
            low = middle + 1
    return tuple(sorted(_until(operations, ends[low]), key=lambda operation: operation.started))


def _until(operations: Sequence[Operation], time: float) -> list[Operation]:
    """Return the history as it was known at a time: later answers had not come yet."""
    known = []
    for operation in operations:
        if operation.ended <= time:
            known.append(operation)
        elif operation.started <= time and operation.kind is not Kind.GET:
            known.append(
                Operation(
                    operation.client,
                    operation.key,
                    operation.kind,
                    operation.value,
                    operation.started,
                    float("inf"),
                    Outcome.UNKNOWN,
                    operation.expected,
                )
            )
    return known


class _Event:
    """The start or the end of an operation, in a linked list in the order of time."""

    __slots__ = ("end", "next", "number", "operation", "previous")

    def __init__(self, operation: Operation, number: int, end: _Event | None) -> None:
        self.operation = operation
        self.number = number
        self.end = end
        self.previous: _Event | None = None
        self.next: _Event | None = None

    def lift(self) -> None:
        """Take an operation, by its start, out of the list."""
        for event in (self, self.end):
            assert event is not None
            assert event.previous is not None
            event.previous.next = event.next
            if event.next is not None:
                event.next.previous = event.previous

    def unlift(self) -> None:
        """Put it back where it was; the last one lifted comes first."""
        for event in (self.end, self):
            assert event is not None
            assert event.previous is not None
            event.previous.next = event
            if event.next is not None:
                event.next.previous = event


class _Search:
    """Depth-first search for an order of one key's operations."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        relevant = [
            operation
            for operation in operations
            # A read without an answer says nothing and changes nothing.
            if not (operation.kind is Kind.GET and operation.outcome is Outcome.UNKNOWN)
        ]
        timed: list[tuple[float, int, int, _Event]] = []
        for number, operation in enumerate(relevant):
            end = _Event(operation, number, None)
            ended = float("inf") if operation.outcome is Outcome.UNKNOWN else operation.ended
            # At the same time, starts come first: the operations count as overlapping.
            timed.append((operation.started, 0, number, _Event(operation, number, end)))
            timed.append((ended, 1, number, end))
        timed.sort(key=lambda item: item[:3])
        self._head = _Event(operations[0], -1, None) if operations else None
        last = self._head
        for _time, _order, _number, event in timed:
            assert last is not None
            last.next, event.previous = event, last
            last = event

    def run(self, max_configurations: int) -> Verdict:
        if self._head is None:
            return Verdict.LINEARIZABLE
        taken: list[tuple[_Event, bytes | None]] = []
        taken_set = 0
        value: bytes | None = None
        seen: set[tuple[int, bytes | None]] = set()
        event = self._head.next
        while event is not None:
            if event.end is not None:
                applies, new_value = _apply(event.operation, value)
                configuration = (taken_set | 1 << event.number, new_value)
                if applies and configuration not in seen:
                    if len(seen) >= max_configurations:
                        return Verdict.UNKNOWN
                    seen.add(configuration)
                    taken.append((event, value))
                    taken_set, value = configuration
                    event.lift()
                    event = self._head.next
                else:
                    event = event.next
            elif event.operation.outcome is Outcome.UNKNOWN:
                # Only operations that may never have happened are left.
                return Verdict.LINEARIZABLE
            else:
                # This operation had to be taken by now.
                if not taken:
                    return Verdict.VIOLATION
                last, value = taken.pop()
                taken_set &= ~(1 << last.number)
                last.unlift()
                event = last.next
        return Verdict.LINEARIZABLE


def _apply(operation: Operation, value: bytes | None) -> tuple[bool, bytes | None]:
    """Return whether a register with a value could have given this result, and its value afterwards."""
    if operation.kind is Kind.GET:
        return operation.value == value, value
    if operation.kind is Kind.PUT:
        return True, operation.value
    if operation.kind is Kind.DELETE:
        return True, None
    matches = operation.expected == value
    if operation.outcome is Outcome.CONDITION_FAILED:
        return not matches, value
    return matches, operation.value
