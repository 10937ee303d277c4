"""The command line, in this process, against a front-end over fakes: outputs and exit codes."""

from __future__ import annotations

import re

import orjson
import pytest

from raftkv import __version__, errors
from raftkv.settings import SETTINGS
from raftkv.types import MAX_VALUE_BYTES, NodeId
from tests.cli.test_imports import make_tree
from tests.http.http_thread import ServerThread


@pytest.fixture
def server():
    """Serve a front-end over fakes."""
    with ServerThread() as running:
        yield running


def test_put_get_del_and_ls(run):
    assert run("put", "a/1", "one").output == "2\n"
    assert run("put", "a/2", stdin=b"\x00two\xff").output == "3\n"
    assert run("put", "b", "-", stdin=b"three").exit_code == 0
    assert run("get", "a/2").stdout_bytes == b"\x00two\xff"
    assert run("get", "--stale", "a/1").stdout_bytes == b"one"
    assert run("ls").output == "a/1\na/2\nb\n"
    assert run("ls", "a/", "--limit", "1").output == "a/1\n"
    assert run("ls", "--null", "a/").output == "a/1\0a/2\0"
    assert run("ls", "--long", "--stale", "b").output == "4\t4\t1\tb\n"
    assert run("del", "a/1").exit_code == 0
    missing = run("del", "a/1")
    assert (missing.exit_code, missing.stderr) == (1, "raftkv: the key 'a/1' does not exist\n")
    assert run("get", "a/1").exit_code == 1


def test_conditions(run):
    assert run("put", "--if-absent", "a", "1").output == "2\n"
    refused = run("put", "--if-absent", "a", "2")
    assert refused.exit_code == 1
    assert "was last written at revision 2" in refused.stderr
    assert run("put", "--if-revision", "2", "a", "2").output == "3\n"
    assert run("del", "--if-revision", "2", "a").exit_code == 1
    assert run("del", "--if-revision", "3", "a").exit_code == 0
    both = run("put", "--if-absent", "--if-revision", "2", "a", "2")
    assert (both.exit_code, "exclude each other" in both.stderr) == (2, True)


def test_status(run, server):
    shown = run("status")
    assert shown.exit_code == 0
    assert shown.output.splitlines()[0].startswith("cluster ")
    assert shown.output.splitlines()[1].startswith("NAME\tROLE\tTERM")
    document = orjson.loads(run("status", "--json").output)
    assert document["cluster_version"] == "0.1"
    assert document["members"][0]["status"]["supported_versions"] == {"lowest": "0.1", "highest": "0.1"}
    assert document["members"]


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        (errors.Timeout("late"), 3, "the outcome is unknown"),
        (errors.InvalidRequest("bad"), 1, "bad"),
        (errors.StorageLow("full"), 1, "full"),
        (errors.NoLeader("none"), 1, "no endpoint served the request within 0.3 s"),
        (errors.NotLeader(NodeId("n2"), None), 1, "no endpoint served"),
    ],
)
def test_exit_codes_tell_not_done_from_unknown(run, server, failure, code, words):
    server.kv.failure = failure
    result = run("put", "a", "1", "--timeout", "0.3")
    assert (result.exit_code, result.stdout) == (code, "")
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_outcome_names_its_request(run, server):
    server.kv.failure = errors.Timeout("late")
    result = run("put", "a", "1", "--timeout", "0.3")
    assert result.exit_code == 3
    assert re.search(r"late \(request [0-9a-f]{8,}\)", result.stderr)


@pytest.mark.parametrize("endpoints", ["nonsense", "", "http://a,,", "http://a/b"])
def test_wrong_endpoints_are_wrong_usage(run, endpoints):
    result = run("get", "a", "--endpoints", endpoints)
    assert result.exit_code == 2
    assert "endpoint" in result.stderr


def test_nobody_there_is_not_done(run):
    result = run("get", "a", "--endpoints", "http://127.0.0.1:9", "--timeout", "0.2")
    assert result.exit_code == 1
    assert "127.0.0.1:9" in result.stderr


def test_what_cannot_be_imported_is_found_before_the_first_write(run, tmp_path, server):
    make_tree(tmp_path)
    (tmp_path / "dir" / "large").write_bytes(bytes(MAX_VALUE_BYTES + 1))
    refused = run("import", str(tmp_path))
    assert refused.exit_code == 1
    assert f"{tmp_path}/dir/large has {MAX_VALUE_BYTES + 1} bytes" in refused.stderr
    long_prefix = run("import", str(tmp_path / "dir" / "sub"), "--prefix", "p" * 4095)
    assert "would be a key of" in long_prefix.stderr
    assert run("import", str(tmp_path / "missing")).exit_code == 1
    assert server.kv.keys == {}


@pytest.mark.parametrize(
    "names", [["../x"], ["a//b"], ["/etc/x"], ["a/."], ["a\0b"], ["a", "a/b"], ["x" * 256], ["dir/"]]
)
def test_keys_that_are_no_safe_paths_are_refused_before_the_first_file(run, tmp_path, server, names):
    for name in ["good", *names]:
        quoted = "".join(f"%{byte:02X}" for byte in name.encode())
        assert run("put", f"p/{name}", "x").exit_code == 0, quoted
    result = run("export", "p/", str(tmp_path / "out"))
    assert (result.exit_code, "nothing was done" in result.stderr) == (1, True)
    assert not (tmp_path / "out").exists()


def test_help_names_every_setting_with_its_variable_and_key(run):
    text = " ".join(run("serve", "--help").output.split())
    for setting in SETTINGS:
        assert f"--{setting.flag}" in text
        assert setting.variable in text.replace(" ", "") or setting.variable in text
        assert f"TOML key {setting.key}" in text
    assert "Exit codes:" in run("--help").output
    assert run("--version").output == f"raftkv, version {__version__}\n"


def test_dev_refuses_ports_that_do_not_exist(run, tmp_path):
    result = run("dev", "--port", "65500", "--nodes", "9", "--data-dir", str(tmp_path))
    assert (result.exit_code, "would need port 65582; ports end at 65535" in result.stderr) == (2, True)


def test_serve_refuses_a_wrong_configuration(run, tmp_path):
    (tmp_path / "f.toml").write_text("nonsense = 1")
    result = run("serve", "--config", str(tmp_path / "f.toml"))
    assert (result.exit_code, "unknown key 'nonsense'" in result.stderr) == (2, True)


def test_cluster_version(run, server):
    first, *members = run("cluster", "version").output.splitlines()
    assert first == "cluster version 0.1"
    assert members == ["n1\t0.1.0\tversion 0.1 only", "n2\tno answer"]


def test_cluster_check(run, server):
    result = run("cluster", "check")
    assert result.output.splitlines()[:3] == ["compared at index 9", "n1\tagrees", "n2\tunknown"]
    assert (result.exit_code, "not known to be equal" in result.stderr) == (1, True)


def test_a_variable_that_is_no_setting_is_named(run, monkeypatch):
    monkeypatch.setenv("RAFTKV_ENDPOINT", "http://10.0.0.1:2379")
    result = run("ls")
    assert result.exit_code == 0
    assert result.stderr == (
        "raftkv: the variable RAFTKV_ENDPOINT is ignored: no setting has that name; RAFTKV_ENDPOINTS is one\n"
    )
