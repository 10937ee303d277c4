"""The unit for systemd: sound to systemd itself, and true to the code that it runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from raftkv.cli.failures import WRONG_USAGE
from raftkv.cli.main import raftkv
from raftkv.config import NodeConfig
from raftkv.node import STOP_SECONDS
from raftkv.settings import build_config, parse_toml

HERE = Path(__file__).parents[1] / "packaging" / "systemd"
UNIT = HERE / "raftkv.service"


@pytest.fixture(scope="module")
def service() -> dict[str, str]:
    """Return the settings of the unit; none is given twice."""
    lines = [line for line in UNIT.read_text().splitlines() if line and line[0] not in "#["]
    settings = dict(line.split("=", 1) for line in lines)
    assert len(settings) == len(lines)
    return settings


@pytest.fixture(scope="module")
def config() -> NodeConfig:
    file = HERE / "raftkv.toml"
    return build_config({}, {}, parse_toml(file.read_text(), str(file)))


def test_command_and_its_settings_are_of_this_release(service):
    program, command, *arguments = service["ExecStart"].split()
    assert Path(program).name == "raftkv"
    context = raftkv.commands[command].make_context(command, list(arguments))
    assert context.params["config_file"] == f"/etc/{service['ConfigurationDirectory']}/raftkv.toml"


def test_example_settings_are_a_members_whose_data_directory_the_service_may_write(service, config):
    assert config.data_dir == Path("/var/lib") / service["StateDirectory"] / "data"
    assert config.name in {member.name for member in config.initial_cluster}
    assert len(config.initial_cluster) == 3


def test_service_gives_the_node_the_time_to_end(service):
    assert int(service["TimeoutStopSec"]) > STOP_SECONDS
    assert service["KillMode"] == "mixed"


def test_wrong_configuration_is_not_tried_again_and_everything_else_is(service):
    assert service["RestartPreventExitStatus"] == str(WRONG_USAGE)
    assert (service["Restart"], service["StartLimitIntervalSec"]) == ("on-failure", "0")


def test_service_is_hardened_and_can_read_the_boot_id(service):
    assert (service["User"], service["CapabilityBoundingSet"], service["UMask"]) == ("raftkv", "", "0077")
    assert (service["ProtectSystem"], service["NoNewPrivileges"]) == ("strict", "true")
    # Without the boot id a store is rebuilt at each start (raftkv.runtime.files.boot_id).
    assert service.get("ProcSubset", "all") == "all"


def test_systemd_accepts_the_unit(tmp_path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    # The program must exist on this machine.
    text = re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={sys.executable}", UNIT.read_text())
    copied = tmp_path / UNIT.name
    copied.write_text(text)
    command = [analyze, "verify", "--man=no", str(copied)]
    verified = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    # Exposure from 0 (none) to 100.
    command = [analyze, "security", "--offline=true", "--threshold=20", str(copied)]
    rated = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "unrecognized option" not in rated.stderr:
        assert rated.returncode == 0, rated.stdout[-300:]


def test_user_of_the_service_is_made_by_its_sysusers_line(tmp_path, service):
    text = (HERE / "raftkv.sysusers.conf").read_text()
    (line,) = [line for line in text.splitlines() if not line.startswith("#")]
    assert line.split()[:2] == ["u", service["User"]]
    sysusers = shutil.which("systemd-sysusers")
    if sysusers is None:
        pytest.skip("systemd-sysusers is not installed")
    (tmp_path / "etc").mkdir()
    command = [sysusers, f"--root={tmp_path}", "--dry-run", "-"]
    read = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    assert read.returncode == 0, read.stderr


def test_commands_of_the_readme_have_flags_that_exist():
    text = (HERE / "README.md").read_text().replace("\\\n", " ")
    (restore,) = re.findall(r"/opt/raftkv/bin/raftkv (snapshot restore .*)", text)
    _group, name, *arguments = restore.split()
    command = raftkv.commands["snapshot"].commands[name]  # type: ignore[attr-defined]
    # The backup need not be there.
    arguments = [str(UNIT) if each.endswith(".snapshot") else each for each in arguments]
    assert command.make_context(name, arguments).params["sets_aside"] is True
