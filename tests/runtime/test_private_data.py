"""Who may read what is made: its owner alone, and in Kubernetes the group that a volume is shared with."""

from __future__ import annotations

import logging
import os
import stat
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from raftkv.cli.backup_directory import DirectoryBackups
from raftkv.cli.backup_names import BackupName
from raftkv.cli.main import raftkv
from raftkv.cli.snapshots import snapshot
from raftkv.runtime.clock import RealRandomness
from raftkv.runtime.files import DataDirectoryLock, RealDirectory, boot_id
from raftkv.runtime.private_data import close_to_others
from raftkv.runtime.recovery import recover_storage
from raftkv.store.machine import open_machine
from raftkv.types import Member, NodeId

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")

POD_USER, POD_GROUP = 10001, 10001
MEMBERS = (Member(NodeId("n1"), "127.0.0.1:1"),)


@pytest.fixture(autouse=True)
def _usual_umask():
    previous = os.umask(0o022)
    yield
    os.umask(previous)


def use(data_dir: Path) -> None:
    """Open a data directory as a node does, and take a copy of its store."""
    directory = RealDirectory(data_dir)
    with DataDirectoryLock(data_dir):
        close_to_others(data_dir)
        storage = recover_storage(
            directory,
            NodeId("n1"),
            MEMBERS,
            RealRandomness(),
            lambda cluster_id: open_machine(data_dir / "store", cluster_id, boot_id(), 4_194_304),
        )
        copy = directory.child("backups").path + "/1.partial"
        Path(copy).unlink(missing_ok=True)
        storage.machine.copy_to(copy)
        storage.machine.install_staged(storage.machine.stage(copy))
        storage.segments.close()
        storage.machine.close()


def open_to(mask: int, *roots: Path) -> list[str]:
    """Return what has rights of a mask, of directories and everything below them."""
    paths = [path for root in roots for path in (root, *root.rglob("*"))]
    return [f"{stat.S_IMODE(path.stat().st_mode):o} {path}" for path in paths if path.stat().st_mode & mask]


def test_everything_that_a_node_makes_is_its_owners_alone(tmp_path):
    use(tmp_path / "data")
    assert open_to(0o077, tmp_path / "data") == []
    assert sum(path.is_file() for path in (tmp_path / "data").rglob("*")) >= 5


def test_a_directory_that_was_open_is_closed_at_the_start_with_a_line_in_the_log(tmp_path, caplog):
    data = tmp_path / "data"
    use(data)
    for path in (data, *data.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    count = 1 + sum(1 for _ in data.rglob("*"))
    link = data / "link"
    link.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text("")
    with caplog.at_level(logging.WARNING):
        use(data)
    assert open_to(0o077, *(path for path in data.iterdir() if path != link)) == []
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert f"{data} could be used by other users: closed {count} files and directories to them" in caplog.text
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o644, "links are not followed"
    caplog.clear()
    use(data)
    assert caplog.text == ""


def as_user(user: int, group: int, work: Callable[[], object]) -> None:
    """Do something in a process of another user."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(group)
            os.setuid(user)
            work()
        except BaseException:  # noqa: BLE001 - of a child
            traceback.print_exc(file=sys.stderr)
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def volume(tmp_path_factory) -> Path:
    """Make the root of a volume as a kubelet does for a pod with an fsGroup."""
    root = tmp_path_factory.mktemp("volumes") / "volume"
    root.mkdir()
    mount(root)
    for parent in [*root.parents][:-2]:
        if parent.stat().st_uid == 0 and "pytest" in str(parent):
            parent.chmod(0o755)
    return root


def mount(root: Path) -> None:
    """Give everything on a volume to the group of the pods, as ``fsGroupChangePolicy: Always`` does at each mount."""
    for path in (root, *root.rglob("*")):
        os.chown(path, -1, POD_GROUP)
        mode = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode | 0o2770 if path.is_dir() else mode | 0o660)


@needs_root
def test_pod_with_a_group_works_on_its_volume_and_others_do_not_read_it(volume):
    data = volume / "raftkv"
    as_user(POD_USER, POD_GROUP, lambda: use(data))
    assert open_to(0o077, data) == []
    # The same pod, after each kind of mount: nothing is changed, or all is given to the group.
    as_user(POD_USER, POD_GROUP, lambda: use(data))
    mount(volume)
    as_user(POD_USER, POD_GROUP, lambda: use(data))
    assert open_to(0o007, data) == []


@needs_root
def test_pod_of_another_user_goes_on_by_the_rights_of_the_group(volume):
    data = volume / "raftkv"
    as_user(POD_USER, POD_GROUP, lambda: use(data))
    mount(volume)
    as_user(POD_USER, POD_GROUP, lambda: use(data))
    mount(volume)
    as_user(POD_USER + 1, POD_GROUP, lambda: use(data))
    assert stat.S_IMODE(data.stat().st_mode) & 0o070 == 0o070, "the group of a shared directory keeps its rights"


@needs_root
def test_what_belongs_to_somebody_else_is_logged_and_no_reason_to_end(volume, caplog):
    data = volume / "raftkv"
    as_user(POD_USER, POD_GROUP, lambda: use(data))
    mount(volume)
    data.chmod(0o2775)
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]

    def check() -> None:
        logging.getLogger("raftkv.runtime.private_data").addHandler(handler)
        close_to_others(data)
        (line,) = logged
        assert f"{data} can be used by users outside its group, and cannot be closed to them by user" in line
        assert f"{data} (Operation not permitted)" in line

    as_user(POD_USER + 1, POD_GROUP, check)


@needs_root
def test_backup_job_works_on_its_volume_before_and_after_it_is_mounted_again(volume):
    backups = DirectoryBackups(volume / "0123456789abcdef")

    def store(sequence: int) -> None:
        with backups.exclusive():
            name = BackupName.parse(f"raftkv-0000000{sequence}-20200101T000000Z-r1.snapshot.zst")
            assert name is not None
            upload = backups.create(name)
            upload.write(b"x")
            upload.commit()
            assert [each.name.sequence for each in backups.stored()] == list(range(1, sequence + 1))

    for sequence in (1, 2, 3):
        as_user(POD_USER, POD_GROUP, lambda sequence=sequence: store(sequence))
        assert open_to(0o007, volume / "0123456789abcdef") == []
        if sequence == 2:
            mount(volume)


def extracted(tmp_path: Path) -> Path:
    use(tmp_path / "data")
    file = tmp_path / "a.snapshot"
    result = CliRunner().invoke(snapshot, ["extract", str(tmp_path / "data"), str(file)])
    assert result.exit_code == 0, result.output
    return file


def test_extracted_backups_and_restored_directories_are_their_owners_alone(tmp_path):
    file = extracted(tmp_path)
    assert open_to(0o077, file) == []
    arguments = [
        "restore",
        str(file),
        f"--data-dir={tmp_path / 'new'}",
        "--name=n1",
        "--initial-cluster=n1=127.0.0.1:1",
    ]
    result = CliRunner().invoke(snapshot, arguments)
    assert result.exit_code == 0, result.output
    assert open_to(0o077, tmp_path / "new") == []


@needs_root
def test_restore_in_a_pod_works_by_the_group_of_its_volume(volume, tmp_path):
    file = extracted(tmp_path)
    copied = volume / "cluster.snapshot"
    copied.write_bytes(file.read_bytes())
    os.chown(copied, POD_USER, POD_GROUP)
    as_user(POD_USER, POD_GROUP, lambda: use(volume / "raftkv"))
    arguments = ["snapshot", "restore", str(copied), f"--data-dir={volume / 'raftkv'}", "--set-aside", "--name=n1"]
    arguments.append("--initial-cluster=n1=127.0.0.1:1")

    def restore() -> None:
        result = CliRunner().invoke(raftkv, arguments)
        assert result.exit_code == 0, result.output

    as_user(POD_USER, POD_GROUP, restore)
    assert open_to(0o077, volume / "raftkv") == []
    as_user(POD_USER, POD_GROUP, lambda: use(volume / "raftkv"))
