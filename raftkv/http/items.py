"""Keys and values in the JSON of the native API, as text or as base64."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import quote_from_bytes

from raftkv.http.problems import NOT_TEXT, ProblemError
from raftkv.types import KeyValue


def render_bytes(data: bytes, what: str, key: bytes, *, as_base64: bool) -> str:
    """Return a key or a value as a string.

    Args:
        data: It.
        what: What it is, for the error.
        key: The key that it belongs to.
        as_base64: Whether as base64, not as text.

    Raises:
        ProblemError: It is not text, and base64 was not asked for.
    """
    if as_base64:
        return base64.b64encode(data).decode("ascii")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        named = quote_from_bytes(key, safe="/")
        detail = f"{what} {named} (percent-encoded) is not UTF-8 text; ask with encoding=base64"
        raise ProblemError(NOT_TEXT, detail, members={"key": named}) from None


def render_item(item: KeyValue, *, as_base64: bool, keys_only: bool = False) -> dict[str, Any]:
    """Return a key with its value.

    Raises:
        ProblemError: Something of it is not text, and base64 was not asked for.
    """
    document: dict[str, Any] = {
        "key": render_bytes(item.key, "the key", item.key, as_base64=as_base64),
        "create_revision": item.create_revision,
        "mod_revision": item.mod_revision,
        "version": item.version,
    }
    if not keys_only:
        document["value"] = render_bytes(item.value, "the value of", item.key, as_base64=as_base64)
    if item.lease:
        document["lease"] = item.lease
    return document
