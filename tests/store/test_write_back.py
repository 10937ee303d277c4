"""Pages of the store that the disk did not take: with a real kernel and a disk that fails, and with a failing fsync."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from raftkv.errors import StorageFailed
from raftkv.store import lmdb_backend
from raftkv.store.backend import Space
from raftkv.store.lmdb_backend import LmdbBackend, open_trusted, read_marker

BOOT = "this boot"
MAP_BYTES = 33_554_432


def put(backend: LmdbBackend, count: int, value: bytes) -> None:
    with backend.write() as transaction:
        tree = transaction.tree(Space.CURRENT)
        for number in range(count):
            tree.put(b"key-%06d" % number, value)


def keys(backend: LmdbBackend) -> int:
    with backend.read() as transaction:
        return sum(1 for _ in transaction.view(Space.CURRENT).scan(b""))


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def failing_disk(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A file system on a loop device whose file cannot grow when the file system below it is full."""
    below, mounted = tmp_path / "below", tmp_path / "mounted"
    below.mkdir()
    mounted.mkdir()
    device = None
    try:
        run("mount", "-t", "tmpfs", "-o", "size=16M", "tmpfs", str(below))
        run("truncate", "-s", "200M", str(below / "image"))
        run("mkfs.ext4", "-q", "-O", "^has_journal", str(below / "image"))
        device = run("losetup", "-f", "--show", str(below / "image"))
        run("mount", device, str(mounted))
    except (OSError, subprocess.CalledProcessError) as error:
        _release(mounted, below, device)
        pytest.skip(f"this needs the right to mount a loop device: {error}")
    try:
        yield below, mounted
    finally:
        _release(mounted, below, device)


def _release(mounted: Path, below: Path, device: str | None) -> None:
    for command in (["umount", "-l", str(mounted)], ["losetup", "-d", device or ""], ["umount", "-l", str(below)]):
        subprocess.run(command, check=False, capture_output=True)


def test_sync_reports_what_the_kernel_could_not_write_back_and_the_store_is_not_trusted_again(failing_disk):
    below, mounted = failing_disk
    directory = mounted / "store"
    backend = open_trusted(directory, BOOT, MAP_BYTES)
    put(backend, 1000, b"1" * 1000)
    backend.sync()
    with suppress(OSError), (below / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(65_536)):
            pass
    put(backend, 8000, b"2" * 1000)
    # The kernel writes back by itself after some seconds; this makes it do so now, and does not take the store's error.
    assert subprocess.run(["sync", "-f", str(mounted)], check=False, capture_output=True).returncode == 1
    put(backend, 10, b"3" * 1000)
    with pytest.raises(OSError, match=r"No space left|Input/output"):
        backend.sync()
    assert read_marker(directory).boot_id != BOOT
    with suppress(StorageFailed):
        backend.close()
    (below / "filler").unlink()
    again = open_trusted(directory, BOOT, 1_048_576)
    assert keys(again) == 0
    put(again, 5, b"x")
    again.close()


@pytest.fixture
def failing_fsync(monkeypatch):
    """Return a set of names; fsync of a file with such a name fails."""
    names: set[str] = set()
    fsync = os.fsync

    def checked(descriptor: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).name in names:
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(lmdb_backend.os, "fsync", checked)
    return names


def test_store_whose_sync_failed_is_set_aside_also_when_the_disk_is_sound_again(tmp_path, failing_fsync):
    backend = open_trusted(tmp_path, BOOT, 1_048_576)
    put(backend, 5, b"x")
    failing_fsync.add("data.mdb")
    with pytest.raises(OSError, match="Input/output"):
        backend.sync()
    failing_fsync.clear()
    backend.close()
    assert not read_marker(tmp_path).clean
    again = open_trusted(tmp_path, BOOT, 1_048_576)
    assert keys(again) == 0
    put(again, 5, b"x")
    again.close()
    trusted = open_trusted(tmp_path, "another boot", 1_048_576)
    assert keys(trusted) == 5
    trusted.close()


def test_store_whose_last_sync_failed_is_not_marked_as_clean(tmp_path, failing_fsync):
    backend = open_trusted(tmp_path, BOOT, 1_048_576)
    put(backend, 5, b"x")
    failing_fsync.add("data.mdb")
    with pytest.raises(StorageFailed, match="writing the store"):
        backend.close()
    failing_fsync.clear()
    again = open_trusted(tmp_path, BOOT, 1_048_576)
    assert keys(again) == 0
    again.close()


def test_page_cache_of_a_killed_node_is_trusted_only_if_the_disk_takes_it(tmp_path, failing_fsync):
    backend = open_trusted(tmp_path, BOOT, 1_048_576)
    put(backend, 5, b"x")
    del backend
    killed = open_trusted(tmp_path, BOOT, 1_048_576)
    assert keys(killed) == 5
    del killed
    failing_fsync.add("data.mdb")
    again = open_trusted(tmp_path, BOOT, 1_048_576)
    assert keys(again) == 0
    failing_fsync.clear()
    again.close()


def test_sync_goes_on_while_the_map_grows_and_the_store_is_replaced(tmp_path, monkeypatch):
    """A sync holds nothing that the owner of the store needs: it has a descriptor of its own."""
    backend = LmdbBackend(tmp_path, 1_048_576)
    put(backend, 5, b"x")
    copy = str(tmp_path / "copy")
    backend.copy_to(copy, lambda _piece: None)
    staged = backend.stage(copy)
    during = []
    fsync = os.fsync

    def grow_and_replace(descriptor: int) -> None:
        if not during:
            during.append(descriptor)
            backend.grow()
            backend.replace_by(staged)
        fsync(descriptor)

    monkeypatch.setattr(lmdb_backend.os, "fsync", grow_and_replace)
    backend.sync()
    assert during
    assert keys(backend) == 5
    put(backend, 10, b"y")
    backend.sync()
    backend.close()
    backend.sync()
