"""A periodic check that this node listens at the address where its cluster dials it.

A copy of a data directory that runs at the same time as the original has its name, its id and its storage id, but not
its address: at the address of the membership another process answers. Such a copy ends, before the two forget each
other's votes. A node that listens on another port than the cluster dials receives nothing, so it logs that itself.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import Protocol

from raftkv.errors import CopyOfMember
from raftkv.membership import Membership
from raftkv.runtime.framing import Handshake, Presence, Probe
from raftkv.runtime.handshake_call import ask, presence_in
from raftkv.runtime.transport import LocalIdentity
from raftkv.types import NodeId

logger = logging.getLogger(__name__)

_CHECK_SECONDS = 3.0
_CHECK_SECONDS_WHEN_FOUND = 30.0
_CHECKS_BETWEEN_WARNINGS = 20


class ListeningNode(Protocol):
    """What is asked of the running node."""

    @property
    def membership(self) -> Membership:
        """Who belongs to the cluster."""
        ...


class HeardTransport(Protocol):
    """What is asked of its transport."""

    @property
    def is_heard_of(self) -> bool:
        """Whether any peer has dialled this node, and is connected."""
        ...


class OwnAddress:
    """Asks at the address that the membership has for this node who is there.

    Args:
        name: The node.
        identity: What it says of itself.
        node: Its membership.
        transport: Its connections.
        tls: Context for dialling members, None to speak without TLS.
        ask_at: Asks a question at an address; for tests.
    """

    def __init__(
        self,
        name: NodeId,
        identity: LocalIdentity,
        node: ListeningNode,
        transport: HeardTransport,
        tls: ssl.SSLContext | None,
        ask_at: Callable[[str, Probe, ssl.SSLContext | None], Awaitable[Handshake | str]] = ask,
    ) -> None:
        self._name = name
        self._identity = identity
        self._node = node
        self._transport = transport
        self._tls = tls
        self._ask_at = ask_at
        self._absences = 0

    async def run(self) -> None:
        """Ask until cancelled.

        Raises:
            CopyOfMember: Another process with this member's data is at that address.
        """
        while True:
            is_found = await self.check()
            await asyncio.sleep(_CHECK_SECONDS_WHEN_FOUND if is_found else _CHECK_SECONDS)

    async def check(self) -> bool:
        """Ask once; return whether this node is there.

        Raises:
            CopyOfMember: Another process with this member's data is at that address.
        """
        own = self._node.membership.with_id(self._identity.member_id)
        if own is None:
            return False
        found = presence_in(await self._ask_at(own.peer_address, Probe(self._identity.cluster_id), self._tls))
        if isinstance(found, str):
            self._warn(own.peer_address, found)
            return False
        if (found.member_id, found.storage_id) != (self._identity.member_id, self._identity.storage_id):
            self._warn(own.peer_address, f"{found.name} answers there")
            return False
        self._absences = 0
        self._refuse_copy(own.peer_address, found)
        return True

    def _refuse_copy(self, address: str, found: Presence) -> None:
        if found.life and found.life != self._identity.life:
            raise CopyOfMember(
                f"another process with the data directory of {self._name} (storage {self._identity.storage_id}) runs "
                f"at {address}, where the cluster reaches {self._name}: this one is a copy, and ends. Never copy the "
                "directory of a member to start it elsewhere; if the other process is the wrong one, stop it first"
            )

    def _warn(self, address: str, cause: str) -> None:
        """Log that the cluster looks for this node elsewhere, when that is no mistake of a moment."""
        if self._transport.is_heard_of or len(self._node.membership.members) == 1:
            self._absences = 0
            return
        self._absences += 1
        if self._absences % _CHECKS_BETWEEN_WARNINGS == 2:
            logger.warning(
                "no member has connected to this node, and it is not at %s, the peer address that the cluster has "
                "for %s (%s): check --listen-peer and --advertise-peer; if it has moved, run: "
                "raftkv member move %s HOST:PORT",
                address,
                self._name,
                cause,
                self._name,
            )
