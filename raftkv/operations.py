"""What can be asked of the store beyond single keys: ranges, transactions, events; the words that all layers share.

The meaning is etcd's (its ``rpc.proto``): revisions, versions and comparisons count as there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

from raftkv.types import KeyValue, Revision

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class AtRevision(Generic[_Result]):
    """A result with the store's revision of its own operation.

    The store may be further when the result is used, so a handler must not ask the store again.

    Attributes:
        revision: Of a write, the revision that it made; of a read, and of a write that changed no key, the revision of
            the state that it saw.
        result: The result.
    """

    revision: Revision
    result: _Result


@dataclass(frozen=True, slots=True)
class KeySpan:
    """Keys from ``start`` on and before ``end``; None means to the last.

    Attributes:
        start: The first key that may be in it.
        end: The first that is behind it.
    """

    start: bytes
    end: bytes | None

    @classmethod
    def single(cls, key: bytes) -> KeySpan:
        """Return the span of one key: nothing stands between it and itself with a zero byte behind."""
        return cls(key, key + b"\0")

    @classmethod
    def prefix(cls, prefix: bytes) -> KeySpan:
        """Return the span of all keys that begin with a prefix."""
        kept = prefix.rstrip(b"\xff")
        return cls(prefix, kept[:-1] + bytes([kept[-1] + 1]) if kept else None)

    @property
    def is_single(self) -> bool:
        """Whether it is the span of one key."""
        return self.end is not None and len(self.end) == len(self.start) + 1 and self.end == self.start + b"\0"

    def __contains__(self, key: bytes) -> bool:
        return self.start <= key and (self.end is None or key < self.end)

    def overlaps(self, other: KeySpan) -> bool:
        """Whether some key could be in both."""
        return (self.end is None or other.start < self.end) and (other.end is None or self.start < other.end)


class SortTarget(Enum):
    """By what a range is sorted."""

    KEY = "key"
    VERSION = "version"
    CREATE = "create"
    MOD = "mod"
    VALUE = "value"


class SortOrder(Enum):
    """In which direction; ``NONE`` is ascending, and by key the order of the store itself."""

    NONE = "none"
    ASCEND = "ascend"
    DESCEND = "descend"


@dataclass(frozen=True, slots=True)
class RangeQuery:
    """A read of the keys of a span.

    Attributes:
        span: The keys.
        limit: Keys at most, 0 for all.
        revision: At which revision, 0 for the present one.
        target: By what to sort.
        order: In which direction.
        keys_only: Leave the values out.
        count_only: Return no keys, only their number.
        min_mod_revision: Leave out keys that were last written before this; 0 for none.
        max_mod_revision: Leave out keys that were last written after this; 0 for none.
        min_create_revision: Leave out keys that were created before this; 0 for none.
        max_create_revision: Leave out keys that were created after this; 0 for none.
    """

    span: KeySpan
    limit: int = 0
    revision: int = 0
    target: SortTarget = SortTarget.KEY
    order: SortOrder = SortOrder.NONE
    keys_only: bool = False
    count_only: bool = False
    min_mod_revision: int = 0
    max_mod_revision: int = 0
    min_create_revision: int = 0
    max_create_revision: int = 0


@dataclass(frozen=True, slots=True)
class RangeResult:
    """What a range read found.

    Attributes:
        items: The keys.
        count: Number of keys of the span, whatever the limit and the filters.
        more: Whether the limit left some out.
    """

    items: tuple[KeyValue, ...]
    count: int
    more: bool


@dataclass(frozen=True, slots=True)
class PutOperation:
    """A write of a key.

    Attributes:
        key: The key.
        value: Its new value; None keeps the old one, of a key that must exist.
        lease: Lease to attach it to, 0 for none; None keeps the old one, of a key that must exist.
        wants_previous: Whether the result shall have the key as it was.
        content_type: Media type to store with the value, empty for none. A value that is kept keeps its own.
    """

    key: bytes
    value: bytes | None
    lease: int | None = 0
    wants_previous: bool = False
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class PutResult:
    """A put that happened, with the key as it was when that was wanted and it existed."""

    previous: KeyValue | None


@dataclass(frozen=True, slots=True)
class DeleteOperation:
    """A removal of all keys of a span.

    Attributes:
        span: The keys.
        wants_previous: Whether the result shall have the keys as they were.
    """

    span: KeySpan
    wants_previous: bool = False


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """A delete that happened: how many keys, and these as they were when that was wanted."""

    deleted: int
    previous: tuple[KeyValue, ...]


class CompareTarget(Enum):
    """What of a key is compared."""

    VERSION = "version"
    CREATE = "create"
    MOD = "mod"
    VALUE = "value"
    LEASE = "lease"


class Relation(Enum):
    """How it must stand to the operand."""

    EQUAL = "equal"
    GREATER = "greater"
    LESS = "less"
    NOT_EQUAL = "not equal"


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition on every key of a span; a missing key counts as zero, and its value stands in no relation.

    Attributes:
        span: The keys; one that is a single key is compared even when it does not exist.
        target: What of them is compared.
        relation: How it must stand to the operand.
        operand: A number, or bytes for a value.
    """

    span: KeySpan
    target: CompareTarget
    relation: Relation
    operand: int | bytes


@dataclass(frozen=True, slots=True)
class Transaction:
    """Operations that happen together: ``success`` when all comparisons hold, else ``failure``."""

    compares: tuple[Compare, ...]
    success: tuple[Operation, ...]
    failure: tuple[Operation, ...]


@dataclass(frozen=True, slots=True)
class TransactionResult:
    """Which branch was taken, the results of its operations, and the store's revision after it."""

    succeeded: bool
    results: tuple[OperationResult, ...]
    revision: Revision


Operation = RangeQuery | PutOperation | DeleteOperation | Transaction
OperationResult = RangeResult | PutResult | DeleteResult | TransactionResult


class RefusalKind(Enum):
    """Why a command was refused when its turn came."""

    KEY_NOT_FOUND = "key not found"
    LEASE_NOT_FOUND = "lease not found"
    LEASE_EXISTS = "lease exists"
    COMPACTED = "compacted"
    FUTURE_REVISION = "future revision"
    NO_SPACE = "no space"
    FENCED = "fenced"
    KEY_REUSED = "idempotency key reused"
    TOO_MANY_OUTCOMES = "too many outcomes"
    MEMBER_UNKNOWN = "member unknown"
    MEMBER_TAKEN = "member taken"
    CHANGE_REFUSED = "membership change refused"
    TOO_MANY_KEYS = "too many keys"


@dataclass(frozen=True, slots=True)
class Refused:
    """A command that was not carried out at all.

    Attributes:
        kind: Why.
        text: The same for people.
    """

    kind: RefusalKind
    text: str


class EventKind(Enum):
    """What happened to a key."""

    PUT = "put"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Event:
    """A change of one key.

    Attributes:
        kind: What happened.
        item: The key as it is now; of a deleted one only key and mod revision mean something.
        sub_revision: Position among the events of its revision, from 0; with the revision it identifies the event. A
            client does not know it, and has 0.
    """

    kind: EventKind
    item: KeyValue
    sub_revision: int = 0

    @property
    def is_creation(self) -> bool:
        """Whether the key did not exist before it."""
        return self.kind is EventKind.PUT and self.item.version == 1


@dataclass(frozen=True, slots=True)
class Watch:
    """What to watch.

    Attributes:
        span: The keys.
        start: First revision to see, 0 for what comes from now on.
        ignored: Kinds of events to leave out.
        wants_previous: Whether each event comes with the key as it was before.
    """

    span: KeySpan
    start: int = 0
    ignored: frozenset[EventKind] = frozenset()
    wants_previous: bool = False


@dataclass(frozen=True, slots=True)
class WatchedEvent:
    """An event, with the key as it was before when that is wanted and known."""

    revision: int
    event: Event
    previous: KeyValue | None


MAX_OPERATIONS = 128
"""In one branch of a transaction, etcd's default."""

MAX_TRANSACTION_PARTS = 4224
"""Operations and compares of a transaction and of all nested ones, in both branches: they are read in some 30 ms."""

MAX_TRANSACTION_BYTES = 1_572_864
"""1.5 MiB of keys, values with their content types, and framing, etcd's default."""

MAX_VISITED_KEYS = 100_000
"""Keys that one transaction visits at most, together with those nested in it: compared, read and deleted ones.

Every member does this when it applies the transaction, and applies nothing else meanwhile. What a transaction does
follows from this bound and the next: members of different bounds would differ, so another one needs another cluster
version.
"""

MAX_READ_BYTES = 33_554_432
"""32 MiB of keys and values that one transaction reads at most, together with those nested in it.

Every member builds its result, also where no client waits for it, so that results can be compared.
"""

MAX_LEASE_SECONDS = 9_000_000_000
"""The longest time of a lease, etcd's."""


def is_read_only(transaction: Transaction) -> bool:
    """Whether neither branch can change anything."""
    return all(
        isinstance(operation, RangeQuery) or (isinstance(operation, Transaction) and is_read_only(operation))
        for operation in (*transaction.success, *transaction.failure)
    )


def may_put(transaction: Transaction) -> bool:
    """Whether one of the branches has a put."""
    return any(
        isinstance(operation, PutOperation) or (isinstance(operation, Transaction) and may_put(operation))
        for operation in (*transaction.success, *transaction.failure)
    )


def transaction_bytes(transaction: Transaction) -> int:
    """Return what a transaction's keys, values and content types count towards ``MAX_TRANSACTION_BYTES``."""
    size = 0
    for compare in transaction.compares:
        size += len(compare.span.start) + (len(compare.operand) if isinstance(compare.operand, bytes) else 8)
    for operation in (*transaction.success, *transaction.failure):
        if isinstance(operation, Transaction):
            size += transaction_bytes(operation)
        elif isinstance(operation, PutOperation):
            size += len(operation.key) + len(operation.value or b"") + len(operation.content_type)
        else:
            size += len(operation.span.start)
    return size


@dataclass(frozen=True, slots=True)
class Fence:
    """A lock under which a write is allowed, enforced when the write is applied.

    Attributes:
        prefix: What the keys of the lock begin with; the oldest of them is the holder's.
        token: The holder's fencing token, the create revision of its key.
    """

    prefix: bytes
    token: int


@dataclass(frozen=True, slots=True)
class Idempotency:
    """By what a write is recognised when it is sent again.

    Attributes:
        key: Chosen by the caller for this one write.
        fingerprint: 16 bytes, a digest of the request: another one under the same key is refused.
    """

    key: bytes
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Safeguards:
    """Under what a write is to be applied, beside its own conditions.

    Attributes:
        fence: The lock that its sender believes to hold.
        idempotency: By what it is recognised when it comes again.
    """

    fence: Fence | None = None
    idempotency: Idempotency | None = None


NO_SAFEGUARDS = Safeguards()

MAX_IDEMPOTENCY_KEY_BYTES = 255
FINGERPRINT_BYTES = 16


@dataclass(frozen=True, slots=True)
class StoreHash:
    """A digest of the keys and their history, equal on all members at one revision and compacted revision.

    Attributes:
        value: 32 bits.
        revision: Up to which revision.
        compacted_revision: Up to which only the keys as they were then are part of it.
        store_revision: The store's revision when the digest was asked for.
    """

    value: int
    revision: int
    compacted_revision: int
    store_revision: Revision


class AlarmKind(Enum):
    """What an alarm warns of; the values are etcd's."""

    NO_SPACE = 1
    """The store has reached its quota: nothing that would let it grow is accepted."""

    CORRUPT = 2
    """A member's log contradicts the leader's, or its store a majority's."""

    @property
    def label(self) -> str:
        """Its name, etcd's."""
        return self.name.replace("_", "")


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm; two of one kind and member are the same.

    Attributes:
        kind: What it warns of.
        member: The member that raised it.
        is_automatic: Whether that was the quota, which then clears it too; else whoever raised it must.
    """

    kind: AlarmKind
    member: str
    is_automatic: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease.

    Attributes:
        id: Its number, from 1.
        seconds: Time for which it was granted, and is again with each keep-alive.
    """

    id: int
    seconds: int


@dataclass(frozen=True, slots=True)
class LeaseTime:
    """What is left of a lease.

    Attributes:
        granted_seconds: For how long it was granted.
        remaining_seconds: What is left, rounded down.
        keys: Its keys, when they were asked for.
    """

    granted_seconds: int
    remaining_seconds: int
    keys: tuple[bytes, ...]
