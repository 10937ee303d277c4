"""Which certificates prove what, who gives way among unverified connections, and what of them is logged."""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import replace
from ipaddress import ip_address

import pytest
from cryptography import x509

from raftkv.membership import ClusterMember, MemberId
from raftkv.runtime import arrivals, peer_proof
from raftkv.runtime.arrivals import Arrivals, PeerWarnings
from raftkv.runtime.framing import Confirm, Confirmed, Hello, Vouch, Vouched
from raftkv.runtime.handshake_call import ask
from raftkv.runtime.peer_proof import Certificate, PeerProof, Unproven
from raftkv.tls import dialling_context, listening_context
from raftkv.types import ClusterId, NodeId
from tests.tls_files import TestAuthority, self_signed

CLUSTER = ClusterId("0123456789abcdef")


@pytest.mark.parametrize(
    ("kind", "name", "host", "is_for"),
    [
        ("DNS", "n1.raftkv", "n1.raftkv", True),
        ("DNS", "N1.raftkv", "n1.RAFTKV", True),
        ("DNS", "*.raftkv.svc", "n1.raftkv.svc", True),
        ("DNS", "*.raftkv.svc", "a.n1.raftkv.svc", False),
        ("DNS", "*.raftkv.svc", "raftkv.svc", False),
        ("DNS", "\u212a8s.example", "k8s.example", False),
        ("DNS", "*", "n1", False),
        ("DNS", "n2.raftkv", "n1.raftkv", False),
        ("DNS", "10.0.0.1", "10.0.0.1", False),
        ("IP Address", "10.0.0.1", "10.0.0.1", True),
        ("IP Address", "2001:DB8:0:0:0:0:0:1", "2001:db8::1", True),
        ("IP Address", "10.0.0.2", "10.0.0.1", False),
        ("IP Address", "n1", "10.0.0.1", False),
        ("URI", "n1", "n1", False),
    ],
)
def test_certificate_is_for_the_hosts_that_it_names(kind, name, host, is_for):
    assert Certificate.of({"subjectAltName": ((kind, name),)}).is_for(host) is is_for
    assert not Certificate.of(None).is_for(host)


_HOSTS = """
    n1.raftkv n1.RAFTKV. n1.raftkv.svc a.n1.raftkv.svc raftkv.svc a.b.com foo.b.com f.b.com a.com a.x.com xn--e1a.com
    xn--e1a.b.com a.xn--p1ai a.b.xn--p1ai a_b.b.com a.x_y.com a.-b.com -.b.com a.b-.com *.b.com *.com *
    m\u00fcller.b.com 10.0.0.1 10.0.1 5.10.0.0.1 n1 k8s.b.com localhost com a..b.com .b.com ::1 2001:db8::1
    ::ffff:10.0.0.1
"""
HOSTS = _HOSTS.split()


_NAMES = """
    DNS:n1.raftkv DNS:N1.Raftkv. DNS:*.raftkv DNS:*.raftkv.svc DNS:* DNS:*. DNS:*.com DNS:*.b.com DNS:*.B.COM.
    DNS:f*.b.com DNS:*f.b.com DNS:**.b.com DNS:a.*.com DNS:*.*.com DNS:*.xn--p1ai DNS:*.b.xn--p1ai DNS:xn--*.b.com
    DNS:*.x_y.com DNS:*.-b.com DNS:*.b-.com DNS:*.b..com DNS:.b.com DNS:*.0.0.1 DNS:*.10.0.0.1 DNS:10.0.0.1
    DNS:010.0.0.1 DNS:a_b.b.com DNS:n1 DNS:localhost DNS:xn--mller-kva.b.com IP:10.0.0.1 IP:2001:db8::1 IP:::1
    """


@pytest.mark.parametrize("name", _NAMES.split())
def test_certificate_is_for_a_host_when_openssl_says_so(name, tmp_path):
    """The node that dials a member has its certificate checked by OpenSSL, and must agree with those it dials."""
    kind, _colon, value = name.partition(":")
    general_name = x509.DNSName(value) if kind == "DNS" else x509.IPAddress(ip_address(value))
    cert, key = self_signed(tmp_path, "n1", general_name)
    certificate = Certificate.of(ssl._ssl._test_decode_cert(cert))
    listening, dialling = listening_context(cert, key, None), dialling_context(cert, None, None)
    accepted = [host for host in HOSTS if is_accepted(listening, dialling, host)]
    assert [host for host in HOSTS if certificate.is_for(host)] == accepted
    # OpenSSL takes it for 10.0.0.1, and resolvers for 8.0.0.1.
    assert not certificate.is_for("010.0.0.1")


def is_accepted(listening: ssl.SSLContext, dialling: ssl.SSLContext, host: str) -> bool:
    """Whether a dialler goes on with a handshake after it has seen the listener's certificate."""
    to_listener, to_dialler = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        dialler = dialling.wrap_bio(to_dialler, to_listener, server_hostname=host)
    except (UnicodeError, ValueError):
        return False
    listener = listening.wrap_bio(to_listener, to_dialler, server_side=True)
    for _ in range(3):
        for side in (dialler, listener):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLCertVerificationError as error:
                if "mismatch" not in error.verify_message:
                    raise
                return False
    assert dialler.version() is not None
    return True


def hello(name: str = "b", member_id: int = 2) -> Hello:
    return Hello(1, CLUSTER, name, member_id, "storage", "a", "http://b", "10.0.0.2:2380")


async def test_with_tls_the_certificate_must_be_for_the_address_of_the_member():
    member = ClusterMember(MemberId(2), NodeId("b"), "10.0.0.2:2380", is_voter=True)
    proof = PeerProof(NodeId("a"), CLUSTER, ssl.create_default_context(), lambda: [member], None)
    own = Certificate.of({"subjectAltName": (("IP Address", "10.0.0.2"),)})
    another = Certificate.of({"subjectAltName": (("IP Address", "10.0.0.3"), ("DNS", "client"))})
    assert await proof.address_of(hello(), own, "10.0.0.9") == "10.0.0.2:2380"
    with pytest.raises(Unproven, match=r"is not for 10\.0\.0\.2"):
        await proof.address_of(hello(), another, "10.0.0.9")
    with pytest.raises(Unproven, match="no member that is known here"):
        await proof.address_of(hello("c", 3), another, "10.0.0.9")


OLD, NEW = "10.0.0.2:2380", "10.0.0.9:2380"


class Answers:
    """Stands for the peer ports: the member at ``NEW`` confirms its token, others have the old address for it."""

    def __init__(self, monkeypatch) -> None:
        self.asked: list[tuple[str, str]] = []
        monkeypatch.setattr(peer_proof, "ask", self)

    async def __call__(self, address, question, _tls):
        self.asked.append((address, type(question).__name__))
        if isinstance(question, Vouch):
            return Vouched("c", OLD)
        return Confirmed("b") if address == NEW else "Connection refused"


def plain_proof(find_members) -> PeerProof:
    others = [ClusterMember(MemberId(3), NodeId("c"), "10.0.0.3:2380", is_voter=True)]
    return PeerProof(NodeId("a"), CLUSTER, None, lambda: others, find_members)


async def test_cluster_that_the_operator_named_is_asked_when_members_have_an_old_address(monkeypatch):
    answers = Answers(monkeypatch)

    async def find_members():
        return [ClusterMember(MemberId(2), NodeId("b"), NEW, is_voter=True)]

    proof = plain_proof(find_members)
    assert await proof.address_of(replace(hello(), token="t"), Certificate.of(None), "10.0.0.9") == NEW
    assert answers.asked == [("10.0.0.3:2380", "Vouch"), (OLD, "Confirm"), (NEW, "Confirm")]


async def test_slow_search_goes_on_after_the_connection_that_began_it(monkeypatch):
    Answers(monkeypatch)
    asked, answered, calls = asyncio.Event(), asyncio.Event(), []

    async def find_members():
        calls.append(1)
        asked.set()
        await answered.wait()
        return [ClusterMember(MemberId(2), NodeId("b"), NEW, is_voter=True)]

    proof = plain_proof(find_members)
    first = asyncio.create_task(proof.address_of(replace(hello(), token="t"), Certificate.of(None), "10.0.0.9"))
    async with asyncio.timeout(5):
        await asked.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    answered.set()
    assert await proof.address_of(replace(hello(), token="t"), Certificate.of(None), "10.0.0.9") == NEW
    assert len(calls) == 1


SAME_HOST = "10.0.0.2:2390"


class TlsAnswers:
    """Stands for peer ports with TLS: member c vouches for one address of b, and b confirms where it listens."""

    def __init__(self, monkeypatch, vouched: str, listening: str) -> None:
        self.asked: list[tuple[str, str]] = []
        self._vouched, self._listening = vouched, listening
        monkeypatch.setattr(peer_proof, "ask", self)

    async def __call__(self, address, question, _tls):
        self.asked.append((address, type(question).__name__))
        if isinstance(question, Vouch):
            return Vouched("c", self._vouched)
        return Confirmed("b") if address == self._listening else "Connection refused"


def tls_proof(known: str, find_members=None) -> PeerProof:
    members = [
        ClusterMember(MemberId(2), NodeId("b"), known, is_voter=True),
        ClusterMember(MemberId(3), NodeId("c"), "10.0.0.3:2380", is_voter=True),
    ]
    return PeerProof(NodeId("a"), CLUSTER, ssl.create_default_context(), lambda: members, find_members)


FOR_OLD_HOST = Certificate.of({"subjectAltName": (("IP Address", "10.0.0.2"),)})


@pytest.mark.parametrize("is_vouched_by_contacts", [False, True])
async def test_with_tls_a_member_that_moved_to_another_port_is_verified_there(monkeypatch, is_vouched_by_contacts):
    TlsAnswers(monkeypatch, OLD if is_vouched_by_contacts else SAME_HOST, SAME_HOST)

    async def find_members():
        return [ClusterMember(MemberId(2), NodeId("b"), SAME_HOST, is_voter=True)]

    proof = tls_proof(OLD, find_members if is_vouched_by_contacts else None)
    moved = replace(hello(), peer_address=SAME_HOST, token="t")
    assert await proof.address_of(moved, FOR_OLD_HOST, "10.0.0.9") == SAME_HOST


async def test_with_tls_the_address_that_a_member_claims_is_not_believed_alone(monkeypatch):
    answers = TlsAnswers(monkeypatch, OLD, SAME_HOST)
    claiming = replace(hello(), peer_address=SAME_HOST, token="t")
    assert await tls_proof(OLD).address_of(claiming, FOR_OLD_HOST, "10.0.0.9") == OLD
    assert SAME_HOST not in {address for address, _question in answers.asked}


async def test_with_tls_a_member_that_still_claims_its_former_port_is_verified_where_it_listens(monkeypatch):
    """Its --advertise-peer is out of date, and so is the member that vouches."""
    TlsAnswers(monkeypatch, OLD, SAME_HOST)
    stale = replace(hello(), peer_address=OLD, token="t")
    assert await tls_proof(SAME_HOST).address_of(stale, FOR_OLD_HOST, "10.0.0.9") == SAME_HOST


async def test_search_that_takes_too_long_falls_back_on_the_known_address(monkeypatch):
    monkeypatch.setattr(peer_proof, "_SEARCH_SECONDS", 0.05)
    TlsAnswers(monkeypatch, OLD, SAME_HOST)

    async def never():
        await asyncio.Event().wait()

    moved = replace(hello(), peer_address=SAME_HOST, token="t")
    async with asyncio.timeout(5):
        assert await tls_proof(OLD, never).address_of(moved, FOR_OLD_HOST, "10.0.0.9") == OLD
        with pytest.raises(Unproven, match=r"is not for 10\.0\.0\.2.*within"):
            await tls_proof(OLD, never).address_of(moved, Certificate.of(None), "10.0.0.9")


@pytest.mark.parametrize("is_encrypted", [False, True])
async def test_address_of_contacts_that_is_none_is_a_reason_and_no_error(is_encrypted):
    """An error here would end the node, and any dialler can cause it."""

    async def find_members():
        return [ClusterMember(MemberId(2), NodeId("b"), "nowhere", is_voter=True)]

    dialling = ssl.create_default_context() if is_encrypted else None
    proof = PeerProof(NodeId("a"), CLUSTER, dialling, list, find_members)
    with pytest.raises(Unproven, match="nowhere"):
        await proof.address_of(replace(hello(), token="t"), FOR_OLD_HOST, "10.0.0.9")


async def test_moved_member_that_still_claims_its_former_address_is_searched_for(monkeypatch):
    Answers(monkeypatch)
    members = [
        ClusterMember(MemberId(2), NodeId("b"), OLD, is_voter=True),
        ClusterMember(MemberId(3), NodeId("c"), "10.0.0.3:2380", is_voter=True),
    ]
    found = [ClusterMember(MemberId(2), NodeId("b"), NEW, is_voter=True)]

    async def find_members():
        return found

    proof = PeerProof(NodeId("a"), CLUSTER, None, lambda: members, find_members)
    stale = replace(hello(), peer_address=OLD, token="t")
    assert await proof.address_of(stale, Certificate.of(None), "10.0.0.9") == NEW
    found.clear()
    proof = PeerProof(NodeId("a"), CLUSTER, None, lambda: members, find_members)
    with pytest.raises(Unproven, match=f"b cannot be asked at {OLD} whether this connection is its own: Connection"):
        await proof.address_of(stale, Certificate.of(None), "10.0.0.9")


async def test_strangers_do_not_keep_a_peer_out_that_members_vouch_for(monkeypatch):
    """A member is slow to answer about peers that nobody knows."""
    asked, questions = asyncio.Event(), []

    async def answer(address, question, _tls):
        if not isinstance(question, Vouch):
            return Confirmed("b")
        questions.append(question.peer)
        asked.set()
        if question.peer != "b":
            await asyncio.Event().wait()
        return Vouched("c", NEW)

    monkeypatch.setattr(peer_proof, "ask", answer)
    proof = plain_proof(None)
    said = [replace(hello(f"s{number}", number + 10), token="t") for number in range(60)]
    strangers = [asyncio.create_task(proof.address_of(each, Certificate.of(None), "10.9.9.9")) for each in said]
    async with asyncio.timeout(3):
        await asked.wait()
        assert await proof.address_of(replace(hello(), token="t"), Certificate.of(None), "10.0.0.9") == NEW
    assert questions.count("b") == 1
    for each in strangers:
        each.cancel()
    await asyncio.gather(*strangers, return_exceptions=True)


async def test_refused_dialler_is_told_no_address_that_it_has_not_named(monkeypatch):
    Answers(monkeypatch)
    member = ClusterMember(MemberId(2), NodeId("b"), OLD, is_voter=True)
    proof = PeerProof(NodeId("a"), CLUSTER, None, lambda: [member], None)
    with pytest.raises(Unproven, match=f"b cannot be asked at {OLD}") as refused:
        await proof.address_of(replace(hello(), peer_address=NEW, token="t"), Certificate.of(None), "10.0.0.9")
    assert "10.0.0" not in refused.value.answer
    assert "the log of a says why" in refused.value.answer
    with pytest.raises(Unproven) as refused:
        await proof.address_of(replace(hello(), peer_address=OLD, token="t"), Certificate.of(None), "10.0.0.9")
    assert refused.value.answer == str(refused.value)


async def test_peer_that_hangs_up_after_tls_is_asked_about_the_certificate(tmp_path):
    """With TLS 1.3 the handshake of the node that dials is complete before its certificate is refused."""
    ours, other = (TestAuthority.create(tmp_path / name) for name in ("ours", "other"))
    context = listening_context(*ours.certify("b", "127.0.0.1"), ours.certificate)
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0, ssl=context)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    refused = dialling_context(ours.certificate, *other.certify("a", "127.0.0.1"))
    answer = await ask(address, Confirm(CLUSTER, "a", "b", "t"), refused)
    assert answer == "it says nothing and hangs up; does it refuse the certificate of this node?"
    server.close()


@pytest.mark.parametrize("address", ["a..b:2380", "x" * 64 + ":2380", "[fe80::1%é]:2380"])
async def test_address_that_is_none_is_a_reason_and_no_error(address, monkeypatch):
    question = Confirm(CLUSTER, "a", "b", "t")
    assert isinstance(await ask(address, question, None), str)

    async def refuse(*_arguments, **_options):
        raise UnicodeError("label empty or too long")

    monkeypatch.setattr(asyncio, "open_connection", refuse)
    assert await ask("10.0.0.2:2380", question, None) == "no host name: label empty or too long"


class Connection:
    def __init__(self, host: str, *, has_greeted: bool = False) -> None:
        self.host = host
        self.has_greeted = has_greeted
        self.is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True


def test_connections_of_the_busiest_address_give_way_and_silent_ones_first(monkeypatch):
    monkeypatch.setattr(arrivals, "MAX_ARRIVALS", 4)
    waiting = Arrivals()
    member, greeted = Connection("member"), Connection("stranger", has_greeted=True)
    silent = [Connection("stranger") for _ in range(4)]
    for each in (member, greeted, *silent):
        waiting.add(each)
    assert [each.is_aborted for each in silent] == [True, True, False, False]
    assert not member.is_aborted
    assert not greeted.is_aborted
    assert (len(waiting), waiting.dropped) == (4, 2)
    waiting.discard(member)
    assert member not in waiting


async def test_warnings_of_unverified_peers_are_bounded(caplog, monkeypatch):
    warnings = PeerWarnings(logging.getLogger("raftkv"))
    for number in range(1000):
        warnings.warn(f"stranger {number // 2}", f"10.0.0.{number % 2}", None)
    assert len(caplog.records) == arrivals.MOST_IN_WINDOW
    monkeypatch.setattr(arrivals, "WINDOW_SECONDS", 0.0)
    warnings.warn("another", "10.0.0.1", None)
    assert [record.getMessage() for record in caplog.records[-2:]] == [
        f"{1000 - arrivals.MOST_IN_WINDOW} more warnings of unverified peers were left out",
        "another",
    ]


async def test_warnings_of_one_address_and_of_one_name_leave_room_for_others(caplog, monkeypatch):
    warnings = PeerWarnings(logging.getLogger("raftkv"))
    for name in (None, "b"):
        for number in range(1000):
            warnings.warn(f"{name} {number}", "10.9.9.9", name)
    assert len(caplog.records) == 2 * arrivals.MOST_OF_ADDRESS
    for source, name in (("10.0.0.1", None), ("10.0.0.1", "b"), ("10.9.9.9", "c")):
        warnings.warn(f"{name} at {source}", source, name)
        assert caplog.records[-1].getMessage() == f"{name} at {source}"
    monkeypatch.setattr(arrivals, "WINDOW_SECONDS", 0.0)
    warnings.warn("another", "10.0.0.1", "b")
    left_out = 1000 - arrivals.MOST_OF_ADDRESS
    assert caplog.records[-2].getMessage() == f"{left_out} more warnings of peers that say they are b were left out"
