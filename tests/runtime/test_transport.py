"""Connections between members: handshakes, strangers, superseded connections, garbage."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

import msgpack
import pytest
import uvloop

from raftkv.consensus.messages import AppendEntries, ReadIndexRequest, ReadPing, SnapshotChunk, Vote, encode
from raftkv.errors import ConfigurationError
from raftkv.membership import ClusterMember, MemberId
from raftkv.runtime import arrivals, connections, framing, transport
from raftkv.runtime.framing import (
    MAX_FRAME_BYTES,
    PROTOCOL_VERSION,
    BadFrame,
    Channel,
    Confirm,
    Confirmed,
    FrameReader,
    Hello,
    Inquiry,
    Probe,
    Rejected,
    Vouch,
    Welcome,
    decode_handshake,
    encode_frame,
    encode_handshake,
)
from raftkv.runtime.transport import LocalIdentity, Transport
from raftkv.tls import dialling_context, listening_context
from raftkv.types import ClusterId, NodeId
from raftkv.versions import AnnouncedVersions, ClusterVersion, SupportedVersions
from tests.tls_files import TestAuthority

CLUSTER = ClusterId("0123456789abcdef")


class Events:
    """Records what a transport reports, and lets tests wait for it."""

    def __init__(self) -> None:
        self.seen: list[tuple] = []
        self.storage: dict[str, str] = {}
        self.changed = asyncio.Event()
        self.fail_on_message = False
        self.removed = {13}
        self.unsupported: set[int] = set()
        self.announced: dict[int, AnnouncedVersions] = {}

    def _note(self, *event) -> None:
        self.seen.append(event)
        self.changed.set()

    def on_message(self, peer, message):
        if self.fail_on_message:
            raise RuntimeError("a bug in the handler")
        self._note("message", peer, message)

    def on_connected(self, peer):
        self._note("connected", peer)

    def on_disconnected(self, peer):
        self._note("disconnected", peer)

    def on_congested(self, peer):
        self._note("congested", peer)

    def on_drained(self, peer):
        self._note("drained", peer)

    def on_rejected(self, peer, code, _text):
        self._note("rejected", peer, code)

    def accept_peer(self, name, member_id, storage_id, announced):
        self.announced[member_id] = announced
        if member_id in self.unsupported:
            return Rejected("version", f"the cluster is at another version than {name}")
        if member_id in self.removed:
            return Rejected("removed", f"{name} was removed")
        known = self.storage.setdefault(member_id, storage_id)
        return None if known == storage_id else Rejected("storage", f"{name} has lost its disk")

    def turns_away(self, member_id):
        return member_id in self.removed

    def on_guest(self, peer):
        self._note("guest", peer)

    def on_guest_gone(self, peer):
        self._note("guest gone", peer)

    async def wait_for(self, *event) -> None:
        async with asyncio.timeout(8):
            while not any(seen[: len(event)] == event for seen in self.seen):
                self.changed.clear()
                await self.changed.wait()


def member_of(name: str, port: int, member_id: int | None = None) -> ClusterMember:
    return ClusterMember(MemberId(member_id or ord(name)), NodeId(name), f"127.0.0.1:{port}", is_voter=True)


class Member:
    def __init__(
        self,
        name: str,
        port: int,
        peers: dict[str, int],
        cluster=CLUSTER,
        member_id: int | None = None,
        contacts: list[ClusterMember] | None = None,
        tls: transport.MutualTls | None = None,
    ) -> None:
        async def find_members():
            return contacts or []

        self.name = NodeId(name)
        self.port = port
        self.events = Events()
        self.fatal: asyncio.Queue[BaseException] = asyncio.Queue()
        self.transport = Transport(
            self.name,
            [member_of(peer, port) for peer, port in peers.items()],
            LocalIdentity(
                cluster, member_id or member_of(name, 1).id, f"storage-of-{name}", f"http://{name}", f"127.0.0.1:{port}"
            ),
            self.events,
            self.fatal.put_nowait,
            tls,
            find_members=find_members,
        )

    def token_for(self, peer: str) -> str:
        """Return a secret by which this member takes a connection to a peer for its own."""
        self.transport._links[NodeId(peer)].token = "expected"
        return "expected"

    async def start(self) -> None:
        await self.transport.start("127.0.0.1", self.port)


def mutual_tls(directory) -> transport.MutualTls:
    """Return contexts for members that have one certificate, for the host of all of them."""
    authority = TestAuthority.create(directory)
    cert, key = authority.certify("members", "127.0.0.1")
    return transport.MutualTls(
        listening_context(cert, key, authority.certificate), dialling_context(authority.certificate, cert, key)
    )


def ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    found = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return found


@pytest.fixture
async def pair():
    first, second = ports(2)
    members = Member("a", first, {"b": second}), Member("b", second, {"a": first})
    for member in members:
        await member.start()
    yield members
    for member in members:
        await member.transport.stop()


@pytest.fixture
async def lone():
    """A node whose only peer is played by the test: whoever asks at the peer's address hears that all is its own."""
    first, second = ports(2)
    server = await asyncio.start_server(confirm_everything, "127.0.0.1", second)
    a = Member("a", first, {"b": second})
    await a.start()
    yield a
    await a.transport.stop()
    server.close()
    await server.wait_closed()


async def confirm_everything(reader, writer):
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        question = await read_handshake(reader)
        if isinstance(question, Confirm):
            writer.write(encode_handshake(Confirmed(question.target)))
    writer.close()


async def greet(member: Member, data: bytes):
    """Say hello and be welcomed; return the connection."""
    reader, writer = await connect(member.port)
    writer.write(data)
    assert isinstance(await read_handshake(reader), Welcome)
    return reader, writer


async def connect(port: int):
    return await asyncio.open_connection("127.0.0.1", port)


async def wait_closed(reader: asyncio.StreamReader) -> None:
    """Wait until the other side has closed the connection, or reset it."""
    async with asyncio.timeout(8):
        with contextlib.suppress(ConnectionError):
            while await reader.read(65_536):
                pass


async def close(*writers: asyncio.StreamWriter) -> None:
    for writer in writers:
        writer.close()
    for writer in writers:
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def hello(
    name="b",
    target="a",
    cluster=CLUSTER,
    storage="storage-of-b",
    protocol=PROTOCOL_VERSION,
    member_id=98,
    channel=Channel.MESSAGES,
    **others,
) -> bytes:
    others = {"token": "secret", "peer_address": "127.0.0.1:1", **others}
    named = {"member_id": member_id, "storage_id": storage, "target": target, "client_url": "http://b"}
    return encode_handshake(Hello(protocol, cluster, name, channel=channel, **named, **others))


async def read_handshake(reader):
    async with asyncio.timeout(8):
        head = await reader.readexactly(4)
        return decode_handshake(await reader.readexactly(int.from_bytes(head, "big")))


async def test_messages_go_both_ways_and_in_order(pair):
    a, b = pair
    await a.events.wait_for("connected", "b")
    await b.events.wait_for("connected", "a")
    for number in range(100):
        assert a.transport.send(NodeId("b"), ReadIndexRequest(number))
    assert b.transport.send(NodeId("a"), ReadIndexRequest(7))
    await b.events.wait_for("message", "a", ReadIndexRequest(99))
    await a.events.wait_for("message", "b", ReadIndexRequest(7))
    received = [event[2].request_id for event in b.events.seen if event[0] == "message"]
    assert received == list(range(100))
    assert a.transport.client_url(NodeId("b")) == "http://b"
    assert a.transport.is_connected(NodeId("b"))


async def test_a_peer_that_goes_and_comes_back_is_reported():
    first, second = ports(2)
    a, b = Member("a", first, {"b": second}), Member("b", second, {"a": first})
    await a.start()
    assert not a.transport.send(NodeId("b"), ReadIndexRequest(1))
    await b.start()
    await a.events.wait_for("connected", "b")
    await b.transport.stop()
    await a.events.wait_for("disconnected", "b")
    again = Member("b", second, {"a": first})
    await again.start()
    a.events.seen.clear()
    await a.events.wait_for("connected", "b")
    await a.transport.stop()
    await again.transport.stop()


@pytest.mark.parametrize(
    ("greeting", "code"),
    [
        ({"cluster": "f" * 16}, "cluster"),
        ({"member_id": 13}, "removed"),
        ({"name": "a"}, "member"),
        ({"target": "c"}, "target"),
        ({"storage": "another"}, "storage"),
        ({"protocol": 99, "oldest_protocol": 98}, "protocol"),
    ],
)
async def test_whoever_does_not_belong_is_turned_away_with_the_reason(pair, greeting, code):
    a, b = pair
    await a.events.wait_for("connected", "b")
    reader, writer = await connect(a.port)
    writer.write(hello(token=b.token_for("a"), **greeting))
    answer = await read_handshake(reader)
    assert isinstance(answer, Rejected)
    assert answer.code == code
    await wait_closed(reader)
    await close(writer)
    assert a.transport.is_connected(NodeId("b"))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff",
        (5000).to_bytes(4, "big") + bytes(5000),
        encode_frame(b"\xc1"),
        encode_frame(msgpack.packb(["hello"])),
        encode_frame(encode(ReadIndexRequest(1))),
        encode_handshake(Welcome("b", ord("b"), "s", "u")),
    ],
)
async def test_garbage_in_place_of_a_greeting_ends_the_connection(pair, data):
    a, _b = pair
    await a.events.wait_for("connected", "b")
    reader, writer = await connect(a.port)
    writer.write(data)
    await wait_closed(reader)
    await close(writer)
    assert not any(event[0] == "message" for event in a.events.seen)
    assert a.fatal.empty()


async def test_garbage_of_a_member_ends_the_connection_and_is_counted(lone):
    reader, writer = await greet(lone, hello())
    writer.write(encode_frame(b"\x92\xff\x01"))
    await wait_closed(reader)
    await close(writer)
    assert lone.transport.counters.malformed == 1


async def test_h12q_nothing_of_a_superseded_connection_is_delivered(lone):
    old_reader, old_writer = await greet(lone, hello())
    _new_reader, new_writer = await greet(lone, hello())
    old_writer.write(encode_frame(encode(ReadIndexRequest(1))))
    new_writer.write(encode_frame(encode(ReadIndexRequest(2))))
    await lone.events.wait_for("message", "b", ReadIndexRequest(2))
    assert [event for event in lone.events.seen if event[0] == "message"] == [("message", "b", ReadIndexRequest(2))]
    await wait_closed(old_reader)
    await close(old_writer, new_writer)


async def test_a_connection_that_never_greets_is_closed(pair, monkeypatch):
    monkeypatch.setattr(connections, "HANDSHAKE_SECONDS", 0.05)
    a, _b = pair
    reader, writer = await connect(a.port)
    await wait_closed(reader)
    await close(writer)


async def test_silent_connections_are_bounded_and_the_oldest_give_way(pair, monkeypatch):
    monkeypatch.setattr(arrivals, "MAX_ARRIVALS", 2)
    a, _b = pair
    await a.events.wait_for("connected", "b")
    connections = [await connect(a.port) for _ in range(4)]
    for reader, _writer in connections[:2]:
        await wait_closed(reader)
    assert a.transport.arrivals.dropped == 2
    await a.transport.stop()
    await close(*(writer for _reader, writer in connections))


async def test_silent_connections_do_not_shut_members_out(lone):
    silent = [await connect(lone.port) for _ in range(2 * arrivals.MAX_ARRIVALS)]
    _reader, writer = await greet(lone, hello())
    assert len(lone.transport.arrivals) < arrivals.MAX_ARRIVALS
    await close(writer, *(each for _reader, each in silent))


async def closed_of(silent: list[tuple]) -> int:
    """Return how many connections the other side has closed, when that does not change any more."""
    closings = [asyncio.create_task(wait_closed(reader)) for reader, _writer in silent]
    done, pending = await asyncio.wait(closings, timeout=1.0)
    for each in pending:
        each.cancel()
    return len(done)


async def test_silent_connections_that_begin_no_tls_are_bounded_and_do_not_shut_members_out(tmp_path):
    tls = mutual_tls(tmp_path)
    first, second = ports(2)
    a, b = Member("a", first, {"b": second}, tls=tls), Member("b", second, {"a": first}, tls=tls)
    await a.start()
    silent = [await connect(a.port) for _ in range(200)]
    await b.start()
    await a.events.wait_for("connected", "b")
    await b.events.wait_for("connected", "a")
    assert await closed_of(silent) >= 200 - arrivals.MAX_ARRIVALS
    assert len(a.transport.arrivals) <= arrivals.MAX_ARRIVALS
    assert b.transport.send(NodeId("a"), Vote(3))
    await a.events.wait_for("message", "b", Vote(3))
    await a.transport.stop()
    await b.transport.stop()
    await close(*(writer for _reader, writer in silent))
    assert a.fatal.empty()


@pytest.mark.parametrize(
    "data",
    [b"", b"\x16\x03\x01", b"no TLS at all" * 1000, hello()],
    ids=["nothing", "part", "garbage", "hello without TLS"],
)
async def test_connection_that_ends_during_its_tls_handshake_leaves_nothing(data, tmp_path):
    (port,) = ports(1)
    a = Member("a", port, {}, tls=mutual_tls(tmp_path))
    await a.start()
    for _ in range(3):
        _reader, writer = await connect(port)
        writer.write(data)
        await close(writer)
    _reader, last = await connect(port)
    async with asyncio.timeout(8):
        while len(a.transport.arrivals) != 1:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.01)
    await a.transport.stop()
    await close(last)
    async with asyncio.timeout(8):
        while len(a.transport.arrivals):  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.01)
    assert a.fatal.empty()
    assert (a.events.seen, a.transport.counters.rejected) == ([], 0)


async def test_hello_that_comes_with_the_end_of_the_tls_handshake_is_heard(tmp_path):
    tls = mutual_tls(tmp_path)
    (port,) = ports(1)
    a = Member("a", port, {"b": 1}, tls=tls)
    await a.start()
    to_acceptor, to_dialler = ssl.MemoryBIO(), ssl.MemoryBIO()
    dialler = tls.dialling.wrap_bio(to_dialler, to_acceptor, server_hostname="127.0.0.1")
    reader, writer = await connect(port)
    with pytest.raises(ssl.SSLWantReadError):
        dialler.do_handshake()
    writer.write(to_acceptor.read())
    async with asyncio.timeout(8):
        while True:
            to_dialler.write(await reader.read(65536))
            try:
                dialler.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(to_acceptor.read())
        # In one piece with the last flight of the handshake.
        dialler.write(hello(token="", peer_address="127.0.0.1:1"))
        writer.write(to_acceptor.read())
        received = b""
        while not received:
            to_dialler.write(await reader.read(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                received = dialler.read(65536)
    assert isinstance(decode_handshake(received[4:]), Welcome)
    await close(writer)
    await a.transport.stop()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_members_that_dial_at_the_same_time_all_get_through_tls(run, tmp_path):
    """Their first bytes have come before the acceptor's tasks run. Nodes run on uvloop, and other tests do not."""
    tls = mutual_tls(tmp_path)

    async def dial(port: int) -> object:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls.dialling)
        writer.write(hello(token="", peer_address="127.0.0.1:1"))
        answer = await read_handshake(reader)
        await close(writer)
        return answer

    async def dial_all() -> None:
        (port,) = ports(1)
        a = Member("a", port, {"b": 1}, tls=tls)
        await a.start()
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*(dial(port) for _ in range(20)))
            assert all(isinstance(answer, Welcome) for answer in answers), answers
            silent = [await connect(port) for _ in range(200)]
            assert await closed_of(silent) >= 200 - arrivals.MAX_ARRIVALS
            assert isinstance(await dial(port), Welcome)
            await a.transport.stop()
            for reader, _writer in silent:
                await wait_closed(reader)
        await close(*(writer for _reader, writer in silent))
        assert a.fatal.empty()
        assert len(a.transport.arrivals) == 0

    run(dial_all())


async def test_who_is_not_at_the_members_address_is_not_heard_and_changes_nothing(pair):
    """A stranger that says everything that can be known of a member, save the secret of the member's own connection."""
    a, b = pair
    await a.events.wait_for("connected", "b")
    await b.events.wait_for("connected", "a")
    before = dict(a.events.storage), dict(a.events.announced), len(a.events.seen)
    address = f"127.0.0.1:{b.port}"
    for changes in ({"peer_address": address}, {"token": ""}, {"member_id": 99}, {"name": "g"}, {"storage": "new"}):
        reader, writer = await connect(a.port)
        writer.write(hello(**changes))
        answer = await read_handshake(reader)
        assert isinstance(answer, Rejected)
        assert answer.code == "unproven"
        await wait_closed(reader)
        await close(writer)
    assert (a.events.storage, a.events.announced, len(a.events.seen)) == before
    assert b.transport.send(NodeId("a"), Vote(3))
    await a.events.wait_for("message", "b", Vote(3))


async def test_secret_of_a_connection_that_is_up_verifies_no_other(pair):
    """As who has seen the hello of a member would use it later."""
    a, b = pair
    await a.events.wait_for("connected", "b")
    await b.events.wait_for("connected", "a")
    for token in (b.transport._links[NodeId("a")].connection._token, ""):
        question = Confirm(CLUSTER, "a", "b", token)
        assert b.transport.answer(question) == Rejected("unproven", "b has no such connection to a")
    reader, writer = await connect(a.port)
    writer.write(hello(token=b.transport._links[NodeId("a")].connection._token))
    answer = await read_handshake(reader)
    assert isinstance(answer, Rejected)
    assert answer.code == "unproven"
    await close(writer)


async def test_each_attempt_to_connect_has_a_secret_of_its_own(monkeypatch):
    tokens, second_came = [], asyncio.Event()

    async def take_and_hang_up(reader, writer):
        tokens.append((await read_handshake(reader)).token)
        confirmed.append([a.transport.answer(Confirm(CLUSTER, "b", "a", token)) for token in tokens])
        if len(tokens) == 2:
            second_came.set()
        await close(writer)

    confirmed: list[list[object]] = []
    server = await asyncio.start_server(take_and_hang_up, "127.0.0.1", 0)
    a = Member("a", ports(1)[0], {"b": server.sockets[0].getsockname()[1]})
    await a.start()
    async with asyncio.timeout(8):
        await second_came.wait()
    unknown = Rejected("unproven", "a has no such connection to b")
    assert confirmed[:2] == [[Confirmed("a")], [unknown, Confirmed("a")]]
    await a.transport.stop()
    server.close()


async def test_warnings_of_strangers_do_not_hide_why_a_member_is_refused(lone, caplog):
    async def refused(source: str, **said) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", lone.port, local_addr=(source, 0))
        writer.write(hello(**said))
        assert isinstance(await read_handshake(reader), Rejected)
        await close(writer)

    for number in range(2 * arrivals.MOST_IN_WINDOW):
        await refused("127.0.0.1", name=f"s{number}", cluster=ClusterId("f" * 16))
    for number in range(2 * arrivals.MOST_IN_WINDOW):
        await refused("127.0.0.1", cluster=ClusterId(f"{number:016x}"))
    await refused("127.0.0.2", token="")
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) <= 2 * arrivals.MOST_IN_WINDOW
    assert any(text.startswith("rejected a connection of b from 127.0.0.2: b names no token") for text in texts), texts


async def test_node_does_not_consent_to_a_cluster_that_it_would_begin_itself(lone):
    reader, writer = await connect(lone.port)
    writer.write(encode_handshake(Inquiry(CLUSTER, "a", "a")))
    assert await read_handshake(reader) == Rejected("member", "a is the name of this node itself")
    await close(writer)


@pytest.mark.parametrize(
    "opening",
    [hello(cluster=ClusterId("f" * 16)), encode_handshake(Inquiry("f" * 16, "b", "a"))]
    + [encode_handshake(question) for question in (Probe("f" * 16), Vouch("f" * 16, "b", "a", "b", 98))],
)
async def test_stranger_is_not_told_which_cluster_this_is(lone, opening):
    reader, writer = await connect(lone.port)
    writer.write(opening)
    answer = await read_handshake(reader)
    assert isinstance(answer, Rejected)
    assert answer.code == "cluster"
    assert CLUSTER not in answer.text
    await close(writer)


async def test_data_before_the_answer_ends_the_connection(lone):
    reader, writer = await connect(lone.port)
    writer.write(hello() + encode_frame(encode(Vote(3))))
    await wait_closed(reader)
    await close(writer)
    assert not any(event[0] == "message" for event in lone.events.seen)


async def test_address_that_an_unknown_peer_names_is_never_dialled(lone):
    dialled = []
    server = await asyncio.start_server(lambda _reader, writer: dialled.append(writer), "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for changes in ({"name": "g", "member_id": 7}, {}):
        reader, writer = await connect(lone.port)
        writer.write(hello(peer_address=address, **changes))
        await read_handshake(reader)
        await close(writer)
    assert dialled == []
    server.close()


async def test_unknown_peer_is_heard_when_a_member_vouches_for_it():
    first, second, third = ports(3)
    a, b = Member("a", first, {"b": second}), Member("b", second, {"a": first, "g": third})
    g = Member("g", third, {"a": first, "b": second})
    for member in (a, b, g):
        await member.start()
    await a.events.wait_for("guest", "g")
    await a.events.wait_for("connected", "g")
    await g.events.wait_for("connected", "a")
    for member in (a, b, g):
        await member.transport.stop()


@pytest.mark.parametrize("is_encrypted", [False, True])
async def test_member_that_has_moved_is_heard_and_answered_before_that_is_applied(is_encrypted, tmp_path):
    tls = mutual_tls(tmp_path) if is_encrypted else None
    first, second, third, old = ports(4)
    a = Member("a", first, {"b": old, "c": third}, tls=tls)
    b = Member("b", second, {"a": first}, tls=tls)
    c = Member("c", third, {"b": second, "a": first}, tls=tls)
    for member in (a, b, c):
        await member.start()
    await b.events.wait_for("connected", "a")
    await a.events.wait_for("connected", "b")
    assert a.transport.send(NodeId("b"), Vote(4))
    await b.events.wait_for("message", "a", Vote(4))
    # Another change does not take its link away.
    a.transport.set_members([member_of("b", old), member_of("c", third), member_of("d", ports(1)[0])])
    assert a.transport.is_connected(NodeId("b"))
    for member in (a, b, c):
        await member.transport.stop()


async def test_acceptor_with_an_unknown_id_is_not_spoken_to_and_leaves_nothing():
    first, second = ports(2)
    a, other = Member("a", first, {"b": second}), Member("b", second, {"a": first}, member_id=77)
    await other.start()
    await a.start()
    await a.events.wait_for("rejected", "b", "member")
    assert not a.transport.is_connected(NodeId("b"))
    assert a.events.storage == {}
    await a.transport.stop()
    await other.transport.stop()


@pytest.mark.parametrize("field", ["name", "target", "cluster_id", "storage_id", "client_url", "token"])
def test_control_characters_in_a_greeting_are_refused(field):
    (payload,) = FrameReader(MAX_FRAME_BYTES).feed(changed_greeting(**{field: "x\n2026-01-01 ERROR forged"}))
    with pytest.raises(BadFrame):
        decode_handshake(payload)


def test_control_characters_in_a_refusal_are_replaced():
    (payload,) = FrameReader(MAX_FRAME_BYTES).feed(encode_handshake(Rejected("removed", "a\nb\x1b[0m")))
    assert decode_handshake(payload) == Rejected("removed", "a?b?[0m")


async def test_an_error_of_the_handler_is_fatal_and_not_the_connections_fault(pair):
    a, b = pair
    a.events.fail_on_message = True
    await b.events.wait_for("connected", "a")
    b.transport.send(NodeId("a"), ReadIndexRequest(1))
    error = await asyncio.wait_for(a.fatal.get(), 8)
    assert str(error) == "a bug in the handler"


async def test_another_node_at_a_peers_address_is_not_talked_to():
    first, second = ports(2)
    a = Member("a", first, {"b": second})
    impostor = Member("c", second, {"a": first, "b": 9})
    await impostor.start()
    await a.start()
    await a.events.wait_for("rejected", "b", "target")
    assert not a.transport.is_connected(NodeId("b"))
    await a.transport.stop()
    await impostor.transport.stop()


async def test_a_slow_peer_is_congested_until_it_reads(monkeypatch):
    monkeypatch.setattr(connections, "CONGESTED_BYTES", 100_000)
    monkeypatch.setattr(connections, "DRAINED_BYTES", 10_000)
    first, second = ports(2)
    accepted: list[tuple] = []

    async def lazy(reader, writer):
        accepted.append((reader, writer))
        head = await reader.readexactly(4)
        await reader.readexactly(int.from_bytes(head, "big"))
        writer.write(encode_handshake(Welcome("b", ord("b"), "storage-of-b", "http://b")))

    server = await asyncio.start_server(lazy, "127.0.0.1", second, limit=1000)
    a = Member("a", first, {"b": second})
    await a.start()
    await a.events.wait_for("connected", "b")
    message = AppendEntries(1, 1, 1, 1, ((bytes(262_144), 2, 1),))
    for _ in range(1000):
        if not a.transport.send(NodeId("b"), message) or ("congested", "b") in a.events.seen:
            break
        await asyncio.sleep(0)
    assert ("congested", "b") in a.events.seen
    reader, writer = accepted[0]
    while ("drained", "b") not in a.events.seen:
        assert await reader.read(1 << 20)
    await a.transport.stop()
    await close(writer)
    server.close()
    await server.wait_closed()


async def test_an_address_that_cannot_be_listened_on_is_named(pair):
    a, _b = pair
    again = Member("a", a.port, {})
    with pytest.raises(ConfigurationError, match=f"127.0.0.1:{a.port} cannot be listened on"):
        await again.start()


def test_frames_arrive_whole_however_they_are_cut():
    frames = [bytes([number]) * size for number, size in enumerate((0, 1, 4, 5, 1000, 70_000))]
    data = b"".join(encode_frame(frame) for frame in frames)
    for step in (1, 3, 7, 1000, len(data)):
        reader = FrameReader(MAX_FRAME_BYTES)
        found = [bytes(f) for at in range(0, len(data), step) for f in reader.feed(data[at : at + step])]
        assert found == frames


def test_a_frame_beyond_the_limit_is_refused_before_it_is_held():
    reader = FrameReader(10)
    with pytest.raises(BadFrame):
        list(reader.feed((11).to_bytes(4, "big")))


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x90", msgpack.packb({"a": 1}), msgpack.packb(["hello"] * 9)])
def test_what_is_no_handshake_is_refused(payload):
    with pytest.raises(BadFrame):
        decode_handshake(payload)


@pytest.mark.parametrize("address", ["", "nowhere", "10.0.0.1:0", "10.0.0.1:99999"])
def test_a_peer_address_that_cannot_be_dialled_is_refused(address):
    hello = Hello(PROTOCOL_VERSION, CLUSTER, "b", 2, "s", "a", "http://b", address, Channel.MESSAGES)
    (payload,) = FrameReader(MAX_FRAME_BYTES).feed(encode_handshake(hello))
    with pytest.raises(BadFrame, match="cannot be dialled"):
        decode_handshake(payload)


def changed_greeting(**changes) -> bytes:
    """Return a hello with other fields, None for one that is missing."""
    (payload,) = FrameReader(MAX_FRAME_BYTES).feed(hello())
    named = msgpack.unpackb(payload) | changes
    return encode_frame(msgpack.packb({name: value for name, value in named.items() if value is not None}))


async def test_fields_of_a_later_release_in_a_greeting_are_ignored(lone):
    _reader, writer = await greet(lone, changed_greeting(zone="eu-1", compression=["zstd"]))
    await close(writer)


async def test_fields_that_a_greeting_does_not_have_take_their_defaults(lone):
    without = dict.fromkeys(("channel", "oldest_protocol", "lowest_version", "highest_version"))
    _reader, writer = await greet(lone, changed_greeting(**without))
    await close(writer)


@pytest.mark.parametrize(("newest", "oldest"), [(0, 0), (9, 8)])
async def test_a_refusal_names_the_protocols_of_both(pair, newest, oldest):
    """Also when nothing else of the hello is known here: what a distant release says is not for us to check."""
    a, _b = pair
    reader, writer = await connect(a.port)
    greeting = {"kind": "hello", "protocol": newest, "oldest_protocol": oldest, "who": "b"}
    writer.write(encode_frame(msgpack.packb(greeting)))
    answer = await read_handshake(reader)
    assert isinstance(answer, Rejected)
    assert answer.code == "protocol"
    own = f"{framing.OLDEST_PROTOCOL_VERSION} to {PROTOCOL_VERSION}"
    assert own in answer.text
    assert f"{oldest} to {newest}" in answer.text
    await wait_closed(reader)
    await close(writer)


async def test_a_hello_announces_the_cluster_versions(lone):
    _reader, writer = await greet(lone, hello(lowest_version="0.1", highest_version="3.7", held_version="0.4"))
    supported = SupportedVersions(ClusterVersion(0, 1), ClusterVersion(3, 7))
    assert lone.events.announced[98] == AnnouncedVersions(supported, ClusterVersion(0, 4))
    await close(writer)


async def test_only_the_one_without_the_version_takes_it_for_its_end(pair):
    """The dialler that refuses an acceptor says so to itself with another code."""
    a, b = pair
    await a.events.wait_for("connected", "b")
    await b.events.wait_for("connected", "a")
    a.events.unsupported.add(ord("b"))
    a.transport.set_members([])
    a.transport.set_members([member_of("b", b.port)])
    await a.events.wait_for("rejected", "b", "unsupported")
    await b.events.wait_for("rejected", "a", "version")


async def test_the_newest_protocol_in_common_is_spoken(lone):
    reader, writer = await connect(lone.port)
    writer.write(hello(protocol=99, oldest_protocol=1))
    answer = await read_handshake(reader)
    assert isinstance(answer, Welcome)
    assert answer.protocol == PROTOCOL_VERSION
    await close(writer)


@pytest.mark.parametrize(
    "changes", [{"lowest_version": "one"}, {"lowest_version": "9.9"}, {"oldest_protocol": 5}, {"member_id": None}]
)
def test_a_greeting_that_contradicts_itself_is_refused(changes):
    (payload,) = FrameReader(MAX_FRAME_BYTES).feed(changed_greeting(**changes))
    with pytest.raises(BadFrame):
        decode_handshake(payload)


async def test_a_message_of_a_later_release_is_ignored_and_counted(lone):
    _reader, writer = await greet(lone, hello())
    writer.write(encode_frame(msgpack.packb([99, "of a later release"])) + encode_frame(encode(Vote(3))))
    await lone.events.wait_for("message", "b", Vote(3))
    assert lone.transport.counters.unknown == 1
    assert lone.transport.counters.malformed == 0
    await close(writer)


async def test_a_peer_that_is_no_member_as_far_as_is_known_is_a_guest_and_can_be_answered():
    first, second = ports(2)
    a = Member("a", first, {}, contacts=[member_of("g", second)])
    stranger = Member("g", second, {"a": first})
    await a.start()
    await stranger.start()
    await a.events.wait_for("guest", "g")
    await a.events.wait_for("connected", "g")
    assert a.transport.send(NodeId("g"), ReadIndexRequest(3))
    await stranger.events.wait_for("message", "a", ReadIndexRequest(3))
    a.transport.set_members([member_of("g", second)])
    assert a.events.seen[-1] == ("guest gone", "g")
    assert a.transport.is_connected(NodeId("g"))
    await stranger.transport.stop()
    await a.transport.stop()


async def test_a_guest_that_goes_is_forgotten():
    first, second = ports(2)
    a = Member("a", first, {}, contacts=[member_of("g", second)])
    stranger = Member("g", second, {"a": first})
    await a.start()
    await stranger.start()
    await a.events.wait_for("connected", "g")
    await stranger.transport.stop()
    await a.events.wait_for("guest gone", "g")
    assert not a.transport.send(NodeId("g"), ReadIndexRequest(1))
    await a.transport.stop()


async def test_guests_are_bounded(monkeypatch):
    monkeypatch.setattr(transport, "MAX_GUESTS", 0)
    (first,) = ports(1)
    a = Member("a", first, {})
    await a.start()
    reader, writer = await connect(first)
    writer.write(hello(name="g"))
    answer = await read_handshake(reader)
    assert isinstance(answer, Rejected)
    assert answer.code == "member"
    await close(writer)
    await a.transport.stop()


async def test_the_members_change(pair):
    a, b = pair
    await a.events.wait_for("connected", "b")
    await b.events.wait_for("connected", "a")
    (third,) = ports(1)
    c = Member("c", third, {"a": a.port})
    await c.start()
    a.transport.set_members([member_of("b", b.port), member_of("c", third)])
    await a.events.wait_for("connected", "c")
    b.transport.set_members([])
    a.transport.set_members([member_of("c", third)])
    assert ("disconnected", "b") in a.events.seen
    assert not a.transport.is_connected(NodeId("b"))
    assert a.transport.client_url(NodeId("b")) is None
    await c.transport.stop()


async def test_a_member_that_moves_is_dialled_at_its_new_address(pair):
    a, b = pair
    await a.events.wait_for("connected", "b")
    await b.transport.stop()
    await a.events.wait_for("disconnected", "b")
    (elsewhere,) = ports(1)
    moved = Member("b", elsewhere, {"a": a.port})
    await moved.start()
    before = a.transport.counters.connections
    a.transport.set_members([member_of("b", elsewhere)])
    await moved.events.wait_for("connected", "a")
    async with asyncio.timeout(8):
        while not a.transport.is_connected(NodeId("b")):
            a.events.changed.clear()
            await a.events.changed.wait()
    assert a.transport.counters.connections == before + 1
    await moved.transport.stop()


async def test_another_under_a_members_name_is_a_guest_until_it_is_the_member():
    first, second = ports(2)
    a = Member("a", first, {"b": ports(1)[0]}, contacts=[member_of("b", second, 77)])
    replacement = Member("b", second, {"a": first}, member_id=77)
    await a.start()
    await replacement.start()
    await a.events.wait_for("guest", "b")
    await a.events.wait_for("connected", "b")
    a.transport.set_members([member_of("b", second, 77)])
    assert a.events.seen[-1] == ("guest gone", "b")
    assert a.transport.is_connected(NodeId("b"))
    await replacement.transport.stop()
    await a.transport.stop()


async def test_who_was_removed_is_told_and_whoever_dials_it_is_not():
    first, second = ports(2)
    a, gone = Member("a", first, {"d": second}), Member("d", second, {"a": first}, member_id=13)
    await a.start()
    await gone.start()
    await gone.events.wait_for("rejected", "a", "removed")
    await a.events.wait_for("rejected", "d", "departed")
    assert not a.transport.is_connected(NodeId("d"))
    await gone.transport.stop()
    await a.transport.stop()


CHUNK = SnapshotChunk(1, 1, 1, b"", 0, bytes(1000), last=False)


async def until_sent(member: Member, *, is_sent: bool = True) -> None:
    """Send a chunk until it is on its way, or until it is not any more."""
    async with asyncio.timeout(8):
        while member.transport.send(NodeId("b"), CHUNK) is not is_sent:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0)


async def test_snapshots_have_a_connection_of_their_own(pair):
    a, b = pair
    await a.events.wait_for("connected", "b")
    before = a.transport.counters.connections
    await until_sent(a)
    await b.events.wait_for("message", "a", CHUNK)
    assert a.transport.counters.connections == before + 1
    assert b.transport._inbound[NodeId("a")] is not b.transport._inbound_snapshots[NodeId("a")]
    assert [event for event in a.events.seen if event[0] == "connected"] == [("connected", "b")]
    # It ends alone, without a word about the peer, and is dialled again.
    b.transport._inbound_snapshots[NodeId("a")].abort()
    await until_sent(a, is_sent=False)
    await until_sent(a)
    assert a.transport.is_connected(NodeId("b"))
    assert not any(event[0] == "disconnected" for event in a.events.seen)
    a.transport.set_members([])
    assert not a.transport.send(NodeId("b"), CHUNK)


@pytest.mark.parametrize(
    ("channel", "message"),
    [(Channel.MESSAGES, CHUNK), (Channel.SNAPSHOTS, ReadIndexRequest(1))],
    ids=["chunk", "other"],
)
async def test_each_message_has_its_connection(lone, channel, message):
    reader, writer = await greet(lone, hello(channel=channel))
    writer.write(encode_frame(encode(message)))
    await wait_closed(reader)
    await close(writer)
    assert lone.transport.counters.malformed == 1
    assert ("message", "b", message) not in lone.events.seen


async def test_an_unknown_channel_is_no_greeting(pair):
    a, _b = pair
    reader, writer = await connect(a.port)
    writer.write(changed_greeting(channel=7))
    await wait_closed(reader)
    await close(writer)
    assert a.transport.counters.malformed == 1


async def test_who_was_replaced_is_heard_no_more(pair):
    """What the old member still says must not count for the new one of its name."""
    a, b = pair
    await a.events.wait_for("connected", "b")
    await b.events.wait_for("connected", "a")
    a.events.removed.add(ord("b"))
    a.transport.set_members([member_of("b", b.port, 77)])
    assert ("disconnected", "b") in a.events.seen
    b.transport.send(NodeId("a"), ReadIndexRequest(1))
    await b.events.wait_for("rejected", "a", "removed")
    assert ("message", "b", ReadIndexRequest(1)) not in a.events.seen
    assert not a.transport.is_connected(NodeId("b"))


async def test_who_was_removed_stays_until_the_removal_is_confirmed_and_is_told_then(pair):
    a, b = pair
    await a.events.wait_for("connected", "b")
    await b.events.wait_for("connected", "a")
    a.transport.set_members([])
    await a.events.wait_for("guest", "b")
    a.transport.set_members([])
    assert ("guest gone", "b") not in a.events.seen
    a.events.removed.add(ord("b"))
    a.transport.set_members([])
    assert ("guest gone", "b") in a.events.seen
    await b.events.wait_for("rejected", "a", "removed")
    assert not a.transport.is_connected(NodeId("b"))


async def test_peer_that_is_not_read_keeps_its_messages_until_it_is_read_again(pair):
    a, b = pair
    await a.events.wait_for("connected", "b")
    await b.events.wait_for("connected", "a")
    b.transport.set_reading(NodeId("a"), is_reading=False)
    for number in range(20):
        assert a.transport.send(NodeId("b"), ReadPing(1, number))
    for number in range(50):
        # The other direction goes on, and gives the event loop every chance to read.
        assert b.transport.send(NodeId("a"), ReadPing(2, number))
        await a.events.wait_for("message", "b", ReadPing(2, number))
    assert not [event for event in b.events.seen if event[0] == "message"]
    b.transport.set_reading(NodeId("a"), is_reading=True)
    await b.events.wait_for("message", "a", ReadPing(1, 19))
    assert [event[2].round for event in b.events.seen if event[0] == "message"] == list(range(20))


async def test_connections_that_end_at_once_are_dialled_less_and_less():
    """As when two processes take a member's connections away from each other."""
    (port,) = ports(1)
    accepted = 0

    async def welcome_and_close(reader, writer):
        nonlocal accepted
        accepted += 1
        await reader.read(4096)
        writer.write(encode_handshake(Welcome("b", ord("b"), "storage-of-b", "http://b")))
        await close(writer)

    server = await asyncio.start_server(welcome_and_close, "127.0.0.1", port)
    a = Member("a", ports(1)[0], {"b": port})
    began = asyncio.get_running_loop().time()
    await a.start()
    await a.events.wait_for("disconnected", "b")
    for _ in range(5):
        a.events.seen.clear()
        await a.events.wait_for("disconnected", "b")
    # The shortest pauses before six attempts: half of 50, 100, 200, 400 and 800 ms.
    assert asyncio.get_running_loop().time() - began > 0.7
    assert accepted <= 8
    await a.transport.stop()
    server.close()


async def test_peer_that_cannot_be_reached_is_logged_within_seconds_and_once(monkeypatch, caplog):
    monkeypatch.setattr(connections, "UNREACHABLE_SECONDS", 0.2)
    monkeypatch.setattr(connections, "LONGEST_RETRY_SECONDS", 0.05)
    own, port = ports(2)
    a = Member("a", own, {"b": port})
    warned = asyncio.Event()
    attempts = 0

    def count(link, error):
        nonlocal attempts
        warn_unreachable(link, error)
        if caplog.text:
            attempts += 1
        if attempts > 5:
            warned.set()

    warn_unreachable = connections.Link._warn_unreachable
    monkeypatch.setattr(connections.Link, "_warn_unreachable", count)
    await a.start()
    async with asyncio.timeout(8):
        await warned.wait()
    await a.transport.stop()
    assert [record.getMessage() for record in caplog.records] == [
        f"b cannot be reached at 127.0.0.1:{port}: Connection refused"
    ]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "it speaks TLS where plaintext is expected"),
        (b"\x15\x03\x03\x00\x02\x02\x28", "it speaks TLS where plaintext is expected"),
        (b"GET / HTTP/1.1\r\n\r\n", "it speaks HTTP"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it speaks HTTP"),
        (b"\xff\xff\xff\xff", "a frame of 4294967295 bytes, the limit is 4096"),
    ],
)
def test_other_protocols_are_named(data, fault):
    with pytest.raises(BadFrame, match=fault):
        list(FrameReader(4096).feed(data))


async def test_client_port_in_place_of_a_peer_port_is_named(caplog):
    (port,) = ports(1)

    async def refuse(reader, writer):
        await reader.read(4096)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await close(writer)

    server = await asyncio.start_server(refuse, "127.0.0.1", port)
    a = Member("a", ports(1)[0], {"b": port})
    warned = asyncio.Event()
    warning = connections.logger.warning
    connections_logger = pytest.MonkeyPatch()
    connections_logger.setattr(connections.logger, "warning", lambda *a: (warning(*a), warned.set()))
    await a.start()
    async with asyncio.timeout(8):
        await warned.wait()
    connections_logger.undo()
    assert f"dropped the connection to b at 127.0.0.1:{port}: it speaks HTTP" in caplog.text
    await a.transport.stop()
    server.close()


async def test_peer_without_tls_is_named_by_one_with_it(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(connections, "UNREACHABLE_SECONDS", 0.0)
    authority = TestAuthority.create(tmp_path)
    cert, key = authority.certify("a", "127.0.0.1")
    first, second = ports(2)
    plain, encrypted = Member("b", second, {}), Member("a", first, {"b": second})
    tls = transport.MutualTls(
        listening_context(cert, key, authority.certificate), dialling_context(authority.certificate, cert, key)
    )
    encrypted.transport.tls = tls
    logged = asyncio.Event()

    def warn(link, text):
        warn_of(link, text)
        logged.set()

    warn_of = connections.Link._warn
    monkeypatch.setattr(connections.Link, "_warn", warn)
    await plain.start()
    await encrypted.start()
    async with asyncio.timeout(8):
        await logged.wait()
    texts = [record.getMessage() for record in caplog.records]
    assert any("dropped the connection of 127.0.0.1: it speaks TLS" in text for text in texts), texts
    about_b = next(text for text in texts if text.startswith(("b cannot be reached", "TLS with b")))
    assert "reached at 127.0.0.1" not in about_b or "is TLS on at one of us only?" in about_b
    assert ": ;" not in about_b
    await plain.transport.stop()
    await encrypted.transport.stop()
