"""Verification of diallers: whether a peer that says hello is the member that it says it is.

A member is trusted at the address that the membership has for it. With TLS, the certificate of the dialler must be for
the host of that address. Without TLS, the acceptor dials that address itself and asks whether the connection comes from
there: each hello has a secret token, which only its sender and its target know.

With TLS the question is asked, too: a certificate proves the host, and the answer the port at which the member listens.
Without an answer, a member is believed for its certificate, at the first address that it is for.

The address is that of the membership which this node has applied. A node that was away may not know the present leader
(Ongaro's dissertation, section 4.1), or know it at an old address. Then it asks the members that it knows. When none of
them vouches for the peer, it asks the cluster that its operator has named (``--join``). Nothing that the peer itself
says of its address is used.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from raftkv.config import HostPort
from raftkv.errors import ConfigurationError
from raftkv.membership import ClusterMember, MemberId
from raftkv.runtime.framing import (
    Confirm,
    Confirmed,
    Handshake,
    Hello,
    Vouch,
    Vouched,
)
from raftkv.runtime.handshake_call import ask
from raftkv.runtime.vouching import Vouching
from raftkv.types import ClusterId, NodeId

_SEARCH_SECONDS = 4.5
"""For finding out whether a dialler is a member; it is refused in words before its handshake ends."""

_CONTACTS_SECONDS = 5.0
"""Between two questions to the cluster that the operator has named."""

FindMembers = Callable[[], Awaitable[Sequence[ClusterMember]]]
"""Asks the cluster that the operator has named for its members; empty when it does not answer."""


class Unproven(Exception):
    """A dialler could not be verified; the text says why.

    Args:
        text: For the log of this node.
        answer: For the dialler, who may be a stranger: it names no address that the dialler has not named itself.
    """

    def __init__(self, text: str, answer: str) -> None:
        super().__init__(text)
        self.answer = answer


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
        """Whether it is for a host, by the rules of OpenSSL, which checks what this node shows when it dials.

        A common name does not count. A wildcard stands for one whole leftmost label before two others at least.
        """
        try:
            address = ip_address(host)
        except ValueError:
            return any(kind == "DNS" and _matches(name, host) for kind, name in self.names)
        return any(kind == "IP Address" and _is_address(name, address) for kind, name in self.names)


_WILDCARD = re.compile(r"\*((?:\.(?!-)[a-z0-9-]+(?<!-)){2,})")
_WILD_LABEL = re.compile(r"[a-z0-9-]+|\*")
_FOUR_NUMBERS = re.compile(r"\d+(?:\.\d+){3}")


def _matches(pattern: str, host: str) -> bool:
    try:
        # As the dialler's ssl module asks OpenSSL for it.
        host = host.encode("idna").decode("ascii").lower()
    except UnicodeError:
        return False
    if not pattern.isascii() or _FOUR_NUMBERS.fullmatch(host):
        # Not what it seems to be: a letter that becomes another one in lower case, and an address with octal numbers.
        return False
    pattern = pattern.lower()
    wildcard = _WILDCARD.fullmatch(pattern)
    if wildcard is None:
        return pattern == host
    label = host.removesuffix(wildcard[1])
    return label != host and _WILD_LABEL.fullmatch(label) is not None


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
        self._vouching = Vouching(self._ask_members)
        self._contacts: Sequence[ClusterMember] = ()
        self._contacts_due = 0.0
        self._finding: asyncio.Task[None] | None = None

    async def address_of(self, hello: Hello, certificate: Certificate, source: str) -> str:
        """Return the address at which a dialler is the member that it says it is.

        Args:
            hello: What it says.
            certificate: What it has shown.
            source: The address that its connection comes from.

        Raises:
            Unproven: It is none, or no member that can be reached knows it.
        """
        doubts: dict[str, str] = {}
        proven: list[str] = []
        try:
            async with asyncio.timeout(_SEARCH_SECONDS):
                for find in (self._known_addresses, self._addresses_of_members, self._addresses_of_contacts):
                    for address in await find(hello, source):
                        if address in doubts or address in proven:
                            continue
                        doubt = await self._doubt(address, hello, certificate)
                        if doubt is not None:
                            doubts[address] = doubt
                        elif await self._is_reached_at(address, hello):
                            return address
                        else:
                            proven.append(address)
        except TimeoutError:
            doubts[""] = f"the search for {hello.name} has not ended within {_SEARCH_SECONDS:g} s"
        if proven:
            # It is the member, though it may not listen there.
            return proven[0]
        raise self._unproven(hello, doubts)

    def _unproven(self, hello: Hello, doubts: Mapping[str, str]) -> Unproven:
        if not doubts:
            text = (
                f"{hello.name} is no member that is known here, and no member that can be reached knows it; if all "
                "have moved or were replaced while this node was away, restart it with --join"
            )
            return Unproven(text, text)
        text = "; ".join(doubts.values())
        if doubts.keys() <= {"", hello.peer_address}:
            return Unproven(text, text)
        return Unproven(
            text,
            f"{hello.name} cannot be verified at the address that the cluster has for it, which is not the one that "
            f"it advertises; the log of {self._name} says why",
        )

    async def _doubt(self, address: str, hello: Hello, certificate: Certificate) -> str | None:
        """Return why a dialler is not known to be the member at an address, None when it is."""
        if self._dialling is not None:
            try:
                host = HostPort.parse(address).host
            except ConfigurationError as error:
                return f"the address of {hello.name} is none: {error}"
            if certificate.is_for(host):
                return None
            return f"the certificate of this peer is not for {host}, where {hello.name} is"
        if not hello.token:
            return f"{hello.name} names no token by which it could be verified"
        answer = await self._confirm(address, hello)
        if isinstance(answer, Confirmed):
            return None
        if isinstance(answer, str):
            return f"{hello.name} cannot be asked at {address} whether this connection is its own: {answer}"
        return f"{hello.name} at {address} says that this connection is not its own"

    async def _is_reached_at(self, address: str, hello: Hello) -> bool:
        """Whether a dialler that has proven to be the member of an address listens there.

        A certificate is for a host, whatever the port: the member may have moved to another one.
        """
        if self._dialling is None:
            return True
        if not hello.token:
            return address == hello.peer_address
        return isinstance(await self._confirm(address, hello), Confirmed)

    async def _confirm(self, address: str, hello: Hello) -> Handshake | str:
        question = Confirm(self._cluster_id, self._name, hello.name, hello.token)
        return await ask(address, question, self._dialling)

    async def _known_addresses(self, hello: Hello, _source: str) -> list[str]:
        """Return the address that the membership has for a peer, as this node knows it."""
        return [each.peer_address for each in self._members() if (each.name, each.id) == (hello.name, hello.member_id)]

    async def _addresses_of_members(self, hello: Hello, source: str) -> list[str]:
        """Return the addresses that the other members have for a peer."""
        # It takes time, which may be needed when they do not know it.
        self._begin_to_find_contacts()
        is_known = bool(await self._known_addresses(hello, source))
        return await self._vouching.addresses_of(hello.name, MemberId(hello.member_id), source, is_known=is_known)

    async def _ask_members(self, peer: str, peer_id: MemberId) -> list[str]:
        members = [member for member in self._members() if member.id != peer_id]
        answers = await asyncio.gather(*(self._ask_about(peer, peer_id, member) for member in members))
        return [answer for answer in answers if answer is not None]

    async def _addresses_of_contacts(self, hello: Hello, _source: str) -> list[str]:
        """Return the address that the cluster which the operator has named has for a peer.

        All members that answer may have missed that the peer has moved.
        """
        self._begin_to_find_contacts()
        if self._finding is not None:
            # It may take longer than a handshake may: then the next one finds what came of it.
            await asyncio.shield(self._finding)
        peer = (hello.name, hello.member_id)
        return [each.peer_address for each in self._contacts if (each.name, each.id) == peer]

    async def _ask_about(self, peer: str, peer_id: MemberId, member: ClusterMember) -> str | None:
        question = Vouch(self._cluster_id, self._name, member.name, peer, peer_id)
        answer = await ask(member.peer_address, question, self._dialling)
        return answer.peer_address if isinstance(answer, Vouched) else None

    def _begin_to_find_contacts(self) -> None:
        """Ask the cluster that the operator has named, unless that was done just before."""
        if self._find_members is None:
            return
        if self._finding is None or (self._finding.done() and asyncio.get_running_loop().time() >= self._contacts_due):
            self._finding = asyncio.create_task(self._take_contacts(self._find_members))

    async def _take_contacts(self, find_members: FindMembers) -> None:
        self._contacts = await find_members()
        self._contacts_due = asyncio.get_running_loop().time() + _CONTACTS_SECONDS
