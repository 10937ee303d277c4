"""From errors of the services to answers."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from raftkv import errors
from raftkv.http import problems
from raftkv.types import NodeId


@pytest.mark.parametrize(
    ("error", "status", "slug", "applied", "retry_after"),
    [
        (errors.InvalidRequest("because"), 400, "invalid-request", "no", None),
        (errors.NoLeader("because"), 503, "no-leader", "no", "1"),
        (errors.Superseded("because"), 503, "superseded", "no", "1"),
        (errors.Overloaded("because"), 429, "overloaded", "no", "1"),
        (errors.StorageLow("because"), 507, "storage-low", "no", None),
        (errors.ShuttingDown("because"), 503, "shutting-down", "no", "1"),
        (errors.ReadTimeout("because"), 503, "read-timeout", "no", "1"),
        (errors.NotApplied("because"), 503, "refused", "no", "1"),
        (errors.Timeout("because"), 504, "timeout", "unknown", None),
        (errors.LeadershipLost("because"), 504, "leadership-lost", "unknown", None),
        (errors.UnknownOutcome("because"), 504, "outcome-unknown", "unknown", None),
    ],
)
@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
async def test_each_error_has_its_answer(client, kv, caplog, method, error, status, slug, applied, retry_after):
    kv.failure = error
    answer = await client.ask(method, "/v1/kv/a", b"x" if method == "PUT" else None)
    assert (answer.status, answer.problem()) == (status, slug)
    assert answer.json()["applied"] == applied
    assert answer.json()["detail"] == "because"
    assert answer.headers.get("retry-after") == retry_after
    assert answer.headers["cache-control"] == "no-store"
    assert caplog.records == []


async def test_an_error_without_a_message_still_says_something(client, kv):
    kv.failure = errors.NoLeader()
    assert (await client.ask("GET", "/v1/kv/a")).json()["detail"] == "No leader can be reached"


def test_every_error_of_the_tree_is_covered_and_refusals_never_look_unknown():
    def leaves(base: type[errors.RaftkvError]) -> list[type[errors.RaftkvError]]:
        below = [each for each in base.__subclasses__() if each.__module__ == errors.__name__]
        return [base, *(leaf for each in below for leaf in leaves(each))]

    for error in leaves(errors.NotApplied):
        assert problems.KIND_OF_ERROR[error].applied == "no", error
        assert problems.KIND_OF_ERROR[error].status not in (500, 504), error
    for error in leaves(errors.UnknownOutcome):
        assert problems.KIND_OF_ERROR[error].applied == "unknown", error
        assert problems.KIND_OF_ERROR[error].status == 504, error


@pytest.mark.parametrize("failure", [RuntimeError("secret"), errors.StorageFailed("secret"), TimeoutError("secret")])
async def test_the_unexpected_is_logged_and_not_told(client, kv, caplog, failure):
    kv.failure = failure
    with caplog.at_level(logging.ERROR):
        answer = await client.ask("PUT", "/v1/kv/%ff", b"x")
    assert (answer.status, answer.problem()) == (500, "internal-error")
    assert answer.json()["applied"] == "unknown"
    assert b"secret" not in answer.body
    assert b"Traceback" not in answer.body
    assert "/v1/kv/%ff" in caplog.text
    assert "secret" in caplog.text
    assert "Traceback" in caplog.text
    kv.failure = None
    assert (await client.ask("PUT", "/v1/kv/a", b"x")).status == 201


@pytest.mark.parametrize("url", ["http://10.0.0.2:2379", "http://10.0.0.2:2379/"])
async def test_a_follower_sends_the_client_to_the_leader(client, kv, url):
    kv.failure = errors.NotLeader(NodeId("n2"), url)
    answer = await client.ask("PUT", "/v1/kv/a//..%2F%ff+b", b"x")
    assert (answer.status, answer.problem()) == (307, "not-leader")
    assert answer.headers["location"] == "http://10.0.0.2:2379/v1/kv/a//..%2F%ff+b"
    assert answer.json()["leader"] == "n2"
    assert answer.json()["applied"] == "no"
    with_query = await client.ask("GET", "/v1/kv?prefix=a%2F+&limit=3")
    assert with_query.headers["location"] == "http://10.0.0.2:2379/v1/kv?prefix=a%2F+&limit=3"
    absolute = await client.ask("DELETE", "http://follower:1/v1/kv/a")
    assert absolute.headers["location"] == "http://10.0.0.2:2379/v1/kv/a"


async def test_a_leader_without_a_known_url_means_later(client, kv):
    kv.failure = errors.NotLeader(NodeId("n2"), None)
    answer = await client.ask("PUT", "/v1/kv/a", b"x")
    assert (answer.status, answer.problem()) == (503, "leader-url-unknown")
    assert answer.json()["leader"] == "n2"
    assert answer.headers["retry-after"] == "1"
    assert "location" not in answer.headers


def test_the_documentation_lists_exactly_the_problems_that_exist():
    kinds = [kind for kind in vars(problems).values() if isinstance(kind, problems.Kind)]
    kinds += problems.KIND_OF_ERROR.values()
    page = (Path(__file__).parents[2] / "docs" / "http-errors.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d+) \| (no|yes|unknown) \| (\d+|none) \|", page, re.MULTILINE)
    retry = {kind: "none" if kind.retry_after is None else str(kind.retry_after) for kind in kinds}
    assert sorted(rows) == sorted({(k.slug, str(k.status), k.applied, retry[k]) for k in kinds})
    assert len({kind.slug for kind in kinds}) == len(set(kinds))
