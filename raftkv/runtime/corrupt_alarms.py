"""Reports of members whose log contradicts the leader's: the node's log, and the alarm ``CORRUPT``, also for stores."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from raftkv.consensus.log_comparison import Divergence
from raftkv.errors import NotApplied
from raftkv.operations import Alarm, AlarmKind
from raftkv.service.proposer import Proposer
from raftkv.store.commands import SetAlarm
from raftkv.store.machine import Machine
from raftkv.store.results import Result
from raftkv.types import NodeId

logger = logging.getLogger(__name__)


class Comparison(Protocol):
    """What the alarms need of the Raft core."""

    @property
    def divergence(self) -> str | None:
        """Why reads cannot be confirmed and writes cannot be committed, None when they can."""
        ...

    def take_divergences(self) -> list[Divergence]:
        """At a leader: return what is known of members whose log contradicts this one, each after every report."""
        ...


class CorruptAlarms:
    """Logs what the comparison of logs has found, and raises the alarm for each member that a majority finds wrong.

    A member repeats its report with every append, so an alarm that could not be proposed is tried again.

    Args:
        comparison: The Raft core.
        machine: The store, which has the alarms.
        proposer: Proposes them.
    """

    def __init__(self, comparison: Comparison, machine: Machine, proposer: Proposer) -> None:
        self._comparison = comparison
        self._machine = machine
        self._proposer = proposer
        self._raising: set[NodeId] = set()
        self._logged: dict[NodeId, tuple[int, bool]] = {}
        self._stalemate: str | None = None

    def tick(self) -> None:
        """Take what was found since the last call."""
        for divergence in self._comparison.take_divergences():
            self._log(divergence)
            if divergence.peer_is_wrong:
                self.raise_for(divergence.peer)
        self._note_stalemate()

    def _log(self, divergence: Divergence) -> None:
        finding = divergence.index, divergence.is_decided
        if self._logged.get(divergence.peer) != finding:
            self._logged[divergence.peer] = finding
            logger.error("logs contradict each other: %s", divergence)

    def raise_for(self, peer: NodeId) -> None:
        """Raise the alarm for a member, unless it is active; to be called again until it is."""
        alarm = Alarm(AlarmKind.CORRUPT, peer, is_automatic=True)
        if peer in self._raising or alarm in self._machine.alarms():
            return
        try:
            raised = self._proposer.submit(SetAlarm(alarm, is_active=True))
        except NotApplied:
            return
        self._raising.add(peer)
        raised.add_done_callback(lambda future: self._raised(peer, future))

    def _raised(self, peer: NodeId, raised: asyncio.Future[Result]) -> None:
        self._raising.discard(peer)
        if not raised.cancelled():
            # Nobody else looks at it: a failure is no fault, the member reports again.
            raised.exception()

    def _note_stalemate(self) -> None:
        now = self._comparison.divergence
        if now is not None:
            if self._stalemate is None:
                logger.error("writes and linearizable reads are refused: %s", now)
            self._proposer.abandon(now)
        elif self._stalemate is not None:
            logger.warning("writes and linearizable reads are accepted again: no contradiction of logs is left")
        self._stalemate = now
