"""The procedures of docs/operations.md and docs/upgrade.md, run as they are written there."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

from tests.process.cluster import READY_SECONDS, NodeProcess
from tests.process.runbook import ROOT, Host, Machines, Runbook, code_blocks

pytestmark = pytest.mark.process

OPERATIONS = "docs/operations.md"
SERVE = "Running nodes for real"


def wait_until(condition: Callable[[], bool], what: Callable[[], object]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


class Cluster:
    """The members of the document, started by the README's command."""

    def __init__(self, directory: Path, count: int = 3, machines: int = 4) -> None:
        self.machines = Machines(directory, machines)
        self.hosts = self.machines.hosts
        self.count = count
        self.nodes: dict[int, NodeProcess] = {}
        self.serve_command = Runbook(self.machines, "README.md", SERVE).next_command()

    def __enter__(self) -> Self:
        try:
            for number in range(1, self.count + 1):
                self.start(number)
            self.wait_ready()
        except BaseException:
            self.machines.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.machines.__exit__(*error)

    def host(self, number: int) -> Host:
        return self.hosts[number - 1]

    def start(self, number: int, *flags: str) -> NodeProcess:
        """Start a member with the flags of the README, which every member has with its own name and address."""
        command = self.serve_command.replace("--name n1", f"--name n{number}")
        command = command.replace("http://10.0.0.1:", f"http://10.0.0.{number}:")
        command = command.replace("--advertise-peer 10.0.0.1:", f"--advertise-peer 10.0.0.{number}:")
        book = Runbook(self.machines, "README.md", SERVE)
        self.nodes[number] = book.serve(self.host(number), " ".join((command, *flags)))
        return self.nodes[number]

    def wait_ready(self, *numbers: int) -> None:
        for number in numbers or tuple(self.nodes):
            self.nodes[number].wait_ready()

    def put(self, key: str, value: bytes, *numbers: int) -> None:
        """Write a key at the node that leads."""

        def is_written() -> bool:
            return any(
                self.nodes[number].ask(f"/v1/kv/{key}", method="PUT", body=value)[0] in (200, 201)
                for number in numbers or tuple(self.nodes)
                if self.nodes[number].is_running
            )

        wait_until(is_written, lambda: [node.log()[-2000:] for node in self.nodes.values()])

    def members(self, number: int) -> dict[str, bool]:
        """Return who is a member, and whether it votes."""
        _status, document = self.nodes[number].ask("/v1/cluster/members")
        return {member["name"]: member["votes"] for member in document["members"]}

    def revision(self, number: int) -> int:
        return int(self.nodes[number].status()["revision"])


def replace_member(cluster: Cluster, number: int) -> None:
    """Replace a member whose data is gone, by the commands of the section about members."""
    book = Runbook(cluster.machines, OPERATIONS, "Members")
    while not (command := book.next_command()).startswith("raftkv member replace"):
        pass
    serve = book.next_command()

    def about(text: str) -> str:
        return text.replace("n3", f"n{number}").replace("10.0.0.3", f"10.0.0.{number}")

    # The document names n3, and members to join at that are the others.
    others = [str(each) for each in range(1, 4) if each != number]
    serve = about(serve).partition("--join")[0] + "--join " + ",".join(f"http://10.0.0.{each}:2379" for each in others)
    book.run_again(about(command), cluster.host(int(others[0])))
    cluster.nodes[number] = book.serve(cluster.host(number), serve)
    cluster.wait_ready(number)


def test_a_disk_that_was_put_back(tmp_path):
    with Cluster(tmp_path) as cluster:
        n1, n2, n3 = (cluster.host(number) for number in (1, 2, 3))
        for number in (1, 2, 3):
            assert cluster.nodes[number].terminate() == 0
        shutil.copytree(n3.data_dir, n3.directory / "older")
        for number in (1, 3):
            cluster.start(number)
        cluster.wait_ready(1, 3)
        cluster.put("precious", b"acknowledged", 1, 3)
        wait_until(lambda: cluster.nodes[1].ask("/v1/kv/precious?consistency=stale")[0] == 200, cluster.nodes[1].log)
        assert cluster.nodes[1].terminate() == 0
        cluster.nodes[3].kill()
        shutil.rmtree(n3.data_dir)
        shutil.copytree(n3.directory / "older", n3.data_dir)
        for number in (2, 3):
            cluster.start(number)
        cluster.wait_ready(2, 3)
        cluster.put("other", b"x", 2, 3)
        # The next process of n3 begins with a log that is long enough, so that only its content tells.
        wait_until(lambda: cluster.nodes[3].ask("/v1/kv/other?consistency=stale")[0] == 200, cluster.nodes[3].log)
        cluster.nodes[3].kill()
        cluster.start(3)
        cluster.wait_ready(3)
        cluster.put("another", b"x", 2, 3)
        stopped = cluster.start(1)
        assert stopped.wait() == 1
        assert "has other entries than" in stopped.log()
        wait_until(lambda: "CORRUPT" in str(alarms(cluster.nodes[2])), cluster.nodes[2].log)

        book = Runbook(cluster.machines, OPERATIONS, "A disk that was put back")
        book.run(n1)
        assert not n1.data_dir.exists()
        book.run(n1)
        book.run(n1)
        kept = book.serve(n1)
        kept.wait_ready()
        book.run(n1)
        book.run(n1)
        differences = book.run(n1, status=1)
        assert [line.split()[-1] for line in differences.splitlines() if line[0] == "<"] == ["precious"]
        assert [line.split()[-1] for line in differences.splitlines() if line[0] == ">"] == ["another", "other"]
        book.run(n1, KEY="precious")
        assert cluster.nodes[2].ask("/v1/kv/precious") == (200, b"acknowledged")
        assert kept.terminate() == 0

        replace_member(cluster, 1)
        assert cluster.nodes[3].terminate() == 0
        n3.data_dir.rename(n3.directory / "put-back")
        replace_member(cluster, 3)

        assert book.run(n2) == "CORRUPT\tn1\n"
        assert book.run(n2) == "CORRUPT\tn1\n"
        book.assert_done()
        assert alarms(cluster.nodes[2]) == []
        for number in (1, 2, 3):
            wait_until(lambda number=number: all(cluster.members(number).values()), cluster.nodes[number].log)
            assert cluster.nodes[number].ask("/v1/kv/precious") == (200, b"acknowledged")
            assert cluster.nodes[number].ask("/v1/kv/other") == (200, b"x")
        # It is a cluster of three again.
        cluster.nodes[2].kill()
        cluster.put("after", b"x", 1, 3)


def alarms(node: NodeProcess) -> list[dict[str, str]]:
    _status, document = node.ask("/v3/maintenance/alarm", method="POST", body=b'{"action": "GET"}')
    return document.get("alarms", []) if document else []


def test_members(tmp_path):
    with Cluster(tmp_path) as cluster:
        n1, n3, n4 = (cluster.host(number) for number in (1, 3, 4))
        cluster.put("key", b"x")
        book = Runbook(cluster.machines, OPERATIONS, "Members")
        assert [line.split()[0] for line in book.run(n1).splitlines()] == ["n1", "n2", "n3"]
        cluster.nodes[4] = book.serve(n4)
        cluster.wait_ready(4)
        wait_until(lambda: cluster.members(1).get("n4", False), cluster.nodes[4].log)
        assert cluster.nodes[4].ask("/v1/kv/key") == (200, b"x")
        book.run(n1)
        assert cluster.nodes[4].wait() == 1
        assert "was removed from the cluster" in cluster.nodes[4].log()
        del cluster.nodes[4]
        # A member whose disk is lost: its machine comes back with an empty one.
        cluster.nodes[3].kill()
        shutil.rmtree(n3.data_dir)
        book.run(n1)
        cluster.nodes[3] = book.serve(n3)
        cluster.wait_ready(3)
        wait_until(lambda: all(cluster.members(1).values()), cluster.nodes[3].log)
        assert cluster.nodes[3].ask("/v1/kv/key") == (200, b"x")
        # It moves; 10.0.0.9 stands for the fourth machine.
        assert cluster.nodes[3].terminate() == 0
        shutil.rmtree(n4.data_dir)
        n3.data_dir.rename(n4.data_dir)
        flags = {"--name n1": "--name n3", "10.0.0.1:": "10.0.0.4:"}
        serve = cluster.serve_command.partition("--initial-cluster")[0]
        for ours, theirs in flags.items():
            serve = serve.replace(ours, theirs)
        cluster.nodes[3] = book.serve(n4, serve)
        wait_until(lambda: cluster.nodes[3].ask("/livez")[0] == 200, cluster.nodes[3].log)
        book.run_again(book.next_command().replace("10.0.0.9", "10.0.0.4"), n1)
        book.assert_done()
        cluster.wait_ready(3)
        cluster.nodes[1].kill()
        cluster.put("after", b"x", 2, 3)


def test_backup_and_restore_of_a_cluster(tmp_path):
    with Cluster(tmp_path / "old") as old:
        old.put("key", b"x")
        book = Runbook(old.machines, OPERATIONS, "Backups")
        n1 = old.host(1)
        book.run(n1)
        assert "revision  2" in book.run(n1)
        book.skip("raftkv backup --every")
        book.skip("raftkv backup --once --to s3://")
        restore = book.next_command()
        book.assert_done()
        revision = old.revision(1)
        for number in (1, 2, 3):
            assert old.nodes[number].terminate() == 0
            host = old.host(number)
            host.data_dir.rename(host.directory / "before")
            if number > 1:
                shutil.copy(n1.directory / "cluster.snapshot", host.directory)
            book.run_again(restore.replace("--name n1", f"--name n{number}"), host)
        for number in (1, 2, 3):
            old.start(number)
        old.wait_ready()
        assert old.revision(1) > revision
        for number in (1, 2, 3):
            assert old.nodes[number].ask("/v1/kv/key") == (200, b"x")
        old.put("after", b"x")


def test_majority_that_is_lost_for_good(tmp_path):
    with Cluster(tmp_path) as cluster:
        n1, n2, n3 = (cluster.host(number) for number in (1, 2, 3))
        cluster.put("key", b"x")
        wait_until(lambda: cluster.nodes[1].ask("/v1/kv/key")[0] == 200, cluster.nodes[1].log)
        for number in (2, 3, 1):
            cluster.nodes[number].kill()
        book = Runbook(cluster.machines, OPERATIONS, "When a majority is lost for good")
        book.run(n1, typed="y\n")
        (backup,) = n1.directory.glob("*.snapshot")
        aside, restore = book.next_command(), book.next_command()
        book.assert_done()
        cluster.start(1)
        for host in (n2, n3):
            name = f"n{host.number}"
            shutil.copy(backup, host.directory)
            book.run_again(aside, host)
            of_host = restore.replace("raftkv-TIME.snapshot", backup.name).replace("--name n2", f"--name {name}")
            book.run_again(of_host, host)
            cluster.start(host.number)
            cluster.wait_ready(1, host.number)
        for number in (1, 2, 3):
            assert cluster.nodes[number].ask("/v1/kv/key") == (200, b"x")
        cluster.put("after", b"x")


def test_quota(tmp_path):
    with Cluster(tmp_path, 0) as cluster:
        for number in (1, 2, 3):
            cluster.start(number, "--quota-bytes", "3000000")
        cluster.wait_ready()
        n1 = cluster.host(1)

        def is_full() -> bool:
            answers = [
                node.ask("/v1/kv/logs/1", method="PUT", body=bytes(500_000))[0] for node in cluster.nodes.values()
            ]
            return 507 in answers

        wait_until(is_full, cluster.nodes[1].log)
        assert cluster.nodes[1].ask("/health")[0] == 503
        book = Runbook(cluster.machines, OPERATIONS, "The quota")
        assert "NOSPACE" in book.run(n1)
        revision = json.loads(book.run(n1, PREFIX="logs/"))["revision"]
        assert int(book.run(n1)) >= revision
        book.assert_done()
        wait_until(lambda: alarms(cluster.nodes[1]) == [], cluster.nodes[1].log)
        cluster.put("after", b"x")
        assert cluster.nodes[1].ask("/health")[0] == 200


def test_upkeep(tmp_path):
    with Cluster(tmp_path) as cluster:
        n1 = cluster.host(1)
        for number in range(20):
            cluster.put(f"key{number}", bytes(1_000_000))
        book = Runbook(cluster.machines, OPERATIONS, "Looking at the members")
        assert [line.split("\t")[2] for line in book.run(n1).splitlines()] == ["HEALTH", *3 * ["healthy"]]
        assert [line.split("\t")[1] for line in book.run(n1).splitlines()] == ["NAME", "n1", "n2", "n3"]
        book.run(n1)
        book.assert_done()

        book = Runbook(cluster.machines, OPERATIONS, "Moving the leader")
        book.run(n1)
        assert book.run(n1, MEMBER="n2") == "n2\n"
        book.assert_done()

        book = Runbook(cluster.machines, OPERATIONS, "History")
        assert book.run(n1, REVISION="5") == "5\n"
        assert book.run(n1) == "21\n"
        book.assert_done()
        assert cluster.nodes[1].ask("/v1/status")[1]["purged_revision"] == 21

        size = n1.data_dir / "store" / "data.mdb"
        for number in range(20):
            assert cluster.nodes[2].ask(f"/v1/kv/key{number}", method="DELETE")[0] == 200
        cluster.put("kept", b"x", 2)
        before = size.stat().st_size
        book = Runbook(cluster.machines, OPERATIONS, "Space in the store")
        book.run(n1)
        cluster.nodes[1].terminate()
        book.run(n1)
        book.assert_done()
        cluster.start(1)
        cluster.wait_ready(1)
        assert size.stat().st_size <= before
        assert cluster.nodes[1].ask("/v1/kv/kept") == (200, b"x")
        assert cluster.nodes[1].ask("/v1/kv/key0")[0] == 404


def test_every_procedure_with_commands_is_run():
    """A section that gets its first command fails here, until a test runs it or this list says which one does."""
    run_here = {
        "",
        "A disk that was put back",
        "Backups",
        "History",
        "Looking at the members",
        "Members",
        "Moving the leader",
        "Space in the store",
        "The quota",
        "When a majority is lost for good",
    }
    run_elsewhere = {"TLS": "test_tls.py"}
    assert all((ROOT / "tests" / "process" / test).exists() for test in run_elsewhere.values())
    headings = [line[3:] for line in (ROOT / OPERATIONS).read_text().splitlines() if line.startswith("## ")]
    with_commands = set()
    for heading in ["", *headings]:
        try:
            code_blocks(OPERATIONS, heading)
        except AssertionError:
            continue
        with_commands.add(heading)
    assert with_commands == run_here | set(run_elsewhere)
