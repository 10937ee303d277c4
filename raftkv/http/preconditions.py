"""Precondition headers (RFC 9110, section 13) as compare-and-swap on the mod revision, the ETag."""

from __future__ import annotations

import re
from dataclasses import dataclass

from aiohttp import hdrs, web

from raftkv.http.problems import INVALID_PRECONDITION, ProblemError
from raftkv.types import Condition, Revision

MAX_REVISION = 2**63 - 1

MAX_TAGS = 50
"""Revisions that the condition of a write may name: each travels with the key, and the value must fit in with them."""

_MEMBER = re.compile(r'(?P<weak>W/)?"(?P<opaque>[^"\s]*)"(?=[ \t]*(?:,|$))|(?P<other>[^,\s][^,]*)')
_OWN = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ListedRevisions:
    """A condition of a write that names several revisions of the key's last write, or none.

    Attributes:
        revisions: They.
        is_wanted: Whether the last write must be one of them; else it must be none of them.
        must_exist: Whether the key must exist, where its last write must be none of them.
    """

    revisions: frozenset[Revision]
    is_wanted: bool
    must_exist: bool = False


@dataclass(frozen=True, slots=True)
class _Tags:
    """What a header names.

    Attributes:
        is_any: Whether it is ``*``.
        strong: Revisions of strong ETags of this server.
        all: Those of weak ones too, which compare equal where validators are compared weakly.
        malformed: The first member that is no ETag of anybody, None when there is none.
    """

    is_any: bool
    strong: frozenset[Revision]
    all: frozenset[Revision]
    malformed: str | None


def etag(revision: Revision) -> str:
    """Return the ETag of a key that was last written at a revision."""
    return f'"{revision}"'


def write_condition(request: web.BaseRequest) -> Condition | ListedRevisions | None:
    """Return the condition under which a write may happen, None when it is unconditional.

    ETags of others match nothing. What is no ETag at all matches nothing in ``If-Match``, which prevents the write.
    In ``If-None-Match``, where it would allow one that was meant to be conditional, it is refused.

    Args:
        request: The request.

    Raises:
        ProblemError: ``If-None-Match`` is malformed, or too many revisions are named.
    """
    match, none_match = _tags(request, hdrs.IF_MATCH), _tags(request, hdrs.IF_NONE_MATCH)
    if none_match is not None and none_match.malformed is not None:
        detail = f'{hdrs.IF_NONE_MATCH}: {none_match.malformed!r} is neither an ETag such as "42" nor *'
        raise ProblemError(INVALID_PRECONDITION, detail)
    for name, tags in ((hdrs.IF_MATCH, match), (hdrs.IF_NONE_MATCH, none_match)):
        if tags is not None and len(tags.all) > MAX_TAGS:
            raise ProblemError(INVALID_PRECONDITION, f"{name} of a write may name {MAX_TAGS} revisions")
    return _combined(match, none_match)


def _combined(match: _Tags | None, none_match: _Tags | None) -> Condition | ListedRevisions | None:
    if match is None:
        if none_match is None:
            return None
        if none_match.is_any:
            return Condition(Revision(0))
        return ListedRevisions(none_match.all, is_wanted=False) if none_match.all else None
    if none_match is not None and none_match.is_any:
        # The key would have to exist, and not to.
        return ListedRevisions(frozenset(), is_wanted=True)
    unwanted = frozenset[Revision]() if none_match is None else none_match.all
    if match.is_any:
        return ListedRevisions(unwanted, is_wanted=False, must_exist=True) if unwanted else Condition(None)
    wanted = match.strong - unwanted
    return Condition(next(iter(wanted))) if len(wanted) == 1 else ListedRevisions(wanted, is_wanted=True)


def is_expected(request: web.BaseRequest, current: Revision) -> bool:
    """Tell whether a key is in the state that a reader's ``If-Match`` asks for.

    Args:
        request: The request.
        current: The key's mod revision.
    """
    tags = _tags(request, hdrs.IF_MATCH)
    return tags is None or tags.is_any or current in tags.strong


def is_unchanged(request: web.BaseRequest, current: Revision) -> bool:
    """Tell whether a reader already has what it asks for, so that 304 is the answer.

    Args:
        request: Its ``If-None-Match`` may have weak ETags, because a read compares weakly (RFC 9110, section 13.1.2).
        current: The key's mod revision.
    """
    tags = _tags(request, hdrs.IF_NONE_MATCH)
    return tags is not None and (tags.is_any or current in tags.all)


def _tags(request: web.BaseRequest, name: str) -> _Tags | None:
    values = request.headers.getall(name, ())
    if not values:
        return None
    text = ",".join(values)
    if text.strip(" \t") == "*":
        return _Tags(True, frozenset(), frozenset(), None)
    strong, weak = set[Revision](), set[Revision]()
    malformed: str | None = None
    for member in _MEMBER.finditer(text):
        opaque = member["opaque"]
        if opaque is None:
            malformed = malformed or member["other"].rstrip(" \t")
        elif _OWN.fullmatch(opaque) and int(opaque) <= MAX_REVISION:
            (strong if member["weak"] is None else weak).add(Revision(int(opaque)))
    return _Tags(False, frozenset(strong), frozenset(strong | weak), malformed)
