"""Rules of the code base that import-linter cannot see."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import raftkv

PACKAGE = Path(raftkv.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

OUTSIDE_WORLD = {"time", "random", "secrets", "socket", "fcntl", "threading", "uuid"}
# The client, the command line and what they start run where no simulation is: they have a world of their own.
SHELLS = ("runtime", "cli", "client", "dev", "chaos")
EXCEPTIONS = {
    "store/lmdb_backend.py",
    "store/copy_file.py",
    "store/copy_thread.py",
    "store/held_view.py",
    "store/machine.py",
    "node.py",
}


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", [path for path in MODULES if not relative(path).startswith(SHELLS)], ids=relative)
def test_time_randomness_files_and_sockets_are_touched_in_the_shells_alone(path):
    if relative(path) in EXCEPTIONS:
        return
    assert not imported(path) & OUTSIDE_WORLD
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "open"]


def test_the_exceptions_are_still_there():
    assert {relative(path) for path in MODULES} >= EXCEPTIONS


def test_no_test_waits_for_a_fixed_time_to_pass():
    """A sleep is allowed in a loop that polls another process, and where a random moment is the point.

    The simulation's time is virtual: a sleep there moves its clock and waits for nothing.
    """
    here = Path(__file__).parent
    found = []
    for path in sorted(path for path in here.rglob("*.py") if path.parent != here / "simulation"):
        text = path.read_text()
        for match in re.finditer(r"^( *)(await asyncio|time)\.sleep\((?!0\)).*$", text, re.MULTILINE):
            before = text[: match.start()].splitlines()[-12:]
            polls = any(re.match(r"\s+(while|for) ", line) for line in before)
            if not polls and "def elect" not in "".join(before):
                found.append(f"{path.name}: {match.group().strip()}")
    assert found == []
