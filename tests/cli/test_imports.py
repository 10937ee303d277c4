"""``raftkv import`` of lines, and of a tree, in this process, against a front-end over a real store."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest

from raftkv.cli.item_lines import MAX_LINE_BYTES
from raftkv.errors import Timeout
from tests.http.http_thread import ServerThread


def lines(*documents: object) -> bytes:
    return b"".join(json.dumps(document).encode() + b"\n" for document in documents)


def listed(server: ServerThread, query: str) -> list[dict[str, object]]:
    with urllib.request.urlopen(f"{server.url}/v1/kv?{query}", timeout=5) as answer:
        return json.load(answer)["items"]


def test_what_is_listed_can_be_imported(run, server, tmp_path):
    run("put", "a/text", "é")
    run("put", "a/bytes", "-", stdin=b"\xff")
    items = listed(server, "prefix=a/")
    file = tmp_path / "items.jsonl"
    file.write_bytes(lines(*items))
    result = run("import", str(file), "--prefix", "copy/")
    assert (result.exit_code, result.output) == (0, "2 items imported\n")
    copies = listed(server, "prefix=copy/a/t")
    assert (copies[0]["key"], copies[0]["value"]) == ("copy/a/text", "é")
    assert run("get", "copy/a/bytes").stdout_bytes == b"\xff"


def test_imported_items_have_the_content_types_that_were_listed(run, server):
    run("put", "a/1", "x", "--content-type", "text/html")
    run("put", "a/2", "y")
    result = run("import", "-", "--prefix", "copy/", stdin=lines(*listed(server, "prefix=a/")))
    assert result.exit_code == 0, result.stderr
    assert [item.get("content_type") for item in listed(server, "prefix=copy/")] == ["text/html", None]
    for wrong, fault in ((7, "must be a string"), (None, "must be a string"), ("text", "must be a media type such as")):
        result = run("import", "-", stdin=lines({"key": "k", "value": "", "content_type": wrong}))
        assert (result.exit_code, f"line 1: content_type {fault}" in result.stderr) == (1, True), result.stderr


def test_standard_input_is_imported_in_batches(run, server):
    numbers = range(300)
    result = run("import", "-", stdin=b"\n" + lines(*({"key": f"k/{n:03}", "value": str(n)} for n in numbers)))
    assert (result.exit_code, result.output) == (0, "300 items imported\n")
    assert server.log.machine.revision == 4
    result = run("import", "-", "--skip", "2", "--batch", "1", stdin=lines(*({"key": k, "value": ""} for k in "abc")))
    assert (result.output, run("ls", "--count").output) == ("1 items imported\n", "301\n")


def test_an_import_that_stops_says_how_to_go_on(run):
    good = [{"key": f"k{number}", "value": ""} for number in range(5)]
    content = lines(*good) + b"{}\n"
    result = run("import", "-", "--batch", "2", stdin=content)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "go on with --skip 4",
        "raftkv: line 6: key must be a string (the 4 items before are written)",
    ]
    refused = lines(*good, {"key": "k5", "value": "", "lease": 9})
    result = run("import", "-", "--skip", "4", "--batch", "1", "--concurrency", "1", stdin=refused)
    outcome, way_on, error = result.stderr.splitlines()
    assert (result.exit_code, outcome[:27], way_on) == (1, "items 6 to 6: not written: ", "go on with --skip 5")
    assert error.endswith("lease 9 does not exist (the 5 items before are written)")
    result = run("import", "-", "--skip", "5", stdin=lines(*good, {"key": "k5", "value": ""}))
    assert (result.exit_code, run("ls", "--count").output) == (0, "6\n")


def test_an_unknown_outcome_has_its_exit_code(run, server):
    server.log.refusal = Timeout("late")
    result = run("import", "-", "--timeout", "0.3", stdin=lines({"key": "a", "value": ""}))
    assert result.exit_code == 3
    assert result.stderr.startswith("items 1 to 1: outcome unknown: ")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"x", "it is not JSON"),
        (b"[]", "it is no JSON object"),
        (b'{"key": "", "value": ""}', "a key has 1 to 4096 bytes, not 0"),
        (b'{"key": 1, "value": ""}', "key must be a string"),
        (b'{"key": "a"}', "value must be a string"),
        (b'{"key": "a", "value": "x", "encoding": "base64"}', "key is not base64"),
        (b'{"key": "a", "value": "", "encoding": "hex"}', "encoding must be utf8 or base64, not 'hex'"),
        (b'{"key": "a", "value": "", "lease": -1}', "lease must be the id of one, not -1"),
        (b'{"key": "a", "value": "", "lease": true}', "lease must be the id of one, not True"),
        (b'{"key": "a", "value": "", "ttl": 5}', "'ttl' is unknown"),
        (b'{"key": "a", "value": "' + b"x" * 1_572_865 + b'"}', "a value has at most 1572864 bytes, not 1572865"),
        (b" " * (MAX_LINE_BYTES + 1) + b"{}", f"it has more than {MAX_LINE_BYTES} bytes"),
    ],
)
def test_lines_that_are_no_items_are_named(run, tmp_path, line, problem):
    file = tmp_path / "items"
    file.write_bytes(line + b"\n")
    result = run("import", str(file))
    assert (result.exit_code, f"line 1: {problem}" in result.stderr) == (1, True)
    assert run("ls", "--count").output == "0\n"


def make_tree(root: Path) -> dict[str, bytes]:
    files = {"a.txt": b"one", "dir/b.bin": bytes(range(256)), "dir/sub/empty": b"", "dir/sub/ünïcode": b"x"}
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return files


def read_tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_tree_goes_in_and_comes_out(run, tmp_path):
    files = make_tree(tmp_path / "in")
    (tmp_path / "in" / "link").symlink_to("a.txt")
    imported = run("import", str(tmp_path / "in"), "--prefix", "p/", "--concurrency", "2")
    assert imported.exit_code == 0
    assert imported.stdout == "4 files imported\n"
    assert imported.stderr == f"skipped {tmp_path}/in/link: not a regular file\n"
    assert run("ls", "--null").stdout.split("\0")[:-1] == sorted(f"p/{name}" for name in files)
    exported = run("export", "p/", str(tmp_path / "out"))
    assert exported.stdout == "4 files exported\n"
    assert read_tree(tmp_path / "out") == files
    made = [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in made} == {0o700, 0o600}, "values are their owner's to read"
    again = run("export", "p/", str(tmp_path / "out"))
    assert (again.exit_code, "is not empty" in again.stderr) == (1, True)
    assert run("export", "p/", str(tmp_path / "out"), "--overwrite").exit_code == 0
    assert read_tree(tmp_path / "out") == files
    over_file = run("export", "p/", str(tmp_path / "out" / "a.txt"))
    assert (over_file.exit_code, "is not a directory" in over_file.stderr) == (1, True)
