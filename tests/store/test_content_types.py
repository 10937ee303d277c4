"""Content types of values in commands, records and hashes; ``test_history`` has them in its model."""

from __future__ import annotations

import msgpack
import pytest

from raftkv.media_types import MAX_CONTENT_TYPE_BYTES, fault_of_media_type
from raftkv.operations import (
    DeleteOperation,
    EventKind,
    KeySpan,
    PutOperation,
    RangeQuery,
    RefusalKind,
    Refused,
    Transaction,
    transaction_bytes,
)
from raftkv.store import allowance, mvcc
from raftkv.store.backend import Space
from raftkv.store.commands import (
    FORMAT_VERSION,
    Compact,
    Guarded,
    MalformedCommand,
    Once,
    Put,
    Transact,
    decode_commands,
    encode_commands,
    encoded_size_hint,
)
from raftkv.store.machine import Machine
from raftkv.store.memory_backend import MemoryBackend
from raftkv.store.mvcc import event_of, summary_of
from raftkv.types import ClusterId, Revision
from tests.simulation.disk import VirtualDisk
from tests.store.entries import apply_to

LONGEST = "x/" + "y" * (MAX_CONTENT_TYPE_BYTES - 2)


@pytest.fixture
def machine():
    return Machine(MemoryBackend(VirtualDisk().root), ClusterId("0123456789abcdef"))


def records_of(machine: Machine, space: Space) -> dict[bytes, bytes]:
    with machine._backend.read() as view:
        return dict(view.view(space).scan(b""))


@pytest.mark.parametrize("content_type", ["", "a/b", LONGEST])
def test_commands_keep_the_content_type(content_type):
    once = Once(b"key", bytes(16), 1, 60)
    commands = [
        Put(b"k", b"v", 7, content_type=content_type),
        Transact(Transaction((), (PutOperation(b"k", b"v", 0, content_type=content_type),), ())),
        Guarded(Put(b"k", b"v", content_type=content_type), None, once),
    ]
    assert decode_commands(encode_commands(commands)) == commands
    for command in commands:
        assert len(encode_commands([command])) <= encoded_size_hint(command)


def test_put_without_content_type_is_encoded_without_the_field(machine):
    transaction = Transaction((), (PutOperation(b"k", b"v"),), ())
    group = msgpack.unpackb(encode_commands([Put(b"k", b"v", 7), Transact(transaction)]), use_list=False)
    assert group == (2, ((1, b"k", b"v", 7, -1), (3, ((), ((1, b"k", b"v", 0, False),), ()))), (0, 1))
    apply_to(machine, Put(b"k", b"v"))
    (record,) = records_of(machine, Space.HISTORY).values()
    assert record == mvcc._EVENT_HEADER.pack(0, 2, 1, 0, bytes(12), 1) + b"kv"


@pytest.mark.parametrize("wrong", ["", "x" * 256, "a/é", b"a/b", 7, None])
def test_put_with_what_the_store_cannot_keep_is_malformed(wrong):
    in_transaction = (3, ((), ((1, b"k", b"v", 0, False, wrong),), ()))
    for command in ((1, b"k", b"v", 0, -1, wrong), in_transaction):
        with pytest.raises(MalformedCommand):
            decode_commands(msgpack.packb((FORMAT_VERSION, [command], (0, 1))))


@pytest.mark.parametrize("count", [2, 3])
def test_put_with_more_fields_is_malformed(count):
    for command in ((1, b"k", b"v", 0, -1), (3, ((), ((1, b"k", b"v", 0, False),), ()))):
        more = ("a/b",) * count
        longer = (*command, *more) if command[0] == 1 else (3, ((), ((*command[1][1][0], *more),), ()))
        with pytest.raises(MalformedCommand):
            decode_commands(msgpack.packb((FORMAT_VERSION, [longer], (0, 1))))


def test_events_have_the_content_type_of_their_revision(machine):
    apply_to(machine, Put(b"k", b"1", content_type="a/b"))
    apply_to(machine, Put(b"k", b"2", content_type=LONGEST))
    apply_to(machine, Put(b"k", b"3"))
    seen = [(item.value, item.content_type) for item in (machine.get_at(b"k", at) for at in (2, 3, 4))]
    assert seen == [(b"1", "a/b"), (b"2", LONGEST), (b"3", "")]
    changes = machine.take_changes()
    assert [event_of(change)[1].item.content_type for change in changes] == ["a/b", LONGEST, ""]
    assert {summary_of(change)[1] for change in changes} == {EventKind.PUT}
    assert [event.item.content_type for _revision, event in machine.events(2, 4, 10)] == ["a/b", LONGEST, ""]


def test_kept_result_of_a_write_has_content_types(machine):
    apply_to(machine, Put(b"k", b"v", content_type="a/b"))
    operations = (
        PutOperation(b"k", b"", wants_previous=True),
        PutOperation(b"l", b"", content_type="c/d"),
        RangeQuery(KeySpan.prefix(b"")),
        DeleteOperation(KeySpan.single(b"l"), wants_previous=True),
    )
    once = Guarded(Transact(Transaction((), operations, ())), None, Once(b"key", bytes(16), 1, 60))
    (first,), (again,) = apply_to(machine, once), apply_to(machine, once)
    assert machine.revision == 3
    put, _, found, deleted = again.results
    assert put.previous.content_type == "a/b"
    assert [item.content_type for item in (*found.items, *deleted.previous)] == ["", "c/d", "c/d"]
    assert again == first


def test_value_that_is_kept_keeps_its_content_type(machine):
    apply_to(machine, Put(b"k", b"v", content_type="a/b"))
    keep = PutOperation(b"k", None, wants_previous=True)
    (result,) = apply_to(machine, Transact(Transaction((), (keep,), ())))
    assert result.results[0].previous.content_type == "a/b"
    assert (machine.get(b"k").value, machine.get(b"k").content_type) == (b"v", "a/b")


@pytest.mark.parametrize("is_compacted", [False, True])
def test_hash_of_the_state_covers_content_types(is_compacted):
    def hash_with(content_type: str, value: bytes = b"v") -> str:
        machine = Machine(MemoryBackend(VirtualDisk().root), ClusterId("0123456789abcdef"))
        apply_to(machine, Put(b"k", value, content_type=content_type))
        if is_compacted:
            apply_to(machine, Put(b"other", b""))
            apply_to(machine, Compact(Revision(3)))
        return machine.state_hash()

    assert len({hash_with("a/b"), hash_with("a/c"), hash_with(""), hash_with("", b"\x03a/bv")}) == 4


def test_damage_of_a_content_type_below_the_compacted_revision_is_found(machine):
    apply_to(machine, Put(b"k", b"\x03a/b", content_type="a/b"), Put(b"other", b""))
    apply_to(machine, Compact(Revision(3)))
    place, record = next(iter(records_of(machine, Space.HISTORY).items()))
    hashes = {machine.state_hash()}
    for damaged in (b"\0" + record[1:], record.replace(b"\x03a/b", b"\x03a/c", 1), record.replace(b"\x03", b"\x02", 1)):
        with machine._backend.write() as transaction:
            transaction.tree(Space.HISTORY).put(place, damaged)
        hashes.add(machine.state_hash())
    assert len(hashes) == 4


def test_limits_count_content_types(machine, monkeypatch):
    put = Transaction((), (PutOperation(b"k", b"v", content_type="a/b"),), ())
    assert transaction_bytes(put) == len(b"kv") + len("a/b")
    apply_to(machine, Put(b"k", b"v" * 10, content_type=LONGEST))
    monkeypatch.setattr(allowance, "MAX_READ_BYTES", 100)
    read = RangeQuery(KeySpan.single(b"k"))
    for transaction in (
        Transaction((), (read, PutOperation(b"o", b"")), ()),
        Transaction((), (PutOperation(b"k", b"", wants_previous=True),), ()),
        Transaction((), (RangeQuery(KeySpan.prefix(b"")), PutOperation(b"o", b"")), ()),
    ):
        (refused,) = apply_to(machine, Transact(transaction))
        assert isinstance(refused, Refused)
        assert refused.kind is RefusalKind.TOO_MANY_KEYS
    apply_to(machine, Put(b"k", b"v" * 10))
    (done,) = apply_to(machine, Transact(Transaction((), (read, PutOperation(b"o", b"")), ())))
    assert done.results[0].items[0].value == b"v" * 10


def test_page_of_a_listing_ends_for_its_content_types_too(machine):
    for number in range(4):
        apply_to(machine, Put(b"%d" % number, b"", content_type=LONGEST))
    page = machine.list(b"", b"", 10, keys_only=False, max_bytes=2 * len(LONGEST))
    assert [item.key for item in page.items] == [b"0", b"1"]
    assert [item.content_type for item in machine.list(b"", b"", 10, keys_only=True, max_bytes=1).items] == [""] * 4


@pytest.mark.parametrize(
    "text",
    [
        "text/plain",
        "text/plain; charset=utf-8",
        "text/plain;charset=utf-8 ; format=flowed",
        'text/plain; charset="utf-8"',
        'a/b; c="quoted \\" and ; more"',
        "application/vnd.a.b+json",
        "a/b;",
        "!#$%&'*+-.^_`|~/x",
        LONGEST[:129],
    ],
)
def test_media_types_of_rfc_9110_are_taken(text):
    assert fault_of_media_type(text) is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "is empty"),
        ("a/b; c=" + "d" * 249, "has 256 characters; at most 255 are allowed"),
        *(
            (wrong, "must be a media type")
            for wrong in (
                *("text", "/", "a/", "/b", "a/b/c", "a b/c", "a/b c", "a/b, c/d", "a/b; c", "a/b; c=", "a/b; =c"),
                *('a/b; c="open', 'a/b; c="\x00"', "a/b\n", "a/b\r\nX: y", "a/é", "a/b; c=é", " a/b", "a/b; c = d"),
                *("a/" + "b" * 128, "a/b" + "; " * 100 + "=", "a/b" + ";  " * 80 + "x"),
                # Blanks at the end do not outlive the way through a header.
                *("a/b; ", "a/b;\t", "a/b; c=d ; "),
            )
        ),
        ("*/*", "must be one media type, not the range of types"),
        ("text/*; q=1", "must be one media type, not the range of types"),
    ],
)
def test_what_is_no_media_type_is_called_so(text, fault):
    assert fault_of_media_type(text).startswith(fault)
