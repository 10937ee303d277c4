"""The listing's parameters and its page in JSON, as text or as base64."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from raftkv.http.items import render_bytes, render_item
from raftkv.http.problems import INVALID_QUERY, ProblemError
from raftkv.http.target import Query
from raftkv.types import MAX_KEY_BYTES, KeyRange

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
_TEXT = "utf8"
_BASE64 = "base64"


@dataclass(frozen=True, slots=True)
class Listing:
    """What a listing asks for.

    Attributes:
        prefix: What every key begins with.
        start: First key to list, empty for the first with the prefix.
        limit: Most keys on the page.
        keys_only: Whether to leave the values out.
        as_base64: Whether keys and values travel as base64 instead of text.
    """

    prefix: bytes
    start: bytes
    limit: int
    keys_only: bool
    as_base64: bool


def parse_listing(query: Query) -> Listing:
    """Return what the query asks for.

    Raises:
        ProblemError: A parameter is not valid.
    """
    as_base64 = query.choice("encoding", (_TEXT, _BASE64), _TEXT) == _BASE64
    return Listing(
        prefix=_key_parameter(query, "prefix", as_base64=as_base64),
        start=_key_parameter(query, "start", as_base64=as_base64),
        limit=query.integer("limit", 1, MAX_LIMIT, DEFAULT_LIMIT),
        keys_only=query.choice("keys_only", ("true", "false"), "false") == "true",
        as_base64=as_base64,
    )


def render_page(page: KeyRange, listing: Listing) -> dict[str, Any]:
    """Return a page as a JSON document.

    Raises:
        ProblemError: Something on it is not text, and base64 was not asked for.
    """
    next_key, as_base64 = page.next_key, listing.as_base64
    return {
        "revision": page.revision,
        "items": [render_item(item, as_base64=as_base64, keys_only=listing.keys_only) for item in page.items],
        "next": None if next_key is None else render_bytes(next_key, "the key", next_key, as_base64=as_base64),
    }


def _key_parameter(query: Query, name: str, *, as_base64: bool) -> bytes:
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
