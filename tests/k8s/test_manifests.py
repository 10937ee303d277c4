"""The manifests as they are rendered: sound to Kubernetes' own schemas, and true to the code that they run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from raftkv.cli.main import raftkv
from raftkv.config import NodeConfig
from raftkv.settings import SETTINGS, build_config
from tests.http.http_thread import ServerThread
from tests.process.cluster import NodeProcess

kubernetes_validate = pytest.importorskip("kubernetes_validate")

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")

OVERLAYS = {"development": 1, "production-3": 3, "production-5": 5}
VERSIONS = ["1.28", "1.30", "1.34"]
ROOT = Path(__file__).parents[2] / "k8s"


@pytest.fixture(params=OVERLAYS, scope="module")
def rendered(request) -> tuple[int, list[dict[str, Any]]]:
    output = subprocess.run(
        ["kubectl", "kustomize", str(ROOT / "overlays" / request.param)], capture_output=True, check=True, timeout=60
    ).stdout
    return OVERLAYS[request.param], list(yaml.safe_load_all(output))


def only(objects: list[dict[str, Any]], kind: str, name: str = "raftkv") -> dict[str, Any]:
    (found,) = [each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def pod(objects: list[dict[str, Any]]) -> dict[str, Any]:
    return only(objects, "StatefulSet")["spec"]["template"]


def environment_of(template: dict[str, Any], ordinal: int) -> dict[str, str]:
    """Return the variables of a pod as Kubernetes would fill them in."""
    fields = {"metadata.name": f"raftkv-{ordinal}", "metadata.namespace": "shop"}
    variables: dict[str, str] = {}
    for item in template["spec"]["containers"][0]["env"]:
        value = item.get("value")
        if value is None:
            value = fields[item["valueFrom"]["fieldRef"]["fieldPath"]]
        for name, known in variables.items():
            value = value.replace(f"$({name})", known)
        variables[item["name"]] = value
    return variables


def config_of(template: dict[str, Any], ordinal: int) -> NodeConfig:
    """Return what the node of a pod would be told, by its arguments and variables."""
    command, *arguments = template["spec"]["containers"][0]["args"]
    assert command == "serve"
    by_flag = {f"--{setting.flag}": setting.key for setting in SETTINGS}
    flags = {by_flag[flag]: value for flag, _, value in (argument.partition("=") for argument in arguments)}
    return build_config(flags, environment_of(template, ordinal), {})


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_one_of_kubernetes(rendered, version):
    _replicas, objects = rendered
    assert len(objects) >= 4
    for each in objects:
        kubernetes_validate.validate(each, version, strict=True)


def test_every_pod_knows_itself_and_all_others(rendered):
    replicas, objects = rendered
    template, service = pod(objects), only(objects, "StatefulSet")["spec"]["serviceName"]
    assert only(objects, "StatefulSet")["spec"]["replicas"] == replicas
    configs = [config_of(template, ordinal) for ordinal in range(replicas)]
    assert len({config.initial_cluster for config in configs}) == 1
    for ordinal, config in enumerate(configs):
        assert config.name == f"raftkv-{ordinal}"
        assert config.advertise_peer == f"raftkv-{ordinal}.{service}.shop.svc:2380"
        assert config.advertise_client == f"http://raftkv-{ordinal}.{service}.shop.svc:2379"
        assert (config.listen_client.is_wildcard, config.listen_peer.is_wildcard) == (True, True)
        assert [member.name for member in config.initial_cluster] == [f"raftkv-{each}" for each in range(replicas)]


def test_ports_are_those_that_the_node_listens_on(rendered):
    _replicas, objects = rendered
    config = config_of(pod(objects), 0)
    ports = {port["name"]: port["containerPort"] for port in pod(objects)["spec"]["containers"][0]["ports"]}
    assert ports == {"client": config.listen_client.port, "peer": config.listen_peer.port}
    for service in (only(objects, "Service"), only(objects, "Service", "raftkv-peers")):
        for port in service["spec"]["ports"]:
            assert (port["targetPort"], port["port"]) == (port["name"], ports[port["name"]])
    egress = only(objects, "NetworkPolicy")["spec"]["egress"][0]["ports"]
    assert {port["port"] for port in egress} == set(ports.values())


def test_selectors_match_the_pods_and_nothing_else(rendered):
    replicas, objects = rendered
    labels = pod(objects)["metadata"]["labels"]
    selectors = [
        only(objects, "StatefulSet")["spec"]["selector"]["matchLabels"],
        only(objects, "Service")["spec"]["selector"],
        only(objects, "Service", "raftkv-peers")["spec"]["selector"],
        only(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        pod(objects)["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ]
    if replicas > 1:
        (term,) = pod(objects)["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        selectors.append(term["labelSelector"]["matchLabels"])
        selectors.append(only(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"])
        job = only(objects, "CronJob", "raftkv-backup")["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"]
        assert all(not selector.items() <= job.items() for selector in selectors), "a backup is no member"
    for selector in selectors:
        assert selector
        assert selector.items() <= labels.items()


def test_a_majority_is_left_when_a_machine_is_drained(rendered):
    replicas, objects = rendered
    budgets = [each for each in objects if each["kind"] == "PodDisruptionBudget"]
    if replicas == 1:
        assert budgets == [], "one node could never be drained"
        return
    assert replicas - budgets[0]["spec"]["maxUnavailable"] >= replicas // 2 + 1


def test_members_find_each_other_before_they_are_ready_and_start_together(rendered):
    _replicas, objects = rendered
    peers = only(objects, "Service", "raftkv-peers")["spec"]
    assert (peers["clusterIP"], peers["publishNotReadyAddresses"]) == ("None", True)
    assert only(objects, "StatefulSet")["spec"]["podManagementPolicy"] == "Parallel"
    assert "publishNotReadyAddresses" not in only(objects, "Service")["spec"]


def test_probes_ask_what_is_served_and_liveness_never_asks_for_a_quorum(rendered):
    _replicas, objects = rendered
    container = pod(objects)["spec"]["containers"][0]
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {probe["path"] for name, probe in probes.items() if name != "readinessProbe"} == {"/livez"}
    assert probes["readinessProbe"]["path"] == "/readyz"
    assert {probe["port"] for probe in probes.values()} == {"client"}
    with ServerThread() as server:
        node = NodeProcess.__new__(NodeProcess)
        node.url = server.url
        assert {node.ask(probe["path"])[0] for probe in probes.values()} == {200}


def test_nothing_runs_with_more_rights_than_it_needs(rendered):
    _replicas, objects = rendered
    templates = [pod(objects)]
    templates += [each["spec"]["jobTemplate"]["spec"]["template"] for each in objects if each["kind"] == "CronJob"]
    for template in templates:
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            context = container["securityContext"]
            assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True)
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
    written = {mount["mountPath"] for mount in pod(objects)["spec"]["containers"][0]["volumeMounts"]}
    assert str(config_of(pod(objects), 0).data_dir.parent) in written


def test_no_volume_is_deleted_by_a_change_of_numbers_or_of_the_set(rendered):
    _replicas, objects = rendered
    policy = only(objects, "StatefulSet")["spec"]["persistentVolumeClaimRetentionPolicy"]
    assert policy == {"whenScaled": "Retain", "whenDeleted": "Retain"}


def test_maintenance_mode_mounts_the_same_volumes_and_runs_no_node():
    def objects_of(overlay: str) -> list[dict[str, Any]]:
        command = ["kubectl", "kustomize", str(ROOT / "overlays" / overlay)]
        return list(yaml.safe_load_all(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout))

    usual, changed = objects_of("production-3"), objects_of("maintenance")
    for each in changed:
        for version in VERSIONS:
            kubernetes_validate.validate(each, version, strict=True)
    (container,) = pod(changed)["spec"]["containers"]
    (node,) = pod(usual)["spec"]["containers"]
    assert container["command"][0] == "sh"
    same = ("image", "env", "volumeMounts", "securityContext", "resources", "readinessProbe")
    assert {key: container[key] for key in same} == {key: node[key] for key in same}
    assert not container.keys() & {"args", "livenessProbe", "startupProbe", "lifecycle"}, "no node is asked or run"
    for key in ("replicas", "volumeClaimTemplates", "persistentVolumeClaimRetentionPolicy", "podManagementPolicy"):
        assert only(changed, "StatefulSet")["spec"][key] == only(usual, "StatefulSet")["spec"][key]
    assert only(changed, "CronJob", "raftkv-backup")["spec"]["suspend"] is True
    reader = only(changed, "Pod", "raftkv-backup-reader")["spec"]
    assert reader["securityContext"].items() <= pod(usual)["spec"]["securityContext"].items()
    assert reader["containers"][0]["securityContext"] == node["securityContext"]
    assert reader["containers"][0]["image"] == node["image"]
    job = only(usual, "CronJob", "raftkv-backup")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert reader["volumes"] == job["volumes"]


def test_only_maintenance_mode_with_a_bucket_lets_pods_reach_one():
    def objects_of(overlay: str) -> list[dict[str, Any]]:
        command = ["kubectl", "kustomize", str(ROOT / "overlays" / overlay)]
        return list(yaml.safe_load_all(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout))

    def ports_to_anywhere(objects: list[dict[str, Any]]) -> set[int]:
        rules = only(objects, "NetworkPolicy")["spec"]["egress"]
        return {port["port"] for rule in rules if "to" not in rule for port in rule["ports"]}

    usual, with_bucket = objects_of("maintenance"), objects_of("maintenance-bucket")
    for each in with_bucket:
        for version in VERSIONS:
            kubernetes_validate.validate(each, version, strict=True)
    assert (ports_to_anywhere(usual), ports_to_anywhere(with_bucket)) == ({53}, {53, 443})
    (plain,), (container,) = pod(usual)["spec"]["containers"], pod(with_bucket)["spec"]["containers"]
    assert container == plain | {"envFrom": [{"secretRef": {"name": "raftkv-backup-s3"}}]}
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "pip install --no-cache-dir '.[s3]'" in dockerfile, "the pods have what buckets need"


def test_volumes_are_as_large_as_the_sizing_guide_asks(rendered):
    _replicas, objects = rendered
    (template,) = only(objects, "StatefulSet")["spec"]["volumeClaimTemplates"]
    gibibytes = int(template["spec"]["resources"]["requests"]["storage"].removesuffix("Gi"))
    found = re.search(r"(\d+) times where backups are restored in place", (ROOT.parent / "docs/sizing.md").read_text())
    assert found is not None
    assert gibibytes * 2**30 >= int(found[1]) * config_of(pod(objects), 0).storage.quota_bytes


def test_the_time_to_end_covers_what_a_node_does_then(rendered):
    _replicas, objects = rendered
    spec = pod(objects)["spec"]
    _sleep, seconds = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    # Hand over the leadership (3 s), finish requests (3 s), sync and close.
    assert spec["terminationGracePeriodSeconds"] >= int(seconds) + 3 + 3 + 10


def test_the_backup_job_is_a_command_that_exists(rendered):
    _replicas, objects = rendered
    for job in (each for each in objects if each["kind"] == "CronJob"):
        (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        name, *arguments = container["args"]
        # Parsed, not run: a wrong flag is an error of usage.
        raftkv.commands[name].make_context(name, list(arguments))
        assert container["env"] == [{"name": "RAFTKV_ENDPOINTS", "value": "http://raftkv:2379"}]
        assert only(objects, "Service")["spec"]["ports"][0]["port"] == 2379


def test_the_backups_fit_their_volume(rendered):
    """Also when the data is at its quota and does not compress, with one more while the next is written."""
    _replicas, objects = rendered
    for job in (each for each in objects if each["kind"] == "CronJob"):
        (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        context = raftkv.commands["backup"].make_context("backup", container["args"][1:])
        claim = only(objects, "PersistentVolumeClaim", "raftkv-backups")["spec"]["resources"]["requests"]["storage"]
        assert claim.endswith("Gi")
        size = int(claim.removesuffix("Gi")) * 2**30
        assert (context.params["keep"] + 1) * config_of(pod(objects), 0).storage.quota_bytes <= size


def test_the_backup_alert_knows_the_schedule(rendered):
    _replicas, objects = rendered
    manifest = yaml.safe_load((ROOT / "components/monitoring/prometheusrule.yaml").read_text())
    rules = [rule for group in manifest["spec"]["groups"] for rule in group["rules"]]
    (rule,) = [each for each in rules if each.get("alert") == "RaftkvBackupTooOld"]
    assert rule["expr"].endswith("> 3 * 3600")
    schedules = {each["spec"]["schedule"] for each in objects if each["kind"] == "CronJob"}
    assert schedules <= {"0 * * * *"}, "the alert waits for three of them"
