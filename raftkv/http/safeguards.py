"""The headers under which a write is sent: ``Idempotency-Key`` and ``X-Raftkv-Fence``."""

from __future__ import annotations

import hashlib
from urllib.parse import quote_from_bytes

from aiohttp import hdrs, web

from raftkv.http.problems import INVALID_HEADER, ProblemError
from raftkv.http.target import percent_decode
from raftkv.operations import (
    FINGERPRINT_BYTES,
    MAX_IDEMPOTENCY_KEY_BYTES,
    NO_SAFEGUARDS,
    Fence,
    Idempotency,
    Safeguards,
)

IDEMPOTENCY_KEY = "Idempotency-Key"
FENCE = "X-Raftkv-Fence"

_LOCKS = b"raftkv/locks/"
_ELECTIONS = b"raftkv/elections/"
_CONDITIONS = (hdrs.IF_MATCH, hdrs.IF_NONE_MATCH, FENCE)
_MAX_TOKEN = 2**63 - 1


def lock_prefix(name: bytes) -> bytes:
    """Return what the keys of a lock begin with."""
    return _LOCKS + quote_from_bytes(name, safe="").encode() + b"/"


def election_prefix(name: bytes) -> bytes:
    """Return what the keys of an election begin with."""
    return _ELECTIONS + quote_from_bytes(name, safe="").encode() + b"/"


def read_safeguards(request: web.BaseRequest, body: bytes = b"", content_type: str = "") -> Safeguards:
    """Return what a write's headers ask for.

    Args:
        request: The request.
        body: Its body: the same key with another body is another write, and refused.
        content_type: The content type that is stored with the body, empty for none; likewise.

    Raises:
        ProblemError: A header is not valid.
    """
    key, fence = request.headers.get(IDEMPOTENCY_KEY), request.headers.get(FENCE)
    if key is None and fence is None:
        return NO_SAFEGUARDS
    return Safeguards(
        None if fence is None else _fence(fence),
        None if key is None else Idempotency(_idempotency_key(key), _fingerprint(request, body, content_type)),
    )


def _idempotency_key(text: str) -> bytes:
    key = text.encode("utf-8", "surrogateescape")
    if not 0 < len(key) <= MAX_IDEMPOTENCY_KEY_BYTES:
        detail = f"{IDEMPOTENCY_KEY} must have 1 to {MAX_IDEMPOTENCY_KEY_BYTES} bytes, not {len(key)}"
        raise ProblemError(INVALID_HEADER, detail)
    return key


def _fence(text: str) -> Fence:
    lock, colon, token = text.rpartition(":")
    if not (lock and colon and token.isascii() and token.isdigit() and len(token) <= len(str(_MAX_TOKEN))):
        raise ProblemError(INVALID_HEADER, f"{FENCE} must be the lock's name, percent-encoded, a colon and the token")
    if not 0 < int(token) <= _MAX_TOKEN:
        raise ProblemError(INVALID_HEADER, f"{FENCE}: a token is a number from 1 to {_MAX_TOKEN}")
    return Fence(lock_prefix(percent_decode(lock)), int(token))


def _fingerprint(request: web.BaseRequest, body: bytes, content_type: str) -> bytes:
    digest = hashlib.blake2b(digest_size=FINGERPRINT_BYTES)
    parts = [request.method, request.raw_path, *(",".join(request.headers.getall(name, ())) for name in _CONDITIONS)]
    if content_type:
        parts.append(content_type)
    for part in (*(text.encode("utf-8", "surrogateescape") for text in parts), body):
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()
