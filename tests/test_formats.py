"""Formats by number: an older one has a reader, a later one is refused in words and its data stays as it is."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import orjson
import pytest

from raftkv.consensus import records
from raftkv.consensus.records import JOURNAL_FORMATS, LogState, SegmentHeader
from raftkv.consensus.segments import recover
from raftkv.consensus.snapshot import SNAPSHOT_FORMATS, SnapshotCatalog, SnapshotManifest
from raftkv.errors import CorruptData, UnsupportedVersion
from raftkv.formats import Format, Formats, UnknownFormat
from raftkv.membership import MemberId
from raftkv.runtime import backup_files, backups, identity
from raftkv.runtime.backup_files import BackupReader, restore_backup
from raftkv.runtime.backups import BACKUP_FORMATS, MAGIC, head_of
from raftkv.runtime.clock import RealRandomness
from raftkv.runtime.files import RealDirectory
from raftkv.runtime.identity import IDENTITY_FORMATS, Identity, read_identity, store_identity
from raftkv.runtime.manifests import manifest_of_copy
from raftkv.store import bookkeeping
from raftkv.store.backend import Space
from raftkv.store.bookkeeping import STORE_FORMATS, StoreInfo
from raftkv.store.commands import Command, Put, SetClusterVersion
from raftkv.store.lmdb_backend import LmdbBackend
from raftkv.store.machine import CommittedEntry, Machine
from raftkv.store.memory_backend import MemoryBackend
from raftkv.types import Index, Member, NodeId, Revision, Term
from raftkv.versions import FIRST_VERSION, SUPPORTED_VERSIONS, ClusterVersion, SupportedVersions
from tests.consensus.harness import CLUSTER
from tests.consensus.test_segments import Log, filled_disk
from tests.simulation.disk import VirtualDisk
from tests.store.entries import apply_to

LATER = 99
OLDER = 0
"""A format of an earlier release, which exists in these tests alone."""

NEXT = ClusterVersion(0, 2)
"""The cluster version from which on a later release writes ``LATER``."""

MANIFEST = SnapshotManifest(
    2,
    CLUSTER,
    Index(9),
    Term(2),
    Revision(5),
    (NodeId("a"),),
    0,
    "ab" * 32,
    STORE_FORMATS.written_at(FIRST_VERSION),
    "0.1",
)


@pytest.fixture
def older(request):
    """Add a reader of an older format to one kind of data for one test."""
    added = []

    def add(formats: Formats, reader) -> None:
        formats.add(OLDER, Format(reader))
        added.append(formats)

    yield add
    for formats in added:
        formats.remove(OLDER)


@pytest.fixture
def later(monkeypatch):
    """Let this release be a later one, of which one kind of data has one format more, for one test."""

    def add(formats: Formats, reader) -> None:
        monkeypatch.setattr(formats, "_formats", formats._formats | {LATER: Format(reader, NEXT)})

    return add


def test_what_is_written_follows_the_cluster_version():
    formats = Formats(
        "some", {1: Format(str), 2: Format(str, ClusterVersion(0, 3)), 3: Format(str, ClusterVersion(1, 0))}
    )
    written = {text: formats.written_at(ClusterVersion.parse(text)) for text in ("0.1", "0.2", "0.3", "0.9", "1.0")}
    assert written == {"0.1": 1, "0.2": 1, "0.3": 2, "0.9": 2, "1.0": 3}
    with pytest.raises(UnknownFormat, match=r"some format 4 is newer .* which reads 1 and 2 and 3"):
        formats.read(4, "x")
    for other in ("1", None, True, 1.0):
        with pytest.raises(UnknownFormat):
            formats.check(other)


def files_of(disk: VirtualDisk) -> dict[str, bytes]:
    return {name: disk.root.read(name) for name in disk.root.names()}


def test_a_journal_of_a_later_format_is_refused_and_stays_as_it_is():
    disk = filled_disk_of(LATER)
    before = files_of(disk)
    with pytest.raises(
        UnsupportedVersion,
        match=rf"\.log: journal format {LATER} is newer.* which reads 1",
    ):
        recover(disk.root, CLUSTER, None)
    assert files_of(disk) == before


def test_a_journal_of_an_older_format_is_read(older):
    """The older one does not have the members' storage ids in its header."""

    def read_older(fields: list) -> SegmentHeader:
        return SegmentHeader(fields[2], fields[3], LogState(*fields[4:9]))

    disk = filled_disk_of(OLDER)
    older(JOURNAL_FORMATS, read_older)
    recovered = recover(disk.root, CLUSTER, None)
    assert recovered.entries == recover(filled_disk().root, CLUSTER, None).entries


def filled_disk_of(number: int) -> VirtualDisk:
    """Return a journal of another format, as a release writes it that has no other."""
    known = JOURNAL_FORMATS._formats
    JOURNAL_FORMATS._formats = {number: known[1]}
    try:
        return filled_disk()
    finally:
        JOURNAL_FORMATS._formats = known


def test_a_journal_takes_a_later_format_on_with_the_first_segment_after_the_rise(later):
    read: list[int] = []

    def read_later(fields: list) -> SegmentHeader:
        read.append(fields[1])
        return records._read_1(fields)

    later(JOURNAL_FORMATS, read_later)
    disk, versions = VirtualDisk(), iter([FIRST_VERSION] * 3 + [NEXT] * 2)
    log = Log(disk, segment_bytes=1, cluster_version=lambda: next(versions))
    for _ in range(4):
        log.add(1)
        log.write()
    assert len(disk.root.names()) == 5
    assert len(recover(disk.root, CLUSTER, None).entries) == 4
    assert read == [LATER, LATER]


def stored(backend: MemoryBackend, supported: SupportedVersions = SUPPORTED_VERSIONS) -> Machine:
    machine = Machine(backend, CLUSTER, supported)
    apply_to(machine, Put(b"a", b"1"))
    return machine


def set_format(backend: MemoryBackend, number: int) -> None:
    backend._content.trees[Space.META].set(b"format", str(number).encode())


def test_a_store_of_a_later_format_is_refused_and_stays_as_it_is():
    backend = MemoryBackend(VirtualDisk().root)
    before = stored(backend).state_hash()
    set_format(backend, LATER)
    with pytest.raises(
        UnsupportedVersion,
        match=rf"store format {LATER} is newer.*raftkv 0\.1 or a later one reads it.*left as it is",
    ):
        Machine(backend, CLUSTER)
    set_format(backend, STORE_FORMATS.written_at(FIRST_VERSION))
    assert Machine(backend, CLUSTER).state_hash() == before


def test_a_store_of_an_older_format_is_read_and_written_as_its_version_says(older):
    """The older one had no cluster version."""
    backend = MemoryBackend(VirtualDisk().root)
    stored(backend)
    set_format(backend, OLDER)
    backend._content.trees[Space.META].set(b"cluster-version", None)

    def read_older(view) -> StoreInfo:
        index, term, revision, compacted, time = bookkeeping._STATE_FIELDS.unpack(view.view(Space.META).get(b"state"))
        return StoreInfo(CLUSTER, Index(index), Term(term), Revision(revision), Revision(compacted), time)

    older(STORE_FORMATS, read_older)
    machine = Machine(backend, CLUSTER)
    assert machine.get(b"a").value == b"1"
    apply_to(machine, Put(b"a", b"2"))
    STORE_FORMATS.remove(OLDER)
    try:
        assert Machine(backend, CLUSTER).get(b"a").value == b"2"
    finally:
        STORE_FORMATS.add(OLDER, Format(read_older))


def test_a_store_takes_a_later_format_on_when_the_version_rises(monkeypatch, later):
    """And its copies say so, while its hash does not tell the formats apart."""

    def applied(machine: Machine, command: Command) -> str:
        apply_to(machine, command)
        return machine.state_hash()

    def formats_of_copy(machine: Machine, name: str) -> tuple[int, int]:
        copy = machine.copy_to(f"{disk.root.path}/{name}")
        return copy.format, manifest_of_copy(copy).store_format

    both = SupportedVersions(FIRST_VERSION, NEXT)
    commands = [Put(b"a", b"2"), SetClusterVersion(NEXT), Put(b"a", b"3")]
    disk = VirtualDisk()
    without = stored(MemoryBackend(VirtualDisk().root), both)
    hashes = [applied(without, command) for command in commands]
    later(STORE_FORMATS, bookkeeping._read_7)
    backend = MemoryBackend(disk.root)
    machine = stored(backend, both)
    assert formats_of_copy(machine, "new") == (7, 7)
    machine = Machine(backend, CLUSTER, both)
    found = [applied(machine, commands[0])]
    assert formats_of_copy(machine, "opened again") == (7, 7)
    found.append(applied(machine, commands[1]))
    assert formats_of_copy(machine, "raised") == (LATER, LATER)
    machine = Machine(backend, CLUSTER, both)
    found.append(applied(machine, commands[2]))
    assert formats_of_copy(machine, "raised and opened again") == (LATER, LATER)
    assert found == hashes
    monkeypatch.undo()
    with pytest.raises(
        UnsupportedVersion, match=rf"store format {LATER} is newer.*raftkv 0\.2 or a later one reads it"
    ):
        Machine(backend, CLUSTER)


def test_a_store_that_was_not_at_the_format_of_its_version_takes_it_on_at_the_next_entry(later):
    """The release before did not know it."""
    both = SupportedVersions(FIRST_VERSION, NEXT)
    backend = MemoryBackend(VirtualDisk().root)
    machine = stored(backend, both)
    apply_to(machine, SetClusterVersion(NEXT))
    later(STORE_FORMATS, bookkeeping._read_7)
    machine = Machine(backend, CLUSTER, both)
    with backend.read() as view:
        assert bookkeeping.format_of(view) == 7
    machine.apply([CommittedEntry(Index(3), Term(1), None)])
    with backend.read() as view:
        assert bookkeeping.format_of(view) == LATER


def test_a_manifest_of_a_later_format_is_refused():
    with pytest.raises(UnsupportedVersion, match=f"n1: snapshot format {LATER} is newer.* which reads 2"):
        SnapshotManifest.decode(replace(MANIFEST, format=LATER).encode(), "n1")
    later = replace(MANIFEST, format=LATER, cluster_version="3.1").encode()
    with pytest.raises(UnsupportedVersion, match=r"raftkv 3\.1 or a later one reads it"):
        SnapshotManifest.decode(later, "n1")
    # A later release may take the digest of something else.
    with pytest.raises(CorruptData, match=r"not match its digest, or .* newer .*raftkv 3\.1 or a later one reads it"):
        SnapshotManifest.decode(orjson.dumps(orjson.loads(later) | {"sha256": "other"}), "n1")


def test_an_identity_of_a_later_format_is_refused_as_such():
    directory = VirtualDisk().root
    directory.replace("identity.json", orjson.dumps({"format": LATER, "owner": "n1"}))
    with pytest.raises(UnsupportedVersion, match=rf"identity format {LATER} is newer .* left as it is"):
        read_identity(directory)


def test_an_identity_has_the_format_of_the_version_at_which_it_was_made(later):
    later(IDENTITY_FORMATS, identity._read_2)
    directory = VirtualDisk().root
    made = Identity(CLUSTER, NodeId("a"), MemberId(7), "storage", (Member(NodeId("a"), "h:1"),))
    for version, number in ((FIRST_VERSION, 2), (NEXT, LATER)):
        store_identity(directory, made, version)
        assert orjson.loads(directory.read("identity.json"))["format"] == number
        assert read_identity(directory) == made


def test_a_manifest_of_an_older_format_is_read(older):
    """The older one called the members voters."""

    def read_older(fields: dict) -> SnapshotManifest:
        return replace(MANIFEST, format=OLDER, members=tuple(fields["voters"]))

    older(SNAPSHOT_FORMATS, read_older)
    fields = {"format": OLDER, "voters": ["b", "c"]}
    encoded = orjson.dumps({"manifest": fields, "sha256": sha256(orjson.dumps(fields)).hexdigest()})
    assert SnapshotManifest.decode(encoded, "n1").members == ("b", "c")


def test_a_backup_of_a_later_format_is_refused():
    with pytest.raises(UnsupportedVersion, match=f"here: backup format {LATER} is newer.* which reads 1"):
        BackupReader("here").feed(MAGIC + b"%d\n" % LATER)


def test_a_backup_has_the_format_of_the_version_in_it(later):
    later(BACKUP_FORMATS, backups._read_1)
    for version, number in (("0.1", 1), ("0.2", LATER)):
        manifest = replace(MANIFEST, cluster_version=version)
        assert head_of(manifest).startswith(MAGIC + b"%d\n" % number)
        reader = BackupReader("here")
        reader.feed(head_of(manifest))
        assert reader.manifest == manifest


def test_a_backup_of_an_older_format_is_read(older):
    """The older one has a line with a comment before the manifest."""

    def read_older(raw):
        comment, end, rest = raw[0].partition(b"\n")
        return backups._read_1((rest, raw[1])) if end and comment is not None else None

    older(BACKUP_FORMATS, read_older)
    manifest = replace(MANIFEST, size=4, sha256=sha256(b"data").hexdigest())
    backup = (
        head_of(manifest).replace(b"%d\n" % BACKUP_FORMATS.written_at(FIRST_VERSION), b"%d\na comment\n" % OLDER, 1)
        + b"data"
    )
    reader = BackupReader("here")
    assert b"".join(reader.feed(backup[at : at + 1]) for at in range(len(backup))) == b"data"
    assert reader.finish() == manifest


def test_a_restored_data_directory_has_the_formats_of_the_version_in_the_backup(tmp_path, monkeypatch, later):
    both = SupportedVersions(FIRST_VERSION, NEXT)
    monkeypatch.setattr(backup_files, "SUPPORTED_VERSIONS", both)
    journals: list[int] = []

    def read_journal(fields: list) -> SegmentHeader:
        journals.append(fields[1])
        return records._read_1(fields)

    later(JOURNAL_FORMATS, read_journal)
    later(STORE_FORMATS, bookkeeping._read_7)
    later(IDENTITY_FORMATS, identity._read_2)
    (tmp_path / "store").mkdir()
    machine = stored(LmdbBackend(tmp_path / "store", 1_048_576), both)
    apply_to(machine, SetClusterVersion(NEXT))
    manifest = manifest_of_copy(machine.copy_to(str(tmp_path / "copy")))
    machine.close()
    (tmp_path / "backup").write_bytes(head_of(manifest) + (tmp_path / "copy").read_bytes())
    name = NodeId("n1")
    cluster = restore_backup(tmp_path / "backup", tmp_path / "n1", name, (Member(name, "h:1"),), RealRandomness())
    restored = SnapshotCatalog(RealDirectory(tmp_path / "n1/snapshots"), cluster).newest()
    assert restored.store_format == LATER
    assert orjson.loads((tmp_path / "n1/identity.json").read_bytes())["format"] == LATER
    recover(RealDirectory(tmp_path / "n1/journal"), cluster, (restored.index, restored.term))
    assert journals == [LATER]


@pytest.mark.parametrize("change", [{"store_format": LATER}, {"cluster_version": "9.9"}])
def test_a_backup_of_a_later_release_is_not_restored(tmp_path, change):
    data = b"data"
    digest = sha256(data).hexdigest()
    file = tmp_path / "backup"
    file.write_bytes(head_of(replace(MANIFEST, size=len(data), sha256=digest, **change)) + data)
    members = (Member(NodeId("n1"), "h:1"),)
    with pytest.raises(UnsupportedVersion) as refused:
        restore_backup(file, tmp_path / "n1", NodeId("n1"), members, RealRandomness())
    assert str(next(iter(change.values()))) in str(refused.value)
    assert not (tmp_path / "n1").exists()
