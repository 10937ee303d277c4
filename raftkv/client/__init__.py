"""The Python client of raftkv's HTTP interface.

A client is given some endpoints and finds its way: it follows redirects to the leader, goes to the next endpoint when
one fails, and waits out elections until its deadline. A write ends in exactly one of three ways: its result, a
``NotApplied`` error (it has no effect), or an ``UnknownOutcome`` error (it may have one).
"""

from raftkv.client.answers import ClusterView, Deleted, Found, MemberView, Missing, Stored
from raftkv.client.client import Client
from raftkv.client.failures import ConditionNotMet, UnexpectedAnswer, Unreachable

__all__ = [
    "Client",
    "ClusterView",
    "ConditionNotMet",
    "Deleted",
    "Found",
    "MemberView",
    "Missing",
    "Stored",
    "UnexpectedAnswer",
    "Unreachable",
]
