"""The Python client of raftkv's HTTP interface.

A client is given some endpoints and finds its way: it follows redirects to the leader, goes to the next endpoint when
one fails, and waits out elections until its deadline. Every write carries an idempotency key, so a try that got no
answer is repeated without harm. A write ends in exactly one of three ways: its result, a ``NotApplied`` error (it has
no effect), or an ``UnknownOutcome`` error (it may have one).

``Client`` is for asyncio; ``BlockingClient`` is the same for programs without it.
"""

from raftkv.client import txn
from raftkv.client.answers import (
    ClusterView,
    Counted,
    Deleted,
    Found,
    Leader,
    MemberView,
    Missing,
    StateCheckView,
    Stored,
)
from raftkv.client.blocking import BlockingClient
from raftkv.client.client import Client
from raftkv.client.failures import (
    ClusterChanged,
    ConditionNotMet,
    EventTooLarge,
    ImportedBatch,
    ImportStopped,
    LeaseLost,
    NotAcquired,
    UnexpectedAnswer,
    Unreachable,
)
from raftkv.client.leases import HeldLease
from raftkv.client.maintenance import EndpointStatus
from raftkv.client.members import KnownMember, MemberList
from raftkv.client.snapshots import TakenSnapshot
from raftkv.client.turns import Fence, HeldLock, Leadership
from raftkv.client.watch import Change, WatchedChange
from raftkv.tls import TlsFiles

__all__ = [
    "BlockingClient",
    "Change",
    "Client",
    "ClusterChanged",
    "ClusterView",
    "ConditionNotMet",
    "Counted",
    "Deleted",
    "EndpointStatus",
    "EventTooLarge",
    "Fence",
    "Found",
    "HeldLease",
    "HeldLock",
    "ImportStopped",
    "ImportedBatch",
    "KnownMember",
    "Leader",
    "Leadership",
    "LeaseLost",
    "MemberList",
    "MemberView",
    "Missing",
    "NotAcquired",
    "StateCheckView",
    "Stored",
    "TakenSnapshot",
    "TlsFiles",
    "UnexpectedAnswer",
    "Unreachable",
    "WatchedChange",
    "txn",
]
