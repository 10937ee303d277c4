"""Directories that change places."""

from __future__ import annotations

import errno

import pytest

from raftkv.runtime import exchange as module
from raftkv.runtime.exchange import exchange


@pytest.mark.parametrize("at_once", [True, False])
def test_two_directories_change_places(tmp_path, monkeypatch, at_once):
    if not at_once:
        monkeypatch.setattr(module, "_exchange_at_once", lambda *_: False)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    exchange(tmp_path / "first", tmp_path / "second")
    assert (tmp_path / "first" / "content").read_text() == "second"
    assert (tmp_path / "second" / "content").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_not_there_changes_nothing(tmp_path):
    (tmp_path / "first").mkdir()
    with pytest.raises(OSError, match="No such file") as raised:
        exchange(tmp_path / "first", tmp_path / "second")
    assert raised.value.errno == errno.ENOENT
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
