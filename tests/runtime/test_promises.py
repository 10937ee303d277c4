"""A member that comes back without what it acknowledged is refused."""

from __future__ import annotations

from raftkv.consensus.journal import Journal
from raftkv.consensus.segments import SegmentedLog, recover
from raftkv.membership import ClusterMember, MemberId
from raftkv.runtime.promises import Promises
from raftkv.types import Index, NodeId
from tests.consensus.harness import CLUSTER, Harness
from tests.simulation.disk import VirtualDisk

PEER, ID = NodeId("b"), MemberId(7)
MEMBER = ClusterMember(ID, PEER, "b:1", is_voter=True)


class Knowledge:
    """What one node knows of its peer, in memory and on disk.

    Attributes:
        acknowledged: What the peer has acknowledged to the present process.
    """

    def __init__(self) -> None:
        self._disk = VirtualDisk()
        self.restart()

    def restart(self) -> None:
        recovered = recover(self._disk.root, CLUSTER, None)
        self._journal = Journal(recovered)
        self._log = SegmentedLog(self._disk.root, CLUSTER, recovered)
        self.acknowledged = Index(0)
        self.promises = Promises(self._journal, lambda _name: self.acknowledged)

    def record(self, acknowledged: int) -> bool:
        """Learn of an acknowledgement; return whether anything new was made durable."""
        self.acknowledged = Index(acknowledged)
        self.promises.record([MEMBER])
        batch = self._journal.take_batch()
        if batch is not None:
            self._log.write([batch])
        return batch is not None

    def refusal(self, life: str, start_index: int, member_id: MemberId = ID, *, is_member: bool = True) -> str | None:
        return self.promises.check(PEER, member_id, life, start_index, is_member=is_member)


def test_shorter_log_than_acknowledged_is_refused_in_a_new_process_only():
    node = Knowledge()
    assert node.refusal("first", 3) is None
    node.acknowledged = Index(9)
    assert node.refusal("first", 3) is None
    assert node.refusal("second", 9) is None
    text = node.refusal("third", 8)
    assert text is not None
    assert "ended at index 8" in text
    assert "committed entry 9" in text
    assert node.refusal("third", 8) == text
    assert node.refusal("", 0) is None


def test_recorded_promise_is_compared_after_a_restart():
    node = Knowledge()
    assert node.refusal("first", 3) is None
    assert node.record(9)
    assert not node.record(9)
    node.restart()
    assert "committed entry 9" in (node.refusal("second", 8) or "")
    assert node.refusal("third", 9) is None


def test_process_that_acknowledged_a_recorded_promise_itself_is_welcome_after_a_restart():
    node = Knowledge()
    assert node.refusal("first", 3) is None
    node.record(9)
    node.restart()
    assert node.refusal("first", 3) is None


def test_what_a_process_acknowledged_before_it_introduced_itself_is_not_recorded():
    node = Knowledge()
    assert not node.record(9)


def test_process_that_was_no_known_member_when_it_came_is_welcome_as_one():
    node = Knowledge()
    assert node.refusal("first", 1, is_member=False) is None
    node.record(9)
    assert node.refusal("first", 1) is None


def test_replacement_owes_nothing():
    node = Knowledge()
    assert node.refusal("first", 3) is None
    node.record(9)
    assert node.refusal("replacement", 1, MemberId(8), is_member=False) is None
    node.acknowledged = Index(0)
    assert node.refusal("replacement, started again", 1, MemberId(8)) is None


def test_promised_index_is_acknowledged_and_committed():
    cluster = Harness()
    cluster.elect("a")
    cluster.isolate("b")
    cluster.put("a", b"x")
    cluster.settle("a", "c")
    core = cluster["a"].core
    assert core.promised_index(NodeId("c")) == core.commit_index == 3
    assert core.promised_index(NodeId("b")) == 2
    cluster["c"].auto_sync = False
    cluster.put("a", b"y")
    cluster.settle("a", "c")
    assert cluster["a"].journal.last_index == 4
    assert core.promised_index(NodeId("c")) == 3


def test_promised_index_outlives_the_leadership():
    cluster = Harness()
    cluster.elect("a")
    cluster.put("a", b"x")
    cluster.settle()
    cluster.elect("b")
    assert cluster["a"].core.promised_index(NodeId("c")) == 3


def test_follower_knows_what_its_leader_has_committed():
    cluster = Harness()
    cluster.elect("a")
    cluster.put("a", b"x")
    cluster.settle()
    follower = cluster["b"].core
    assert follower.promised_index(NodeId("a")) == 3
    # Another follower may have in memory only what it knows to be committed.
    assert follower.promised_index(NodeId("c")) == 0


def test_old_acknowledgements_are_not_held_against_a_replacement():
    """A replaced member answers under the name of its replacement until it is disconnected (5 nodes, 73994700001)."""
    cluster = Harness()
    cluster.elect("a")
    cluster.put("a", b"x")
    cluster.settle()
    core, c = cluster["a"].core, NodeId("c")
    assert core.promised_index(c) == 3
    voters = core.configuration.voters
    core.reconfigure(voters - {c}, {c}, core.commit_index, frozenset({c}))
    cluster.put("a", b"y")
    cluster.settle()
    assert core.commit_index == 4
    assert core.promised_index(c) == 0
