"""How the other members are, asked all the time."""

from __future__ import annotations

import asyncio
import time

from raftkv.runtime.metrics import Metrics
from raftkv.runtime.replica import Replica
from raftkv.types import NodeId

_PROBE_SECONDS = 1.0


class PeerProbe:
    """Asks every member once a second how it is, to know how long an answer takes.

    Args:
        replica: The node.
        metrics: Who is told.
    """

    def __init__(self, replica: Replica, metrics: Metrics) -> None:
        self._replica = replica
        self._metrics = metrics

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            await asyncio.sleep(_PROBE_SECONDS)
            others = (m.name for m in self._replica.membership.members if m.id != self._replica.member_id)
            await asyncio.gather(*(self._ask(name) for name in others))

    async def _ask(self, peer: NodeId) -> None:
        asked = time.monotonic()
        status = await self._replica.status_of(peer)
        self._metrics.observe_answer(peer, None if status is None else time.monotonic() - asked)
