"""Reports of backups: kept over restarts, and never in a node's way."""

from __future__ import annotations

import pytest

from raftkv.runtime.backup_reports import FILE_NAME, BackupReports
from raftkv.types import BackupReport, Revision
from tests.simulation.disk import VirtualDisk

REPORT = BackupReport(Revision(17), 1000, 3, volume_too_small=True)


def values(reports: BackupReports) -> dict[str, float]:
    return {sample.name: sample.value for family in reports.collect() for sample in family.samples}


async def test_the_last_success_is_known_after_a_restart():
    directory = VirtualDisk().root
    reports = BackupReports(directory, lambda: 1234.5)
    reports.record_failure()
    await reports.record_success(REPORT)
    restarted = values(BackupReports(directory, lambda: 2000.0))
    assert restarted == values(reports) | {"raftkv_backup_failures_total": 0}
    assert restarted["raftkv_backup_last_success_timestamp_seconds"] == 1234.5
    assert restarted["raftkv_backups_kept"] == 3
    assert restarted["raftkv_backup_volume_too_small"] == 1


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"format": 2}', b'{"format": 1, "stored_at": "x"}'])
async def test_a_file_that_cannot_be_read_is_reported_and_replaced(content, caplog):
    directory = VirtualDisk().root
    directory.replace(FILE_NAME, content)
    reports = BackupReports(directory, lambda: 1234.5)
    assert "cannot be read, so no backup is known" in caplog.text
    assert values(reports)["raftkv_backup_last_success_timestamp_seconds"] == 0
    await reports.record_success(REPORT)
    assert values(BackupReports(directory, lambda: 0.0))["raftkv_backup_last_success_timestamp_seconds"] == 1234.5


async def test_a_disk_that_refuses_is_reported(monkeypatch, caplog):
    directory = VirtualDisk().root

    def full(_name: str, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(directory, "replace", full)
    reports = BackupReports(directory, lambda: 1234.5)
    await reports.record_success(REPORT)
    assert values(reports)["raftkv_backup_last_success_timestamp_seconds"] == 1234.5
    assert "will not be known after a restart" in caplog.text
