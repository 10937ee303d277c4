"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

_SYNC_ROUNDS = 50


def describe_machine(directory: Path | None = None) -> str:
    """Return processor, memory, system, versions and the disk's time for a small durable write."""
    packages = ("raftkv", "pysyncobj", "aiohttp", "orjson", "uvloop", "lmdb", "msgpack")
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return "\n".join(
        (
            f"machine:  {_processor()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB",
            f"system:   {platform.system()} {platform.release()}",
            f"python:   {sys.version.split()[0]}; " + ", ".join(f"{name} {version(name)}" for name in packages),
            f"disk:     {_sync_milliseconds(directory):.2f} ms median for 4 KiB and fdatasync",
        )
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _sync_milliseconds(directory: Path | None) -> float:
    times = []
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        for _ in range(_SYNC_ROUNDS):
            began = time.perf_counter()
            os.write(file.fileno(), bytes(4096))
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2] * 1000
