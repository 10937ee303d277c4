"""Keys and values as lines of JSON, in the form that listings have them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import IO, Any

import orjson

from raftkv.cli.failures import NotDone
from raftkv.media_types import fault_of_media_type
from raftkv.operations import PutOperation
from raftkv.types import MAX_KEY_BYTES, MAX_VALUE_BYTES

MAX_LINE_BYTES = 6 * (MAX_KEY_BYTES + MAX_VALUE_BYTES) + 4096
"""Of the largest key and value, each byte escaped as ``\\u0000``, with all other members."""

_TAKEN = frozenset({"key", "value", "encoding", "lease", "content_type"})
_IGNORED = frozenset({"create_revision", "mod_revision", "version"})
"""Members of a listing that say what was, which a write decides anew."""


def read_items(file: IO[bytes], prefix: bytes) -> Iterator[PutOperation]:
    """Yield the items of a file; empty lines are none.

    Args:
        file: Lines such as ``{"key": "a", "value": "1"}``, with ``"encoding": "base64"`` for bytes that are not text.
        prefix: Goes before each key.

    Raises:
        NotDone: A line is no item. The text has its number.
        OSError: The file cannot be read.
    """
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise NotDone(f"line {number}: it has more than {MAX_LINE_BYTES} bytes, which no item has")
        if line.strip():
            try:
                yield _item(line, prefix)
            except ValueError as error:
                raise NotDone(f"line {number}: {error}") from None


def _item(line: bytes, prefix: bytes) -> PutOperation:
    try:
        document = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error})") from None
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - it is the file that is wrong
    unknown = document.keys() - _TAKEN - _IGNORED
    if unknown:
        raise ValueError(f"{min(unknown)!r} is unknown; an item has key, value, encoding, lease and content_type")
    encoding = document.get("encoding", "utf8")
    if encoding not in ("utf8", "base64"):
        raise ValueError(f"encoding must be utf8 or base64, not {encoding!r}")
    key = prefix + _bytes(document, "key", encoding)
    if not 0 < len(key) <= MAX_KEY_BYTES:
        raise ValueError(f"a key has 1 to {MAX_KEY_BYTES} bytes, not {len(key)}")
    value = _bytes(document, "value", encoding)
    if len(value) > MAX_VALUE_BYTES:
        raise ValueError(f"a value has at most {MAX_VALUE_BYTES} bytes, not {len(value)}")
    lease = document.get("lease", 0)
    if type(lease) is not int or not 0 <= lease < 2**63:
        raise ValueError(f"lease must be the id of one, not {lease!r}")
    return PutOperation(key, value, lease, content_type=_content_type(document))


def _content_type(document: dict[str, Any]) -> str:
    if "content_type" not in document:
        return ""
    text = document["content_type"]
    fault = fault_of_media_type(text) if isinstance(text, str) else "must be a string"
    if fault is not None:
        raise ValueError(f"content_type {fault}")
    return str(text)


def _bytes(document: dict[str, Any], name: str, encoding: str) -> bytes:
    text = document.get(name)
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a string")  # noqa: TRY004 - likewise
    if encoding == "utf8":
        return text.encode()
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError(f"{name} is not base64") from None
