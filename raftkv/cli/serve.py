"""``raftkv serve``: one node, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from raftkv.cli.failures import failures_as_exit_codes
from raftkv.cli.joining import join_if_new
from raftkv.config import NodeConfig
from raftkv.errors import ConfigurationError
from raftkv.node import run_node
from raftkv.runtime.logs import configure_logging
from raftkv.settings import ENVIRONMENT_PREFIX, SETTINGS, Setting, build_config, parse_toml

_CONFIG_VARIABLE = f"{ENVIRONMENT_PREFIX}CONFIG"


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Add one option for each setting; the settings module declares them once."""
    for setting in reversed(SETTINGS):
        command = click.option(
            f"--{setting.flag}", setting.key, metavar=setting.metavar, help=_help(setting), default=None
        )(command)
    return command


def _help(setting: Setting) -> str:
    return f"{setting.help}  [default: {setting.default}; variable {setting.variable}; TOML key {setting.key}]"


@click.command()
@_with_settings
@click.option(
    "--config",
    "config_file",
    metavar="FILE",
    help=f"TOML file with any of these settings; flags and variables win over it.  [variable {_CONFIG_VARIABLE}]",
)
def serve(config_file: str | None, **flags: str | None) -> None:
    """Run one node until it is told to stop.

    Without any flags it is a cluster of one on 127.0.0.1:2379 with its data in ./raftkv-data. Flags win over
    RAFTKV_… variables, which win over the TOML file.

    SIGTERM and SIGINT stop it in good order: leadership is handed over and requests under way are finished.
    """
    with failures_as_exit_codes():
        config = load_config(flags, dict(os.environ), config_file)
        configure_logging(config.log_format)
        asyncio.run(join_if_new(config))
        run_node(config)


def load_config(flags: dict[str, Any], environment: dict[str, str], config_file: str | None) -> NodeConfig:
    """Build the configuration from all three sources.

    Raises:
        ConfigurationError: One of them is wrong, or the file cannot be read.
    """
    path = config_file or environment.get(_CONFIG_VARIABLE)
    if not path:
        return build_config(flags, environment, {})
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigurationError(f"the configuration file {path} cannot be read: {error}") from error
    return build_config(flags, environment, parse_toml(text, path), path)
