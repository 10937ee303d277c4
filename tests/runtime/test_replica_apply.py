"""A long entry is applied in slices of their own: the rest of an iteration costs more than a slice."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from raftkv.consensus.entries import Committed
from raftkv.runtime.apply_loop import ApplyLoop
from raftkv.runtime.clock import RealClock
from raftkv.runtime.replica import Replica
from raftkv.service.slices import SlicePolicy
from raftkv.store import steps
from raftkv.store.commands import Put, encode_commands
from raftkv.store.machine import Machine
from raftkv.store.memory_backend import MemoryBackend
from raftkv.types import ClusterId, Index, Term
from tests.simulation.disk import VirtualDisk


class CountingReplica(Replica):
    """The parts of a replica that apply."""

    def __init__(self, machine: Machine, entry: Committed) -> None:
        policy = SlicePolicy(steps=1)
        self._machine = machine
        self._settings = SimpleNamespace(slices=policy)
        self._apply_loop = ApplyLoop(machine, RealClock(), policy, lambda _seconds: None)
        self._core = SimpleNamespace(take_committed=lambda: [entry])
        self._loop = asyncio.get_running_loop()
        self._stopped = self._turn_is_due = self._is_apply_due = False
        self.turns = 0

    def _take_turn(self) -> None:
        self.turns += 1
        self._apply()

    def _on_applied(self, committed, results_of_entries) -> None:
        pass


async def test_slices_of_a_long_entry_need_no_iteration_of_everything(monkeypatch):
    monkeypatch.setattr(steps, "OPERATIONS", 20)
    machine = Machine(MemoryBackend(VirtualDisk().root), ClusterId("0123456789abcdef"))
    puts = encode_commands([Put(b"k%d" % number, b"v") for number in range(200)])
    replica = CountingReplica(machine, Committed(Index(1), Term(1), puts))
    replica.wake()
    iterations = 0
    while machine.applied_index < 1:
        iterations += 1
        await asyncio.sleep(0)
    assert iterations > 20
    assert replica.turns == 1
    await asyncio.sleep(0)
    assert replica.turns == 2, "what was applied is made known to the rest"
