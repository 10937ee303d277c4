"""What one transaction may visit and read, and that one which exceeds it leaves nothing behind."""

from __future__ import annotations

import pytest

from raftkv.operations import (
    MAX_READ_BYTES,
    MAX_VISITED_KEYS,
    Compare,
    CompareTarget,
    DeleteOperation,
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
from raftkv.store import allowance, mvcc, steps
from raftkv.store.commands import Compact, GrantLease, Guarded, Once, Put, Transact, encode_commands
from raftkv.store.machine import CommittedEntry, Machine
from raftkv.store.memory_backend import MemoryBackend
from raftkv.types import ClusterId, Index, Term
from tests.simulation.disk import VirtualDisk
from tests.store.counting import CountingBackend, run_counted
from tests.store.entries import apply_to

CLUSTER = ClusterId("0123456789abcdef")
KEYS = 40
SPAN = KeySpan(b"k", b"l")
LEASE = 7
MARK = PutOperation(b"mark", b"1")
COUNT = RangeQuery(SPAN, count_only=True)


@pytest.fixture
def backend(backend):
    return CountingBackend(backend)


@pytest.fixture
def machine(backend, monkeypatch):
    monkeypatch.setattr(steps, "OPERATIONS", 7)
    return filled(backend)


def filled(backend):
    machine = Machine(backend, CLUSTER)
    leases = (GrantLease(LEASE, 60), GrantLease(LEASE + 1, 60))
    apply_to(machine, *leases, *(Put(b"k%02d" % number, b"v" * 10, LEASE) for number in range(KEYS)))
    machine.take_changes()
    return machine


@pytest.fixture
def bounds(monkeypatch):
    def set_bounds(keys=MAX_VISITED_KEYS, size=MAX_READ_BYTES):
        monkeypatch.setattr(allowance, "MAX_VISITED_KEYS", keys)
        monkeypatch.setattr(allowance, "MAX_READ_BYTES", size)

    return set_bounds


def transact(machine, *operations):
    return apply_to(machine, Transact(Transaction((), operations, ())))[0]


def nested(*operations):
    return Transaction((), operations, ())


def content(machine):
    """Return everything that commands change, but for the index."""
    spaces = [space for space in mvcc.Space if space is not mvcc.Space.META]
    with machine._backend.read() as view:
        trees = {space: list(view.view(space).scan(b"")) for space in spaces}
    return trees, machine.revision


def assert_refused(machine, result, what):
    assert isinstance(result, Refused)
    assert result.kind is RefusalKind.TOO_MANY_KEYS
    assert what in result.text
    assert machine.take_changes() == []


# Each visits or reads exactly as much as it says, with keys of 3 and values of 10 bytes.
KEY_COSTS = {
    "two ranges": (2 * KEYS, (MARK, RangeQuery(SPAN), RangeQuery(SPAN, keys_only=True))),
    "a range that sees a put": (KEYS + 1, (PutOperation(b"kx", b""), RangeQuery(SPAN))),
    "ranges nested in others": (3 * KEYS, (MARK, RangeQuery(SPAN), nested(RangeQuery(SPAN), nested(RangeQuery(SPAN))))),
    "a limit, behind which keys are only counted": (6 + (KEYS - 6) / 10, (MARK, RangeQuery(SPAN, limit=5))),
    "ten numbers of keys": (KEYS, (MARK, *[COUNT] * 10)),
    "single keys": (3, (MARK, *[RangeQuery(KeySpan.single(b"k01"))] * 3)),
    "a deletion and more": (KEYS, (DeleteOperation(SPAN), MARK)),
    "two deletions": (10, (DeleteOperation(KeySpan.prefix(b"k0")), DeleteOperation(KeySpan.single(b"z")))),
    "a deletion that returns keys": (KEYS, (DeleteOperation(SPAN, wants_previous=True),)),
    "puts that return keys": (2, tuple(PutOperation(b"k0%d" % n, b"", wants_previous=True) for n in range(2))),
    "puts that keep values": (2, tuple(PutOperation(b"k0%d" % n, None) for n in range(2))),
    "a deletion, and a limit that reaches behind what it took": (
        10 + 6 + (KEYS - 16) / 10,
        (DeleteOperation(KeySpan.prefix(b"k0")), RangeQuery(SPAN, limit=5)),
    ),
    "the past": (KEYS, (PutOperation(b"kx", b""), DeleteOperation(KeySpan.single(b"kz")), RangeQuery(SPAN))),
}
BYTE_COSTS = {
    "two ranges": (26 * KEYS, (MARK, RangeQuery(SPAN), RangeQuery(SPAN))),
    "keys without values": (3 * KEYS, (MARK, RangeQuery(SPAN, keys_only=True))),
    "a limit": (13 * 6, (MARK, RangeQuery(SPAN, limit=5))),
    "a range that is sorted": (13 * KEYS, (MARK, RangeQuery(SPAN, target=SortTarget.MOD, order=SortOrder.DESCEND))),
    "a sorted limit": (3 * KEYS + 10, (MARK, RangeQuery(SPAN, limit=1, target=SortTarget.MOD))),
    "values that are sorted": (13 * KEYS, (MARK, RangeQuery(SPAN, limit=1, target=SortTarget.VALUE))),
    "one key, over and over": (13 * 9, (MARK, *[RangeQuery(KeySpan.single(b"k01"))] * 9)),
    "a long value that was just put": (902, (PutOperation(b"z", b"x" * 450), *[RangeQuery(KeySpan.single(b"z"))] * 2)),
    "a deletion that returns keys": (13 * KEYS, (DeleteOperation(SPAN, wants_previous=True),)),
    "a deletion that does not": (3 * KEYS, (DeleteOperation(SPAN), MARK)),
    "puts that return keys": (26, tuple(PutOperation(b"k0%d" % n, b"", wants_previous=True) for n in range(2))),
}


@pytest.mark.parametrize("name", KEY_COSTS)
def test_transaction_visits_as_many_keys_as_it_may_and_no_more(machine, bounds, name):
    cost, operations = KEY_COSTS[name]
    if name == "the past":
        operations = (*operations[:2], RangeQuery(SPAN, revision=machine.revision))
        cost += 1  # The key that is not there yet is visited as well.
    before = content(machine)
    bounds(keys=cost - 0.1)
    assert_refused(machine, transact(machine, *operations), f"visits more than {cost - 0.1} keys")
    assert content(machine) == before
    bounds(keys=cost)
    assert not isinstance(transact(machine, *operations), Refused)


@pytest.mark.parametrize("name", BYTE_COSTS)
def test_transaction_reads_as_many_bytes_as_it_may_and_no_more(machine, bounds, name):
    cost, operations = BYTE_COSTS[name]
    before = content(machine)
    bounds(size=cost - 1)
    assert_refused(machine, transact(machine, *operations), f"reads more than {cost - 1} bytes")
    assert content(machine) == before
    bounds(size=cost)
    assert not isinstance(transact(machine, *operations), Refused)


CHANGES = {
    "new keys": (PutOperation(b"a", b"1", LEASE), PutOperation(b"z", b"2")),
    "keys that were deleted": (PutOperation(b"gone", b"1", LEASE), PutOperation(b"twice", b"1")),
    "keys of another lease": (
        PutOperation(b"k01", b"1", LEASE + 1),
        PutOperation(b"k02", b"1"),
        PutOperation(b"k03", b"1", None),
    ),
    "many versions": tuple(nested(PutOperation(b"k01", b"%d" % number)) for number in range(40)),
    "deletions": (DeleteOperation(KeySpan.prefix(b"k1")), DeleteOperation(KeySpan.single(b"twice"))),
    "put, deleted and put": tuple(
        nested(each)
        for key in (b"k05", b"gone", b"new")
        for each in (PutOperation(key, b"1", LEASE + 1), DeleteOperation(KeySpan.single(key)), PutOperation(key, b"2"))
    ),
    "deleted and put": (nested(DeleteOperation(SPAN)), nested(PutOperation(b"k05", b"1")), PutOperation(b"a", b"")),
}


@pytest.mark.parametrize("is_purged", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_everything_is_undone_when_the_last_operation_is_too_much(machine, bounds, name, is_purged, monkeypatch):
    monkeypatch.setattr(mvcc, "_VERSIONS_APART", 3)
    for key in (b"gone", b"twice", b"twice"):
        apply_to(machine, Put(key, b"1", LEASE))
        transact(machine, DeleteOperation(KeySpan.single(key)))
    if is_purged:
        apply_to(machine, Compact(machine.revision))
        while machine.purge():
            pass
    apply_to(machine, Put(b"k05", b"later"))
    machine.take_changes()
    before = content(machine)
    long = (PutOperation(b"zz", b"v" * 2000), RangeQuery(KeySpan.single(b"zz")))
    refused = Transact(Transaction((), (*CHANGES[name], *long), ()))
    bounds(size=2000)
    first, result, last = apply_to(machine, Put(b"before", b"1"), refused, Put(b"after", b"1"))
    assert isinstance(result, Refused)
    assert (first.revision, last.revision) == (before[1] + 1, before[1] + 2)
    # A machine that never saw it, with the same around it, has the same.
    assert [mvcc.event_of(change)[1].item.key for change in machine.take_changes()] == [b"before", b"after"]
    now, revision = content(machine)
    assert revision == before[1] + 2
    assert {name for name in now if now[name] != before[0][name]} == {mvcc.Space.CURRENT, mvcc.Space.HISTORY}
    live, events = now[mvcc.Space.CURRENT], now[mvcc.Space.HISTORY]
    assert [record for record in live if record[0] not in (b"before", b"after")] == before[0][mvcc.Space.CURRENT]
    assert events[:-2] == before[0][mvcc.Space.HISTORY]


def test_undoing_takes_bounded_steps(backend, machine, bounds):
    bounds(keys=2 * KEYS - 1)
    operations = (DeleteOperation(SPAN, wants_previous=True), *[PutOperation(b"k%02d" % n, b"") for n in range(KEYS)])
    entry = CommittedEntry(
        Index(machine.applied_index + 1),
        Term(1),
        encode_commands([Transact(nested(*(nested(each) for each in (*operations, RangeQuery(SPAN)))))]),
    )
    ((result,),), most = run_counted(backend, machine.apply_steps([entry]))
    assert isinstance(result, Refused)
    assert most <= 4 * steps.OPERATIONS


def test_compares_count_together_with_the_rest(machine, bounds):
    compare = Compare(SPAN, CompareTarget.MOD, Relation.GREATER, 0)
    by_value = Compare(SPAN, CompareTarget.VALUE, Relation.LESS, b"z")
    transaction = Transact(Transaction((compare, by_value), (MARK, RangeQuery(SPAN)), ()))
    for keys, size in ((3 * KEYS - 1, MAX_READ_BYTES), (3 * KEYS, (3 + 13 + 13) * KEYS - 1)):
        bounds(keys, size)
        assert_refused(machine, apply_to(machine, transaction)[0], "the transaction")
    bounds(3 * KEYS, (3 + 13 + 13) * KEYS)
    assert apply_to(machine, transaction)[0].succeeded


@pytest.mark.parametrize("operation", [DeleteOperation(SPAN), nested(nested(DeleteOperation(SPAN)))])
def test_deletion_alone_has_no_bound(machine, bounds, operation):
    bounds(keys=1, size=1)
    assert not isinstance(transact(machine, operation), Refused)
    assert machine.range(COUNT).count == 0


def test_reads_have_the_same_bound_but_for_one_range_alone(machine, bounds):
    bounds(keys=KEYS - 1, size=13 * KEYS - 1)
    assert machine.range(RangeQuery(SPAN)).count == KEYS
    assert machine.evaluate(nested(RangeQuery(SPAN))).results[0].count == KEYS
    assert machine.evaluate(nested(nested(RangeQuery(SPAN)))).results[0].results[0].count == KEYS
    for keys, size in ((2 * KEYS - 1, MAX_READ_BYTES), (2 * KEYS, 26 * KEYS - 1)):
        bounds(keys, size)
        assert_refused(machine, machine.evaluate(nested(RangeQuery(SPAN), nested(RangeQuery(SPAN)))), "the transaction")
    bounds(2 * KEYS, 26 * KEYS)
    assert machine.evaluate(nested(RangeQuery(SPAN), nested(RangeQuery(SPAN)))).succeeded


def test_refusal_is_kept_under_an_idempotency_key(machine, bounds):
    command = Guarded(Transact(nested(MARK, RangeQuery(SPAN))), None, Once(b"once", b"f" * 16, 1, 60))
    bounds(keys=KEYS - 1)
    (refused,) = apply_to(machine, command)
    bounds()
    assert apply_to(machine, command) == [refused]
    assert machine.get(MARK.key) is None


@pytest.mark.parametrize("query", [{}, {"keys_only": True}, {"count_only": True}, {"limit": 2}])
@pytest.mark.parametrize("is_filtered", [False, True])
def test_members_decide_alike_however_much_they_have_removed(backend, bounds, monkeypatch, query, is_filtered):
    monkeypatch.setattr(steps, "OPERATIONS", 5)
    machines = [filled(backend), filled(MemoryBackend(VirtualDisk().root))]
    for machine in machines:
        transact(machine, DeleteOperation(KeySpan.prefix(b"k0")))
        transact(machine, DeleteOperation(KeySpan.prefix(b"k2")))
        apply_to(machine, Compact(machine.revision), Put(b"k15", b"w" * 30))
        transact(machine, DeleteOperation(KeySpan.prefix(b"k35")))
    while machines[0].purge():
        pass
    at = machines[0].revision - 1
    filters = {"min_mod_revision": 3} if is_filtered else {}
    transaction = (MARK, RangeQuery(SPAN, revision=at, **query, **filters))
    outcomes = set()
    tight = [(keys, size) for keys in range(20, 45) for size in range(0, 300, 20)]
    wide = [(keys, MAX_READ_BYTES) for keys in range(45)] + [(KEYS, size) for size in range(0, 300, 3)]
    for keys, size in wide + tight:
        bounds(keys, size)
        results = [transact(machine, *transaction) for machine in machines]
        assert results[0] == results[1]
        outcomes.add(isinstance(results[0], Refused))
    assert outcomes == {False, True}


def test_changes_that_a_read_of_the_past_goes_through_count(machine, bounds):
    at = machine.revision
    for number in range(1, 9):
        apply_to(machine, Put(b"k00", b"v" * 1000 * number))
    machine.take_changes()
    before = content(machine)
    reads = [
        RangeQuery(SPAN, revision=at, count_only=True),
        RangeQuery(KeySpan.single(b"k00"), revision=at, keys_only=True),
    ]
    bounds(size=4000)
    for read in reads:
        assert_refused(machine, transact(machine, MARK, read), "reads more than 4000 bytes")
    assert content(machine) == before
    bounds(size=100_000)
    for read in reads:
        assert not isinstance(transact(machine, MARK, read), Refused)


def test_keys_that_are_not_there_count(machine, bounds):
    reads = [RangeQuery(KeySpan.single(b"k00"), revision=1), RangeQuery(KeySpan.single(b"none"))]
    bounds(keys=1.9)
    assert_refused(machine, transact(machine, MARK, *reads), "visits more than 1.9 keys")
    bounds(keys=2)
    assert not isinstance(transact(machine, MARK, *reads), Refused)


def test_bounds_are_what_the_documentation_says():
    assert (MAX_VISITED_KEYS, MAX_READ_BYTES) == (100_000, 32 * 1024 * 1024)
