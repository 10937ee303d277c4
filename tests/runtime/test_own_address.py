"""A node that is not where its cluster looks for it."""

from __future__ import annotations

import pytest

from raftkv.errors import CopyOfMember
from raftkv.membership import initial_member_id, initial_membership
from raftkv.runtime.framing import Presence, Rejected
from raftkv.runtime.own_address import OwnAddress
from raftkv.runtime.transport import LocalIdentity
from raftkv.types import ClusterId, Member, NodeId

CLUSTER = ClusterId("0123456789abcdef")
N1, N2 = NodeId("n1"), NodeId("n2")
OWN_ID = initial_member_id(CLUSTER, N1)


class Running:
    """A node, its connections, and who answers at its address."""

    def __init__(self, *names: NodeId) -> None:
        self.membership = initial_membership(CLUSTER, tuple(Member(name, f"{name}.example:2380") for name in names))
        self.is_heard_of = False
        self.answer: Presence | Rejected | str = "Connection refused"
        self.asked: list[str] = []
        identity = LocalIdentity(CLUSTER, OWN_ID, "storage", "http://n1", "elsewhere:1", life="this process")
        self.own_address = OwnAddress(N1, identity, self, self, None, self.ask)

    async def ask(self, address, _probe, _tls):
        self.asked.append(address)
        return self.answer


async def test_process_with_a_copy_of_the_data_ends():
    running = Running(N1, N2)
    running.answer = Presence("n1", OWN_ID, "storage", "another process")
    with pytest.raises(CopyOfMember, match=r"runs at n1.example:2380, .* this one is a copy, and ends"):
        await running.own_address.check()


@pytest.mark.parametrize(
    "answer",
    [
        Presence("n1", OWN_ID, "storage", "this process"),
        Presence("n1", OWN_ID, "storage"),
        Presence("n1", OWN_ID, "other storage", "another process"),
        Presence("n2", OWN_ID + 1, "storage", "another process"),
        Rejected("cluster", "a node of another cluster listens here"),
        "Connection refused",
    ],
)
async def test_whatever_else_answers_ends_nothing(answer):
    running = Running(N1, N2)
    running.answer = answer
    for _ in range(3):
        await running.own_address.check()
    assert running.asked == ["n1.example:2380"] * 3


async def test_node_that_is_not_at_its_address_logs_that_and_repeats_it_rarely(caplog):
    running = Running(N1, N2)
    await running.own_address.check()
    assert caplog.text == "", "its listener may be a moment late"
    for _ in range(20):
        await running.own_address.check()
    (record,) = caplog.records
    assert "it is not at n1.example:2380" in record.getMessage()
    assert "(Connection refused): check --listen-peer and --advertise-peer" in record.getMessage()
    await running.own_address.check()
    assert len(caplog.records) == 2


async def test_node_that_is_heard_of_or_alone_has_nothing_to_say(caplog):
    heard, alone = Running(N1, N2), Running(N1)
    heard.is_heard_of = True
    for running in (heard, alone):
        for _ in range(5):
            await running.own_address.check()
    assert caplog.text == ""
