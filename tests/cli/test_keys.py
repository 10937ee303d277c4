"""``get``, ``ls`` and ``del`` beyond single keys, in this process, against a front-end over a real store."""

from __future__ import annotations


def test_ls_counts(run):
    for key in ("a", "k/1", "k/2"):
        run("put", key, "v")
    assert run("ls", "--count").output == "3\n"
    assert run("ls", "k/", "--count", "--stale").output == "2\n"
    assert run("ls", "--count", "--long").exit_code == 2


def test_get_reads_the_past_and_waits(run):
    first = run("put", "k", "1").output.strip()
    second = run("put", "k", "2").output.strip()
    assert run("get", "k", "--revision", first).output == "1"
    assert run("get", "k", "--after", first).output == "2"
    result = run("get", "k", "--after", second, "--wait", "0.05")
    assert (result.exit_code, result.stderr) == (1, "raftkv: the key 'k' did not change within 0.05 s\n")
    assert run("get", "k", "--revision", "99").exit_code == 1
    for wrong in (("--revision", "1", "--after", "1"), ("--wait", "5")):
        assert run("get", "k", *wrong).exit_code == 2


def test_del_deletes_a_prefix(run):
    for key in ("a", "k/1", "k/2"):
        run("put", key, "v")
    assert run("del", "--prefix", "k/").output == "2\n"
    assert run("ls").output == "a\n"
    assert run("del", "--prefix", "k/").output == "0\n"
    result = run("del", "--prefix", "")
    assert (result.exit_code, "must not be empty" in result.stderr) == (1, True)
    assert run("del", "--prefix", "k/", "--if-revision", "2").exit_code == 2
