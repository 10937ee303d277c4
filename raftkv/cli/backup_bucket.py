"""Backups in a bucket of a service that speaks Amazon's S3 protocol, those of each cluster below its own prefix."""

from __future__ import annotations

import base64
import errno
import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from io import BufferedReader, RawIOBase
from typing import Any, Literal
from urllib.parse import urlsplit

from raftkv.cli.backup_names import BackupName, StoredBackup, cluster_of
from raftkv.errors import ConfigurationError
from raftkv.runtime.backup_compression import BackupSource
from raftkv.types import ClusterId

logger = logging.getLogger(__name__)

S3_SCHEME = "s3:"
"""What the URLs of buckets begin with."""

PART_BYTES = 16_777_216
"""Larger backups are sent in parts of this size: 10,000 at most, so up to 160 GB."""

_PAGE_KEYS = 1000
_ABANDONED = timedelta(days=1)
"""An upload is abandoned after this time: no run takes so long. Its parts are invisible, and cost money."""

_FULL_CODES = {"QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull"}
_FULL_STATUS = 507


class _Bucket:
    """Requests to one bucket; errors are ``OSError``.

    Args:
        url: ``s3://bucket`` or ``s3://bucket/prefix``.

    Raises:
        ConfigurationError: It is no such URL, the SDK is not installed, or it has no region or credentials.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
            raise ConfigurationError(f"{url!r} is not s3://BUCKET/PREFIX")
        try:
            import boto3  # noqa: PLC0415 - an optional dependency
            from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - likewise
        except ImportError:
            raise ConfigurationError("backups in a bucket need the extra: pip install 'raftkv[s3]'") from None
        self.path = parts.path.strip("/")
        self._name = parts.netloc
        self._errors = (BotoCoreError, ClientError)
        try:
            self._client = boto3.client("s3")
        except (BotoCoreError, ValueError) as error:
            raise ConfigurationError(f"{url}: {error}") from error

    def ask(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """Return what the service answers.

        Raises:
            OSError: It refused, or did not answer; ``ENOSPC`` when a quota is used up.
        """
        try:
            answer: dict[str, Any] = getattr(self._client, operation)(Bucket=self._name, **parameters)
        except self._errors as error:
            message = f"{self.url(parameters.get('Key', '')).removesuffix('/')}: {error}"
            raise OSError(errno.ENOSPC if _is_full(error) else errno.EIO, message) from error
        return answer

    def pages(self, operation: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        """Yield every page of a listing."""
        token: dict[str, str] = {}
        while True:
            page = self.ask(operation, **parameters, **token)
            yield page
            if not page["IsTruncated"]:
                return
            if "NextContinuationToken" in page:
                token = {"ContinuationToken": page["NextContinuationToken"]}
            else:
                token = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def open(self, key: str) -> BufferedReader:
        """Return an object, to be read as it arrives."""
        return BufferedReader(_Arriving(self.ask("get_object", Key=key)["Body"], self.url(key), self._errors))

    def url(self, key: str) -> str:
        """Return how a key is named to people."""
        return f"s3://{self._name}/{key}"


class _Arriving(RawIOBase):
    """The stream of an object's bytes. Errors of the SDK become ``OSError``.

    Args:
        body: The SDK's stream.
        url: What it is, for messages.
        errors: What the SDK raises.
    """

    def __init__(self, body: Any, url: str, errors: tuple[type[Exception], ...]) -> None:
        self._body = body
        self._url = url
        self._errors = errors

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what comes next into a buffer; return its bytes."""
        try:
            data = self._body.read(len(buffer))
        except self._errors as error:
            raise OSError(errno.EIO, f"{self._url}: {error}") from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the connection."""
        self._body.close()
        super().close()


def _is_full(error: Exception) -> bool:
    answer: dict[str, Any] = getattr(error, "response", {})
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return answer.get("Error", {}).get("Code") in _FULL_CODES or status == _FULL_STATUS


class BucketObject:
    """A backup in a bucket (``raftkv.runtime.backup_compression.BackupSource``).

    Args:
        bucket: The bucket.
        key: The backup's key.
    """

    def __init__(self, bucket: _Bucket, key: str) -> None:
        self._bucket = bucket
        self._key = key

    def __str__(self) -> str:
        return self._bucket.url(self._key)

    def open(self, _mode: Literal["rb"], /) -> BufferedReader:
        """Open it for reading from the service."""
        return self._bucket.open(self._key)


class BucketUpload:
    """A backup that is being sent to a bucket, in parts when it is large; the service checks the SHA-256 of each.

    Args:
        bucket: The bucket.
        key: The backup's key.
    """

    def __init__(self, bucket: _Bucket, key: str) -> None:
        self._bucket = bucket
        self._key = key
        self._waiting = bytearray()
        self._upload_id: str | None = None
        self._parts: list[dict[str, Any]] = []

    def write(self, data: bytes) -> None:
        """Send what comes next, once there is enough of it for a part."""
        self._waiting += data
        while len(self._waiting) >= PART_BYTES:
            self._send_part(bytes(self._waiting[:PART_BYTES]))
            del self._waiting[:PART_BYTES]

    def commit(self) -> str:
        """Make it appear in the bucket; return where it is."""
        rest = bytes(self._waiting)
        if self._upload_id is None:
            self._bucket.ask("put_object", Key=self._key, Body=rest, ChecksumSHA256=_sha256(rest))
        else:
            if rest:
                self._send_part(rest)
            parts = {"Parts": self._parts}
            self._bucket.ask(
                "complete_multipart_upload", Key=self._key, UploadId=self._upload_id, MultipartUpload=parts
            )
            self._upload_id = None
        return self._bucket.url(self._key)

    def abort(self) -> None:
        """Remove what was sent, unless it was committed."""
        upload_id, self._upload_id = self._upload_id, None
        if upload_id is not None:
            self._bucket.ask("abort_multipart_upload", Key=self._key, UploadId=upload_id)

    def _send_part(self, data: bytes) -> None:
        if self._upload_id is None:
            begun = self._bucket.ask("create_multipart_upload", Key=self._key, ChecksumAlgorithm="SHA256")
            self._upload_id = begun["UploadId"]
        number, digest = len(self._parts) + 1, _sha256(data)
        sent = self._bucket.ask(
            "upload_part",
            Key=self._key,
            UploadId=self._upload_id,
            PartNumber=number,
            Body=data,
            ChecksumSHA256=digest,
        )
        self._parts.append({"PartNumber": number, "ETag": sent["ETag"], "ChecksumSHA256": digest})


class BucketBackups:
    """``raftkv.cli.backup_destinations.ClusterBackups`` below a prefix of a bucket.

    Args:
        bucket: The bucket.
        prefix: The prefix, with the slash at its end; empty for the whole bucket.
    """

    def __init__(self, bucket: _Bucket, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = prefix

    def __str__(self) -> str:
        return self._bucket.url(self._prefix).removesuffix("/")

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Remove the parts of uploads that were abandoned. Other runs do no harm: their keys are others."""
        try:
            self._remove_abandoned()
        except OSError as error:
            # The credentials may do what a backup needs, and not this.
            logger.warning("raftkv: abandoned uploads cannot be looked for: %s", error.strerror)
        yield

    def _remove_abandoned(self) -> None:
        for page in self._bucket.pages("list_multipart_uploads", Prefix=f"{self._prefix}raftkv-"):
            # Both times are the service's, whatever the clock here says.
            now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
            for upload in page.get("Uploads", []):
                if _is_abandoned(upload["Initiated"], now):
                    self._bucket.ask("abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"])

    def stored(self) -> list[StoredBackup]:
        """Return the backups, the oldest first."""
        found = []
        for page in self._bucket.pages("list_objects_v2", Prefix=f"{self._prefix}raftkv-", MaxKeys=_PAGE_KEYS):
            for item in page.get("Contents", []):
                name = BackupName.parse(item["Key"].removeprefix(self._prefix))
                if name is not None:
                    found.append(StoredBackup(name, item["Size"]))
        return sorted(found)

    def create(self, name: BackupName) -> BucketUpload:
        """Begin to send a backup."""
        return BucketUpload(self._bucket, f"{self._prefix}{name}")

    def remove(self, name: BackupName) -> str:
        """Remove a backup; return where it was."""
        key = f"{self._prefix}{name}"
        self._bucket.ask("delete_object", Key=key)
        return self._bucket.url(key)

    def source(self, name: BackupName) -> BackupSource:
        """Return a backup, to be read."""
        return BucketObject(self._bucket, f"{self._prefix}{name}")

    def free_bytes(self) -> None:
        """Return None: a bucket does not say how much fits into it."""


class BackupBucket:
    """``raftkv.cli.backup_destinations.BackupDestination`` in a bucket.

    Credentials and endpoint are found as the AWS SDK finds them.

    Args:
        url: ``s3://bucket`` or ``s3://bucket/prefix``.

    Raises:
        ConfigurationError: It is no such URL, the SDK is not installed, or it has no region or credentials.
    """

    def __init__(self, url: str) -> None:
        self._bucket = _Bucket(url)
        self._prefix = f"{self._bucket.path}/" if self._bucket.path else ""

    def __str__(self) -> str:
        return self._bucket.url(self._prefix).removesuffix("/")

    @staticmethod
    def object_at(url: str) -> BackupSource:
        """Return the object that a URL names, whatever its name.

        Raises:
            ConfigurationError: As for the bucket.
        """
        bucket = _Bucket(url)
        return BucketObject(bucket, bucket.path)

    def of(self, cluster_id: ClusterId) -> BucketBackups:
        """Return the backups of one cluster."""
        return BucketBackups(self._bucket, f"{self._prefix}{cluster_id}/")

    def here(self) -> BucketBackups:
        """Return the backups directly below the prefix, for one that is of a cluster."""
        return BucketBackups(self._bucket, self._prefix)

    def clusters(self) -> list[ClusterId]:
        """Return the clusters that have objects here."""
        found = set()
        for page in self._bucket.pages("list_objects_v2", Prefix=self._prefix, Delimiter="/", MaxKeys=_PAGE_KEYS):
            for item in page.get("CommonPrefixes", []):
                found.add(cluster_of(item["Prefix"].removeprefix(self._prefix).removesuffix("/")))
        return sorted(cluster for cluster in found if cluster is not None)


def _is_abandoned(initiated: datetime, now: datetime) -> bool:
    return now - initiated > _ABANDONED


def _sha256(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()
