"""The state machine over both backends: the same commands give the same results and the same state."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.errors import CorruptData, ForeignData, InvariantViolated, UnsupportedVersion
from raftkv.store.backend import Space
from raftkv.store.commands import Delete, MalformedCommand, Put, decode_commands, encode_commands, encoded_size_hint
from raftkv.store.lmdb_backend import LmdbBackend
from raftkv.store.machine import CommittedEntry, Machine, open_machine
from raftkv.store.memory_backend import MemoryBackend
from raftkv.types import ClusterId, Condition, ConditionFailed, Index, Revision, Term, Written
from tests.simulation.disk import VirtualDisk

CLUSTER = ClusterId("0123456789abcdef")
SMALL_MAP = 262_144


class Store:
    """A machine that counts its own indexes."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def apply(self, *commands):
        index = Index(self.machine.applied_index + 1)
        return self.machine.apply([CommittedEntry(index, Term(1), encode_commands(commands))])[0]

    def keys(self, prefix=b"", start=b"", limit=1000):
        return [item.key for item in self.machine.list(prefix, start, limit, keys_only=True, max_bytes=10**9).items]


@pytest.fixture(params=["lmdb", "memory"])
def store(request, tmp_path):
    backend = LmdbBackend(tmp_path, SMALL_MAP) if request.param == "lmdb" else MemoryBackend(VirtualDisk().root)
    machine = Machine(backend, CLUSTER)
    yield Store(machine)
    machine.close()


def test_an_empty_store_is_at_revision_one(store):
    assert (store.machine.revision, store.machine.applied_index) == (1, 0)
    assert store.machine.get(b"a") is None
    assert store.keys() == []


def test_revisions_and_versions_count_as_in_etcd(store):
    assert store.apply(Put(b"a", b"1"))[0].revision == 2
    assert store.apply(Put(b"b", b"1"), Put(b"a", b"2"))[1].current.version == 2
    found = store.machine.get(b"a")
    assert (found.value, found.create_revision, found.mod_revision, found.version) == (b"2", 2, 4, 2)
    assert store.apply(Delete(b"a"))[0] == Written(Revision(5), None, deleted=1)
    assert store.apply(Delete(b"a"))[0] == Written(Revision(5), None, deleted=0)
    store.apply(Put(b"a", b"3"))
    found = store.machine.get(b"a")
    assert (found.create_revision, found.mod_revision, found.version) == (6, 6, 1)


def test_conditions_hold_or_change_nothing(store):
    absent, present = Condition(Revision(0)), Condition(None)
    assert store.apply(Put(b"a", b"1", condition=present))[0] == ConditionFailed(Revision(1), Revision(0))
    assert isinstance(store.apply(Put(b"a", b"1", condition=absent))[0], Written)
    assert store.apply(Put(b"a", b"2", condition=absent))[0] == ConditionFailed(Revision(2), Revision(2))
    other = Condition(Revision(1))
    assert store.apply(Put(b"a", b"2", condition=other))[0] == ConditionFailed(Revision(2), Revision(2))
    assert isinstance(store.apply(Put(b"a", b"2", condition=Condition(Revision(2))))[0], Written)
    assert store.apply(Delete(b"a", Condition(Revision(2))))[0] == ConditionFailed(Revision(3), Revision(3))
    assert store.machine.get(b"a").value == b"2"
    assert store.apply(Delete(b"a", present))[0].deleted == 1


def test_commands_of_one_entry_see_each_other(store):
    results = store.apply(
        Put(b"a", b"1", condition=Condition(Revision(0))), Put(b"a", b"2", condition=Condition(Revision(0)))
    )
    assert [type(result) for result in results] == [Written, ConditionFailed]


def test_listing_is_ordered_and_paged(store):
    keys = [b"a", b"a/", b"a/1", b"a/2", b"a/\xff", b"a0", b"b", b"\x00", b"\xff\xff"]
    store.apply(*(Put(key, key) for key in keys))
    assert store.keys() == sorted(keys)
    assert store.keys(b"a/") == [b"a/", b"a/1", b"a/2", b"a/\xff"]
    assert store.keys(b"a/", start=b"a/2") == [b"a/2", b"a/\xff"]
    assert store.keys(b"zz") == []
    page = store.machine.list(b"a/", b"", 2, keys_only=False, max_bytes=10**9)
    assert ([item.value for item in page.items], page.next_key) == ([b"a/", b"a/1"], b"a/2")
    last = store.machine.list(b"a/", page.next_key, 2, keys_only=False, max_bytes=10**9)
    assert last.next_key is None
    by_size = store.machine.list(b"a/", b"", 100, keys_only=False, max_bytes=1)
    assert len(by_size.items) == 1


def test_long_keys_are_ordered_among_the_others(store):
    rng = random.Random(5)
    stems = [b"k" * length for length in (1, 500, 508, 509, 510, 511, 512, 600, 4095)]
    keys = {stem + tail for stem in stems for tail in (b"", b"\x00", b"\x01", b"a", b"\xff")}
    keys |= {rng.choice(stems)[: rng.randint(1, 4000)] + bytes([rng.randrange(256)]) for _ in range(60)}
    keys = {key for key in keys if len(key) <= 4096}
    for key in sorted(keys, key=lambda key: rng.random()):
        store.apply(Put(key, key[-5:]))
    assert store.keys() == sorted(keys)
    for key in keys:
        assert store.machine.get(key).value == key[-5:]
        assert store.keys(start=key, limit=1) == [key]
    gone = set(rng.sample(sorted(keys), len(keys) // 2))
    for key in gone:
        assert store.apply(Delete(key))[0].deleted == 1
    assert store.keys() == sorted(keys - gone)


def test_the_map_grows_with_the_data(store):
    for number in range(30):
        store.apply(*(Put(b"%d-%d" % (number, each), bytes(10_000)) for each in range(5)))
    assert len(store.keys()) == 150
    store.apply(Put(b"large", bytes(1_572_864)))
    assert len(store.machine.get(b"large").value) == 1_572_864


def test_a_gap_or_a_repetition_of_entries_is_refused(store):
    store.apply(Put(b"a", b"1"))
    for index in (1, 3):
        with pytest.raises(InvariantViolated, match=f"entry {index} was to be applied after entry 1"):
            store.machine.apply([CommittedEntry(Index(index), Term(1), None)])
    assert store.machine.revision == 2


def test_the_state_hash_is_of_the_state_alone(store, tmp_path):
    other = Store(Machine(MemoryBackend(VirtualDisk().root), CLUSTER))
    for each in (store, other):
        each.apply(Put(b"a", b"1"), Put(b"b" * 700, b"2"))
        each.apply(Delete(b"a"))
    assert store.machine.state_hash() == other.machine.state_hash()
    store.apply(Put(b"a", b"1"))
    assert store.machine.state_hash() != other.machine.state_hash()


def test_a_copy_becomes_a_store(store, tmp_path):
    store.apply(Put(b"a", b"1"), Put(b"b" * 700, b"2"))
    copy = str(tmp_path / "copy")
    taken = store.machine.copy_to(copy)
    info = taken.info
    assert taken.membership == store.machine.membership
    assert (info.cluster_id, info.applied_index, info.revision) == (CLUSTER, 1, 3)
    before = store.machine.state_hash()
    for _ in range(2):
        store.apply(Put(b"a", b"changed"))
        store.machine.install_staged(store.machine.stage(copy))
        assert store.machine.state_hash() == before
        assert store.machine.applied_index == 1
    store.machine.discard_staged(store.machine.stage(copy))


def test_a_copy_that_cannot_be_written_is_an_os_error(tmp_path):
    machine = Machine(LmdbBackend(tmp_path), CLUSTER)
    with pytest.raises(OSError, match="copying the store"):
        machine.copy_to(str(tmp_path / "missing" / "copy"))
    machine.close()


def test_a_copy_whose_disk_fills_up_leaves_the_store_as_it_is(tmp_path, monkeypatch):
    machine = Machine(LmdbBackend(tmp_path), CLUSTER)
    written = os.write

    def full(descriptor, data):
        if len(data) > 1000:
            raise OSError(28, "No space left on device")
        return written(descriptor, data)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            machine.copy_to(str(tmp_path / "copy"))
    assert machine.copy_to(str(tmp_path / "another")).info.cluster_id == CLUSTER
    machine.close()


def test_a_copy_is_paced_piece_by_piece(tmp_path):
    machine = Machine(LmdbBackend(tmp_path), CLUSTER)
    sizes: list[int] = []
    taken = machine.copy_to(str(tmp_path / "copy"), sizes.append)
    data = (tmp_path / "copy").read_bytes()
    assert sum(sizes) == taken.size == len(data) > 0
    assert taken.sha256 == hashlib.sha256(data).hexdigest()
    machine.close()


def test_a_store_of_another_cluster_or_format_is_refused(tmp_path):
    machine = Machine(LmdbBackend(tmp_path), CLUSTER)
    machine.close()
    with pytest.raises(ForeignData, match=f"belongs to cluster {CLUSTER}"):
        Machine(LmdbBackend(tmp_path), ClusterId("f" * 16))
    for name, value, error in ((b"format", b"9", UnsupportedVersion), (b"state", None, CorruptData)):
        backend = MemoryBackend(VirtualDisk().root)
        Machine(backend, CLUSTER)
        backend._content.trees[Space.META].set(name, value)
        with pytest.raises(error):
            Machine(backend, CLUSTER)


def test_an_exception_undoes_the_transaction(store):
    store.apply(Put(b"a", b"1"), Put(b"c", b"1"))
    before = store.machine.state_hash()

    def fail():
        with store.machine._backend.write() as transaction:
            current, meta = transaction.tree(Space.CURRENT), transaction.tree(Space.META)
            current.put(b"a", b"2")
            current.put(b"b", b"2")
            current.delete(b"c")
            meta.put(b"state", b"x")
            meta.put(b"other", b"x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert store.machine.state_hash() == before


def test_data_of_a_crashed_machine_is_set_aside(tmp_path):
    directory = tmp_path / "store"
    machine = open_machine(directory, CLUSTER, "boot-1")
    Store(machine).apply(Put(b"a", b"1"))
    # The process dies: nothing is closed. The same boot trusts the page cache, another does not.
    crashed = tmp_path / "crashed"
    shutil.copytree(directory, crashed)
    same_boot = tmp_path / "same-boot"
    shutil.copytree(directory, same_boot)
    machine.close()
    trusted = open_machine(same_boot, CLUSTER, "boot-1")
    assert trusted.applied_index == 1
    trusted.close()
    rebuilt = open_machine(crashed, CLUSTER, "boot-2")
    assert rebuilt.applied_index == 0
    assert (crashed / "data.mdb.untrusted").exists()
    rebuilt.close()
    clean = open_machine(directory, CLUSTER, "boot-2")
    assert clean.applied_index == 1
    clean.close()


LONG = b"k" * 511
KEYS = st.sampled_from([b"a", b"b", b"ab", LONG[:509], LONG, LONG + b"x", LONG + LONG, b"\x00", b"\xff" * 4096])
CONDITIONS = st.one_of(st.none(), st.just(Condition(None)), st.integers(0, 12).map(lambda n: Condition(Revision(n))))
COMMANDS = st.one_of(
    st.builds(Put, KEYS, st.binary(max_size=20), st.just(0), CONDITIONS), st.builds(Delete, KEYS, CONDITIONS)
)


def model_apply(state: dict[bytes, tuple[bytes, int, int, int]], revision: int, command) -> tuple[object, int]:
    """What a command does to a plain dictionary."""
    present = state.get(command.key)
    mod = present[2] if present else 0
    if command.condition is not None:
        wanted = command.condition.mod_revision
        if (wanted is None and not mod) or (wanted is not None and wanted != mod):
            return ("failed", revision, mod), revision
    if isinstance(command, Delete):
        if present is None:
            return ("deleted", 0), revision
        del state[command.key]
        return ("deleted", 1), revision + 1
    revision += 1
    create, version = (present[1], present[3] + 1) if present else (revision, 1)
    state[command.key] = (command.value, create, revision, version)
    return ("put", create, version), revision


def summary(result):
    if isinstance(result, ConditionFailed):
        return ("failed", result.revision, result.mod_revision)
    if result.current is None:
        return ("deleted", result.deleted)
    return ("put", result.current.create_revision, result.current.version)


@settings(max_examples=120, deadline=None)
@given(groups=st.lists(st.lists(COMMANDS, min_size=1, max_size=4), max_size=12), reopen_at=st.integers(0, 12))
def test_both_backends_do_what_a_dictionary_does(groups, reopen_at, tmp_path_factory):
    directory: Path = tmp_path_factory.mktemp("store")
    memory = Store(Machine(MemoryBackend(VirtualDisk().root), CLUSTER))
    lmdb = Store(open_machine(directory, CLUSTER, "boot", SMALL_MAP))
    model, revision = {}, 1
    for number, group in enumerate(groups):
        if number == reopen_at:
            lmdb.machine.close()
            lmdb = Store(open_machine(directory, CLUSTER, "boot", SMALL_MAP))
        expected = []
        for command in group:
            outcome, revision = model_apply(model, revision, command)
            expected.append(outcome)
        assert [summary(result) for result in memory.apply(*group)] == expected
        assert [summary(result) for result in lmdb.apply(*group)] == expected
        assert memory.machine.revision == lmdb.machine.revision == revision
    for store in (memory, lmdb):
        items = store.machine.list(b"", b"", 100, keys_only=False, max_bytes=10**9).items
        found = {item.key: (item.value, item.create_revision, item.mod_revision, item.version) for item in items}
        assert found == model
        assert list(found) == sorted(model)
        for key, (value, *_rest) in model.items():
            assert store.machine.get(key).value == value
    assert memory.machine.state_hash() == lmdb.machine.state_hash()
    lmdb.machine.close()
    shutil.rmtree(directory)


@given(st.lists(COMMANDS, max_size=5))
def test_commands_survive_their_codec_and_its_size_hint_is_a_bound(commands):
    assert decode_commands(encode_commands(commands)) == commands
    assert len(encode_commands(commands)) <= 8 + sum(encoded_size_hint(command) for command in commands)


@given(st.binary(max_size=60))
def test_no_bytes_make_the_command_codec_fail_in_another_way(payload):
    try:
        decode_commands(payload)
    except MalformedCommand:
        return
