"""Storage class and priority class: the components render to sound objects that the members use."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.test_manifests import ROOT, VERSIONS, kubernetes_validate, only, pod

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def rendered(path: Path) -> list[dict[str, Any]]:
    output = subprocess.run(["kubectl", "kustomize", str(path)], capture_output=True, check=True, timeout=60).stdout
    return list(yaml.safe_load_all(output))


@pytest.mark.parametrize("overlay", ["production-3", "production-5", "maintenance"])
def test_members_have_a_priority_between_other_pods_and_kubernetes_own(overlay):
    objects = rendered(ROOT / "overlays" / overlay)
    priority = only(objects, "PriorityClass")
    assert 0 < priority["value"] < 1_000_000_000
    assert pod(objects)["spec"]["priorityClassName"] == priority["metadata"]["name"]


def test_development_needs_no_rights_to_the_whole_cluster():
    objects = rendered(ROOT / "overlays" / "development")
    assert not {each["kind"] for each in objects} & {"PriorityClass", "StorageClass"}
    assert "priorityClassName" not in pod(objects)["spec"]


def test_storage_class_of_the_readme_keeps_disks_and_binds_them_where_the_pods_are(tmp_path):
    mine = shutil.copytree(ROOT, tmp_path / "k8s") / "overlays/mine"
    mine.mkdir()
    text = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"\n((?:    .*\n)+)", text[text.index("## Storage class") : text.index("| cluster |")])
    kustomization = {"resources": ["../production-3"], **yaml.safe_load(block)}
    (mine / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    objects = rendered(mine)
    for each in objects:
        for version in VERSIONS:
            kubernetes_validate.validate(each, version, strict=True)
    storage = only(objects, "StorageClass")
    assert (storage["provisioner"], storage["parameters"]) == ("ebs.csi.aws.com", {"type": "gp3"})
    assert (storage["reclaimPolicy"], storage["volumeBindingMode"]) == ("Retain", "WaitForFirstConsumer")
    assert storage["allowVolumeExpansion"] is True
    (template,) = only(objects, "StatefulSet")["spec"]["volumeClaimTemplates"]
    assert template["spec"]["storageClassName"] == storage["metadata"]["name"]
    assert "storageClassName" not in only(objects, "PersistentVolumeClaim", "raftkv-backups")["spec"]
