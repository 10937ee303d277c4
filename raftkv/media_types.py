"""Media types (RFC 9110, section 8.3.1) as they are stored with values: what is one, and how long it may be."""

from __future__ import annotations

import re

MAX_CONTENT_TYPE_BYTES = 255
"""Of a value's content type: room for two names of the greatest length that RFC 6838 allows, and a slash.

The store's records have one byte for its length.
"""

_NAME = r"[A-Za-z0-9!#$%&'*+.^_`|~-]"
_QUOTED = r'"(?:[\t !#-\[\]-~]|\\[\t -~])*"'
# Possessive, since blanks between two semicolons could be told apart in many ways.
# No blanks at the end: in a header they are not part of the value, so a reader would get another text.
_MEDIA_TYPE = re.compile(
    rf"({_NAME}{{1,127}})/({_NAME}{{1,127}})(?:[ \t]*+;[ \t]*+(?:{_NAME}+=(?:{_NAME}+|{_QUOTED}))?+)*+(?<![ \t])",
    re.ASCII,
)


def fault_of_media_type(text: str) -> str | None:
    """Return why a text cannot be the content type of a value, as the rest of a sentence about it; None when it can."""
    if not text:
        return "is empty"
    if len(text) > MAX_CONTENT_TYPE_BYTES:
        return f"has {len(text)} characters; at most {MAX_CONTENT_TYPE_BYTES} are allowed"
    found = _MEDIA_TYPE.fullmatch(text)
    if found is None:
        return f"must be a media type such as application/json, perhaps with parameters, not {text!r}"
    if "*" in found.groups():
        return f"must be one media type, not the range of types {text!r}"
    return None


def essence_of(text: str) -> str:
    """Return a media type in lower case, without its parameters."""
    return text.partition(";")[0].strip().lower()
