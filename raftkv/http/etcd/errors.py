"""Errors as etcd tells them: a gRPC code, its HTTP status, and the very sentence that clients compare with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import IntEnum

import orjson
from aiohttp import hdrs, web

from raftkv import errors
from raftkv.http.problems import printable
from raftkv.http.request_ids import request_id_of

_log = logging.getLogger("raftkv.http.etcd")


class Code(IntEnum):
    """The gRPC codes that etcd uses."""

    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


_STATUS: Mapping[Code, int] = {
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.NOT_FOUND: 404,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
}


class GatewayError(Exception):
    """A request that ends with an error of etcd's.

    Attributes:
        code: Its gRPC code.
        message: Its sentence.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def response(self) -> web.Response:
        """Return the answer to a unary request."""
        headers = {hdrs.CONTENT_TYPE: "application/json", hdrs.SERVER: "raftkv"}
        return web.Response(status=_STATUS[self.code], body=self.document(), headers=headers)

    def document(self) -> bytes:
        """Return the JSON of that answer."""
        return orjson.dumps({"error": self.message, "message": self.message, "code": int(self.code)})

    def frame(self) -> bytes:
        """Return the last frame of a stream that ends with it; the fields of both generations of the gateway."""
        status = _STATUS[self.code]
        reason = _REASONS[status]
        error = {
            "grpc_code": int(self.code),
            "http_code": status,
            "message": self.message,
            "http_status": reason,
            "code": int(self.code),
        }
        return orjson.dumps({"error": error})


_REASONS = {400: "Bad Request", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error"}
_REASONS |= {501: "Not Implemented", 503: "Service Unavailable"}


def invalid(message: str) -> GatewayError:
    """Return the error of a request that is wrong."""
    return GatewayError(Code.INVALID_ARGUMENT, message)


KEY_MISSING = "etcdserver: key is not provided"
REQUEST_TOO_LARGE = "etcdserver: request is too large"
NO_LEADER = "etcdserver: no leader"
LEADER_CHANGED = "etcdserver: leader changed"
TIMED_OUT = "etcdserver: request timed out"

_KNOWN: Mapping[type[errors.RaftkvError], tuple[Code, str]] = {
    errors.RevisionCompacted: (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted"),
    errors.RevisionInFuture: (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision"),
    errors.LeaseNotFound: (Code.NOT_FOUND, "etcdserver: requested lease not found"),
    errors.LeaseExists: (Code.FAILED_PRECONDITION, "etcdserver: lease already exists"),
    errors.KeyMissing: (Code.INVALID_ARGUMENT, "etcdserver: key not found"),
    errors.MemberMissing: (Code.NOT_FOUND, "etcdserver: member not found"),
    errors.MemberExists: (Code.FAILED_PRECONDITION, "etcdserver: Peer URLs already exists"),
    errors.MembersUnsettled: (Code.UNAVAILABLE, "etcdserver: unhealthy cluster"),
    errors.MemberChangeRefused: (
        Code.FAILED_PRECONDITION,
        "etcdserver: re-configuration failed due to not enough started members",
    ),
    errors.SpaceExceeded: (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded"),
    errors.NotLeader: (Code.UNAVAILABLE, LEADER_CHANGED),
    errors.NoLeader: (Code.UNAVAILABLE, NO_LEADER),
    errors.Superseded: (Code.UNAVAILABLE, LEADER_CHANGED),
    errors.LeadershipLost: (Code.UNAVAILABLE, LEADER_CHANGED),
    errors.ClusterVersionTooLow: (Code.FAILED_PRECONDITION, "etcdserver: not capable"),
    errors.Overloaded: (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests"),
    errors.BuffersFull: (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests"),
    errors.OutcomesFull: (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests"),
    errors.StorageLow: (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded"),
    errors.ShuttingDown: (Code.UNAVAILABLE, "etcdserver: server stopped"),
    errors.NotApplied: (Code.UNAVAILABLE, TIMED_OUT),
    errors.UnknownOutcome: (Code.UNAVAILABLE, TIMED_OUT),
}


def gateway_error_of(error: Exception, request: web.BaseRequest | None = None) -> GatewayError:
    """Return the error that answers another one; log an unexpected one with its traceback.

    Args:
        error: The error.
        request: The request, for the log; None for an error that is certainly a known one.
    """
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, errors.InvalidRequest):
        return invalid(f"etcdserver: {error}")
    if isinstance(error, errors.MemberUnreachable):
        # etcd has no words for it, since it changes the address unseen.
        return GatewayError(Code.FAILED_PRECONDITION, f"etcdserver: {error}")
    for base in type(error).__mro__:
        if base in _KNOWN:
            return GatewayError(*_KNOWN[base])
    what = "" if request is None else f" {request_id_of(request)} to {printable(request.raw_path)}"
    _log.error("request%s failed unexpectedly", what, exc_info=error)
    return GatewayError(Code.INTERNAL, "an unexpected error, described in the node's log")
