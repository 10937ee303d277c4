"""``GET /v1/snapshot``: a backup of the node that is asked, as one file."""

from __future__ import annotations

from aiohttp import hdrs, web

from raftkv.http.answers import X_REVISION
from raftkv.http.body import refuse_body
from raftkv.http.keys import consistency_of
from raftkv.http.open_ended import OpenEnded, write_piece
from raftkv.http.routing import Call
from raftkv.http.target import Query
from raftkv.service.api import BackupService


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

            async def send() -> None:
                async for piece in backup.pieces():
                    await write_piece(call.request, response, piece)

            try:
                await self._open_ended.run(call.request, send())
            except Exception:
                # The answer has begun: only its early end can say that it is not whole.
                if call.request.transport is not None:
                    call.request.transport.abort()
                raise
            return response
