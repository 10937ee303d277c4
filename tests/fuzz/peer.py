"""Strangers at the peer port, who know the protocol, the cluster and its members, and none of their secrets.

A session is one connection, or several that build on each other: greetings of members and of others, whole or damaged,
questions, and the messages of a leader or a candidate behind them, in any order and at any pace.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from functools import partial

import msgpack

from raftkv.consensus.messages import (
    AppendEntries,
    AppendResult,
    LogDivergence,
    Message,
    PreVote,
    PreVoteResult,
    ReadIndexRequest,
    ReadIndexResult,
    ReadPing,
    ReadPong,
    RequestVote,
    SnapshotChunk,
    SnapshotHeartbeat,
    StateDivergence,
    StateHashRequest,
    StatusRequest,
    StatusResult,
    TimeoutNow,
    Vote,
    encode,
)
from raftkv.runtime.framing import (
    MAX_HANDSHAKE_BYTES,
    BadFrame,
    Confirm,
    Confirmed,
    Consent,
    FrameReader,
    Handshake,
    Hello,
    Inquiry,
    Presence,
    Probe,
    Rejected,
    Vouch,
    Vouched,
    Welcome,
    decode_handshake,
    encode_frame,
    encode_handshake,
)
from tests.fuzz.target import HOST, LATEST_TERM, Finding, Knowledge, Target, converse, send_in_pieces

LONGEST_SECONDS = 12.0
"""A node has closed an unverified connection by then: five seconds without a hello, and five to verify one."""

_ODD = (None, True, -1, 0, 2**63 - 1, 2**63, 2**64 - 1, 1.5, "", "x" * 1025, "a\nb", "\x1b[2J", b"bytes", [], {}, [[1]])


class Stranger:
    """One session at the peer port.

    Args:
        rng: Where chance comes from.
        knowledge: What is known of the cluster.
        trap: Port that no node may dial: an address that only strangers name.
    """

    def __init__(self, rng: random.Random, knowledge: Knowledge, trap: int) -> None:
        self._rng = rng
        self._knowledge = knowledge
        self._trap = trap

    async def run(self) -> None:
        """Hold the session.

        Raises:
            Finding: A node answered what it must not answer.
        """
        target = self._rng.choice(self._knowledge.targets)
        for _ in range(self._rng.choice((1, 1, 1, 2, 4))):
            actions = (self._greet, self._greet, self._greet, self._ask, self._garbage, self._stay_silent)
            action = partial(self._rng.choice(actions), target)
            await converse(self._rng, self._knowledge, "peer", target.peer_port, action)

    async def _greet(self, target: Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rng = self._rng
        hello = encode_handshake(self._hello(target))
        if rng.random() < 0.5:
            hello = self._damaged(hello)
        await send_in_pieces(rng, writer, hello)
        is_eager = rng.random() < 0.5
        if is_eager:
            await self._speak(writer)
        answer = await self._read_answer(reader)
        if isinstance(answer, Welcome):
            raise Finding(f"{target.name} welcomes a stranger: {answer}")
        if answer is not None and not isinstance(answer, Rejected):
            raise Finding(f"{target.name} answers a hello with {answer}")
        self._knowledge.counts[f"peer: hello {answer.code if isinstance(answer, Rejected) else 'closed'}"] += 1
        if not is_eager:
            await self._speak(writer)
            await self._expect_end(target, reader)

    def _hello(self, target: Target) -> Hello:
        """Return the hello of a member, of one that was never heard of, or of something between."""
        rng, knowledge = self._rng, self._knowledge
        claimed = rng.choice(knowledge.targets)
        own = Hello(
            1,
            knowledge.cluster_id,
            claimed.name,
            claimed.member_id,
            claimed.storage_id,
            target.name,
            f"http://{HOST}:{claimed.client_port}",
            f"{HOST}:{claimed.peer_port}",
            token=f"{rng.getrandbits(128):032x}",
            life=f"{rng.getrandbits(64):016x}",
            start_index=rng.choice((0, knowledge.last_index, 2**40)),
        )
        changes = {
            "name": rng.choice(("stranger", "n9", f"s{rng.randrange(1000)}", "x" * 63)),
            "member_id": rng.choice((rng.getrandbits(63), rng.getrandbits(64), 1)),
            "storage_id": f"{rng.getrandbits(64):016x}",
            "target": rng.choice([each.name for each in knowledge.targets]),
            "cluster_id": rng.choice(("0" * 16, knowledge.cluster_id[:-1])),
            "peer_address": rng.choice((f"{HOST}:{self._trap}", "[::1]:1", "nowhere.invalid:2380")),
            "channel": rng.choice((0, 1)),
            "token": rng.choice(("", "é" * 8, "x" * 1000)),
            "protocol": rng.choice((1, 2, 99)),
            "highest_version": rng.choice(("0.1", "9.9")),
        }
        kept = rng.sample(sorted(changes), rng.choice((0, 1, 1, 2, 3)))
        return replace(own, **{name: changes[name] for name in kept})

    async def _ask(self, target: Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rng, knowledge = self._rng, self._knowledge
        cluster = rng.choice((knowledge.cluster_id, knowledge.cluster_id, "0" * 16))
        peer = rng.choice(knowledge.targets)
        asker, other = rng.choice(("stranger", peer.name)), rng.choice(knowledge.targets)
        question = rng.choice(
            (
                Inquiry(cluster, asker, target.name),
                Probe(cluster),
                Confirm(cluster, asker, target.name, rng.choice(("", f"{rng.getrandbits(128):032x}", "é"))),
                Vouch(cluster, asker, target.name, other.name, rng.choice((other.member_id, 0, rng.getrandbits(64)))),
            )
        )
        data = encode_handshake(question)
        is_damaged = rng.random() < 0.3
        kills = knowledge.kills[target.name]
        await send_in_pieces(rng, writer, self._damaged(data) if is_damaged else data)
        answer = await self._read_answer(reader)
        knowledge.counts[f"peer: {type(question).__name__} {type(answer).__name__}"] += 1
        if isinstance(answer, Welcome | Confirmed):
            raise Finding(f"{target.name} answers {question} of a stranger with {answer}")
        if isinstance(answer, Consent):
            raise Finding(f"{target.name} has data and consents to a new cluster: {question}")
        if isinstance(answer, Vouched):
            known = {f"{HOST}:{each.peer_port}" for each in knowledge.targets}
            if answer.peer_address not in known:
                raise Finding(f"{target.name} vouches for a stranger: {answer}")
        if answer is None and not is_damaged and knowledge.kills[target.name] == kills:
            raise Finding(f"{target.name} does not answer {question}")
        if answer is not None and not isinstance(answer, Vouched | Presence | Rejected):
            raise Finding(f"{target.name} answers {question} with {answer}")
        await self._expect_end(target, reader)

    async def _garbage(self, target: Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rng = self._rng
        data = rng.choice(
            (
                rng.randbytes(rng.randint(1, 300)),
                rng.choice((0, 1, MAX_HANDSHAKE_BYTES, MAX_HANDSHAKE_BYTES + 1, 2**31, 2**32 - 1)).to_bytes(4, "big"),
                encode_frame(b""),
                encode_frame(msgpack.packb(rng.choice(_ODD))),
                encode_frame(msgpack.packb([1] * 4000)),
                encode_frame(b"\x91" * 4000),
                encode_frame(msgpack.packb({"kind": rng.choice(("hello", "welcome", "consent", "", 7, [1]))})),
                encode_handshake(Welcome("n1", 1, "0", "http://n1")),
                encode_handshake(Rejected("removed", "you were removed")),
                b"GET / HTTP/1.1\r\n\r\n",
                b"\x16\x03\x01\x02\x00\x01\x00" + rng.randbytes(64),
            )
        )
        await send_in_pieces(rng, writer, data)
        if rng.random() < 0.5:
            await self._speak(writer)
        await self._expect_end(target, reader)

    async def _stay_silent(self, target: Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(encode_handshake(self._hello(target))[: self._rng.choice((0, 0, 3, 20))])
        if self._rng.random() < 0.5:
            await self._expect_end(target, reader)

    async def _speak(self, writer: asyncio.StreamWriter) -> None:
        """Send what a leader, a candidate or a follower would send after its welcome, and damaged messages."""
        rng = self._rng
        for _ in range(rng.choice((0, 1, 3, 10))):
            payload = encode(self._message())
            if rng.random() < 0.2:
                fields = msgpack.unpackb(payload)
                fields[rng.randrange(len(fields))] = rng.choice(_ODD)
                payload = msgpack.packb(fields)
            await send_in_pieces(rng, writer, encode_frame(payload))

    def _message(self) -> Message:
        rng, knowledge = self._rng, self._knowledge
        term = LATEST_TERM + rng.choice((0, 1, 1000, 2**40))
        at, index = knowledge.term, rng.choice((1, knowledge.last_index, 2**40))
        entry = (b"\x00" + rng.randbytes(10), index + 1, term)
        return rng.choice(
            (
                AppendEntries(term, index, index, at, (entry,)),
                AppendEntries(term, 2**50, 2**50, term, ()),
                RequestVote(term, 2**50, term),
                Vote(term),
                TimeoutNow(term),
                PreVote(term, 2**50, term, 1, 2**50, term),
                PreVoteResult(term, 1, granted=True, commit_index=2**50, commit_term=term),
                SnapshotHeartbeat(term, 2**50),
                SnapshotChunk(term, 2**50, term, b"{}", 0, rng.randbytes(1000), last=True),
                AppendResult(term, 2**50, reset=False, success=True),
                ReadPing(term, 1),
                ReadPong(term, 1),
                ReadIndexRequest(1),
                ReadIndexResult(1, 2**50),
                StatusRequest(1),
                StatusResult(1, "emperor", 1, 1, 1, term, None, 1, "9"),
                LogDivergence(term, 1, 1, 1, 1, ("n1", "n2")),
                StateHashRequest(term, 1, 1),
                StateDivergence(term, 1, "ab"),
            )
        )

    def _damaged(self, frame: bytes) -> bytes:
        """Return a handshake with another field, another type, a flipped bit, or cut."""
        rng = self._rng
        way = rng.randrange(4)
        if way == 0:
            return frame[: rng.randrange(len(frame))]
        if way == 1:
            changed = bytearray(frame)
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            return bytes(changed)
        named = msgpack.unpackb(frame[4:])
        name = rng.choice(sorted(named))
        if way == 2:
            del named[name]
        else:
            named[name] = rng.choice(_ODD)
        return encode_frame(msgpack.packb(named))

    async def _read_answer(self, reader: asyncio.StreamReader) -> Handshake | None:
        """Return the answer of a node, None when it closes the connection."""
        frames = FrameReader(MAX_HANDSHAKE_BYTES)
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                while data := await reader.read(4096):
                    for payload in frames.feed(data):
                        return decode_handshake(payload)
        except ConnectionError:
            return None
        except TimeoutError:
            raise Finding("an unverified connection stays open") from None
        except BadFrame as error:
            raise Finding(f"a node answers with no handshake: {error}") from error
        return None

    async def _expect_end(self, target: Target, reader: asyncio.StreamReader) -> None:
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                while data := await reader.read(4096):
                    self._knowledge.counts["peer: bytes after an answer"] += 1
                    if len(data) > MAX_HANDSHAKE_BYTES:
                        raise Finding(f"{target.name} sends a stranger {len(data)} bytes")
        except TimeoutError:
            raise Finding(f"{target.name} keeps an unverified connection open") from None
