"""Scheduled backups, against a front-end over a real store."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import urllib.request
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, ResponseStreamingError
from botocore.response import StreamingBody
from prometheus_client.parser import text_string_to_metric_families

from raftkv.cli import backup_bucket
from raftkv.cli.backup_bucket import BackupBucket
from raftkv.cli.backup_directory import BackupDirectory, DirectoryBackups, FileUpload
from raftkv.cli.backups import Duration
from raftkv.errors import BackupFailed, NoLeader
from raftkv.runtime.backup_files import verify_backup
from raftkv.store.rewriting import DEFAULT_REVISION_BUMP
from raftkv.types import ClusterId
from tests.http.http_store import CLUSTER, REPORTED_AT
from tests.runtime.stored_backup import compressed, plain_backup


@pytest.fixture
def server(server):
    """Let the members name the server as theirs, so that a run reports to it."""
    server.cluster.client_url = server.url
    return server


def backups_in(directory: Path) -> DirectoryBackups:
    return BackupDirectory(directory).of(CLUSTER)


def sequences(directory: Path) -> list[int]:
    return [each.name.sequence for each in backups_in(directory).stored()]


def put_backups(directory: Path, *names: str, size: int = 1000) -> None:
    """Store what looks like a backup under each of some names."""
    of_cluster = directory / CLUSTER
    of_cluster.mkdir(parents=True, exist_ok=True)
    for name in names:
        (of_cluster / f"raftkv-{name}.snapshot.zst").write_bytes(b"x" * size)


def test_backups_are_kept_by_sequence_and_not_by_time(run, tmp_path):
    """The clock was wrong once: backups of the future must not make the one just taken the oldest."""
    directory = tmp_path / "backups"
    put_backups(directory, *(f"0000000{number}-20990{number}01T000000Z-r1" for number in range(1, 6)))
    (directory / CLUSTER / "notes.txt").write_text("mine")
    (directory / "raftkv-20200101T000000Z-r1.snapshot").write_bytes(b"of an earlier release")
    run("put", "a", "1")
    result = run("backup", "--once", "--keep", "3", "--to", str(directory))
    assert result.exit_code == 0, result.output
    assert sequences(directory) == [4, 5, 6]
    newest = backups_in(directory).stored()[-1]
    source = backups_in(directory).source(newest.name)
    assert f"{source}: revision 2, {newest.size} bytes" in result.output
    assert (newest.name.revision, verify_backup(source).revision) == (2, 2)
    assert (Path(str(source)).stat().st_mode & 0o777) == 0o600
    assert (directory / CLUSTER / "notes.txt").exists()
    assert (directory / "raftkv-20200101T000000Z-r1.snapshot").exists()


def test_backups_that_were_open_to_other_users_are_closed_to_them(run, tmp_path, caplog):
    put_backups(tmp_path, "00000001-20200101T000000Z-r1")
    of_cluster = tmp_path / CLUSTER
    of_cluster.chmod(0o755)
    (old,) = of_cluster.iterdir()
    old.chmod(0o644)
    tmp_path.chmod(0o755)
    assert run("backup", "--once", "--keep", "2", "--to", str(tmp_path)).exit_code == 0
    assert {path.stat().st_mode & 0o777 for path in of_cluster.iterdir()} == {0o600}
    assert of_cluster.stat().st_mode & 0o777 == 0o700
    assert f"{of_cluster} could be used by other users: closed" in caplog.text
    assert tmp_path.stat().st_mode & 0o777 == 0o755, "the directory itself may be shared"


def test_a_destination_that_is_made_is_its_owners_alone(run, tmp_path):
    previous = os.umask(0)
    try:
        assert run("backup", "--once", "--to", str(tmp_path / "made")).exit_code == 0
    finally:
        os.umask(previous)
    assert [(path.stat().st_mode & 0o777) for path in (tmp_path / "made", tmp_path / "made" / CLUSTER)] == [0o700] * 2


def test_clusters_that_share_a_directory_keep_their_backups(run, tmp_path):
    other = "fedcba9876543210"
    put_backups(tmp_path, "00000001-20200101T000000Z-r1")
    (tmp_path / CLUSTER).rename(tmp_path / other)
    for _ in range(2):
        assert run("backup", "--once", "--keep", "1", "--to", str(tmp_path)).exit_code == 0
    assert sequences(tmp_path) == [2]
    assert BackupDirectory(tmp_path).clusters() == [CLUSTER, other]
    assert len(BackupDirectory(tmp_path).of(ClusterId(other)).stored()) == 1


def test_a_cluster_that_began_again_replaces_no_backup_of_the_former(run, tmp_path):
    """Its id is the same, since that follows from the members that it begins with."""
    put_backups(tmp_path, "00000001-20200101T000000Z-r1", "00000002-20200101T000000Z-r700")
    result = run("backup", "--once", "--keep", "1", "--to", str(tmp_path))
    assert result.exit_code == 1
    assert f"{tmp_path / CLUSTER} has a backup of revision 700, and the cluster is at revision 1" in result.stderr
    assert sequences(tmp_path) == [1, 2]
    (tmp_path / CLUSTER).rename(tmp_path / "moved")
    assert run("backup", "--once", "--keep", "1", "--to", str(tmp_path)).exit_code == 0


def test_a_killed_run_leaves_nothing_that_the_next_does_not_remove(run, server, tmp_path):
    """The child is killed while it writes; what is left of it has no name of a backup."""
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, server.url, str(tmp_path)]
    child = subprocess.run(command, timeout=30, check=False)
    assert child.returncode == -signal.SIGKILL
    left = sorted(file.name for file in (tmp_path / CLUSTER).iterdir())
    assert left == ["lock", "new.partial"]
    assert run("backup", "--once", "--to", str(tmp_path)).exit_code == 0
    assert sequences(tmp_path) == [1]
    assert len(list((tmp_path / CLUSTER).iterdir())) == 2


KILLED_WHILE_WRITING = """
import os, signal, sys
from raftkv.cli import backup_directory
from raftkv.cli.main import raftkv
def commit(_upload):
    os.kill(os.getpid(), signal.SIGKILL)
backup_directory.FileUpload.commit = commit
raftkv(["backup", "--once", "--endpoints", sys.argv[1], "--to", sys.argv[2]])
"""


def test_two_runs_do_not_write_at_the_same_time(run, tmp_path):
    with backups_in(tmp_path).exclusive():
        result = run("backup", "--once", "--to", str(tmp_path))
    assert (result.exit_code, "another run of raftkv backup" in result.stderr) == (1, True)
    assert run("backup", "--once", "--to", str(tmp_path)).exit_code == 0


class Volume:
    """A volume of some bytes under a directory."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.size = 10**9
        write = FileUpload.write

        def bounded(upload: FileUpload, data: bytes) -> None:
            if len(data) > self.free:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(upload, data)
            upload._file.flush()

        monkeypatch.setattr(FileUpload, "write", bounded)
        monkeypatch.setattr(DirectoryBackups, "free_bytes", lambda _backups: self.free)

    @property
    def free(self) -> int:
        return max(0, self.size - sum(file.stat().st_size for file in self.directory.rglob("*") if file.is_file()))


@pytest.fixture
def volume(tmp_path, monkeypatch) -> Volume:
    directory = tmp_path / "volume"
    directory.mkdir()
    return Volume(directory, monkeypatch)


def take(run, volume: Volume, keep: int = 48):
    return run("backup", "--once", "--keep", str(keep), "--to", str(volume.directory))


def fill(run, volume: Volume, number: int) -> int:
    """Store some backups of incompressible data; return the bytes of one."""
    run("put", "a", random.Random(1).randbytes(20_000).hex())
    for _ in range(number):
        result = take(run, volume)
        assert result.exit_code == 0, result.output
    return backups_in(volume.directory).stored()[-1].size


def test_a_full_volume_gives_up_old_backups_for_new_ones(run, server, volume):
    size = fill(run, volume, 4)
    volume.size = 4 * size + 500
    for newest in (5, 6):
        result = take(run, volume)
        assert result.exit_code == 0, result.output
        assert sequences(volume.directory) == list(range(newest - 3, newest + 1))
        assert f"removed early, because {volume.directory / CLUSTER} is full" in result.output
        assert "has room for 4 backups of this size, and --keep 48 needs room for 49" in result.stderr
        assert metrics_of(server.url)["raftkv_backup_volume_too_small"] == 1
    assert take(run, volume, keep=3).exit_code == 0
    assert metrics_of(server.url)["raftkv_backup_volume_too_small"] == 0


def test_a_backup_that_grew_makes_room_for_itself(run, volume):
    """It compresses less well than the last one, so that the volume is full in the middle of it."""
    run("put", "c", "x" * 400_000)
    size = fill(run, volume, 6)
    run("put", "b", random.Random(2).randbytes(3 * size // 2).hex())
    volume.size = 6 * size + size // 2 + size
    result = take(run, volume)
    assert result.exit_code == 0, result.output
    assert sequences(volume.directory)[-1] == 7
    assert 2 <= len(sequences(volume.directory)) <= 5


def test_the_newest_backup_is_never_given_up(run, volume):
    size = fill(run, volume, 1)
    volume.size = size + size // 2
    for _ in range(2):
        result = take(run, volume, keep=1)
        assert (result.exit_code, "is full after" in result.stderr) == (1, True)
        assert sequences(volume.directory) == [1]
    volume.size = 3 * size
    assert take(run, volume, keep=1).exit_code == 0
    assert sequences(volume.directory) == [2]


def test_a_damaged_backup_does_not_count_as_the_newest(run, volume):
    size = fill(run, volume, 3)
    damaged = Path(str(backups_in(volume.directory).source(backups_in(volume.directory).stored()[-1].name)))
    damaged.write_bytes(bytes([*damaged.read_bytes()[:-100], *bytes(100)]))
    volume.size = 3 * size
    result = take(run, volume)
    assert (result.exit_code, "is no sound backup" in result.output) == (0, True)
    assert sequences(volume.directory) == [2, 3, 4]


def test_backups_are_not_removed_in_vain(run, volume):
    size = fill(run, volume, 3)
    run("put", "b", random.Random(2).randbytes(10 * size).hex())
    volume.size = 3 * size + size // 2
    result = take(run, volume)
    assert (result.exit_code, "is full after" in result.stderr) == (1, True)
    assert sequences(volume.directory) == [1, 2, 3]


def test_a_backup_that_fails_removes_nothing(run, server, tmp_path):
    put_backups(tmp_path, "00000001-20200101T000000Z-r1", "00000002-20200101T000000Z-r1")

    def fail(_path: str, _pace: object) -> None:
        raise OSError(28, "No space left on device")

    server.log.machine.copy_to = fail
    result = run("backup", "--once", "--keep", "1", "--to", str(tmp_path), "--timeout", "1")
    assert (result.exit_code, "No space left" in result.stderr) == (1, True)
    assert sequences(tmp_path) == [1, 2]


def metrics_of(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {sample.name: sample.value for family in families for sample in family.samples if "backup" in sample.name}


def test_members_show_when_the_last_backup_was_stored(run, server, tmp_path):
    assert metrics_of(server.url) == {
        "raftkv_backup_last_success_timestamp_seconds": 0,
        "raftkv_backup_failures_total": 0,
        "raftkv_backup_volume_too_small": 0,
    }
    run("put", "a", "1")
    for _ in range(2):
        assert run("backup", "--once", "--to", str(tmp_path)).stderr == ""
    stored = {
        "raftkv_backup_last_success_timestamp_seconds": REPORTED_AT,
        "raftkv_backup_last_bytes": backups_in(tmp_path).stored()[-1].size,
        "raftkv_backup_last_revision": 2,
        "raftkv_backups_kept": 2,
        "raftkv_backup_volume_too_small": 0,
    }
    assert metrics_of(server.url) == stored | {"raftkv_backup_failures_total": 0}
    with backups_in(tmp_path).exclusive():
        assert run("backup", "--once", "--to", str(tmp_path)).exit_code == 1
    assert metrics_of(server.url) == stored | {"raftkv_backup_failures_total": 1}


def test_a_backup_is_stored_although_no_member_takes_the_report(run, server, tmp_path):
    server.cluster.client_url = f"{server.url}/nowhere"
    result = run("backup", "--once", "--to", str(tmp_path))
    assert (result.exit_code, "does not know of this run" in result.stderr) == (0, True)
    assert sequences(tmp_path) == [1]


def test_a_backup_is_compressed_when_its_name_says_so(run, tmp_path):
    run("put", "a", "x" * 100_000)
    plain, compressed = tmp_path / "backup", tmp_path / "backup.zst"
    (tmp_path / "backup.zst.partial").write_bytes(b"of a run that was killed")
    for file in (plain, compressed):
        assert run("snapshot", "save", str(file)).exit_code == 0
        assert (file.stat().st_mode & 0o777) == 0o600
        assert run("snapshot", "verify", str(file)).exit_code == 0
    assert run("snapshot", "status", str(plain)).output == run("snapshot", "status", str(compressed)).output
    assert compressed.stat().st_size < plain.stat().st_size / 10
    assert sorted(file.name for file in tmp_path.iterdir()) == ["backup", "backup.zst"]


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
    assert sequences(tmp_path) == [1, 2]
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


def put_objects(client, *numbers: int, prefix: str = "shop/") -> None:
    for number in numbers:
        key = f"{prefix}{CLUSTER}/raftkv-{number:08d}-20990101T000000Z-r1.snapshot.zst"
        client.put_object(Bucket="backups", Key=key, Body=b"old")


def test_backups_go_to_a_bucket_and_the_newest_are_kept(run, bucket, tmp_path):
    put_objects(bucket, *range(1, 6))
    others = ["shop/notes.txt", f"{CLUSTER}/raftkv-00000001-20200101T000000Z-r1.snapshot.zst"]
    others.append("shop/fedcba9876543210/raftkv-00000001-20200101T000000Z-r1.snapshot.zst")
    for other in others:
        bucket.put_object(Bucket="backups", Key=other, Body=b"of another purpose, prefix or cluster")
    run("put", "a", "1")
    result = run("backup", "--once", "--keep", "3", "--to", "s3://backups/shop")
    assert result.exit_code == 0, result.output
    there = contents(bucket)
    (newest,) = [name for name in there if "raftkv-00000006-" in name]
    (tmp_path / "file").write_bytes(there.pop(newest))
    assert verify_backup(tmp_path / "file").revision == 2
    kept = [f"shop/{CLUSTER}/raftkv-0000000{number}-20990101T000000Z-r1.snapshot.zst" for number in (4, 5)]
    assert sorted(there) == sorted([*others, *kept])


def test_a_large_backup_is_sent_in_parts(run, bucket, monkeypatch, tmp_path):
    monkeypatch.setattr(backup_bucket, "PART_BYTES", 5_242_880)
    for number in range(15):
        run("put", f"k{number}", random.Random(number).randbytes(500_000).hex())
    result = run("backup", "--once", "--to", "s3://backups")
    assert result.exit_code == 0, result.output
    ((name, content),) = contents(bucket).items()
    assert len(content) > backup_bucket.PART_BYTES
    assert bucket.head_object(Bucket="backups", Key=name)["ETag"].strip('"').endswith("-2"), "two parts"
    (tmp_path / "file").write_bytes(content)
    assert verify_backup(tmp_path / "file").revision == 16


def test_abandoned_parts_are_removed(run, bucket, monkeypatch):
    key = f"{CLUSTER}/raftkv-00000001-20200101T000000Z-r1.snapshot.zst"
    for _ in range(2):
        bucket.create_multipart_upload(Bucket="backups", Key=key)
    with monkeypatch.context() as patched:
        # The server says of each upload that it began in 2010.
        patched.setattr(backup_bucket, "_ABANDONED", timedelta(days=365_000))
        assert run("backup", "--once", "--to", "s3://backups").exit_code == 0
        assert len(bucket.list_multipart_uploads(Bucket="backups")["Uploads"]) == 2, "they may be under way"
    assert run("backup", "--once", "--to", "s3://backups").exit_code == 0
    assert "Uploads" not in bucket.list_multipart_uploads(Bucket="backups")


def test_a_bucket_of_more_backups_than_a_page_is_read_whole(bucket, monkeypatch):
    monkeypatch.setattr(backup_bucket, "_PAGE_KEYS", 3)
    put_objects(bucket, *range(1, 11))
    assert len(BackupBucket("s3://backups/shop").of(CLUSTER).stored()) == 10
    assert BackupBucket("s3://backups/shop/").clusters() == [CLUSTER]


def test_a_bucket_that_is_not_there_is_told_and_nothing_is_lost(run, bucket):
    result = run("backup", "--once", "--to", "s3://elsewhere")
    assert (result.exit_code, "s3://elsewhere: " in result.stderr, "NoSuchBucket" in result.stderr) == (1, True, True)
    assert "Errno" not in result.stderr
    assert contents(bucket) == {}


def test_a_list_of_no_backups_says_so(run, bucket, tmp_path):
    for destination in ("s3://backups/mistyped", str(tmp_path)):
        result = run("snapshot", "list", destination)
        assert (result.exit_code, result.stdout) == (1, "")
        assert f"raftkv: {destination} has no backup" in result.stderr
    missing = run("snapshot", "list", str(tmp_path / "mistyped"))
    assert (missing.exit_code, missing.stderr) == (1, f"raftkv: {tmp_path / 'mistyped'}: No such file or directory\n")


def test_a_backup_that_is_not_in_the_bucket_is_named(run, bucket):
    key = f"shop/{CLUSTER}/raftkv-00000099-20990101T000000Z-r1.snapshot.zst"
    result = run("snapshot", "verify", f"s3://backups/{key}")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"raftkv: s3://backups/{key}: ")


@pytest.mark.parametrize("url", ["s3://", "s3:bucket", "s3://bucket/x?y=1"])
def test_what_is_no_bucket_is_refused(run, url):
    result = run("backup", "--once", "--to", url)
    assert (result.exit_code, "is not s3://BUCKET/PREFIX" in result.stderr) == (2, True)


def test_a_bucket_needs_the_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    result = run("backup", "--once", "--to", "s3://bucket")
    assert (result.exit_code, "raftkv[s3]" in result.stderr) == (2, True)


def restore(run, command: str, backup: str, data_dir: Path):
    return run(*command.split(), backup, "--data-dir", str(data_dir), "--initial-cluster", "n1=127.0.0.1:1")


def restored_revision(run, data_dir: Path, tmp_path: Path) -> int:
    extracted = tmp_path / f"{data_dir.name}.extracted"
    result = run("snapshot", "extract", str(data_dir), str(extracted))
    assert result.exit_code == 0, result.output
    return verify_backup(extracted).revision - DEFAULT_REVISION_BUMP


@pytest.mark.parametrize("destination", ["s3://backups/shop", "directory"])
def test_a_restore_takes_the_latest_or_a_named_backup(run, bucket, tmp_path, destination):
    place = str(tmp_path / destination) if destination == "directory" else destination
    for number in (9, 10):
        content = compressed(plain_backup(tmp_path / f"source{number}", CLUSTER, number))
        name = f"{CLUSTER}/raftkv-{number:08d}-20200101T000000Z-r{number + 1}.snapshot.zst"
        if destination == "directory":
            (tmp_path / destination / CLUSTER).mkdir(parents=True, exist_ok=True)
            (tmp_path / destination / name).write_bytes(content)
        else:
            bucket.put_object(Bucket="backups", Key=f"shop/{name}", Body=content)
    listed = [line.split("\t")[0] for line in run("snapshot", "list", place).output.splitlines()]
    assert [line.rpartition("/")[2][7:15] for line in listed] == ["00000009", "00000010"]
    for name, (text, revision) in {
        "latest": (place, 11),
        "of-cluster": (f"{place}/{CLUSTER}", 11),
        "named": (listed[0], 10),
    }.items():
        result = restore(run, "restore", text, tmp_path / name)
        assert result.exit_code == 0, result.output
        assert (f"{listed[1]} is the latest backup there" in result.output) is (name != "named")
        assert restored_revision(run, tmp_path / name, tmp_path) == revision
        assert run("snapshot", "verify", text).exit_code == 0
        assert f"revision  {revision}" in run("snapshot", "status", text).output
    assert not list(tmp_path.glob("*.restoring"))


def test_a_restore_does_not_choose_between_clusters(run, bucket, tmp_path):
    for cluster in (CLUSTER, "fedcba9876543210"):
        key = f"{cluster}/raftkv-00000001-20200101T000000Z-r1.snapshot.zst"
        bucket.put_object(Bucket="backups", Key=key, Body=b"")
    result = restore(run, "snapshot restore", "s3://backups", tmp_path / "made")
    named = f"name one of s3://backups/{CLUSTER}, s3://backups/fedcba9876543210"
    assert (result.exit_code, named in result.stderr) == (2, True)
    result = restore(run, "snapshot restore", f"s3://backups/{CLUSTER}", tmp_path / "made")
    assert (result.exit_code, "ends before its manifest does" in result.stderr) == (1, True)
    for nothing in ("s3://backups/none", str(tmp_path)):
        result = restore(run, "snapshot restore", nothing, tmp_path / "made")
        assert (result.exit_code, "has no backup that raftkv backup took" in result.stderr) == (2, True)
    missing = restore(run, "snapshot restore", "s3://backups/none.snapshot", tmp_path / "made")
    assert (missing.exit_code, "NoSuchKey" in missing.stderr) == (1, True)
    assert not (tmp_path / "made").exists()


def test_a_download_that_breaks_off_makes_no_member(run, bucket, tmp_path, monkeypatch):
    run("put", "a", random.Random(1).randbytes(300_000).hex())
    assert run("backup", "--once", "--to", "s3://backups").exit_code == 0
    read = StreamingBody.read
    pieces: list[bytes] = []

    def broken(body: StreamingBody, size: int) -> bytes:
        if len(pieces) == 3:
            raise ResponseStreamingError(error="the connection was reset")
        pieces.append(read(body, size))
        return pieces[-1]

    monkeypatch.setattr(StreamingBody, "read", broken)
    result = restore(run, "restore", "s3://backups", tmp_path / "made")
    assert (result.exit_code, "the connection was reset" in result.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_whose_quota_is_used_up_gives_up_old_backups(run, bucket, monkeypatch):
    put_objects(bucket, 1, 2, prefix="")
    assert run("backup", "--once", "--to", "s3://backups").exit_code == 0
    ask = backup_bucket._Bucket.ask

    def bounded(of: backup_bucket._Bucket, operation: str, **parameters: object) -> dict[str, object]:
        if operation == "put_object" and len(contents(bucket)) == 3:
            raise OSError(errno.ENOSPC, "QuotaExceeded")
        return ask(of, operation, **parameters)

    monkeypatch.setattr(backup_bucket._Bucket, "ask", bounded)
    result = run("backup", "--once", "--to", "s3://backups")
    assert (result.exit_code, "removed early, because" in result.output) == (0, True)
    assert [name.partition("/raftkv-")[2][:8] for name in contents(bucket)] == ["00000002", "00000003", "00000004"]


@pytest.mark.parametrize(("code", "status", "is_full"), [("QuotaExceeded", 403, True), ("SlowDown", 503, False)])
def test_what_a_bucket_refuses_for_its_quota_is_a_full_disk(bucket, code, status, is_full):
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    assert backup_bucket._is_full(ClientError(answer, "PutObject")) is is_full


def test_uploads_that_may_not_be_listed_keep_no_backup_away(run, bucket, monkeypatch, caplog):
    ask = backup_bucket._Bucket.ask

    def forbidden(of: backup_bucket._Bucket, operation: str, **parameters: object) -> dict[str, object]:
        if operation == "list_multipart_uploads":
            raise OSError(errno.EIO, "AccessDenied")
        return ask(of, operation, **parameters)

    monkeypatch.setattr(backup_bucket._Bucket, "ask", forbidden)
    assert run("backup", "--once", "--to", "s3://backups").exit_code == 0
    assert "abandoned uploads cannot be looked for: AccessDenied" in caplog.text
