"""A cluster that speaks TLS with everybody, from configuration to a member that joins."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import time

import pytest

from raftkv.client import BlockingClient, TlsFiles, Unreachable
from raftkv.runtime.framing import PROTOCOL_VERSION, Channel, Hello, Rejected, decode_handshake, encode_handshake
from raftkv.types import ClusterId
from tests.process.cluster import READY_SECONDS, NodeProcess, ProcessCluster, free_ports
from tests.process.tls_nodes import encrypted
from tests.tls_files import TestAuthority


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return TestAuthority.create(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, authority):
    cluster = ProcessCluster(tmp_path_factory.mktemp("nodes"), 3)
    for node in cluster.nodes:
        encrypted(node, authority, f"--tls-client-ca={authority.certificate}")
    with cluster:
        yield cluster


@pytest.fixture
def files(authority):
    return TlsFiles(authority.certificate, authority.directory / "client.crt", authority.directory / "client.key")


def test_clients_are_served_and_redirected_over_tls(cluster, files):
    follower = cluster.followers()[0]
    with BlockingClient([follower.url], tls=files) as client:
        stored = client.put(b"a", b"1")
        assert client.get(b"a").revision >= stored.revision
    assert cluster.leader().ask("/v1/cluster")[1]["leader_url"].startswith("https://")


def test_who_speaks_no_tls_or_trusts_nobody_or_shows_nothing_is_not_served(cluster, authority, files):
    url = cluster.nodes[0].url
    for endpoint, tls in [
        (url.replace("https", "http"), None),
        (url, None),
        (url, TlsFiles(authority.certificate)),
    ]:
        with BlockingClient([endpoint], 1.0, tls=tls) as client, pytest.raises(Unreachable):
            client.get(b"a")
    with BlockingClient([url], 5.0, tls=files) as client:
        client.get(b"a")


def said_to(hello: bytes, port: int, context: ssl.SSLContext) -> bytes:
    """Return the first byte of the answer to a member's first message, nothing when there is none."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
    ):
        try:
            wrapped.sendall(hello)
            return wrapped.recv(1)
        except OSError:
            return b""


def test_members_speak_with_members_only(cluster, authority, tmp_path):
    port = int(cluster.members.partition(",")[0].rpartition(":")[2])
    cluster_id = ClusterId(cluster.leader().ask("/v1/cluster")[1]["cluster_id"])
    hello = encode_handshake(
        Hello(PROTOCOL_VERSION, cluster_id, "n9", 9, "storage", "n1", "", "127.0.0.1:1", Channel.MESSAGES)
    )
    context = ssl.create_default_context(cafile=authority.certificate)
    context.load_cert_chain(*TestAuthority.create(tmp_path).certify("n9", "127.0.0.1"))
    assert said_to(hello, port, context) == b""
    assert said_to(hello, port, ssl.create_default_context(cafile=authority.certificate)) == b""
    context.load_cert_chain(*authority.certify("n9", "127.0.0.1"))
    assert said_to(hello, port, context) != b""


def test_certificate_of_the_authority_for_another_host_speaks_for_no_member(cluster, authority):
    """All that is known of a member does not help who has no certificate for its address."""
    port = int(cluster.members.partition(",")[0].rpartition(":")[2])
    _status, document = cluster.leader().ask("/v1/cluster/members")
    (known,) = [member for member in document["members"] if member["name"] == "n2"]
    hello = encode_handshake(
        Hello(
            PROTOCOL_VERSION,
            document["cluster_id"],
            "n2",
            int(known["id"], 16),
            known["storage_id"],
            "n1",
            "https://127.0.0.1:1",
            known["peer_address"],
        )
    )
    context = ssl.create_default_context(cafile=authority.certificate)
    context.load_cert_chain(*authority.certify("client", "client"))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
    ):
        wrapped.sendall(hello)
        received = b""
        while data := wrapped.recv(4096):
            received += data
    answer = decode_handshake(received[4:])
    assert isinstance(answer, Rejected)
    assert answer.code == "unproven"
    assert "is not for 127.0.0.1" in answer.text


def test_a_silent_handshake_is_ended(cluster):
    host, port = cluster.nodes[0].url.removeprefix("https://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as silent:
        assert silent.recv(1) == b"", "the node hangs up by itself"


def is_open(connection: socket.socket) -> bool:
    """Whether the other side has not closed a connection; what it has sent is read."""
    connection.setblocking(False)
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return True
    except ConnectionError:
        pass
    return False


def test_connections_that_begin_no_tls_do_not_shut_members_out(cluster, files):
    target, returning = cluster.followers()
    port = int(dict(item.split("=") for item in cluster.members.split(","))[target.name].rpartition(":")[2])
    returning.kill()
    silent = []
    for number in range(200):
        silent.append(socket.create_connection(("127.0.0.1", port), timeout=5))
        # Most say nothing. Others begin a handshake or something else, and hang up.
        if number % 8 == 0:
            silent[-1].sendall((b"\x16\x03\x01", b"\x16\x03\x01\x00\xc8\x01", b"GET / HTTP/1.1")[number % 3])
            silent.pop().close()
    # Before the handshakes would have ended by themselves, after five seconds.
    deadline = time.monotonic() + 3
    while sum(is_open(each) for each in silent) > 64:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    returning.start()
    returning.wait_ready()
    with BlockingClient([returning.url], tls=files) as client:
        client.put(b"after", b"1")
    assert "Traceback" not in target.log()
    assert target.is_running
    for each in silent:
        each.close()


def test_the_command_line_speaks_tls(cluster, authority):
    environment = {
        **os.environ,
        "RAFTKV_ENDPOINTS": cluster.nodes[0].url,
        "RAFTKV_CACERT": str(authority.certificate),
        "RAFTKV_CERT": str(authority.directory / "client.crt"),
        "RAFTKV_CERT_KEY": str(authority.directory / "client.key"),
    }

    def run(*arguments: str, **others) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "raftkv", *arguments]
        return subprocess.run(
            command, capture_output=True, check=False, text=True, timeout=60, env={**environment, **others}
        )

    assert run("put", "b", "2").returncode == 0
    assert run("get", "b").stdout.strip() == "2"
    healthy = run("endpoint", "health", "--cluster")
    assert (healthy.returncode, healthy.stdout.count("\thealthy\t")) == (0, 3), healthy.stderr
    refused = run("get", "b", "--timeout=1", RAFTKV_CACERT="")
    assert refused.returncode != 0
    assert "certificate" in refused.stderr.lower()
    missing = run("get", "b", "--cacert=/nowhere/ca.crt")
    assert missing.returncode == 2
    assert "/nowhere/ca.crt cannot be read" in missing.stderr


def test_a_member_joins_over_tls(cluster, authority, tmp_path):
    client_port, peer_port = free_ports(2)
    node = NodeProcess("n4", tmp_path, client_port, peer_port, None, f"--join={cluster.endpoints}")
    encrypted(node, authority, f"--tls-client-ca={authority.certificate}")
    node.start()
    try:
        node.wait_ready()
        assert cluster.leader().ask("/v1/cluster/members/n4", method="DELETE")[0] == 200
        assert node.wait() == 1
    finally:
        if node.is_running:
            node.kill()


def test_a_node_without_tls_is_told_why_it_is_alone(cluster, tmp_path):
    client_port, peer_port = free_ports(2)
    members = [item for item in cluster.members.split(",") if not item.startswith("n3=")]
    node = NodeProcess("n3", tmp_path, client_port, peer_port, ",".join([*members, f"n3=127.0.0.1:{peer_port}"]))
    node.start()
    try:
        deadline = time.monotonic() + READY_SECONDS
        while "is TLS on at one of us only?" not in node.log():
            assert node.is_running, node.log()
            assert time.monotonic() < deadline, node.log()
            time.sleep(0.05)
    finally:
        if node.is_running:
            node.kill()
