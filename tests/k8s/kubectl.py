"""``kubectl`` in front of the pod simulator, so that procedures run in a real shell as they are written.

It knows one StatefulSet. What Kubernetes would do to pods and volumes is done to those of the simulator: pods of a set
that is scaled down end together, and their volumes are removed if the set's retention policy says so.
"""

from __future__ import annotations

import json
import os
import shutil
import socketserver
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import yaml

from tests.k8s.pods import Machine, Pod
from tests.k8s.test_manifests import environment_of, only

_STUB = """#!{python}
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({socket!r})
    server.sendall(json.dumps({{"arguments": sys.argv[1:], "directory": os.getcwd()}}).encode() + b"\\n")
    answer = json.loads(server.makefile().readline())
if "execute" in answer:
    os.execvpe(answer["execute"][0], answer["execute"], answer["variables"])
sys.stdout.write(answer["output"])
sys.stderr.write(answer["error"])
sys.exit(1 if answer["error"] else 0)
"""
_ALL = ["--selector", "app.kubernetes.io/name=raftkv"]
_READER = "raftkv-backup-reader"


class Refused(Exception):
    """What kubectl would print as an error, or what would not end in a real cluster."""


class Set:
    """A StatefulSet of the simulator, and the volume of its backups.

    Args:
        machine: Where its pods run.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.pods: list[Pod] = []
        self.backups = machine.directory / "backups"
        self.backups.mkdir()
        self.objects: list[dict[str, Any]] = []
        self.secrets: dict[str, dict[str, str]] = {}
        self.has_reader = False
        self._template: dict[str, Any] = {}
        self._policy: dict[str, str] = {}

    def apply(self, objects: list[dict[str, Any]]) -> None:
        """Take the rendered objects over."""
        new = only(objects, "StatefulSet")["spec"]
        if self.pods and self._template != new["template"]:
            raise Refused("pods that run would be replaced one by one, each when the one before it is ready")
        self.objects, self._template = objects, new["template"]
        self._policy = new["persistentVolumeClaimRetentionPolicy"]
        self.has_reader = any(each["kind"] == "Pod" and each["metadata"]["name"] == _READER for each in objects)
        self.scale(new["replicas"])

    def patch(self, document: dict[str, Any]) -> None:
        """Change the retention policy."""
        self._policy = document["spec"]["persistentVolumeClaimRetentionPolicy"]

    def scale(self, replicas: int) -> None:
        """Start or end pods, all at the same time."""
        ending, self.pods = self.pods[replicas:], self.pods[:replicas]
        with ThreadPoolExecutor() as threads:
            list(threads.map(Pod.delete, ending))
        if self._policy["whenScaled"] == "Delete":
            for pod in ending:
                pod.lose_volume()
        for ordinal in range(len(self.pods), replicas):
            (container,) = self._template["spec"]["containers"]
            variables = environment_of(self._template, ordinal) | self._of_secrets(container)
            pod = Pod(self.machine, self._template, ordinal, variables)
            self.pods.append(pod)
            pod.start()

    def pod(self, name: str) -> Pod:
        """Return a pod that there is."""
        for pod in self.pods:
            if pod.name == name:
                return pod
        raise Refused(f'pods "{name}" not found')

    def delete_volume(self, claim: str) -> None:
        """Remove the volume of a pod that is gone."""
        name = claim.removeprefix("data-")
        if any(pod.name == name for pod in self.pods):
            raise Refused(f"{claim} is in use: it would be removed with its pod")
        shutil.rmtree(self.machine.directory / "volumes" / name)

    def wait_ready(self) -> None:
        """Wait until all pods are ready."""
        for pod in self.pods:
            pod.wait_ready()

    def back_up(self) -> None:
        """Run the backup job once."""
        (container,) = only(self.objects, "CronJob", "raftkv-backup")["spec"]["jobTemplate"]["spec"]["template"][
            "spec"
        ]["containers"]
        self.machine.name("raftkv", self.pods[0].address)
        variables = {item["name"]: item["value"] for item in container["env"]}
        arguments = [argument.replace("=/backups", f"={self.backups}") for argument in container["args"]]
        command = self.machine.command(self.machine.namespace, sys.executable, "-m", "raftkv", *arguments)
        subprocess.run(command, check=True, timeout=60, env={**os.environ, **variables, **self._of_secrets(container)})

    def _of_secrets(self, container: dict[str, Any]) -> dict[str, str]:
        """Return the variables that a container has of whole Secrets."""
        found: dict[str, str] = {}
        for each in container.get("envFrom", []):
            name = each["secretRef"]["name"]
            if name not in self.secrets:
                raise Refused(f'secret "{name}" not found')
            found |= self.secrets[name]
        return found


class Kubectl:
    """Serves the commands of a set; a context manager.

    Args:
        controlled: The set.
        overlays: The project's ``k8s`` directory, for ``apply -k``.
    """

    def __init__(self, controlled: Set, overlays: Path) -> None:
        self._set = controlled
        self._kubectl = shutil.which("kubectl")
        self.home = controlled.machine.directory / "operator"
        self.home.mkdir()
        shutil.copytree(overlays, self.home / "k8s")
        self._bin = controlled.machine.directory / "bin"
        self._bin.mkdir()
        path = str(controlled.machine.directory / "kubectl.socket")
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.wfile.write(json.dumps(outer._answer(json.loads(self.rfile.readline()))).encode() + b"\n")

        self._server = socketserver.UnixStreamServer(path, Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._write("kubectl", _STUB.format(python=sys.executable, socket=path))
        self._write("raftkv", f'#!/bin/sh\nexec "{sys.executable}" -m raftkv "$@"\n')

    def _write(self, name: str, text: str) -> None:
        (self._bin / name).write_text(text)
        (self._bin / name).chmod(0o755)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def run(self, commands: list[str], typed: str = "", **placeholders: str) -> str:
        """Run lines of a procedure in a shell; return what they print.

        Args:
            commands: The lines.
            typed: What is typed at questions.
            placeholders: What stands for words of the lines.
        """
        script = "\n".join(commands)
        for name, value in placeholders.items():
            assert name in script, f"{name} is not in {script!r}"
            script = script.replace(name, value)
        done = subprocess.run(
            ["sh", "-e", "-c", script],
            cwd=self.home,
            env=self._variables(),
            input=typed,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, (script, done.stdout, done.stderr)
        return done.stdout

    def apply(self, overlay: Path) -> None:
        """Render an overlay and apply it."""
        assert self._kubectl is not None
        output = subprocess.run(
            [self._kubectl, "kustomize", overlay], capture_output=True, check=True, timeout=60
        ).stdout
        self._set.apply(list(yaml.safe_load_all(output)))

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"output": "", "error": "", **self._do(request["arguments"], Path(request["directory"]))}
        except Refused as error:
            return {"output": "", "error": f"Error from server: {error}\n"}
        except Exception as error:  # noqa: BLE001 - the shell shows it
            return {"output": "", "error": f"the simulator failed: {error!r}\n"}

    def _do(self, arguments: list[str], directory: Path) -> dict[str, Any]:
        match arguments:
            case ["apply", "-k", overlay]:
                self.apply(directory / overlay)
            case ["scale", "statefulset", "raftkv", "--replicas", replicas]:
                self._set.scale(int(replicas))
            case ["patch", "statefulset", "raftkv", "--type", "merge", "--patch", document]:
                self._set.patch(json.loads(document))
            case ["wait", "--for", "delete", "pod", *selected, "--timeout", _] if selected == _ALL:
                if self._set.pods:
                    raise Refused("timed out waiting for the condition")
            case ["wait", "--for", "jsonpath={.status.phase}=Running", "pod", *names, "--timeout", _]:
                for name in names:
                    if not (self._set.has_reader if name == _READER else self._set.pod(name).is_running):
                        raise Refused(f"timed out waiting for {name}")
            case ["rollout", "status", "statefulset", "raftkv"]:
                self._set.wait_ready()
            case ["delete", "pod", name, "--ignore-not-found"] if name == _READER:
                self._set.has_reader = False
            case ["delete", "pvc", *claims]:
                for claim in claims:
                    self._set.delete_volume(claim)
            case ["exec", "-i" | "-it", name, "--", *command] | ["exec", name, "--", *command]:
                return self._execute(name, command)
            case _:
                raise Refused(f"the simulator does not know kubectl {' '.join(arguments)}")
        return {}

    def _variables(self) -> dict[str, str]:
        """Return the variables of a process that finds the commands of this project."""
        path = f"{self._bin}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "PYTHONPATH": str(Path(__file__).parents[2])}

    def _execute(self, name: str, command: list[str]) -> dict[str, Any]:
        if name == _READER:
            if not self._set.has_reader:
                raise Refused(f'pods "{name}" not found')
            command = [argument.replace("/backups", str(self._set.backups)) for argument in command]
            return {"execute": command, "variables": self._variables()}
        pod = self._set.pod(name)
        return {"execute": pod.command(*command), "variables": pod.variables()}
