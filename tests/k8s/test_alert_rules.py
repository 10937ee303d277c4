"""The meaning of the alert about a lost majority: series go in, and it fires or not."""

from __future__ import annotations

import pytest

from tests.k8s.promql import Sample, Series, evaluate, with_rules
from tests.k8s.test_monitoring import ALERTS, RULES

(EXPRESSION,) = [rule["expr"] for rule in ALERTS if rule["alert"] == "RaftkvTooFewMembers"]
_HOUR = 3600.0


def member(
    name: str, *, is_up: bool = True, voters: int = 3, age: float = 0.0, namespace: str = "shop"
) -> list[Series]:
    """Return what Prometheus has of a member that is a target now."""
    labels = {"namespace": namespace, "job": "raftkv", "pod": name}
    return [
        Series("up", labels, [Sample(float(is_up))]),
        Series("raftkv_voters", labels, [Sample(voters, age if is_up else max(age, 2 * _HOUR))]),
    ]


def vanished(name: str, *, voters: int = 3, age: float = 2 * _HOUR, namespace: str = "shop") -> list[Series]:
    """Return what Prometheus still has of a member that is no target any more."""
    labels = {"namespace": namespace, "job": "raftkv", "pod": name}
    return [Series("up", labels, [Sample(1, age)]), Series("raftkv_voters", labels, [Sample(voters, age)])]


def firing(*members: list[Series]) -> set[str | None]:
    """Return the namespaces that the alert fires for, None for one that no series names."""
    series = with_rules(RULES, [each for found in members for each in found])
    return {dict(labels).get("namespace") for labels in evaluate(EXPRESSION, series)}


@pytest.mark.parametrize("voters", [1, 2, 3, 4, 5, 7])
def test_fires_exactly_when_fewer_than_a_majority_is_up(voters):
    for running in range(1, voters + 1):
        members = [member(f"raftkv-{n}", is_up=n < running, voters=voters) for n in range(voters)]
        assert firing(*members) == (set() if running >= voters // 2 + 1 else {"shop"}), (running, voters)


@pytest.mark.parametrize("voters", [3, 5])
def test_counts_members_that_are_no_targets_any_more(voters):
    """A pod that is gone has no ``up`` at all: the voters say how many there should be."""
    for running in range(1, voters + 1):
        members = [member(f"raftkv-{n}", voters=voters) for n in range(running)]
        gone = [vanished(f"raftkv-{n}", voters=voters) for n in range(running, voters)]
        assert firing(*members, *gone) == (set() if running >= voters // 2 + 1 else {"shop"}), (running, voters)


def test_fires_when_all_members_vanish():
    assert firing(*(vanished(f"raftkv-{n}") for n in range(3))) == {"shop", None}
    # Beyond the memory of the voters, and before there were any.
    assert firing(*(vanished(f"raftkv-{n}", age=48 * _HOUR) for n in range(3))) == {None}
    assert firing() == {None}


def test_fires_for_the_cluster_that_vanished_and_not_for_another():
    others = [member(f"raftkv-{n}", namespace="office") for n in range(3)]
    gone = [vanished(f"raftkv-{n}") for n in range(3)]
    assert firing(*others, *gone) == {"shop"}


def test_fires_for_as_long_as_all_members_are_down():
    members = [member(f"raftkv-{n}", is_up=False, age=48 * _HOUR) for n in range(3)]
    assert firing(*members) == {"shop"}


def test_does_not_fire_for_members_that_were_removed():
    members = [member(f"raftkv-{n}", voters=1) for n in range(1)]
    assert firing(*members, *(vanished(f"raftkv-{n}", voters=5, age=0.5 * _HOUR) for n in range(1, 5))) == set()
