"""Runs the fuzzers against a cluster of real nodes, and checks the cluster meanwhile and afterwards."""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from raftkv.client import Client
from raftkv.consensus.segments import recover
from raftkv.errors import NotApplied, UnknownOutcome
from raftkv.runtime.files import RealDirectory
from raftkv.types import ClusterId
from tests.fuzz.client import HostileClient
from tests.fuzz.peer import Stranger
from tests.fuzz.target import HOST, LATEST_TERM, Finding, Knowledge, look_at
from tests.loop_watch import holds_in
from tests.process.cluster import NodeProcess, ProcessCluster

KINDS = ("peer", "client")

_AT_ONCE = {"peer": 24, "client": 10}
_WRITE_SECONDS = 20.0
_MAX_GROWTH_BYTES = 400_000 * 1024
_RESTARTS_SECONDS = 15.0
_SETTLED_SECONDS = 30.0

_UNEXPECTED = re.compile(r"Traceback|unexpected error|CRITICAL|never retrieved|never awaited|Exception in|Unclosed")
_LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00 [A-Z]+ +[a-z_.A-Z]+: ")


class Fuzz:
    """One run.

    Args:
        seed: Chance; session ``number`` of a kind depends on these three only.
        kinds: Which fuzzers run.
        directory: Where the nodes keep their data.
    """

    def __init__(self, seed: int, kinds: tuple[str, ...], directory: Path) -> None:
        self._seed = seed
        self._kinds = kinds
        self._cluster = ProcessCluster(directory, 3)
        self._sessions = dict.fromkeys(KINDS, 0)
        self._dialled = 0
        self.findings: list[str] = []

    def run(self, seconds: float, only: int | None = None) -> Knowledge:
        """Attack for a time, or with one session only; ``findings`` has what was found."""
        with self._cluster:
            knowledge = look_at(self._cluster)
            before = {node.name: node.peak_memory_bytes() for node in self._cluster.nodes}
            try:
                asyncio.run(self._attack(knowledge, seconds, only))
                self._check_nodes(before)
                self._check_descriptors()
            except (Finding, AssertionError) as finding:
                self.findings.append(str(finding))
        for node in self._cluster.nodes:
            self._check_log(node)
            self._check_journal(node, knowledge)
        return knowledge

    async def _attack(self, knowledge: Knowledge, seconds: float, only: int | None) -> None:
        trap = await asyncio.start_server(self._spring, HOST, 0)
        port = trap.sockets[0].getsockname()[1]
        make: dict[str, Callable[[random.Random], Stranger | HostileClient]] = {
            "peer": lambda rng: Stranger(rng, knowledge, port),
            "client": lambda rng: HostileClient(rng, knowledge),
        }
        end = time.monotonic() + seconds
        if only is not None:
            await self._session(self._kinds[0], only, make[self._kinds[0]])
        else:
            workers = [self._keep_going(kind, make[kind], end) for kind in self._kinds for _ in range(_AT_ONCE[kind])]
            await asyncio.gather(self._commit(end), self._restart(end, knowledge), *workers)
        trap.close()
        if self._dialled:
            self.findings.append(f"nodes dialled an address that only strangers name, {self._dialled} times")

    def _spring(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._dialled += 1
        writer.close()

    async def _keep_going(
        self, kind: str, make: Callable[[random.Random], Stranger | HostileClient], end: float
    ) -> None:
        while time.monotonic() < end and not self.findings:
            self._sessions[kind] += 1
            await self._session(kind, self._sessions[kind], make)

    async def _session(self, kind: str, number: int, make: Callable[[random.Random], Stranger | HostileClient]) -> None:
        try:
            await make(random.Random(f"{self._seed}/{kind}/{number}")).run()
        except Finding as finding:
            again = f"python -m tests.fuzz --seed {self._seed} --kind {kind} --session {number}"
            self.findings.append(f"{finding}\n  again, this session alone: {again}")

    async def _commit(self, end: float) -> None:
        """Write as a good client does: strangers must not keep the cluster from that."""
        longest = 0.0
        async with Client([node.url for node in self._cluster.nodes], _WRITE_SECONDS) as client:
            while time.monotonic() < end and not self.findings:
                began = time.monotonic()
                try:
                    await client.put(b"sound", b"%f" % began)
                except UnknownOutcome:
                    pass
                except NotApplied as error:
                    self.findings.append(f"a write is not served within {_WRITE_SECONDS:g} s: {error}")
                longest = max(longest, time.monotonic() - began)
                await asyncio.sleep(0.2)
        print(f"the longest of the sound client's writes took {longest:.2f} s")

    async def _restart(self, end: float, knowledge: Knowledge) -> None:
        """Kill and start members: they must get in again, whatever strangers do at the doors."""
        rng = random.Random(self._seed)
        while time.monotonic() + 2 * _RESTARTS_SECONDS < end and not self.findings:
            await asyncio.sleep(_RESTARTS_SECONDS)
            node = rng.choice(self._cluster.nodes)
            knowledge.kills[node.name] += 1
            node.kill()
            node.start()
            try:
                await asyncio.to_thread(node.wait_ready)
            except AssertionError as error:
                self.findings.append(f"{node.name} does not get in again: {str(error)[-2000:]}")

    def _check_nodes(self, before: dict[str, int]) -> None:
        for node in self._cluster.nodes:
            if not node.is_running:
                raise Finding(f"{node.name} has ended:\n{node.log()[-3000:]}")
            node.wait_ready()
            if (term := node.status()["term"]) >= LATEST_TERM:
                raise Finding(f"{node.name} has adopted term {term} of a stranger")
            growth = node.peak_memory_bytes() - before[node.name]
            print(f"{node.name}: {growth / 2**20:.0f} MiB more memory at the highest than at the beginning")
            if growth > _MAX_GROWTH_BYTES:
                raise Finding(f"{node.name} has taken {growth} bytes more memory")

    def _check_descriptors(self) -> None:
        """Connections of the fuzzers must not outlive them for long."""
        deadline = time.monotonic() + _SETTLED_SECONDS
        for node in self._cluster.nodes:
            assert node.process is not None
            while (number := len(list(Path(f"/proc/{node.process.pid}/fd").iterdir()))) > 60:
                if time.monotonic() > deadline:
                    raise Finding(f"{node.name} keeps {number} descriptors open")
                time.sleep(0.2)

    def _check_log(self, node: NodeProcess) -> None:
        log = node.log()
        for number, line in enumerate(log.splitlines()):
            if _UNEXPECTED.search(line) or not _LOG_LINE.match(line):
                self.findings.append(f"{node.name} logs: " + "\n".join(log.splitlines()[number : number + 30]))
                break
        self.findings += [f"{node.name}: {held}" for held in holds_in(log)]

    def _check_journal(self, node: NodeProcess, knowledge: Knowledge) -> None:
        """Nothing that strangers say of themselves may have been kept."""
        recovered = recover(RealDirectory(node.data_dir / "journal"), ClusterId(knowledge.cluster_id), None)
        known = {f"{target.member_id:016x}" for target in knowledge.targets}
        if strange := set(recovered.state.member_storage) - known:
            self.findings.append(f"the journal of {node.name} has records of strangers: {sorted(strange)[:5]}")

    def describe(self, knowledge: Knowledge) -> str:
        """Return how much was done."""
        counts = ", ".join(f"{name} {count}" for name, count in sorted(knowledge.counts.items()))
        sessions = ", ".join(f"{number} {kind}" for kind, number in self._sessions.items())
        return f"sessions: {sessions}\n{counts}"


def fuzz(seed: int, seconds: float, kinds: tuple[str, ...] = KINDS, only: int | None = None) -> list[str]:
    """Run the fuzzers; return what they found."""
    directory = Path(tempfile.mkdtemp(prefix="raftkv-fuzz-"))
    attack = Fuzz(seed, kinds, directory)
    print(attack.describe(attack.run(seconds, only)), flush=True)
    if attack.findings:
        print(f"the nodes' data and logs are in {directory}")
    else:
        shutil.rmtree(directory)
    return attack.findings
