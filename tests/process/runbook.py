"""Procedures of the documents, step by step: their commands are taken from the documents and run as they are there.

Only addresses, paths and placeholders are replaced, so a command that is changed in a document is changed in its test.
A test says on which host each step is run; it fails when it leaves a command of its section out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Self

from tests.process.cluster import NodeProcess, free_ports

ROOT = Path(__file__).resolve().parents[2]
_SECONDS = 60
_INDENT = "    "


def code_blocks(document: str, heading: str) -> list[list[str]]:
    """Return the blocks of commands below a heading, each command one string.

    Args:
        document: Path of the document in the repository.
        heading: The heading without its number signs; empty for what is before the first section.
    """
    blocks: list[list[str]] = []
    inside, is_code, was_text = not heading, False, False
    for line in (ROOT / document).read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            inside = line.removeprefix("## ") == heading
        is_continued = is_code and line.startswith(_INDENT)
        if inside and line.startswith(_INDENT) and (is_continued or not was_text):
            if not is_continued:
                blocks.append([])
            if blocks[-1] and blocks[-1][-1].endswith("\\"):
                blocks[-1][-1] = f"{blocks[-1][-1][:-1]}{line.strip()}"
            else:
                blocks[-1].append(line.strip())
            is_code = True
        else:
            is_code = False
        was_text = bool(line.strip()) and not is_code
    assert blocks, f"{document} has no commands below {heading!r}"
    return blocks


class Host:
    """A machine of a procedure: where its node's data is, at which ports it listens, and a directory to work in."""

    def __init__(self, number: int, directory: Path, client_port: int, peer_port: int) -> None:
        self.number = number
        self.directory = directory
        self.data_dir = directory / f"n{number}"
        self.ports = {"2379": client_port, "2380": peer_port}
        self.url = f"http://127.0.0.1:{client_port}"


class Machines:
    """The machines of a procedure, 10.0.0.1 and so on.

    Args:
        directory: Where their directories are made.
        count: How many there are.
    """

    def __init__(self, directory: Path, count: int) -> None:
        ports = free_ports(2 * count + 2)
        self.hosts = []
        for number in range(1, count + 1):
            home = directory / f"host-{number}"
            home.mkdir(parents=True)
            self.hosts.append(Host(number, home, *ports[2 * number - 2 : 2 * number]))
        self._scratch = {"12379": ports[-2], "12380": ports[-1]}
        self._running: list[NodeProcess] = []

    @property
    def scratch_url(self) -> str:
        """Address of a node at the ports 12379 and 12380."""
        return f"http://127.0.0.1:{self._scratch['12379']}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for node in self._running:
            if node.is_running:
                node.kill()

    def translate(self, command: str, host: Host) -> str:
        """Return a command as it is on this machine when it is run on a host."""
        command = re.sub(r"10\.0\.0\.(\d+):(2379|2380)", lambda m: self._address(int(m[1]), m[2]), command)
        command = re.sub(r"0\.0\.0\.0:(2379|2380)", lambda m: f"127.0.0.1:{host.ports[m[1]]}", command)
        command = re.sub(r"127\.0\.0\.1:(12379|12380)", lambda m: f"127.0.0.1:{self._scratch[m[1]]}", command)
        return command.replace("/var/lib/raftkv", str(host.data_dir))

    def _address(self, number: int, port: str) -> str:
        return f"127.0.0.1:{self.hosts[number - 1].ports[port]}"

    def serve(self, host: Host, command: str, environment: dict[str, str]) -> NodeProcess:
        """Start a node by a command line that begins with ``raftkv serve``."""
        words = self.translate(command, host).split()
        assert words[:2] == ["raftkv", "serve"], command
        flags = dict(zip(words[2::2], words[3::2], strict=True))
        name = flags["--name"]
        port = int(flags["--listen-client"].rpartition(":")[2])
        node = NodeProcess(name, host.directory, port, 0, None)
        node.data_dir = host.directory / flags["--data-dir"]
        node.command = [sys.executable, "-m", *words]
        # Paths that are relative are so to the host's directory.
        node.command = ["sh", "-c", 'cd "$1"; shift; exec "$@"', "sh", str(host.directory), *node.command]
        node.start(environment=environment)
        self._running.append(node)
        return node


class Runbook:
    """The commands below one heading, run one after the other.

    Args:
        machines: Where they are run.
        document: Path of the document in the repository.
        heading: The heading of the section.
    """

    def __init__(self, machines: Machines, document: str, heading: str) -> None:
        self._machines = machines
        self._commands = [command for block in code_blocks(document, heading) for command in block]
        self._environment = dict(
            command.removeprefix("export ").split("=", 1)
            for block in code_blocks("docs/operations.md", "")
            for command in block
        )

    def environment(self, host: Host) -> dict[str, str]:
        """Return the variables that the document says are set."""
        return {name: self._machines.translate(value, host) for name, value in self._environment.items()}

    def next_command(self, **placeholders: str) -> str:
        """Return the next command; each placeholder must be in it."""
        assert self._commands, "the document has no further command"
        command = self._commands.pop(0)
        for name, value in placeholders.items():
            assert re.search(rf"\b{name}\b", command), f"{name} is not in {command!r}"
            command = re.sub(rf"\b{name}\b", lambda _match, text=value: text, command)  # type: ignore[misc]
        return command

    def skip(self, beginning: str) -> None:
        """Leave a command out that this test cannot run."""
        command = self.next_command()
        assert command.startswith(beginning), command

    def run(self, host: Host, *, status: int = 0, typed: str = "", **placeholders: str) -> str:
        """Run the next command on a host; return what it prints.

        Args:
            host: The host.
            status: The exit status that it must have.
            typed: What is typed at its question.
            placeholders: What stands for words of the command.
        """
        return self.run_again(self.next_command(**placeholders), host, status=status, typed=typed)

    def run_again(self, command: str, host: Host, *, status: int = 0, typed: str = "") -> str:
        """Run a command that ``next_command`` returned."""
        program = f'raftkv() {{ "{sys.executable}" -m raftkv "$@"; }}'
        done = subprocess.run(
            ["sh", "-c", f"{program}\n{self._machines.translate(command, host)}"],
            cwd=host.directory,
            env={**os.environ, "PYTHONPATH": str(ROOT), **self.environment(host)},
            input=typed,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        assert done.returncode == status, (command, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def serve(self, host: Host, command: str | None = None) -> NodeProcess:
        """Start the node of the next command, or of a command that ``next_command`` returned."""
        return self._machines.serve(host, command or self.next_command(), self.environment(host))

    def assert_done(self) -> None:
        """Check that every command was run."""
        assert not self._commands, f"not run: {self._commands}"
