"""When history is compacted by itself."""

from __future__ import annotations

import pytest

from raftkv.config import Retention
from raftkv.errors import ConfigurationError
from raftkv.service.compactor import Compactor


def test_revisions_beyond_the_bound_go_once_it_is_worth_it():
    compactor = Compactor(Retention(compact_keep_revisions=100))
    assert compactor.due(0, 110, 0) is None
    assert compactor.due(0, 111, 0) == 11
    assert compactor.due(0, 121, 11) is None
    assert compactor.due(0, 122, 11) == 22


def test_what_is_older_than_the_bound_goes():
    compactor = Compactor(Retention(compact_keep_revisions=0, compact_keep_s=100))
    assert compactor.due(0, 10, 0) is None
    assert compactor.due(50, 20, 0) is None
    assert compactor.due(99.9, 30, 0) is None
    assert compactor.due(100, 30, 0) == 10
    assert compactor.due(149, 40, 10) is None
    assert compactor.due(151, 40, 10) == 20


def test_ages_are_remembered_in_bounded_memory():
    compactor = Compactor(Retention(compact_keep_revisions=0, compact_keep_s=100))
    for tick in range(100_000):
        compactor.due(tick / 40, tick, tick)
    assert len(compactor._seen) <= 102


def test_without_bounds_everything_is_kept():
    compactor = Compactor(Retention(compact_keep_revisions=0))
    assert compactor.due(10**9, 10**9, 0) is None


def test_a_negative_bound_is_refused():
    with pytest.raises(ConfigurationError, match="compact-keep-revisions"):
        Retention(compact_keep_revisions=-1)
