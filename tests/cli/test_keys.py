"""``get``, ``ls`` and ``del`` beyond single keys, in this process, against a front-end over a real store."""

from __future__ import annotations

import json
import urllib.request


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


def test_put_stores_a_content_type(run, server):
    assert run("put", "a.json", "{}", "--content-type", "text/plain; charset=utf-8").exit_code == 0
    with urllib.request.urlopen(f"{server.url}/v1/kv/a.json", timeout=5) as answer:
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    watched = json.loads(run("watch", "a.json", "--from-revision", "2", "--changes", "1").output)
    assert watched["events"][0]["content_type"] == "text/plain; charset=utf-8"
    assert run("put", "a.json", "{}").exit_code == 0
    watched = json.loads(run("watch", "a.json", "--from-revision", "3", "--changes", "1").output)
    assert "content_type" not in watched["events"][0]
    result = run("put", "a.json", "{}", "--content-type", "text")
    assert (result.exit_code, "must be a media type such as application/json" in result.stderr) == (2, True)
