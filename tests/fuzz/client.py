"""Hostile clients at the client port: requests that build on what earlier ones have made, and most of them wrong.

A session is one connection with several requests, some pipelined, on keys, leases, watches, locks and transactions of
the native API and of etcd's gateway. Whatever is sent, each answer must be valid HTTP with a documented status.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
from functools import partial
from pathlib import Path

from tests.fuzz.bodies import Bodies, Made
from tests.fuzz.target import HOST, Finding, Knowledge, Target, converse, send_in_pieces

ANSWER_SECONDS = 30.0

_DOCS = Path(__file__).parents[2] / "docs"
_OTHERS = {101, 200, 201, 204, 304, 501}
DOCUMENTED = _OTHERS | {int(status) for status in re.findall(r"\| (\d{3}) \|", (_DOCS / "http-errors.md").read_text())}
"""Statuses of the documentation; 501 is etcd's of what is not there."""

_SENTENCES_OF_500 = ("election: ", '"leader" field must be provided', "etcdserver: ")
"""etcd itself answers some requests with 500 and the gRPC code UNKNOWN (docs/etcd.md)."""

_STREAM = re.compile(r"/+(v1/watch|v3(alpha|beta)?/(watch|lease/keepalive))(\?.*)?")
_MAY_WAIT = ("lock/lock", "election/campaign", "/v1/locks/l", "elections/e")
_WAITS_FOR_CHANGE = re.compile(r"/v1/kv/.*[?&]index=")
_SHOWN = 600

_FIELDS = [
    *("key", "range_end", "value", "lease", "limit", "revision", "compare", "success", "failure", "target", "result"),
    *("request_put", "request_range", "request_txn", "request_delete_range", "ID", "TTL", "keys", "name", "prev_kv"),
    *("create_request", "cancel_request", "watch_id", "filters", "leader", "rev", "start_revision", "progress_notify"),
    *("if", "then", "else", "put", "get", "delete", "txn", "prefix", "from", "to", "equal", "mod_revision", "encoding"),
    *("ttl_seconds", "id", "wait_seconds", "version", "previous", "keep_value", "sort_order", "sort_target"),
    "physical",
]
_ETCD_PATHS = [
    *("kv/range", "kv/put", "kv/deleterange", "kv/txn", "kv/compaction", "watch", "lease/grant", "lease/revoke"),
    *("lease/keepalive", "lease/timetolive", "lease/leases", "cluster/member/list", "maintenance/status"),
    *("maintenance/hash", "maintenance/hashkv", "auth/status", "lock/lock", "lock/unlock", "election/campaign"),
    *("election/proclaim", "election/leader", "election/resign", "kv/nothing"),
]
_NATIVE_PATHS = [
    *("/v1/kv", "/v1/txn", "/v1/watch", "/v1/leases", "/v1/cluster", "/v1/cluster/members", "/v1/status", "/v1/alarms"),
    *("/livez", "/readyz", "/health", "/version", "/metrics", "/v1/compaction", "/nowhere", "/", "*", "//v3/kv/range"),
]
_PARAMETERS = [
    *("prefix", "limit", "from", "to", "consistency", "lease", "revision", "wait", "index", "count_only", "after", "zz")
]
_HEADERS = [
    *("If-Match: *", "If-None-Match: *", 'If-Match: "3"', "If-Match: x", 'If-None-Match: W/"1", "2"', "Accept: */*"),
    *("Idempotency-Key: a", "Idempotency-Key: " + "i" * 300, "Raftkv-Fence: x", "Expect: 100-continue", "Expect: tea"),
    *("Content-Type: application/json", "Content-Type: \xff", "Origin: http://evil.example", "Connection: close"),
    *(
        "Last-Event-ID: 99999999999999999999",
        "Range: bytes=0-1",
        "Accept-Encoding: gzip",
        "Host: b",
        "X-A: " + "v" * 9000,
    ),
    *("Transfer-Encoding: gzip", "Upgrade: websocket", "Content-Length: 5", "Bad Header", ": empty", "X-Nul: \0"),
]


class HostileClient:
    """One session at the client port.

    Args:
        rng: Where chance comes from.
        knowledge: What is known of the cluster.
    """

    def __init__(self, rng: random.Random, knowledge: Knowledge) -> None:
        self._rng = rng
        self._knowledge = knowledge
        self._made = Made()
        self._bodies = Bodies(rng, _FIELDS, self._made)

    async def run(self) -> None:
        """Hold the session.

        Raises:
            Finding: An answer is none that may be given.
        """
        target = self._rng.choice(self._knowledge.targets)
        for _ in range(self._rng.choice((1, 2, 3))):
            await converse(self._rng, self._knowledge, "client", target.client_port, partial(self._speak, target))

    async def _speak(self, target: Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rng = self._rng
        for _ in range(rng.choice((1, 2, 5, 20))):
            requests = [self._request() for _ in range(rng.choice((1, 1, 1, 1, 2, 5)))]
            await send_in_pieces(rng, writer, b"".join(data for data, _ in requests))
            if rng.random() < 0.05:
                break
            for data, path in requests:
                await self._read(target, reader, data, path)

    def _request(self) -> tuple[bytes, str]:
        """Return the bytes of one request, and its path."""
        rng = self._rng
        method, path, body = rng.choice((self._native, self._native_key, self._gateway, self._gateway))()
        lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}"]
        lines += rng.sample(_HEADERS, rng.choice((0, 0, 0, 1, 2)))
        framing = rng.random()
        if framing < 0.15 and body:
            size = rng.randint(1, len(body))
            chunks = [body[at : at + size] for at in range(0, len(body), size)]
            body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
            lines.append("Transfer-Encoding: chunked")
        elif body or method not in ("GET", "HEAD", "DELETE"):
            length = len(body) if framing < 0.97 else len(body) + rng.choice((-1, 1, -(10**9), 10**9, 10**30))
            lines.append(f"Content-Length: {length}")
        data = "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body
        if rng.random() < 0.03:
            damaged = bytearray(data)
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            data = bytes(damaged)
        return data, path

    def _native(self) -> tuple[str, str, bytes]:
        rng, made = self._rng, self._made
        path = rng.choice([*_NATIVE_PATHS, f"/v1/leases/{rng.choice(made.leases)}", "/v1/locks/l", "/v1/elections/e"])
        if rng.random() < 0.4:
            path += "?" + "&".join(self._parameter() for _ in range(rng.randint(1, 3)))
        reads = path.startswith(("/v1/cluster", "/v1/alarms", "/v1/compaction"))
        method = (
            "GET" if reads else rng.choice(("GET", "GET", "POST", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "BREW"))
        )
        return method, path, self._bodies.draw() if method in ("POST", "PUT") or rng.random() < 0.1 else b""

    def _native_key(self) -> tuple[str, str, bytes]:
        rng, made = self._rng, self._made
        key = rng.choice(
            (rng.choice(made.keys), f"k{rng.randrange(100)}", "%FF", "a%2Fb", "%", "%zz", "x" * 5000, "é", "")
        )
        made.keys.append(key)
        path = f"/v1/kv/{key}"
        if rng.random() < 0.4:
            path += "?" + "&".join(self._parameter() for _ in range(rng.randint(1, 2)))
        method = rng.choice(("GET", "PUT", "PUT", "DELETE", "HEAD", "POST"))
        return method, path, rng.randbytes(rng.choice((0, 1, 100, 10_000))) if method == "PUT" else b""

    def _gateway(self) -> tuple[str, str, bytes]:
        rng = self._rng
        path = f"/{rng.choice(('v3', 'v3', 'v3beta', 'v3alpha'))}/{rng.choice(_ETCD_PATHS)}"
        return rng.choice(("POST", "POST", "POST", "POST", "GET", "PUT")), path, self._bodies.draw()

    def _parameter(self) -> str:
        rng, made = self._rng, self._made
        name = rng.choice(_PARAMETERS)
        value = rng.choice((rng.choice(made.keys), rng.choice(made.revisions), -1, 2**64, "stale", "true", "", "%00"))
        return f"{name}={value}"

    async def _read(self, target: Target, reader: asyncio.StreamReader, data: bytes, path: str) -> None:
        """Read one answer, and check it.

        Raises:
            Finding: It is none that may be given.
            ConnectionError: The connection ends here, as it may after what is no HTTP, or a stream.
        """
        is_incomplete = b"\r\nContent-Length: " in data or b"\0" in data or b"Transfer-Encoding" in data
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
        except TimeoutError:
            if is_incomplete or path.partition("?")[0].endswith(_MAY_WAIT) or _WAITS_FOR_CHANGE.search(path):
                raise ConnectionResetError from None
            raise Finding(f"{target.name} does not answer within {ANSWER_SECONDS:g} s: {data[:_SHOWN]!r}") from None
        except asyncio.LimitOverrunError:
            raise Finding(f"{target.name} answers with an endless header: {data[:_SHOWN]!r}") from None
        status, headers = self._parse_head(target, head, data)
        self._knowledge.counts[f"client: {status}"] += 1
        if status == 100:
            await self._read(target, reader, data, path)
            return
        if status == 101 or (status == 200 and _STREAM.fullmatch(path) and "content-length" not in headers):
            await self._read_stream(reader)
            raise ConnectionResetError
        try:
            body = await self._read_body(target, reader, status, headers, data)
        except TimeoutError:
            raise Finding(f"{target.name} does not end its answer {status} to {data[:_SHOWN]!r}") from None
        self._check(target, status, headers, body, data)
        if headers.get("connection", "").lower() == "close":
            raise ConnectionResetError

    def _parse_head(self, target: Target, head: bytes, data: bytes) -> tuple[int, dict[str, str]]:
        lines = head.decode("latin-1").split("\r\n")[:-2]
        parts = lines[0].split(" ", 2)
        if (
            parts[0] not in ("HTTP/1.1", "HTTP/1.0")
            or len(parts) < 2
            or not (parts[1].isdigit() and len(parts[1]) == 3)
        ):
            raise Finding(f"{target.name} answers with no HTTP: {lines[0]!r} to {data[:_SHOWN]!r}")
        headers = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon or name != name.strip() or not value.isprintable():
                raise Finding(f"{target.name} answers with the header {line!r} to {data[:_SHOWN]!r}")
            headers[name.lower()] = value.strip()
        return int(parts[1]), headers

    async def _read_body(
        self, target: Target, reader: asyncio.StreamReader, status: int, headers: dict[str, str], data: bytes
    ) -> bytes:
        if status in (204, 304) or data.startswith(b"HEAD "):
            return b""
        async with asyncio.timeout(ANSWER_SECONDS):
            if headers.get("transfer-encoding") == "chunked":
                body = b""
                while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                    body += (await reader.readexactly(size + 2))[:-2]
                await reader.readexactly(2)
                return body
            if "content-length" not in headers:
                raise Finding(f"{target.name} answers {status} without a length to {data[:_SHOWN]!r}")
            return await reader.readexactly(int(headers["content-length"]))

    def _check(self, target: Target, status: int, headers: dict[str, str], body: bytes, data: bytes) -> None:
        document = None
        # A value's type is what a client has said of it.
        is_value = "x-raftkv-content-type" in headers
        if "json" in headers.get("content-type", "") and body and not is_value:
            try:
                document = json.loads(body)
            except ValueError:
                if body.count(b"\n") < 1:
                    raise Finding(
                        f"{target.name} answers {status} with no JSON: {body[:300]!r} to {data[:_SHOWN]!r}"
                    ) from None
        self._made.note(document)
        is_of_etcd = isinstance(document, dict) and str(document.get("message", "")).startswith(_SENTENCES_OF_500)
        if status == 500 and is_of_etcd and "unexpected" not in str(document):
            return
        if status not in DOCUMENTED or status == 500:
            raise Finding(f"{target.name} answers {status} {body[:300]!r} to {data[:_SHOWN]!r}")
        has_body = not data.startswith(b"HEAD ")
        is_problem = headers.get("content-type") == "application/problem+json" and has_body and not is_value
        if is_problem and (not isinstance(document, dict) or document.get("applied") not in ("no", "yes", "unknown")):
            raise Finding(f"{target.name} answers with no problem document: {body[:300]!r} to {data[:_SHOWN]!r}")

    async def _read_stream(self, reader: asyncio.StreamReader) -> None:
        """Read a stream for a moment; it ends with its connection."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._rng.choice((0.0, 0.05, 0.5))):
                while await reader.read(65_536):
                    pass
