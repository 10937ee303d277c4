"""Services in memory, which fail or wait on demand."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from raftkv.consensus.state_check import CheckReport, MemberResult
from raftkv.membership import ClusterMember, MemberId
from raftkv.operations import NO_SAFEGUARDS, Safeguards
from raftkv.service.api import (
    ClusterStatus,
    Condition,
    ConditionFailed,
    DiskSpace,
    FollowerLag,
    HealthCheck,
    MemberStatus,
    Read,
    Written,
)
from raftkv.types import (
    ClusterId,
    Consistency,
    Index,
    KeyRange,
    KeyValue,
    NodeId,
    NodeStatus,
    Revision,
    Role,
    Term,
)


class FakeKeyValueService:
    """A dictionary with revisions.

    Attributes:
        keys: The live keys.
        failure: What every method raises, when set.
        gate: What every method waits for before it does anything.
        entered: Set when a method has begun.
        finished: Set when a put is done.
        reads: Consistency of each read so far.
        safeguards: Those of each put that has begun.
    """

    def __init__(self) -> None:
        self.keys: dict[bytes, KeyValue] = {}
        self.revision = 1
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.finished = asyncio.Event()
        self.reads: list[Consistency] = []
        self.safeguards: list[Safeguards] = []

    async def _begin(self) -> None:
        self.entered.set()
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure

    def _refusal(self, key: bytes, condition: Condition | None) -> ConditionFailed | None:
        found = self.keys[key].mod_revision if key in self.keys else Revision(0)
        if condition is None:
            return None
        holds = found != 0 if condition.mod_revision is None else found == condition.mod_revision
        return None if holds else ConditionFailed(Revision(self.revision), found)

    async def put(
        self,
        key: bytes,
        value: bytes,
        condition: Condition | None = None,
        *,
        lease: int = 0,
        content_type: str = "",
        safeguards=NO_SAFEGUARDS,
    ) -> Written | ConditionFailed:
        self.safeguards.append(safeguards)
        await self._begin()
        if refusal := self._refusal(key, condition):
            return refusal
        self.revision += 1
        revision = Revision(self.revision)
        old = self.keys.get(key)
        create_revision, version = (old.create_revision, old.version + 1) if old else (revision, 1)
        item = KeyValue(key, value, create_revision, revision, version, content_type=content_type)
        self.keys[key] = item
        self.finished.set()
        return Written(revision, replace(item, value=b"", content_type=""))

    async def delete(
        self, key: bytes, condition: Condition | None = None, *, safeguards=NO_SAFEGUARDS
    ) -> Written | ConditionFailed:
        await self._begin()
        if refusal := self._refusal(key, condition):
            return refusal
        deleted = self.keys.pop(key, None) is not None
        self.revision += deleted
        return Written(Revision(self.revision), None, int(deleted))

    async def get(self, key: bytes, consistency: Consistency = Consistency.LINEARIZABLE) -> Read:
        await self._begin()
        self.reads.append(consistency)
        return Read(Revision(self.revision), self.keys.get(key))

    async def list(
        self,
        prefix: bytes,
        *,
        start: bytes = b"",
        limit: int,
        keys_only: bool = False,
        consistency: Consistency = Consistency.LINEARIZABLE,
    ) -> KeyRange:
        await self._begin()
        self.reads.append(consistency)
        names = [name for name in sorted(self.keys) if name.startswith(prefix) and name >= start]
        items = [self.keys[name] for name in names[:limit]]
        if keys_only:
            items = [KeyValue(i.key, b"", i.create_revision, i.mod_revision, i.version, i.lease) for i in items]
        return KeyRange(tuple(items), Revision(self.revision), names[limit] if len(names) > limit else None)


class FakeClusterService:
    """Two members, one of which does not answer; checks that can be made to fail."""

    def __init__(self) -> None:
        self.transfers: list[NodeId | None] = []
        self.failure: Exception | None = None
        self.checks = [HealthCheck("store", True, "it is sound"), HealthCheck("leader", True, "n1 leads")]

    cluster_id = ClusterId("0123456789abcdef")
    client_url = "http://127.0.0.1:2379"

    def members(self):
        n1 = ClusterMember(MemberId(1), NodeId("n1"), "127.0.0.1:2380", is_voter=True)
        n2 = ClusterMember(MemberId(2), NodeId("n2"), "h:1", is_voter=False)
        return [(n1, self.client_url), (n2, None)]

    def own_id(self):
        return MemberId(1)

    def own(self) -> NodeStatus:
        return NodeStatus(
            name=NodeId("n1"),
            role=Role.LEADER,
            term=Term(3),
            leader=NodeId("n1"),
            commit_index=Index(10),
            applied_index=Index(9),
            last_index=Index(11),
            revision=Revision(7),
            client_url=self.client_url,
            peer_address="127.0.0.1:2380",
            version="0.1.0",
        )

    async def describe(self) -> ClusterStatus:
        status = self.own()
        members = (
            MemberStatus(NodeId("n1"), MemberId(1), "127.0.0.1:2380", True, status),
            MemberStatus(NodeId("n2"), MemberId(2), "127.0.0.1:2390", False, None),
        )
        return ClusterStatus(
            ClusterId("0123456789abcdef"),
            NodeId("n1"),
            NodeId("n1"),
            self.client_url,
            Term(3),
            members,
        )

    def disk(self) -> DiskSpace:
        return DiskSpace(10_000_000, 1_000_000)

    def follower_lags(self) -> dict[NodeId, FollowerLag]:
        return {NodeId("n2"): FollowerLag(3, 120)}

    async def transfer_leadership(self, target: NodeId | None) -> None:
        if self.failure is not None:
            raise self.failure
        self.transfers.append(target)

    async def check_states(self) -> CheckReport:
        if self.failure is not None:
            raise self.failure
        return CheckReport(Index(9), {NodeId("n2"): MemberResult.UNKNOWN, NodeId("n1"): MemberResult.AGREES})

    def live(self) -> list[HealthCheck]:
        return self.checks[:1]

    async def ready(self) -> list[HealthCheck]:
        return self.checks
