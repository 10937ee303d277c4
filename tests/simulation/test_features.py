"""What the clients of transactions, leases, locks and watches would notice: each rule is taken away and missed."""

from __future__ import annotations

import pytest

from raftkv.service.leases import LeaseClock
from raftkv.service.watches import Watcher, WatchHub
from raftkv.store.applier import CommandApplier
from raftkv.store.mvcc import HistoryWriter
from raftkv.store.outcomes import OutcomeWriter
from tests.simulation.world import Plan, run_plan

SEEDS = 40


def first_violation() -> str:
    for seed in range(SEEDS):
        violation = run_plan(Plan(seed)).violation
        if violation is not None:
            return violation
    pytest.fail(f"nothing was noticed in {SEEDS} seeds")


def test_a_fence_that_lets_everybody_through_is_noticed(monkeypatch):
    monkeypatch.setattr(CommandApplier, "_is_held", lambda *_: True)
    assert "a write under the token" in first_violation()


def test_a_forgotten_idempotency_key_is_noticed(monkeypatch):
    monkeypatch.setattr(OutcomeWriter, "find", lambda *_: None)
    assert "was applied 2 times" in first_violation()


def test_a_new_leader_that_gives_leases_no_time_is_noticed(monkeypatch):
    begin = LeaseClock.begin

    def shortened(self, leases, now):
        begin(self, leases, now)
        for lease_id in list(self._deadlines):
            self._set(lease_id, now)

    monkeypatch.setattr(LeaseClock, "begin", shortened)
    assert "ended after" in first_violation()


def test_a_keep_alive_that_gives_too_little_is_noticed(monkeypatch):
    renew = LeaseClock.renew
    monkeypatch.setattr(LeaseClock, "renew", lambda self, lease, since, now: renew(self, lease, since - 2.0, now))
    assert "ended after" in first_violation()


def test_a_watch_that_skips_what_a_snapshot_brought_is_noticed(monkeypatch):
    def skipped(self):
        self.behind = self.store.revision + 1
        for watcher in self._waiting.all():
            self._wake(watcher, self.behind)
        self._begin_waking()

    monkeypatch.setattr(WatchHub, "skipped", skipped)
    assert "a watch was told" in first_violation()


def test_a_watch_that_repeats_itself_is_noticed(monkeypatch):
    open_watch = WatchHub.open

    def open_again(self, watch):
        watcher = open_watch(self, watch)
        watcher._position = max(1, watcher._position - 1)
        return watcher

    monkeypatch.setattr(WatchHub, "open", open_again)
    assert "a watch was told" in first_violation()


def test_half_a_transaction_is_noticed(monkeypatch):
    put = HistoryWriter.put

    def half(self, key, value, *rest):
        return put(self, key, b"half" if key == b"pair/b" else value, *rest)

    monkeypatch.setattr(HistoryWriter, "put", half)
    assert "read half of a transaction" in first_violation()


def test_a_watch_sees_the_changes_of_its_span_alone(monkeypatch):
    monkeypatch.setattr(Watcher, "concerned", lambda self, revision, _event: revision >= self._position)
    assert "a watch was told" in first_violation()
