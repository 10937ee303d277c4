"""What ``raftkv backup`` reports to this node of its runs, for the node's metrics.

The last success is kept in a file of the data directory, so that a restart does not look like a missing backup. It is
of use to people only: nothing depends on it, so a file that cannot be read is reported and replaced by the next one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

import orjson
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from raftkv.ports import Directory
from raftkv.types import BackupReport, Revision

logger = logging.getLogger(__name__)

FILE_NAME = "last-backup.json"
_FORMAT = 1


class BackupReports(Collector):
    """``raftkv.service.api.BackupReportService``, and its metrics.

    Args:
        directory: The data directory.
        unix_time: Returns seconds since 1970.
    """

    def __init__(self, directory: Directory, unix_time: Callable[[], float]) -> None:
        self._directory = directory
        self._unix_time = unix_time
        self._writing = asyncio.Lock()
        self._failed = 0
        self._last, self._stored_at = self._load()

    async def record_success(self, report: BackupReport) -> None:
        """Note that a backup was stored; it is durable when this returns, unless the log says that the disk refused."""
        async with self._writing:
            stored_at = self._unix_time()
            document = {
                "format": _FORMAT,
                "stored_at": stored_at,
                "revision": report.revision,
                "bytes": report.size,
                "kept": report.kept,
                "volume_too_small": report.volume_too_small,
            }
            self._last, self._stored_at = report, stored_at
            try:
                await asyncio.to_thread(self._directory.replace, FILE_NAME, orjson.dumps(document))
            except OSError as error:
                logger.warning("the last backup will not be known after a restart: %s", error)

    def record_failure(self) -> None:
        """Note that a run failed."""
        self._failed += 1

    def collect(self) -> Iterator[Metric]:
        """Return what was reported; called on the event loop."""
        yield GaugeMetricFamily(
            "raftkv_backup_last_success_timestamp_seconds",
            "When raftkv backup last reported a stored backup to this node; 0 for never.",
            self._stored_at,
        )
        yield CounterMetricFamily(
            "raftkv_backup_failures", "Runs of raftkv backup that were reported to this node as failed.", self._failed
        )
        yield GaugeMetricFamily(
            "raftkv_backup_volume_too_small",
            "Whether the volume of the backups has no room for as many as are to be kept.",
            float(self._last is not None and self._last.volume_too_small),
        )
        if self._last is not None:
            yield GaugeMetricFamily("raftkv_backup_last_bytes", "Bytes of that backup as stored.", self._last.size)
            yield GaugeMetricFamily("raftkv_backup_last_revision", "Its revision.", self._last.revision)
            yield GaugeMetricFamily("raftkv_backups_kept", "Backups that were kept then.", self._last.kept)

    def _load(self) -> tuple[BackupReport | None, float]:
        if FILE_NAME not in self._directory.names():
            return None, 0.0
        try:
            document = orjson.loads(self._directory.read(FILE_NAME))
            if document["format"] != _FORMAT:
                raise ValueError(f"format {document['format']!r}")  # noqa: TRY301 - logged with the others
            revision, size, kept = (int(document[name]) for name in ("revision", "bytes", "kept"))
            report = BackupReport(Revision(revision), size, kept, bool(document["volume_too_small"]))
            return report, float(document["stored_at"])
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            logger.warning("%s/%s cannot be read, so no backup is known: %s", self._directory.path, FILE_NAME, error)
            return None, 0.0
