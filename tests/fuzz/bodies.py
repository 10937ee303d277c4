"""Random JSON bodies of requests, which name what earlier requests have made."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_NO_LOCK = {"name": "bA==", "key": "bA==", "rev": "1", "lease": "7"}


@dataclass
class Made:
    """What requests have made so far, which later ones use."""

    keys: list[str] = field(default_factory=lambda: ["a"])
    leases: list[str] = field(default_factory=lambda: ["7"])
    revisions: list[int] = field(default_factory=lambda: [1])
    locks: list[dict[str, Any]] = field(default_factory=lambda: [_NO_LOCK])

    def note(self, document: Any) -> None:
        """Take what an answer names."""
        if not isinstance(document, dict):
            return
        header = document.get("header") if isinstance(document.get("header"), dict) else {}
        for value in (document.get("revision"), header.get("revision")):
            if str(value).isdigit():
                self.revisions.append(int(value))
        for value in (document.get("ID"), document.get("id")):
            if isinstance(value, str):
                self.leases.append(value)
        if isinstance(document.get("leader"), dict):
            self.locks.append(document["leader"])
        for each in (self.keys, self.leases, self.revisions, self.locks):
            del each[1:-50]


class Bodies:
    """Draws bodies that are nearly right, or not at all.

    Args:
        rng: Where chance comes from.
        names: Names of the members of objects.
        made: What they may refer to.
    """

    def __init__(self, rng: random.Random, names: Sequence[str], made: Made) -> None:
        self._rng = rng
        self._names = names
        self._made = made

    def draw(self) -> bytes:
        rng = self._rng
        if rng.random() < 0.05:
            return rng.randbytes(rng.randrange(100))
        text = json.dumps(self._value(rng.randrange(1, 5), is_object=True))
        if rng.random() < 0.1:
            at = rng.randrange(len(text) + 1)
            damage = rng.choice(("", "{", "]", '"', ",", "\\u0000", "\0", "1e999", "NaN", "[" * 500))
            text = text[:at] + damage + text[at + 1 :]
        return text.encode("utf-8", "surrogatepass")

    def _value(self, depth: int, *, is_object: bool = False) -> Any:
        rng, made = self._rng, self._made
        kinds = ("object", "list", "word", "word", "number", "number", "made", "odd")
        kind = "object" if is_object else rng.choice(kinds)
        if depth == 0 and kind in ("object", "list"):
            kind = "word"
        if kind == "object":
            return {rng.choice(self._names): self._value(depth - 1) for _ in range(rng.randrange(5))}
        if kind == "list":
            return [self._value(depth - 1, is_object=rng.random() < 0.7) for _ in range(rng.randrange(4))]
        if kind == "word":
            word = rng.choice((b"", b"a", b"\xff", b"\0", b"k" * 5000, rng.choice(made.keys).encode()))
            others = ("a", "%", "é", "\ud800", "EQUAL", "MOD", "NOPUT", "NOSPACE", "1")
            return rng.choice((base64.b64encode(word).decode(), *others))
        if kind == "made":
            return rng.choice((rng.choice(made.leases), rng.choice(made.revisions), rng.choice(made.locks)))
        if kind == "number":
            return rng.choice((0, 1, -1, 3, 2**31, 2**63 - 1, 2**63, -(2**63), 2**64, 10**40, 1.5, 1e300, "7", "-0"))
        return rng.choice((None, True, False, [], {}))
