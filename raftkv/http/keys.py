"""The native key-value API: ``/v1/kv/{key}`` and the listing at ``/v1/kv``."""

from __future__ import annotations

from aiohttp import hdrs, web

from raftkv.http.answers import (
    CONTENT_SECURITY_POLICY,
    X_CHANGED,
    X_CONSISTENCY,
    X_CONTENT_TYPE,
    X_CONTENT_TYPE_OPTIONS,
    X_CREATE_REVISION,
    X_LEASE,
    X_REVISION,
    X_VERSION,
    json_response,
)
from raftkv.http.body import read_body, refuse_body
from raftkv.http.json_body import wants_base64
from raftkv.http.leases import MAX_LEASE_ID
from raftkv.http.listed_writes import write_listed
from raftkv.http.listing import key_parameter, parse_listing, render_page
from raftkv.http.media_types import (
    CONTENT_TYPE_PARAMETER,
    SANDBOX,
    media_type_of,
    requested_media_type,
    sent_media_type,
)
from raftkv.http.open_ended import MAX_WAIT_SECONDS, OpenEnded
from raftkv.http.preconditions import MAX_REVISION, ListedRevisions, etag, is_expected, is_unchanged, write_condition
from raftkv.http.problems import (
    INVALID_KEY,
    INVALID_PRECONDITION,
    INVALID_QUERY,
    KEY_NOT_FOUND,
    PRECONDITION_FAILED,
    ProblemError,
)
from raftkv.http.routing import Call
from raftkv.http.safeguards import read_safeguards
from raftkv.http.target import Query, percent_decode
from raftkv.operations import DeleteOperation, DeleteResult, KeySpan, PutOperation, RangeQuery, Transaction
from raftkv.service.api import KeyValueService, StoreService, WatchService
from raftkv.service.key_changes import KeyChanges
from raftkv.types import MAX_KEY_BYTES, MAX_VALUE_BYTES, ConditionFailed, Consistency, KeyValue, Read, Revision

CONSISTENCIES = tuple(consistency.value for consistency in Consistency)

_DEFAULT_WAIT_SECONDS = 60.0


class KeyApi:
    """Handlers of the native key-value API.

    Args:
        kv: The node's key-value service.
        store: The node's ranges and transactions.
        watches: Tell of changes.
        open_ended: What ends reads that wait.
        body_timeout_seconds: Time in which a request's body must arrive.
    """

    def __init__(
        self,
        kv: KeyValueService,
        store: StoreService,
        watches: WatchService,
        open_ended: OpenEnded,
        body_timeout_seconds: float,
    ) -> None:
        self._kv = kv
        self._store = store
        self._changes = KeyChanges(kv, store, watches)
        self._open_ended = open_ended
        self._body_timeout_seconds = body_timeout_seconds

    async def put(self, call: Call) -> web.Response:
        """``PUT /v1/kv/{key}``: the body is the value; 201 when the key is new, 200 when it was replaced."""
        key = _key(call)
        lease, content_type = 0, ""
        if call.query:
            query = Query(call.query, ("lease", CONTENT_TYPE_PARAMETER))
            lease, content_type = query.integer("lease", 0, MAX_LEASE_ID, 0), requested_media_type(query)
        content_type = content_type or sent_media_type(call.request)
        condition = write_condition(call.request)
        value = await read_body(call.request, MAX_VALUE_BYTES, self._body_timeout_seconds)
        safeguards = read_safeguards(call.request, value, content_type)
        if isinstance(condition, ListedRevisions):
            operation = PutOperation(key, value, lease, content_type=content_type)
            outcome = await write_listed(self._store, operation, condition, safeguards)
        else:
            outcome = await self._kv.put(
                key, value, condition, lease=lease, content_type=content_type, safeguards=safeguards
            )
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
        if content_type:
            headers[X_CONTENT_TYPE] = content_type
        return json_response(document, status=201 if current.version == 1 else 200, headers=headers)

    async def delete(self, call: Call) -> web.Response:
        """``DELETE /v1/kv/{key}``: without ``If-Match``, deleting a key that does not exist succeeds too."""
        key = _key(call)
        _refuse_query(call)
        refuse_body(call.request)
        condition = write_condition(call.request)
        safeguards = read_safeguards(call.request)
        if isinstance(condition, ListedRevisions):
            deletion = DeleteOperation(KeySpan.single(key))
            outcome = await write_listed(self._store, deletion, condition, safeguards)
        else:
            outcome = await self._kv.delete(key, condition, safeguards=safeguards)
        if isinstance(outcome, ConditionFailed):
            raise _precondition_failed(outcome)
        document = {"deleted": outcome.deleted, "revision": outcome.revision}
        return json_response(document, headers={X_REVISION: str(outcome.revision)})

    async def delete_prefix(self, call: Call) -> web.Response:
        """``DELETE /v1/kv?prefix=``: every key with the prefix in one revision, or none."""
        refuse_body(call.request)
        query = Query(call.query, ("prefix", "encoding"))
        prefix = key_parameter(query, "prefix", as_base64=wants_base64(query))
        if not prefix:
            # Such as a variable of a script that is not set.
            detail = 'the prefix must not be empty; a transaction with {"delete": {"prefix": ""}} deletes every key'
            raise ProblemError(INVALID_QUERY, detail)
        for name in (hdrs.IF_MATCH, hdrs.IF_NONE_MATCH):
            if name in call.request.headers:
                raise ProblemError(INVALID_PRECONDITION, f"{name} is about one key; a transaction has other conditions")
        deletion = Transaction((), (DeleteOperation(KeySpan.prefix(prefix)),), ())
        result = await self._store.transact(deletion, safeguards=read_safeguards(call.request))
        (deleted,) = result.results
        assert isinstance(deleted, DeleteResult), "the result of a deletion"
        document = {"deleted": deleted.deleted, "revision": result.revision}
        return json_response(document, headers={X_REVISION: str(result.revision)})

    async def get(self, call: Call) -> web.Response:
        """``GET`` and ``HEAD /v1/kv/{key}``: the value as it was written; as of a revision, or after a change."""
        request = call.request
        key = _key(call)
        refuse_body(request)
        requested, consistency = "", Consistency.LINEARIZABLE
        more_headers: dict[str, str] = {}
        if call.query:
            query = Query(call.query, ("consistency", "revision", "index", "wait", CONTENT_TYPE_PARAMETER))
            requested, consistency = requested_media_type(query), consistency_of(query)
            read, more_headers = await self._read(request, key, query, consistency)
        else:
            # Most reads are plain, and need not look for what they do not have.
            read = await self._kv.get(key, consistency)
        if read.found is None:
            headers = _read_headers(read.revision, consistency) | more_headers
            raise ProblemError(
                KEY_NOT_FOUND, "the key does not exist", members={"revision": read.revision}, headers=headers
            )
        headers = _key_headers(read.found, read.revision) | _read_headers(read.revision, consistency) | more_headers
        if not is_expected(request, read.found.mod_revision):
            raise _precondition_failed(ConditionFailed(read.revision, read.found.mod_revision))
        if is_unchanged(request, read.found.mod_revision):
            return web.Response(status=304, headers=headers)
        headers[hdrs.CONTENT_TYPE] = requested or read.found.content_type or media_type_of(key)
        # Values are other people's bytes: a browser must neither guess what they are nor let a page of them act.
        headers[X_CONTENT_TYPE_OPTIONS] = "nosniff"
        headers[CONTENT_SECURITY_POLICY] = SANDBOX
        return web.Response(body=read.found.value, headers=headers)

    async def _read(
        self, request: web.BaseRequest, key: bytes, query: Query, consistency: Consistency
    ) -> tuple[Read, dict[str, str]]:
        """Read a key as the query asks; return it with headers that say how."""
        waits, is_past = query.all("index"), query.all("revision")
        if query.all("wait") and not waits:
            raise ProblemError(INVALID_QUERY, "wait needs index: the revision behind which a change is waited for")
        if waits and is_past:
            raise ProblemError(INVALID_QUERY, "index and revision exclude each other: the past does not change")
        if waits:
            known = Revision(query.integer("index", 0, MAX_REVISION, 0))
            wait_seconds = query.seconds("wait", MAX_WAIT_SECONDS, _DEFAULT_WAIT_SECONDS)
            reading = self._changes.after(key, known, wait_seconds, consistency)
            awaited = await self._open_ended.run(request, reading)
            return awaited.read, {X_CHANGED: "true" if awaited.is_changed else "false"}
        if not is_past:
            return await self._kv.get(key, consistency), {}
        revision = Revision(query.integer("revision", 1, MAX_REVISION, 0))
        past = RangeQuery(KeySpan.single(key), revision=revision)
        items = (await self._store.range(past, is_stale=consistency is Consistency.STALE)).result.items
        return Read(revision, items[0] if items else None), {}

    async def list(self, call: Call) -> web.Response:
        """``GET`` and ``HEAD /v1/kv``: one page of keys in byte order, or with ``count_only`` how many there are."""
        refuse_body(call.request)
        query = Query(call.query, ("prefix", "start", "limit", "keys_only", "consistency", "encoding", "count_only"))
        listing = parse_listing(query)
        consistency = consistency_of(query)
        if listing.counts_only:
            counted = await self._store.range(
                RangeQuery(listing.span, count_only=True), is_stale=consistency is Consistency.STALE
            )
            document = {"revision": counted.revision, "count": counted.result.count}
            return json_response(document, headers=_read_headers(counted.revision, consistency))
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
    if current.content_type:
        headers[X_CONTENT_TYPE] = current.content_type
    return headers


def _precondition_failed(outcome: ConditionFailed) -> ProblemError:
    headers: dict[str, str] = {X_REVISION: str(outcome.revision)}
    detail = "the key does not exist"
    if outcome.mod_revision:
        headers[hdrs.ETAG] = etag(outcome.mod_revision)
        detail = f"the key was last written at revision {outcome.mod_revision}"
    members = {"mod_revision": outcome.mod_revision, "revision": outcome.revision}
    return ProblemError(PRECONDITION_FAILED, detail, members=members, headers=headers)
