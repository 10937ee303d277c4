"""Requests that a follower sends on to a leader whose client port speaks TLS."""

from __future__ import annotations

import base64

import pytest

from raftkv.config import Tls
from raftkv.errors import NotLeader
from raftkv.http import FrontEnd
from raftkv.runtime.certificate_check import AdvertisedHosts
from raftkv.runtime.certificates import Certificates
from raftkv.types import NodeId
from tests.etcd.test_gateway import Server
from tests.http.http_fakes import FakeClusterService, FakeKeyValueService
from tests.http.http_store import InstantLog, services_of
from tests.tls_files import TestAuthority

KEY = base64.b64encode(b"a").decode()


@pytest.fixture(scope="module")
def authorities(tmp_path_factory):
    directory = tmp_path_factory.mktemp("authorities")
    return TestAuthority.create(directory / "members"), TestAuthority.create(directory / "clients")


def front_end(log: InstantLog, member_tls=None) -> FrontEnd:
    return FrontEnd(services_of(FakeKeyValueService(), FakeClusterService(), log), member_tls=member_tls)


def certificates_of(name: str, members: TestAuthority, client_ca) -> Certificates:
    cert, key = members.certify(name, "127.0.0.1")
    hosts = AdvertisedHosts("127.0.0.1", "127.0.0.1", has_peers=True)
    return Certificates(Tls(cert, key, members.certificate, client_ca), hosts)


@pytest.mark.parametrize("asks_for_certificates", [False, True])
async def test_leader_certified_by_a_private_authority_is_reached(authorities, asks_for_certificates):
    members, clients = authorities
    leader = certificates_of("n1", members, clients.bundle(members) if asks_for_certificates else None)
    log = InstantLog()
    leading = front_end(log)
    host, port = await leading.start("127.0.0.1", 0, leader.for_clients)
    follower = Server()
    follower.front_end = front_end(follower.log, certificates_of("n2", members, None).dialling)
    follower.log.refusal = NotLeader(NodeId("n1"), f"https://{host}:{port}")
    async with follower:
        status, document = await follower.ask("/v3/kv/put", {"key": KEY})
        assert (status, document["header"]["revision"]) == (200, "2")
        async with follower.stream("/v3/lease/keepalive", {"ID": "9"}) as answer:
            assert b'"ID":"9"' in await answer.content.readline()
    await leading.stop(1)
    assert log.machine.get(b"a") is not None


async def test_leader_of_an_unknown_authority_is_named_once_in_the_log(authorities, caplog):
    members, clients = authorities
    leading = front_end(InstantLog())
    host, port = await leading.start("127.0.0.1", 0, certificates_of("n1", clients, None).for_clients)
    follower = Server()
    follower.front_end = front_end(follower.log, certificates_of("n2", members, None).dialling)
    follower.log.refusal = NotLeader(NodeId("n1"), f"https://{host}:{port}")
    async with follower:
        for _ in range(3):
            status, document = await follower.ask("/v3/kv/put", {"key": KEY})
            assert (status, document["message"]) == (503, "etcdserver: leader changed")
    await leading.stop(1)
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "raftkv.http.etcd"]
    assert f"https://{host}:{port}" in warning
    assert "CERTIFICATE_VERIFY_FAILED" in warning
