"""The procedures of k8s/README.md that touch volumes, run as they are written there, in the pod simulator."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.k8s.kubectl import Kubectl, Set
from tests.k8s.pods import Machine, Pod, can_make_networks
from tests.k8s.test_manifests import ROOT
from tests.process.runbook import code_blocks

pytestmark = [
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed"),
    pytest.mark.skipif(not can_make_networks(), reason="network namespaces cannot be made here"),
]

README = "k8s/README.md"
BUCKET_SERVER = "10.77.0.1:5555"
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


def set_up_bucket(cluster: Cluster, server: subprocess.Popen[bytes]) -> None:
    """Let the backup job of the overlays store in a bucket, as the README says."""
    controlled, kubectl = cluster
    about = (ROOT / "README.md").read_text().partition("To store them in a bucket")[2].partition("[Restoring from")[0]
    (block,) = re.findall(r"\n((?:    .*\n)+)", about)
    mine = kubectl.home / "k8s/overlays/production-3/kustomization.yaml"
    scaled = {"replicas": [{"name": "raftkv", "count": 5}]}
    mine.write_text(yaml.safe_dump(yaml.safe_load(mine.read_text()) | yaml.safe_load(block) | scaled))
    controlled.secrets["raftkv-backup-s3"] = {
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{BUCKET_SERVER}",
    }
    deadline = time.monotonic() + 30
    while controlled.machine.ask("http", "10.77.0.1", "/moto-api/data.json", port=5555)[0] != 200:
        assert server.poll() is None
        assert time.monotonic() < deadline
    make = "import boto3; boto3.client('s3').create_bucket(Bucket='BUCKET')"
    command = controlled.machine.command(controlled.machine.namespace, sys.executable, "-c", make)
    subprocess.run(command, check=True, timeout=60, env=os.environ | controlled.secrets["raftkv-backup-s3"])


@pytest.fixture
def bucket(cluster: Cluster, tmp_path: Path) -> Iterator[None]:
    """A server of the S3 protocol that pods reach; the cluster's backups go there, and it has five members."""
    host, port = BUCKET_SERVER.split(":")
    serve = "import sys; from moto.server import main; main(sys.argv[1:])"
    machine = cluster[0].machine
    command = machine.command(machine.namespace, sys.executable, "-c", serve, "-H", host, "-p", port)
    with (tmp_path / "bucket.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        set_up_bucket(cluster, server)
        yield
    finally:
        server.kill()
        server.wait(30)


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

    choose, restore, _beyond = section("Restoring a backup in Kubernetes")
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

    # A restore of another backup leaves a second old directory; each run goes back over one restore.
    kubectl.run([line.replace("--set-aside", "--set-aside --bump-revision 2000000000") for line in restore])
    (back,) = section("Going back to the data before a restore")
    assert "raftkv-" in kubectl.run(back)
    assert contents(controlled) == restored
    kubectl.run(back)
    assert contents(controlled) == before
    kubectl.run(restore)
    remove = end_maintenance(cluster)
    for pod in controlled.pods:
        assert keys(pod) == ["backed-up"]
    assert {(pod.volume / "raftkv").stat().st_mode & 0o777 for pod in controlled.pods} == {0o700}
    put(controlled.pods[2], "after")
    kubectl.run(remove)
    assert {path.name for pod in controlled.pods for path in pod.volume.iterdir()} == {"raftkv"}
    assert [pod.liveness_kills for pod in controlled.pods] == [0] * 3


def test_restore_from_a_bucket_into_a_set_that_was_scaled_up(cluster, bucket):
    controlled, kubectl = cluster
    kubectl.run(["kubectl apply -k k8s/overlays/production-3", "kubectl rollout status statefulset raftkv"])
    assert len(controlled.pods) == 5
    put(controlled.pods[0], "backed-up")
    controlled.back_up()
    put(controlled.pods[4], "later")
    enter, choose, restore = section("Restoring from a bucket")
    kubectl.run(enter)
    assert all(pod.is_running and not pod.is_ready for pod in controlled.pods)
    before = contents(controlled)
    assert all(before.values()), "scaling to 0 keeps the volumes"

    (choices,) = kubectl.run(choose[:1]).splitlines()
    name = choices.partition("\t")[0].removeprefix("s3://BUCKET/PREFIX/")
    assert "revision" in kubectl.run(choose[1:], **{"PREFIX/BACKUP": f"PREFIX/{name}"})
    ids = [line.rpartition(" ")[2] for line in kubectl.run(restore, **{"PREFIX/BACKUP": f"PREFIX/{name}"}).splitlines()]
    assert len(set(ids[1::2])) == 1
    _choose, _restore, beyond = section("Restoring a backup in Kubernetes")
    kubectl.run(beyond)
    for pod in controlled.pods:
        (old,) = pod.volume.glob("raftkv-*.old")
        assert content(old) == before[pod.name], "no step loses data"
    end_maintenance(cluster)
    for pod in controlled.pods:
        assert keys(pod) == ["backed-up"]
    put(controlled.pods[4], "after")


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
        "Restoring from a bucket",
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
