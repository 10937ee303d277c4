"""What clients of transactions, leases, locks and watches notice over HTTP: each mistake in a handler is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raftkv.http import keys, transactions
from raftkv.http.answers import json_response
from raftkv.http.etcd import messages
from raftkv.http.etcd.leases import LeaseRequests
from raftkv.http.etcd.watch import WatchStream
from raftkv.http.leases import LeaseApi, _lease_id
from raftkv.http.renderings import Renderings
from raftkv.http.server_sent_events import EventStream
from raftkv.operations import NO_SAFEGUARDS
from raftkv.types import Revision
from tests.simulation.world import Plan, run_plan

PLAN = Plan(0, seconds=15.0, faults=frozenset({"crash", "delay"}), is_wired=True)
SEEDS = 12


def first_violation(first: int = 0) -> str:
    for seed in range(first, first + SEEDS):
        violation = run_plan(replace(PLAN, seed=seed)).violation
        if violation is not None:
            return violation
    pytest.fail(f"nothing was noticed in {SEEDS} seeds")


def test_transactions_that_lose_their_idempotency_key_are_found(monkeypatch):
    monkeypatch.setattr(transactions, "read_safeguards", lambda *_: NO_SAFEGUARDS)
    assert "was applied" in first_violation(1)


def test_fence_header_that_is_not_read_is_found(monkeypatch):
    monkeypatch.setattr(keys, "read_safeguards", lambda *_: NO_SAFEGUARDS)
    assert "a write under the token" in first_violation(1)


@pytest.mark.parametrize("module", [transactions, messages])
def test_read_of_half_a_transaction_is_found(monkeypatch, module):
    name = "_render_part" if module is transactions else "range_json"
    render, seen = getattr(module, name), []

    def render_mixed(*arguments, **options):
        # The first keys of an answer are those of the answer before.
        document = render(*arguments, **options)
        items = document.get("kvs") or document.get("get", {}).get("items")
        if items is not None and len(items.items) > 1:
            seen.append(items.items)
            items.items = (*seen[max(0, len(seen) - 4)][:1], *items.items[1:])
        return document

    monkeypatch.setattr(module, name, render_mixed)
    assert "read half of a transaction" in first_violation()


def test_keep_alive_that_is_only_answered_is_found(monkeypatch):
    """Of the native API: the lease ends before its time."""

    async def keep_alive(self, call):
        return json_response({"id": _lease_id(call), "ttl_seconds": 5})

    monkeypatch.setattr(LeaseApi, "keep_alive", keep_alive)
    assert "ended after" in first_violation()


def test_gateway_keep_alive_that_is_only_answered_is_found(monkeypatch):
    async def renew(self, _stream, lease_id):
        return self._headers.answer({"ID": str(lease_id), "TTL": "5"}, self._store.revision)

    monkeypatch.setattr(LeaseRequests, "_renew", renew)
    assert "ended after" in first_violation(1)


def test_events_rendered_under_the_revision_alone_are_found(monkeypatch):
    """What raftkv did: an event of one watch reached another that ignores its kind, or hid one of its revision."""
    get = Renderings.get
    monkeypatch.setattr(Renderings, "get", lambda self, name, render: get(self, name[0], render))
    assert "a watch was told" in first_violation()


def test_progress_that_is_ahead_of_events_is_found(monkeypatch):
    async def progress(self):
        await self._stream.send(self._headers.answer({"watch_id": "-1"}, Revision(self._store.revision + 5)))

    monkeypatch.setattr(WatchStream, "_progress", progress)
    assert "a watch" in first_violation()


def test_event_stream_that_is_ahead_with_its_ids_is_found(monkeypatch):
    send = EventStream.send

    async def send_with_next_id(self, told, kind=""):
        await send(self, [(position + 1, data) for position, data in told], kind)

    monkeypatch.setattr(EventStream, "send", send_with_next_id)
    assert "a watch was told" in first_violation()
