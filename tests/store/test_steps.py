"""Long work in steps: what each step may do, and what it must not see."""

from __future__ import annotations

import gc

import pytest

from raftkv.errors import InvariantViolated
from raftkv.operations import (
    MAX_VISITED_KEYS,
    Alarm,
    AlarmKind,
    AtRevision,
    Compare,
    CompareTarget,
    DeleteOperation,
    Fence,
    KeySpan,
    PutOperation,
    RangeQuery,
    RefusalKind,
    Refused,
    Relation,
    SortOrder,
    SortTarget,
    Transaction,
)
from raftkv.store import steps
from raftkv.store.commands import (
    Compact,
    GrantLease,
    Guarded,
    Once,
    Put,
    RevokeLease,
    SetAlarm,
    Transact,
    encode_commands,
)
from raftkv.store.lmdb_backend import LmdbBackend
from raftkv.store.machine import CommittedEntry, Machine
from raftkv.store.memory_backend import MemoryBackend
from raftkv.store.steps import SortedRuns, finish
from raftkv.types import ClusterId, Index, Revision, Term
from tests.simulation.disk import VirtualDisk
from tests.store.counting import CountingBackend, run_counted
from tests.store.entries import apply_to

CLUSTER = ClusterId("0123456789abcdef")
ALL = KeySpan(b"", None)
KEYS = 400


@pytest.fixture
def backend(backend):
    return CountingBackend(backend)


@pytest.fixture
def machine(backend, monkeypatch):
    monkeypatch.setattr(steps, "OPERATIONS", 20)
    machine = Machine(backend, CLUSTER)
    apply_to(machine, *(Put(b"k%04d" % number, b"%d" % (number % 7)) for number in range(KEYS)))
    return machine


QUERIES = {
    "all": RangeQuery(ALL),
    "keys": RangeQuery(ALL, keys_only=True),
    "count": RangeQuery(ALL, count_only=True),
    "limit": RangeQuery(ALL, limit=1),
    "sorted": RangeQuery(ALL, target=SortTarget.VALUE),
    "sorted with a limit": RangeQuery(ALL, limit=1, target=SortTarget.MOD, order=SortOrder.DESCEND),
    "sorted with a high limit": RangeQuery(ALL, limit=300, target=SortTarget.VALUE, order=SortOrder.DESCEND),
    "filtered": RangeQuery(ALL, limit=2, min_mod_revision=300),
}


@pytest.mark.parametrize("name", QUERIES)
def test_each_step_of_a_range_visits_a_bounded_number_of_keys(backend, machine, name):
    expected = machine.range(QUERIES[name])
    found, most = run_counted(backend, machine.range_steps(QUERIES[name]))
    assert found == AtRevision(machine.revision, expected)
    assert found.result.count == KEYS
    # A key takes its record and its event, and each page looks one key ahead.
    assert most <= 2 * steps.OPERATIONS + 2


def test_limited_range_reads_no_values_beyond_its_limit(backend, machine):
    counted = backend.operations
    result = machine.range(RangeQuery(ALL, limit=3))
    assert (len(result.items), result.count, result.more) == (3, KEYS, True)
    pages = KEYS // steps.OPERATIONS + 2
    assert backend.operations - counted <= KEYS + pages + 4


def test_sorted_range_with_limit_keeps_only_the_best(machine):
    runs = SortedRuns(lambda number: number, limit=3)
    for start in range(0, 1000, 10):
        runs.add(list(range(start + 9, start - 1, -1)))
        assert len(runs._runs) == 1
        assert len(runs._runs[0]) <= 3
    assert finish(runs.merge()) == [0, 1, 2]


def test_sorted_runs_keep_the_order_of_equal_items():
    for is_reversed in (False, True):
        runs = SortedRuns(lambda pair: pair[0], reverse=is_reversed)
        pairs = [(number % 3, number) for number in range(3000)]
        for start in range(0, 3000, 7):
            runs.add(pairs[start : start + 7])
        assert finish(runs.merge()) == sorted(pairs, key=lambda pair: pair[0], reverse=is_reversed)


def test_no_view_is_open_between_steps(backend, machine):
    reading = machine.range_steps(RangeQuery(ALL))
    next(reading)
    assert backend.open_views == 0
    reading.close()


def test_range_sees_one_revision_whatever_is_written_between_its_steps(machine):
    expected = AtRevision(machine.revision, machine.range(RangeQuery(ALL)))
    reading = machine.range_steps(RangeQuery(ALL))
    next(reading)
    changes = [PutOperation(b"k%04d" % number, b"changed") for number in range(0, KEYS, 3)]
    apply_to(machine, Transact(Transaction((), tuple(changes), ())), Put(b"a", b"new"), Put(b"z", b"new"))
    assert finish(reading) == expected
    assert machine.range(RangeQuery(ALL)).count == KEYS + 2


def test_range_begins_again_when_its_revision_is_compacted(machine):
    reading = machine.range_steps(RangeQuery(ALL))
    next(reading)
    apply_to(machine, Put(b"a", b"new"))
    apply_to(machine, Compact(machine.revision))
    found = finish(reading)
    assert isinstance(found, AtRevision)
    assert found == AtRevision(machine.revision, machine.range(RangeQuery(ALL)))
    assert found.result.count == KEYS + 1


def test_range_that_is_always_overtaken_by_compactions_ends_refused(machine):
    reading = machine.range_steps(RangeQuery(ALL))
    result = None
    for number in range(100):
        try:
            next(reading)
        except StopIteration as stop:
            result = stop.value
            break
        apply_to(machine, Put(b"a", b"%d" % number))
        apply_to(machine, Compact(machine.revision))
    assert isinstance(result, Refused)
    assert result.kind is RefusalKind.COMPACTED


def test_range_of_a_named_revision_is_refused_when_that_is_compacted_meanwhile(machine):
    reading = machine.range_steps(RangeQuery(ALL, revision=machine.revision))
    next(reading)
    apply_to(machine, Put(b"a", b"new"))
    apply_to(machine, Compact(machine.revision))
    result = finish(reading)
    assert isinstance(result, Refused)
    assert result.kind is RefusalKind.COMPACTED


def test_compare_of_a_span_takes_bounded_steps(backend, machine):
    compare = Compare(ALL, CompareTarget.VALUE, Relation.LESS, b"9")
    transaction = Transaction((compare,) * 6, (RangeQuery(ALL),), ())
    result, most = run_counted(backend, machine.evaluate_steps(transaction))
    assert result.succeeded
    assert result.results[0].count == KEYS
    assert most <= 2 * steps.OPERATIONS + 2


def test_transaction_whose_compares_visit_too_many_keys_is_refused_and_changes_nothing(machine, monkeypatch):
    monkeypatch.setattr("raftkv.store.allowance.MAX_VISITED_KEYS", 3 * KEYS - 1)
    compare = Compare(ALL, CompareTarget.MOD, Relation.GREATER, 0)
    put = PutOperation(b"a", b"1")
    (refused,) = apply_to(machine, Transact(Transaction((compare,) * 3, (put,), ())))
    assert isinstance(refused, Refused)
    assert refused.kind is RefusalKind.TOO_MANY_KEYS
    assert machine.get(b"a") is None
    (done,) = apply_to(machine, Transact(Transaction((compare,) * 2, (put,), ())))
    assert done.succeeded
    assert MAX_VISITED_KEYS >= 100_000


def test_list_takes_bounded_steps(backend, machine):
    page, most = run_counted(backend, machine.list_steps(b"k", b"", 100, keys_only=False, max_bytes=1_000_000))
    assert len(page.items) == 100
    assert page.next_key == b"k0100"
    assert page.revision == Revision(machine.revision)
    assert most <= 2 * steps.OPERATIONS + 2


def entry_of(machine, *commands):
    return CommittedEntry(Index(machine.applied_index + 1), Term(1), encode_commands(commands))


DELETE_ALL = Transact(Transaction((), (DeleteOperation(ALL, wants_previous=True), RangeQuery(ALL)), ()))
LONG_COMMANDS = {
    "a deletion of many keys": DELETE_ALL,
    "a lease of many keys": RevokeLease(7),
    "a transaction of long ranges": Transact(
        Transaction(
            (Compare(ALL, CompareTarget.MOD, Relation.GREATER, 0),),
            (RangeQuery(ALL), PutOperation(b"k0001", b"new"), RangeQuery(ALL, limit=1, target=SortTarget.MOD)),
            (),
        )
    ),
    "a write under a lock that many wait for": Guarded(Put(b"a", b"1"), Fence(b"k", 2), None),
    "a write that is kept with its long result": Guarded(DELETE_ALL, None, Once(b"once", b"f" * 16, 1, 60)),
}


@pytest.fixture
def leased(machine):
    """A store in which many keys are attached to one lease."""
    apply_to(machine, GrantLease(7, 60), *(Put(b"leased%04d" % number, b"v" * 200, 7) for number in range(KEYS)))
    machine.take_changes()
    return machine


@pytest.mark.parametrize("name", LONG_COMMANDS)
def test_each_step_of_an_entry_does_a_bounded_number_of_operations(backend, leased, name):
    entry = entry_of(leased, LONG_COMMANDS[name])
    results, most = run_counted(backend, leased.apply_steps([entry]))
    assert not isinstance(results[0][0], Refused)
    # A change reads and writes up to eight records and counts as four operations.
    assert most <= 3 * steps.OPERATIONS


def test_backlog_of_puts_is_applied_in_bounded_steps(backend, machine):
    first = machine.applied_index + 1
    entries = [
        CommittedEntry(Index(first + number), Term(1), encode_commands([Put(b"b%d" % number, b"v")]))
        for number in range(200)
    ]
    results, most = run_counted(backend, machine.apply_steps(entries))
    assert len(results) == 200
    assert most <= 3 * steps.OPERATIONS


@pytest.mark.parametrize("name", LONG_COMMANDS)
def test_everything_sees_the_state_before_until_the_last_step(leased, name):
    def seen():
        return (
            leased.applied_index,
            leased.revision,
            leased.range(RangeQuery(ALL)),
            leased.leases(),
            leased.attached_keys(7),
            leased.take_changes(),
            leased.state_hash(),
        )

    before = seen()
    running = leased.apply_steps([entry_of(leased, LONG_COMMANDS[name])])
    number = 0
    for number, _step in enumerate(running):
        if number % 40 == 0:
            assert seen() == before
    assert number > 10
    assert leased.applied_index == before[0] + 1


@pytest.mark.parametrize("name", LONG_COMMANDS)
@pytest.mark.parametrize("taken", [1, 7, 15])
def test_abandoned_entry_leaves_nothing_and_can_be_applied_again(leased, name, taken):
    before = leased.state_hash()
    entry = entry_of(leased, LONG_COMMANDS[name])
    running = leased.apply_steps([entry])
    for _ in range(taken):
        next(running)
    assert leased.is_applying
    leased.abandon()
    assert not leased.is_applying
    assert leased.state_hash() == before
    assert leased.take_changes() == []

    other = Machine(MemoryBackend(VirtualDisk().root), CLUSTER)
    apply_to(other, *(Put(b"k%04d" % number, b"%d" % (number % 7)) for number in range(KEYS)))
    apply_to(other, GrantLease(7, 60), *(Put(b"leased%04d" % number, b"v" * 200, 7) for number in range(KEYS)))
    other.take_changes()
    assert leased.apply([entry]) == other.apply([entry])
    assert leased.take_changes() == other.take_changes()
    assert leased.state_hash() == other.state_hash()


@pytest.mark.parametrize("name", ["a lease of many keys", "a deletion of many keys"])
def test_changes_of_a_long_entry_are_nothing_for_the_collector(leased, name):
    """It would visit all of them at once, and hold the event loop for that."""
    previous = LONG_COMMANDS[name]
    if isinstance(previous, Transact):
        previous = Transact(Transaction((), (DeleteOperation(ALL),), ()))
    leased.apply([entry_of(leased, previous)])
    changes = leased.take_changes()
    assert len(changes) >= KEYS
    gc.collect()
    assert not any(map(gc.is_tracked, changes))


def test_entry_that_does_not_fit_is_applied_again_in_a_larger_map(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "OPERATIONS", 20)
    machine = Machine(LmdbBackend(tmp_path, 1_048_576), CLUSTER)
    seen = set()
    puts = [Put(b"k%03d" % number, b"v" * 9000) for number in range(300)]
    for _step in machine.apply_steps([entry_of(machine, *puts)]):
        seen.add((machine.range(RangeQuery(ALL, count_only=True)).count, machine.revision))
    assert seen == {(0, 1)}
    assert machine.revision == 301
    assert machine.range(RangeQuery(ALL, count_only=True)).count == 300
    machine.close()


def test_copy_of_the_store_has_nothing_of_what_is_being_applied(leased, tmp_path):
    path = str(tmp_path / "copy") if "lmdb" in type(leased._backend._backend).__name__.lower() else "/copy"
    running = leased.apply_steps([entry_of(leased, DELETE_ALL)])
    for _ in range(5):
        next(running)
    if path != "/copy":
        copy = leased.copy_to(path)
        assert (copy.info.applied_index, copy.info.revision) == (leased.applied_index, leased.revision)
    assert finish(running)[0][0].results[0].deleted == 2 * KEYS


def test_second_group_of_entries_waits_for_the_first(machine):
    running = machine.apply_steps([entry_of(machine, DELETE_ALL)])
    next(running)
    with pytest.raises(InvariantViolated):
        machine.apply([entry_of(machine, Put(b"a", b"1"))])
    with pytest.raises(InvariantViolated), machine._backend.write():
        pass
    finish(running)
    machine.apply([entry_of(machine, Put(b"a", b"1"))])


def test_nothing_is_purged_while_entries_are_applied(machine):
    apply_to(machine, DELETE_ALL)
    apply_to(machine, Compact(machine.revision))
    running = machine.apply_steps([entry_of(machine, *(Put(b"n%d" % number, b"v") for number in range(50)))])
    next(running)
    assert not machine.purge()
    finish(running)
    while machine.purge():
        pass
    assert machine.range(RangeQuery(ALL)).count == 50


def test_store_that_is_closed_while_it_applies_has_nothing_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "OPERATIONS", 20)
    machine = Machine(LmdbBackend(tmp_path, 1_048_576), CLUSTER)
    apply_to(machine, *(Put(b"k%03d" % number, b"v") for number in range(100)))
    before, entry = machine.state_hash(), entry_of(machine, DELETE_ALL)
    next(machine.apply_steps([entry]))
    machine.close()
    machine = Machine(LmdbBackend(tmp_path, 1_048_576), CLUSTER)
    assert machine.state_hash() == before
    assert machine.apply([entry])[0][0].results[0].deleted == 100
    machine.close()


def test_put_touches_no_more_records_than_it_must(backend, machine):
    """The key's record twice, the event, the key among the deleted ones, and how far the store is."""
    results, most = run_counted(backend, machine.apply_steps([entry_of(machine, Put(b"k0001", b"new"))]))
    assert len(results[0]) == 1
    assert most <= 6


def test_store_that_becomes_a_copy_knows_the_alarms_of_it():
    disk = VirtualDisk().root
    source, other = Machine(MemoryBackend(disk), CLUSTER), Machine(MemoryBackend(disk), CLUSTER)
    alarm = Alarm(AlarmKind.NO_SPACE, "n1")
    apply_to(other, Put(b"k", b"v"))
    apply_to(source, Put(b"k", b"v"), SetAlarm(alarm, is_active=True))
    source.copy_to(f"{disk.path}/copy")
    other.install_staged(other.stage(f"{disk.path}/copy"))
    (refused,) = apply_to(other, Put(b"k", b"v"))
    assert isinstance(refused, Refused)
    assert refused.kind is RefusalKind.NO_SPACE
    apply_to(other, SetAlarm(alarm, is_active=False))
    (written,) = apply_to(other, Put(b"k", b"v"))
    assert not isinstance(written, Refused)
