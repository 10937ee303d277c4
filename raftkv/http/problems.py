"""Every refusal and failure as an RFC 9457 problem document, and the one table from error to answer.

A ``type`` is ``urn:raftkv:problem:`` plus a slug; slug, status and meaning are stable and listed in
``docs/http-errors.md``. Every problem has the extension member ``applied``: ``no`` when the request certainly
has no effect, ``unknown`` when it may have one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote_from_bytes

import orjson
from aiohttp import hdrs, web

from raftkv import errors

_log = logging.getLogger("raftkv.http")

TYPE_PREFIX = "urn:raftkv:problem:"
CONTENT_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of problem.

    Attributes:
        slug: The last part of its ``type``, stable.
        status: HTTP status.
        title: What it is, the same for every occurrence.
        applied: Whether the request may have taken effect.
        retry_after: Seconds for ``Retry-After``, None when waiting alone cannot help.
    """

    slug: str
    status: int
    title: str
    applied: Literal["no", "yes", "unknown"] = "no"
    retry_after: int | None = None


MALFORMED_REQUEST = Kind("malformed-request", 400, "The request is not valid HTTP")
INVALID_REQUEST = Kind("invalid-request", 400, "The request is not valid")
INVALID_TARGET = Kind("invalid-target", 400, "The request target is not a path of this server")
INVALID_ENCODING = Kind("invalid-encoding", 400, "A percent-encoding is not valid")
INVALID_KEY = Kind("invalid-key", 400, "The key is empty or too long")
INVALID_QUERY = Kind("invalid-query", 400, "A query parameter is not valid")
INVALID_PRECONDITION = Kind("invalid-precondition", 400, "A precondition header is not valid")
INVALID_JSON = Kind("invalid-json", 400, "The body is not the JSON that this request takes")
INVALID_HEADER = Kind("invalid-header", 400, "A header is not valid")
DUPLICATE_KEY = Kind("duplicate-key", 400, "The transaction writes a key twice")
NOT_ACQUIRED = Kind("not-acquired", 409, "Somebody else holds it", retry_after=1)
NOT_ELECTED = Kind("not-elected", 404, "Nobody is elected")
UNEXPECTED_BODY = Kind("unexpected-body", 400, "This request takes no body")
MALFORMED_BODY = Kind("malformed-body", 400, "The body's transfer coding is not valid")
TRUNCATED_BODY = Kind("truncated-body", 400, "The body ended before its announced end")
KEY_NOT_FOUND = Kind("key-not-found", 404, "The key does not exist")
NO_SUCH_RESOURCE = Kind("no-such-resource", 404, "Nothing is served at this path")
METHOD_NOT_ALLOWED = Kind("method-not-allowed", 405, "This path does not support the method")
REQUEST_TIMEOUT = Kind("request-timeout", 408, "The request did not arrive in time")
PRECONDITION_FAILED = Kind("precondition-failed", 412, "The key is not in the required state")
VALUE_TOO_LARGE = Kind("value-too-large", 413, "The value is too large")
EXPECTATION_FAILED = Kind("expectation-failed", 417, "The Expect header asks for something unknown")
INTERNAL_ERROR = Kind("internal-error", 500, "The server failed", applied="unknown")
TOO_MANY_CONNECTIONS = Kind("too-many-connections", 503, "The node takes no more connections", retry_after=5)
NOT_LEADER = Kind("not-leader", 307, "Another node is the leader")
LEADER_URL_UNKNOWN = Kind("leader-url-unknown", 503, "The leader's client URL is not known yet", retry_after=1)

KIND_OF_ERROR: Mapping[type[errors.RaftkvError], Kind] = {
    errors.InvalidRequest: INVALID_REQUEST,
    errors.KeyMissing: Kind("key-missing", 409, "A key whose value or lease is to be kept does not exist"),
    errors.LeaseNotFound: Kind("lease-not-found", 404, "The lease does not exist"),
    errors.LeaseExists: Kind("lease-exists", 409, "The lease exists already"),
    errors.SpaceExceeded: Kind("space-exceeded", 507, "The store has reached its quota"),
    errors.NotHeld: Kind("not-held", 409, "The lock or candidacy is gone"),
    errors.FenceLost: Kind("fence-lost", 412, "The lock is not held under this token"),
    errors.IdempotencyKeyReused: Kind("idempotency-key-reused", 422, "The idempotency key stands for another request"),
    errors.AlreadyApplied: Kind("already-applied", 409, "The request was applied before", applied="yes"),
    errors.RevisionCompacted: Kind("revision-compacted", 410, "The revision is older than what history is kept of"),
    errors.RevisionInFuture: Kind("revision-in-future", 400, "The store has not reached the revision yet"),
    errors.NotLeader: NOT_LEADER,
    errors.NoLeader: Kind("no-leader", 503, "No leader can be reached", retry_after=1),
    errors.LogsContradict: Kind("logs-contradict", 503, "The members' logs contradict each other", retry_after=1),
    errors.BackupFailed: Kind("backup-failed", 503, "A copy of the store could not be made", retry_after=1),
    errors.MemberMissing: Kind("member-not-found", 404, "The member does not exist"),
    errors.MemberExists: Kind("member-exists", 409, "Another member has that name or address"),
    errors.MembersUnsettled: Kind(
        "members-unsettled", 503, "Another change of the membership is under way", retry_after=1
    ),
    errors.MemberUnreachable: Kind("member-unreachable", 409, "The member does not answer at that address"),
    errors.MemberChangeRefused: Kind("member-change-refused", 409, "The change would stop the cluster"),
    errors.TransferFailed: Kind("transfer-failed", 503, "The leadership was not taken over", retry_after=1),
    errors.Superseded: Kind("superseded", 503, "Another leader's entry took the request's place", retry_after=1),
    errors.ClusterVersionTooLow: Kind("cluster-version-too-low", 409, "The cluster's version does not allow this yet"),
    errors.Overloaded: Kind("overloaded", 429, "Too many requests are waiting", retry_after=1),
    errors.BuffersFull: Kind("buffers-full", 503, "Too many bytes are held for clients", retry_after=1),
    errors.OutcomesFull: Kind(
        "outcomes-full", 429, "Results of idempotent writes take as much as they may", retry_after=1
    ),
    errors.StorageLow: Kind("storage-low", 507, "The node's disk is nearly full"),
    errors.ShuttingDown: Kind("shutting-down", 503, "The node is stopping", retry_after=1),
    errors.ReadTimeout: Kind("read-timeout", 503, "The read was not confirmed in time", retry_after=1),
    errors.NotApplied: Kind("refused", 503, "The request was refused", retry_after=1),
    errors.Timeout: Kind("timeout", 504, "The outcome was not known in time", applied="unknown"),
    errors.LeadershipLost: Kind(
        "leadership-lost", 504, "The outcome is unknown: leadership was lost", applied="unknown"
    ),
    errors.UnknownOutcome: Kind("outcome-unknown", 504, "The outcome is unknown", applied="unknown"),
    errors.RaftkvError: INTERNAL_ERROR,
}
"""The answer to each error of a service; an error that is not listed is answered like its nearest base."""


class ProblemError(Exception):
    """A request that ends with a problem document.

    Attributes:
        kind: What kind of problem.
        detail: What is wrong with this very request, for people.
        members: Further members of the document.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        members: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        # Bytes of a request that are not UTF-8 arrive as lone surrogates, which JSON cannot carry.
        self.detail = detail.encode("utf-8", "backslashreplace").decode("utf-8")
        self.members = members or {}
        self.headers = headers or {}

    def document(self, request_id: str | None = None) -> bytes:
        """Return the problem document as JSON.

        Args:
            request_id: The id of the request, None for one that was not read.
        """
        kind = self.kind
        return orjson.dumps(
            {
                "type": TYPE_PREFIX + kind.slug,
                "title": kind.title,
                "status": kind.status,
                "detail": self.detail or kind.title,
                "applied": kind.applied,
                **self.members,
                **({} if request_id is None else {"request_id": request_id}),
            }
        )

    def response(self, request_id: str) -> web.Response:
        """Return the answer that carries the document, with the id of the request."""
        headers = {
            hdrs.CONTENT_TYPE: CONTENT_TYPE,
            hdrs.CACHE_CONTROL: "no-store",
            hdrs.SERVER: "raftkv",
            **self.headers,
        }
        if self.kind.retry_after is not None:
            headers[hdrs.RETRY_AFTER] = str(self.kind.retry_after)
        return web.Response(status=self.kind.status, body=self.document(request_id), headers=headers)


def problem_of(error: Exception, target: str, request_id: str) -> ProblemError:
    """Return the problem that answers an error; log an unexpected one with its traceback.

    Args:
        error: What a handler raised.
        target: Path and query of the request as they arrived, for the redirect to the leader.
        request_id: The request's id, for the log.
    """
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, errors.NotLeader):
        return _redirect(error, target)
    kind = next((KIND_OF_ERROR[base] for base in type(error).__mro__ if base in KIND_OF_ERROR), INTERNAL_ERROR)
    if kind is INTERNAL_ERROR:
        _log.error("request %s to %s failed unexpectedly", request_id, printable(target), exc_info=error)
        return ProblemError(kind, "an unexpected error, described in the node's log")
    members = {"revision": error.revision} if isinstance(error, errors.AlreadyApplied) else None
    return ProblemError(kind, str(error), members=members)


def printable(text: str) -> str:
    """Return a part of a request so escaped that headers and logs can carry it; as a URL it is the same."""
    raw = text.encode("utf-8", "surrogateescape")
    return quote_from_bytes(raw, safe="!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def _redirect(error: errors.NotLeader, target: str) -> ProblemError:
    members = {"leader": error.leader}
    if error.leader_url is None:
        return ProblemError(LEADER_URL_UNKNOWN, f"{error}, and its client URL is not known yet", members=members)
    location = error.leader_url.rstrip("/") + printable(target)
    return ProblemError(NOT_LEADER, str(error), members=members, headers={hdrs.LOCATION: location})


def truncated() -> ProblemError:
    """Return the problem of a body whose sender stopped before its end."""
    return ProblemError(TRUNCATED_BODY, "the connection ended before the whole body had arrived")
