"""What the comparison of logs has found is logged once, and an alarm names the member that is wrong."""

from __future__ import annotations

import asyncio

import pytest

from raftkv.consensus.log_comparison import Divergence, Fingerprint
from raftkv.errors import LogsContradict
from raftkv.operations import Alarm, AlarmKind
from raftkv.runtime.corrupt_alarms import CorruptAlarms
from raftkv.store.commands import SetAlarm
from raftkv.types import NodeId

ALARM = Alarm(AlarmKind.CORRUPT, "c", is_automatic=True)


def found(agreeing: str) -> Divergence:
    """Return a contradiction of ``c``."""
    return Divergence(
        NodeId("c"), 2, 3, Fingerprint(2, 7), Fingerprint(1, 9), tuple(map(NodeId, agreeing)), (NodeId("c"),), 3
    )


class Fixture:
    """Core, store and proposer in one."""

    def __init__(self) -> None:
        self.divergence: str | None = None
        self.found: list[Divergence] = []
        self.active: list[Alarm] = []
        self.refuses = False
        self.submitted: list[tuple[SetAlarm, asyncio.Future]] = []
        self.abandoned: list[str] = []
        self.subject = CorruptAlarms(self, self, self)

    def take_divergences(self) -> list[Divergence]:
        return self.found

    def alarms(self) -> list[Alarm]:
        return self.active

    def submit(self, command: SetAlarm) -> asyncio.Future:
        if self.refuses:
            raise LogsContradict("undecided")
        self.submitted.append((command, asyncio.get_running_loop().create_future()))
        return self.submitted[-1][1]

    def abandon(self, reason: str) -> None:
        self.abandoned.append(reason)


async def test_alarm_names_the_member_that_a_majority_finds_wrong(caplog: pytest.LogCaptureFixture):
    fixture = Fixture()
    fixture.found = [found("ab")]
    fixture.subject.tick()
    fixture.subject.tick()
    assert [command for command, _future in fixture.submitted] == [SetAlarm(ALARM, is_active=True)]
    (message,) = [record.message for record in caplog.records]
    assert message == (
        "logs contradict each other: c has other entries than a majority (a, b) up to index 3: "
        "hash 0000000000000007, term 2 at the leader, hash 0000000000000009, term 1 at c"
    )


async def test_alarm_that_failed_is_raised_again():
    fixture = Fixture()
    fixture.found = [found("ab")]
    fixture.refuses = True
    fixture.subject.tick()
    fixture.refuses = False
    fixture.subject.tick()
    fixture.submitted[0][1].set_exception(LogsContradict("later"))
    await asyncio.sleep(0)
    fixture.subject.tick()
    fixture.submitted[1][1].set_result(None)
    await asyncio.sleep(0)
    fixture.active = [ALARM]
    fixture.subject.tick()
    assert len(fixture.submitted) == 2


async def test_without_a_majority_no_alarm_blames_a_member_and_the_log_says_what_is_refused(
    caplog: pytest.LogCaptureFixture,
):
    fixture = Fixture()
    fixture.found = [found("a")]
    fixture.divergence = "c contradicts a"
    fixture.subject.tick()
    fixture.subject.tick()
    fixture.found, fixture.divergence = [], None
    fixture.subject.tick()
    assert fixture.submitted == []
    assert fixture.abandoned == ["c contradicts a"] * 2
    first, second, third = [record.message for record in caplog.records]
    assert "a agrees with the leader, c contradicts it, of 3 voters: no majority decides" in first
    assert second == "writes and linearizable reads are refused: c contradicts a"
    assert third == "writes and linearizable reads are accepted again: no contradiction of logs is left"
