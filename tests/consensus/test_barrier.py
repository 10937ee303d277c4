"""Rounds of reads: what a leader keeps of the requests that followers repeat."""

from __future__ import annotations

from raftkv.consensus.barrier import LeadershipView, ReadBarrier
from raftkv.consensus.messages import ReadIndexRequest, ReadIndexResult, ReadPing, ReadPong
from raftkv.types import Index, NodeId, Term

LEADER, FOLLOWER, THIRD = NodeId("n1"), NodeId("n2"), NodeId("n3")


def test_repeated_requests_of_a_follower_are_answered_once():
    barrier = ReadBarrier(LEADER, frozenset({LEADER, FOLLOWER, THIRD}), 0.1, first_number=0)
    view = LeadershipView(Term(2), LEADER, is_leader=True, commit_index=Index(7), commit_term=Term(1), now=0.0)
    for _ in range(100):
        # Nothing can be confirmed before an entry of the leader's own term is committed.
        assert barrier.receive_request(FOLLOWER, ReadIndexRequest(5), view) == []
        assert barrier.poll(view) == []
    barrier.receive_request(THIRD, ReadIndexRequest(6), view)
    assert barrier.number_waiting == 2
    view = LeadershipView(Term(2), LEADER, is_leader=True, commit_index=Index(8), commit_term=Term(2), now=0.1)
    assert barrier.poll(view) == [(FOLLOWER, ReadPing(Term(2), 1)), (THIRD, ReadPing(Term(2), 1))]
    assert barrier.receive_pong(THIRD, ReadPong(Term(2), 1), view) == [
        (FOLLOWER, ReadIndexResult(5, Index(8))),
        (THIRD, ReadIndexResult(6, Index(8))),
    ]


def test_later_request_of_a_follower_replaces_the_one_before():
    barrier = ReadBarrier(LEADER, frozenset({LEADER, FOLLOWER, THIRD}), 0.1, first_number=0)
    view = LeadershipView(Term(2), LEADER, is_leader=True, commit_index=Index(7), commit_term=Term(1), now=0.0)
    barrier.request(token=1)
    for request_id in range(100):
        barrier.receive_request(FOLLOWER, ReadIndexRequest(request_id), view)
    assert barrier.number_waiting == 2
