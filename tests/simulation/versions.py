"""Two releases at once: nodes are upgraded and downgraded under load, and clients use what only the newer one knows.

A release is a range of cluster versions. What the newer one adds is a put below ``GATED``: it needs ``NEXT_VERSION``,
so a node of the older release cannot read the entry that it is in, like a command that it does not know.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from raftkv.errors import ClusterVersionTooLow, NotApplied, UndecodableEntry, UnknownOutcome, UnsupportedVersion
from raftkv.service import proposer
from raftkv.store import commands
from raftkv.store.commands import Command, Put
from raftkv.versions import FIRST_VERSION, SUPPORTED_VERSIONS, ClusterVersion, SupportedVersions

if TYPE_CHECKING:
    from tests.simulation.faults import FaultInjector
    from tests.simulation.node import SimulatedNode
    from tests.simulation.world import World

NEXT_VERSION = ClusterVersion(SUPPORTED_VERSIONS.highest.major, SUPPORTED_VERSIONS.highest.minor + 1)
OLDER = SUPPORTED_VERSIONS
NEWER = SupportedVersions(FIRST_VERSION, NEXT_VERSION)
GATED = b"gated/"

_PAUSE_SECONDS = 0.4


@contextmanager
def gated_puts() -> Iterator[None]:
    """Let puts below ``GATED`` need the newer release's version."""
    original = commands.required_version

    def required(command: Command) -> ClusterVersion:
        return NEXT_VERSION if isinstance(command, Put) and command.key.startswith(GATED) else original(command)

    commands.required_version = proposer.required_version = required
    try:
        yield
    finally:
        commands.required_version = proposer.required_version = original


class Releases:
    """Which release each node runs, who changes that, and the clients of the newer one.

    Args:
        world: The cluster.
        seed: Fixes what the clients do.
        is_restored: Whether the cluster is restored from one that may have been at the newer version.

    Attributes:
        is_mixed: Whether there are two releases; if not, every node runs the same and nothing here happens.
    """

    def __init__(self, world: World, seed: int, *, is_restored: bool) -> None:
        self._world = world
        self._rng = random.Random(f"releases of {seed}")
        self._downgraded: set[str] = set()
        self._stopped = False
        self._is_restored = is_restored
        self.is_mixed = False

    def first_release(self) -> SupportedVersions:
        """Return what a node of the first members runs."""
        return NEWER if self._is_restored else OLDER

    def later_release(self) -> SupportedVersions:
        """Return what a node runs that is added later."""
        return NEWER if self._is_restored or self.is_mixed else OLDER

    def start(self) -> None:
        """Let clients use what the newer release adds, or try to."""
        if self.is_mixed:
            self._world.loop.create_task(self._write())

    def stop(self) -> None:
        """Let them end."""
        self._stopped = True

    def change(self, node: SimulatedNode, injector: FaultInjector) -> None:
        """Stop a node and start it with the other release, perhaps too late for a downgrade."""
        node.release = OLDER if node.release == NEWER else NEWER
        self._downgraded.discard(node.name)
        if node.release == OLDER:
            self._downgraded.add(node.name)
        self._world.log(f"{node.name} gets the release of {node.release}")
        injector.kill(node)

    def may_end(self, node: SimulatedNode, error: BaseException) -> bool:
        """Return whether a version may end a node or keep it from its start: only after a downgrade that came too late.

        An entry that cannot be read ends no node, for it is not proposed before every member can read it.
        """
        is_known = isinstance(error, UnsupportedVersion) and not isinstance(error, UndecodableEntry)
        return is_known and node.name in self._downgraded

    def put_back(self, node: SimulatedNode) -> None:
        """Give a node the newer release again: what an operator does who reads the message."""
        self._downgraded.discard(node.name)
        node.release = NEWER
        self._world.counts["downgrades refused"] += 1
        self._world.log(f"{node.name} gets the newer release back")

    def upgrade_all(self) -> None:
        """End the mixture."""
        if self.is_mixed:
            self._downgraded.clear()
            for node in self._world.nodes.values():
                node.release = NEWER

    async def check_the_end(self) -> None:
        """Check that the version has risen everywhere, and that what it allows is served.

        Raises nothing: violations are noted.
        """
        if not self.is_mixed:
            return
        self._world.operator.start_missing()
        end = self._world.loop.time() + 20.0
        while any(node.storage.machine.cluster_version != NEXT_VERSION for node in self._world.present()):
            if self._world.loop.time() > end:
                self._world.violate(f"the cluster version did not rise to {NEXT_VERSION}")
                return
            await asyncio.sleep(0.2)

    async def _write(self) -> None:
        number = 0
        while not self._stopped:
            await asyncio.sleep(self._rng.expovariate(1 / _PAUSE_SECONDS))
            leader = next((node for node in self._world.nodes.values() if node.leads and not node.is_paused), None)
            if leader is None:
                continue
            number += 1
            risen = leader.storage.machine.cluster_version >= NEXT_VERSION
            try:
                await leader.kv.put(GATED + b"%d" % (number % 5), b"%d" % number)
            except ClusterVersionTooLow:
                self._world.counts["gated: refused"] += 1
                if risen:
                    self._world.violate(f"{leader.name} refuses what the cluster's version allows")
            except (NotApplied, UnknownOutcome):
                continue
            else:
                self._world.counts["gated: done"] += 1
