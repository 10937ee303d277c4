"""What operators ask of nodes: their status and health, alarms, and the move of the leadership."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from raftkv.client.answers import Answer, Document, document_of, parse_status
from raftkv.client.dispatch import Dispatcher, Request
from raftkv.client.failures import UnexpectedAnswer
from raftkv.client.targets import query_string
from raftkv.operations import Alarm, AlarmKind
from raftkv.types import NodeId, NodeStatus, Revision

_TRANSFER_SECONDS = 5.0
"""A leader tries for so long to give its leadership away before it answers."""

ALARM_KINDS = {kind.label: kind for kind in AlarmKind}
"""Kinds of alarms by their names."""


@dataclass(frozen=True, slots=True)
class StoreSize:
    """The sizes of a node's store, in bytes.

    Attributes:
        allocated: Disk that its file takes.
        file: Part of that which was ever used.
        used: Part of that which holds data; the rest is free, and used again.
        quota: Size of ``used`` at which writes are refused, 0 for no bound.
    """

    allocated: int
    file: int
    used: int
    quota: int


@dataclass(frozen=True, slots=True)
class Follower:
    """How far a follower is behind, as its leader knows it.

    Attributes:
        name: The follower.
        lag_entries: Entries that are not known to be durable at it.
        lag_bytes: Bytes of their commands, None when it needs a snapshot.
    """

    name: NodeId
    lag_entries: int
    lag_bytes: int | None


@dataclass(frozen=True, slots=True)
class Check:
    """One named check of a node's health, with a sentence for people."""

    name: str
    healthy: bool
    detail: str


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """One node as it sees itself.

    Attributes:
        cluster_id: Its cluster.
        id: Its id as a member: 16 hexadecimal digits.
        votes: Whether it has a vote.
        node: Its role, term, leader, indexes, revision and version.
        compacted_revision: History below this revision cannot be read.
        purged_revision: History below this revision is removed from its data.
        store: The sizes of its store.
        disk_free_bytes: What the disk of its data directory has left.
        disk_reserve_bytes: With less than this left, writes are refused.
        followers: The other members, when it leads.
        alarms: The active alarms.
        checks: The checks of its health; empty unless they were asked for.
    """

    cluster_id: str
    id: str
    votes: bool
    node: NodeStatus
    compacted_revision: Revision
    purged_revision: Revision
    store: StoreSize
    disk_free_bytes: int
    disk_reserve_bytes: int
    followers: tuple[Follower, ...]
    alarms: tuple[Alarm, ...]
    checks: tuple[Check, ...]

    @property
    def problems(self) -> list[str]:
        """Why the node counts as unhealthy: it knows no leader, a check failed, or an alarm is active."""
        failed = [check.detail for check in self.checks if not check.healthy]
        without_leader = ["no leader is known"] if self.node.leader is None and not failed else []
        return [*without_leader, *failed, *(f"alarm {alarm.kind.label} of {alarm.member}" for alarm in self.alarms)]


class MaintenanceClient:
    """Asks nodes for what operators need.

    Args:
        dispatcher: Sends requests.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def status(self, *, checks_health: bool = False) -> EndpointStatus:
        """Return the status of the first endpoint that answers; each is asked once.

        Args:
            checks_health: Whether the node tries a linearizable read too.

        Raises:
            NotApplied: None answered.
        """
        target = "/v1/status" + query_string({"health": "true"} if checks_health else {})
        return _parse_status(await self._dispatcher.send(Request("GET", target, is_read=True, is_tried_once=True)))

    async def alarms(self) -> tuple[Alarm, ...]:
        """Return the active alarms, as the node that answers knows them.

        Raises:
            NotApplied: No node answered in time.
        """
        answer = await self._dispatcher.send(Request("GET", "/v1/alarms", is_read=True))
        return _parse_alarms(document_of(answer).nested("alarms"), answer.source)

    async def clear_alarms(self, kind: AlarmKind | None = None, member: str | None = None) -> tuple[Alarm, ...]:
        """Clear alarms; return those that were cleared.

        Args:
            kind: Only those of this kind.
            member: Only those of this member.

        Raises:
            NotApplied: It was refused, or no node served it in time.
            UnknownOutcome: Some may have been cleared, or may yet be.
        """
        given = {"kind": None if kind is None else kind.label, "member": member}
        target = "/v1/alarms" + query_string({name: text for name, text in given.items() if text is not None})
        answer = await self._dispatcher.send(Request("DELETE", target))
        return _parse_alarms(document_of(answer).nested("cleared"), answer.source)

    async def move_leader(self, to: str | None = None) -> NodeId | None:
        """Make another member the leader; return who leads then, None if that is not known.

        Args:
            to: The member, None for the one that is best.

        Raises:
            InvalidRequest: The member has no vote, or there is no other.
            NotApplied: Nobody took over, or no node served it in time.
            UnknownOutcome: The leadership may have moved, or may yet.
        """
        body = orjson.dumps({} if to is None else {"to": to})
        # Without a name, a second try could move it back.
        request = Request(
            "POST", "/v1/cluster/leader", body, is_repeatable=to is not None, wait_seconds=_TRANSFER_SECONDS
        )
        leader = document_of(await self._dispatcher.send(request)).optional("leader", str)
        return None if leader is None else NodeId(leader)


def _parse_status(answer: Answer) -> EndpointStatus:
    document = document_of(answer)
    name, peer_address = NodeId(document.get("name", str)), document.get("peer_address", str)
    store, disk = document.required("store"), document.required("disk")
    checks = [] if document.optional("checks", list) is None else document.nested("checks")
    return EndpointStatus(
        cluster_id=document.get("cluster_id", str),
        id=document.get("id", str),
        votes=document.flag("votes"),
        node=parse_status(name, peer_address, document, answer.source),
        compacted_revision=document.revision("compacted_revision"),
        purged_revision=document.revision("purged_revision"),
        store=StoreSize(*(store.get(f"{size}_bytes", int) for size in ("allocated", "file", "used", "quota"))),
        disk_free_bytes=disk.get("free_bytes", int),
        disk_reserve_bytes=disk.get("reserve_bytes", int),
        followers=tuple(
            Follower(NodeId(each.get("name", str)), each.get("lag_entries", int), each.optional("lag_bytes", int))
            for each in document.nested("followers")
        ),
        alarms=_parse_alarms(document.nested("alarms"), answer.source),
        checks=tuple(
            Check(check.get("name", str), check.flag("healthy"), check.get("detail", str)) for check in checks
        ),
    )


def _parse_alarms(alarms: Sequence[Document], source: str) -> tuple[Alarm, ...]:
    return tuple(_parse_alarm(alarm, source) for alarm in alarms)


def _parse_alarm(alarm: Document, source: str) -> Alarm:
    kind = ALARM_KINDS.get(alarm.get("kind", str))
    if kind is None:
        raise UnexpectedAnswer(f"{source}: an alarm of an unknown kind, {alarm.get('kind', str)!r}")
    return Alarm(kind, alarm.get("member", str), alarm.flag("automatic"))
