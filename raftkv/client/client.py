"""The client itself: one method for each thing that can be asked of a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

from raftkv.client.answers import (
    ClusterView,
    Deleted,
    Found,
    Missing,
    Stored,
    parse_cluster,
    parse_deleted,
    parse_found,
    parse_missing,
    parse_page,
    parse_stored,
)
from raftkv.client.dispatch import Dispatcher, Request
from raftkv.client.targets import base64_text, check_value, key_path, query_string
from raftkv.types import Condition, Consistency, KeyRange, KeyValue

DEFAULT_TIMEOUT_SECONDS = 10.0
DEFAULT_ATTEMPT_TIMEOUT_SECONDS = 6.0
"""A node gives up on a request after five seconds by default, so its own word on it comes first."""

PAGE_KEYS = 1000


class Client:
    """Talks to a cluster through some of its nodes; an asynchronous context manager.

    Args:
        endpoints: URLs of nodes, asked in this order until one serves.
        timeout_seconds: Time in which a request must be served by anybody.
        attempt_timeout_seconds: Time after which one node's silence ends a try.

    Raises:
        InvalidRequest: An endpoint is malformed, or there is none.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        attempt_timeout_seconds: float = DEFAULT_ATTEMPT_TIMEOUT_SECONDS,
    ) -> None:
        self._dispatcher = Dispatcher(list(endpoints), timeout_seconds, attempt_timeout_seconds)

    async def __aenter__(self) -> Self:
        await self._dispatcher.open()
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self._dispatcher.close()

    async def put(
        self, key: bytes, value: bytes, condition: Condition | None = None, *, retry_unknown: bool = False
    ) -> Stored:
        """Write a key.

        Args:
            key: The key.
            value: Its new value.
            condition: What must hold of the key for the write to happen.
            retry_unknown: Write again when it is not known whether an earlier try was applied. That is safe only
                where nobody else writes the key: another's write in between would be overwritten.

        Raises:
            ConditionNotMet: The condition did not hold; nothing was written.
            NotApplied: It was refused, or nobody served it in time; nothing was written.
            UnknownOutcome: It may have been written, or may yet be.
        """
        check_value(value)
        headers = _condition_headers(condition)
        request = Request("PUT", key_path(key), value, headers, retry_unknown=retry_unknown)
        return parse_stored(await self._dispatcher.send(request))

    async def delete(self, key: bytes, condition: Condition | None = None) -> Deleted:
        """Delete a key, which need not exist unless the condition says so.

        Raises:
            ConditionNotMet: The condition did not hold; nothing was deleted.
            NotApplied: It was refused, or nobody served it in time; nothing was deleted.
            UnknownOutcome: It may have been deleted, or may yet be.
        """
        request = Request("DELETE", key_path(key), headers=_condition_headers(condition))
        return parse_deleted(await self._dispatcher.send(request))

    async def get(self, key: bytes, consistency: Consistency = Consistency.LINEARIZABLE) -> Found | Missing:
        """Read a key.

        Raises:
            NotApplied: It was refused, or nobody served it in time.
        """
        target = key_path(key) + query_string(_consistency(consistency))
        answer = await self._dispatcher.send(Request("GET", target, is_read=True))
        return parse_missing(answer) if answer.status == 404 else parse_found(key, answer)

    async def list_page(
        self,
        prefix: bytes = b"",
        start: bytes = b"",
        limit: int = PAGE_KEYS,
        *,
        keys_only: bool = False,
        consistency: Consistency = Consistency.LINEARIZABLE,
    ) -> KeyRange:
        """Read one page of the keys with a prefix, in byte order.

        Args:
            prefix: What the keys begin with; empty for all keys.
            start: First key of the page: ``next_key`` of the page before, or empty.
            limit: Most keys on the page, 1 to 1000; there may be fewer although more follow.
            keys_only: Leave the values out.
            consistency: What the read promises.

        Raises:
            NotApplied: It was refused, or nobody served it in time.
        """
        parameters = {
            "prefix": base64_text(prefix),
            "start": base64_text(start),
            "limit": str(limit),
            "keys_only": "true" if keys_only else "false",
            "encoding": "base64",
            **_consistency(consistency),
        }
        request = Request("GET", "/v1/kv" + query_string(parameters), is_read=True)
        return parse_page(await self._dispatcher.send(request))

    async def list(
        self,
        prefix: bytes = b"",
        *,
        keys_only: bool = False,
        consistency: Consistency = Consistency.LINEARIZABLE,
    ) -> AsyncIterator[KeyValue]:
        """Yield all keys with a prefix, in byte order, page by page.

        Each page is read at a revision of its own: a key that is written meanwhile may be seen as it was or as it is.

        Raises:
            NotApplied: A page was refused, or nobody served it in time.
        """
        start: bytes | None = b""
        while start is not None:
            page = await self.list_page(prefix, start, keys_only=keys_only, consistency=consistency)
            for item in page.items:
                yield item
            start = page.next_key

    async def cluster(self) -> ClusterView:
        """Describe the cluster as the node that answers sees it.

        Raises:
            NotApplied: Nobody answered in time.
        """
        return parse_cluster(await self._dispatcher.send(Request("GET", "/v1/cluster", is_read=True)))


def _condition_headers(condition: Condition | None) -> dict[str, str]:
    if condition is None:
        return {}
    if condition.mod_revision is None:
        return {"If-Match": "*"}
    if condition.mod_revision == 0:
        return {"If-None-Match": "*"}
    return {"If-Match": f'"{condition.mod_revision}"'}


def _consistency(consistency: Consistency) -> dict[str, str]:
    return {} if consistency is Consistency.LINEARIZABLE else {"consistency": consistency.value}
