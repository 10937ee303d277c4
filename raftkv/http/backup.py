"""``GET /v1/snapshot``, a backup of the node that is asked, and ``POST /v1/backups``, the report of a run."""

from __future__ import annotations

from aiohttp import hdrs, web

from raftkv.http.answers import X_REVISION, json_response
from raftkv.http.body import refuse_body
from raftkv.http.json_body import parse_members, read_json_body
from raftkv.http.keys import consistency_of
from raftkv.http.open_ended import Download, OpenEnded, write_piece
from raftkv.http.routing import Call
from raftkv.http.target import Query
from raftkv.service.api import BackupReportService, BackupService, ClusterService
from raftkv.types import BackupReport, Revision

_OUTCOMES = ("stored", "failed")
_MOST = 2**63 - 1


class BackupApi:
    """The handler of backups.

    Args:
        backups: Takes them.
        open_ended: What ends them when the node stops.
    """

    def __init__(self, backups: BackupService, open_ended: OpenEnded) -> None:
        self._backups = backups
        self._open_ended = open_ended

    async def save(self, call: Call) -> web.StreamResponse:
        """``GET /v1/snapshot``: everything acknowledged so far; with ``?consistency=stale`` what this node has."""
        refuse_body(call.request)
        consistency = consistency_of(Query(call.query, ("consistency",)))
        async with self._backups.take(consistency) as backup:
            headers = {
                hdrs.CONTENT_TYPE: "application/octet-stream",
                hdrs.CONTENT_LENGTH: str(backup.size),
                hdrs.CONTENT_DISPOSITION: f'attachment; filename="raftkv-{backup.revision}.snapshot"',
                hdrs.CACHE_CONTROL: "no-store",
                hdrs.SERVER: "raftkv",
                X_REVISION: str(backup.revision),
            }
            response = web.StreamResponse(headers=headers)
            await response.prepare(call.request)

            download = Download(call.request)

            async def send() -> None:
                async for piece in backup.pieces():
                    async with download.sending(len(piece)):
                        await write_piece(call.request, response, piece)

            try:
                await self._open_ended.run(call.request, send())
            except Exception:
                # The answer has begun: only its early end can say that it is not whole.
                if call.request.transport is not None:
                    call.request.transport.abort()
                raise
            return response


class BackupReportApi:
    """The handler of reports of backups.

    Args:
        reports: Takes them.
        cluster: Who this node is.
        body_timeout_seconds: Time in which a request's body must arrive.
    """

    def __init__(self, reports: BackupReportService, cluster: ClusterService, body_timeout_seconds: float) -> None:
        self._reports = reports
        self._cluster = cluster
        self._body_timeout_seconds = body_timeout_seconds

    async def record(self, call: Call) -> web.Response:
        """``POST /v1/backups``: with ``outcome`` ``stored``, also ``revision``, ``bytes`` and ``kept``.

        ``raftkv backup`` reports its runs, for the metrics of the node that is asked.
        """
        allowed = ("outcome", "revision", "bytes", "kept", "volume_too_small")
        body = parse_members(await read_json_body(call, self._body_timeout_seconds), allowed)
        if body.choice("outcome", _OUTCOMES, "") == "failed":
            self._reports.record_failure()
        else:
            revision, size, kept = (body.integer(name, 0, _MOST) for name in ("revision", "bytes", "kept"))
            await self._reports.record_success(
                BackupReport(Revision(revision), size, kept, body.flag("volume_too_small"))
            )
        return json_response({"answered_by": self._cluster.own().name})
