"""endpoint, alarm, leader and compact, in this process, against a front-end over a real store."""

from __future__ import annotations

import orjson
import pytest

from raftkv.cli.tables import print_table, size_text
from raftkv.errors import InvalidRequest, NotLeader, TransferFailed
from raftkv.operations import Alarm, AlarmKind
from raftkv.service.api import HealthCheck
from raftkv.store.commands import SetAlarm, encode_commands
from raftkv.store.machine import CommittedEntry
from raftkv.types import Index, NodeId, Term
from tests.http.http_store import InstantLog

NOBODY = "http://127.0.0.1:9"


def rows_of(output: str) -> list[dict[str, str]]:
    header, *rows = (line.split("\t") for line in output.splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_endpoint_status_shows_sizes_indexes_lag_and_role(run, server):
    shown = run("endpoint", "status")
    assert (shown.exit_code, shown.stderr) == (0, "")
    (row,) = rows_of(shown.stdout)
    assert row["ENDPOINT"] == server.url
    assert (row["NAME"], row["ROLE"], row["LEADER"], row["TERM"]) == ("n1", "leader", "n1", "3")
    assert (row["INDEX"], row["APPLIED"], row["LAG"]) == ("11", "9", "1"), "index 10 is committed and not applied"
    assert row["DB SIZE"].endswith("B")
    assert row["ALARMS"] == "-"
    document = orjson.loads(run("endpoint", "status", "--json").stdout)
    (found,) = document["endpoints"]
    assert document["healthy"] is found["healthy"] is True
    assert found["lag_entries"] == 1
    assert found["status"]["votes"] is True
    assert found["status"]["store"].keys() == {"allocated", "file", "used", "quota"}
    assert found["status"]["followers"] == [{"name": "n2", "lag_entries": 3, "lag_bytes": 120}]
    assert found["status"]["checks"] == [], "a status asks nobody else"


def test_endpoint_health_tries_a_read_and_names_what_is_wrong(run, server, log):
    healthy = run("endpoint", "health")
    assert healthy.exit_code == 0
    (row,) = rows_of(healthy.stdout)
    assert (row["HEALTH"], row["REASON"]) == ("healthy", "-")
    server.cluster.checks = [HealthCheck("read", False, "the read was not confirmed")]
    failed = run("endpoint", "health")
    assert failed.exit_code == 1
    assert rows_of(failed.stdout)[0]["HEALTH"] == "unhealthy"
    assert "n1: the read was not confirmed" in failed.stderr
    assert run("endpoint", "status").exit_code == 0, "it does not try a read"


def test_an_endpoint_that_does_not_answer_is_unhealthy_and_the_others_are_shown(run, server):
    shown = run("endpoint", "status", "--endpoints", f"{NOBODY},{server.url}", "--timeout", "2")
    dead, alive = rows_of(shown.stdout)
    assert (dead["ENDPOINT"], dead["ROLE"], alive["NAME"]) == (NOBODY, "no answer", "n1")
    assert shown.exit_code == 1
    assert "1 of 2 nodes are unhealthy" in shown.stderr
    assert f"nodes are unhealthy: {NOBODY}: Connection refused" in shown.stderr
    reason = rows_of(run("endpoint", "health", "--endpoints", NOBODY, "--timeout", "2").stdout)[0]["REASON"]
    assert reason == "Connection refused", "the endpoint has a column of its own"
    document = orjson.loads(run("endpoint", "health", "--json", "--endpoints", f"{NOBODY},{server.url}").stdout)
    assert [found["healthy"] for found in document["endpoints"]] == [False, True]
    assert document["healthy"] is False
    assert document["endpoints"][0]["status"] is None


def test_every_member_that_the_cluster_knows_is_asked(run):
    # The other member of the fake does not answer, so its client URL is not known.
    shown = run("endpoint", "health", "--cluster")
    assert shown.exit_code == 1
    assert [row["NAME"] for row in rows_of(shown.stdout)] == ["n1", "n2"]
    assert "its client URL is not known" in shown.stderr


def test_alarms_are_listed_and_cleared(run, log):
    assert run("alarm", "list").stdout == ""
    raise_alarms(log, Alarm(AlarmKind.CORRUPT, "n2"), Alarm(AlarmKind.CORRUPT, "n3"), Alarm(AlarmKind.NO_SPACE, "n1"))
    assert run("alarm", "list").stdout == "NOSPACE\tn1\nCORRUPT\tn2\nCORRUPT\tn3\n"
    status = run("endpoint", "status")
    assert status.exit_code == 1
    assert "alarm CORRUPT of n2" in status.stderr
    assert "NOSPACE (n1)" in status.stdout
    assert run("alarm", "clear", "corrupt", "--member", "n3").stdout == "CORRUPT\tn3\n"
    assert run("alarm", "clear", "--member", "nobody").stdout == ""
    cleared = run("alarm", "clear", "--json")
    assert orjson.loads(cleared.stdout) == {
        "alarms": [{"kind": "NOSPACE", "member": "n1"}, {"kind": "CORRUPT", "member": "n2"}]
    }
    assert run("alarm", "list").stdout == ""
    assert run("alarm", "clear", "nonsense").exit_code == 2


def test_only_the_leader_clears_alarms_although_a_follower_knows_of_none(run, log):
    log.refusal = NotLeader(NodeId("n2"), None)
    refused = run("alarm", "clear", "--timeout", "0.3")
    assert refused.exit_code == 1
    assert "n2" in refused.stderr


def raise_alarms(log: InstantLog, *alarms: Alarm) -> None:
    for alarm in alarms:
        command = encode_commands([SetAlarm(alarm, is_active=True)])
        log.machine.apply([CommittedEntry(Index(log.machine.applied_index + 1), Term(1), command)])


def test_the_leadership_moves_to_whom_is_named(run, server):
    moved = run("leader", "move", "n2")
    assert (moved.exit_code, moved.stdout) == (0, "n1\n"), "the fake goes on to lead"
    assert run("leader", "move").exit_code == 0
    assert server.cluster.transfers == ["n2", None]
    server.cluster.failure = InvalidRequest("n9 is no member with a vote")
    refused = run("leader", "move", "n9")
    assert (refused.exit_code, "n9 is no member with a vote" in refused.stderr) == (1, True)
    server.cluster.failure = TransferFailed("no other member took over within 5 s")
    assert run("leader", "move", "--timeout", "0.3").exit_code == 1


def test_the_leader_is_shown(run):
    assert run("leader", "show").stdout == "n1\thttp://127.0.0.1:2379\n"


def test_history_is_compacted_and_removed(run, log):
    for number in range(5):
        run("put", "a", str(number))
    assert run("compact", "--revision", "3").stdout == "3\n"
    assert log.machine.compacted_revision == 3
    again = run("compact", "--revision", "3")
    assert again.exit_code == 1
    assert "compacted" in again.stderr
    assert run("compact", "--revision", "99").exit_code == 1
    while log.machine.purge():
        pass
    assert run("compact", "--physical", "--revision", "3").exit_code == 1, "what was refused is not waited for"
    assert run("get", "a").stdout == "4"


def test_without_a_revision_everything_but_the_present_is_forgotten(run, log):
    for number in range(5):
        run("put", "a", str(number))
    assert run("compact").stdout == f"{log.machine.revision}\n"
    assert log.machine.compacted_revision == log.machine.revision == 6
    assert run("compact").stdout == "6\n", "what is reached already is no failure"


def test_a_physical_compaction_waits_until_the_node_has_removed_the_history(run, log, monkeypatch):
    for number in range(5):
        run("put", "a", str(number))
    seen = []

    async def purge_instead_of_waiting(_seconds):
        seen.append(log.machine.purged_revision)
        while log.machine.purge():
            pass

    monkeypatch.setattr("raftkv.cli.compaction.asyncio.sleep", purge_instead_of_waiting)
    assert run("compact", "--physical").exit_code == 0
    assert seen == [0]
    assert log.machine.purged_revision == log.machine.compacted_revision == 6
    assert run("compact", "--physical").exit_code == 0, "a second run has nothing to do"


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (2 * 1024**4, "2.0 TiB")]
)
def test_sizes_are_written_for_people(size, text):
    assert size_text(size) == text


@pytest.mark.parametrize("width", [40, 29, 28])
def test_a_table_that_is_wider_than_the_terminal_becomes_blocks(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    print_table(("URL", "NAME", "ROLE"), [("http://n1", "n1", "leader"), ("http://n2", "n2", "-")])
    shown = capsys.readouterr().out
    if width < 29:
        assert shown == "http://n1\n  NAME  n1\n  ROLE  leader\n\nhttp://n2\n  NAME  n2\n  ROLE  -\n"
    else:
        assert "│ http://n1 │ n1   │ leader │" in shown
