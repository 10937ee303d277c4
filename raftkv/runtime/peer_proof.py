"""Verification of diallers: whether a peer that says hello is the member that it says it is.

A member is trusted at the address that the membership has for it. With TLS, the certificate of the dialler must be for
the host of that address. Without TLS, the acceptor dials that address itself and asks whether the connection comes from
there: each hello has a secret token, which only its sender and its target know.

The address is that of the membership which this node has applied. A node that was away may not know the present leader
(Ongaro's dissertation, section 4.1), or know it at an old address. Then it asks the members that it knows. When none of
them vouches for the peer, it asks the cluster that its operator has named (``--join``). Nothing that the peer itself
says of its address is used.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from raftkv.config import HostPort
from raftkv.membership import ClusterMember, MemberId
from raftkv.runtime.framing import (
    Confirm,
    Confirmed,
    Hello,
    Vouch,
    Vouched,
)
from raftkv.runtime.handshake_call import ask
from raftkv.types import ClusterId, NodeId

MAX_SEARCHES = 4
"""Unknown peers that members are asked about at one time. Each costs a connection to every member."""

_CONTACTS_SECONDS = 5.0
"""Between two questions to the cluster that the operator has named."""

FindMembers = Callable[[], Awaitable[Sequence[ClusterMember]]]
"""Asks the cluster that the operator has named for its members; empty when it does not answer."""


class Unproven(Exception):
    """A dialler could not be verified; the text says why."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a dialler has shown: names of its certificate, as ``ssl.SSLSocket.getpeercert`` has them."""

    names: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, peer_certificate: Mapping[str, Any] | None) -> Certificate:
        """Take the names of a verified certificate; none without one."""
        names = (peer_certificate or {}).get("subjectAltName", ())
        return cls(tuple((str(kind), str(name)) for kind, name in names))

    def is_for(self, host: str) -> bool:
        """Whether it is for a host, by the rules for servers (RFC 6125: a wildcard stands for one leftmost label)."""
        try:
            address = ip_address(host)
        except ValueError:
            return any(kind == "DNS" and _matches(name, host) for kind, name in self.names)
        return any(kind == "IP Address" and _is_address(name, address) for kind, name in self.names)


def _matches(pattern: str, host: str) -> bool:
    pattern, host = pattern.lower().rstrip("."), host.lower().rstrip(".")
    first, dot, rest = pattern.partition(".")
    return pattern == host or (first == "*" and bool(dot) and rest == host.partition(".")[2] != "")


def _is_address(text: str, address: object) -> bool:
    try:
        return ip_address(text.strip()) == address
    except ValueError:
        return False


class PeerProof:
    """Verifies the diallers of one node.

    Args:
        name: The node.
        cluster_id: Its cluster.
        dialling: TLS context to dial members with, None to speak without TLS.
        members: Returns the other members as this node knows them.
        find_members: Asks the cluster that the operator has named, None when none is named.
    """

    def __init__(
        self,
        name: NodeId,
        cluster_id: ClusterId,
        dialling: ssl.SSLContext | None,
        members: Callable[[], Iterable[ClusterMember]],
        find_members: FindMembers | None,
    ) -> None:
        self._name = name
        self._cluster_id = cluster_id
        self._dialling = dialling
        self._members = members
        self._find_members = find_members
        self._searches = 0
        self._contacts: Sequence[ClusterMember] = ()
        self._contacts_due = 0.0
        self._finding: asyncio.Task[None] | None = None

    async def address_of(self, hello: Hello, certificate: Certificate) -> str:
        """Return the address at which a dialler is the member that it says it is.

        Args:
            hello: What it says.
            certificate: What it has shown.

        Raises:
            Unproven: It is none, or no member that can be reached knows it.
        """
        member_id = MemberId(hello.member_id)
        known = next(
            (member for member in self._members() if (member.name, member.id) == (hello.name, member_id)), None
        )
        if known is not None:
            doubt = await self._doubt(known.peer_address, hello, certificate)
            if doubt is None:
                return known.peer_address
            if hello.peer_address == known.peer_address:
                raise Unproven(doubt)
        return await self._search(hello, certificate)

    async def _doubt(self, address: str, hello: Hello, certificate: Certificate) -> str | None:
        """Return why a dialler is not known to be the member at an address, None when it is."""
        if self._dialling is not None:
            host = HostPort.parse(address).host
            if certificate.is_for(host):
                return None
            return f"the certificate of this peer is not for {host}, where {hello.name} is"
        if not hello.token:
            return f"{hello.name} names no token by which it could be verified"
        question = Confirm(self._cluster_id, self._name, hello.name, hello.token)
        answer = await ask(address, question, None)
        if isinstance(answer, Confirmed):
            return None
        if isinstance(answer, str):
            return f"{hello.name} cannot be asked at {address} whether this connection is its own: {answer}"
        return f"{hello.name} at {address} says that this connection is not its own"

    async def _search(self, hello: Hello, certificate: Certificate) -> str:
        """Return the address at which a dialler is what it says, of those that others have for it.

        Members are asked, and then the cluster that the operator has named, since all members that answer may have
        missed that the peer has moved.
        """
        if self._searches >= MAX_SEARCHES:
            raise Unproven(f"{hello.name} is no member that is known here, and others are being searched for")
        self._searches += 1
        try:
            doubts: dict[str, str] = {}
            for find in (self._addresses_of_members, self._addresses_of_contacts):
                for address in await find(hello.name, MemberId(hello.member_id)):
                    if address not in doubts:
                        doubt = await self._doubt(address, hello, certificate)
                        if doubt is None:
                            return address
                        doubts[address] = doubt
        finally:
            self._searches -= 1
        if doubts:
            raise Unproven("; ".join(doubts.values()))
        raise Unproven(
            f"{hello.name} is no member that is known here, and no member that can be reached knows it; if all have "
            "moved or were replaced while this node was away, restart it with --join"
        )

    async def _addresses_of_members(self, peer: str, peer_id: MemberId) -> list[str]:
        members = [member for member in self._members() if member.id != peer_id]
        answers = await asyncio.gather(*(self._ask_about(peer, peer_id, member) for member in members))
        return [answer for answer in answers if answer is not None]

    async def _addresses_of_contacts(self, peer: str, peer_id: MemberId) -> list[str]:
        await self._find_contacts()
        return [each.peer_address for each in self._contacts if (each.name, each.id) == (peer, peer_id)]

    async def _ask_about(self, peer: str, peer_id: MemberId, member: ClusterMember) -> str | None:
        question = Vouch(self._cluster_id, self._name, member.name, peer, peer_id)
        answer = await ask(member.peer_address, question, self._dialling)
        return answer.peer_address if isinstance(answer, Vouched) else None

    async def _find_contacts(self) -> None:
        """Ask the cluster that the operator has named, unless that was done just before.

        It may take longer than a handshake may: then the next one finds what came of it.
        """
        if self._find_members is None:
            return
        if self._finding is None or (self._finding.done() and asyncio.get_running_loop().time() >= self._contacts_due):
            self._finding = asyncio.create_task(self._take_contacts(self._find_members))
        await asyncio.shield(self._finding)

    async def _take_contacts(self, find_members: FindMembers) -> None:
        self._contacts = await find_members()
        self._contacts_due = asyncio.get_running_loop().time() + _CONTACTS_SECONDS
