"""What was rendered for one client and may soon be asked for by the next: a bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import orjson

_MAX_BYTES = 16_777_216


class Renderings:
    """The latest renderings, forgotten all at once when there are too many bytes of them."""

    def __init__(self) -> None:
        self._known: dict[Hashable, orjson.Fragment] = {}
        self._bytes = 0

    def get(self, name: Hashable, render: Callable[[], object]) -> orjson.Fragment:
        """Return a rendering.

        Args:
            name: Identifies what is rendered and every option of the rendering: an event by its revision and its
                sub-revision, since one transaction may put and delete a key.
            render: Makes the document when it is not known.
        """
        known = self._known.get(name)
        if known is not None:
            return known
        text = orjson.dumps(render())
        if self._bytes + len(text) > _MAX_BYTES:
            self._known.clear()
            self._bytes = 0
        self._bytes += len(text)
        fragment = self._known[name] = orjson.Fragment(text)
        return fragment
