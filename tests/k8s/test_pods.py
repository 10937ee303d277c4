"""A StatefulSet's life without Kubernetes: bootstrap, rolling restart, scaling, lost nodes and lost volumes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from tests.k8s.pods import Machine, Pod, can_make_networks
from tests.k8s.test_manifests import ROOT, environment_of, only
from tests.tls_files import TestAuthority

pytestmark = [
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed"),
    pytest.mark.skipif(not can_make_networks(), reason="network namespaces cannot be made here"),
]

MOST = 5


class Load:
    """A writer in a process of its own, on the pods' network."""

    def __init__(self, machine: Machine, pods: list[Pod]) -> None:
        self._path = machine.directory / "acknowledged"
        self._path.write_text("")
        endpoints = [f"{pod.scheme}://{pod.host}:2379" for pod in pods]
        self._variables = pods[0].variables()
        self._command = machine.command(
            machine.namespace, sys.executable, "-m", "tests.k8s.writer", str(self._path), *endpoints
        )

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, env=self._variables)
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.terminate()
        self._process.wait(30)

    def lines(self) -> list[str]:
        return self._path.read_text().splitlines()

    def acknowledged(self) -> list[str]:
        return [line for line in self.lines() if not line.startswith("failed")]

    def failed(self) -> list[str]:
        return [line for line in self.lines() if line.startswith("failed")]

    def wait_for_more(self, count: int = 20) -> None:
        goal, deadline = len(self.acknowledged()) + count, time.monotonic() + 60
        while len(self.acknowledged()) < goal:
            assert time.monotonic() < deadline, f"no writes: {self.lines()[-3:]}"
            time.sleep(0.05)


def template_of(overlay: Path) -> dict[str, Any]:
    output = subprocess.run(["kubectl", "kustomize", overlay], capture_output=True, check=True, timeout=60).stdout
    return only(list(yaml.safe_load_all(output)), "StatefulSet")["spec"]["template"]


@contextmanager
def pods_of(
    tmp_path: Path, template: dict[str, Any], secret: Path = Path("none")
) -> Iterator[tuple[Machine, list[Pod], list[Pod]]]:
    with Machine(tmp_path, secret) as machine:
        made = [Pod(machine, template, ordinal, environment_of(template, ordinal)) for ordinal in range(MOST)]
        running: list[Pod] = []
        yield machine, made, running
        for pod in running:
            pod.lose()


@pytest.fixture
def pods(tmp_path: Path):
    with pods_of(tmp_path, template_of(ROOT / "overlays" / "production-3")) as made:
        yield made


@pytest.fixture
def encrypted_pods(tmp_path: Path):
    copied = shutil.copytree(ROOT, tmp_path / "k8s")
    mine = copied / "overlays/mine"
    mine.mkdir()
    kustomization = {"resources": ["../production-3"], "components": ["../../components/tls"]}
    (mine / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    secret = tmp_path / "secret"
    secret.mkdir()
    authority = TestAuthority.create(secret)
    # The names that k8s/README.md asks for.
    for file, name in zip(
        authority.certify("pods", "raftkv", "raftkv.shop.svc", "*.raftkv-peers.shop.svc", "localhost"),
        ("tls.crt", "tls.key"),
        strict=True,
    ):
        file.rename(secret / name)
    with pods_of(tmp_path, template_of(mine), secret) as made:
        yield made


def start(running: list[Pod], *pods: Pod) -> None:
    for pod in pods:
        pod.start()
        running.append(pod)
    for pod in pods:
        pod.wait_ready()


def end(running: list[Pod], pod: Pod) -> None:
    running.remove(pod)
    pod.delete()


def lose(running: list[Pod], pod: Pod) -> None:
    running.remove(pod)
    pod.lose()


def check_everything_is_there(running: list[Pod], load: Load) -> None:
    expected = set(load.acknowledged())
    assert expected
    for pod in running:
        listing = pod.execute("ls", "load/", "--endpoints", f"{pod.scheme}://localhost:2379")
        assert listing.returncode == 0, listing.stderr
        assert expected <= set(listing.stdout.split())


def test_a_set_is_restarted_scaled_and_repaired_under_load(pods):
    machine, (first, second, third, fourth, fifth), running = pods
    start(running, first, second, third)
    with Load(machine, [first, second, third, fourth, fifth]) as load:
        load.wait_for_more()
        # A rolling restart, as a StatefulSet does it: the highest number first, each with another address.
        for pod in (third, second, first):
            before = pod.address
            end(running, pod)
            start(running, pod)
            assert pod.address != before
            load.wait_for_more()
        assert load.failed() == []
        # One node less is no reason for anything; two are a reason not to be ready, and none to be killed.
        lose(running, second)
        load.wait_for_more()
        lose(running, third)
        first.wait("without a quorum", lambda: not first.is_ready)
        for _ in range(5):
            assert first.probe("livenessProbe")
            assert not first.probe("readinessProbe")
        start(running, second, third)
        load.wait_for_more()
        # Up to five and down again.
        start(running, fourth, fifth)
        first.wait("one of five voters", lambda: list(first.members().values()) == [True] * 5)
        load.wait_for_more()
        for pod in (fifth, fourth):
            removed = first.execute("member", "remove", pod.name)
            assert removed.returncode == 0, removed.stderr
            pod.wait("told that it was removed", lambda pod=pod: "was removed" in pod.log())
            end(running, pod)
            # As k8s/README.md says: its claim is deleted.
            pod.lose_volume()
            load.wait_for_more()
        assert list(first.members()) == [first.name, second.name, third.name]
        check_everything_is_there(running, load)
        # A number that was used before comes back as a new member.
        start(running, fourth)
        load.wait_for_more()
        check_everything_is_there(running, load)
    assert [pod.liveness_kills for pod in (first, second, third, fourth, fifth)] == [0] * 5


def test_a_pod_with_a_lost_volume_comes_back_as_a_replacement(pods):
    machine, (first, second, third, *_others), running = pods
    start(running, first, second, third)
    with Load(machine, [first, second, third]) as load:
        load.wait_for_more()
        lose(running, second)
        second.lose_volume()
        start(running, second)
        assert all(first.members().values())
        load.wait_for_more()
        check_everything_is_there(running, load)
        # And when it comes back before anybody who could tell that it was lost.
        for pod in (first, second, third):
            lose(running, pod)
        third.lose_volume()
        third.start()
        running.append(third)
        third.wait("beginning in vain", lambda: "no cluster runs" in third.log())
        start(running, first, second)
        third.wait_ready()
        load.wait_for_more()
        check_everything_is_there(running, load)
    assert third.restarts > 0
    assert [pod.liveness_kills for pod in (first, second, third)] == [0] * 3


def test_a_set_with_tls_is_restarted_repaired_and_scaled_under_load(encrypted_pods):
    machine, (first, second, third, fourth, _fifth), running = encrypted_pods
    start(running, first, second, third)
    with Load(machine, [first, second, third, fourth]) as load:
        load.wait_for_more()
        for pod in (third, second, first):
            end(running, pod)
            start(running, pod)
            load.wait_for_more()
        assert load.failed() == []
        lose(running, second)
        second.lose_volume()
        start(running, second)
        start(running, fourth)
        # As kubectl exec does, with nothing but the variables of the pod.
        removed = first.execute("member", "remove", fourth.name)
        assert removed.returncode == 0, removed.stderr
        load.wait_for_more()
        check_everything_is_there([first, second, third], load)
    assert [pod.liveness_kills for pod in (first, second, third, fourth)] == [0] * 4
