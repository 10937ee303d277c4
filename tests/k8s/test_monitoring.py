"""Monitoring: every alert is sound PromQL over metrics that a node has, and Prometheus finds the members."""

from __future__ import annotations

import re
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.process.cluster import ProcessCluster

ROOT = Path(__file__).parents[2] / "k8s"
RULES = yaml.safe_load((ROOT / "components/monitoring/prometheusrule.yaml").read_text())["spec"]["groups"][0]["rules"]
ALERTS = [rule for rule in RULES if "alert" in rule]
SUFFIXES = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("_total",), "gauge": ("",)}
NOT_OURS = {"up"}
ONLY_WITH_TLS = {"raftkv_certificate_expiry_seconds"}


@pytest.fixture(scope="module")
def families(tmp_path_factory) -> dict[str, Any]:
    with ProcessCluster(tmp_path_factory.mktemp("nodes"), 3) as cluster:
        cluster.wait_ready()
        leader = cluster.leader()
        assert leader.ask("/v1/kv/a", method="PUT", body=b"1")[0] == 201
        with urllib.request.urlopen(f"{leader.url}/metrics", timeout=10) as answer:
            return {family.name: family for family in text_string_to_metric_families(answer.read().decode())}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> list[dict[str, Any]]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    overlay = tmp_path_factory.mktemp("overlay")
    copied = shutil.copytree(ROOT, overlay / "k8s")
    mine = copied / "overlays/mine"
    mine.mkdir()
    kustomization = "resources: [../production-3]\ncomponents: [../../components/monitoring]\n"
    (mine / "kustomization.yaml").write_text(kustomization)
    output = subprocess.run(["kubectl", "kustomize", mine], capture_output=True, check=True, timeout=60).stdout
    return list(yaml.safe_load_all(output))


def only(objects: list[dict[str, Any]], kind: str, name: str = "raftkv") -> dict[str, Any]:
    (found,) = [each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def test_every_node_says_what_it_is(families):
    assert families["raftkv_has_leader"].samples[0].value == 1
    assert families["raftkv_is_leader"].samples[0].value == 1
    assert families["raftkv_voters"].samples[0].value == 3
    assert {sample.labels["peer"]: sample.value for sample in families["raftkv_peer_connected"].samples}.keys() < {
        "n1",
        "n2",
        "n3",
    }
    lags = {sample.labels["peer"]: sample.value for sample in families["raftkv_follower_lag_entries"].samples}
    assert len(lags) == 2, "one for each other member"
    assert all(0 <= lag <= families["raftkv_last_index"].samples[0].value for lag in lags.values())
    free, reserve = (families[f"raftkv_disk_{name}_bytes"].samples[0].value for name in ("free", "reserve"))
    assert free > reserve > 0
    counted = {sample.labels["operation"]: sample.value for sample in families["raftkv_http_requests"].samples}
    assert counted["put"] == 1
    assert families["raftkv_proposals_applied"].samples[0].value == 1
    assert all(family.documentation for family in families.values())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert", rule.get("record")))
def test_every_rule_asks_for_metrics_that_there_are(rule, families):
    promql_parser.parse(rule["expr"])
    series = {f"{name}{suffix}" for name, family in families.items() for suffix in SUFFIXES.get(family.type, ())}
    asked = set(re.findall(r"(?<!:)\braftkv_[a-z_]+", rule["expr"]))
    assert asked <= series | ONLY_WITH_TLS
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    assert set(re.findall(r"[a-z_]+:[a-z_:]+", rule["expr"])) <= recorded
    assert asked or "up{" in rule["expr"]
    if "record" in rule:
        return
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["summary"]


def test_every_alert_is_explained():
    text = (ROOT.parent / "docs/operations.md").read_text()
    assert [rule["alert"] for rule in ALERTS if f"`{rule['alert']}`" not in text] == []


def test_the_members_are_found_each_once(rendered):
    monitor = only(rendered, "ServiceMonitor")["spec"]
    selector = monitor["selector"]["matchLabels"]
    services = [each for each in rendered if each["kind"] == "Service"]
    found = [each for each in services if selector.items() <= each["metadata"]["labels"].items()]
    assert [each["metadata"]["name"] for each in found] == ["raftkv-peers"]
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] in {port["name"] for port in found[0]["spec"]["ports"]}
    assert found[0]["metadata"]["labels"][monitor["jobLabel"]] == "raftkv", "the alerts ask for this job"
    assert endpoint["path"] == "/metrics"


def test_prometheus_is_let_in(rendered):
    ingress = only(rendered, "NetworkPolicy")["spec"]["ingress"]
    (rule,) = [each for each in ingress if "namespaceSelector" in each["from"][0]]
    # The second one is that of the component for TLS; without it, no port has that name.
    assert rule["ports"] == [{"port": "client"}, {"port": "metrics"}]
