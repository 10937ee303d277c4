"""Media types of values: each follows from the suffix of the key's name, as a file's does, or the reader names it.

So nothing is stored with a value. What is written through etcd's API, imported or restored from a backup has a type as
well, and no write by one client makes the value another thing for the next.
"""

from __future__ import annotations

import re

from raftkv.http.problems import INVALID_QUERY, ProblemError
from raftkv.http.target import Query

CONTENT_TYPE_PARAMETER = "content_type"

_UNKNOWN = "application/octet-stream"

SANDBOX = "sandbox"
"""Content security policy of values: they are other people's bytes, and none of them may act in the node's origin."""

_TEXT = "text/plain; charset=utf-8"

# A table of our own: that of the operating system differs from node to node.
_OF_SUFFIX = {
    b"cfg": _TEXT,
    b"conf": _TEXT,
    b"crt": "application/x-pem-file",
    b"css": "text/css; charset=utf-8",
    b"csv": "text/csv; charset=utf-8",
    b"env": _TEXT,
    b"gif": "image/gif",
    b"gz": "application/gzip",
    b"htm": "text/html; charset=utf-8",
    b"html": "text/html; charset=utf-8",
    b"ini": _TEXT,
    b"jpeg": "image/jpeg",
    b"jpg": "image/jpeg",
    b"js": "text/javascript; charset=utf-8",
    b"json": "application/json",
    b"jsonl": "application/jsonl",
    b"log": _TEXT,
    b"md": "text/markdown; charset=utf-8",
    b"pdf": "application/pdf",
    b"pem": "application/x-pem-file",
    b"png": "image/png",
    b"properties": _TEXT,
    b"svg": "image/svg+xml",
    b"toml": "application/toml",
    b"txt": _TEXT,
    b"wasm": "application/wasm",
    b"webp": "image/webp",
    b"xml": "application/xml",
    b"yaml": "application/yaml",
    b"yml": "application/yaml",
    b"zip": "application/zip",
}

_TOKEN = r"[A-Za-z0-9!#$&^_.+-]{1,127}"  # noqa: S105 - of a header, no secret
_GIVEN = re.compile(rf"{_TOKEN}/{_TOKEN}(; ?{_TOKEN}={_TOKEN}){{0,4}}", re.ASCII)


def media_type_of(key: bytes) -> str:
    """Return the type of a key's value, by the suffix of its name."""
    name = key[key.rfind(b"/") + 1 :]
    dot = name.rfind(b".")
    return _OF_SUFFIX.get(name[dot + 1 :].lower(), _UNKNOWN) if dot > 0 else _UNKNOWN


def requested_media_type(query: Query) -> str | None:
    """Return the type that a reader wants a value to have, None when it does not say.

    Raises:
        ProblemError: It is no media type (RFC 9110, section 8.3.1).
    """
    if not query.all(CONTENT_TYPE_PARAMETER):
        return None
    text = query.raw(CONTENT_TYPE_PARAMETER, b"").decode("utf-8", "backslashreplace")
    if _GIVEN.fullmatch(text) is None:
        raise ProblemError(
            INVALID_QUERY, f"{CONTENT_TYPE_PARAMETER} must be a media type such as application/json, not {text!r}"
        )
    return text
