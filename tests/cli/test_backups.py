"""Scheduled backups, against a front-end over a real store."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from raftkv.cli.backups import Duration, newest_first
from raftkv.cli.main import raftkv
from raftkv.errors import NoLeader
from raftkv.runtime.backup_files import verify_backup
from tests.http.http_store import InstantLog
from tests.http.http_thread import ServerThread


@pytest.fixture
def server():
    running = ServerThread(log=InstantLog())
    yield running
    running.stop()


@pytest.fixture
def run(server):
    def invoke(*arguments: str):
        return CliRunner(env={"RAFTKV_ENDPOINTS": server.url}).invoke(raftkv, list(arguments))

    return invoke


def test_the_newest_backups_are_kept_and_nothing_else_is_touched(run, tmp_path):
    directory = tmp_path / "backups"
    directory.mkdir()
    for day in range(1, 6):
        (directory / f"raftkv-2020010{day}T000000Z-r{day}.snapshot").write_bytes(b"old")
    (directory / "notes.txt").write_text("mine")
    run("put", "a", "1")
    result = run("backup", "--once", "--keep", "3", "--to", str(directory))
    assert result.exit_code == 0, result.output
    newest, *older = newest_first(directory)
    assert verify_backup(newest).revision == 2
    assert newest.name.endswith("-r2.snapshot")
    assert [file.name[7:15] for file in older] == ["20200105", "20200104"]
    assert sorted(file.name for file in directory.iterdir() if file not in (newest, *older)) == ["notes.txt"]


def test_a_backup_that_fails_removes_nothing(run, server, tmp_path):
    (tmp_path / "raftkv-20200101T000000Z-r1.snapshot").write_bytes(b"old")

    def fail(_path: str) -> None:
        raise OSError(28, "No space left on device")

    server.log.machine.copy_to = fail
    result = run("backup", "--once", "--keep", "1", "--to", str(tmp_path), "--timeout", "1")
    assert (result.exit_code, "No space left" in result.stderr) == (1, True)
    assert [file.name for file in tmp_path.iterdir()] == ["raftkv-20200101T000000Z-r1.snapshot"]


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("6h", 21_600), ("1d", 86_400)])
def test_durations(text, seconds):
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "5", "0m", "-1s", "1w", "1.5h", "m"])
def test_what_is_no_duration_is_refused(run, tmp_path, text):
    result = run("backup", "--to", str(tmp_path), "--every", text)
    assert (result.exit_code, "is no duration" in result.stderr) == (2, True)


def test_backups_are_taken_in_step(run, server, tmp_path, monkeypatch):
    """The second is due a period after the first, and a failure between them does not end it."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 1:
            server.log.backups._wait_for_read = refuse
        elif len(pauses) == 2:
            server.log.backups._wait_for_read = server.log.wait
        else:
            raise KeyboardInterrupt

    async def refuse() -> None:
        raise NoLeader("none")

    monkeypatch.setattr("raftkv.cli.backups._pause", pause)
    result = run("backup", "--to", str(tmp_path), "--every", "1h", "--timeout", "0.5")
    assert "the backup failed: no endpoint served" in result.stderr
    assert len(newest_first(tmp_path)) in (1, 2), "two, unless both fell into one second"
    # No time passes in this test, so each is due an hour after the one before.
    assert [round(seconds / 3600) for seconds in pauses] == [1, 2, 3]
