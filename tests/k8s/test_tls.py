"""The component for TLS: what it mounts is what the nodes read, and everybody who asks them asks over TLS."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.test_manifests import VERSIONS, config_of, kubernetes_validate, only, pod

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")

ROOT = Path(__file__).parents[2] / "k8s"


@pytest.fixture(scope="module", params=["development", "production-3"])
def rendered(request, tmp_path_factory) -> list[dict[str, Any]]:
    copied = shutil.copytree(ROOT, tmp_path_factory.mktemp("overlay") / "k8s")
    mine = copied / "overlays/mine"
    mine.mkdir()
    kustomization = {"resources": [f"../{request.param}"], "components": ["../../components/monitoring"]}
    kustomization["components"].append("../../components/tls")
    (mine / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    output = subprocess.run(["kubectl", "kustomize", mine], capture_output=True, check=True, timeout=60).stdout
    return list(yaml.safe_load_all(output))


def mounted(spec: dict[str, Any]) -> set[str]:
    """Return the files of the Secret as the first container sees them."""
    (volume,) = [each for each in spec["volumes"] if each["name"] == "tls"]
    (mount,) = [each for each in spec["containers"][0]["volumeMounts"] if each["name"] == "tls"]
    assert volume["secret"]["secretName"] == "raftkv-tls"
    assert mount["readOnly"] is True
    names = [item["path"] for item in volume["secret"].get("items", [])] or ["tls.crt", "tls.key", "ca.crt"]
    return {f"{mount['mountPath']}/{name}" for name in names}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_one_of_kubernetes(rendered, version):
    for each in rendered:
        if not each["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(each, version, strict=True)


def test_the_nodes_read_what_is_mounted(rendered):
    config = config_of(pod(rendered), 0)
    assert config.tls is not None
    assert {str(file) for file in (config.tls.cert, config.tls.key, config.tls.ca)} == mounted(pod(rendered)["spec"])
    assert config.advertise_client.startswith("https://")
    assert all(url.startswith("https://") for url in config.joining.urls)


def test_health_and_metrics_need_no_certificate(rendered):
    """Neither the kubelet nor Prometheus has one to show, which ``--tls-client-ca`` would ask for."""
    container, config = pod(rendered)["spec"]["containers"][0], config_of(pod(rendered), 0)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert config.listen_metrics is not None
    assert config.listen_metrics.is_wildcard
    assert ports["metrics"] == config.listen_metrics.port
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == "metrics"
        assert "scheme" not in container[probe]["httpGet"]
    (endpoint,) = only(rendered, "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["port"] == "metrics"
    assert "scheme" not in endpoint
    by_name = {port["name"]: port for port in only(rendered, "Service", "raftkv-peers")["spec"]["ports"]}
    assert (by_name["metrics"]["port"], by_name["metrics"]["targetPort"]) == (ports["metrics"], "metrics")


def test_everybody_else_asks_over_tls(rendered):
    container = pod(rendered)["spec"]["containers"][0]
    environment = {item["name"]: item.get("value") for item in container["env"]}
    assert environment["RAFTKV_ENDPOINTS"].startswith("https://")
    assert environment["RAFTKV_CACERT"] in mounted(pod(rendered)["spec"])
    for job in (each for each in rendered if each["kind"] == "CronJob"):
        spec = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        variables = {item["name"]: item["value"] for item in spec["containers"][0]["env"]}
        assert variables["RAFTKV_ENDPOINTS"] == "https://raftkv:2379"
        assert mounted(spec) == {variables["RAFTKV_CACERT"]}, "a backup has no use for the members' key"
