"""Writes one key after another until it is told to end: ``python -m tests.k8s.writer FILE URL…``.

Each line of the file is a key that was acknowledged, or ``failed`` and why.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from raftkv.client import BlockingClient, TlsFiles
from raftkv.errors import RaftkvError


def main() -> None:
    path, *endpoints = sys.argv[1:]
    authority = os.environ.get("RAFTKV_CACERT")
    tls = None if authority is None else TlsFiles(Path(authority))
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopped.append(number))
    with Path(path).open("w", buffering=1) as file, BlockingClient(endpoints, tls=tls) as client:
        number = 0
        while not stopped:
            number += 1
            key = f"load/{number:06d}"
            try:
                client.put(key.encode(), b"x")
            except RaftkvError as error:
                file.write(f"failed {type(error).__name__}: {error}\n")
            else:
                file.write(f"{key}\n")


if __name__ == "__main__":
    main()
