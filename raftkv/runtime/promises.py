"""What other members have acknowledged, kept to refuse one that comes back without it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from raftkv.consensus.journal import Journal
from raftkv.consensus.records import Promise
from raftkv.membership import ClusterMember, MemberId
from raftkv.types import Index, NodeId


class Promises:
    """Finds members whose disk is older than what they acknowledged to this node.

    What counts is durable at the member *and* committed: an entry that is only acknowledged may be truncated by a later
    leader. A committed entry never is, so each later process of the member begins with a log that reaches it. Members
    are told apart by their ids, which are never used again: the replacement of a member owes nothing.

    Processes are told apart by a token (``life``). The present process of a member may have begun below what it has
    acknowledged since, and its acknowledgements may overtake its second handshake. So only what an *earlier* process
    acknowledged is compared, also when this node has been restarted in between: the journal has the token beside the
    index.

    Args:
        journal: Keeps what is known over restarts of this node.
        acknowledged: Returns the highest committed index that is durable at a peer as far as this process knows.
    """

    def __init__(self, journal: Journal, acknowledged: Callable[[NodeId], Index]) -> None:
        self._journal = journal
        self._acknowledged = acknowledged
        self._lives: dict[MemberId, str] = {}

    def check(self, name: NodeId, member_id: MemberId, life: str, start_index: int, *, is_member: bool) -> str | None:
        """Return why a peer must not take part, None when it may.

        Args:
            name: The peer.
            member_id: Its id as a member.
            life: Token of its process; empty when it names none.
            start_index: Last index of its log when that process began.
            is_member: Whether the member of that name has that id, as far as this node has applied.
        """
        if not life or self._lives.get(member_id) == life:
            return None
        recorded = self._recorded(member_id)
        acknowledged = max(recorded.index, self._acknowledged(name) if is_member else 0)
        if life != recorded.life and start_index < acknowledged:
            return (
                f"{name} is older than its promises: its log ended at index {start_index} when it started, and it had "
                f"acknowledged the committed entry {acknowledged}. Its disk was put back to an older state: replace "
                "this member (docs/operations.md)"
            )
        self._lives[member_id] = life
        return None

    def record(self, members: Iterable[ClusterMember]) -> None:
        """Let the journal keep what is new about some members; it is durable with the journal's next sync."""
        for member in members:
            life = self._lives.get(member.id)
            index = self._acknowledged(member.name)
            if life is not None and index > self._recorded(member.id).index:
                self._journal.record_promise(_key(member.id), Promise(life, index))

    def _recorded(self, member_id: MemberId) -> Promise:
        return self._journal.promise_of(_key(member_id)) or Promise("", 0)


def _key(member_id: MemberId) -> str:
    return f"{member_id:016x}"
