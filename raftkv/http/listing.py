"""The listing's parameters and its page in JSON, as text or as base64."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from raftkv.http.items import render_item, render_strings
from raftkv.http.json_body import wants_base64
from raftkv.http.problems import INVALID_QUERY, ProblemError
from raftkv.http.target import Query
from raftkv.operations import KeySpan
from raftkv.types import MAX_KEY_BYTES, KeyRange

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Listing:
    """What a listing asks for.

    Attributes:
        prefix: What every key begins with.
        start: First key to list, empty for the first with the prefix.
        limit: Most keys on the page.
        keys_only: Whether to leave the values out.
        as_base64: Whether keys and values travel as base64 instead of text.
        counts_only: Whether to answer with the number of the keys alone, however many there are.
    """

    prefix: bytes
    start: bytes
    limit: int
    keys_only: bool
    as_base64: bool
    counts_only: bool

    @property
    def span(self) -> KeySpan:
        """The keys that it is about, on this page and on all that follow."""
        whole = KeySpan.prefix(self.prefix)
        return KeySpan(max(whole.start, self.start), whole.end)


def parse_listing(query: Query) -> Listing:
    """Return what the query asks for.

    Raises:
        ProblemError: A parameter is not valid.
    """
    as_base64 = wants_base64(query)
    counts_only = query.flag("count_only")
    if counts_only and (query.all("limit") or query.all("keys_only")):
        raise ProblemError(INVALID_QUERY, "count_only counts every key, so limit and keys_only have no meaning with it")
    return Listing(
        prefix=key_parameter(query, "prefix", as_base64=as_base64),
        start=key_parameter(query, "start", as_base64=as_base64),
        limit=query.integer("limit", 1, MAX_LIMIT, DEFAULT_LIMIT),
        keys_only=query.flag("keys_only"),
        as_base64=as_base64,
        counts_only=counts_only,
    )


def render_page(page: KeyRange, listing: Listing) -> dict[str, Any]:
    """Return a page as a JSON document."""
    as_base64 = listing.as_base64
    following = {} if page.next_key is None else render_strings({"next": page.next_key}, as_base64=as_base64)
    document = {
        "revision": page.revision,
        "items": [render_item(item, as_base64=as_base64, keys_only=listing.keys_only) for item in page.items],
        "next": following.get("next"),
    }
    if "encoding" in following:
        document["next_encoding"] = following["encoding"]
    return document


def key_parameter(query: Query, name: str, *, as_base64: bool) -> bytes:
    """Return a key, or what keys begin with.

    Raises:
        ProblemError: It is too long, or not base64.
    """
    raw = query.raw(name, b"")
    if as_base64:
        raw = _from_base64(name, raw)
    if len(raw) > MAX_KEY_BYTES:
        raise ProblemError(INVALID_QUERY, f"{name} has {len(raw)} bytes; at most {MAX_KEY_BYTES} are allowed")
    return raw


def _from_base64(name: str, raw: bytes) -> bytes:
    try:
        return base64.b64decode(raw, validate=True)
    except binascii.Error:
        shown = raw.decode("utf-8", "backslashreplace")
        hint = "; in a query '+' must be written as %2B" if b" " in raw else ""
        raise ProblemError(INVALID_QUERY, f"{name} is not base64: {shown!r}{hint}") from None
