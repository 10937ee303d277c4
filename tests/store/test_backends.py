"""Both backends do the same with several keys at once as with each by itself."""

from __future__ import annotations

import random

import pytest

from raftkv.store.backend import Space
from raftkv.store.lmdb_backend import LmdbBackend
from raftkv.store.memory_backend import MemoryBackend
from tests.simulation.disk import VirtualDisk


@pytest.fixture(params=["lmdb", "memory"])
def backend(request, tmp_path):
    backend = LmdbBackend(tmp_path, 16_777_216) if request.param == "lmdb" else MemoryBackend(VirtualDisk().root)
    yield backend
    backend.close()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("space", [Space.ATTACHED, Space.CURRENT])
def test_records_are_as_in_a_dictionary(backend, space, seed):
    print(f"seed {seed}")
    randomness = random.Random(seed)
    expected: dict[bytes, bytes] = {}
    # Of one piece, two, and three, some of which end where a piece ends.
    lengths = [1, 8, 496, 700, 996, 1_200] if space is Space.CURRENT else [1, 8, 40]

    def a_key() -> bytes:
        # Few prefixes, so that long keys share their first pieces.
        end = randomness.choice([b"%03d" % randomness.randrange(400), b"\0" * 3, b"\xff" * 3, b""])
        return b"%d" % randomness.randrange(3) + b"x" * randomness.choice(lengths) + end

    with backend.write() as transaction:
        tree = transaction.tree(space)
        for _ in range(300):
            choice = randomness.randrange(4)
            if choice == 0:
                records = [(a_key(), b"r" * randomness.randrange(300)) for _ in range(randomness.randrange(40))]
                tree.put_all(records)
                expected.update(records)
            elif choice == 1:
                key = randomness.choice(sorted(expected) or [a_key()])
                assert tree.pop(key) == expected.pop(key, None)
                assert tree.pop(key) is None
            elif choice == 2 and space is Space.ATTACHED:
                start, end = sorted([a_key(), a_key()])
                found = tree.pop_first(start, end, randomness.choice([1, 7, 100]))
                within = sorted(item for item in expected.items() if start <= item[0] < end)
                assert found == within[: len(found)]
                assert len(found) in (1, 7, 100) or found == within
                for key, _record in found:
                    del expected[key]
            else:
                start, end = sorted([a_key(), a_key()])
                assert list(tree.scan(b"")) == sorted(expected.items())
                assert list(tree.scan(start)) == sorted(item for item in expected.items() if start <= item[0])
                assert list(tree.scan(start, end)) == sorted(
                    item for item in expected.items() if start <= item[0] < end
                )
                assert tree.get(start) == expected.get(start)
    with backend.read() as view:
        assert list(view.view(space).scan(b"")) == sorted(expected.items())


def test_nothing_is_left_of_long_keys(tmp_path):
    backend = LmdbBackend(tmp_path, 16_777_216)
    keys = [b"x" * length + end for length in (500, 501, 1_000, 1_001, 4_090) for end in (b"", b"a", b"b")]
    empty = backend.used_bytes()
    with backend.write() as transaction:
        tree = transaction.tree(Space.CURRENT)
        tree.put_all([(key, key) for key in keys])
        assert [key for key, _record in tree.scan(b"")] == sorted(keys)
        assert not tree.delete(b"x" * 2_000)
        assert not tree.delete(b"y" * 2_000)
        for key in keys:
            assert tree.delete(key)
            assert not tree.delete(key)
        assert list(tree.scan(b"")) == []
    with backend.write() as transaction:
        # The counter of nodes stays, in a page that was not there before.
        transaction.tree(Space.META).delete(b"next-node")
    assert backend.used_bytes() == empty
    backend.close()


class Counted:
    """A transaction of LMDB whose operations are counted, with the bytes of the records that they read and write."""

    def __init__(self, transaction) -> None:
        self._transaction = transaction
        self.operations = self.bytes = 0

    def __getattr__(self, name):
        def counted(*args, **options):
            self.operations += 1
            found = getattr(self._transaction, name)(*args, **options)
            self.bytes += sum(len(each) for each in (*args[1:], found) if isinstance(each, bytes))
            return found

        return counted


def costs_among(tmp_path, number: int) -> dict[str, tuple[int, int]]:
    """Return what each operation costs in LMDB among so many keys with the same first 600 bytes."""
    directory = tmp_path / str(number)
    directory.mkdir()
    backend = LmdbBackend(directory, 16_777_216)
    keys = [b"k" * 600 + b"%08d" % each for each in range(number)]
    with backend.write() as transaction:
        transaction.tree(Space.CURRENT).put_all([(key, b"record") for key in keys])
    costs = {}
    with backend.write() as transaction:
        counted = Counted(transaction._transaction)
        transaction._transaction = counted
        tree = transaction.tree(Space.CURRENT)
        last = keys[-1]
        actions = {
            "get": lambda: tree.get(last),
            "scan of one": lambda: next(iter(tree.scan(last))),
            "put": lambda: tree.put(last + b"1", b"record"),
            "delete": lambda: tree.delete(last),
        }
        for name, action in actions.items():
            counted.operations = counted.bytes = 0
            action()
            costs[name] = counted.operations, counted.bytes
    backend.close()
    return costs


def test_operations_on_long_keys_do_not_depend_on_how_many_share_their_first_bytes(tmp_path):
    assert costs_among(tmp_path, 2) == costs_among(tmp_path, 5_000)
