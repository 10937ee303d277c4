"""Backups as files: read in any pieces, and restored with a kill at every step."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import tracemalloc
from pathlib import Path

import pytest
import zstandard

from raftkv.consensus.snapshot import CHUNK_BYTES
from raftkv.errors import CorruptData, ForeignData
from raftkv.operations import KeySpan, RangeQuery
from raftkv.runtime.backup_compression import plain_pieces
from raftkv.runtime.backup_files import BackupReader, restore_backup, restored_cluster_id, verify_backup
from raftkv.runtime.clock import RealRandomness
from raftkv.runtime.files import RealDirectory, boot_id
from raftkv.runtime.recovery import recover_storage
from raftkv.store.machine import open_machine
from raftkv.types import ClusterId, Member, NodeId
from tests.runtime import stored_backup
from tests.runtime.stored_backup import plain_backup

OLD = ClusterId("0123456789abcdef")
MEMBERS = (Member(NodeId("n1"), "h1:1"), Member(NodeId("n2"), "h2:1"))


@pytest.fixture
def backup(tmp_path) -> Path:
    file = tmp_path / "backup"
    file.write_bytes(plain_backup(tmp_path / "source", OLD, 20))
    return file


def open_restored(data_dir: Path, name: str = "n1", members: tuple[Member, ...] = MEMBERS):
    return recover_storage(
        RealDirectory(data_dir),
        NodeId(name),
        members,
        RealRandomness(),
        lambda cluster_id: open_machine(data_dir / "store", cluster_id, boot_id(), 4_194_304),
    )


def check_whole(data_dir: Path) -> None:
    storage = open_restored(data_dir)
    try:
        assert len(storage.machine.range(RangeQuery(KeySpan(b"", None))).items) == 20
        assert (storage.journal.base_index, storage.journal.base_term) == (21, 3)
        assert storage.journal.getCurrentTerm() >= 3, "no vote of a term that was over before is possible"
    finally:
        storage.machine.close()


@pytest.mark.parametrize("size", [1, 2, 7, 100, 4096, 10**7])
def test_a_backup_is_read_in_pieces_of_any_size(backup, size):
    content = backup.read_bytes()
    reader, data = BackupReader("here"), b""
    for at in range(0, min(len(content), 2000 if size < 100 else len(content)), size):
        data += reader.feed(content[at : at + size])
    if size < 100:
        data += reader.feed(content[-(-2000 // size) * size :])
    assert reader.finish() == verify_backup(backup)
    assert content.endswith(data)


def test_a_restored_member_has_everything_and_an_id_of_its_own(backup, tmp_path):
    manifest = verify_backup(backup)
    ids = {restore_backup(backup, tmp_path / n, NodeId(n), MEMBERS, RealRandomness()) for n in ("n1", "n2")}
    assert ids == {restored_cluster_id(manifest, MEMBERS)}
    assert OLD not in ids
    assert restored_cluster_id(manifest, MEMBERS, 5) not in ids
    check_whole(tmp_path / "n1")
    with pytest.raises(ForeignData):
        open_restored(tmp_path / "n1", members=MEMBERS[:1])


@pytest.fixture
def compressed(backup, tmp_path) -> Path:
    file = tmp_path / "backup.zst"
    file.write_bytes(stored_backup.compressed(backup.read_bytes()))
    return file


def test_a_compressed_backup_is_a_zstd_frame_of_the_plain_one(backup, compressed, tmp_path):
    assert zstandard.ZstdDecompressor().decompressobj().decompress(compressed.read_bytes()) == backup.read_bytes()
    assert compressed.stat().st_size < backup.stat().st_size / 2
    assert verify_backup(compressed) == verify_backup(backup)
    ids = {
        restore_backup(file, tmp_path / name, NodeId(name), MEMBERS, RealRandomness())
        for file, name in ((compressed, "n1"), (backup, "n2"))
    }
    assert len(ids) == 1, "members from both kinds are of one cluster"
    check_whole(tmp_path / "n1")


def test_the_name_of_a_backup_does_not_say_how_it_is_read(backup, compressed, tmp_path):
    other = tmp_path / "plain.zst"
    backup.rename(other)
    assert verify_backup(other) == verify_backup(compressed.rename(tmp_path / "compressed"))


def test_damage_of_a_compressed_backup_never_changes_what_is_read(backup, compressed, tmp_path):
    content, plain = compressed.read_bytes(), backup.read_bytes()
    damaged, harmless = tmp_path / "damaged", 0
    for at in range(0, len(content), 3):
        damaged.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        try:
            verify_backup(damaged)
        except CorruptData:
            continue
        # Some bits say nothing, or the same in another way.
        harmless += 1
        assert b"".join(plain_pieces(damaged)) == plain
    assert harmless < 10


def test_a_compressed_backup_that_was_cut_or_added_to_is_refused(compressed, tmp_path):
    content = compressed.read_bytes()
    damaged = tmp_path / "damaged"
    cut = [content[:size] for size in (0, 3, 4, 5, 50, len(content) // 2, len(content) - 60)]
    for bad in [*cut, *(content + more for more in (b"x", b"more than a few bytes", content))]:
        damaged.write_bytes(bad)
        with pytest.raises(CorruptData):
            verify_backup(damaged)
        with pytest.raises(CorruptData):
            restore_backup(damaged, tmp_path / "n1", NodeId("n1"), MEMBERS, RealRandomness())
    assert not (tmp_path / "n1").exists()
    assert not list(tmp_path.glob("*.restoring"))


def test_decompression_takes_bounded_memory(tmp_path):
    """A few bytes can stand for very many: they must not be decompressed at once."""
    file = tmp_path / "zeros"
    file.write_bytes(zstandard.compress(bytes(200_000_000)))
    assert file.stat().st_size < CHUNK_BYTES
    pieces = plain_pieces(file)
    tracemalloc.start()
    try:
        assert {len(piece) for piece in itertools.islice(pieces, 100)} == {CHUNK_BYTES}
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
        pieces.close()


def killed_at(step: int, backup: Path, data_dir: Path) -> bool:
    """Restore in a process that is killed at its n-th touch of a file; return whether it came that far."""
    child = os.fork()
    if child == 0:
        touched = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal touched
            if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"):
                touched += str(data_dir.name) in str(arguments[0])
                if touched == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            restore_backup(backup, data_dir, NodeId("n1"), MEMBERS, RealRandomness())
        except BaseException:  # noqa: BLE001 - whatever it is, this process must not go on with pytest
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return os.WIFSIGNALED(status)


def test_a_kill_at_any_step_leaves_nothing_or_everything(backup, tmp_path):
    data_dir = tmp_path / "target"
    step = 1
    while killed_at(step, backup, data_dir):
        if data_dir.exists():
            check_whole(data_dir)
            break
        step += 1
    assert step > 15, "so many files are touched"
    # The next try is in nobody's way.
    if not data_dir.exists():
        restore_backup(backup, data_dir, NodeId("n1"), MEMBERS, RealRandomness())
    check_whole(data_dir)


def test_a_flipped_bit_anywhere_is_noticed(backup, tmp_path):
    content = backup.read_bytes()
    damaged = tmp_path / "damaged"
    for at in [*range(0, 400, 7), *range(400, len(content), len(content) // 50)]:
        damaged.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        with pytest.raises(CorruptData):
            verify_backup(damaged)
