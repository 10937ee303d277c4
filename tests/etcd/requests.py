"""Random requests of etcd's JSON gateway, and what must be equal of their answers."""

from __future__ import annotations

import base64
import random
from collections.abc import Sequence

KEYS = [b"a", b"a\0", b"ab", b"b", b"c/1", b"c/2", b"\xff", b"z" * 40]
RELATIONS = ["EQUAL", "GREATER", "LESS", "NOT_EQUAL"]
TARGETS = ["VERSION", "CREATE", "MOD", "VALUE", "LEASE"]
TARGETS_OF_SORTING = ["KEY", "VERSION", "CREATE", "MOD", "VALUE"]
OPERANDS = ["version", "create_revision", "mod_revision", "value", "lease"]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def camel_case(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def nested_ranges(outer: int, inner: int) -> object:
    """A transaction of transactions: what the outer one takes of the bound, the inner ones do not have."""
    key = {"request_range": {"key": b64(b"a"), "count_only": True}}
    return {"success": [{"request_txn": {"success": [key] * inner}}] * outer}


class Requests:
    """Draws requests.

    Args:
        seed: Fixes them.
        prefix: What all their keys begin with.
        leases: Ids of their leases.

    Attributes:
        revision: The store's revision, which the requests refer to.
    """

    KINDS = ("put", "range", "deleterange", "txn", "compaction", "grant", "revoke", "ttl", "leases", "broken")
    WEIGHTS = (30, 30, 10, 30, 1, 4, 3, 3, 1, 3)

    def __init__(self, seed: object, prefix: bytes = b"", leases: Sequence[int] = (1001, 1002, 1003)) -> None:
        self._rng = random.Random(seed)  # type: ignore[arg-type]
        self._prefix = prefix
        self._leases = leases
        self.revision = 1

    def draw(self) -> tuple[str, object]:
        rng = self._rng
        kind = rng.choices(self.KINDS, self.WEIGHTS)[0]
        if kind == "put":
            return "/v3/kv/put", self._spelled(self._put())
        if kind == "range":
            return "/v3/kv/range", self._spelled(self._range())
        if kind == "deleterange":
            return "/v3/kv/deleterange", self._spelled(self._delete())
        if kind == "txn":
            return "/v3/kv/txn", self._spelled(self._txn(2))
        if kind == "compaction":
            return "/v3/kv/compaction", {"revision": self._number(self._some_revision())}
        if kind == "grant":
            seconds = rng.choice(["600", 700, 9_000_000_001])
            return "/v3/lease/grant", {"ID": self._number(self._lease()), "TTL": seconds}
        if kind == "revoke":
            return rng.choice(["/v3/lease/revoke", "/v3/kv/lease/revoke"]), {"ID": self._number(self._lease())}
        if kind == "ttl":
            return "/v3/lease/timetolive", {"ID": self._number(self._lease()), "keys": rng.random() < 0.7}
        if kind == "leases":
            return "/v3/lease/leases", {}
        return self._broken()

    def _broken(self) -> tuple[str, object]:
        name = self._prefix + b"a"
        key, put, other = b64(name), {"key": b64(name), "value": b64(b"v")}, {"key": b64(self._prefix + b"b")}
        return self._rng.choice(
            [
                ("/v3/kv/put", {}),
                ("/v3/kv/put", b""),
                ("/v3/kv/range", {"key": ""}),
                ("/v3/kv/put", {"key": "%%%"}),
                ("/v3/kv/put", {"key": 5}),
                ("/v3/kv/put", {"key": key, "lease": "x"}),
                ("/v3/kv/put", {"key": key, "lease": 1.5}),
                ("/v3/kv/put", {"key": key, "prev_kv": "true"}),
                ("/v3/kv/put", {"key": key, "value": b64(b"v"), "ignore_value": True}),
                ("/v3/kv/put", {"key": key, "lease": 7, "ignore_lease": True}),
                ("/v3/kv/range", b"[1]"),
                ("/v3/kv/range", b'{"key":'),
                ("/v3/kv/range", {"key": key, "nobody_knows": {"this": 1}}),
                ("/v3/kv/txn", {"success": [{}]}),
                ("/v3/kv/txn", {"success": [{"request_range": {"key": key}}] * 129}),
                ("/v3/kv/txn", nested_ranges(64, 64)),
                ("/v3/kv/txn", nested_ranges(64, 65)),
                ("/v3/kv/txn", nested_ranges(128, 0)),
                ("/v3/kv/txn", {"compare": [{"target": "VERSION", "result": "EQUAL"}]}),
                ("/v3/kv/put", {"key": key, "value": b64(bytes(1_600_000))}),
                ("/v3/kv/compaction", {"revision": 10**12}),
                ("/v3/lease/revoke", {}),
                ("/v3/nothing", {}),
                ("/v3/kv/range", b"null"),
                ("/v3/kv/range", b" null {"),
                ("/v3/kv/range", {"key": key + "\r\n", "limit": " 1 ", "revision": "null"}),
                ("/v3/kv/range", {"key": list(name)}),
                ("/v3/kv/range", {"key": [256]}),
                ("/v3/kv/range", {"key": key, "countOnly": True, "count_only": False}),
                ("/v3/kv/range", {"key": key, "countOnly": None, "count_only": True}),
                ("/v3/kv/range", {"key": b64(self._prefix + bytes(5000)), "range_end": b64(self._end)}),
                ("/v3/kv/deleterange", {"key": b64(self._prefix + bytes(5000))}),
                ("/v3/kv/put", {**put, "lease": "-1"}),
                ("/v3/kv/put", {**put, "lease": 999_999}),
                ("/v3/kv/txn", {"success": [{"request_put": {**put, "lease": -(2**63)}}]}),
                ("/v3/kv/txn", {"failure": [{"request_put": {**put, "lease": -5}}]}),
                ("/v3/kv/txn", {"success": [{"request_put": put, "request_range": other}]}),
                ("/v3/kv/txn", {"success": [{"request_txn": {}, "request_put": put}]}),
                ("/v3/kv/txn", {"success": [{"request_delete_range": other, "request_put": put}]}),
                ("/v3/kv/txn", {"success": [{"request_put": put, "requestPut": other, "request_txn": None}]}),
                ("/v3/kv/txn", {"success": [None]}),
                ("/v3/kv/txn", {"compare": [None]}),
                ("/v3/kv/txn", {"compare": [{"key": key, "target": "VERSION", "version": 1, "value": ""}]}),
                ("/v3/kv/txn", {"compare": [{"key": key, "target": "VERSION", "mod_revision": 1, "result": "LESS"}]}),
                ("/v3/kv/txn", {"compare": [{"key": key, "target": 3, "version": 5, "result": "GREATER"}]}),
                ("/v3/kv/txn", {"compare": [{"key": key, "target": "LEASE", "lease": -1}]}),
                ("/v3/lease/revoke", {"ID": -1}),
                ("/v3/lease/timetolive", {"ID": -1}),
                ("/v3/lock/lock", {"name": key, "lease": -1}),
                ("/v3/lock/unlock", {}),
                ("/v3/election/campaign", {"name": key, "lease": 999_999}),
                ("/v3/election/proclaim", {"leader": {"key": b64(self._prefix + b"none"), "rev": 5, "lease": 999_999}}),
            ]
        )

    def _key(self) -> str:
        return b64(self._prefix + self._rng.choice(KEYS))

    def _span(self) -> dict[str, object]:
        span: dict[str, object] = {"key": self._key()}
        end = self._rng.choice(["none", "none", "key", "zero", "all"])
        if end == "key":
            span["range_end"] = self._key()
        elif end == "zero":
            span["range_end"] = b64(self._end)
        elif end == "all":
            span = {"key": b64(self._prefix or b"\0"), "range_end": b64(self._end)}
        return span

    @property
    def _end(self) -> bytes:
        """The end of all keys: as etcd writes it, or that of the prefix."""
        return self._prefix[:-1] + bytes([self._prefix[-1] + 1]) if self._prefix else b"\0"

    def _lease(self) -> int:
        return self._rng.choice(self._leases)

    def _some_revision(self, lowest: int | None = None) -> int:
        revision = self.revision - self._rng.choice([-3, 0, 0, 1, 5, 40, 200])
        return revision if lowest is None else max(lowest, revision)

    def _number(self, number: int) -> object:
        return str(number) if self._rng.random() < 0.5 else number

    def _maybe(self, fields: dict[str, object], probability: float = 0.2) -> dict[str, object]:
        return {name: value for name, value in fields.items() if self._rng.random() < probability}

    def _put(self) -> dict[str, object]:
        rng = self._rng
        fields = {"key": self._key(), "value": b64(rng.randbytes(rng.choice([0, 1, 8])))}
        if rng.random() < 0.1:
            fields = {"key": self._key(), "ignore_value": True}
        fields |= self._maybe({"prev_kv": rng.random() < 0.8})
        if rng.random() < 0.15 and "ignore_value" not in fields:
            fields |= {"lease": self._number(self._lease())} if rng.random() < 0.6 else {"ignore_lease": True}
        return fields

    def _range(self) -> dict[str, object]:
        rng = self._rng
        fields = self._span() | self._maybe(
            {
                "limit": self._number(rng.choice([-1, 0, 1, 2, 5])),
                "revision": self._number(self._some_revision(0)),
                "sort_order": rng.choice([0, 1, 2, "NONE", "ASCEND", "DESCEND"]),
                "sort_target": rng.choice([0, 1, 2, 3, 4, "KEY", "VERSION", "CREATE", "MOD", "VALUE"]),
                "serializable": rng.random() < 0.5,
                "keys_only": rng.random() < 0.7,
                "count_only": rng.random() < 0.7,
                "min_mod_revision": self._number(self._some_revision()),
                "max_mod_revision": self._number(self._some_revision(0)),
                "min_create_revision": self._number(self._some_revision()),
                "max_create_revision": self._number(self._some_revision(0)),
            }
        )
        if fields.get("sort_target", 0) not in (0, "KEY"):
            # Among equals etcd's order is of no kind, so a limit would keep any of them.
            fields.pop("limit", None)
        return fields

    def _delete(self) -> dict[str, object]:
        return self._span() | self._maybe({"prev_kv": True}, 0.5)

    def _compare(self) -> dict[str, object]:
        rng = self._rng
        number = rng.randrange(5)
        fields: dict[str, object] = self._span() if rng.random() < 0.3 else {"key": self._key()}
        fields["target"] = rng.choice([TARGETS[number], number])
        relation = rng.randrange(4)
        if relation or rng.random() < 0.5:
            fields["result"] = rng.choice([RELATIONS[relation], relation])
        if OPERANDS[number] == "value":
            fields["value"] = b64(rng.randbytes(rng.choice([0, 1])))
        elif rng.random() < 0.9:
            operand = {"version": rng.randrange(3), "lease": rng.choice([0, self._leases[0]])}.get(
                OPERANDS[number], self._some_revision(0)
            )
            fields[OPERANDS[number]] = self._number(operand)
        return fields

    def _txn(self, depth: int, *, may_delete: bool | None = None) -> dict[str, object]:
        deleting = self._rng.random() < 0.5 if may_delete is None else may_delete

        def put() -> dict[str, object]:
            # etcd crashes when a transaction deletes a key whose value a later put of it is to keep.
            fields = self._put()
            while deleting and fields.keys() & {"ignore_value", "ignore_lease"}:
                fields = self._put()
            return fields

        def operation() -> dict[str, object]:
            weights = [4, 5, 3 if deleting else 0, 1 if depth else 0]
            kind = self._rng.choices(["range", "put", "delete_range", "txn"], weights)[0]
            draw = {"range": self._range, "put": put, "delete_range": self._delete}.get(kind)
            return {f"request_{kind}": draw() if draw else self._txn(depth - 1, may_delete=deleting)}

        return {
            "compare": [self._compare() for _ in range(self._rng.choice([0, 1, 1, 2]))],
            "success": [operation() for _ in range(self._rng.choice([0, 1, 2, 3]))],
            "failure": [operation() for _ in range(self._rng.choice([0, 1, 2]))],
        }

    def _spelled(self, fields: dict[str, object]) -> dict[str, object]:
        """Spell names as either generation of clients does."""
        if self._rng.random() < 0.7:
            return fields

        def spell(value: object) -> object:
            if isinstance(value, dict):
                return {camel_case(name): spell(item) for name, item in value.items()}
            return [spell(item) for item in value] if isinstance(value, list) else value

        return spell(fields)  # type: ignore[return-value]


def by_key(value: object) -> object:
    """Return a document with its lists of keys in the order of the keys."""
    if isinstance(value, dict):
        return {
            name: sorted(item, key=lambda found: found["key"]) if name == "kvs" else by_key(item)
            for name, item in value.items()
        }
    return [by_key(item) for item in value] if isinstance(value, list) else value


def attributes_in_order(document: dict[str, object], request: object) -> object:
    """Return what a range was sorted by, in the order of its answer."""
    if not isinstance(request, dict) or "kvs" not in document:
        return None
    target = request.get("sort_target", request.get("sortTarget", 0))
    name = {1: "version", 2: "create_revision", 3: "mod_revision", 4: "value"}.get(
        TARGETS_OF_SORTING.index(target) if isinstance(target, str) else target, "key"
    )
    return [found.get(name) for found in document["kvs"]]  # type: ignore[attr-defined]


def normal(path: str, request: object, answer: tuple[int, object]) -> object:
    """Return what must be equal of an answer."""
    status, document = answer
    if not isinstance(document, dict):
        return status
    if "error" in document:
        # Sentences about the syntax of JSON are each parser's own; etcd's errors are told by their sentences.
        message = document["message"] if str(document["message"]).startswith("etcdserver") else None
        return status, document["code"], message
    header = document.get("header", {})
    kept = {name: value for name, value in document.items() if name != "header"} | {"revision": header.get("revision")}
    if path.endswith("timetolive"):
        # The seconds of two processes differ; what clients look at is whether there are any.
        kept["TTL"] = str(int(kept.get("TTL", "0")) > 0)
        # etcd lists them as they come out of a map.
        kept["keys"] = sorted(kept.get("keys", []))  # type: ignore[type-var]
    if path.endswith("leases") and "leases" in document:
        kept["leases"] = sorted(lease["ID"] for lease in document["leases"])
    return by_key(kept), attributes_in_order(document, request)
