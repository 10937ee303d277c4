"""How a node finds its place in a cluster that runs, against a front-end over a real store."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace

import pytest

from raftkv.cli import joining
from raftkv.cli.joining import finder_of_members, join_if_new
from raftkv.config import NodeConfig
from raftkv.errors import ConfigurationError, MemberChangeRefused, UnsupportedVersion
from raftkv.formats import Format
from raftkv.membership import AddMember, MemberId
from raftkv.runtime import identity
from raftkv.runtime.files import DataDirectoryLock, RealDirectory
from raftkv.runtime.identity import IDENTITY_FORMATS, Identity, give_up_directory, store_identity
from raftkv.settings import build_config
from raftkv.store.commands import ChangeMembers
from raftkv.types import NodeId
from raftkv.versions import FIRST_VERSION, ClusterVersion, SupportedVersions
from tests.http.http_store import CLUSTER
from tests.http.http_thread import ServerThread
from tests.process.cluster import free_ports


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(joining, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(joining, "_ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(joining, "_CHANGE_SECONDS", 0.3, raising=False)


def config_of(server: ServerThread, tmp_path, **others: str) -> NodeConfig:
    settings = {"name": "n4", "listen_peer": "127.0.0.1:7004", "join": server.url, "data_dir": str(tmp_path / "data")}
    return build_config({**settings, **others}, {}, {})


def identity_in(tmp_path) -> dict[str, object]:
    return json.loads((tmp_path / "data/identity.json").read_text())


async def test_a_new_node_is_added_and_knows_itself_from_then_on(server, tmp_path):
    server.log.unreachable.add(NodeId("n4"))
    await join_if_new(config_of(server, tmp_path))
    member = server.log.membership.named(NodeId("n4"))
    assert not member.is_voter
    identity = identity_in(tmp_path)
    assert (identity["cluster_id"], identity["member_id"]) == (CLUSTER, f"{member.id:016x}")
    assert identity["members"][0] == {"name": "n1", "peer_address": "10.0.0.1:2380"}
    version = server.log.membership.version
    await join_if_new(config_of(server, tmp_path))
    assert server.log.membership.version == version, "it asks nobody when it has data"


async def test_a_member_that_was_added_before_takes_its_place(server, tmp_path):
    server.log.unreachable.add(NodeId("n4"))
    await add(server, "n4", "127.0.0.1:7004")
    version = server.log.membership.version
    await join_if_new(config_of(server, tmp_path))
    assert server.log.membership.version == version
    assert identity_in(tmp_path)["member_id"] == f"{7:016x}"


async def test_release_that_does_not_fit_the_cluster_is_refused_by_name_of_both_versions(server, tmp_path, monkeypatch):
    later = ClusterVersion(FIRST_VERSION.major, FIRST_VERSION.minor + 1)
    monkeypatch.setattr(joining, "SUPPORTED_VERSIONS", SupportedVersions(later, later))
    refusal = f"the cluster is at version {FIRST_VERSION}, and n4 supports version {later} only"
    with pytest.raises(UnsupportedVersion, match=re.escape(refusal)):
        await join_if_new(config_of(server, tmp_path))
    assert server.log.membership.named(NodeId("n4")) is None
    # After "raftkv member add", which cannot know the release, it is the same.
    await add(server, "n4", "127.0.0.1:7004")
    with pytest.raises(UnsupportedVersion, match=re.escape(refusal)):
        await join_if_new(config_of(server, tmp_path))
    assert not (tmp_path / "data/identity.json").exists()


async def test_identity_of_a_new_member_has_the_format_of_the_cluster_version(server, tmp_path, monkeypatch):
    server.log.unreachable.add(NodeId("n4"))
    later = ClusterVersion(FIRST_VERSION.major, FIRST_VERSION.minor + 1)
    monkeypatch.setattr(joining, "SUPPORTED_VERSIONS", SupportedVersions(FIRST_VERSION, later))
    monkeypatch.setattr(
        IDENTITY_FORMATS, "_formats", {**IDENTITY_FORMATS._formats, 99: Format(identity._read_2, later)}
    )
    await join_if_new(config_of(server, tmp_path))
    assert identity_in(tmp_path)["format"] == IDENTITY_FORMATS.written_at(FIRST_VERSION) != 99
    give_up_directory(tmp_path / "data")
    look = joining._look

    async def at_the_later_version(config):
        answers, reasons = await look(config)
        return {url: replace(answer, cluster_version=later) for url, answer in answers.items()}, reasons

    monkeypatch.setattr(joining, "_look", at_the_later_version)
    await join_if_new(config_of(server, tmp_path))
    assert identity_in(tmp_path)["format"] == 99


async def add(server: ServerThread, name: str, address: str) -> None:
    await server.log.submit(ChangeMembers(AddMember(MemberId(7), NodeId(name), address)))


async def test_a_place_at_another_address_is_not_taken(server, tmp_path):
    server.log.unreachable.add(NodeId("n4"))
    await add(server, "n4", "127.0.0.1:9999")
    with pytest.raises(
        ConfigurationError, match=r"n4 at 127\.0\.0\.1:9999, but its advertise-peer is 127\.0\.0\.1:7004"
    ):
        await join_if_new(config_of(server, tmp_path))
    assert not (tmp_path / "data/identity.json").exists()


async def test_a_member_without_its_data_is_replaced_only_when_told_so(server, tmp_path):
    with pytest.raises(ConfigurationError, match=r"n2 is a member of cluster .* already, and .* is empty"):
        await join_if_new(config_of(server, tmp_path, name="n2"))
    before = server.log.membership.named(NodeId("n2")).id
    server.log.storage_of = lambda member: None if member.id != before and member.name == "n2" else "storage"
    await join_if_new(config_of(server, tmp_path, name="n2", replace_lost="true"))
    after = server.log.membership.named(NodeId("n2")).id
    assert after != before
    assert identity_in(tmp_path)["member_id"] == f"{after:016x}"


async def test_a_cluster_that_is_not_ready_is_waited_for(server, tmp_path, caplog):
    server.log.unreachable.add(NodeId("n4"))
    server.log.refusal = MemberChangeRefused("no majority could be reached")
    looks = 0
    look = joining._look

    async def count(config):
        nonlocal looks
        looks += 1
        if looks == 3:
            server.log.refusal = None
        return await look(config)

    joining._look = count
    try:
        await join_if_new(config_of(server, tmp_path))
    finally:
        joining._look = look
    assert looks >= 3
    assert "joining failed, trying again" in caplog.text
    assert identity_in(tmp_path)["cluster_id"] == CLUSTER


async def test_without_a_cluster_a_first_member_begins_one_and_says_whom_it_asked(tmp_path, caplog):
    caplog.set_level("INFO")
    ports = free_ports(2)
    pod = {"RAFTKV_NAME": "n-0", "RAFTKV_DISCOVER_SERVICE": "localhost", "RAFTKV_DISCOVER_REPLICAS": "2"}
    listening = {"listen_client": f"127.0.0.1:{ports[0]}", "listen_peer": f"127.0.0.1:{ports[1]}"}
    await join_if_new(build_config({"data_dir": str(tmp_path / "data"), **listening}, pod, {}))
    assert "no cluster runs at http://n-1.localhost" in caplog.text
    assert "waiting for the cluster to be joined: no endpoint served the request" in caplog.text
    assert not (tmp_path / "data/identity.json").exists()


async def test_node_that_does_not_answer_is_named_and_the_next_is_asked(server, tmp_path, caplog):
    server.log.unreachable.add(NodeId("n4"))

    async def say_nothing(reader, writer):
        await reader.read()
        writer.close()

    hung = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{hung.sockets[0].getsockname()[1]}"
    async with hung, asyncio.timeout(8):
        await join_if_new(config_of(server, tmp_path, join=f"{url},{server.url}"))
    assert identity_in(tmp_path)["cluster_id"] == CLUSTER
    assert re.search(f"going on without some nodes .*: {url}: no answer in time", caplog.text)
    assert server.url not in caplog.text


async def test_finder_of_members_passes_over_nodes_that_give_no_answer(server, tmp_path, monkeypatch):
    monkeypatch.setattr(joining, "_FINDER_SECONDS", 0.3)

    async def answer_something_else(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    other = await asyncio.start_server(answer_something_else, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}"
    find = finder_of_members(config_of(server, tmp_path, join=f"{url},{server.url}"))
    async with other, asyncio.timeout(8):
        assert {each.name for each in await find()} == {each.name for each in server.log.membership.members}
    # A certificate that is being renewed: no dialler must be able to end the node with that.
    missing = {f"tls_{kind}": str(tmp_path / kind) for kind in ("cert", "key", "ca")}
    assert await finder_of_members(config_of(server, tmp_path, join="https://localhost:1", **missing))() == []


async def test_change_that_a_node_leaves_unanswered_is_asked_of_the_next(server, tmp_path, caplog):
    """It lists the members and hangs at the change, as a node does that is cut off from its leader."""
    server.log.unreachable.add(NodeId("n4"))
    target = server.url.removeprefix("http://").split(":")

    async def answer_reads(reader, writer):
        request = await reader.readuntil(b"\r\n\r\n")
        if not request.startswith(b"GET "):
            await reader.read()
            writer.close()
            return
        upstream_reader, upstream = await asyncio.open_connection(*target)
        upstream.write(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        writer.write(await upstream_reader.read())
        writer.close()
        upstream.close()

    hung = await asyncio.start_server(answer_reads, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{hung.sockets[0].getsockname()[1]}"
    async with hung, asyncio.timeout(8):
        await join_if_new(config_of(server, tmp_path, join=f"{url},{server.url}"))
    assert identity_in(tmp_path)["cluster_id"] == CLUSTER
    assert f"joining failed, trying again: {url}: no answer in time" in caplog.text


async def test_a_directory_that_somebody_uses_is_left_alone(server, tmp_path):
    (tmp_path / "data").mkdir()
    with DataDirectoryLock(tmp_path / "data"), pytest.raises(ConfigurationError, match="another process uses"):
        await join_if_new(config_of(server, tmp_path))
    assert server.log.membership.named(NodeId("n4")) is None


def test_a_directory_that_is_given_up_stays_and_so_does_what_is_not_ours(tmp_path):
    directory = RealDirectory(tmp_path)
    store_identity(directory, Identity(CLUSTER, NodeId("n4"), MemberId(4), "storage", ()))
    directory.child("journal").create("1.log").close()
    (tmp_path / "lost+found").mkdir()
    with DataDirectoryLock(tmp_path):
        give_up_directory(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "lost+found"]
