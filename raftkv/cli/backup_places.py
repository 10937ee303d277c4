"""Where scheduled backups are kept: a directory, or a bucket of a service that speaks Amazon's S3 protocol."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from raftkv.errors import ConfigurationError
from raftkv.runtime.files import sync_directory

_NAME = re.compile(r"raftkv-\d{8}T\d{6}Z-r\d+\.snapshot")
_PIECE_BYTES = 1_048_576
_PAGE_KEYS = 1000


class BackupPlace(Protocol):
    """Where backups are kept. Its methods block."""

    def put(self, file: Path, name: str) -> str:
        """Move a backup that is whole into its place under a name; return where it is.

        Raises:
            OSError: It could not be moved; the place is as it was.
        """
        ...

    def newest_first(self) -> list[str]:
        """Return the names of the backups; whatever else is there is none of ours."""
        ...

    def remove(self, name: str) -> str:
        """Remove a backup; return where it was."""
        ...


class BackupDirectory:
    """A directory.

    Args:
        directory: It is made when missing.

    Attributes:
        directory: The directory.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def put(self, file: Path, name: str) -> str:
        """Move a backup into the directory; it is durable when this returns."""
        target = self.directory / name
        file.replace(target)
        sync_directory(self.directory)
        return str(target)

    def newest_first(self) -> list[str]:
        """Return the names of the backups in it."""
        return _ours(file.name for file in self.directory.iterdir())

    def remove(self, name: str) -> str:
        """Remove a backup."""
        (self.directory / name).unlink()
        return str(self.directory / name)


class BackupBucket:
    """A bucket, or what has a prefix in it. Credentials and endpoint are found as the AWS SDK finds them.

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
            raise ConfigurationError("backups to a bucket need the extra: pip install 'raftkv[s3]'") from None
        self._bucket = parts.netloc
        self._prefix = f"{parts.path.strip('/')}/" if parts.path.strip("/") else ""
        self._errors = (BotoCoreError, ClientError)
        try:
            self._client = boto3.client("s3")
        except (BotoCoreError, ValueError) as error:
            raise ConfigurationError(f"{url}: {error}") from error

    def put(self, file: Path, name: str) -> str:
        """Upload a backup with its SHA-256, which the service checks, and remove the file."""
        digest = base64.b64encode(_sha256(file)).decode()
        with file.open("rb") as body:
            self._ask("put_object", Key=self._prefix + name, Body=body, ChecksumSHA256=digest)
        file.unlink()
        return self._url(name)

    def newest_first(self) -> list[str]:
        """Return the names of the backups below the prefix."""
        names: list[str] = []
        token: dict[str, str] = {}
        while True:
            page = self._ask("list_objects_v2", Prefix=f"{self._prefix}raftkv-", MaxKeys=_PAGE_KEYS, **token)
            names += [item["Key"].removeprefix(self._prefix) for item in page.get("Contents", [])]
            if not page["IsTruncated"]:
                return _ours(names)
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def remove(self, name: str) -> str:
        """Remove a backup."""
        self._ask("delete_object", Key=self._prefix + name)
        return self._url(name)

    def _ask(self, operation: str, **parameters: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(self._client, operation)(Bucket=self._bucket, **parameters)
        except self._errors as error:
            raise OSError(f"s3://{self._bucket}: {error}") from error
        return answer

    def _url(self, name: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{name}"


def backup_place(text: str) -> BackupPlace:
    """Return the place that a directory's path or an ``s3://`` URL names.

    Raises:
        ConfigurationError: It cannot be used.
        OSError: The directory could not be made.
    """
    return BackupBucket(text) if text.startswith("s3:") else BackupDirectory(Path(text))


def _ours(names: Any) -> list[str]:
    return sorted((name for name in names if _NAME.fullmatch(name)), reverse=True)


def _sha256(file: Path) -> bytes:
    digest = hashlib.sha256()
    with file.open("rb") as data:
        while piece := data.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.digest()
