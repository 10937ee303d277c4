"""Ranges, transactions, leases, history and compaction of both backends, against a model in plain Python."""

from __future__ import annotations

import operator
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from raftkv.operations import (
    Alarm,
    AlarmKind,
    Compare,
    CompareTarget,
    DeleteOperation,
    DeleteResult,
    Event,
    EventKind,
    Fence,
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
    may_put,
)
from raftkv.store import allowance, mvcc, steps
from raftkv.store.backend import Space
from raftkv.store.commands import (
    Compact,
    Delete,
    GrantLease,
    Guarded,
    Once,
    Put,
    RevokeLease,
    SetAlarm,
    Transact,
    decode_commands,
    encode_commands,
    encoded_size_hint,
)
from raftkv.store.lmdb_backend import LmdbBackend
from raftkv.store.machine import CommittedEntry, Machine
from raftkv.store.memory_backend import MemoryBackend
from raftkv.store.outcomes import count_outcomes
from raftkv.store.result_codec import decode_result, encode_result
from raftkv.store.results import AlarmSet, AppliedBefore, Compacted, Granted
from raftkv.types import ClusterId, ConditionFailed, Index, KeyValue, Revision, Term, Written
from tests.simulation.disk import VirtualDisk

CLUSTER = ClusterId("0123456789abcdef")

# Long ones share their first 500 bytes, which LMDB's keys end near.
NAMES = [b"a", b"a\0", b"ab", b"b", b"\xff", b"\xff\xff", b"x" * 500, b"x" * 500 + b"1", b"x" * 700, b"y"]
names = st.sampled_from(NAMES)
values = st.binary(max_size=4)
content_types = st.sampled_from(["", "", "a/b", "text/plain; charset=utf-8", "x/" + "y" * 253])
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
    content_type=content_types,
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
        self.time = 0
        self.out_of_space = False

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
        if self.out_of_space and (
            isinstance(command, Put | GrantLease) or (isinstance(command, Transact) and may_put(command.transaction))
        ):
            raise Refusal(RefusalKind.NO_SPACE)
        if isinstance(command, SetAlarm):
            self.out_of_space = command.is_active
            return None
        if isinstance(command, Guarded):
            if command.fence is not None and not self.is_held(command.fence):
                raise Refusal(RefusalKind.FENCED)
            return self._command(command.command)
        if isinstance(command, Put):
            if command.lease and command.lease not in self.leases:
                raise Refusal(RefusalKind.LEASE_NOT_FOUND)
            self.put(PutOperation(command.key, command.value, command.lease, content_type=command.content_type))
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

    def is_held(self, fence):
        keys = [item.create_revision for key, item in self.draft.items() if key.startswith(fence.prefix)]
        return bool(keys) and min(keys) == fence.token

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
            before.content_type if operation.value is None else operation.content_type,
        )
        self.draft[operation.key] = item
        self.changed = True
        self.add_event(EventKind.PUT, item)
        return before

    def delete(self, span):
        found = [self.draft[key] for key in sorted(self.draft) if key in span]
        for item in found:
            del self.draft[item.key]
            self.changed = True
            tombstone = KeyValue(item.key, b"", Revision(0), Revision(self.revision + 1), 0)
            self.add_event(EventKind.DELETE, tombstone)
        return len(found), tuple(found)

    def add_event(self, kind, item):
        revision = self.revision + 1
        earlier = sum(1 for event in self.events if event[0] == revision)
        self.events.append((revision, Event(kind, item, earlier)))


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
        kept = [replace(item, value=b"", content_type="") for item in kept]
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

    @initialize(
        apart=st.sampled_from([1, 2, 3, 16]),
        operations=st.sampled_from([1, 2, 3, 250]),
        most_keys=st.sampled_from([2, 4, 100_000, 100_000]),
    )
    def open(self, apart, operations, most_keys):
        self.patches = [
            patch.object(mvcc, "_VERSIONS_APART", apart),
            patch.object(steps, "OPERATIONS", operations),
            patch.object(allowance, "MAX_VISITED_KEYS", most_keys),
        ]
        self.may_be_too_much = most_keys < 100_000
        for each in self.patches:
            each.start()
        self.directory = tempfile.TemporaryDirectory()
        self.model = Model()
        self.machines = {
            "lmdb": Machine(LmdbBackend(Path(self.directory.name), 1_048_576), CLUSTER),
            "memory": Machine(MemoryBackend(VirtualDisk().root), CLUSTER),
        }
        self.index = 0
        self.kept: dict[bytes, tuple[bytes, int, object]] = {}

    def teardown(self):
        for machine in getattr(self, "machines", {}).values():
            machine.close()
        if hasattr(self, "directory"):
            for each in self.patches:
                each.stop()
            self.directory.cleanup()

    def apply(self, command):
        result = self.apply_alone(command)
        return result, RefusalKind.TOO_MANY_KEYS if self.is_too_much(result) else self.model.command(command)

    def is_too_much(self, result):
        """Whether a transaction visits too many keys; the model does not count them, and changes nothing then."""
        found = isinstance(result, Refused) and result.kind is RefusalKind.TOO_MANY_KEYS
        assert self.may_be_too_much or not found
        return found

    def apply_alone(self, command):
        self.index += 1
        assert decode_commands(encode_commands([command])) == [command]
        assert len(encode_commands([command])) <= encoded_size_hint(command)
        entry = CommittedEntry(Index(self.index), Term(1), encode_commands([command]))
        results = [self.apply_in_steps(machine, entry)[0][0] for machine in self.machines.values()]
        assert results[0] == results[1]
        return results[0]

    @staticmethod
    def apply_in_steps(machine, entry):
        """Apply an entry; whatever is read between the steps is as it was before."""
        everything = RangeQuery(KeySpan(b"", None))
        before = machine.applied_index, machine.revision, machine.range(everything), machine.state_hash()
        running = machine.apply_steps([entry])
        while True:
            try:
                next(running)
            except StopIteration as stop:
                return stop.value
            assert before == (machine.applied_index, machine.revision, machine.range(everything), machine.state_hash())
            assert not machine.purge()

    def check(self, result, expected):
        if isinstance(expected, RefusalKind):
            assert isinstance(result, Refused)
            assert result.kind is expected
        return not isinstance(expected, RefusalKind)

    @rule(key=names, value=values, lease=st.one_of(st.just(0), lease_ids), content_type=content_types)
    def put(self, key, value, lease, content_type):
        result, expected = self.apply(Put(key, value, lease, content_type=content_type))
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
                if not self.is_too_much(result) and self.check(result, expected):
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

    @rule(query=queries, transaction=transactions, key=names, value=values, number=st.integers(1, 3))
    def read_in_steps_between_writes(self, query, transaction, key, value, number):
        reads = [(name, machine.range_steps(query)) for name, machine in self.machines.items()]
        if is_read_only(transaction):
            reads += [(name, machine.evaluate_steps(transaction)) for name, machine in self.machines.items()]
        expected, found = [], []
        for name, read in reads:
            # The same read at once is what the steps must find, whatever is written between them.
            is_range = len(expected) < len(self.machines)
            machine = self.machines[name]
            at_once = machine.range_steps(query) if is_range else machine.evaluate_steps(transaction)
            expected.append(steps.finish(at_once))
            found.append(self.next_step(read))
        for _ in range(number):
            self.apply(Put(key, value))
            self.apply(Delete(key))
            found = [found if isinstance(found, tuple) else self.next_step(found) for found in found]
        results = [found[0] if isinstance(found, tuple) else steps.finish(found) for found in found]
        for result, at_once in zip(results, expected, strict=True):
            # Keys that were written since are visited too, and left out.
            assert result == at_once or self.is_too_much(result)

    @staticmethod
    def next_step(read):
        try:
            next(read)
        except StopIteration as stop:
            return (stop.value,)
        return read

    @rule(back=st.integers(-1, 6))
    def compact(self, back):
        result, expected = self.apply(Compact(Revision(max(0, self.model.revision - back))))
        if self.check(result, expected):
            assert result == Compacted(Revision(self.model.revision))

    @rule(lease_id=lease_ids)
    def grant(self, lease_id):
        result, expected = self.apply(GrantLease(lease_id, 60 + lease_id))
        if self.check(result, expected):
            assert result == Granted(Revision(self.model.revision), Lease(lease_id, 60 + lease_id))

    @rule(lease_id=lease_ids)
    def revoke(self, lease_id):
        result, expected = self.apply(RevokeLease(lease_id))
        if self.check(result, expected):
            assert result == Written(Revision(self.model.revision), None, expected)

    @rule(
        command=st.one_of(
            st.builds(Put, names, values), st.builds(Delete, names), st.builds(Transact, transactions_of(plain))
        ).filter(lambda command: not isinstance(command, Transact) or without_duplicates(command.transaction)),
        fence=st.none() | st.builds(Fence, st.sampled_from([b"", b"a", b"x", b"zzz"]), st.integers(0, 8)),
        key=st.sampled_from([b"1", b"2", b"3", b"4", b"5", b"6"]),
        fingerprint=st.sampled_from([b"f" * 16, b"f" * 16, b"g" * 16]),
        passed=st.integers(-5, 5),
        keep=st.integers(1, 20),
    )
    def guarded(self, command, fence, key, fingerprint, passed, keep):
        now = max(0, self.model.time + passed)
        self.model.time = max(self.model.time, now)
        earlier = self.kept.get(key)
        if earlier is not None and earlier[1] > self.model.time:
            result = self.apply_alone(Guarded(command, fence, Once(key, fingerprint, now, keep)))
            assert self.machines["lmdb"].revision == self.model.revision
            if earlier[0] == fingerprint:
                assert result == earlier[2]
            else:
                assert result.kind is RefusalKind.KEY_REUSED
            return
        result, expected = self.apply(Guarded(command, fence, Once(key, fingerprint, now, keep)))
        self.check(result, expected)
        if not (isinstance(result, Refused) and result.kind is RefusalKind.NO_SPACE):
            self.kept[key] = (fingerprint, self.model.time + keep, result)

    @rule(command=st.builds(Put, names, values), prefix=st.sampled_from([b"", b"a", b"x"]), token=st.integers(0, 30))
    def fenced(self, command, prefix, token):
        result, expected = self.apply(Guarded(command, Fence(prefix, token), None))
        if self.check(result, expected):
            assert result.revision == expected

    @rule(is_active=st.booleans())
    def set_alarm(self, is_active):
        alarm = Alarm(AlarmKind.NO_SPACE, "n1")
        result, _expected = self.apply(SetAlarm(alarm, is_active))
        assert result == AlarmSet(Revision(self.model.revision))
        assert [machine.alarms() for machine in self.machines.values()] == [[alarm] if is_active else []] * 2

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
            # A watch may begin at the compacted revision itself, so all events of that one are there too.
            kept = [event for event in model.events if event[0] >= model.compacted]
            assert machine.events(model.compacted, model.revision, 10**6) == kept
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


def what_is_left(machine):
    with machine._backend.read() as view:
        return {space: len(list(view.view(space).scan(b""))) for space in (Space.HISTORY, Space.VERSIONS, Space.GRAVES)}


def test_purge_keeps_every_event_of_the_compacted_revision(machine):
    put = Transaction((), (PutOperation(b"short", b"v"),), ())
    delete = Transaction((), (DeleteOperation(KeySpan.single(b"short")),), ())
    apply_to(machine, Transact(Transaction((), (put, delete), ())))
    revision = machine.revision
    events = machine.events(revision, revision, 10)
    assert [event.kind for _revision, event in events] == [EventKind.PUT, EventKind.DELETE]
    apply_to(machine, Compact(revision))
    while machine.purge():
        pass
    assert machine.events(revision, revision, 10) == events
    apply_to(machine, Put(b"other", b"v"))
    apply_to(machine, Compact(machine.revision))
    while machine.purge():
        pass
    assert machine.events(revision, revision, 10) == [], "nothing is left behind"


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
    apply(Delete(b"hot"))
    apply(Put(b"other", b"x"))
    apply(Compact(machine.revision))
    while machine.purge():
        pass
    assert what_is_left(machine) == {Space.HISTORY: 1, Space.VERSIONS: 0, Space.GRAVES: 0}
    machine.close()


@pytest.mark.parametrize("is_opened_again", [False, True])
def test_a_purge_that_is_overtaken_by_the_next_compaction_leaves_nothing_behind(machine, is_opened_again):
    keys = [b"k%03d" % number for number in range(600)]
    apply_to(machine, Transact(Transaction((), tuple(PutOperation(key, b"v") for key in keys), ())))
    apply_to(machine, Transact(Transaction((), (DeleteOperation(KeySpan.prefix(b"k")),), ())))
    apply_to(machine, Compact(machine.revision))
    calls = 1
    while machine.purge() and calls < 4:
        calls += 1
    apply_to(machine, Put(b"other", b"x"))
    if is_opened_again:
        machine = Machine(machine._backend, CLUSTER)
    apply_to(machine, Compact(machine.revision))
    while machine.purge():
        pass
    assert what_is_left(machine) == {Space.HISTORY: 1, Space.VERSIONS: 0, Space.GRAVES: 0}
    assert calls == 4, "the purge was under way"


@pytest.mark.parametrize("ends_deleted", [False, True])
def test_a_read_of_the_past_follows_few_events_of_a_key_with_many(machine, monkeypatch, ends_deleted):
    for life in range(3):
        for version in range(200):
            apply_to(machine, Put(b"hot", b"%d-%d" % (life, version)))
        if life < 2 or ends_deleted:
            apply_to(machine, Delete(b"hot"))
    read = mvcc.HistoryReader._event
    places = []
    monkeypatch.setattr(
        mvcc.HistoryReader, "_event", lambda reader, place: (places.append(place), read(reader, place))[1]
    )
    for revision in range(2, machine.revision + 1):
        places.clear()
        found = machine.range(RangeQuery(KeySpan.single(b"hot"), revision=revision)).items
        life, version = divmod(revision - 2, 201)
        assert [item.value for item in found] == ([b"%d-%d" % (life, version)] if version < 200 else [])
        assert len(places) <= 18


@pytest.fixture
def machine():
    return Machine(MemoryBackend(VirtualDisk().root), CLUSTER)


def apply_to(machine, command):
    entry = CommittedEntry(Index(machine.applied_index + 1), Term(1), encode_commands([command]))
    return machine.apply([entry])[0][0]


def test_results_of_writes_are_forgotten_when_their_time_is_over(machine):
    for number in range(100):
        once = Once(b"key-%d" % number, b"f" * 16, number, 10)
        assert apply_to(machine, Guarded(Put(b"k", b"v"), None, once)).current.version == number + 1
    with machine._backend.read() as view:
        assert count_outcomes(view) <= 11
    late = Once(b"key-95", b"f" * 16, 96, 10)
    assert apply_to(machine, Guarded(Put(b"k", b"v"), None, late)).current.version == 96, "it came before"


def test_a_result_too_large_to_keep_is_remembered_as_applied(machine):
    apply_to(machine, Put(b"large", bytes(100_000)))
    read_and_write = Transaction((), (RangeQuery(KeySpan.single(b"large")), PutOperation(b"k", b"v")), ())
    command = Guarded(Transact(read_and_write), None, Once(b"key", b"f" * 16, 0, 10))
    assert isinstance(apply_to(machine, command), TransactionResult)
    assert apply_to(machine, command) == AppliedBefore(Revision(3))
    assert machine.revision == 3


def test_every_kept_result_survives_its_codec():
    item = KeyValue(b"k", b"v", Revision(2), Revision(3), 2, 7)
    parts = (RangeResult((item,), 4, more=True), PutResult(item), PutResult(None), DeleteResult(1, (item,)))
    nested = TransactionResult(succeeded=False, results=parts, revision=Revision(9))
    for result in (
        Written(Revision(3), item, 0),
        Written(Revision(4), None, 1),
        Compacted(Revision(3)),
        Granted(Revision(3), Lease(7, 60)),
        ConditionFailed(Revision(3), Revision(2)),
        Refused(RefusalKind.FENCED, "no"),
        TransactionResult(succeeded=True, results=(*parts, nested), revision=Revision(9)),
    ):
        assert decode_result(encode_result(result)) == result
    with pytest.raises(TypeError, match="AlarmSet"):
        encode_result(AlarmSet(Revision(3)))


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"a", b"b"), (b"a\xff", b"b"), (b"\xff", None), (b"\xff\xff", None), (b"", None)]
)
def test_the_span_of_a_prefix(prefix, end):
    assert KeySpan.prefix(prefix) == KeySpan(prefix, end)
