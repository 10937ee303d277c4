"""``/v1/alarms``: the alarms of the cluster, listed and cleared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from raftkv.http.answers import json_response
from raftkv.http.body import refuse_body
from raftkv.http.routing import Call
from raftkv.http.target import Query
from raftkv.operations import Alarm, AlarmKind
from raftkv.service.api import AlarmService, MembershipService

_EVERY_KIND = ""


class AlarmApi:
    """Handlers of requests about alarms.

    Args:
        alarms: The alarms.
        members: Says whether this node leads.
    """

    def __init__(self, alarms: AlarmService, members: MembershipService) -> None:
        self._alarms = alarms
        self._members = members

    async def list(self, call: Call) -> web.Response:
        """``GET /v1/alarms``: the active alarms, as far as this node has applied."""
        refuse_body(call.request)
        Query(call.query, ())
        return json_response({"alarms": render_alarms(self._alarms.active())})

    async def clear(self, call: Call) -> web.Response:
        """``DELETE /v1/alarms``: clear every active alarm, or those of a ``kind`` or of a ``member``.

        Only the leader does. A follower redirects even if it knows of no alarm, since it may lag behind.
        """
        refuse_body(call.request)
        query = Query(call.query, ("kind", "member"))
        kind = query.choice("kind", (_EVERY_KIND, *(kind.label for kind in AlarmKind)), _EVERY_KIND)
        member = query.raw("member", b"")
        self._members.require_leader()
        cleared = [
            alarm
            for alarm in self._alarms.active()
            if kind in (_EVERY_KIND, alarm.kind.label) and member in (b"", alarm.member.encode())
        ]
        for alarm in cleared:
            await self._alarms.set(alarm, is_active=False)
        return json_response({"cleared": render_alarms(cleared)})


def render_alarms(alarms: Sequence[Alarm]) -> list[dict[str, Any]]:
    """Return alarms as JSON: kind, member, and whether the quota raised it and so clears it by itself."""
    return [{"kind": alarm.kind.label, "member": alarm.member, "automatic": alarm.is_automatic} for alarm in alarms]
