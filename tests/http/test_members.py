"""``/v1/cluster/members`` and etcd's member requests, over a real store."""

from __future__ import annotations

import pytest

from raftkv.errors import NotLeader
from raftkv.service.members import MemberAtAddress
from raftkv.types import NodeId
from tests.http.native import Node

PATH = "/v1/cluster/members"


async def test_members_are_listed_added_and_removed():
    async with Node() as node:
        status, document = await node.ask("GET", PATH)
        assert status == 200
        assert document["initial_members"] == {f"n{number}": f"10.0.0.{number}:2380" for number in (1, 2, 3)}
        assert [(member["name"], member["votes"]) for member in document["members"]] == [
            ("n1", True),
            ("n2", True),
            ("n3", True),
        ]
        assert document["members"][0]["storage_id"] == "storage-of-n1"
        status, document = await node.ask("POST", PATH, {"name": "n4", "peer_address": "[::1]:2380"})
        assert status == 201
        assert document["member"]["peer_address"] == "[::1]:2380"
        assert document["member"]["votes"] is False
        status, document = await node.ask("POST", f"{PATH}/n4/promote")
        assert [member["votes"] for member in document["members"]] == [True] * 4
        status, document = await node.ask("POST", f"{PATH}/n4/address", {"peer_address": "host:1"})
        assert (status, document["type"]) == (409, "urn:raftkv:problem:member-unreachable")
        assert "n4 does not answer at host:1 (Connection refused)" in document["detail"]
        status, document = await node.ask("POST", f"{PATH}/n4/address", {"peer_address": "host:1", "force": True})
        assert document["members"][3]["peer_address"] == "host:1"
        before = document["members"][3]["id"]
        status, document = await node.ask("POST", f"{PATH}/n4/replace", {})
        assert document["member"]["id"] != before
        status, document = await node.ask("DELETE", f"{PATH}/n4")
        assert (status, len(document["members"])) == (200, 3)


@pytest.mark.parametrize(
    ("method", "tail", "body", "problem"),
    [
        ("POST", "", {"name": "n1", "peer_address": "h:1"}, "member-exists: there is a member n1"),
        ("POST", "", {"name": "n4"}, "invalid-json: peer_address must be a string"),
        ("POST", "", {"name": "n4", "peer_address": "h"}, "invalid-request: peer_address: 'h' is not HOST:PORT"),
        ("POST", "", {"name": "", "peer_address": "h:1"}, "invalid-request: '' is no name"),
        ("POST", "", {"name": "a/b", "peer_address": "h:1"}, "invalid-request: 'a/b' is no name"),
        ("POST", "", {"name": "n4", "peer_address": "h:1", "votes": True}, "invalid-json: votes is unknown"),
        ("POST", "", b"{", "invalid-json: the body is not JSON"),
        ("DELETE", "/n9", None, "member-not-found: there is no member 'n9'"),
        ("POST", "/n9/promote", {}, "member-not-found"),
        ("POST", "/n1/promote", {}, "member-change-refused: n1 is a voter"),
        ("POST", "/n1/promote", {"peer_address": "h:1"}, "invalid-json: peer_address is unknown"),
        ("POST", "/n1/address", {}, "invalid-json: peer_address must be a string"),
        ("POST", "/n1/address", {"peer_address": "10.0.0.2:2380"}, "member-exists"),
        ("POST", "/n1/address", {"peer_address": "h:1", "force": 1}, "invalid-json: force must be true or false"),
        ("POST", "/n1/replace", {"force": True}, "invalid-json: force is unknown"),
        ("POST", "/n1/eat", {}, "no-such-resource"),
        ("POST", "/n1", {}, "no-such-resource"),
        ("DELETE", "/n1?force=true", None, "invalid-query"),
        ("GET", "?all=1", None, "invalid-query"),
    ],
)
async def test_what_is_wrong_is_named(method, tail, body, problem):
    async with Node() as node:
        assert (await node.problem(method, PATH + tail, body)).startswith(problem)
        assert node.log.membership.version == 0


async def test_another_change_under_way_is_waited_for():
    async with Node() as node:
        node.log.is_settled = False
        assert (await node.problem("DELETE", f"{PATH}/n2")).startswith("members-unsettled")


async def test_a_follower_redirects_before_it_looks():
    async with Node() as node:
        node.log.refusal = NotLeader(NodeId("n2"), "http://n2:2379")
        status, document = await node.ask("DELETE", f"{PATH}/n9")
        assert (status, document["leader"]) == (307, "n2")
        assert (await node.ask("GET", PATH))[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "code", "message"),
    [
        ("add", {}, 3, "the request has 0 peerURLs"),
        ("add", {"peerURLs": ["http://a:1", "http://b:1"]}, 3, "the request has 2 peerURLs"),
        ("add", {"peerURLs": "http://a:1"}, 3, "a list of strings"),
        ("add", {"peerURLs": ["ftp://a:1"]}, 3, "no peer URL"),
        ("add", {"peerURLs": ["http://a"]}, 3, "no peer URL"),
        ("add", {"peerURLs": ["http://a:99999"]}, 3, "no peer URL"),
        ("add", {"peerURLs": ["http://a:1/x"]}, 3, "no peer URL"),
        ("add", {"peerURLs": ["http://10.0.0.1:2380"]}, 9, "etcdserver: Peer URLs already exists"),
        ("remove", {}, 5, "etcdserver: member not found"),
        ("promote", {"ID": "7"}, 5, "etcdserver: member not found"),
        ("update", {"ID": "7", "peerURLs": ["http://a:1"]}, 5, "etcdserver: member not found"),
    ],
)
async def test_etcds_errors(path, body, code, message):
    async with Node() as node:
        _status, document = await node.ask("POST", f"/v3/cluster/member/{path}", body)
        assert document["code"] == code
        assert message in document["message"]


async def test_etcds_changes():
    async with Node() as node:
        _status, document = await node.ask("POST", "/v3/cluster/member/add", {"peerURLs": ["http://[::1]:2380"]})
        added = document["member"]
        assert added["peerURLs"] == ["http://[::1]:2380"]
        member = node.log.membership.with_id(int(added["ID"]))
        assert (member.peer_address, member.is_voter) == ("[::1]:2380", False)
        update = {"ID": added["ID"], "peerURLs": ["https://h:1"]}
        status, document = await node.ask("POST", "/v3/cluster/member/update", update)
        assert (status, document["code"]) == (400, 9)
        assert "does not answer at h:1" in document["message"]
        node.log.at_address["h:1"] = MemberAtAddress(member.name, member.id, f"storage-of-{member.name}")
        await node.ask("POST", "/v3/cluster/member/update", update)
        assert node.log.membership.with_id(member.id).peer_address == "h:1"
        await node.ask("POST", "/v3/cluster/member/promote", {"ID": added["ID"]})
        assert node.log.membership.with_id(member.id).is_voter
        await node.ask("POST", "/v3/cluster/member/remove", {"ID": added["ID"]})
        assert node.log.membership.with_id(member.id) is None
