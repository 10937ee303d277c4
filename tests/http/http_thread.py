"""A front-end over fakes or a store on a thread of its own, for what runs an event loop itself."""

from __future__ import annotations

import asyncio
import threading
from typing import Self

from raftkv.http import FrontEnd
from tests.http.http_fakes import FakeClusterService, FakeKeyValueService
from tests.http.http_store import InstantLog, services_of


class ServerThread:
    """A front-end on an event loop of its own; a context manager."""

    def __init__(self, kv: FakeKeyValueService | None = None, *, log: InstantLog | None = None) -> None:
        self.kv = kv or FakeKeyValueService()
        self.log = log
        self.cluster = FakeClusterService()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._front_end = FrontEnd(services_of(self.kv if log is None else log.kv, self.cluster, log))
        host, port = self._run(self._front_end.start("127.0.0.1", 0))
        self.url = f"http://{host}:{port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(8)

    def stop(self) -> None:
        self._run(self._front_end.stop(1))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
