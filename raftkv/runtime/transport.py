"""Connections between the members: one that this node dials for sending, one that it accepts for receiving.

Snapshots have connections of their own, dialled when the first is sent, so that no heartbeat waits behind one.

A peer counts as connected when the dialled connection has completed its handshake. Of two accepted connections of one
peer only the newest counts: the older one is dropped at once, with everything that is still in it (H12q). Strangers,
other clusters and members that lost their disk are turned away in the handshake (H11, H12k). Nothing of an accepted
connection has an effect before its peer is verified (``raftkv.runtime.peer_proof``).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from raftkv.consensus.messages import Message, SnapshotChunk, UnknownMessage, decode, encode
from raftkv.errors import ConfigurationError
from raftkv.membership import ClusterMember, MemberId
from raftkv.runtime.arrivals import Arrival, Arrivals, PeerWarnings
from raftkv.runtime.connections import InboundConnection, Link
from raftkv.runtime.framing import (
    BadFrame,
    Channel,
    Confirm,
    Confirmed,
    Consent,
    Hello,
    Inquiry,
    Presence,
    Probe,
    Question,
    Rejected,
    Vouched,
    Welcome,
    encode_frame,
)
from raftkv.runtime.peer_proof import FindMembers, PeerProof
from raftkv.runtime.promises import Promises
from raftkv.runtime.tls_handshake import TlsHandshake
from raftkv.types import ClusterId, NodeId
from raftkv.versions import OWN_VERSIONS, AnnouncedVersions

logger = logging.getLogger(__name__)

MAX_GUESTS = 8
"""Peers of the cluster that are no members as far as this node knows."""

_SAID_BY_DIALLER = {"older": "outdated", "removed": "departed", "version": "unsupported", "storage": "forgetful"}
"""Codes of refusals that end their receiver, and what they are called when this node refuses to talk to a peer."""


@dataclass(frozen=True, slots=True)
class LocalIdentity:
    """What this node says of itself in handshakes.

    Attributes:
        cluster_id: Its cluster.
        member_id: Its id as a member.
        storage_id: Id of its data directory.
        client_url: Where it serves clients.
        peer_address: ``HOST:PORT`` at which the others can dial it.
        announced: What it says of cluster versions.
        restored_from: The cluster whose backup its cluster began with; empty when it began with nothing.
        life: Token of this process.
        start_index: Last index of the log when this process began.
    """

    cluster_id: ClusterId
    member_id: MemberId
    storage_id: str
    client_url: str
    peer_address: str
    announced: AnnouncedVersions = OWN_VERSIONS
    restored_from: str = ""
    life: str = ""
    start_index: int = 0

    @property
    def version_texts(self) -> tuple[str, str, str]:
        """The lowest and the highest supported version, and the held one, as handshakes have them."""
        supported, held = self.announced.supported, self.announced.held
        return str(supported.lowest), str(supported.highest), "" if held is None else str(held)


@dataclass(frozen=True, slots=True)
class MutualTls:
    """How members speak TLS.

    Attributes:
        accepting: Context for connections that others dial; they must show a certificate.
        dialling: Context for connections that this node dials.
    """

    accepting: ssl.SSLContext
    dialling: ssl.SSLContext


@dataclass(slots=True)
class TransportCounters:
    """What a transport has seen since its start."""

    frames_sent: int = 0
    frames_received: int = 0
    malformed: int = 0
    unknown: int = 0
    """Messages of kinds that this release does not know, which were ignored."""
    rejected: int = 0
    connections: int = 0


class TransportHandler(Protocol):
    """Who is told what happens on the connections; called on the event loop."""

    def on_message(self, peer: NodeId, message: Message) -> None:
        """Take a message."""
        ...

    def on_connected(self, peer: NodeId) -> None:
        """Messages can be sent to a peer from now on."""
        ...

    def on_disconnected(self, peer: NodeId) -> None:
        """They cannot any more."""
        ...

    def on_congested(self, peer: NodeId) -> None:
        """A peer reads more slowly than it is sent to."""
        ...

    def on_drained(self, peer: NodeId) -> None:
        """A congested peer has caught up."""
        ...

    def on_rejected(self, peer: NodeId, code: str, text: str) -> None:
        """A peer refuses this node."""
        ...

    def accept_peer(
        self, name: NodeId, member_id: MemberId, storage_id: str, announced: AnnouncedVersions
    ) -> Rejected | None:
        """Return why a verified peer is refused, None when it is welcome."""
        ...

    def may_begin(self, name: NodeId) -> Rejected | None:
        """Return why a member without data must not begin its cluster, None when it may."""
        ...

    def turns_away(self, member_id: MemberId) -> bool:
        """Whether a member is welcome no more, though it may have been before."""
        ...

    def on_guest(self, peer: NodeId) -> None:
        """A peer of the cluster that is no known member has come, or one under another id than the member's."""
        ...

    def on_guest_gone(self, peer: NodeId) -> None:
        """It is gone, or is the member that is known now."""
        ...


class Transport:
    """All connections of one node.

    Args:
        name: This node.
        members: The members; addresses are resolved anew for each connection, since they change.
        identity: What this node says of itself.
        handler: Who is told what happens.
        on_fatal: Called with an error that ``handler`` raised; the node cannot go on.
        tls: Contexts to speak TLS with, None to speak without.
        promises: What peers have acknowledged; None refuses no peer for its log.
        find_members: Asks the cluster that the operator has named for its members, None when none is named.
        new_token: Makes the secrets by which this node recognises its own connections.
    """

    def __init__(
        self,
        name: NodeId,
        members: Iterable[ClusterMember],
        identity: LocalIdentity,
        handler: TransportHandler,
        on_fatal: Callable[[BaseException], None],
        tls: MutualTls | None = None,
        promises: Promises | None = None,
        find_members: FindMembers | None = None,
        new_token: Callable[[], str] = secrets.token_hex,
    ) -> None:
        self.name = name
        self.identity = identity
        self.counters = TransportCounters()
        self.tls = tls
        self.new_token = new_token
        self.arrivals = Arrivals()
        self._warnings = PeerWarnings(logger)
        self._former: dict[MemberId, ClusterMember] = {}
        self.proof = PeerProof(
            name, identity.cluster_id, None if tls is None else tls.dialling, self._known_members, find_members
        )
        self._members = {member.name: member for member in members if member.name != name}
        self._handler = handler
        self._on_fatal = on_fatal
        self._promises = promises
        self._server: asyncio.Server | None = None
        self._links = {peer: Link(self, peer, member.peer_address) for peer, member in self._members.items()}
        self._snapshot_links: dict[NodeId, Link] = {}
        self._inbound_snapshots: dict[NodeId, InboundConnection] = {}
        self._linked_ids: dict[NodeId, MemberId] = {}
        self._guests: dict[NodeId, InboundConnection] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._inbound: dict[NodeId, InboundConnection] = {}
        self._unread: set[NodeId] = set()
        self._client_urls: dict[NodeId, str] = {}
        self._last_encoded: tuple[Message, bytes] | None = None
        self._stopped = False

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen, and dial every peer.

        Returns:
            The address that is listened on.

        Raises:
            ConfigurationError: It cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                self._accept_connection,
                host,
                port,
            )
        except OSError as error:
            raise ConfigurationError(
                f"the peer address {host}:{port} cannot be listened on: {error.strerror or error}"
            ) from error
        for link in self._links.values():
            link.start()
        bound: tuple[str, int] = self._server.sockets[0].getsockname()[:2]
        return bound

    def _accept_connection(self) -> asyncio.Protocol:
        if self.tls is None:
            return InboundConnection(self)
        return TlsHandshake(self, self.tls.accepting, lambda handshake: InboundConnection(self, handshake))

    async def stop(self) -> None:
        """Close everything; nothing is delivered after this."""
        self._stopped = True
        if self._server is not None:
            self._server.close()
        self.arrivals.abort_all()
        for connection in [*self._inbound.values(), *self._inbound_snapshots.values()]:
            connection.abort()
        for link in [*self._links.values(), *self._snapshot_links.values()]:
            self._end(link)
        await asyncio.gather(*self._ending, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    def set_members(self, members: Iterable[ClusterMember]) -> None:
        """Go on with other members: dial new ones, and those that have moved, and leave those that are gone."""
        # A removed member goes on voting until its removal is confirmed, and must be verified until then.
        self._former.update((member.id, member) for member in self._members.values())
        self._former = {each: old for each, old in self._former.items() if not self._handler.turns_away(each)}
        before, self._members = self._members, {each.name: each for each in members if each.name != self.name}
        for peer, connection in list(self._guests.items()):
            member_id = MemberId(connection.member_id)
            # Who is turned away is gone below, and told when it dials again.
            if self._is_member(peer, member_id) or self._handler.turns_away(member_id):
                del self._guests[peer]
                self._tell_guest_is_gone(peer)
        for peer in [peer for peer in self._links if self._is_gone(peer)]:
            self._leave(peer)
        for peer, member in self._members.items():
            # A member that has moved, and was verified at its new address, keeps its link until this node applies that.
            has_moved = peer not in before or before[peer].peer_address != member.peer_address
            if peer not in self._guests and (has_moved or peer not in self._links):
                self._dial(peer, member.peer_address)

    def _leave(self, peer: NodeId) -> None:
        """Close all connections of a peer; what is still in them is not delivered."""
        self._hang_up(peer)
        self._client_urls.pop(peer, None)
        for inbound in (self._inbound.pop(peer, None), self._inbound_snapshots.pop(peer, None)):
            if inbound is not None:
                inbound.abort()

    def _is_gone(self, peer: NodeId) -> bool:
        """Whether a peer is nobody any more, or somebody else under the same name."""
        if peer in self._guests:
            return False
        member, inbound = self._members.get(peer), self._inbound.get(peer)
        known_id = self._linked_ids.get(peer)
        if member is None:
            return True
        return known_id not in (None, member.id) or (inbound is not None and inbound.member_id != member.id)

    def _hang_up(self, peer: NodeId) -> None:
        snapshot_link = self._snapshot_links.pop(peer, None)
        if snapshot_link is not None:
            self._end(snapshot_link)
        self._linked_ids.pop(peer, None)
        link = self._links.pop(peer)
        if link.connection is not None:
            self.guarded(lambda: self._handler.on_disconnected(peer))
        self._end(link)

    def _dial(self, peer: NodeId, address: str) -> None:
        """Keep a connection to a peer up at an address."""
        link = self._links.get(peer)
        if link is not None:
            if link.address == address:
                return
            self._hang_up(peer)
        self._links[peer] = Link(self, peer, address)
        self._links[peer].start()

    def _end(self, link: Link) -> None:
        task = link.stop()
        if task is not None:
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def send(self, peer: NodeId, message: Message) -> bool:
        """Send a message; return whether it is on its way, which does not mean that it arrives."""
        link = self._snapshot_link(peer) if isinstance(message, SnapshotChunk) else self._links.get(peer)
        connection = None if link is None else link.connection
        if connection is None or not connection.can_take_more:
            return False
        # The same heartbeat or entry goes to several peers in a row.
        if self._last_encoded is None or self._last_encoded[0] is not message:
            self._last_encoded = (message, encode_frame(encode(message)))
        connection.write(self._last_encoded[1])
        self.counters.frames_sent += 1
        return True

    def _snapshot_link(self, peer: NodeId) -> Link | None:
        """Return the connection for a peer's snapshots, which is dialled when the first is to be sent."""
        link = self._links.get(peer)
        if link is None or link.connection is None:
            return None
        if peer not in self._snapshot_links:
            self._snapshot_links[peer] = Link(self, peer, link.address, Channel.SNAPSHOTS)
            self._snapshot_links[peer].start()
        return self._snapshot_links[peer]

    def set_reading(self, peer: NodeId, *, is_reading: bool) -> None:
        """Read a peer's messages, or leave them to TCP's flow control; snapshots and other peers are not affected."""
        if is_reading:
            self._unread.discard(peer)
        else:
            self._unread.add(peer)
        connection = self._inbound.get(peer)
        if connection is not None:
            connection.set_reading(is_reading=is_reading)

    def is_connected(self, peer: NodeId) -> bool:
        """Whether messages can be sent to a peer."""
        link = self._links.get(peer)
        return link is not None and link.connection is not None

    @property
    def is_heard_of(self) -> bool:
        """Whether any peer has dialled this node, and is connected."""
        return bool(self._inbound)

    def client_url(self, peer: NodeId) -> str | None:
        """Where a peer serves clients, as it last said."""
        return self._client_urls.get(peer)

    def answer(self, question: Question) -> Consent | Presence | Confirmed | Vouched | Rejected:
        """Answer a node that may begin its cluster, that asks who is here, or that verifies a dialler."""
        if isinstance(question, Probe):
            if question.cluster_id != self.identity.cluster_id:
                return Rejected("cluster", "a node of another cluster listens here")
            return Presence(self.name, self.identity.member_id, self.identity.storage_id, self.identity.life)
        if question.target != self.name:
            return Rejected("target", f"this is {self.name}, not {question.target}")
        if question.cluster_id != self.identity.cluster_id:
            return Rejected(
                "cluster",
                f"{self.name} has data of another cluster than {question.cluster_id}: the initial clusters differ, or "
                "the cluster was restored from a backup",
            )
        asker = NodeId(question.name)
        if isinstance(question, Inquiry):
            if asker == self.name:
                return Rejected("member", f"{asker} is the name of this node itself")
            return self._handler.may_begin(asker) or Consent(self.name)
        if isinstance(question, Confirm):
            token, links = question.token.encode(), (self._links.get(asker), self._snapshot_links.get(asker))
            pending = [link.token.encode() for link in links if link is not None and link.token]
            if any(secrets.compare_digest(each, token) for each in pending):
                return Confirmed(self.name)
            return Rejected("unproven", f"{self.name} has no such connection to {asker}")
        peer = self._members.get(NodeId(question.peer))
        if peer is None or peer.id != question.peer_id:
            return Rejected("member", f"{question.peer} is no member that is known to {self.name}")
        return Vouched(self.name, peer.peer_address)

    def _known_members(self) -> list[ClusterMember]:
        """Return the others that are members as far as this node knows, and removed ones that may still vote."""
        former = [old for each, old in self._former.items() if not self._handler.turns_away(each)]
        return [*self._members.values(), *(old for old in former if not self._is_member(old.name, old.id))]

    def check_hello(self, hello: Hello) -> Rejected | None:
        """Return why a dialler is refused without a verification, None when it is to be verified. Changes nothing."""
        name = NodeId(hello.name)
        if hello.cluster_id == self.identity.restored_from:
            return Rejected(
                "cluster",
                f"{self.name} belongs to a cluster which was restored from cluster {hello.cluster_id} and has replaced "
                f"it: stop {name}, set its data directory aside, and let it begin "
                'with "raftkv snapshot restore" or with --join',
            )
        if hello.cluster_id != self.identity.cluster_id:
            return Rejected(
                "cluster",
                f"{self.name} belongs to another cluster than {hello.cluster_id}: the initial clusters differ",
            )
        if hello.target != self.name:
            return Rejected("target", f"this is {self.name}, not {hello.target}")
        if name == self.name:
            return Rejected("member", f"{name} is the name of this node itself")
        if not self._is_member(name, hello.member_id) and len(self._guests) >= MAX_GUESTS:
            return Rejected("member", f"{name} is no member that is known here, and too many of those have come")
        return self._rejected_for_good(name, MemberId(hello.member_id))

    def _rejected_for_good(self, name: NodeId, member_id: MemberId) -> Rejected | None:
        if not self._handler.turns_away(member_id):
            return None
        return Rejected("removed", f"member {name} (id {member_id:016x}) was removed from the cluster")

    def accept(self, hello: Hello) -> Rejected | None:
        """Return why a verified dialler is refused, None when it is welcome."""
        # It took time to verify it.
        return self.check_hello(hello) or self._accept(NodeId(hello.name), hello)

    def _accept(self, name: NodeId, greeting: Hello | Welcome) -> Rejected | None:
        member_id = MemberId(greeting.member_id)
        rejected = self._handler.accept_peer(name, member_id, greeting.storage_id, greeting.announced)
        if rejected is not None or self._promises is None:
            return rejected
        is_member = self._is_member(name, member_id)
        older = self._promises.check(name, member_id, greeting.life, greeting.start_index, is_member=is_member)
        return None if older is None else Rejected("older", older)

    def _is_member(self, name: NodeId, member_id: int) -> bool:
        member = self._members.get(name)
        return member is not None and member.id == member_id

    def check_welcome(self, peer: NodeId, welcome: Welcome) -> Rejected | None:
        """Return why an acceptor is not to be talked to, None when it is as expected."""
        if welcome.name != peer:
            return Rejected("target", f"{welcome.name} answers at the address of {peer}")
        rejected = self._rejected_for_good(peer, MemberId(welcome.member_id))
        if rejected is None and not self._expects(peer, welcome.member_id):
            return Rejected("member", f"another {peer} (id {welcome.member_id:016x}) answers, which is no known member")
        rejected = rejected or self._accept(peer, welcome)
        if rejected is None:
            return None
        # Only the one that was removed, or is of another release, must take that for the end.
        return Rejected(_SAID_BY_DIALLER.get(rejected.code, rejected.code), rejected.text)

    def _expects(self, peer: NodeId, member_id: int) -> bool:
        """Whether the member of a name, or a verified peer that is no member yet, has that id."""
        guest = self._guests.get(peer)
        return self._is_member(peer, member_id) or (guest is not None and guest.member_id == member_id)

    def admit(self, connection: Arrival) -> bool:
        """Take note of a new connection; return whether it may stay."""
        if not self._stopped:
            self.arrivals.add(connection)
        return not self._stopped

    def introduce(self, connection: InboundConnection, hello: Hello, address: str) -> None:
        """Let a connection be the one that a peer is heard on.

        Args:
            connection: The connection.
            hello: What the peer says.
            address: Where it was verified.
        """
        peer = NodeId(hello.name)
        self.arrivals.discard(connection)
        accepted = self._accepted(connection)
        superseded = accepted.get(peer)
        if superseded is not None:
            superseded.abort()
        accepted[peer] = connection
        if connection.channel is Channel.SNAPSHOTS:
            return
        connection.set_reading(is_reading=peer not in self._unread)
        self._client_urls[peer] = hello.client_url
        if not self._is_member(peer, hello.member_id):
            self._guests[peer] = connection
            self.guarded(lambda: self._handler.on_guest(peer))
        elif self._guests.pop(peer, None) is not None:
            self._tell_guest_is_gone(peer)
        # Not where the membership has it, when it has moved and this node has missed that.
        self._dial(peer, address)
        # It is up, so there is no reason to wait with dialling it.
        self._links[peer].hurry()

    def forget(self, connection: InboundConnection) -> None:
        """Take note that an accepted connection is closed."""
        self.arrivals.discard(connection)
        accepted = self._accepted(connection)
        if connection.peer is not None and accepted.get(connection.peer) is connection:
            del accepted[connection.peer]
            self._part_with_guest(connection.peer, connection)

    def _accepted(self, connection: InboundConnection) -> dict[NodeId, InboundConnection]:
        return self._inbound if connection.channel is Channel.MESSAGES else self._inbound_snapshots

    def _tell_guest_is_gone(self, peer: NodeId) -> None:
        self.guarded(lambda: self._handler.on_guest_gone(peer))

    def _part_with_guest(self, peer: NodeId, connection: InboundConnection) -> None:
        if self._guests.get(peer) is not connection:
            return
        del self._guests[peer]
        self._tell_guest_is_gone(peer)
        self.set_members(list(self._members.values()))
        if peer in self._members:
            self._dial(peer, self._members[peer].peer_address)

    def deliver(self, connection: InboundConnection, peer: NodeId, payload: bytes) -> None:
        """Hand a message on, unless its connection was superseded."""
        if self._stopped or self._accepted(connection).get(peer) is not connection:
            return
        try:
            message = decode(payload)
        except UnknownMessage as unknown:
            self.counters.unknown += 1
            logger.debug("ignored a message of %s: %s", peer, unknown)
            return
        if isinstance(message, SnapshotChunk) is not (connection.channel is Channel.SNAPSHOTS):
            raise BadFrame(f"{type(message).__name__} on a connection for {connection.channel.name.lower()}")
        self.counters.frames_received += 1
        self.guarded(lambda: self._handler.on_message(peer, message))

    def linked(self, peer: NodeId, welcome: Welcome, link: Link) -> None:
        """Take note that a dialled connection is up."""
        self.counters.connections += 1
        if link.channel is Channel.SNAPSHOTS:
            return
        self._client_urls[peer] = welcome.client_url
        self._linked_ids[peer] = MemberId(welcome.member_id)
        self.guarded(lambda: self._handler.on_connected(peer))

    def unlinked(self, peer: NodeId, link: Link) -> None:
        """Take note that a dialled connection is gone."""
        if not self._stopped and self._links.get(peer) is link:
            self.guarded(lambda: self._handler.on_disconnected(peer))

    def refused(self, peer: NodeId, rejected: Rejected) -> None:
        """Take note that a peer refuses this node, or this node it."""
        self.guarded(lambda: self._handler.on_rejected(peer, rejected.code, rejected.text))

    def congestion(self, peer: NodeId, *, is_congested: bool) -> None:
        """Take note of a peer's pace."""
        report = self._handler.on_congested if is_congested else self._handler.on_drained
        self.guarded(lambda: report(peer))

    def warn(self, text: str, address: str, name: str | None) -> None:
        """Log what is wrong with an accepted connection, at a bounded rate.

        Args:
            text: What is wrong.
            address: Where it comes from.
            name: What its peer calls itself, None when it has not said that.
        """
        is_member = any(member.name == name for member in self._known_members())
        self._warnings.warn(text, address, name if is_member else None)

    def fail(self, error: BaseException) -> None:
        """End the node over an error that nothing expects."""
        self._on_fatal(error)

    def guarded(self, action: Callable[[], None]) -> None:
        """Run a handler; an error of it ends the node, it is not the connection's fault."""
        try:
            action()
        except Exception as error:  # noqa: BLE001 - handed on whole
            self._on_fatal(error)
