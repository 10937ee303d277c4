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
    longest = 700 if space is Space.CURRENT else 40

    def a_key() -> bytes:
        # Few prefixes, so that long keys share their first 500 bytes.
        return (
            b"%d" % randomness.randrange(3)
            + b"x" * randomness.choice([1, 8, longest])
            + b"%03d" % (randomness.randrange(400))
        )

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
                assert list(tree.scan(b"")) == sorted(expected.items())
    with backend.read() as view:
        assert list(view.view(space).scan(b"")) == sorted(expected.items())
