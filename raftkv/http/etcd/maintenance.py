"""Requests about the cluster and its members, and their upkeep."""

from __future__ import annotations

from collections.abc import Mapping

from raftkv.http.etcd.errors import Code, GatewayError, invalid
from raftkv.http.etcd.fields import Fields
from raftkv.http.etcd.headers import Document, Headers, Unary
from raftkv.operations import Alarm, AlarmKind
from raftkv.service.api import NodeServices
from raftkv.types import Revision, Role

ETCD_VERSION = "3.4.23"
"""What clients choose their prefix and their fields by."""

_ALARMS = ("NONE", "NOSPACE", "CORRUPT")
_ACTIONS = ("GET", "ACTIVATE", "DEACTIVATE")


class MaintenanceRequests:
    """Handlers of requests about the cluster.

    Args:
        services: What they are about.
        headers: Writes headers.
    """

    def __init__(self, services: NodeServices, headers: Headers) -> None:
        self._store = services.store
        self._cluster = services.cluster
        self._alarms = services.alarms
        self._headers = headers

    def handlers(self) -> Mapping[str, Unary]:
        """Return the handler of each path."""
        return {
            "maintenance/status": self._status,
            "maintenance/alarm": self._alarm,
            "maintenance/hash": self._hash,
            "maintenance/hashkv": self._hash_keys,
            "maintenance/defragment": self._defragment,
            "maintenance/transfer-leadership": self._transfer_leadership,
        }

    async def _status(self, _fields: Fields) -> Document:
        own = self._cluster.own()
        document: Document = {
            "version": ETCD_VERSION,
            "dbSize": str(self._store.file_bytes),
            "raftIndex": str(own.commit_index),
            "raftTerm": str(own.term),
            "raftAppliedIndex": str(own.applied_index),
            "dbSizeInUse": str(self._store.used_bytes),
        }
        if self._alarms.quota_bytes:
            document["dbSizeQuota"] = str(self._alarms.quota_bytes)
        leader = own.name if own.role is Role.LEADER else own.leader
        errors = [] if leader is not None else ["etcdserver: no leader"]
        if leader is not None:
            document["leader"] = self._number(leader)
        alarms = self._alarms.active()
        errors += [f"memberID:{self._number(alarm.member)} alarm:{alarm.kind.label} " for alarm in alarms]
        if errors:
            document["errors"] = errors
        return self._headers.answer(document, self._store.revision)

    async def _alarm(self, fields: Fields) -> Document:
        action = _ACTIONS[fields.choice("action", _ACTIONS, "action: unknown value")]
        number = fields.choice("alarm", _ALARMS, "alarm: unknown value")
        if _ALARMS[number] == "CORRUPT" and action == "ACTIVATE":
            raise GatewayError(Code.UNIMPLEMENTED, "only the leader raises this alarm, when the logs of members differ")
        revision = self._store.revision
        if action == "GET":
            found = [alarm for alarm in self._alarms.active() if number in (0, alarm.kind.value)]
        else:
            is_active = action == "ACTIVATE"
            found, revision = await self._set_alarm(number, fields.unsigned("memberID"), is_active=is_active)
        alarms = [{"memberID": self._number(alarm.member), "alarm": alarm.kind.label} for alarm in found]
        return self._headers.answer({"alarms": alarms} if alarms else {}, revision)

    async def _set_alarm(self, number: int, member_id: int, *, is_active: bool) -> tuple[list[Alarm], Revision]:
        revision = self._store.revision
        if not number:
            return [], revision
        if not is_active:
            return await self._clear_alarms(AlarmKind(number), member_id)
        names = {self._number(member.name): member.name for member, _url in self._cluster.members()}
        member = names.get(str(member_id)) if member_id else self._cluster.own().name
        if member is None:
            raise invalid("etcdserver: member not found")
        alarm = Alarm(AlarmKind(number), member)
        if alarm in self._alarms.active():
            return [alarm], revision
        return [alarm], await self._alarms.set(alarm, is_active=True)

    async def _clear_alarms(self, kind: AlarmKind, member_id: int) -> tuple[list[Alarm], Revision]:
        """Clear the alarm of a member; with the number 0 that of this node, and those of members that were removed."""
        own, revision = self._cluster.own().name, self._store.revision
        cleared = [
            alarm
            for alarm in self._alarms.active()
            if alarm.kind is kind
            and (self._number(alarm.member) == str(member_id) or (not member_id and alarm.member == own))
        ]
        for alarm in cleared:
            revision = await self._alarms.set(alarm, is_active=False)
        return cleared, revision

    async def _hash(self, _fields: Fields) -> Document:
        found = await self._store.hash(0)
        return self._headers.answer({"hash": found.value}, found.store_revision)

    async def _hash_keys(self, fields: Fields) -> Document:
        found = await self._store.hash(max(0, fields.integer("revision")))
        document: Document = {"hash": found.value}
        if found.compacted_revision:
            document["compact_revision"] = str(found.compacted_revision)
        return self._headers.answer(document, found.store_revision)

    async def _defragment(self, _fields: Fields) -> Document:
        """Answer at once: what the store frees it uses again, so there is nothing to be done."""
        return {}

    async def _transfer_leadership(self, fields: Fields) -> Document:
        number = str(fields.unsigned("targetID"))
        names = [member.name for member, _url in self._cluster.members() if self._number(member.name) == number]
        if not names:
            raise GatewayError(Code.FAILED_PRECONDITION, "etcdserver: bad leader transferee")
        await self._cluster.transfer_leadership(names[0])
        return self._headers.answer({}, self._store.revision)

    def _number(self, name: str) -> str:
        """Return a member's number; that of one which is gone is not known any more."""
        return str(next((member.id for member, _url in self._cluster.members() if member.name == name), 0))
