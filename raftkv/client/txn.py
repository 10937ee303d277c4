"""Transactions as they are written down: conditions, operations, and a builder that sends them.

from raftkv.client import txn

result = await (
client.transaction()
.when(txn.key(b"a").mod_revision.equals(5), txn.prefix(b"locks/").version.equals(0))
.then(txn.put(b"a", b"1"), txn.get(txn.prefix(b"b/")))
.otherwise(txn.get(txn.key(b"a")))
.commit()
)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Generic, Self, TypeVar

from raftkv.operations import (
    Compare,
    CompareTarget,
    DeleteOperation,
    KeySpan,
    Operation,
    PutOperation,
    RangeQuery,
    Relation,
    SortOrder,
    SortTarget,
    Transaction,
    TransactionResult,
)

_Operand = TypeVar("_Operand", int, bytes)


@dataclass(frozen=True, slots=True)
class Attribute(Generic[_Operand]):
    """Something of keys that can be compared; of a key that does not exist every number is 0."""

    span: KeySpan
    target: CompareTarget

    def equals(self, operand: _Operand) -> Compare:
        """Require it to be this."""
        return Compare(self.span, self.target, Relation.EQUAL, operand)

    def differs_from(self, operand: _Operand) -> Compare:
        """Require it to be another than this."""
        return Compare(self.span, self.target, Relation.NOT_EQUAL, operand)

    def is_greater_than(self, operand: _Operand) -> Compare:
        """Require it to be greater."""
        return Compare(self.span, self.target, Relation.GREATER, operand)

    def is_less_than(self, operand: _Operand) -> Compare:
        """Require it to be less."""
        return Compare(self.span, self.target, Relation.LESS, operand)


@dataclass(frozen=True, slots=True)
class Keys:
    """Some keys: one, those with a prefix, or those of a range. A condition on several must hold for each."""

    span: KeySpan

    @property
    def version(self) -> Attribute[int]:
        """Number of writes since it was created."""
        return Attribute(self.span, CompareTarget.VERSION)

    @property
    def create_revision(self) -> Attribute[int]:
        """Revision at which it was created."""
        return Attribute(self.span, CompareTarget.CREATE)

    @property
    def mod_revision(self) -> Attribute[int]:
        """Revision of its last write."""
        return Attribute(self.span, CompareTarget.MOD)

    @property
    def lease(self) -> Attribute[int]:
        """Lease that it is attached to."""
        return Attribute(self.span, CompareTarget.LEASE)

    @property
    def value(self) -> Attribute[bytes]:
        """Its value; a condition on the value of a key that does not exist never holds."""
        return Attribute(self.span, CompareTarget.VALUE)

    @property
    def exists(self) -> Compare:
        """Require it to exist."""
        return self.version.is_greater_than(0)

    @property
    def is_missing(self) -> Compare:
        """Require it not to exist."""
        return self.version.equals(0)


def key(name: bytes) -> Keys:
    """Return one key."""
    return Keys(KeySpan.single(name))


def prefix(name: bytes) -> Keys:
    """Return the keys that begin with something."""
    return Keys(KeySpan.prefix(name))


def between(start: bytes, end: bytes | None) -> Keys:
    """Return the keys from one on and before another, None for all that follow."""
    return Keys(KeySpan(start, end))


def put(
    name: bytes, value: bytes, *, lease: int = 0, content_type: str = "", wants_previous: bool = False
) -> PutOperation:
    """Write a key.

    Args:
        name: The key.
        value: Its new value.
        lease: The lease that it is to end with, 0 for none.
        content_type: Media type to store with the value, empty for none.
        wants_previous: Whether the result shall have the key as it was.
    """
    return PutOperation(name, value, lease, wants_previous, content_type)


def touch(name: bytes, *, lease: int = 0) -> PutOperation:
    """Write a key that exists, with the value and the content type that it has."""
    return PutOperation(name, None, lease)


def delete(keys: Keys, *, wants_previous: bool = False) -> DeleteOperation:
    """Delete keys."""
    return DeleteOperation(keys.span, wants_previous)


def get(
    keys: Keys,
    *,
    limit: int = 0,
    revision: int = 0,
    sort_by: SortTarget = SortTarget.KEY,
    order: SortOrder = SortOrder.NONE,
    keys_only: bool = False,
    count_only: bool = False,
) -> RangeQuery:
    """Read keys.

    Args:
        keys: Which.
        limit: At most how many, 0 for all.
        revision: As they were at a revision, 0 for now.
        sort_by: By what to sort.
        order: In which direction.
        keys_only: Leave the values out.
        count_only: Only count them.
    """
    return RangeQuery(keys.span, limit, revision, sort_by, order, keys_only, count_only)


class TransactionBuilder:
    """A transaction that grows; each method returns a new one.

    Args:
        commit: Sends it.
        transaction: What there is of it so far.
    """

    def __init__(
        self,
        commit: Callable[[Transaction], Awaitable[TransactionResult]],
        transaction: Transaction = Transaction((), (), ()),  # noqa: B008 - it is frozen
    ) -> None:
        self._commit = commit
        self.transaction = transaction

    def when(self, *conditions: Compare) -> Self:
        """Add conditions, all of which must hold."""
        return self._with(replace(self.transaction, compares=(*self.transaction.compares, *conditions)))

    def then(self, *operations: Operation) -> Self:
        """Add operations for when all conditions hold."""
        return self._with(replace(self.transaction, success=(*self.transaction.success, *operations)))

    def otherwise(self, *operations: Operation) -> Self:
        """Add operations for when one does not."""
        return self._with(replace(self.transaction, failure=(*self.transaction.failure, *operations)))

    async def commit(self) -> TransactionResult:
        """Carry it out: all of it or nothing.

        Raises:
            NotApplied: It was refused; nothing was written.
            UnknownOutcome: It may have been applied, or may yet be.
            AlreadyApplied: It was, in a try whose answer was lost and was too large to be kept.
        """
        return await self._commit(self.transaction)

    def _with(self, transaction: Transaction) -> Self:
        return type(self)(self._commit, transaction)
