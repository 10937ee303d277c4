"""``raftkv recover``: from a copy, in one step at the end, and killed at each of its steps before."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from raftkv.cli.main import raftkv
from raftkv.cli.recover import recover as command
from raftkv.consensus.engine import REGULAR_COMMAND
from raftkv.consensus.journal import Journal
from raftkv.operations import KeySpan, RangeQuery
from raftkv.runtime.backup_files import verify_backup
from raftkv.runtime.clock import RealRandomness
from raftkv.runtime.files import RealDirectory, boot_id
from raftkv.runtime.identity import read_identity
from raftkv.runtime.recovery import Storage, recover_storage
from raftkv.settings import parse_initial_cluster
from raftkv.store.commands import Put, encode_commands
from raftkv.store.machine import CommittedEntry, open_machine
from raftkv.types import Index, NodeId, Term
from tests.process.cluster import free_ports

COMMITTED, WRITTEN = 12, 20


def opened(data_dir: Path, initial: str = "") -> Storage:
    return recover_storage(
        RealDirectory(data_dir),
        NodeId("n1"),
        parse_initial_cluster(initial) if initial else (),
        RealRandomness(),
        lambda cluster_id: open_machine(data_dir / "store", cluster_id, boot_id(), 4_194_304),
    )


def add(journal: Journal, index: int) -> bytes:
    payload = encode_commands([Put(b"k%d" % index, b"v")])
    journal.add(REGULAR_COMMAND + payload, index, 1)
    return payload


@pytest.fixture
def ports() -> list[int]:
    return free_ports(3)


@pytest.fixture
def survivor(tmp_path, ports) -> Path:
    """Make the directory of a member of three that has entries which it does not know to be committed."""
    data_dir = tmp_path / "data"
    storage = opened(data_dir, ",".join(f"n{number}=127.0.0.1:{port}" for number, port in enumerate(ports, start=1)))
    storage.journal.setCurrentTerm(1, None)
    for index in range(2, WRITTEN + 2):
        payload = add(storage.journal, index)
        if index <= COMMITTED + 1:
            storage.machine.apply([CommittedEntry(Index(index), Term(1), payload)])
    batch = storage.journal.take_batch()
    assert batch is not None
    storage.segments.write([batch])
    storage.segments.close()
    storage.machine.close()
    return data_dir


def content(data_dir: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(data_dir)): path.read_bytes()
        for path in data_dir.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def recover(data_dir: Path, *more: str):
    return CliRunner().invoke(command, ["--force-new-cluster", "--yes", f"--data-dir={data_dir}", *more])


def keys_of(data_dir: Path) -> int:
    storage = opened(data_dir)
    try:
        return len(storage.machine.range(RangeQuery(KeySpan(b"", None))).items)
    finally:
        storage.machine.close()


def asides(data_dir: Path) -> list[Path]:
    return sorted(data_dir.parent.glob(f"{data_dir.name}-*.old"))


def test_recovery_keeps_everything_and_leaves_the_old_directory_as_it_was(survivor):
    before = content(survivor)
    old = read_identity(RealDirectory(survivor))
    result = recover(survivor)
    assert result.exit_code == 0, result.output
    (aside,) = asides(survivor)
    assert content(aside) == before
    assert str(aside) in result.output
    assert keys_of(survivor) == WRITTEN
    new = read_identity(RealDirectory(survivor))
    assert (new.restored_from, new.cluster_id != old.cluster_id) == (old.cluster_id, True)
    names = {path.name.removeprefix("data-").rpartition(".")[2] for path in survivor.parent.iterdir()}
    assert names == {"data", "old", "snapshot"}


def test_recovery_that_fails_midway_changes_nothing(survivor, monkeypatch):
    before = content(survivor)

    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("raftkv.runtime.disaster.exchange", fail)
    result = recover(survivor)
    assert (result.exit_code, "No space left" in result.output) == (1, True)
    assert content(survivor) == before
    monkeypatch.undo()
    assert recover(survivor).exit_code == 0
    assert content(asides(survivor)[0]) == before


def listening(port: int) -> socket.socket:
    listener = socket.create_server(("127.0.0.1", port))
    listener.listen()
    return listener


def test_one_live_peer_and_this_member_of_three_are_a_majority(survivor, ports):
    before = content(survivor)
    with listening(ports[1]):
        result = recover(survivor)
    assert (result.exit_code, "with this member they are a majority of the 3 members" in result.output) == (1, True)
    assert content(survivor) == before
    assert recover(survivor).exit_code == 0


def killed_at(step: int, data_dir: Path) -> bool:
    """Recover in a process that is killed at its n-th touch of a file; return whether it came that far."""
    child = os.fork()
    if child == 0:
        touched = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal touched
            if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "ctypes.dlsym"):
                touched += event == "ctypes.dlsym" or str(data_dir.parent) in os.fsdecode(str(arguments[0]))
                if touched == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            exit_code = recover(data_dir).exit_code
        except BaseException:  # noqa: BLE001 - whatever it is, this process must not go on with pytest
            os._exit(99)
        os._exit(exit_code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return os.WIFSIGNALED(status)


def test_a_kill_at_any_step_leaves_the_old_directory_or_the_complete_new_one(survivor, tmp_path):
    before = content(survivor)
    step = swapped = 0
    killed = True
    while killed:
        step += 1
        place = tmp_path / f"step{step}"
        place.mkdir()
        data_dir = place / "data"
        shutil.copytree(survivor, data_dir)
        killed = killed_at(step, data_dir)
        is_new = content(data_dir) != before
        swapped += is_new
        result = recover(data_dir) if not is_new or not asides(data_dir) else None
        assert result is None or result.exit_code == 0, (step, result.output)
        (aside,) = asides(data_dir)
        assert content(aside) == before, step
        assert keys_of(data_dir) == WRITTEN, step
        assert not [path for path in place.iterdir() if path.suffix in (".recovered", ".recovering")] or is_new, step
        shutil.rmtree(place)
    assert step > 40, "so many files are touched"
    assert swapped >= 2, "some kills come after the directories were exchanged"


def test_an_extracted_backup_is_compressed_when_its_name_says_so(survivor, tmp_path):
    plain, compressed = tmp_path / "extracted", tmp_path / "extracted.zst"
    for file in (plain, compressed):
        result = CliRunner().invoke(raftkv, ["snapshot", "extract", str(survivor), str(file)])
        assert result.exit_code == 0, result.output
        assert (file.stat().st_mode & 0o777) == 0o600
    assert verify_backup(plain).revision == verify_backup(compressed).revision
    assert compressed.stat().st_size < plain.stat().st_size / 2
