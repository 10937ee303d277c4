"""Simulated clusters on the real peer transport and the real HTTP front-end.

The plain simulation hands messages from core to core and calls services. Here nodes shake hands, frame, resend and
reject as in production, over the virtual streams of ``tests.simulation.streams``, and clients speak HTTP.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from base64 import b64decode, b64encode
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from raftkv.consensus.messages import AppendEntries, Message, RequestVote, TimeoutNow, encode
from raftkv.errors import NotLeader
from raftkv.http import FrontEnd, FrontEndSettings
from raftkv.http.etcd.errors import LEADER_CHANGED, NO_LEADER, TIMED_OUT, Code, GatewayError
from raftkv.http.etcd.forward import FORWARDED, Forwarder, _leader_url
from raftkv.membership import ClusterMember
from raftkv.runtime.backup_reports import BackupReports
from raftkv.runtime.framing import Hello, encode_frame, encode_handshake
from raftkv.runtime.metrics import Metrics
from raftkv.runtime.transport import LocalIdentity, Transport
from raftkv.service.alarms import Alarms
from raftkv.service.api import NodeServices
from raftkv.service.cluster import Cluster
from raftkv.types import NodeId, Revision
from raftkv.verification.history import Kind, Outcome
from tests.simulation.disk import VirtualDisk
from tests.simulation.http_access import ANSWER_SECONDS, note_answer
from tests.simulation.http_client import CLIENT_PORT, request
from tests.simulation.loop import SimulationLoop
from tests.simulation.network import Weather
from tests.simulation.node import CURRENT_NODE, SimulatedNode
from tests.simulation.parsing import arrival_seconds
from tests.simulation.streams import Owner, Streams
from tests.simulation.workload import Answer, Workload

if TYPE_CHECKING:
    from tests.simulation.world import World

PEER_PORT = 1


class WiredNetwork:
    """What ``tests.simulation.network.Network`` is to the plain simulation.

    Attributes:
        weather: What the network does to streams at the moment.
        streams: The streams.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.weather = Weather()
        self.streams = Streams(world.loop, world.rng, self.weather, self._current_owner)
        world.loop.streams = self.streams
        world.loop.held_until = _held_until
        # Pauses between attempts to connect come from the module's own generator.
        random.seed(world.plan.seed)
        self.tamper: Callable[[Message], Message | None] | None = None
        self.watch: Callable[[NodeId, NodeId, Message], None] | None = None

    def endpoint(self, node: SimulatedNode) -> Transport:
        """Return a started transport of a node, and let its front-end serve clients."""
        storage, replica = node.storage, node.replica
        identity = LocalIdentity(
            storage.identity.cluster_id,
            storage.identity.member_id,
            storage.identity.storage_id,
            f"http://{node.name}",
            f"{node.name}:{PEER_PORT}",
            replica.announced,
            "",
            node.life,
            node.start_index,
        )
        transport = Transport(
            node.name,
            storage.machine.membership.members,
            identity,
            node.handler,
            node._on_fatal,
            promises=replica.promises,
            find_members=self._find_members,
            new_token=lambda: f"{random.getrandbits(128):032x}",
        )
        front_end = FrontEnd(self._services(node), FrontEndSettings())
        gateway, forwarder = front_end._gateway, VirtualForwarder(self._world.loop)
        gateway._forwarder = forwarder
        gateway._streams["lease/keepalive"].__self__._forwarder = forwarder
        _run_now(transport.start(node.name, PEER_PORT))
        _run_now(front_end.start(node.name, CLIENT_PORT))
        node.transport, node.front_end = transport, front_end
        return transport

    async def _find_members(self) -> list[ClusterMember]:
        """Ask the cluster, as a node does that its operator starts with ``--join``."""
        return list(self._world.latest_membership().members)

    def _services(self, node: SimulatedNode) -> NodeServices:
        storage = node.storage
        return NodeServices(
            kv=node.kv,
            store=node.store,
            leases=node.leases,
            watches=node.replica.watches,
            alarms=Alarms(storage.machine, node.writes, 0),
            backups=node.backups,
            snapshots=node.keeper,
            cluster=Cluster(storage.identity.cluster_id, node.replica, node.replica.gate),
            members=node.membership_service,
            metrics=Metrics(),
            backup_reports=BackupReports(VirtualDisk().root, self._world.loop.time),
        )

    def _current_owner(self) -> Owner:
        node = CURRENT_NODE.get()
        if node is None:
            return Owner(NodeId("client"), lambda: True, lambda action, *arguments: action(*arguments))
        generation, seconds_per_kb = node.generation, self._world.parse_seconds_per_kb
        return Owner(
            node.name,
            lambda: node.is_up and node.generation == generation,
            node.enter,
            lambda: node.held_until - self._world.loop.time(),
            lambda size: node.hold(arrival_seconds(size, seconds_per_kb)),
        )

    def add(self, name: NodeId) -> None:
        """A node takes part from now on: streams need not know."""

    def bring_together(self) -> None:
        """Nothing keeps nodes apart but cut links."""

    def disconnect(self, name: NodeId) -> None:
        """A process ended."""
        node = self._world.nodes[name]
        # As the end of the process does: nothing of it runs any more.
        node.transport._stopped = True
        for link in [*node.transport._links.values(), *node.transport._snapshot_links.values()]:
            link.stop()
        self.streams.close_all_of(name)

    def break_link(self, source: NodeId, target: NodeId) -> None:
        """Reset what a node has dialled to another."""
        self.streams.break_between(source, target)


def _held_until(context: contextvars.Context) -> float:
    node = context.get(CURRENT_NODE)
    return 0.0 if node is None else node.held_until


def _run_now(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Run a coroutine that has nothing to wait for: listening takes no time."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")


class Vandal:
    """Sends what is no valid request or handshake to the ports of a node.

    It also says hello as a member would, or as one that nobody knows yet, with messages of a leader behind that.

    Args:
        world: The cluster.
        rng: Where chance comes from.
    """

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self._rng = random.Random(rng.getrandbits(64))

    def begin(self) -> None:
        """Attack one node from some connections."""
        name = self._rng.choice(list(self._world.nodes))
        for _ in range(self._rng.randint(1, 8)):
            self._world.loop.create_task(self._connect(name))

    async def _connect(self, name: NodeId) -> None:
        rng = self._rng
        port = rng.choice((PEER_PORT, CLIENT_PORT))
        stream = asyncio.StreamReader(loop=self._world.loop)
        try:
            transport, _ = await self._world.loop.create_connection(
                lambda: asyncio.StreamReaderProtocol(stream, loop=self._world.loop), name, port
            )
        except OSError:
            return
        try:
            for data in self._peer_garbage(name) if port == PEER_PORT else self._client_garbage():
                transport.write(data)
                await asyncio.sleep(rng.choice((0.0, 0.01, 1.0)))
            async with asyncio.timeout(rng.uniform(0.0, 12.0)):
                while await stream.read(65536):
                    self._world.counts["garbage: answers"] += 1
        except (OSError, TimeoutError):
            self._world.counts["garbage: connections that were not closed in order"] += 1
        finally:
            transport.abort() if rng.random() < 0.5 else transport.close()

    def _impostor(self, target: NodeId) -> list[bytes]:
        """Return what a leader says, of whom everything is known but the secrets of its connections."""
        rng, node = self._rng, self._world.nodes[target]
        claimed = rng.choice([*self._world.nodes.values()])
        identity = claimed.storage.identity if claimed.was_started else None
        hello = Hello(
            1,
            self._world.cluster_id,
            rng.choice((claimed.name, NodeId("vandal"))),
            identity.member_id if identity is not None else rng.getrandbits(63),
            identity.storage_id if identity is not None else "0",
            target,
            "http://vandal",
            rng.choice((f"{claimed.name}:{PEER_PORT}", "vandal:1")),
            token=f"{rng.getrandbits(128):032x}",
        )
        if not node.was_started:
            return [encode_handshake(hello)]
        term = node.core.term + rng.randint(0, 1)
        index = node.storage.journal.last_index
        entry = (b"\x00vandal", index + 1, term)
        append = AppendEntries(term, index, index, node.storage.journal.last_term, (entry,))
        messages = [append, RequestVote(term + 5, index + 9, term + 5), TimeoutNow(term)]
        return [encode_handshake(hello), *(encode_frame(encode(message)) for message in messages)]

    def _peer_garbage(self, target: NodeId) -> list[bytes]:
        rng = self._rng
        if rng.random() < 0.25:
            return self._impostor(target)
        hello = encode_handshake(
            Hello(
                rng.choice((0, 1, 2, 99)),
                rng.choice((self._world.cluster_id, "0" * 16, "")),
                rng.choice(("n1", "n2", "vandal", "", "x" * 500, "line\nbreak")),
                rng.getrandbits(rng.choice((1, 64))),
                f"{rng.getrandbits(64):016x}",
                rng.choice((target, "other")),
                "http://vandal",
                "vandal:1",
                rng.choice((0, 1, 7)),
            )
        )
        damaged = bytearray(hello)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        return rng.choice(
            (
                [rng.randbytes(rng.randint(1, 300))],
                [b"\xff\xff\xff\xff" + rng.randbytes(20)],
                [hello[: rng.randint(0, len(hello))]],
                [bytes(damaged)],
                # The handshake of a cluster or for a target that is another one, then more bytes.
                [encode_handshake(Hello(1, "0" * 16, "vandal", 1, "0", target, "", "vandal:1")), rng.randbytes(50)],
                [hello[:1] for _ in range(3)],
                [b"GET / HTTP/1.1\r\n\r\n"],
                [b"\x16\x03\x01\x02\x00\x01\x00" + rng.randbytes(64)],
            )
        )

    def _client_garbage(self) -> list[bytes]:
        rng = self._rng
        put = b"PUT /v1/kv/vandal HTTP/1.1\r\nHost: n1\r\nContent-Length: 5\r\n\r\nhello"
        damaged = bytearray(put)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(4, len(damaged))] = rng.randrange(256)
        return rng.choice(
            (
                [rng.randbytes(rng.randint(1, 400))],
                [put[: rng.randint(0, len(put) - 1)]],
                [bytes(damaged[:3]) + b"/" + bytes(damaged[4:])],
                [b"POST /v3/kv/txn HTTP/1.1\r\nHost: n1\r\nTransfer-Encoding: chunked\r\n\r\n", b"zz\r\n"],
                [b"POST /v3/kv/range HTTP/1.1\r\nHost: n1\r\nContent-Length: 9\r\n\r\n" + rng.randbytes(9)],
                [b"POST /v3/watch HTTP/1.1\r\nHost: n1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n" * 2],
                [b"GET /" + b"a" * rng.choice((10, 20_000)) + b" HTTP/1.1\r\n"],
                [b"GET /v1/kv/a HTTP/1.1\r\nHost: n1\r\n\r\n" * 50],
            )
        )


class VirtualForwarder(Forwarder):
    """Sends requests of etcd's gateway on to the leader, over virtual streams."""

    def __init__(self, loop: SimulationLoop) -> None:
        super().__init__(None)
        self._loop = loop

    async def send(
        self, original: web.BaseRequest, path: str, body: bytes, leader: NotLeader, *, lasts: bool
    ) -> web.Response:
        host = _leader_url(original, leader).removeprefix("http://")
        try:
            async with asyncio.timeout(None if lasts else 10.0):
                status, _, answer = await request(self._loop, host, "POST", path, {FORWARDED: "1"}, body)
        except ConnectionRefusedError:
            raise GatewayError(Code.UNAVAILABLE, LEADER_CHANGED) from None
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            raise GatewayError(Code.UNAVAILABLE, TIMED_OUT) from None
        return web.Response(status=status, body=answer, headers={"Content-Type": "application/json"})

    async def ask_stream(
        self, original: web.BaseRequest, path: str, message: dict[str, Any], leader: NotLeader
    ) -> dict[str, Any]:
        host = _leader_url(original, leader).removeprefix("http://")
        try:
            async with asyncio.timeout(10.0):
                body = orjson.dumps(message)
                _, _, answer = await request(self._loop, host, "POST", path, {FORWARDED: "1"}, body)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            raise GatewayError(Code.UNAVAILABLE, LEADER_CHANGED) from None
        document = orjson.loads(answer)
        if "error" in document:
            raise GatewayError(Code(document["error"]["grpc_code"]), document["error"]["message"])
        result: dict[str, Any] = document["result"]
        return result


class HttpWorkload(Workload):
    """The clients of the plain simulation, which speak HTTP to the front-ends: natively or as clients of etcd."""

    async def _ask(
        self,
        client: str,
        node: SimulatedNode,
        kind: Kind,
        key: bytes,
        value: bytes | None,
        revision: Revision | None,
    ) -> Answer:
        # Errors of the gateway leave outcomes open, and too many open outcomes are more than the checker can search.
        share = 0.5 if kind is Kind.GET else 0.25
        ask = self._ask_gateway if self._rng.random() < share else self._ask_natively
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await ask(node.name, kind, key, value, revision)
        except ConnectionRefusedError:
            return Answer(Outcome.REFUSED, value)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            answer = Answer(Outcome.UNKNOWN, value)
        if kind is Kind.GET:
            if answer.outcome is not Outcome.DONE:
                # A read has no effect, whether or not it was carried out.
                return Answer(Outcome.REFUSED, value)
            assert answer.mod_revision is not None
            self._last_read[client] = (answer.value, answer.mod_revision)
        return answer

    async def _ask_natively(
        self, name: NodeId, kind: Kind, key: bytes, value: bytes | None, revision: Revision | None
    ) -> Answer:
        method = {Kind.GET: "GET", Kind.DELETE: "DELETE"}.get(kind, "PUT")
        headers = {}
        if revision is not None:
            headers = {"If-None-Match": "*"} if revision == 0 else {"If-Match": f'"{revision}"'}
        body = value if method == "PUT" else None
        path = f"/v1/kv/{key.decode()}"
        status, answered, answer = await request(self._world.loop, name, method, path, headers, body)
        note_answer(self._world, "native", status, answer)
        own = Revision(int(answered["x-raftkv-revision"])) if "x-raftkv-revision" in answered else None
        etag = Revision(int(answered["etag"].strip('"'))) if "etag" in answered else None
        if kind is Kind.GET and status in (200, 404):
            return Answer(Outcome.DONE, answer if status == 200 else None, own, etag or Revision(0))
        if kind is Kind.DELETE and status == 200:
            return Answer(Outcome.DONE, value, own, None, orjson.loads(answer)["deleted"] > 0)
        if status in (200, 201):
            return Answer(Outcome.DONE, value, own, etag)
        if status == 412:
            return Answer(Outcome.CONDITION_FAILED, value, own, etag or Revision(0))
        refused = orjson.loads(answer)["applied"] == "no"
        return Answer(Outcome.REFUSED if refused else Outcome.UNKNOWN, value)

    async def _ask_gateway(
        self, name: NodeId, kind: Kind, key: bytes, value: bytes | None, revision: Revision | None
    ) -> Answer:
        encoded = {"key": b64encode(key).decode()}
        put = {**encoded, "value": b64encode(value or b"").decode()}
        path, message = {
            Kind.GET: ("/v3/kv/range", encoded),
            Kind.DELETE: ("/v3/kv/deleterange", encoded),
        }.get(kind, ("/v3/kv/put", put))
        if revision is not None:
            compare = {**encoded, "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}
            path, message = (
                "/v3/kv/txn",
                {"compare": [compare], "success": [{"request_put": put}], "failure": [{"request_range": encoded}]},
            )
        status, _, body = await request(self._world.loop, name, "POST", path, {}, orjson.dumps(message))
        note_answer(self._world, "gateway", status, body)
        document = orjson.loads(body)
        if status != 200:
            # Of etcd's errors only this one says that nothing was applied.
            refused = document["message"] == NO_LEADER
            return Answer(Outcome.REFUSED if refused else Outcome.UNKNOWN, value)
        own = Revision(int(document["header"]["revision"]))
        if revision is not None:
            if document.get("succeeded"):
                return Answer(Outcome.DONE, value, own, None)
            found = document["responses"][0]["response_range"].get("kvs", [])
            return Answer(Outcome.CONDITION_FAILED, value, own, _mod_revision(found))
        if kind is Kind.GET:
            found = document.get("kvs", [])
            read = b64decode(found[0].get("value", "")) if found else None
            return Answer(Outcome.DONE, read, own, _mod_revision(found))
        return Answer(Outcome.DONE, value, own, None, kind is not Kind.DELETE or "deleted" in document)


def _mod_revision(found: list[dict[str, str]]) -> Revision:
    return Revision(int(found[0]["mod_revision"])) if found else Revision(0)
