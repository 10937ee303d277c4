"""Writes of one key under a condition that names several revisions, which are transactions to the store."""

from __future__ import annotations

from raftkv.http.preconditions import ListedRevisions
from raftkv.operations import (
    Compare,
    CompareTarget,
    DeleteOperation,
    DeleteResult,
    KeySpan,
    PutOperation,
    RangeQuery,
    RangeResult,
    Relation,
    Safeguards,
    Transaction,
)
from raftkv.service.api import StoreService
from raftkv.types import ConditionFailed, Revision, Written


async def write_listed(
    store: StoreService,
    operation: PutOperation | DeleteOperation,
    condition: ListedRevisions,
    safeguards: Safeguards,
) -> Written | ConditionFailed:
    """Write or delete a key if the condition holds.

    Args:
        store: Where.
        operation: The write of the key, or the deletion of that key alone.
        condition: What must hold.
        safeguards: What the request asks for.

    Raises:
        NotApplied: It was refused.
        UnknownOutcome: It may have been applied, or may yet be.
    """
    span = KeySpan.single(operation.key) if isinstance(operation, PutOperation) else operation.span
    # A transaction compares with "and". That the revision is one of several is the opposite of its being none of them.
    is_none = [
        Compare(span, CompareTarget.MOD, Relation.NOT_EQUAL, revision) for revision in sorted(condition.revisions)
    ]
    if condition.must_exist:
        is_none.append(Compare(span, CompareTarget.VERSION, Relation.GREATER, 0))
    look = RangeQuery(span, keys_only=True)
    write, refuse = (operation, look), (look,)
    branches = (refuse, write) if condition.is_wanted else (write, refuse)
    result = await store.transact(Transaction(tuple(is_none), *branches), safeguards=safeguards)
    found = result.results[-1]
    assert isinstance(found, RangeResult), "each branch ends with a look at the key"
    if result.succeeded is condition.is_wanted:
        return ConditionFailed(result.revision, found.items[0].mod_revision if found.items else Revision(0))
    done = result.results[0]
    if isinstance(done, DeleteResult):
        return Written(result.revision, None, deleted=done.deleted)
    return Written(result.revision, found.items[0])
