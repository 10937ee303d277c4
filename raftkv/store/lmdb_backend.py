"""The store in LMDB: the only module that imports it, and the only one outside ``raftkv.runtime`` with real files.

No transaction is synced, since the journal is what is durable. After a crash of the process the page cache still has
everything; after a crash of the machine it has not. A marker beside the data (boot id, clean shutdown) tells the two
apart, and what cannot be trusted is set aside. A page that the disk did not take counts as clean, and the cache may
drop it: ``sync`` finds that out, on a descriptor of its own, and the data is not trusted after that either.

The map is written through (``writemap``), so a page without a disk block behind it would be a SIGBUS on a full disk.
Blocks are therefore allocated before the map covers them, and a full disk is an error that can be reported.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

import lmdb
import orjson

from raftkv.errors import InvariantViolated, StorageFailed
from raftkv.ports import PRIVATE_DIRECTORY, PRIVATE_FILE, private_opener
from raftkv.store.backend import CopyAbandoned, Space, StoreIsFull
from raftkv.store.copy_file import CopyFile, sync_and_forget
from raftkv.store.copy_thread import CopyThread
from raftkv.store.held_view import LockedView
from raftkv.store.lmdb_trees import LmdbTransaction

logger = logging.getLogger(__name__)

_PIECE_BYTES = 1_048_576
"""Of a copy: a sync of so much does not hold up the journal's."""

_HELD_ROOM_BYTES = 268_435_456
"""What the file may grow by beyond twice the data while a view is held."""

INITIAL_MAP_BYTES = 67_108_864
LARGEST_GROWTH_BYTES = 1_073_741_824

DATA_NAME = "data.mdb"
_LOCK_NAME = "data.mdb-lock"
_MARKER_NAME = "marker.json"
_NO_BOOT = ""
_UNTRUSTED_SUFFIX = ".untrusted"
_STAGED_SUFFIX = ".partial"

_NAMED_DATABASES = 16
_LONG_NODES = b"nodes"


class LmdbBackend:
    """One LMDB environment; see ``raftkv.store.backend.Backend``.

    One named database for each ``Space``, and ``long`` for the records of long keys by number.

    Args:
        directory: Where the data is, or will be.
        initial_map_bytes: Size of the map at the start; it grows.
    """

    def __init__(self, directory: Path, initial_map_bytes: int = INITIAL_MAP_BYTES) -> None:
        self._directory = directory
        self._initial_map_bytes = initial_map_bytes
        self._copying, self._reading = threading.Lock(), threading.Lock()
        self._copy: CopyThread | None = None
        self._held: LockedView | None = None
        self._held_limit = 0
        self._growth_failed = False
        self._is_writing = False
        self._descriptor: int | None = None
        self._descriptor_in_use = threading.Lock()
        self._open()

    def _open(self) -> None:
        path = self._directory / DATA_NAME
        present = path.stat().st_size if path.exists() else 0
        self._map_bytes = max(self._initial_map_bytes, present)
        if not present:
            self._check_free(self._map_bytes)
        self._environment = lmdb.open(
            str(path),
            map_size=self._map_bytes,
            subdir=False,
            sync=False,
            metasync=False,
            writemap=True,
            # Pages that come with a large folio are written back with it: megabytes for each page that a write changes.
            readahead=False,
            max_dbs=_NAMED_DATABASES,
            mode=PRIVATE_FILE,
        )
        # A killed process leaves its readers behind, and pages that they saw could never be used again.
        self._environment.reader_check()
        with self._descriptor_in_use:
            # Open for as long as the data is in use: it gets every error of write-back since.
            self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._allocate(self._map_bytes)
        self._databases = {space: self._environment.open_db(space.value.encode()) for space in Space}
        self._nodes = self._environment.open_db(_LONG_NODES)

    @contextmanager
    def read(self) -> Iterator[LmdbTransaction]:
        """Open a view."""
        with self._environment.begin() as transaction:
            yield LmdbTransaction(transaction, self._databases, self._nodes)

    def hold(self) -> LockedView:
        """Open a view that stays open."""
        self._release_held()
        # Pages that the view sees are not used again, so the file grows with each write meanwhile.
        self._held_limit = max(self.file_bytes(), 2 * self.used_bytes() + _HELD_ROOM_BYTES)
        transaction = self._environment.begin()
        self._held = LockedView(LmdbTransaction(transaction, self._databases, self._nodes), transaction.abort)
        return self._held

    def _release_held(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None

    @contextmanager
    def write(self) -> Iterator[LmdbTransaction]:
        """Open a transaction."""
        if self._is_writing:
            # LMDB would wait for the end of the first one, in the thread that holds it.
            raise InvariantViolated("a transaction is open already")
        self._is_writing = True
        try:
            with self._environment.begin(write=True) as transaction:
                try:
                    yield LmdbTransaction(transaction, self._databases, self._nodes)
                except BaseException:
                    # What is undone waits in py-lmdb until no other thread copies.
                    if self._copy is not None:
                        self._copy.abandon()
                    raise
        except lmdb.MapFullError as error:
            raise StoreIsFull from error
        finally:
            self._is_writing = False

    def grow(self) -> None:
        """Make room; a copy under way, whose view keeps pages from being used again, is given up."""
        with self._without_copy() as abandoned:
            try:
                self._grow()
            except StorageFailed as error:
                if abandoned is None:
                    raise
                # Its end makes room; begun again, it would take it again.
                abandoned.refusal = error

    def _grow(self) -> None:
        larger = self._map_bytes + min(self._map_bytes, LARGEST_GROWTH_BYTES)
        self._check_free(larger - self._map_bytes)
        self._allocate(larger)
        self._environment.set_mapsize(larger)
        self._map_bytes = larger
        logger.info("the store's map has grown to %d bytes", larger)

    @contextmanager
    def _without_copy(self) -> Iterator[CopyThread | None]:
        """Keep copies and held views away; yields the copy that was under way, and that has ended where it was."""
        self._release_held()
        copy, self._copy = self._copy, None
        abandoned = copy if copy is not None and copy.abandon() else None
        with self._reading:
            yield abandoned

    def grow_early(self) -> None:
        """Grow when more than half of the map is used, unless a copy, a held view or a full disk is in the way."""
        if self._held is not None and not self._held.is_closed:
            if self.file_bytes() <= self._held_limit:
                return
            self._release_held()
        if 2 * self.file_bytes() <= self._map_bytes or self._copying.locked():
            return
        try:
            self.grow()
        except StorageFailed as error:
            if not self._growth_failed:
                logger.warning("%s; going on with the room that is left", error)
            self._growth_failed = True
        else:
            self._growth_failed = False

    def room_bytes(self) -> int | None:
        """What is left of a map that cannot grow, less what rewriting its pages takes meanwhile."""
        if not self._growth_failed:
            return None
        return max(0, self._map_bytes - self._map_bytes // 8 - self.file_bytes())

    def allocated_bytes(self) -> int:
        """Return the size of the map, all of which has disk blocks behind it."""
        return self._map_bytes

    def file_bytes(self) -> int:
        """Return the size of the pages that were ever used; those that are free again are among them."""
        page_bytes: int = self._environment.stat()["psize"]
        return (int(self._environment.info()["last_pgno"]) + 1) * page_bytes

    def used_bytes(self) -> int:
        """Return the size of the pages that hold data."""
        with self._environment.begin() as transaction:
            stats = [transaction.stat(database) for database in (*self._databases.values(), self._nodes)]
        pages = sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats)
        return int(pages * stats[0]["psize"])

    def copy_to(self, path: str, written: Callable[[bytes | memoryview], None]) -> None:
        """Write a compacted copy of a consistent view, in pieces that are synced as they are written.

        LMDB would write it at once, and its sync would hold up the journal's on the same disk.
        """
        try:
            with self._copying, CopyFile(Path(path)) as file:
                self._copy = copy = CopyThread(self._copy_view, self._reading, _PIECE_BYTES)
                with closing(copy.pieces()) as pieces:
                    for piece in pieces:
                        file.write(piece)
                        written(piece)
        except (lmdb.Error, OSError) as error:
            raise OSError(f"copying the store to {path} failed: {error}") from error
        if copy.is_abandoned:
            Path(path).unlink()
            self._tell_abandoned(path, copy)

    def _tell_abandoned(self, path: str, copy: CopyThread) -> None:
        with self._reading:
            # Whoever gave it up knows by now what came of that.
            refusal = copy.refusal
        if refusal is not None:
            raise OSError(f"copying the store to {path} failed: meanwhile it could not grow: {refusal}") from refusal
        raise CopyAbandoned

    def _copy_view(self, descriptor: int) -> None:
        self._environment.copyfd(descriptor, compact=True)

    @property
    def is_being_copied(self) -> bool:
        """Whether a copy is under way."""
        return self._copying.locked()

    def open_copy(self, path: str) -> AbstractContextManager[LmdbTransaction]:
        """Open a copy for reading."""
        return open_copy(Path(path))

    def stage(self, path: str) -> str:
        """Make a copy of a copy."""
        staged = path + _STAGED_SUFFIX
        # It becomes the store: for its owner alone, as LMDB makes it.
        os.close(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE))
        copyfile(path, staged)
        descriptor = os.open(staged, os.O_RDWR | os.O_CLOEXEC)
        try:
            # What was written lies in large folios; read again page by page, it is none of them.
            sync_and_forget(descriptor)
        finally:
            os.close(descriptor)
        return staged

    def replace_by(self, staged: str) -> None:
        """Become the copy at ``staged``."""
        with self._without_copy():
            self._environment.close()
            self._close_descriptor()
            (self._directory / _LOCK_NAME).unlink(missing_ok=True)
            Path(staged).replace(self._directory / DATA_NAME)
            self._open()

    def discard(self, staged: str) -> None:
        """Remove a staged copy."""
        Path(staged).unlink()

    def sync(self) -> None:
        """Bring all pages to the disk, without LMDB: its map may grow or be replaced meanwhile.

        On Linux, fsync writes the pages that were changed through a map too, and reports what failed since the
        descriptor was opened, once.
        """
        with self._descriptor_in_use:
            if self._descriptor is None:
                return
            descriptor = os.dup(self._descriptor)
        try:
            os.fsync(descriptor)
        except OSError:
            distrust(self._directory)
            raise
        finally:
            os.close(descriptor)

    def _close_descriptor(self) -> None:
        with self._descriptor_in_use:
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._descriptor = None

    def close(self) -> None:
        """Sync, mark the shutdown as clean, and release the environment."""
        try:
            with self._without_copy():
                try:
                    self.sync()
                    self._environment.sync(True)
                finally:
                    self._close_descriptor()
                    self._environment.close()
        except (lmdb.Error, OSError) as error:
            distrust(self._directory)
            raise StorageFailed(f"writing the store in {self._directory} failed: {error}") from error
        marker = read_marker(self._directory)
        if marker is not None and marker.boot_id != _NO_BOOT:
            try:
                write_marker(self._directory, Marker(marker.boot_id, clean=True))
            except OSError as error:
                # The data is safe without it: the next start recovers as after a crash of the process.
                logger.warning("the store in %s is not marked as closed: %s", self._directory, error)

    def _check_free(self, needed: int) -> None:
        stat = os.statvfs(self._directory)
        free = stat.f_bavail * stat.f_frsize
        if free < needed:
            raise StorageFailed(f"the store in {self._directory} needs {needed} more bytes, {free} are free")

    def _allocate(self, size: int) -> None:
        descriptor = os.open(self._directory / DATA_NAME, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            raise StorageFailed(f"allocating {size} bytes in {self._directory} failed: {error.strerror}") from error
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Marker:
    """What a store directory says of its last user.

    Attributes:
        boot_id: The machine's boot at that time; empty when the disk did not take some page.
        clean: Whether everything was synced at the end.
    """

    boot_id: str
    clean: bool


def read_marker(directory: Path) -> Marker | None:
    """Return a directory's marker; None when there is none, or none that can be read."""
    try:
        fields = orjson.loads((directory / _MARKER_NAME).read_bytes())
        return Marker(str(fields["boot_id"]), fields["clean"] is True)
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
        return None


def write_marker(directory: Path, marker: Marker) -> None:
    """Put a marker durably into a directory."""
    aside = directory / f"{_MARKER_NAME}.tmp"
    with open(aside, "wb", opener=private_opener) as file:
        file.write(orjson.dumps({"boot_id": marker.boot_id, "clean": marker.clean}))
        file.flush()
        os.fsync(file.fileno())
    aside.replace(directory / _MARKER_NAME)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def distrust(directory: Path) -> None:
    """Let the next start set the data aside.

    That start may come on a disk that fails still, so the marker need only reach the page cache: after a crash of the
    machine the data is not trusted anyway.
    """
    marker = directory / _MARKER_NAME
    aside = directory / f"{_MARKER_NAME}.tmp"
    try:
        with open(aside, "wb", opener=private_opener) as file:
            file.write(orjson.dumps({"boot_id": _NO_BOOT, "clean": False}))
        aside.replace(marker)
    except OSError as error:
        logger.error("the store in %s could not be marked as damaged: %s", directory, error)  # noqa: TRY400
        # Without a marker the data is not trusted either.
        with suppress(OSError):
            marker.unlink()


def _is_written(data: Path) -> bool:
    """Whether the disk takes what an earlier life left in the page cache, and took what was written back since."""
    try:
        descriptor = os.open(data, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        logger.warning("%s could not be written: %s", data, error)
        return False
    return True


def open_trusted(directory: Path, boot_id: str, initial_map_bytes: int = INITIAL_MAP_BYTES) -> LmdbBackend:
    """Open a store directory, setting data aside that a crash of the machine may have damaged.

    Args:
        directory: The store's directory, made when missing.
        boot_id: The machine's present boot.
        initial_map_bytes: Size of the map at the start.
    """
    directory.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
    data = directory / DATA_NAME
    if data.exists():
        marker = read_marker(directory)
        if marker is None or not (marker.clean or marker.boot_id in (boot_id, _NO_BOOT)):
            reason = "the machine was restarted without a clean shutdown"
        elif marker.boot_id == _NO_BOOT or not (marker.clean or _is_written(data)):
            reason = "the disk did not take all of its pages"
        else:
            reason = None
        if reason is not None:
            logger.warning("%s: %s is set aside", reason, data)
            data.replace(directory / (DATA_NAME + _UNTRUSTED_SUFFIX))
    (directory / _LOCK_NAME).unlink(missing_ok=True)
    write_marker(directory, Marker(boot_id, clean=False))
    return LmdbBackend(directory, initial_map_bytes)


def open_plain(directory: Path) -> LmdbBackend:
    """Open a store directory that no node runs on, for a change of its own."""
    return LmdbBackend(directory)


@contextmanager
def open_copy(path: Path) -> Iterator[LmdbTransaction]:
    """Open a copy of a store for reading."""
    environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False, max_dbs=_NAMED_DATABASES)
    try:
        databases = {space: environment.open_db(space.value.encode(), create=False) for space in Space}
        nodes = environment.open_db(_LONG_NODES, create=False)
        with environment.begin() as transaction:
            yield LmdbTransaction(transaction, databases, nodes)
    finally:
        environment.close()
