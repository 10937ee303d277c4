"""Free disk of the voters: a leader accepts no write that only a nearly full disk could acknowledge."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from raftkv.types import NodeId


class DiskRoom(IntEnum):
    """How much room a node's disk has; followers report it with each answer to an append."""

    ENOUGH = 0
    LOW = 1
    """New writes should not count on it. It still takes what frees space, terms and votes."""
    EXHAUSTED = 2
    """It takes no entries, so that what is left is enough for terms and votes."""


class PeerRoom:
    """What the leader knows of its followers' disks."""

    def __init__(self) -> None:
        self._reported: dict[NodeId, DiskRoom] = {}

    def report(self, peer: NodeId, room: DiskRoom) -> None:
        """Take a follower's report."""
        self._reported[peer] = room

    def forget(self, peer: NodeId) -> None:
        """Drop what is known of a peer whose connection is gone."""
        self._reported.pop(peer, None)

    def of(self, peer: NodeId) -> DiskRoom:
        """Return the last report of a peer; a peer that has not reported yet counts as having enough."""
        return self._reported.get(peer, DiskRoom.ENOUGH)

    def has_worse_than(self, need: DiskRoom) -> bool:
        """Return whether any report is worse than ``need``."""
        return any(room > need for room in self._reported.values())

    def lacking(self, voters: Iterable[NodeId], connected: Iterable[NodeId], need: DiskRoom) -> list[NodeId]:
        """Return the voters with too little room, if the others that can be reached are no majority; else none.

        Args:
            voters: All voters.
            connected: Those that can acknowledge now, this node included.
            need: A disk that is worse than this does not count.
        """
        voters, reachable = set(voters), set(connected)
        short = sorted(voter for voter in voters if self.of(voter) > need)
        sound = (voters & reachable) - set(short)
        return [] if 2 * len(sound) > len(voters) else short
