"""Hashes of a view that stays open while the store goes on."""

from __future__ import annotations

import threading

import pytest

from raftkv.store import lmdb_backend, steps
from raftkv.store.backend import Space, ViewAbandoned
from raftkv.store.commands import Compact, Put
from raftkv.store.lmdb_backend import LmdbBackend
from raftkv.store.machine import Machine
from raftkv.store.memory_backend import MemoryBackend
from raftkv.store.state_hash import hash_held
from raftkv.types import ClusterId, Revision
from tests.simulation.disk import VirtualDisk
from tests.store.entries import apply_to

CLUSTER = ClusterId("0123456789abcdef")


@pytest.fixture(params=["memory", "lmdb"])
def machine(request, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "OPERATIONS", 10)
    backend = MemoryBackend(VirtualDisk().root) if request.param == "memory" else LmdbBackend(tmp_path, 16_777_216)
    machine = Machine(backend, CLUSTER)
    apply_to(machine, *(Put(b"k%03d" % number, b"v") for number in range(100)))
    apply_to(machine, Compact(Revision(50)))
    yield machine
    machine.close()


def test_held_view_is_hashed_as_it_was_when_it_was_opened(machine):
    before = machine.state_hash()
    held = machine.hold()
    apply_to(machine, Put(b"k000", b"other"))
    costs = []

    def pace(cost: int) -> None:
        costs.append(cost)
        apply_to(machine, Put(b"k%03d" % len(costs), b"meanwhile"))

    assert hash_held(held, pace) == before
    assert len(costs) > 10
    assert machine.state_hash() != before
    with pytest.raises(ViewAbandoned), held.reading():
        pass


def test_hash_covers_values_that_history_does_not_have_any_more(machine):
    before = machine.state_hash()
    # Behind the machine's back: the value of a key whose last change is below the compacted revision.
    with machine._backend.write() as transaction:
        history = transaction.tree(Space.HISTORY)
        place, record = next(history.scan(b""))
        history.put(place, record[:-1] + b"w")
    assert machine.state_hash() != before
    with machine._backend.write() as transaction:
        transaction.tree(Space.HISTORY).delete(place)
    # An event that is missing altogether is a difference too, and no error.
    assert machine.state_hash() != before


def test_store_that_grows_takes_the_view_back(tmp_path):
    machine = Machine(LmdbBackend(tmp_path, 1_048_576), CLUSTER)
    for number in range(100):
        apply_to(machine, Put(b"k%03d" % number, b"v"))
    held = machine.hold()
    entered, leave = threading.Event(), threading.Event()

    def pace(_cost: int) -> None:
        entered.set()
        assert leave.wait(10)

    found: list[str | None] = ["nothing"]
    steps_before, steps.OPERATIONS = steps.OPERATIONS, 10
    thread = threading.Thread(target=lambda: found.append(hash_held(held, pace)))
    try:
        thread.start()
        assert entered.wait(10)
        # The store need not wait for the end of the hash.
        for number in range(20):
            apply_to(machine, Put(b"large%d" % number, b"v" * 100_000))
        assert machine.file_bytes > 1_048_576
    finally:
        leave.set()
        thread.join()
        steps.OPERATIONS = steps_before
    assert found[-1] is None
    machine.close()


def test_view_that_makes_the_file_grow_is_taken_back(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdb_backend, "_HELD_ROOM_BYTES", 1_048_576)
    machine = Machine(LmdbBackend(tmp_path, 67_108_864), CLUSTER)
    apply_to(machine, Put(b"key", b"v" * 1_000_000))
    held = machine.hold()
    for number in range(2000):
        apply_to(machine, Put(b"key", b"%d" % number))
        if held.is_closed:
            break
    assert held.is_closed
    assert 2_000_000 < machine.file_bytes < 5_000_000
    # What was used up is used again by the next one.
    apply_to(machine, Put(b"key", b"between"))
    held, before = machine.hold(), machine.state_hash()
    for number in range(20):
        apply_to(machine, Put(b"key", b"%d" % number))
    assert hash_held(held, lambda _cost: None) == before
    machine.close()


@pytest.mark.parametrize("end", ["replace", "close"])
def test_store_that_is_replaced_or_closed_takes_the_view_back(tmp_path, end):
    machine = Machine(LmdbBackend(tmp_path, 1_048_576), CLUSTER)
    apply_to(machine, Put(b"key", b"v"))
    held = machine.hold()
    if end == "replace":
        machine.copy_to(str(tmp_path / "copy"))
        machine.install_staged(machine.stage(str(tmp_path / "copy")))
    machine.close()
    assert hash_held(held, lambda _cost: None) is None


def test_another_view_closes_the_one_before(tmp_path):
    machine = Machine(LmdbBackend(tmp_path, 1_048_576), CLUSTER)
    first, second = machine.hold(), machine.hold()
    assert hash_held(first, lambda _cost: None) is None
    assert hash_held(second, lambda _cost: None) == machine.state_hash()
    machine.close()
