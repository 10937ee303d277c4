"""What is drawn to be broken."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from raftkv.chaos.schedule import Fault, Injection, Schedule
from raftkv.types import NodeId

NODES = [NodeId(f"n{number}") for number in range(1, 6)]


def draws(fault: Fault, seed: int = 7, leader: str | None = "n2", nodes=NODES, count: int = 200) -> list[Injection]:
    schedule = Schedule(random.Random(seed), nodes)
    return [schedule.draw([fault], None if leader is None else NodeId(leader)) for _ in range(count)]


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("leader", ["n2", None, "n9"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_draw_is_of_nodes_and_links_that_exist(fault, leader, count):
    for injection in draws(fault, leader=leader, nodes=NODES[:count]):
        assert injection.fault is fault
        assert injection.text
        assert 0 <= injection.seconds <= 6
        assert set(injection.nodes) <= set(NODES[:count])
        for source, target in injection.links:
            assert source != target
            assert {source, target} <= set(NODES[:count])


def test_a_kill_leaves_a_majority_and_often_hits_the_leader():
    kills = draws(Fault.KILL)
    assert {len(kill.nodes) for kill in kills} == {1, 2}
    assert all(len(set(kill.nodes)) == len(kill.nodes) for kill in kills)
    assert sum("n2" in kill.nodes for kill in kills) > len(kills) / 2
    assert any("n2 (the leader)" in kill.text for kill in kills)


def test_all_are_killed_at_once():
    assert set(draws(Fault.KILL_ALL)[0].nodes) == set(NODES)


def test_partitions_are_of_every_kind():
    kinds = set()
    for cut in draws(Fault.PARTITION):
        assert all(conditions.is_cut for conditions in cut.links.values())
        outward = {source in cut.nodes for source, _target in cut.links}
        kinds.add((len(cut.nodes), *sorted(outward)))
        assert all((source in cut.nodes) != (target in cut.nodes) for source, target in cut.links)
    # One node alone, two of five, one that hears nothing, one that is not heard.
    assert kinds == {(1, False, True), (2, False, True), (1, False), (1, True)}


def test_slow_links_are_slow_in_both_directions():
    for fault, attribute in ((Fault.DELAY, "delay_seconds"), (Fault.THROTTLE, "bytes_per_second")):
        injection = draws(fault)[0]
        (victim,) = injection.nodes
        assert len({getattr(conditions, attribute) for conditions in injection.links.values()}) == 1
        assert len(injection.links) == 2 * (len(NODES) - 1)
        assert all(victim in link for link in injection.links)


def test_a_seed_fixes_every_choice():
    assert draws(Fault.PARTITION, seed=3) == draws(Fault.PARTITION, seed=3)
    assert draws(Fault.PARTITION, seed=3) != draws(Fault.PARTITION, seed=4)


def test_killing_all_is_rare_among_others():
    schedule = Schedule(random.Random(1), NODES)
    drawn = [schedule.draw(list(Fault), None).fault for _ in range(2000)]
    assert set(drawn) == set(Fault)
    assert 2 * drawn.count(Fault.KILL_ALL) < drawn.count(Fault.KILL)
    assert any(before is not after for before, after in pairwise(drawn))
    assert all(0.5 <= schedule.calm_seconds() <= 4 for _ in range(100))
