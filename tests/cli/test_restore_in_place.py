"""``raftkv snapshot restore --set-aside``: the old data stays, and the variables of a pod are enough."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from raftkv.cli.snapshots import snapshot
from raftkv.operations import KeySpan, RangeQuery
from raftkv.runtime.clock import RealRandomness
from raftkv.runtime.files import DataDirectoryLock, RealDirectory, boot_id
from raftkv.runtime.identity import read_identity
from raftkv.runtime.recovery import recover_storage
from raftkv.store.machine import open_machine
from tests.cli.test_recover import WRITTEN, asides, content, ports, recover, survivor

__all__ = ["ports", "survivor"]

POD = {
    "RAFTKV_NAME": "raftkv-1",
    "RAFTKV_DISCOVER_SERVICE": "raftkv-peers.shop.svc",
    "RAFTKV_DISCOVER_REPLICAS": "3",
}


@pytest.fixture
def backup(survivor, tmp_path) -> Path:
    file = tmp_path / "a.snapshot"
    result = CliRunner().invoke(snapshot, ["extract", str(survivor), str(file)])
    assert result.exit_code == 0, result.output
    return file


def restore(backup: Path, data_dir: Path, *more: str, env: dict[str, str] | None = None):
    arguments = ["restore", str(backup), f"--data-dir={data_dir}", "--set-aside", *more]
    return CliRunner().invoke(snapshot, arguments, env=POD if env is None else env)


def keys_of(data_dir: Path) -> int:
    identity = read_identity(RealDirectory(data_dir))
    storage = recover_storage(
        RealDirectory(data_dir),
        identity.name,
        identity.members,
        RealRandomness(),
        lambda cluster_id: open_machine(data_dir / "store", cluster_id, boot_id(), 4_194_304),
    )
    try:
        return len(storage.machine.range(RangeQuery(KeySpan(b"", None))).items)
    finally:
        storage.segments.close()
        storage.machine.close()


def listing(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_old_data_is_kept_and_a_second_run_changes_nothing(survivor, backup):
    before = content(survivor)
    result = restore(backup, survivor)
    assert result.exit_code == 0, result.output
    (aside,) = asides(survivor)
    assert f"{aside} is the old directory" in result.output
    assert content(aside) == before
    identity = read_identity(RealDirectory(survivor))
    assert (identity.name, [member.name for member in identity.members]) == (
        "raftkv-1",
        ["raftkv-0", "raftkv-1", "raftkv-2"],
    )
    assert identity.members[0].peer_address == "raftkv-0.raftkv-peers.shop.svc:2380"
    restored = content(survivor)
    again = restore(backup, survivor)
    assert again.exit_code == 0
    assert again.output.splitlines() == result.output.splitlines()[1:]
    assert (content(survivor), asides(survivor)) == (restored, [aside])
    assert keys_of(survivor) == WRITTEN


def test_damaged_data_is_set_aside_too(survivor, backup):
    (survivor / "identity.json").write_text("{")
    before = content(survivor)
    assert restore(backup, survivor).exit_code == 0
    assert content(asides(survivor)[0]) == before


def test_empty_and_missing_directories_are_restored_into(tmp_path, backup):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        result = restore(backup, tmp_path / name)
        assert result.exit_code == 0, result.output
        assert keys_of(tmp_path / name) == WRITTEN
        assert asides(tmp_path / name) == []


def test_directory_of_a_running_node_is_refused(survivor, backup):
    before = content(survivor)
    with DataDirectoryLock(survivor):
        result = restore(backup, survivor)
    assert (result.exit_code, "another process uses" in result.output) == (2, True)
    assert content(survivor) == before


def test_directory_that_is_not_raftkvs_is_refused(tmp_path, backup):
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter").write_text("dear")
    result = restore(backup, home)
    assert (result.exit_code, "not raftkv's" in result.output) == (2, True)
    assert listing(home) == {"letter"}


@pytest.mark.parametrize("step", ["exchange", "_set_aside"])
def test_run_that_was_interrupted_is_completed(survivor, backup, monkeypatch, step):
    before = content(survivor)

    def fail(*_arguments: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(f"raftkv.runtime.set_aside.{step}", fail)
    result = restore(backup, survivor)
    assert (result.exit_code, "Input/output" in result.output) == (1, True)
    assert before in [content(path) for path in survivor.parent.iterdir() if path.is_dir()]
    monkeypatch.undo()
    assert restore(backup, survivor).exit_code == 0
    (aside,) = asides(survivor)
    assert content(aside) == before
    assert keys_of(survivor) == WRITTEN
    assert listing(survivor.parent) == {survivor.name, aside.name, backup.name}


def test_unknown_directory_in_the_way_is_not_removed(survivor, backup):
    unknown = survivor.with_name(f"{survivor.name}.restored")
    unknown.mkdir()
    (unknown / "identity.json").write_text("?")
    result = restore(backup, survivor)
    assert (result.exit_code, "is in the way" in result.output) == (2, True)
    assert listing(unknown) == {"identity.json"}


def test_damaged_backup_changes_nothing(survivor, backup):
    before = content(survivor)
    backup.write_bytes(backup.read_bytes()[:-1])
    assert restore(backup, survivor).exit_code == 1
    assert content(survivor) == before


def test_flags_win_over_variables(tmp_path, backup):
    result = restore(backup, tmp_path / "new", "--name=n2", "--initial-cluster=n2=127.0.0.1:1")
    assert result.exit_code == 0, result.output
    assert read_identity(RealDirectory(tmp_path / "new")).name == "n2"


def test_members_must_be_named(tmp_path, backup):
    empty = dict.fromkeys(POD, "")
    result = restore(backup, tmp_path / "new", env=empty)
    assert (result.exit_code, "--initial-cluster" in result.output) == (2, True)
    result = restore(backup, tmp_path / "new", env={**POD, "RAFTKV_NAME": "raftkv-4"})
    assert (result.exit_code, "raftkv-4 is none of the pods" in result.output) == (2, True)


def test_recovery_in_a_pod_makes_a_cluster_of_the_sets_members(survivor, monkeypatch):
    for name, value in {**POD, "RAFTKV_NAME": "raftkv-0"}.items():
        monkeypatch.setenv(name, value)
    result = recover(survivor)
    assert (result.exit_code, "not in the initial cluster" in result.output) == (2, True), result.output
    monkeypatch.setenv("RAFTKV_DISCOVER_SERVICE", "")
    monkeypatch.setenv("RAFTKV_INITIAL_CLUSTER", "n1=127.0.0.1:1,n2=127.0.0.1:2")
    assert recover(survivor).exit_code == 0
    assert [member.name for member in read_identity(RealDirectory(survivor)).members] == ["n1", "n2"]
