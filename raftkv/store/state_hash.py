"""A hash of all replicated state, equal on nodes that have applied the same entries."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Generator

from raftkv.store import steps
from raftkv.store.backend import HeldView, ReadTransaction, Space, ViewAbandoned
from raftkv.store.bookkeeping import read_info, state_of
from raftkv.store.members import membership_bytes
from raftkv.store.mvcc import HistoryReader, place_of

HASH_VERSION = 1
"""Number of what is hashed and how; hashes of different versions are not compared."""

BYTES_OF_RECORD = 1024
"""Bytes of keys and records that cost as much as one more record."""

_LENGTHS = struct.Struct("<QQ")

HashSteps = Generator[int, None, str]
"""Yields what each step has cost, in records."""


def hash_steps(view: ReadTransaction) -> HashSteps:
    """Hash the state in a view, in steps.

    It covers how far the state is, the members, live keys with their values, leases, results of idempotent writes,
    alarms, and the history after the compacted revision. Below that each node has what it has not purged yet. What can
    be derived from the rest is left out: tombstones, and the index of versions.

    Args:
        view: The view; it must stay open until the last step.
    """
    digest = hashlib.sha256()
    info = read_info(view, "the store")
    digest.update(state_of(view))
    digest.update(membership_bytes(view))
    kept = place_of(info.compacted_revision + 1)
    history = HistoryReader(view, info.revision)
    records = size = 0
    for space in (Space.CURRENT, Space.LEASES, Space.ATTACHED, Space.OUTCOMES, Space.ALARMS, Space.HISTORY):
        digest.update(space.value.encode())
        for key, record in view.view(space).scan(kept if space is Space.HISTORY else b""):
            digest.update(_LENGTHS.pack(len(key), len(record)) + key + record)
            records += 1
            size += len(key) + len(record)
            # Later values are part of the history.
            value = history.value_before(key, record, kept) if space is Space.CURRENT else None
            if value is not None:
                digest.update(value)
                records += 1
                size += len(value)
            if records >= steps.OPERATIONS or size >= steps.STEP_BYTES:
                yield records + size // BYTES_OF_RECORD
                records = size = 0
    return digest.hexdigest()


def finish_hash(view: ReadTransaction) -> str:
    """Hash the state in a view at once."""
    running = hash_steps(view)
    while True:
        try:
            next(running)
        except StopIteration as stop:
            found: str = stop.value
            return found


def hash_held(held: HeldView, pace: Callable[[int], None]) -> str | None:
    """Hash the state in a held view, and close it; for a thread of its own.

    Args:
        held: The view.
        pace: Called between two steps with what the first of them has cost, in records; may wait.

    Returns:
        The hash; None when the store took the view back.
    """
    running: HashSteps | None = None
    try:
        while True:
            with held.reading() as view:
                running = hash_steps(view) if running is None else running
                try:
                    cost = next(running)
                except StopIteration as stop:
                    found: str = stop.value
                    return found
            pace(cost)
    except ViewAbandoned:
        return None
    finally:
        held.close()
