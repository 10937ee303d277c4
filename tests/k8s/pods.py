"""Pods without Kubernetes: network namespaces, names that resolve late, and a kubelet that probes and restarts.

What a pod runs, its variables, its probes and what is done before it ends are those of the rendered StatefulSet. Every
start gives a pod another address, as Kubernetes does; its name follows a moment later.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

_CLONE_NEWNET = 0x40000000
_HURRY = 5
"""Probes come so many times as often as the manifest says; their thresholds are the manifest's."""

_NAME_DELAY_SECONDS = 1.0
_RESTART_SECONDS = 0.5
_READY_SECONDS = 90.0

_OWN_NAMES = "127.0.0.1 localhost\n"
"""What every pod's hosts file begins with."""


def can_make_networks() -> bool:
    """Whether this process may make network namespaces."""
    if shutil.which("ip") is None or shutil.which("unshare") is None or os.geteuid() != 0:
        return False
    name = f"rkv{os.getpid()}x"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return False
    return subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False).returncode == 0


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Machine:
    """A bridge in a namespace of its own, names for everybody on it, and a way to ask them.

    Args:
        directory: Where the names, the volumes and the logs are kept.
        secret: The files of the Secret that pods mount at ``/tls``.
    """

    def __init__(self, directory: Path, secret: Path) -> None:
        self.directory = directory
        self.secret = secret
        self.namespace = f"rkv{os.getpid()}"
        self.hosts = directory / "hosts"
        self.hosts.write_text(_OWN_NAMES)
        self._names: dict[str, str] = {}
        self._lock = threading.Lock()
        self._last_address = 1

    def __enter__(self) -> Self:
        _ip("netns", "add", self.namespace)
        _ip("-n", self.namespace, "link", "add", "br0", "type", "bridge")
        _ip("-n", self.namespace, "addr", "add", "10.77.0.1/24", "dev", "br0")
        _ip("-n", self.namespace, "link", "set", "br0", "up")
        _ip("-n", self.namespace, "link", "set", "lo", "up")
        self._threads = ThreadPoolExecutor(8, initializer=self._enter_namespace)
        return self

    def __exit__(self, *_error: object) -> None:
        self._threads.shutdown(wait=True)
        _ip("netns", "del", self.namespace)

    def _enter_namespace(self) -> None:
        # Of this thread alone: sockets that it makes are in the namespace.
        descriptor = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns failed")
        os.close(descriptor)

    def ask(self, scheme: str, address: str, path: str, seconds: float = 6.0, port: int = 2379) -> tuple[int, Any]:
        """Return status and JSON of an answer; status 0 without one."""
        return self._threads.submit(_ask, f"{scheme}://{address}:{port}{path}", seconds).result()

    def connect(self, number: int) -> tuple[str, str]:
        """Make a network namespace that is on the bridge; return its name and address."""
        with self._lock:
            self._last_address += 1
            address = f"10.77.0.{self._last_address}"
            unique = self._last_address
        name = f"{self.namespace}p{number}n{unique}"
        _ip("netns", "add", name)
        inner, outer = f"e{os.getpid() % 10000}n{unique}", f"v{os.getpid() % 10000}n{unique}"
        _ip("-n", self.namespace, "link", "add", outer, "type", "veth", "peer", "name", inner)
        _ip("-n", self.namespace, "link", "set", inner, "netns", name)
        _ip("-n", self.namespace, "link", "set", outer, "master", "br0", "up")
        _ip("-n", name, "addr", "add", f"{address}/24", "dev", inner)
        _ip("-n", name, "link", "set", inner, "up")
        _ip("-n", name, "link", "set", "lo", "up")
        return name, address

    def name(self, host: str, address: str) -> None:
        """Let a name mean an address from now on, for everybody."""
        with self._lock:
            self._names[host] = address
            lines = _OWN_NAMES + "".join(f"{known} {name}\n" for name, known in self._names.items())
            # In place: it is bound over /etc/hosts, and a new file would not be.
            with self.hosts.open("r+") as file:
                file.write(lines)
                file.truncate()

    def command(self, namespace: str, *arguments: str) -> list[str]:
        """Return what runs a command in a namespace where the names are known."""
        script = f'mount --bind {self.hosts} /etc/hosts && exec "$@"'
        return ["ip", "netns", "exec", namespace, "unshare", "-m", "sh", "-c", script, "sh", *arguments]


def _ask(url: str, seconds: float) -> tuple[int, Any]:
    context = ssl.create_default_context()
    # Kubelets look at no certificate.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(url, timeout=seconds, context=context) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, None
    except (OSError, ValueError):
        return 0, None


class Pod:
    """One pod of the set: its volume stays, everything else is new with each start.

    Args:
        machine: Where it runs.
        template: The pod template of the rendered StatefulSet.
        ordinal: Its number.
        environment: Its variables, as Kubernetes would fill them in.
    """

    def __init__(self, machine: Machine, template: dict[str, Any], ordinal: int, environment: dict[str, str]) -> None:
        self._machine = machine
        (self._container,) = template["spec"]["containers"]
        self._grace = template["spec"]["terminationGracePeriodSeconds"]
        self._environment = {key: value.replace("/tls/", f"{machine.secret}/") for key, value in environment.items()}
        self.scheme = "https" if "RAFTKV_TLS_CERT" in environment else "http"
        self.name = f"raftkv-{ordinal}"
        self._ordinal = ordinal
        self.volume = machine.directory / "volumes" / self.name
        self._log = machine.directory / f"{self.name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._log_begin = 0
        self._namespace = ""
        self._stopping = threading.Event()
        self._kubelet: threading.Thread | None = None
        self.address = ""
        self.is_ready = False
        self.liveness_kills = 0
        self.restarts = 0

    @property
    def host(self) -> str:
        """Its stable name."""
        return f"{self.name}.{self._environment['RAFTKV_DISCOVER_SERVICE']}"

    def start(self) -> None:
        """Create the pod: a new address, a container, and a kubelet that looks after it."""
        self.volume.mkdir(parents=True, exist_ok=True)
        self._namespace, self.address = self._machine.connect(self._ordinal)
        self._stopping.clear()
        self._log_begin = len(self._log.read_text()) if self._log.exists() else 0
        self._run_container()
        threading.Timer(_NAME_DELAY_SECONDS, self._machine.name, (self.host, self.address)).start()
        self._kubelet = threading.Thread(target=self._look_after)
        self._kubelet.start()

    def delete(self) -> None:
        """End the pod as Kubernetes does: what is to be done before, SIGTERM, and SIGKILL after the grace period."""
        self._end_kubelet()
        assert self._process is not None
        if "lifecycle" in self._container:
            subprocess.run(self._container["lifecycle"]["preStop"]["exec"]["command"], check=True)
        self._process.terminate()
        try:
            self._process.wait(self._grace)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _ip("netns", "del", self._namespace)

    def lose(self) -> None:
        """Lose the pod with its machine."""
        self._end_kubelet()
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        _ip("netns", "del", self._namespace)

    def lose_volume(self) -> None:
        """Forget everything that it had."""
        shutil.rmtree(self.volume)

    def execute(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of raftkv in the pod, as ``kubectl exec`` does."""
        command = self.command("raftkv", *arguments)
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=self.variables())

    def command(self, *arguments: str) -> list[str]:
        """Return what runs a command in the pod, on its network and with its volume at ``/data``."""
        program = (sys.executable, "-m", "raftkv") if arguments[0] == "raftkv" else arguments[:1]
        # A path in the pod is one on this machine, wherever it stands in a command.
        in_volume = [re.sub(r"(?<![\w./-])/data\b", str(self.volume), argument) for argument in arguments[1:]]
        return self._machine.command(self._namespace, *program, *in_volume)

    def probe(self, kind: str) -> bool:
        """Ask what one of the manifest's probes asks."""
        probe = self._container[kind]
        asked = probe["httpGet"]
        scheme = asked.get("scheme", "HTTP").lower()
        (port,) = [port["containerPort"] for port in self._container["ports"] if port["name"] == asked["port"]]
        seconds = probe.get("timeoutSeconds", 1)
        return 200 <= self._machine.ask(scheme, self.address, asked["path"], seconds, port)[0] < 400

    def wait(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + _READY_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"{self.name} is not {what}:\n{self._log.read_text()[-4000:]}"
            time.sleep(0.05)

    def wait_ready(self) -> None:
        """Wait until the readiness probe has succeeded."""
        self.wait("ready", lambda: self.is_ready)

    def members(self) -> dict[str, bool]:
        """Return the members' names, and whether they vote, as this pod knows them."""
        _status, document = self._machine.ask(self.scheme, self.address, "/v1/cluster/members")
        return {} if document is None else {member["name"]: member["votes"] for member in document["members"]}

    @property
    def is_running(self) -> bool:
        """Whether its container runs."""
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """Return what it has said since the pod was created."""
        return self._log.read_text()[self._log_begin :]

    def variables(self) -> dict[str, str]:
        """Return the variables of its container."""
        return {**os.environ, **self._environment}

    def _run_container(self) -> None:
        # The image's entry point is raftkv.
        command = self.command(*self._container.get("command", ["raftkv"]), *self._container.get("args", []))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=self.variables())

    def _end_kubelet(self) -> None:
        self._stopping.set()
        assert self._kubelet is not None
        self._kubelet.join()
        self.is_ready = False

    def _look_after(self) -> None:
        assert self._process is not None
        failures = dict.fromkeys(("startupProbe", "livenessProbe", "readinessProbe"), 0)
        due = dict.fromkeys(failures, 0.0)
        has_started = "startupProbe" not in self._container
        while not self._stopping.wait(0.05):
            if self._process.poll() is not None:
                self.is_ready = False
                has_started = "startupProbe" not in self._container
                self.restarts += 1
                if self._stopping.wait(_RESTART_SECONDS):
                    return
                self._run_container()
                continue
            for kind in ["livenessProbe", "readinessProbe"] if has_started else ["startupProbe"]:
                if kind not in self._container:
                    continue
                probe = self._container[kind]
                if time.monotonic() < due[kind]:
                    continue
                due[kind] = time.monotonic() + probe["periodSeconds"] / _HURRY
                failures[kind] = 0 if self.probe(kind) else failures[kind] + 1
                has_started = has_started or failures[kind] == 0
                has_failed = failures[kind] >= probe["failureThreshold"]
                if kind == "readinessProbe":
                    self.is_ready = failures[kind] == 0 or (self.is_ready and not has_failed)
                elif has_failed:
                    self.liveness_kills += 1
                    failures[kind] = 0
                    self._process.kill()
