"""Connections beyond the limit: health checks and metrics are served on a few of them, all else is refused.

When clients hold every connection of a node, the node is healthy. Without these connections kubelet's probes would fail
and it would be killed, and no metric would show why.
"""

from __future__ import annotations

from typing import Protocol

PROBE_CONNECTIONS = 32
"""Connections beyond the limit that are read or served at the same time."""

HEAD_SECONDS = 1.0
"""Time in which the head of the request must arrive."""

SERVE_SECONDS = 5.0
"""Time in which the request must be answered, and the answer read."""

PROBE_PATHS = ("/livez", "/readyz", "/health", "/metrics")
_METHODS = (b"GET", b"HEAD")


def is_probe_path(path: str) -> bool:
    """Whether a path is of health or metrics."""
    return any(path == known or path.startswith(f"{known}/") for known in PROBE_PATHS)


_END_OF_HEAD = b"\r\n\r\n"
_MAX_HEAD_BYTES = 8192


class Head:
    """The head of one request, as it arrives."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._end = -1

    def feed(self, data: bytes) -> bool:
        """Take bytes; return whether the head is complete, or too long to be one."""
        start = max(0, len(self._received) - len(_END_OF_HEAD))
        self._received += data[: _MAX_HEAD_BYTES + 1]
        self._end = self._received.find(_END_OF_HEAD, start)
        return self._end >= 0 or len(self._received) > _MAX_HEAD_BYTES

    @property
    def probe(self) -> bytes | None:
        """The head when it is of a request that is always served, else None; what follows it is dropped."""
        head = bytes(self._received[: self._end + len(_END_OF_HEAD)]) if self._end >= 0 else b""
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")
        return head if is_probe_path(path) and method in _METHODS else None


class Refusable(Protocol):
    """A connection beyond the limit whose request has not arrived yet."""

    def refuse(self) -> None:
        """Answer that there are too many connections, and close."""
        ...


class ProbeConnections:
    """The connections beyond the limit that are read or served.

    One that is too many takes the place of the one that has been silent for longest: a probe sends its request at once.
    """

    def __init__(self) -> None:
        self._reading: dict[Refusable, None] = {}
        self._serving: set[Refusable] = set()

    def admit(self, connection: Refusable) -> bool:
        """Begin to read a request; False when all connections are being served."""
        if len(self._reading) + len(self._serving) >= PROBE_CONNECTIONS:
            if not self._reading:
                return False
            next(iter(self._reading)).refuse()
        self._reading[connection] = None
        return True

    def serve(self, connection: Refusable) -> None:
        """Note that a connection's request is a probe."""
        del self._reading[connection]
        self._serving.add(connection)

    def leave(self, connection: Refusable) -> None:
        """Note that a connection was refused or has ended."""
        self._reading.pop(connection, None)
        self._serving.discard(connection)

    def refuse_all(self) -> None:
        """Refuse what has not asked anything yet: the node is stopping."""
        for connection in list(self._reading):
            connection.refuse()
