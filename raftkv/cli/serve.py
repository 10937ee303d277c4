"""``raftkv serve``: one node, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from raftkv.cli.failures import NOT_DONE, NotDone, failures_as_exit_codes
from raftkv.cli.joining import finder_of_members, join_if_new
from raftkv.config import NodeConfig
from raftkv.errors import ConfigurationError, RaftkvError
from raftkv.node import run_node
from raftkv.runtime.logs import LogOutput, configure_logging
from raftkv.settings import CONFIG_VARIABLE, SETTINGS, Setting, build_config, parse_toml, unknown_variables

logger = logging.getLogger(__name__)

_LOG_SECONDS = 2.0
"""The end of the process waits for the last lines of its log for this long."""


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
    help=f"TOML file with any of these settings; flags and variables win over it.  [variable {CONFIG_VARIABLE}]",
)
def serve(config_file: str | None, **flags: str | None) -> None:
    """Run one node until it is told to stop.

    Without any flags it is a cluster of one on 127.0.0.1:2379 with its data in ./raftkv-data. Flags win over
    RAFTKV_… variables, which win over the TOML file.

    SIGTERM and SIGINT stop it in good order: leadership is handed over and requests under way are finished.
    """
    with failures_as_exit_codes():
        config = load_config(flags, dict(os.environ), config_file)
    output = configure_logging(config.log_format, config.log_level)
    for warning in unknown_variables(os.environ):
        logger.warning("%s", warning)
    # Standard error may be a blocked pipe: only the thread of the log may wait for it.
    with failures_as_exit_codes(lambda line: _finish(output, line)):
        try:
            asyncio.run(join_if_new(config))
            run_node(config, lambda line: _end_process(output, line), finder_of_members(config))
        except (RaftkvError, OSError):
            raise
        except Exception as error:
            logger.critical("unexpected error", exc_info=error)
            raise NotDone(f"unexpected error: {error!r}") from error
    _finish(output, None)


def _finish(output: LogOutput, last_line: str | None) -> None:
    output.finish(last_line, _LOG_SECONDS)


def _end_process(output: LogOutput, last_line: str) -> None:
    """End the process without waiting for its threads: some may be in system calls that do not return."""
    _finish(output, f"raftkv: {last_line}")
    os._exit(NOT_DONE)


def load_config(flags: dict[str, Any], environment: dict[str, str], config_file: str | None) -> NodeConfig:
    """Build the configuration from all three sources.

    Raises:
        ConfigurationError: One of them is wrong, or the file cannot be read.
    """
    path = config_file or environment.get(CONFIG_VARIABLE)
    if not path:
        return build_config(flags, environment, {})
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigurationError(f"the configuration file {path} cannot be read: {error}") from error
    return build_config(flags, environment, parse_toml(text, path), path)
