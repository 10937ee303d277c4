"""A node that kills itself at a chosen touch of its disk: ``RAFTKV_CRASH=snapshot:7 python -m … serve …``.

From the moment at which the named thing begins, every call that changes files counts, and so do a transaction of the
store and a copy of it, before and after; at the given number the process sends itself SIGKILL.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import raftkv.consensus.snapshot
import raftkv.node
from raftkv.cli.main import main
from raftkv.consensus.journal import MEMBERSHIP_MARK, Journal
from raftkv.runtime.snapshots import SnapshotKeeper
from raftkv.store.machine import Machine

_CALLS = ("open", "write", "fdatasync", "fsync", "ftruncate", "rename", "replace", "unlink", "mkdir")


class CrashPoint:
    """Counts what touches the disk once it is armed.

    Args:
        number: The count at which the process ends.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._count = itertools.count(1)
        self._is_armed = False

    def arm(self) -> None:
        self._is_armed = True

    def pass_by(self) -> None:
        # next() of a counter is atomic, so threads share it.
        if self._is_armed and next(self._count) == self._number:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that passes by before and after."""

        @wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            self.pass_by()
            result = function(*arguments, **options)
            self.pass_by()
            return result

        return call

    def arming(self, function: Callable[..., Any], when: Callable[..., bool] = lambda *_: True) -> Callable[..., Any]:
        """Return a function that arms when it is called."""

        @wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            if when(*arguments):
                self.arm()
            return function(*arguments, **options)

        return call


def _watch_disk(point: CrashPoint) -> None:
    def passing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            point.pass_by()
            return function(*arguments, **options)

        return call

    for name in _CALLS:
        setattr(os, name, passing(getattr(os, name)))
    for name in ("_apply_in_one_transaction", "copy_to", "stage", "install_staged"):
        setattr(Machine, name, point.counted(getattr(Machine, name)))


def _arm_at(point: CrashPoint, what: str) -> None:
    if what == "snapshot":
        SnapshotKeeper._copy = point.arming(SnapshotKeeper._copy)  # type: ignore[method-assign]
    elif what == "install":
        SnapshotKeeper.receive_chunk = point.arming(SnapshotKeeper.receive_chunk)  # type: ignore[method-assign]
    elif what == "membership":
        Journal.add = point.arming(Journal.add, lambda _journal, command, *_: MEMBERSHIP_MARK in command[:2])  # type: ignore[method-assign]
    else:
        raise SystemExit(f"nothing is called {what!r}")


def _make_small() -> None:
    """Let snapshots, segments and chunks be small, so that a few writes have all of them."""
    raftkv.node.SnapshotPolicy = partial(raftkv.node.SnapshotPolicy, tail_bytes=2000)  # type: ignore[attr-defined]
    raftkv.node.recover_storage = partial(raftkv.node.recover_storage, segment_bytes=8192)  # type: ignore[attr-defined]
    raftkv.consensus.snapshot.CHUNK_BYTES = 60_000


if __name__ == "__main__":
    _make_small()
    if os.environ.get("RAFTKV_CRASH"):
        kind, _, number = os.environ["RAFTKV_CRASH"].partition(":")
        crash_point = CrashPoint(int(number))
        _watch_disk(crash_point)
        _arm_at(crash_point, kind)
    main()
