"""Precondition headers (RFC 9110, section 13.1) as compare-and-swap on the mod revision, the ETag."""

from __future__ import annotations

import re

from aiohttp import hdrs, web

from raftkv.http.problems import INVALID_PRECONDITION, ProblemError
from raftkv.types import Condition, Revision

MAX_REVISION = 2**63 - 1
_ETAG = re.compile(r'"([1-9][0-9]{0,18})"')
_MUST_EXIST = Condition(None)
_MUST_NOT_EXIST = Condition(Revision(0))


def etag(revision: Revision) -> str:
    """Return the ETag of a key that was last written at a revision."""
    return f'"{revision}"'


def write_condition(request: web.BaseRequest, *, may_create: bool) -> Condition | None:
    """Return the condition under which a write may happen, None when it is unconditional.

    Args:
        request: Its ``If-Match`` is ``*`` or one strong ETag; its ``If-None-Match`` is ``*``.
        may_create: Whether the write makes sense for a key that does not exist.

    Raises:
        ProblemError: A header has another form, or both are given.
    """
    if_match = _single(request, hdrs.IF_MATCH)
    if_none_match = _single(request, hdrs.IF_NONE_MATCH)
    if if_match is not None and if_none_match is not None:
        raise ProblemError(INVALID_PRECONDITION, "If-Match and If-None-Match exclude each other")
    if if_match is not None:
        return _MUST_EXIST if if_match == "*" else Condition(_revision(hdrs.IF_MATCH, if_match))
    if if_none_match is None:
        return None
    if not may_create:
        raise ProblemError(INVALID_PRECONDITION, "If-None-Match has no meaning here; use If-Match")
    if if_none_match != "*":
        raise ProblemError(INVALID_PRECONDITION, f"If-None-Match of a write must be *, not {if_none_match!r}")
    return _MUST_NOT_EXIST


def unchanged(request: web.BaseRequest, current: Revision) -> bool:
    """Tell whether a reader already has what it asks for, so that 304 is the answer.

    Args:
        request: Its ``If-None-Match`` is ``*`` or a list of ETags, weak ones included, because a read
            compares weakly (RFC 9110, section 13.1.2).
        current: The key's mod revision.
    """
    if_none_match = request.headers.getall(hdrs.IF_NONE_MATCH, ())
    if not if_none_match:
        return False
    text = ",".join(if_none_match)
    if text.strip() == "*":
        return True
    tags = [tag.strip().removeprefix("W/") for tag in text.split(",")]
    return current in [_revision(hdrs.IF_NONE_MATCH, tag) for tag in tags]


def refuse_if_match(request: web.BaseRequest) -> None:
    """Refuse ``If-Match`` on a read, where ignoring it would break the reader's assumption.

    Raises:
        ProblemError: The header is given.
    """
    if hdrs.IF_MATCH in request.headers:
        raise ProblemError(INVALID_PRECONDITION, "If-Match is for writes; a read takes If-None-Match")


def _single(request: web.BaseRequest, name: str) -> str | None:
    values = request.headers.getall(name, ())
    if len(values) > 1:
        raise ProblemError(INVALID_PRECONDITION, f"{name} is given {len(values)} times")
    return values[0] if values else None


def _revision(header: str, tag: str) -> Revision:
    found = _ETAG.fullmatch(tag)
    if found is None or int(found[1]) > MAX_REVISION:
        message = f'{header}: {tag!r} is not an ETag of this server: one quoted revision such as "42"'
        raise ProblemError(INVALID_PRECONDITION, message)
    return Revision(int(found[1]))
