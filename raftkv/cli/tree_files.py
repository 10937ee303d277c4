"""Directory trees and the keys that stand for their files: ``prefix + relative/path``, byte for byte.

Everything that could go wrong with a name or a size is found before the first key or file is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from raftkv.errors import InvalidRequest
from raftkv.types import MAX_KEY_BYTES, MAX_VALUE_BYTES

_SHOWN_PROBLEMS = 10


@dataclass(frozen=True, slots=True)
class TreeFile:
    """One file and its key."""

    path: Path
    key: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Tree:
    """The regular files of a directory tree, and the paths that are none (links, sockets, devices)."""

    files: tuple[TreeFile, ...]
    skipped: tuple[Path, ...]


def scan_tree(root: Path, prefix: bytes) -> Tree:
    """Find every file below a directory; links are not followed.

    Raises:
        InvalidRequest: It is no directory, or a file is too large for a value or its name too long for a key.
        OSError: A directory cannot be read.
    """
    if not root.is_dir():
        raise InvalidRequest(f"{root} is not a directory")
    files: list[TreeFile] = []
    skipped: list[Path] = []
    pending = [root]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                elif entry.is_file(follow_symlinks=False):
                    key = prefix + os.fsencode(path.relative_to(root))
                    files.append(TreeFile(path, key, entry.stat(follow_symlinks=False).st_size))
                else:
                    skipped.append(path)
    _refuse([reason for file in files if (reason := _problem_of_file(file)) is not None])
    return Tree(tuple(sorted(files, key=lambda file: file.key)), tuple(sorted(skipped)))


def _problem_of_file(file: TreeFile) -> str | None:
    if file.size > MAX_VALUE_BYTES:
        return f"{file.path} has {file.size} bytes; a value has at most {MAX_VALUE_BYTES}"
    if len(file.key) > MAX_KEY_BYTES:
        return f"{file.path} would be a key of {len(file.key)} bytes; a key has at most {MAX_KEY_BYTES}"
    return None


def plan_export(keys: Iterable[bytes], prefix: bytes, root: Path) -> dict[bytes, Path]:
    """Return the file of each key below a directory.

    Raises:
        InvalidRequest: A key is no path below the directory, or is a file where another needs a directory.
    """
    relative = {key: key[len(prefix) :] for key in keys}
    names = set(relative.values())
    problems = [
        f"the key {key!r} {reason}"
        for key, name in relative.items()
        if (reason := _problem_of_name(name, names)) is not None
    ]
    _refuse(problems)
    return {key: root / os.fsdecode(name) for key, name in relative.items()}


def _problem_of_name(name: bytes, names: set[bytes]) -> str | None:
    parts = name.split(b"/")
    if b"\0" in name:
        return "contains a NUL byte"
    if any(part in (b"", b".", b"..") for part in parts):
        return "is no relative path of plain names"
    if any(len(part) > 255 for part in parts):
        return "has a part that is longer than a file name can be"
    for depth in range(1, len(parts)):
        if b"/".join(parts[:depth]) in names:
            return f"needs a directory where {b'/'.join(parts[:depth])!r} is a file"
    return None


def _refuse(problems: list[str]) -> None:
    if problems:
        shown = "\n  ".join(problems[:_SHOWN_PROBLEMS])
        more = len(problems) - _SHOWN_PROBLEMS
        tail = f"\n  and {more} more" if more > 0 else ""
        raise InvalidRequest(f"nothing was done:\n  {shown}{tail}")
