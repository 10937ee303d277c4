"""A writer that keeps to a rate whatever the answers do, each value being the time at which it was due.

``python -m benchmarks.paced URL RATE SECONDS`` prints the number of accepted writes. Times are of the system's
monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import aiohttp
import uvloop

PREFIX = "paced/"


def start_writer(url: str, rate: float, seconds: float) -> subprocess.Popen[str]:
    """Start writing in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.paced", url, str(rate), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def _write(url: str, rate: float, seconds: float) -> int:
    accepted = 0

    async def put(session: aiohttp.ClientSession, number: int, due: float) -> None:
        nonlocal accepted
        async with session.put(f"{url}/v1/kv/{PREFIX}{number % 1000}", data=f"{due:017.6f}".encode()) as answer:
            await answer.read()
            accepted += answer.status in (200, 201)

    began = time.monotonic()
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
        for number in range(int(rate * seconds)):
            due = began + number / rate
            await asyncio.sleep(due - time.monotonic())
            tasks.create_task(put(session, number, due))
    return accepted


if __name__ == "__main__":
    print(uvloop.run(_write(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))))
