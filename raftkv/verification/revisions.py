"""Whether the revisions of answers are those of their own operations.

A store that counts its writes gives every answer a revision: a write's answer the revision that it made, a read's (and
that of a write that changed nothing) the revision of the state that was read. Four things follow, whatever the order of
concurrent operations was:

- two writes never share a revision;
- an operation that began after another had ended has no smaller revision, and a write has a greater one;
- a read names the revision of the write whose value it returns;
- no write to the key of a read lies between the revision of the value and the revision of the read.

Answers without a revision are left out, and operations of unknown outcome excuse only what they can explain.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter

from raftkv.verification.history import Kind, Operation, Outcome, readable


def check_revisions(history: Iterable[Operation]) -> list[str]:
    """Return what contradicts the revisions of a history, one sentence for each finding; empty when nothing does.

    Args:
        history: The operations, in any order. Every key begins without a value, and every written value is unique.
            Reads that may be stale must be left out.
    """
    operations = list(history)
    answered = [
        operation
        for operation in operations
        if operation.revision is not None and operation.outcome in (Outcome.DONE, Outcome.CONDITION_FAILED)
    ]
    by_key: dict[bytes, list[Operation]] = defaultdict(list)
    for operation in operations:
        by_key[operation.key].append(operation)
    findings = [*_shared_revisions(answered), *_order_violations(answered)]
    for key in sorted(by_key):
        findings += _KeyState(by_key[key]).findings()
    return findings


def _shared_revisions(answered: Sequence[Operation]) -> Iterator[str]:
    writers: dict[int, Operation] = {}
    for operation in answered:
        if operation.has_written:
            other = writers.setdefault(_revision(operation), operation)
            if other is not operation:
                yield f"two writes have revision {operation.revision}: {_shown(other)} and {_shown(operation)}"


def _order_violations(answered: Sequence[Operation]) -> Iterator[str]:
    by_end = sorted(answered, key=attrgetter("ended"))
    ended = 0
    highest: Operation | None = None
    for operation in sorted(answered, key=attrgetter("started")):
        while ended < len(by_end) and by_end[ended].ended < operation.started:
            if highest is None or _revision(by_end[ended]) > _revision(highest):
                highest = by_end[ended]
            ended += 1
        least = 0 if highest is None else _revision(highest) + operation.has_written
        if _revision(operation) < least:
            yield (
                f"revision {operation.revision} should be at least {least}: {_shown(operation)} began after "
                f"{_shown(highest)} had ended"
            )


class _KeyState:
    """What is known of one key at each revision.

    Args:
        operations: The operations on the key.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._operations = operations
        known = [operation for operation in operations if operation.has_written and operation.revision is not None]
        self._writes = sorted(known, key=_revision)
        self._revisions = [_revision(operation) for operation in self._writes]
        self._mod_revisions = {
            operation.value: _revision(operation) for operation in known if operation.kind is not Kind.DELETE
        }
        # A delete whose revision is not known explains that the key is missing later.
        self._may_be_deleted = any(
            operation.kind is Kind.DELETE
            and operation.outcome is not Outcome.REFUSED
            and (operation.outcome is Outcome.UNKNOWN or operation.revision is None)
            for operation in operations
        )

    def findings(self) -> Iterator[str]:
        """Return what contradicts the revisions of the key's operations."""
        for operation in self._operations:
            if operation.revision is None or operation.mod_revision is None:
                continue
            finding = self._of_write(operation) if operation.has_written else self._of_read(operation)
            if finding is not None:
                yield f"{finding}: {_shown(operation)}"

    def _of_write(self, operation: Operation) -> str | None:
        if operation.mod_revision == operation.revision:
            return None
        return f"a write of revision {operation.revision} has the mod revision {operation.mod_revision}"

    def _of_read(self, operation: Operation) -> str | None:
        revision, mod_revision = _revision(operation), operation.mod_revision or 0
        if mod_revision > revision:
            return f"a read at revision {revision} has the mod revision {mod_revision}"
        if operation.kind is Kind.GET and mod_revision:
            written = self._mod_revisions.setdefault(operation.value, mod_revision)
            if written != mod_revision:
                return f"a value of mod revision {written} is read with the mod revision {mod_revision}"
        at = bisect_right(self._revisions, revision)
        last = self._writes[at - 1] if at else None
        if last is None or _revision(last) < mod_revision:
            return None
        is_deleted = last.kind is Kind.DELETE
        if _revision(last) == mod_revision and not is_deleted:
            return None
        if mod_revision == 0 and (is_deleted or self._may_be_deleted):
            return None
        return f"a read at revision {revision} has the mod revision {mod_revision} and misses {_shown(last)}"


def _revision(operation: Operation) -> int:
    assert operation.revision is not None, "operations without a revision are left out"
    return operation.revision


def _shown(operation: Operation | None) -> str:
    assert operation is not None, "an operation is shown"
    return f"[{operation}, key {readable(operation.key)}]"
