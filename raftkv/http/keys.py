"""The native key-value API: ``/v1/kv/{key}`` and the listing at ``/v1/kv``."""

from __future__ import annotations

from aiohttp import hdrs, web

from raftkv.http.answers import (
    X_CONSISTENCY,
    X_CONTENT_TYPE_OPTIONS,
    X_CREATE_REVISION,
    X_LEASE,
    X_REVISION,
    X_VERSION,
    json_response,
)
from raftkv.http.body import read_body, refuse_body
from raftkv.http.leases import MAX_LEASE_ID
from raftkv.http.listing import parse_listing, render_page
from raftkv.http.preconditions import etag, refuse_if_match, unchanged, write_condition
from raftkv.http.problems import INVALID_KEY, KEY_NOT_FOUND, PRECONDITION_FAILED, ProblemError
from raftkv.http.routing import Call
from raftkv.http.safeguards import read_safeguards
from raftkv.http.target import Query, percent_decode
from raftkv.service.api import KeyValueService
from raftkv.types import MAX_KEY_BYTES, MAX_VALUE_BYTES, ConditionFailed, Consistency, KeyValue, Revision

CONSISTENCIES = tuple(consistency.value for consistency in Consistency)


class KeyApi:
    """Handlers of the native key-value API.

    Args:
        kv: The node's key-value service.
        body_timeout_seconds: Time in which a request's body must arrive.
    """

    def __init__(self, kv: KeyValueService, body_timeout_seconds: float) -> None:
        self._kv = kv
        self._body_timeout_seconds = body_timeout_seconds

    async def put(self, call: Call) -> web.Response:
        """``PUT /v1/kv/{key}``: the body is the value; 201 when the key is new, 200 when it was replaced."""
        key = _key(call)
        lease = Query(call.query, ("lease",)).integer("lease", 0, MAX_LEASE_ID, 0) if call.query else 0
        condition = write_condition(call.request, may_create=True)
        value = await read_body(call.request, MAX_VALUE_BYTES, self._body_timeout_seconds)
        safeguards = read_safeguards(call.request, value)
        outcome = await self._kv.put(key, value, condition, lease=lease, safeguards=safeguards)
        if isinstance(outcome, ConditionFailed):
            raise _precondition_failed(outcome)
        current = outcome.current
        assert current is not None, "a put leaves the key in place"
        document = {
            "revision": outcome.revision,
            "create_revision": current.create_revision,
            "mod_revision": current.mod_revision,
            "version": current.version,
        }
        headers = _key_headers(current, outcome.revision)
        return json_response(document, status=201 if current.version == 1 else 200, headers=headers)

    async def delete(self, call: Call) -> web.Response:
        """``DELETE /v1/kv/{key}``: without ``If-Match``, deleting a key that does not exist succeeds too."""
        key = _key(call)
        _refuse_query(call)
        refuse_body(call.request)
        condition = write_condition(call.request, may_create=False)
        outcome = await self._kv.delete(key, condition, safeguards=read_safeguards(call.request))
        if isinstance(outcome, ConditionFailed):
            raise _precondition_failed(outcome)
        document = {"deleted": outcome.deleted, "revision": outcome.revision}
        return json_response(document, headers={X_REVISION: str(outcome.revision)})

    async def get(self, call: Call) -> web.Response:
        """``GET`` and ``HEAD /v1/kv/{key}``: the value as it was written."""
        request = call.request
        key = _key(call)
        refuse_body(request)
        refuse_if_match(request)
        consistency = consistency_of(Query(call.query, ("consistency",))) if call.query else Consistency.LINEARIZABLE
        read = await self._kv.get(key, consistency)
        if read.found is None:
            headers = _read_headers(read.revision, consistency)
            raise ProblemError(
                KEY_NOT_FOUND, "the key does not exist", members={"revision": read.revision}, headers=headers
            )
        headers = _key_headers(read.found, read.revision) | _read_headers(read.revision, consistency)
        if unchanged(request, read.found.mod_revision):
            return web.Response(status=304, headers=headers)
        headers[hdrs.CONTENT_TYPE] = "application/octet-stream"
        # Values are other people's bytes: a browser must not guess that they are a page of this origin.
        headers[X_CONTENT_TYPE_OPTIONS] = "nosniff"
        return web.Response(body=read.found.value, headers=headers)

    async def list(self, call: Call) -> web.Response:
        """``GET`` and ``HEAD /v1/kv``: one page of keys in byte order."""
        refuse_body(call.request)
        query = Query(call.query, ("prefix", "start", "limit", "keys_only", "consistency", "encoding"))
        listing = parse_listing(query)
        consistency = consistency_of(query)
        page = await self._kv.list(
            listing.prefix,
            start=listing.start,
            limit=listing.limit,
            keys_only=listing.keys_only,
            consistency=consistency,
        )
        return json_response(render_page(page, listing), headers=_read_headers(page.revision, consistency))


def _key(call: Call) -> bytes:
    key = percent_decode(call.tail)
    if not key:
        raise ProblemError(INVALID_KEY, "the key is empty; keys are listed at /v1/kv")
    if len(key) > MAX_KEY_BYTES:
        raise ProblemError(INVALID_KEY, f"the key has {len(key)} bytes; at most {MAX_KEY_BYTES} are allowed")
    return key


def _refuse_query(call: Call) -> None:
    if call.query:
        Query(call.query, ())


def consistency_of(query: Query) -> Consistency:
    """Return what a read must promise."""
    return Consistency(query.choice("consistency", CONSISTENCIES, Consistency.LINEARIZABLE.value))


def _read_headers(revision: Revision, consistency: Consistency) -> dict[str, str]:
    # no-cache lets a cache keep the answer but makes it ask each time, with If-None-Match.
    headers: dict[str, str] = {
        X_REVISION: str(revision),
        hdrs.CACHE_CONTROL: "no-cache",
        hdrs.SERVER: "raftkv",
    }
    if consistency is Consistency.STALE:
        headers[X_CONSISTENCY] = consistency.value
    return headers


def _key_headers(current: KeyValue, revision: Revision) -> dict[str, str]:
    headers: dict[str, str] = {
        hdrs.ETAG: etag(current.mod_revision),
        X_REVISION: str(revision),
        X_CREATE_REVISION: str(current.create_revision),
        X_VERSION: str(current.version),
    }
    if current.lease:
        headers[X_LEASE] = str(current.lease)
    return headers


def _precondition_failed(outcome: ConditionFailed) -> ProblemError:
    headers: dict[str, str] = {X_REVISION: str(outcome.revision)}
    detail = "the key does not exist"
    if outcome.mod_revision:
        headers[hdrs.ETAG] = etag(outcome.mod_revision)
        detail = f"the key was last written at revision {outcome.mod_revision}"
    members = {"mod_revision": outcome.mod_revision, "revision": outcome.revision}
    return ProblemError(PRECONDITION_FAILED, detail, members=members, headers=headers)
