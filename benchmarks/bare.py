"""An aiohttp server that answers a put and does nothing else: what the front-end alone could reach on this machine."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from types import TracebackType
from typing import Self

import uvloop
from aiohttp import web


class BareServer:
    """The server in a process of its own; a context manager."""

    def __enter__(self) -> Self:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bare", str(port)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise SystemExit("the bare server did not start")
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.communicate()


async def _handle(request: web.BaseRequest) -> web.Response:
    await request.read()
    return web.Response(body=b'{"revision":1}', headers={"ETag": '"1"', "X-Raftkv-Revision": "1"})


async def _serve(port: int) -> None:
    runner = web.ServerRunner(web.Server(_handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
