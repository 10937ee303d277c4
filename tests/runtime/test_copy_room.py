"""Copies of the store leave a reserve of the disk free."""

from __future__ import annotations

import errno

import pytest

from raftkv.runtime.copy_room import CopyRoom


def test_copies_leave_the_reserve_free():
    room = CopyRoom(lambda: 1_000, 400)
    with room.holding(600):
        pass
    with (
        pytest.raises(OSError, match="601 bytes and a reserve of 400 are needed, 1000 are free") as refusal,
        room.holding(601),
    ):
        pytest.fail("the copy was begun")
    assert refusal.value.errno == errno.ENOSPC


def test_copies_that_are_made_at_the_same_time_do_not_count_on_the_same_room():
    room = CopyRoom(lambda: 1_000, 400)
    with room.holding(300):
        with room.holding(300):
            pass
        with pytest.raises(OSError, match="are needed"), room.holding(301):
            pytest.fail("the copy was begun")
    with room.holding(600):
        pass


def test_a_copy_that_fails_gives_its_room_back():
    room = CopyRoom(lambda: 1_000, 0)
    with pytest.raises(ZeroDivisionError), room.holding(1_000):
        raise ZeroDivisionError
    with room.holding(1_000):
        pass
