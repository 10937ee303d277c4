"""What the clients of transactions, leases, locks and watches would notice: each rule is taken away and missed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raftkv.service.kv import KeyValues
from raftkv.service.leases import LeaseClock
from raftkv.service.watches import Watcher, WatchHub
from raftkv.store.applier import CommandApplier
from raftkv.store.backend import Space
from raftkv.store.memory_backend import _Draft
from raftkv.store.mvcc import HistoryWriter
from raftkv.store.outcomes import OutcomeWriter
from raftkv.store.txn import TransactionApplier
from tests.simulation.world import Plan, run_plan

SEEDS = 40


def first_violation() -> str:
    for seed in range(SEEDS):
        violation = run_plan(Plan(seed)).violation
        if violation is not None:
            return violation
    pytest.fail(f"nothing was noticed in {SEEDS} seeds")


def test_a_fence_that_lets_everybody_through_is_noticed(monkeypatch):
    def is_held(*_):
        yield
        return True

    monkeypatch.setattr(CommandApplier, "_is_held", is_held)
    assert "a write under the token" in first_violation()


def test_a_forgotten_idempotency_key_is_noticed(monkeypatch):
    monkeypatch.setattr(OutcomeWriter, "find", lambda *_: None)
    assert "was applied 2 times" in first_violation()


def test_a_new_leader_that_gives_leases_no_time_is_noticed(monkeypatch):
    def found(self, lease):
        if lease.id not in self._deadlines:
            self._seconds[lease.id] = lease.seconds
            self._set(lease.id, self.began)

    monkeypatch.setattr(LeaseClock, "find", found)
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


def test_a_transaction_that_reads_too_much_and_is_not_undone_is_noticed(monkeypatch):
    def nothing(self, _move):
        self._before = None
        yield

    monkeypatch.setattr(HistoryWriter, "undo_steps", nothing)
    assert first_violation()


def test_a_watch_sees_the_changes_of_its_span_alone(monkeypatch):
    monkeypatch.setattr(Watcher, "concerned", lambda self, revision, *_event: revision >= self._position)
    assert "a watch was told" in first_violation()


def test_write_answered_with_present_revision_is_noticed(monkeypatch):
    write = KeyValues._write

    async def write_and_ask_store(self, command, safeguards):
        return replace(await write(self, command, safeguards), revision=self._store.revision)

    monkeypatch.setattr(KeyValues, "_write", write_and_ask_store)
    assert "revisions are wrong" in first_violation()


def test_read_answered_with_earlier_revision_is_noticed(monkeypatch):
    get = KeyValues.get

    async def ask_store_and_get(self, *arguments):
        revision = self._store.revision
        return replace(await get(self, *arguments), revision=revision)

    monkeypatch.setattr(KeyValues, "get", ask_store_and_get)
    assert "revisions are wrong" in first_violation()


def test_reads_that_see_what_is_being_applied_are_noticed(monkeypatch):
    def draft_of_what_readers_see(self, content):
        self.content = content
        self._own = set(Space)

    monkeypatch.setattr(_Draft, "__init__", draft_of_what_readers_see)
    assert first_violation()


def test_a_part_of_an_entry_that_is_committed_by_itself_is_noticed(monkeypatch):
    apply_steps = TransactionApplier._execute

    def only_the_first_three(self, branch):
        return (yield from apply_steps(self, replace(branch, steps=branch.steps[:3])))

    monkeypatch.setattr(TransactionApplier, "_execute", only_the_first_three)
    assert "read half of a transaction" in first_violation()
