"""Scheduled backups, against a front-end over a real store."""

from __future__ import annotations

import sys
import urllib.request
import warnings

import pytest
from click.testing import CliRunner

from raftkv.cli import backup_places
from raftkv.cli.backup_places import BackupBucket, BackupDirectory
from raftkv.cli.backups import Duration
from raftkv.cli.main import raftkv
from raftkv.errors import BackupFailed, NoLeader
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
    newest, *older = (directory / name for name in BackupDirectory(directory).newest_first())
    assert verify_backup(newest).revision == 2
    assert newest.name.endswith("-r2.snapshot")
    assert [file.name[7:15] for file in older] == ["20200105", "20200104"]
    assert sorted(file.name for file in directory.iterdir() if file not in (newest, *older)) == ["notes.txt"]


def test_a_backup_that_fails_removes_nothing(run, server, tmp_path):
    (tmp_path / "raftkv-20200101T000000Z-r1.snapshot").write_bytes(b"old")

    def fail(_path: str, _pace: object) -> None:
        raise OSError(28, "No space left on device")

    server.log.machine.copy_to = fail
    result = run("backup", "--once", "--keep", "1", "--to", str(tmp_path), "--timeout", "1")
    assert (result.exit_code, "No space left" in result.stderr) == (1, True)
    assert [file.name for file in tmp_path.iterdir()] == ["raftkv-20200101T000000Z-r1.snapshot"]


def test_each_node_takes_a_snapshot_of_itself(run, server):
    run("put", "a", "1")
    result = run("snapshot", "take", "--endpoints", f"{server.url},{server.url}")
    assert result.exit_code == 0, result.output
    line = f"n1\tindex {server.log.machine.applied_index}\trevision 2\t7 bytes\n"
    assert result.output == 2 * line
    server.log.refusal = BackupFailed("no room")
    assert run("snapshot", "take", "--timeout", "0.2").exit_code == 1


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
    assert len(BackupDirectory(tmp_path).newest_first()) in (1, 2), "two, unless both fell into one second"
    # No time passes in this test, so each is due an hour after the one before.
    assert [round(seconds / 3600) for seconds in pauses] == [1, 2, 3]


@pytest.fixture
def bucket(monkeypatch):
    """A bucket of a server of the S3 protocol on loopback."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    # Those of the machine's owner must not be read.
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import boto3  # noqa: PLC0415 - it warns when it is loaded
        from moto.server import ThreadedMotoServer  # noqa: PLC0415 - likewise

        running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        running.start()
        host, port = running.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        client = boto3.client("s3")
        client.create_bucket(Bucket="backups")
        yield client
        client.close()
        # The server's state is the process's.
        with urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")):
            running.stop()


def contents(client) -> dict[str, bytes]:
    names = [item["Key"] for item in client.list_objects_v2(Bucket="backups").get("Contents", [])]
    return {name: client.get_object(Bucket="backups", Key=name)["Body"].read() for name in names}


def test_backups_go_to_a_bucket_and_the_newest_are_kept(run, bucket, tmp_path):
    for day in range(1, 6):
        bucket.put_object(Bucket="backups", Key=f"shop/raftkv-2020010{day}T000000Z-r{day}.snapshot", Body=b"old")
    bucket.put_object(Bucket="backups", Key="shop/notes.txt", Body=b"mine")
    bucket.put_object(Bucket="backups", Key="raftkv-20200101T000000Z-r1.snapshot", Body=b"of another prefix")
    run("put", "a", "1")
    result = run("backup", "--once", "--keep", "3", "--to", "s3://backups/shop")
    assert result.exit_code == 0, result.output
    there = contents(bucket)
    newest = max(name for name in there if name.startswith("shop/raftkv"))
    (tmp_path / "file").write_bytes(there.pop(newest))
    assert verify_backup(tmp_path / "file").revision == 2
    assert sorted(there) == [
        "raftkv-20200101T000000Z-r1.snapshot",
        "shop/notes.txt",
        "shop/raftkv-20200104T000000Z-r4.snapshot",
        "shop/raftkv-20200105T000000Z-r5.snapshot",
    ]


def test_a_bucket_of_more_backups_than_a_page_is_read_whole(bucket, monkeypatch):
    monkeypatch.setattr(backup_places, "_PAGE_KEYS", 3)
    for number in range(10):
        bucket.put_object(Bucket="backups", Key=f"raftkv-20200101T000000Z-r{number}.snapshot", Body=b"")
    assert len(BackupBucket("s3://backups").newest_first()) == 10


def test_a_bucket_that_is_not_there_is_told_and_nothing_is_lost(run, bucket):
    result = run("backup", "--once", "--to", "s3://elsewhere")
    assert (result.exit_code, "s3://elsewhere: " in result.stderr, "NoSuchBucket" in result.stderr) == (1, True, True)
    assert contents(bucket) == {}


@pytest.mark.parametrize("url", ["s3://", "s3:bucket", "s3://bucket/x?y=1"])
def test_what_is_no_bucket_is_refused(run, url):
    result = run("backup", "--once", "--to", url)
    assert (result.exit_code, "is not s3://BUCKET/PREFIX" in result.stderr) == (2, True)


def test_a_bucket_needs_the_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    result = run("backup", "--once", "--to", "s3://bucket")
    assert (result.exit_code, "raftkv[s3]" in result.stderr) == (2, True)
