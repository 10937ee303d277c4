"""Keys and values in the JSON of the native API, as text or as base64."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from raftkv.types import KeyValue


def render_strings(strings: Mapping[str, bytes], *, as_base64: bool) -> dict[str, str]:
    """Return keys and values as members of a document.

    Where text was asked for and one of them is none, all are base64 and a member ``encoding`` says so: what others have
    written must not keep a reader from the rest.

    Args:
        strings: Each by the name of its member.
        as_base64: Whether base64 was asked for.
    """
    if not as_base64:
        try:
            return {name: data.decode() for name, data in strings.items()}
        except UnicodeDecodeError:
            return {**render_strings(strings, as_base64=True), "encoding": "base64"}
    return {name: base64.b64encode(data).decode("ascii") for name, data in strings.items()}


def render_key(key: bytes, *, as_base64: bool) -> str | dict[str, str]:
    """Return a key of a list: a string, or an object with its ``encoding`` where text was asked for and it is none."""
    strings = render_strings({"key": key}, as_base64=as_base64)
    return strings if "encoding" in strings else strings["key"]


def render_item(item: KeyValue, *, as_base64: bool, keys_only: bool = False) -> dict[str, Any]:
    """Return a key with its value; see ``render_strings``."""
    strings = {"key": item.key} if keys_only else {"key": item.key, "value": item.value}
    rendered = render_strings(strings, as_base64=as_base64)
    document: dict[str, Any] = {
        "key": rendered.pop("key"),
        "create_revision": item.create_revision,
        "mod_revision": item.mod_revision,
        "version": item.version,
        **rendered,
    }
    if item.lease:
        document["lease"] = item.lease
    if item.content_type:
        document["content_type"] = item.content_type
    return document
