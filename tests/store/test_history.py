"""Ranges, transactions, leases, history and compaction of both backends, against a model in plain Python."""

from __future__ import annotations

import operator
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from raftkv.operations import (
    Compare,
    CompareTarget,
    DeleteOperation,
    DeleteResult,
    Event,
    EventKind,
    KeySpan,
    Lease,
    PutOperation,
    PutResult,
    RangeQuery,
    RangeResult,
    RefusalKind,
    Refused,
    Relation,
    SortOrder,
    SortTarget,
    Transaction,
    TransactionResult,
    is_read_only,
)
from raftkv.store.applier import Compacted, Granted
from raftkv.store.commands import (
    Compact,
    Delete,
    GrantLease,
    Put,
    RevokeLease,
    Transact,
    decode_commands,
    encode_commands,
    encoded_size_hint,
)
from raftkv.store.lmdb_backend import LmdbBackend
from raftkv.store.machine import CommittedEntry, Machine
from raftkv.store.memory_backend import MemoryBackend
from raftkv.types import ClusterId, Index, KeyValue, Revision, Term, Written
from tests.simulation.disk import VirtualDisk

CLUSTER = ClusterId("0123456789abcdef")

# Long ones share their first 500 bytes, which LMDB's keys end near.
NAMES = [b"a", b"a\0", b"ab", b"b", b"\xff", b"\xff\xff", b"x" * 500, b"x" * 500 + b"1", b"x" * 700, b"y"]
names = st.sampled_from(NAMES)
values = st.binary(max_size=4)
lease_ids = st.integers(1, 3)


@st.composite
def spans(draw):
    kind = draw(st.sampled_from(["single", "range", "from", "prefix"]))
    name = draw(names)
    if kind == "single":
        return KeySpan.single(name)
    if kind == "prefix":
        return KeySpan.prefix(name)
    return KeySpan(name, None if kind == "from" else draw(names))


bounds = st.sampled_from([0, 0, 0, 3, 6, 12])
queries = st.builds(
    RangeQuery,
    spans(),
    limit=st.sampled_from([0, 0, 1, 2, 5]),
    revision=st.sampled_from([0, 0, 0, 2, 5, 9, 14]),
    target=st.sampled_from(SortTarget),
    order=st.sampled_from(SortOrder),
    keys_only=st.booleans(),
    count_only=st.booleans(),
    min_mod_revision=bounds,
    max_mod_revision=bounds,
    min_create_revision=bounds,
    max_create_revision=bounds,
)
puts = st.builds(
    PutOperation,
    names,
    value=st.one_of(values, st.none()),
    lease=st.one_of(st.just(0), lease_ids, st.none()),
    wants_previous=st.booleans(),
)
deletes = st.builds(DeleteOperation, spans(), wants_previous=st.booleans())


@st.composite
def compares(draw):
    target = draw(st.sampled_from(CompareTarget))
    operand = draw(values) if target is CompareTarget.VALUE else draw(st.integers(0, 8))
    return Compare(draw(spans()), target, draw(st.sampled_from(Relation)), operand)


def branches(operations):
    return st.lists(operations, max_size=3).map(tuple)


def transactions_of(operations):
    return st.builds(
        Transaction, st.lists(compares(), max_size=2).map(tuple), branches(operations), branches(operations)
    )


plain = st.one_of(queries, puts, deletes)
transactions = transactions_of(st.one_of(plain, transactions_of(plain)))


class Refusal(Exception):
    pass


class Model:
    """The whole past, as one dictionary a revision."""

    def __init__(self) -> None:
        self.past: list[dict[bytes, KeyValue]] = [{}, {}]
        self.events: list[tuple[int, Event]] = []
        self.leases: dict[int, int] = {}
        self.compacted = 0

    @property
    def revision(self) -> int:
        return len(self.past) - 1

    def command(self, command):
        before = (self.past[-1], list(self.events), self.revision)
        self.draft = dict(self.past[-1])
        self.changed = False
        try:
            result = self._command(command)
        except Refusal as refusal:
            self.events = before[1]
            return refusal.args[0]
        if self.changed:
            self.past.append(self.draft)
        return replace(result, revision=self.revision) if isinstance(result, TransactionResult) else result

    def _command(self, command):
        if isinstance(command, Put):
            if command.lease and command.lease not in self.leases:
                raise Refusal(RefusalKind.LEASE_NOT_FOUND)
            self.put(PutOperation(command.key, command.value, command.lease))
            return self.revision + 1
        if isinstance(command, Delete):
            return self.delete(KeySpan.single(command.key))[0]
        if isinstance(command, Transact):
            path = self.choose(command.transaction)
            self.check(path)
            return self.execute(path)
        if isinstance(command, Compact):
            if command.revision > self.revision:
                raise Refusal(RefusalKind.FUTURE_REVISION)
            if command.revision <= self.compacted:
                raise Refusal(RefusalKind.COMPACTED)
            self.compacted = command.revision
            return None
        if isinstance(command, GrantLease):
            if command.lease_id in self.leases:
                raise Refusal(RefusalKind.LEASE_EXISTS)
            self.leases[command.lease_id] = command.seconds
            return None
        if command.lease_id not in self.leases:
            raise Refusal(RefusalKind.LEASE_NOT_FOUND)
        del self.leases[command.lease_id]
        attached = sorted(key for key, item in self.draft.items() if item.lease == command.lease_id)
        for key in attached:
            self.delete(KeySpan.single(key))
        return len(attached)

    def choose(self, transaction):
        state = self.past[-1]
        holds = all(self.holds(compare, state) for compare in transaction.compares)
        steps = transaction.success if holds else transaction.failure
        return holds, [self.choose(step) if isinstance(step, Transaction) else step for step in steps]

    def holds(self, compare, state):
        relation = {"equal": operator.eq, "greater": operator.gt, "less": operator.lt, "not equal": operator.ne}[
            compare.relation.value
        ]
        items = [item for key, item in state.items() if key in compare.span]
        if compare.target is CompareTarget.VALUE:
            return bool(items) and all(relation(item.value, compare.operand) for item in items)
        attribute = {"create": "create_revision", "mod": "mod_revision"}.get(compare.target.value, compare.target.value)
        return (
            all(relation(getattr(item, attribute), compare.operand) for item in items)
            if items
            else relation(0, compare.operand)
        )

    def check(self, path):
        self.check_puts(path)
        self.check_ranges(path)

    def check_ranges(self, path):
        for step in path[1]:
            if isinstance(step, tuple):
                self.check_ranges(step)
            elif isinstance(step, RangeQuery):
                self.check_revision(step.revision)

    def check_puts(self, path):
        for step in path[1]:
            if isinstance(step, tuple):
                self.check_puts(step)
            elif isinstance(step, PutOperation):
                if (step.value is None or step.lease is None) and step.key not in self.past[-1]:
                    raise Refusal(RefusalKind.KEY_NOT_FOUND)
                if step.lease and step.lease not in self.leases:
                    raise Refusal(RefusalKind.LEASE_NOT_FOUND)

    def check_revision(self, revision):
        if revision > self.revision:
            raise Refusal(RefusalKind.FUTURE_REVISION)
        if 0 < revision < self.compacted:
            raise Refusal(RefusalKind.COMPACTED)

    def execute(self, path):
        results = []
        for step in path[1]:
            if isinstance(step, tuple):
                results.append(self.execute(step))
            elif isinstance(step, RangeQuery):
                state = self.past[step.revision] if step.revision else self.draft
                results.append(select(state, step))
            elif isinstance(step, PutOperation):
                results.append(PutResult(self.put(step) if step.wants_previous else self.put(step) and None))
            else:
                count, previous = self.delete(step.span)
                results.append(DeleteResult(count, previous if step.wants_previous else ()))
        return TransactionResult(path[0], tuple(results), Revision(0))

    def put(self, operation):
        before = self.draft.get(operation.key)
        if before is None and (operation.value is None or operation.lease is None):
            raise Refusal("deleted before in the same transaction")
        revision = self.revision + 1
        item = KeyValue(
            operation.key,
            before.value if operation.value is None else operation.value,
            before.create_revision if before else revision,
            revision,
            before.version + 1 if before else 1,
            before.lease if operation.lease is None else operation.lease,
        )
        self.draft[operation.key] = item
        self.changed = True
        self.events.append((revision, Event(EventKind.PUT, item)))
        return before

    def delete(self, span):
        found = [self.draft[key] for key in sorted(self.draft) if key in span]
        for item in found:
            del self.draft[item.key]
            self.changed = True
            tombstone = KeyValue(item.key, b"", Revision(0), Revision(self.revision + 1), 0)
            self.events.append((self.revision + 1, Event(EventKind.DELETE, tombstone)))
        return len(found), tuple(found)


def select(state, query):
    inside = [state[key] for key in sorted(state) if key in query.span]
    if query.count_only:
        return RangeResult((), len(inside), more=False)
    kept = [
        item
        for item in inside
        if item.mod_revision >= query.min_mod_revision
        and item.create_revision >= query.min_create_revision
        and item.mod_revision <= (query.max_mod_revision or 10**9)
        and item.create_revision <= (query.max_create_revision or 10**9)
    ]
    attribute = {"create": "create_revision", "mod": "mod_revision"}.get(query.target.value, query.target.value)
    if query.target is not SortTarget.KEY or query.order is SortOrder.DESCEND:
        kept.sort(key=lambda item: getattr(item, attribute), reverse=query.order is SortOrder.DESCEND)
    more = 0 < query.limit < len(kept)
    kept = kept[: query.limit] if more else kept
    if query.keys_only:
        kept = [replace(item, value=b"") for item in kept]
    return RangeResult(tuple(kept), len(inside), more)


def without_duplicates(transaction):
    """Whether no put of a branch meets another change of its key, as the front-end demands."""

    def changed(operations, spans_so_far):
        for operation in operations:
            if isinstance(operation, PutOperation):
                mine = [KeySpan.single(operation.key)]
            elif isinstance(operation, DeleteOperation):
                mine = [operation.span]
            elif isinstance(operation, Transaction):
                first, second = [], []
                if not changed(operation.success, first) or not changed(operation.failure, second):
                    return False
                mine = first + second
                if any(a.overlaps(b) for a in mine for b in spans_so_far):
                    return False
            else:
                continue
            if any(a.overlaps(b) for a in mine for b in spans_so_far):
                return False
            spans_so_far.extend(mine)
        return True

    return changed(transaction.success, []) and changed(transaction.failure, [])


class StoreAgainstModel(RuleBasedStateMachine):
    """Both backends do what the model does, whatever is done to them, through restarts and purges."""

    @initialize()
    def open(self):
        self.directory = tempfile.TemporaryDirectory()
        self.model = Model()
        self.machines = {
            "lmdb": Machine(LmdbBackend(Path(self.directory.name), 1_048_576), CLUSTER),
            "memory": Machine(MemoryBackend(VirtualDisk().root), CLUSTER),
        }
        self.index = 0
        self.taken: list[tuple[int, Event]] = []

    def teardown(self):
        for machine in getattr(self, "machines", {}).values():
            machine.close()
        if hasattr(self, "directory"):
            self.directory.cleanup()

    def apply(self, command):
        self.index += 1
        assert decode_commands(encode_commands([command])) == [command]
        assert len(encode_commands([command])) <= encoded_size_hint(command)
        entry = CommittedEntry(Index(self.index), Term(1), encode_commands([command]))
        results = [machine.apply([entry])[0][0] for machine in self.machines.values()]
        assert results[0] == results[1]
        return results[0], self.model.command(command)

    def check(self, result, expected):
        if isinstance(expected, RefusalKind):
            assert isinstance(result, Refused)
            assert result.kind is expected
        return not isinstance(expected, RefusalKind)

    @rule(key=names, value=values, lease=st.one_of(st.just(0), lease_ids))
    def put(self, key, value, lease):
        result, expected = self.apply(Put(key, value, lease))
        if self.check(result, expected):
            assert (result.revision, result.current.version) == (expected, self.model.past[-1][key].version)

    @rule(key=names)
    def delete(self, key):
        result, expected = self.apply(Delete(key))
        assert result == Written(Revision(self.model.revision), None, expected)

    @rule(transaction=transactions.filter(without_duplicates))
    def transact(self, transaction):
        if is_read_only(transaction):
            expected = self.model.command(Transact(transaction))
            for machine in self.machines.values():
                result = machine.evaluate(transaction)
                if self.check(result, expected):
                    assert nested_revisions_aside(result) == nested_revisions_aside(expected)
            return
        result, expected = self.apply(Transact(transaction))
        if self.check(result, expected):
            assert nested_revisions_aside(result) == nested_revisions_aside(expected)

    @rule(query=queries)
    def range(self, query):
        for machine in self.machines.values():
            result = machine.range(query)
            if query.revision > self.model.revision:
                assert result.kind is RefusalKind.FUTURE_REVISION
            elif 0 < query.revision < self.model.compacted:
                assert result.kind is RefusalKind.COMPACTED
            else:
                assert result == select(self.model.past[query.revision or -1], query)

    @rule(back=st.integers(-1, 6))
    def compact(self, back):
        result, expected = self.apply(Compact(Revision(max(0, self.model.revision - back))))
        if self.check(result, expected):
            assert result == Compacted(Revision(self.model.revision))

    @rule(lease_id=lease_ids)
    def grant(self, lease_id):
        result, expected = self.apply(GrantLease(lease_id, 60 + lease_id))
        if self.check(result, expected):
            assert result == Granted(Revision(self.model.revision))

    @rule(lease_id=lease_ids)
    def revoke(self, lease_id):
        result, expected = self.apply(RevokeLease(lease_id))
        if self.check(result, expected):
            assert result == Written(Revision(self.model.revision), None, expected)

    @rule(which=st.sampled_from(["lmdb", "memory"]))
    def purge(self, which):
        self.machines[which].purge()

    @rule()
    def reopen(self):
        self.machines["lmdb"].close()
        self.machines["lmdb"] = Machine(LmdbBackend(Path(self.directory.name), 1_048_576), CLUSTER)

    @invariant()
    def everything_that_can_be_read_is_what_it_was(self):
        model = self.model
        everything = KeySpan(b"", None)
        first = max(model.compacted, 1)
        for machine in self.machines.values():
            assert (machine.revision, machine.compacted_revision) == (model.revision, model.compacted)
            for revision in {first, (first + model.revision) // 2, model.revision}:
                assert machine.range(RangeQuery(everything, revision=revision)).items == tuple(
                    model.past[revision][key] for key in sorted(model.past[revision])
                )
            kept = [event for event in model.events if event[0] > model.compacted]
            assert machine.events(model.compacted + 1, model.revision, 10**6) == kept
            assert machine.leases() == [Lease(number, model.leases[number]) for number in sorted(model.leases)]
            for lease_id in model.leases:
                attached = sorted(key for key, item in model.past[-1].items() if item.lease == lease_id)
                assert machine.attached_keys(lease_id) == attached
        hashes = {machine.state_hash() for machine in self.machines.values()}
        assert len(hashes) == 1


def nested_revisions_aside(result):
    """A nested result has the revision that was reached by then, which the model does not know."""
    results = tuple(
        nested_revisions_aside(replace(item, revision=Revision(0))) if isinstance(item, TransactionResult) else item
        for item in result.results
    )
    return replace(result, results=results)


TestStoreAgainstModel = StoreAgainstModel.TestCase
TestStoreAgainstModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_purging_leaves_no_trace_of_what_cannot_be_read(tmp_path):
    machine = Machine(LmdbBackend(tmp_path, 1_048_576), CLUSTER)
    index = 0

    def apply(command):
        nonlocal index
        index += 1
        machine.apply([CommittedEntry(Index(index), Term(1), encode_commands([command]))])

    for round_ in range(700):
        apply(Put(b"hot", b"%d" % round_))
        apply(Put(b"gone", b"x"))
        apply(Delete(b"gone"))
    apply(Compact(machine.revision))
    calls = 1
    while machine.purge():
        calls += 1
    assert calls > 5, "a long purge is done a little at a time"
    assert [event.item.key for _revision, event in machine.events(1, machine.revision, 10**6)] == [b"hot", b"gone"]
    apply(Put(b"hot", b"last"))
    apply(Compact(machine.revision))
    while machine.purge():
        pass
    assert [event.item.value for _revision, event in machine.events(1, machine.revision, 10**6)] == [b"last"]
    machine.close()


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"a", b"b"), (b"a\xff", b"b"), (b"\xff", None), (b"\xff\xff", None), (b"", None)]
)
def test_the_span_of_a_prefix(prefix, end):
    assert KeySpan.prefix(prefix) == KeySpan(prefix, end)
