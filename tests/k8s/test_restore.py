"""The procedures of k8s/README.md that touch volumes, run as they are written there, in the pod simulator."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.k8s.kubectl import Kubectl, Set
from tests.k8s.pods import Machine, Pod, can_make_networks
from tests.k8s.test_manifests import ROOT
from tests.process.runbook import code_blocks

pytestmark = [
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed"),
    pytest.mark.skipif(not can_make_networks(), reason="network namespaces cannot be made here"),
]

README = "k8s/README.md"
Cluster = tuple[Set, Kubectl]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Machine(tmp_path, tmp_path / "none") as machine:
        controlled = Set(machine)
        try:
            with Kubectl(controlled, ROOT) as kubectl:
                kubectl.apply(kubectl.home / "k8s/overlays/production-3")
                controlled.wait_ready()
                yield controlled, kubectl
        finally:
            for pod in controlled.pods:
                pod.lose()


def section(heading: str) -> list[list[str]]:
    return code_blocks(README, heading)


def put(pod: Pod, key: str) -> None:
    written = pod.execute("put", key, "x", "--timeout", "30")
    assert written.returncode == 0, written.stderr


def keys(pod: Pod) -> list[str]:
    listed = pod.execute("ls", "--timeout", "30")
    assert listed.returncode == 0, listed.stderr
    return listed.stdout.split()


def content(directory: Path) -> dict[str, str]:
    """Return a digest of each file of a data directory, but for the lock."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def contents(controlled: Set) -> dict[str, dict[str, str]]:
    return {pod.name: content(pod.volume / "raftkv") for pod in controlled.pods}


def enter_maintenance(cluster: Cluster) -> None:
    (block,) = section("Maintenance mode")
    cluster[1].run(block)
    assert all(pod.is_running and not pod.is_ready for pod in cluster[0].pods)


def end_maintenance(cluster: Cluster) -> list[str]:
    """End it; return the commands that remove the old data."""
    end, remove = section("Ending maintenance mode")
    assert "leader" in cluster[1].run(end)
    return remove


def test_restore_keeps_the_old_data_and_can_be_undone(cluster):
    controlled, kubectl = cluster
    put(controlled.pods[0], "backed-up")
    controlled.back_up()
    put(controlled.pods[0], "later")
    enter_maintenance(cluster)
    before = contents(controlled)
    assert all(before.values()), "scaling to 0 keeps the volumes"

    choose, restore = section("Restoring a backup in Kubernetes")
    (backup,) = controlled.backups.glob("*/*.snapshot*")
    name = f"/backups/{backup.relative_to(controlled.backups)}"
    chosen = kubectl.run(choose, BACKUP=name)
    assert f"{backup}\t" in chosen, "the list has the names of backups"
    assert "revision" in chosen
    ids = [line.rpartition(" ")[2] for line in kubectl.run(restore).splitlines() if "of the new cluster" in line]
    assert len(ids) == 3
    assert len(set(ids)) == 1
    for pod in controlled.pods:
        (old,) = pod.volume.glob("raftkv-*.old")
        assert content(old) == before[pod.name]
    restored = contents(controlled)
    # A step that is run a second time changes nothing.
    assert kubectl.run(restore).count(ids[0]) == 3
    assert contents(controlled) == restored

    (back,) = section("Going back to the data before a restore")
    kubectl.run(back)
    assert contents(controlled) == before
    kubectl.run(restore)
    remove = end_maintenance(cluster)
    for pod in controlled.pods:
        assert keys(pod) == ["backed-up"]
    assert {(pod.volume / "raftkv").stat().st_mode & 0o777 for pod in controlled.pods} == {0o700}
    put(controlled.pods[2], "after")
    kubectl.run(remove)
    assert {path.name for pod in controlled.pods for path in pod.volume.iterdir()} == {"raftkv", "raftkv-given-up"}
    assert [pod.liveness_kills for pod in controlled.pods] == [0] * 3


def test_majority_that_is_lost_for_good_and_scaling_down(cluster):
    controlled, kubectl = cluster
    put(controlled.pods[1], "kept")
    assert keys(controlled.pods[0]) == ["kept"]
    controlled.scale(0)
    for name in ("raftkv-1", "raftkv-2"):
        controlled.delete_volume(f"data-{name}")
    enter_maintenance(cluster)
    before = content(controlled.pods[0].volume / "raftkv")
    recover, others = section("When a majority of the pods is lost for good")
    kubectl.run(recover, typed="y\n")
    kubectl.run(others)
    (old,) = controlled.pods[0].volume.glob("raftkv-*.old")
    assert content(old) == before
    remove = end_maintenance(cluster)
    for pod in controlled.pods:
        assert keys(pod) == ["kept"]
    kubectl.run(remove)
    assert [path.name for path in sorted(controlled.pods[0].volume.iterdir())] == ["raftkv"]

    controlled.scale(5)
    controlled.wait_ready()
    put(controlled.pods[4], "after")
    (down,) = section("Scaling")
    kubectl.run(down)
    volumes = controlled.machine.directory / "volumes"
    assert [path.name for path in sorted(volumes.iterdir())] == ["raftkv-0", "raftkv-1", "raftkv-2"]
    assert keys(controlled.pods[0]) == ["after", "kept"]


def test_every_procedure_with_commands_is_run():
    run_here = {
        "Scaling",
        "Maintenance mode",
        "Restoring a backup in Kubernetes",
        "Going back to the data before a restore",
        "When a majority of the pods is lost for good",
        "Ending maintenance mode",
    }
    rendered_elsewhere = {"Storage class": "test_classes.py"}
    assert all((Path(__file__).parent / test).exists() for test in rendered_elsewhere.values())
    headings = [line[3:] for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("## ")]
    with_commands = set()
    for heading in headings:
        try:
            section(heading)
        except AssertionError:
            continue
        with_commands.add(heading)
    assert with_commands == run_here | set(rendered_elsewhere)
