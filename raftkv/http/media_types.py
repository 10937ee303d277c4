"""Content types of values: the one that was stored with a value, or else what the suffix of the key's name suggests.

A put stores what its ``Content-Type`` header or its parameter ``content_type`` says. A reader may name another type for
one answer.
"""

from __future__ import annotations

from aiohttp import hdrs, web

from raftkv.http.problems import INVALID_HEADER, INVALID_QUERY, ProblemError
from raftkv.http.target import Query
from raftkv.media_types import essence_of, fault_of_media_type

CONTENT_TYPE_PARAMETER = "content_type"

_UNKNOWN = "application/octet-stream"
_DEFAULT_OF_CLIENTS = "application/x-www-form-urlencoded"

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


def media_type_of(key: bytes) -> str:
    """Return the type of a value that none was stored with, by the suffix of its key's name."""
    name = key[key.rfind(b"/") + 1 :]
    dot = name.rfind(b".")
    return _OF_SUFFIX.get(name[dot + 1 :].lower(), _UNKNOWN) if dot > 0 else _UNKNOWN


def requested_media_type(query: Query) -> str:
    """Return the type that the query of a put or of a read names, empty when it names none.

    Raises:
        ProblemError: It is no media type.
    """
    if not query.all(CONTENT_TYPE_PARAMETER):
        return ""
    text = query.raw(CONTENT_TYPE_PARAMETER, b"").decode("utf-8", "backslashreplace")
    fault = fault_of_media_type(text)
    if fault is not None:
        raise ProblemError(INVALID_QUERY, f"{CONTENT_TYPE_PARAMETER} {fault}")
    return text


def sent_media_type(request: web.BaseRequest) -> str:
    """Return the type that the header of a put says its body has, empty when it says nothing of it.

    ``application/x-www-form-urlencoded`` counts as nothing: curl, wget, urllib and axios send it with every body.

    Raises:
        ProblemError: It is no media type, or there are several.
    """
    given = request.headers.getall(hdrs.CONTENT_TYPE, ())
    if not given:
        return ""
    if len(given) > 1:
        raise ProblemError(INVALID_HEADER, f"{hdrs.CONTENT_TYPE} is there {len(given)} times")
    text = given[0].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    fault = fault_of_media_type(text)
    if fault is not None:
        raise ProblemError(INVALID_HEADER, f"{hdrs.CONTENT_TYPE} {fault}")
    return "" if essence_of(text) == _DEFAULT_OF_CLIENTS else text
