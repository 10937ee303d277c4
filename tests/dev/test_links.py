"""The proxies between members, on real sockets."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from raftkv.dev.links import Conditions, LinkProxies
from raftkv.dev.node import DevNode, plan_nodes
from raftkv.errors import ConfigurationError
from raftkv.runtime.framing import Hello, Inquiry, Presence, Probe, Welcome, encode_frame, encode_handshake
from raftkv.types import NodeId
from tests.process.cluster import is_free

N1, N2, N3 = NodeId("n1"), NodeId("n2"), NodeId("n3")
SILENCE = 0.15


def hello(name: str) -> bytes:
    return encode_handshake(Hello(1, "cluster", name, 7, "storage", "n2", "http://127.0.0.1:1", "127.0.0.1:2"))


class Member:
    """What listens behind a proxy: it keeps what comes, and can answer."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.more = asyncio.Event()
        self.closed = asyncio.Event()
        self.writers: list[asyncio.StreamWriter] = []

    async def accept(self, reader, writer):
        self.writers.append(writer)
        try:
            while data := await reader.read(65536):
                self.received += data
                self.more.set()
        except ConnectionError:
            pass
        self.closed.set()
        writer.close()

    async def wait_for(self, count: int) -> bytes:
        async with asyncio.timeout(5):
            while len(self.received) < count:
                self.more.clear()
                await self.more.wait()
        return bytes(self.received)


def free_nodes() -> tuple[DevNode, ...]:
    for port in range(31_000, 32_000, 40):
        nodes = plan_nodes(3, port, Path("unused"))
        if all(is_free(node.peer_port) and is_free(node.hidden_peer_port) for node in nodes):
            return nodes
    raise AssertionError("no free ports")


@asynccontextmanager
async def proxy_before(member: Member):
    """A proxy before n2, and ``member`` as n2."""
    nodes = free_nodes()
    server = await asyncio.start_server(member.accept, "127.0.0.1", nodes[1].hidden_peer_port)
    proxies = LinkProxies(nodes)
    await proxies.open(nodes[1])
    try:
        yield proxies, nodes[1]
    finally:
        await proxies.close()
        server.close()
        await server.wait_closed()


async def dial(node: DevNode, name: str):
    reader, writer = await asyncio.open_connection("127.0.0.1", node.peer_port)
    writer.write(hello(name))
    return reader, writer


async def hears_nothing(reader: asyncio.StreamReader) -> bool:
    try:
        await asyncio.wait_for(reader.read(1), SILENCE)
    except TimeoutError:
        return True
    return False


async def test_a_good_link_carries_everything_both_ways():
    member = Member()
    async with proxy_before(member) as (_proxies, node):
        reader, writer = await dial(node, "n1")
        writer.write(b"x" * 300_000)
        assert await member.wait_for(len(hello("n1")) + 300_000) == hello("n1") + b"x" * 300_000
        welcome = encode_handshake(Welcome("n2", 8, "storage", "http://127.0.0.1:1"))
        member.writers[0].write(welcome)
        assert await asyncio.wait_for(reader.readexactly(len(welcome)), 5) == welcome
        writer.close()
        await asyncio.wait_for(member.closed.wait(), 5)


async def test_a_cut_link_holds_back_until_it_is_whole():
    member = Member()
    async with proxy_before(member) as (proxies, node):
        reader, writer = await dial(node, "n1")
        length = len(hello("n1"))
        await member.wait_for(length)
        proxies.set_conditions({(N1, N2): Conditions(is_cut=True)})
        writer.write(b"late")
        # The other direction is another link.
        member.writers[0].write(b"soon")
        assert await asyncio.wait_for(reader.readexactly(4), 5) == b"soon"
        assert len(member.received) == length
        proxies.set_conditions({(N2, N1): Conditions(is_cut=True)})
        assert await member.wait_for(length + 4) == hello("n1") + b"late"
        member.writers[0].write(b"held")
        assert await hears_nothing(reader)
        proxies.set_conditions({})
        assert await asyncio.wait_for(reader.readexactly(4), 5) == b"held"
        writer.close()


async def test_nobody_new_comes_through_a_cut_link_and_others_do():
    member = Member()
    async with proxy_before(member) as (proxies, node):
        proxies.set_conditions({(N1, N2): Conditions(is_cut=True)})
        _reader, cut = await dial(node, "n1")
        _reader, whole = await dial(node, "n3")
        assert await member.wait_for(len(hello("n3"))) == hello("n3")
        proxies.set_conditions({})
        await member.wait_for(2 * len(hello("n3")))
        cut.close()
        whole.close()


async def test_a_node_that_dies_behind_a_cut_link_is_not_noticed_until_it_is_whole():
    member = Member()
    async with proxy_before(member) as (proxies, node):
        reader, writer = await dial(node, "n1")
        await member.wait_for(1)
        proxies.set_conditions({(N2, N1): Conditions(is_cut=True)})
        member.writers[0].transport.abort()
        assert await hears_nothing(reader)
        proxies.set_conditions({})
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await asyncio.wait_for(reader.readexactly(1), 5)
        writer.close()


async def test_a_slow_link_delivers_late_and_a_narrow_one_little_by_little():
    member = Member()
    async with proxy_before(member) as (proxies, node):
        _reader, writer = await dial(node, "n1")
        length = len(await member.wait_for(1))
        proxies.set_conditions({(N1, N2): Conditions(delay_seconds=0.2)})
        began = time.monotonic()
        writer.write(b"1234")
        await member.wait_for(length + 4)
        assert time.monotonic() - began >= 0.2
        proxies.set_conditions({(N1, N2): Conditions(bytes_per_second=1_000_000)})
        began = time.monotonic()
        writer.write(b"x" * 300_000)
        await member.wait_for(length + 300_004)
        assert time.monotonic() - began >= 0.25
        writer.close()


async def test_broken_connections_are_reset_and_can_be_opened_again():
    member = Member()
    async with proxy_before(member) as (proxies, node):
        reader, writer = await dial(node, "n1")
        await member.wait_for(1)
        proxies.break_connections([(N1, N2)])
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await asyncio.wait_for(reader.readexactly(1), 5)
        await asyncio.wait_for(member.closed.wait(), 5)
        writer.close()
        before = len(member.received)
        _reader, again = await dial(node, "n1")
        await member.wait_for(before + len(hello("n1")))
        again.close()


@pytest.mark.parametrize(
    "first",
    [
        hello("stranger"),
        encode_handshake(Welcome("n1", 7, "storage", "http://127.0.0.1:1")),
        encode_frame(b"\xc1"),
        (1 << 30).to_bytes(4, "big"),
    ],
    ids=["stranger", "no introduction", "no message", "too long"],
)
async def test_whoever_is_no_member_is_turned_away(first):
    member = Member()
    async with proxy_before(member) as (_proxies, node):
        reader, writer = await asyncio.open_connection("127.0.0.1", node.peer_port)
        writer.write(first)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await asyncio.wait_for(reader.readexactly(1), 5)
        assert not member.received
        writer.close()


@pytest.mark.parametrize("question", [Probe("cluster"), Inquiry("cluster", "n1", "n2")], ids=["probe", "inquiry"])
async def test_questions_and_their_answers_come_through(question):
    member = Member()
    async with proxy_before(member) as (_proxies, node):
        reader, writer = await asyncio.open_connection("127.0.0.1", node.peer_port)
        writer.write(encode_handshake(question))
        assert await member.wait_for(len(encode_handshake(question))) == encode_handshake(question)
        answer = encode_handshake(Presence("n2", 8, "storage"))
        member.writers[0].write(answer)
        member.writers[0].close()
        assert await asyncio.wait_for(reader.read(), 5) == answer
        writer.close()


async def test_question_of_a_node_to_itself_comes_through_cut_links():
    """It does not say who asks, and a node asks at its own address too, whatever the network does to it."""
    member = Member()
    async with proxy_before(member) as (proxies, node):
        proxies.set_conditions({link: Conditions(is_cut=True) for link in ((N1, N2), (N2, N1), (N3, N2), (N2, N3))})
        _reader, writer = await asyncio.open_connection("127.0.0.1", node.peer_port)
        writer.write(encode_handshake(Probe("cluster")))
        await member.wait_for(1)
        writer.close()


async def test_a_dead_node_refuses_through_its_proxy():
    nodes = free_nodes()
    proxies = LinkProxies(nodes)
    await proxies.open(nodes[1])
    try:
        reader, writer = await dial(nodes[1], "n1")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await asyncio.wait_for(reader.readexactly(1), 5)
        writer.close()
    finally:
        await proxies.close()


def test_links_that_do_not_exist_are_refused():
    async def ask() -> None:
        proxies = LinkProxies(free_nodes())
        with pytest.raises(KeyError, match="n9"):
            proxies.set_conditions({(N1, NodeId("n9")): Conditions()})
        with pytest.raises(KeyError):
            proxies.break_connections([(N1, N1)])

    asyncio.run(ask())


def test_ports_end_somewhere():
    with pytest.raises(ConfigurationError, match="ports end at 65535"):
        plan_nodes(3, 65_530, Path("unused"))
