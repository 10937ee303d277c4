"""Changes of the membership, as a client asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

import orjson

from raftkv.client.answers import Answer, Document, document_of, parse_version
from raftkv.client.dispatch import Dispatcher, Request
from raftkv.client.failures import UnexpectedAnswer
from raftkv.types import ClusterId, NodeId
from raftkv.versions import ClusterVersion

_PATH = "/v1/cluster/members"


@dataclass(frozen=True, slots=True)
class KnownMember:
    """One member as a node knows it.

    Attributes:
        name: Its name.
        id: Its id: 16 hexadecimal digits, never used again.
        peer_address: ``HOST:PORT`` of its Raft listener.
        votes: Whether it has a vote.
        storage_id: Id of its data directory, None when the node that answers never heard of it.
    """

    name: NodeId
    id: str
    peer_address: str
    votes: bool
    storage_id: str | None


@dataclass(frozen=True, slots=True)
class MemberList:
    """Who belongs to a cluster, as one of its nodes knows it.

    Attributes:
        cluster_id: The cluster's id.
        answered_by: That node.
        initial_members: Names and addresses of the members that the cluster was bootstrapped with.
        members: The members, by name.
        cluster_version: The cluster's version, as far as that node has applied.
    """

    cluster_id: ClusterId
    answered_by: NodeId
    initial_members: tuple[tuple[str, str], ...]
    members: tuple[KnownMember, ...]
    cluster_version: ClusterVersion

    def named(self, name: str) -> KnownMember | None:
        """Return the member of a name."""
        return next((member for member in self.members if member.name == name), None)


class MembersClient:
    """Asks a cluster to change its members; none of its changes is repeated when its outcome is unknown.

    Args:
        dispatcher: Sends requests.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def list(self) -> MemberList:
        """Return who belongs to the cluster, as the node that answers knows it."""
        return parse_member_list(await self._dispatcher.send(Request("GET", _PATH, is_read=True)))

    async def add(self, name: str, peer_address: str) -> KnownMember:
        """Add a member, which gets its vote by itself when it has caught up.

        Raises:
            MemberExists: There is a member of that name or at that address.
            NotApplied: It was refused, or no node served it in time.
            UnknownOutcome: It may have been added.
        """
        return _changed(await self._post("", {"name": name, "peer_address": peer_address}))

    async def remove(self, name: str) -> MemberList:
        """Remove a member for good; return who is left.

        Raises:
            MemberMissing: There is none of that name.
            MemberChangeRefused: The cluster would stop.
            NotApplied: It was refused, or no node served it in time.
            UnknownOutcome: It may have been removed.
        """
        return parse_member_list(await self._dispatcher.send(Request("DELETE", f"{_PATH}/{quote(name, safe='')}")))

    async def promote(self, name: str) -> MemberList:
        """Let a member vote that has caught up, without waiting for that to happen by itself.

        Raises:
            MemberMissing: There is none of that name.
            MemberChangeRefused: It votes already, or is too far behind.
            NotApplied: It was refused, or no node served it in time.
            UnknownOutcome: It may have happened.
        """
        return parse_member_list(await self._post(f"/{quote(name, safe='')}/promote", {}))

    async def replace(self, name: str, peer_address: str | None = None) -> KnownMember:
        """Give a member's place to a new one of the same name, which begins with nothing.

        Args:
            name: The member.
            peer_address: Where the new one is reached, None for the same address.

        Raises:
            MemberMissing: There is none of that name.
            MemberChangeRefused: The cluster would stop.
            NotApplied: It was refused, or no node served it in time.
            UnknownOutcome: It may have happened.
        """
        members = {} if peer_address is None else {"peer_address": peer_address}
        return _changed(await self._post(f"/{quote(name, safe='')}/replace", members))

    async def move(self, name: str, peer_address: str, *, force: bool = False) -> MemberList:
        """Tell the others that a member is reached elsewhere from now on.

        Args:
            name: The member.
            peer_address: ``HOST:PORT`` of its Raft listener from now on.
            force: Whether it need not answer there yet. At a wrong address the others lose it.

        Raises:
            MemberMissing: There is none of that name.
            MemberExists: Another is at that address.
            MemberUnreachable: This member does not answer there.
            NotApplied: It was refused, or no node served it in time.
            UnknownOutcome: It may have happened.
        """
        members = {"peer_address": peer_address} | ({"force": True} if force else {})
        return parse_member_list(await self._post(f"/{quote(name, safe='')}/address", members))

    async def _post(self, tail: str, members: Mapping[str, str | bool]) -> Answer:
        return await self._dispatcher.send(Request("POST", _PATH + tail, orjson.dumps(members)))


def parse_member_list(answer: Answer) -> MemberList:
    """Read who belongs to a cluster."""
    document = document_of(answer)
    initial = document.get("initial_members", dict)
    return MemberList(
        ClusterId(document.get("cluster_id", str)),
        NodeId(document.get("answered_by", str)),
        tuple(sorted(initial.items())),
        tuple(_member(member) for member in document.nested("members")),
        parse_version(document.get("cluster_version", str), answer.source),
    )


def _changed(answer: Answer) -> KnownMember:
    member = document_of(answer).child("member")
    if member is None:
        raise UnexpectedAnswer(f"{answer.source}: the answer does not say which member was changed")
    return _member(member)


def _member(member: Document) -> KnownMember:
    return KnownMember(
        NodeId(member.get("name", str)),
        member.get("id", str),
        member.get("peer_address", str),
        member.flag("votes"),
        member.optional("storage_id", str),
    )
