"""Golden files: today's readers read what they hold, and today's writers write the same.

A failure of the second kind is a change of a format. ``tests/golden/update.py`` says what to do then.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import pytest

from raftkv.consensus.messages import decode
from raftkv.consensus.segments import recover
from raftkv.consensus.snapshot import SnapshotCatalog, SnapshotManifest
from raftkv.runtime.backup_files import BackupReader, restore_backup
from raftkv.runtime.clock import RealRandomness
from raftkv.runtime.files import RealDirectory, boot_id
from raftkv.runtime.framing import MAX_FRAME_BYTES, FrameReader, decode_handshake
from raftkv.runtime.identity import read_identity
from raftkv.runtime.recovery import recover_storage
from raftkv.store.commands import Command, Delete, Guarded, Put, decode_commands
from raftkv.store.lmdb_backend import LmdbBackend
from raftkv.store.machine import Machine, open_machine
from raftkv.store.memory_backend import MemoryBackend
from tests.consensus.harness import CLUSTER as JOURNAL_CLUSTER
from tests.consensus.test_messages import EXAMPLES
from tests.consensus.test_segments import filled_disk
from tests.golden.cases import (
    ALL_COMMANDS,
    CLUSTER,
    COMMANDS,
    FILES,
    FIXED_IDENTITY,
    FIXED_MANIFEST,
    HANDSHAKES,
    MEMBERS,
    all_items,
    content_types_of,
    digest_of,
    encoded,
    load_dump,
    machine_of,
    typed_machine_of,
    written,
)
from tests.golden.update import merged
from tests.simulation.disk import VirtualDisk

HINT = "a format has changed: see tests/golden/update.py"


def files(kind: str) -> list[Path]:
    found = sorted(FILES.glob(f"{kind}.*"))
    assert found, f"there is no golden file of {kind}"
    return found


def by_name(path: Path) -> str:
    return path.name


@pytest.mark.parametrize(("name", "content"), list(written()), ids=lambda value: value if type(value) is str else "")
def test_todays_writers_write_what_the_golden_files_hold(name, content):
    path = FILES / name
    assert path.exists(), f"{name} is missing: run python -m tests.golden.update"
    assert path.read_bytes() == content, HINT


@pytest.mark.parametrize(("name", "today"), list(encoded()), ids=lambda value: value if type(value) is str else "")
def test_todays_encodings_are_the_last_ones_in_the_golden_files(name, today):
    kept = json.loads((FILES / name).read_bytes())
    assert {each: encodings[-1] for each, encodings in kept.items()} == today, HINT


@pytest.mark.parametrize("path", files("journal"), ids=by_name)
def test_the_journal_is_read(path):
    disk = VirtualDisk()
    for name, content in json.loads(path.read_bytes()).items():
        disk.root.replace(name, bytes.fromhex(content))
    recovered, today = recover(disk.root, JOURNAL_CLUSTER, None), recover(filled_disk().root, JOURNAL_CLUSTER, None)
    assert recovered.entries == today.entries
    assert recovered.state == today.state


@pytest.fixture(scope="module")
def digest() -> str:
    return digest_of(machine_of(MemoryBackend(VirtualDisk().root)))


@pytest.mark.parametrize("path", files("store"), ids=by_name)
def test_the_store_is_read(path, digest):
    assert digest_of(Machine(load_dump(json.loads(path.read_bytes())), CLUSTER)) == digest


@pytest.fixture(scope="module")
def content_types() -> list:
    found = content_types_of(typed_machine_of(MemoryBackend(VirtualDisk().root)))
    assert [len({content_type for *_, content_type in items}) for items in found] == [0, 1, 2, 3, 2, 3]
    return found


@pytest.mark.parametrize("path", files("typed-store"), ids=by_name)
def test_the_content_types_of_the_store_are_read(path, content_types):
    assert content_types_of(Machine(load_dump(json.loads(path.read_bytes())), CLUSTER)) == content_types


@pytest.mark.parametrize("path", files("manifest"), ids=by_name)
def test_the_manifest_is_read(path):
    manifest = SnapshotManifest.decode(path.read_bytes(), path.name)
    facts = (manifest.cluster_id, manifest.index, manifest.term, manifest.revision, manifest.members, manifest.sha256)
    fixed = FIXED_MANIFEST
    assert facts == (fixed.cluster_id, fixed.index, fixed.term, fixed.revision, fixed.members, fixed.sha256)


@pytest.mark.parametrize("path", files("snapshot"), ids=by_name)
def test_the_snapshot_is_read_and_installed(path, tmp_path, digest):
    with installed(path, tmp_path) as machine:
        assert digest_of(machine) == digest


@pytest.mark.parametrize("path", files("typed-snapshot"), ids=by_name)
def test_the_content_types_of_the_snapshot_are_installed(path, tmp_path, content_types):
    with installed(path, tmp_path) as machine:
        assert content_types_of(machine) == content_types


@contextmanager
def installed(path: Path, tmp_path: Path) -> Iterator[Machine]:
    """Return a store that a snapshot was installed in."""
    encoded_manifest, data = zlib.decompress(path.read_bytes()).split(b"\n", 1)
    manifest = SnapshotManifest.decode(encoded_manifest, path.name)
    directory = RealDirectory(tmp_path)
    catalog = SnapshotCatalog(directory.child("snapshots"), CLUSTER)
    Path(catalog.copy_path).write_bytes(data)
    catalog.adopt_copy(manifest)
    catalog.verify(manifest)
    (tmp_path / "store").mkdir()
    machine = Machine(LmdbBackend(tmp_path / "store", 1_048_576), CLUSTER)
    machine.check_installable(manifest.store_format, manifest.cluster_version, path.name)
    machine.install_staged(machine.stage(catalog.path(manifest)))
    assert machine.applied_index == manifest.index
    yield machine
    machine.close()


@pytest.mark.parametrize("path", files("backup"), ids=by_name)
def test_the_backup_is_read_and_restored(path, tmp_path):
    today = machine_of(MemoryBackend(VirtualDisk().root))
    with restored(path, tmp_path) as machine:
        assert [(each.key, each.value) for each in all_items(machine)] == [
            (each.key, each.value) for each in all_items(today)
        ]


@pytest.mark.parametrize("path", files("typed-backup"), ids=by_name)
def test_the_content_types_of_the_backup_are_restored(path, tmp_path, content_types):
    with restored(path, tmp_path) as machine:
        assert [(each.key, each.value, each.content_type) for each in all_items(machine)] == content_types[-1]


@contextmanager
def restored(path: Path, tmp_path: Path) -> Iterator[Machine]:
    """Return the store of a data directory that a backup was restored to."""
    file = tmp_path / "backup"
    file.write_bytes(zlib.decompress(path.read_bytes()))
    name = MEMBERS[0].name
    restore_backup(file, tmp_path / "data", name, MEMBERS, RealRandomness())
    storage = recover_storage(
        RealDirectory(tmp_path / "data"),
        name,
        MEMBERS,
        RealRandomness(),
        lambda cluster_id: open_machine(tmp_path / "data" / "store", cluster_id, boot_id(), 1_048_576),
    )
    yield storage.machine
    storage.machine.close()


def test_the_head_of_a_backup_is_read():
    for path in files("backup-head"):
        reader = BackupReader(path.name)
        assert reader.feed(path.read_bytes() + b"data") == b"data"


@pytest.mark.parametrize("path", files("identity"), ids=by_name)
def test_the_identity_is_read(path):
    disk = VirtualDisk()
    disk.root.replace("identity.json", path.read_bytes())
    assert read_identity(disk.root) == FIXED_IDENTITY


def test_there_is_a_golden_command_of_every_kind():
    kinds = {kind for each in get_args(Command) for kind in (get_args(each) or (each,))}
    assert {type(command) for command in COMMANDS.values()} >= kinds - {Guarded}
    assert {type(command.command) for command in COMMANDS.values() if isinstance(command, Guarded)} == {Put, Delete}


@pytest.mark.parametrize("path", files("commands"), ids=by_name)
def test_commands_are_read(path):
    for name, encodings in json.loads(path.read_bytes()).items():
        assert decode_commands(bytes.fromhex(encodings[-1])) == [ALL_COMMANDS[name]]
        for earlier in encodings:
            (command,) = decode_commands(bytes.fromhex(earlier))
            assert type(command) is type(ALL_COMMANDS[name])


@pytest.mark.parametrize("path", files("peer"), ids=by_name)
def test_frames_of_peers_are_read(path):
    examples = {f"{number:02d} {type(each).__name__}": each for number, each in enumerate(EXAMPLES)}
    for name, encodings in json.loads(path.read_bytes()).items():
        known = HANDSHAKES.get(name) or examples[name]
        read = [_read_frame(bytes.fromhex(each), is_handshake=name in HANDSHAKES) for each in encodings]
        assert {type(each) for each in read} == {type(known)}
        assert read[-1] == known


def _read_frame(data: bytes, *, is_handshake: bool) -> object:
    if not is_handshake:
        return decode(data)
    (payload,) = FrameReader(MAX_FRAME_BYTES).feed(data)
    return decode_handshake(payload)


def test_earlier_encodings_are_kept_unless_they_are_replaced():
    kept = {"a": ["01", "02"], "gone": ["09"]}
    assert merged(kept, {"a": "03"}, replaces=False) == {"a": ["01", "02", "03"], "gone": ["09"]}
    assert merged(kept, {"a": "03", "b": "04"}, replaces=True) == {"a": ["01", "03"], "b": ["04"]}
    assert merged(kept, {"a": "02"}, replaces=False) == {"a": ["01", "02"], "gone": ["09"]}
