"""How the questions to the other members about a peer are shared, and which peer waits for which."""

from __future__ import annotations

import asyncio

import pytest

from raftkv.membership import MemberId
from raftkv.runtime import vouching
from raftkv.runtime.vouching import MAX_EXCHANGES, FairSlots, Vouching

MEMBER, STRANGER = "10.0.0.2", "10.9.9.9"


class Members:
    """Stands for the other members, who answer when they are let."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.may_answer = asyncio.Event()

    async def __call__(self, name: str, _member_id: MemberId) -> list[str]:
        self.asked.append(name)
        await self.may_answer.wait()
        return [f"{name}:2380"]


async def settle() -> None:
    """Let every task go on until it waits for something that does not come by itself."""
    for _ in range(20):
        await asyncio.sleep(0)


def asking(shared: Vouching, name: str, source: str, *, is_known: bool = False) -> asyncio.Task[list[str]]:
    return asyncio.create_task(shared.addresses_of(name, MemberId(2), source, is_known=is_known))


@pytest.fixture(autouse=True)
async def bounded():
    async with asyncio.timeout(20):
        yield


@pytest.mark.parametrize("is_known", [False, True])
async def test_connections_of_one_peer_share_an_exchange_and_its_result(monkeypatch, is_known):
    members = Members()
    shared = Vouching(members)
    askers = [asking(shared, "b", f"10.0.0.{number % 7}", is_known=is_known) for number in range(50)]
    await settle()
    assert members.asked == ["b"]
    askers[0].cancel()
    members.may_answer.set()
    assert await asyncio.gather(*askers[1:]) == [["b:2380"]] * 49
    assert await asking(shared, "b", MEMBER, is_known=is_known) == ["b:2380"]
    assert members.asked == ["b"]
    shared._results.clear()
    monkeypatch.setattr(vouching, "FOUND_SECONDS", 0.0)
    await asking(shared, "b", MEMBER, is_known=is_known)
    await asking(shared, "b", MEMBER, is_known=is_known)
    assert members.asked == ["b"] * 3


async def test_strangers_of_one_address_hold_up_no_peer_at_another():
    members = Members()
    shared = Vouching(members)
    strangers = [asking(shared, f"s{number}", STRANGER) for number in range(60)]
    await settle()
    assert len(members.asked) < MAX_EXCHANGES
    asking(shared, "b", MEMBER)
    await settle()
    assert members.asked[-1] == "b"
    members.may_answer.set()
    await asyncio.gather(*strangers)
    assert len(members.asked) == 61


async def test_peer_waits_for_one_exchange_when_strangers_of_several_addresses_have_taken_all():
    shared = Vouching(Members())
    slots = shared._slots
    for number in range(MAX_EXCHANGES):
        await slots.acquire(f"stranger {number % 2}")
    strangers = [asyncio.create_task(slots.acquire(f"stranger {number % 2}")) for number in range(60)]
    await settle()
    peer = asyncio.create_task(slots.acquire(MEMBER))
    await settle()
    assert not peer.done()
    slots.release("stranger 0")
    await peer
    assert not any(each.done() for each in strangers)
    for each in strangers:
        each.cancel()


async def test_known_member_waits_for_nobody():
    members = Members()
    shared = Vouching(members)
    strangers = [asking(shared, f"s{number}", f"10.9.9.{number}") for number in range(60)]
    await settle()
    assert len(members.asked) == MAX_EXCHANGES
    member = asking(shared, "b", STRANGER, is_known=True)
    await settle()
    assert members.asked[-1] == "b"
    members.may_answer.set()
    await asyncio.gather(member, *strangers)


async def test_slots_of_connections_that_were_closed_are_given_back():
    slots = FairSlots(2, 1)
    await slots.acquire("a")
    await slots.acquire("b")
    waiting = [asyncio.create_task(slots.acquire(source)) for source in ("a", "c", "c", "b")]
    await settle()
    waiting[1].cancel()
    slots.release("a")
    slots.release("b")
    # Two have slots now, and one of these was closed before it noticed.
    waiting[0].cancel()
    await asyncio.gather(*waiting[:2], return_exceptions=True)
    await asyncio.wait_for(asyncio.gather(*waiting[2:]), 5)
    slots.release("b")
    slots.release("c")
    assert (slots._free, slots._taken.total(), slots._waiting) == (2, 0, {})


async def test_results_are_bounded():
    members = Members()
    members.may_answer.set()
    shared = Vouching(members)
    for number in range(400):
        await asking(shared, f"s{number}", STRANGER)
    assert len(shared._results) == vouching._MAX_RESULTS
    assert not shared._running
