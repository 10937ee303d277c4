"""Periodic syncs of the store, so that a page that the disk did not take does not go unnoticed.

Nothing waits for these syncs: the journal is what is durable. But the kernel writes the pages of the store back by
itself, and reports an error of that only to the next sync of the file. Meanwhile the page counts as clean, and may be
dropped and read from the disk again, where it is older. So the store is synced now and then, and an error ends the
node. It is never tried again: a second sync would report success.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress

from raftkv.errors import StorageFailed
from raftkv.store.machine import Machine

PERIOD_SECONDS = 30.0
"""The kernel writes pages back after about this time anyway, so a sync finds little to write."""


class StoreSync:
    """Syncs the store of a running node.

    Args:
        machine: The store.
        failed: Called on the event loop with an error that must stop the node.
        in_thread: Runs work in a thread that the end of the process does not wait for.
        period_seconds: Time between two syncs.
    """

    def __init__(
        self,
        machine: Machine,
        failed: Callable[[BaseException], None],
        in_thread: Callable[[Callable[[], None]], Awaitable[None]] | None = None,
        period_seconds: float = PERIOD_SECONDS,
    ) -> None:
        self._machine = machine
        self._failed = failed
        self._in_thread = _in_daemon_thread if in_thread is None else in_thread
        self._period_seconds = period_seconds

    async def run(self) -> None:
        """Sync until cancelled, or until an error."""
        while True:
            await asyncio.sleep(self._period_seconds)
            try:
                await self._in_thread(self._machine.sync)
            except OSError as error:
                self._failed(StorageFailed(f"writing the store failed: {error}"))
                return
            except Exception as error:  # noqa: BLE001 - whatever went wrong, going on could break a promise
                self._failed(error)
                return


async def _in_daemon_thread(work: Callable[[], None]) -> None:
    """Run work in a thread of its own: a pool would be waited for at the end, and a disk may hang."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish(error: Exception | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error: Exception | None = None
        try:
            work()
        except Exception as caught:  # noqa: BLE001 - raised again on the event loop
            error = caught
        with suppress(RuntimeError):
            # The loop is closed when the process ends meanwhile.
            loop.call_soon_threadsafe(finish, error)

    threading.Thread(target=run, name="store-sync", daemon=True).start()
    await done
