"""What can happen to a snapshot on its way to a member: the worst of it, at a time when one is on its way."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from raftkv.consensus.messages import Message, SnapshotChunk

if TYPE_CHECKING:
    from tests.simulation.faults import FaultInjector
    from tests.simulation.node import SimulatedNode
    from tests.simulation.world import World

_POLL_SECONDS = 0.002
_PATIENCE_SECONDS = 12.0


def _damaged(message: Message) -> Message | None:
    if not isinstance(message, SnapshotChunk) or not message.data:
        return None
    middle = len(message.data) // 2
    return replace(message, data=message.data[:middle] + bytes([message.data[middle] ^ 1]) + message.data[middle + 1 :])


class Interruption:
    """Keeps a node away until it needs a snapshot, and strikes while that arrives.

    Args:
        world: The cluster.
        faults: Who kills and restarts nodes.
        rng: Where chance comes from.
    """

    def __init__(self, world: World, faults: FaultInjector, rng: random.Random) -> None:
        self._world = world
        self._faults = faults
        self._rng = random.Random(rng.getrandbits(64))
        self._give_up_at = world.loop.time() + _PATIENCE_SECONDS

    def begin(self) -> None:
        """Choose a node, and kill it."""
        followers = [node for node in self._world.present() if node.is_up and not node.leads]
        if not followers:
            return
        node = self._rng.choice(followers)
        self._faults.kill(node)
        self._await_need(node)

    def _await_need(self, node: SimulatedNode) -> None:
        last_index = node.storage.journal.last_index
        leaders = [other for other in self._world.nodes.values() if other.leads]
        is_needed = any(leader.storage.journal.base_index > last_index for leader in leaders)
        if node.is_up or is_needed or self._world.loop.time() > self._give_up_at:
            self._faults.restart(node)
            self._await_transfer()
        else:
            self._faults.later(0.05, lambda: self._await_need(node))

    def _await_transfer(self) -> None:
        """Wait for any transfer that is under way, and for a random moment in it."""
        for sender in self._world.nodes.values():
            for peer in sender.keeper.transfers.peers() if sender.leads else ():
                receiver = self._world.nodes[peer]
                if receiver.is_up and receiver.keeper._incoming is not None and self._rng.random() < 0.2:
                    self._strike(sender, receiver)
                    return
        if self._world.loop.time() < self._give_up_at:
            self._faults.later(_POLL_SECONDS, self._await_transfer)

    def _strike(self, sender: SimulatedNode, receiver: SimulatedNode) -> None:
        actions = {
            "the connection breaks": self._break,
            "the receiver dies": lambda _sender, receiver: self._kill(receiver),
            "the sender dies": lambda sender, _receiver: self._kill(sender),
            "a piece is damaged": self._damage_piece,
            "what arrived is damaged": self._damage_received,
            "what is sent is damaged": self._damage_source,
            "a newer snapshot is taken": self._supersede,
            "another is to lead": self._depose,
        }
        what = self._rng.choice(list(actions))
        self._world.log(f"snapshot from {sender.name} to {receiver.name}: {what}")
        self._world.counts[f"snapshots: {what}"] += 1
        actions[what](sender, receiver)

    def _break(self, sender: SimulatedNode, receiver: SimulatedNode) -> None:
        self._world.network.break_link(sender.name, receiver.name)
        self._world.network.break_link(receiver.name, sender.name)

    def _kill(self, node: SimulatedNode) -> None:
        self._faults.kill(node)
        self._faults.later(self._rng.uniform(0.05, 2), lambda: self._faults.restart(node))

    def _damage_piece(self, _sender: SimulatedNode, _receiver: SimulatedNode) -> None:
        self._world.network.tamper = _damaged

    def _damage_received(self, _sender: SimulatedNode, receiver: SimulatedNode) -> None:
        directory = receiver.disk.root.child("snapshots")
        name = "incoming.partial"
        if name in directory.names() and directory.size(name):
            directory.flip_bit(name, self._rng.randrange(8 * directory.size(name)))

    def _damage_source(self, sender: SimulatedNode, _receiver: SimulatedNode) -> None:
        for manifest in sender.keeper.transfers.pinned()[:1]:
            sender.damage("snapshots", manifest.data_name, self._rng.randrange(8 * manifest.size))

    def _supersede(self, sender: SimulatedNode, _receiver: SimulatedNode) -> None:
        keeper = sender.keeper
        if keeper._work is None and not sender.is_paused:
            sender.enter(lambda: keeper._start_work(keeper._take_when_due()))

    def _depose(self, sender: SimulatedNode, _receiver: SimulatedNode) -> None:
        if sender.leads and not sender.is_paused:
            sender.enter(sender.core.transfer_leadership)
            sender.enter(sender.replica.wake)
