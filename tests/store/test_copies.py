"""Copies of a store in LMDB that is changed, grows and is replaced meanwhile."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raftkv.errors import StorageFailed
from raftkv.store.backend import StoreIsFull
from raftkv.store.bookkeeping import read_info
from raftkv.store.commands import Compact, Put, encode_commands
from raftkv.store.copies import StoreCopy
from raftkv.store.lmdb_backend import LmdbBackend, open_copy
from raftkv.store.machine import CommittedEntry, Machine
from raftkv.types import ClusterId, Index, Term
from tests.store.entries import apply_to

CLUSTER = ClusterId("0123456789abcdef")


class SlowCopy:
    """A copy in another thread that has begun, and goes on when it is told to."""

    def __init__(self, machine: Machine, path: Path) -> None:
        self._machine, self._path = machine, path
        self._begun, self._may_go_on = threading.Event(), threading.Event()
        self.taken: StoreCopy | None = None
        self.failure: OSError | None = None
        self.sizes: list[int] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._begun.wait(10)

    def _run(self) -> None:
        try:
            self.taken = self._machine.copy_to(str(self._path), self._pace)
        except OSError as error:
            self.failure = error

    def _pace(self, size: int) -> None:
        self.sizes.append(size)
        self._begun.set()
        self._may_go_on.wait(10)

    def finish(self) -> None:
        self._may_go_on.set()
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def large(tmp_path) -> Machine:
    """A store that is several pieces of a copy large, and has little room."""
    backend = LmdbBackend(tmp_path, 1_048_576)
    machine = Machine(backend, CLUSTER)
    for number in range(1, 41):
        machine.apply([put_entry(number)])
    assert backend.file_bytes() > 3_000_000
    yield machine
    machine.close()


def put_entry(number: int) -> CommittedEntry:
    payload = encode_commands([Put(b"k%d" % number, b"%d" % number * 50_000)])
    return CommittedEntry(Index(number), Term(1), payload)


def fill(machine: Machine, *, until: Callable[[], bool]) -> None:
    while not until():
        machine.apply([put_entry(machine.applied_index + 1)])
        assert machine.applied_index < 2000


def test_a_store_that_grows_waits_for_no_copy_and_the_copy_begins_again(large, tmp_path):
    copying = SlowCopy(large, tmp_path / "copy")
    before = large._backend._map_bytes
    fill(large, until=lambda: large._backend._map_bytes > before)
    grown_at = large.applied_index
    copying.finish()
    taken = copying.taken
    assert taken.info.applied_index >= grown_at - 1
    data = (tmp_path / "copy").read_bytes()
    assert (taken.size, taken.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert copying.sizes[0] == 2 * copying.sizes[-2], "the second attempt is twice as fast"
    with open_copy(tmp_path / "copy") as view:
        assert read_info(view, "the copy").applied_index == taken.info.applied_index


def test_a_store_that_cannot_grow_gives_up_a_copy_and_goes_on_with_the_room_it_makes(large, tmp_path, monkeypatch):
    copying = SlowCopy(large, tmp_path / "copy")
    monkeypatch.setattr(large._backend, "_check_free", refuse)
    copy = large._backend._copy
    while copy.refusal is None:
        # Nothing stays but the newest value of one key, so that there is room once nobody sees the others.
        apply_to(large, Put(b"k1", b"x" * 100_000), Compact(large.revision))
        while large.purge():
            pass
        assert large.applied_index < 2000
    copying.finish()
    assert "meanwhile it could not grow: no room on this disk" in str(copying.failure)
    assert not (tmp_path / "copy").exists()


@pytest.fixture
def purgeable(tmp_path, monkeypatch) -> Machine:
    """A store with much to be purged, in a map that a little more fills."""
    backend = LmdbBackend(tmp_path, 8_388_608)
    monkeypatch.setattr(backend, "grow_early", lambda: None)
    machine = Machine(backend, CLUSTER)
    puts = [Put(b"k%d" % (number % 2000), b"%d" % number * 60) for number in range(6000)]
    for first in range(0, len(puts), 500):
        apply_to(machine, *puts[first : first + 500])
    apply_to(machine, Compact(machine.revision))
    yield machine
    machine.close()


def test_purging_makes_room_too_and_waits_for_no_copy(purgeable, tmp_path):
    backend = purgeable._backend
    before = backend._map_bytes
    copying = SlowCopy(purgeable, tmp_path / "copy")
    fill(purgeable, until=lambda: backend.file_bytes() > before - 200_000)
    state = purgeable.state_hash()
    while backend._map_bytes == before:
        assert purgeable.purge(), "it was to be so much that the map grows"
    copying.finish()
    while purgeable.purge():
        pass
    assert purgeable.state_hash() == state
    assert copying.taken is not None


def test_what_cannot_be_purged_for_want_of_room_is_purged_later(purgeable, monkeypatch):
    backend = purgeable._backend
    with monkeypatch.context() as patched:
        patched.setattr(backend, "write", full)
        patched.setattr(backend, "_check_free", refuse)
        assert not purgeable.purge()
    assert purgeable.purge()


@pytest.mark.parametrize("can", ["write directly", "write whole blocks directly", "not write directly"])
def test_a_copy_is_what_was_written_whatever_the_file_system_can_do(large, tmp_path, monkeypatch, can):
    write, control, sync = os.write, fcntl.fcntl, os.fdatasync
    written, synced = 0, 0
    was_direct = []

    def write_blocks(descriptor, data):
        nonlocal written
        is_direct = bool(control(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
        was_direct.append(is_direct)
        if can == "write whole blocks directly" and len(data) % 1_048_576 and is_direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        count = write(descriptor, data)
        written += count
        return count

    def refuse_direct(descriptor, command, argument=0):
        if can == "not write directly" and argument & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return control(descriptor, command, argument)

    def note_sync(descriptor):
        nonlocal synced
        sync(descriptor)
        synced = written

    def check_synced(_size):
        assert synced == written

    monkeypatch.setattr(os, "write", write_blocks)
    monkeypatch.setattr(fcntl, "fcntl", refuse_direct)
    monkeypatch.setattr(os, "fdatasync", note_sync)
    taken = large.copy_to(str(tmp_path / "copy"), check_synced)
    data = (tmp_path / "copy").read_bytes()
    assert (taken.size, taken.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert synced == written == len(data)
    assert len(data) % 1_048_576, "the last piece is a part of one"
    if not can_write_directly(tmp_path):
        assert not any(was_direct)
    elif can == "write whole blocks directly":
        assert was_direct == [True] * (len(was_direct) - 1) + [False]
    else:
        assert was_direct == [can == "write directly"] * len(was_direct)
    with open_copy(tmp_path / "copy") as view:
        assert read_info(view, "the copy").applied_index == large.applied_index


def can_write_directly(directory: Path) -> bool:
    try:
        os.close(os.open(directory / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except OSError:
        return False
    return True


def test_a_copy_whose_source_fails_tells_its_failure_and_does_not_write_what_it_left(large, tmp_path, monkeypatch):
    def fail(descriptor):
        os.write(descriptor, b"x" * 1_048_577)
        raise OSError("the view is gone")

    monkeypatch.setattr(large._backend, "_copy_view", fail)
    with pytest.raises(OSError, match="the view is gone"):
        large.copy_to(str(tmp_path / "copy"))
    assert (tmp_path / "copy").stat().st_size == 1_048_576


def test_a_copy_for_which_there_is_no_memory_is_in_nobodys_way(large, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(mmap, "mmap", refuse_memory)
        with pytest.raises(OSError, match="Cannot allocate memory"):
            large.copy_to(str(tmp_path / "copy"))
    large._backend.grow()
    assert large.copy_to(str(tmp_path / "another")).info.applied_index == large.applied_index


def refuse_memory(_descriptor: int, _size: int) -> None:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def refuse(_needed: int) -> None:
    raise StorageFailed("no room on this disk")


@contextmanager
def full() -> Iterator[None]:
    raise StoreIsFull
    yield


def test_a_store_that_is_replaced_waits_for_no_copy(large, tmp_path):
    large.copy_to(str(tmp_path / "other"))
    fill(large, until=lambda: large.applied_index == 45)
    copying = SlowCopy(large, tmp_path / "copy")
    large.install_staged(large.stage(str(tmp_path / "other")))
    assert large.applied_index == 40
    copying.finish()
    assert copying.taken.info.applied_index == 40
