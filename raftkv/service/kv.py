"""Reads and writes of keys: checks the request, then goes through the log or the read gate."""

from __future__ import annotations

from typing import Protocol

from raftkv.errors import InvalidRequest
from raftkv.media_types import fault_of_media_type
from raftkv.operations import NO_SAFEGUARDS, Refused, Safeguards
from raftkv.service.reads import ReadGate
from raftkv.service.refusals import error_of
from raftkv.service.slices import Slices
from raftkv.service.writes import Writes
from raftkv.store.commands import Delete, Put
from raftkv.store.steps import Steps
from raftkv.types import (
    MAX_KEY_BYTES,
    MAX_VALUE_BYTES,
    Condition,
    ConditionFailed,
    Consistency,
    KeyRange,
    KeyValue,
    Read,
    Revision,
    Written,
)

MAX_PAGE_BYTES = 4_194_304
"""A page of a listing ends once its values reach this size."""


class Reader(Protocol):
    """What reads need of the store."""

    @property
    def revision(self) -> Revision:
        """The store's revision."""
        ...

    def get(self, key: bytes) -> KeyValue | None:
        """Return a live key."""
        ...

    def list_steps(
        self, prefix: bytes, start: bytes, limit: int, *, keys_only: bool, max_bytes: int
    ) -> Steps[KeyRange | Refused]:
        """Return a page of live keys, read in steps."""
        ...


class KeyValues:
    """The key-value service of one node (``raftkv.service.api.KeyValueService``).

    Args:
        store: The local store.
        writes: The way of writes.
        gate: The way of linearizable reads.
        slices: Runs long reads.
    """

    def __init__(self, store: Reader, writes: Writes, gate: ReadGate, slices: Slices) -> None:
        self._store = store
        self._slices = slices
        self._writes = writes
        self._gate = gate

    async def put(
        self,
        key: bytes,
        value: bytes,
        condition: Condition | None = None,
        *,
        lease: int = 0,
        content_type: str = "",
        safeguards: Safeguards = NO_SAFEGUARDS,
    ) -> Written | ConditionFailed:
        """Write a key; return when the write is durable on a majority and applied here."""
        check_key(key)
        if len(value) > MAX_VALUE_BYTES:
            raise InvalidRequest(f"the value has {len(value)} bytes, the limit is {MAX_VALUE_BYTES}")
        check_content_type(content_type)
        return await self._write(Put(key, value, lease, condition, content_type), safeguards)

    async def delete(
        self, key: bytes, condition: Condition | None = None, *, safeguards: Safeguards = NO_SAFEGUARDS
    ) -> Written | ConditionFailed:
        """Delete a key if it exists."""
        check_key(key)
        return await self._write(Delete(key, condition), safeguards)

    async def get(self, key: bytes, consistency: Consistency = Consistency.LINEARIZABLE) -> Read:
        """Read a key."""
        check_key(key)
        if consistency is Consistency.LINEARIZABLE:
            await self._gate.wait()
        return Read(self._store.revision, self._store.get(key))

    async def list(
        self,
        prefix: bytes,
        *,
        start: bytes = b"",
        limit: int,
        keys_only: bool = False,
        consistency: Consistency = Consistency.LINEARIZABLE,
    ) -> KeyRange:
        """List the keys that begin with a prefix, from ``start`` on."""
        for name, key in (("prefix", prefix), ("start", start)):
            if len(key) > MAX_KEY_BYTES + 1:
                raise InvalidRequest(f"the {name} has {len(key)} bytes, keys have at most {MAX_KEY_BYTES}")
        if limit < 1:
            raise InvalidRequest(f"the limit must be at least 1, not {limit}")
        if consistency is Consistency.LINEARIZABLE:
            await self._gate.wait()
        page = await self._slices.run(
            self._store.list_steps(prefix, start, limit, keys_only=keys_only, max_bytes=MAX_PAGE_BYTES)
        )
        if isinstance(page, Refused):
            raise error_of(page)
        return page

    async def _write(self, command: Put | Delete, safeguards: Safeguards) -> Written | ConditionFailed:
        result = await self._writes.apply(command, safeguards)
        assert isinstance(result, Written | ConditionFailed), "the result of a write"
        return result


def check_key(key: bytes) -> None:
    """Refuse a key that is empty or too long.

    Raises:
        InvalidRequest: It is.
    """
    if not key:
        raise InvalidRequest("the key is empty")
    if len(key) > MAX_KEY_BYTES:
        raise InvalidRequest(f"the key has {len(key)} bytes, the limit is {MAX_KEY_BYTES}")


def check_content_type(content_type: str) -> None:
    """Refuse a content type that no value may have; an empty one stands for none.

    Raises:
        InvalidRequest: It is none.
    """
    fault = fault_of_media_type(content_type) if content_type else None
    if fault is not None:
        raise InvalidRequest(f"the content type {fault}")
