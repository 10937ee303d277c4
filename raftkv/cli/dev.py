"""``raftkv dev``: a whole cluster on loopback, one process a node, for trying and testing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from raftkv.cli.failures import failures_as_exit_codes
from raftkv.dev.cluster import DevCluster
from raftkv.dev.control import Control
from raftkv.dev.node import DevNode, plan_nodes


@click.command()
@click.option("--nodes", "count", type=click.IntRange(1, 9), default=3, show_default=True, help="Number of nodes.")
@click.option(
    "--port",
    type=click.IntRange(1, 65_534),
    default=2379,
    show_default=True,
    help="Client port of n1. Node i serves clients on PORT+10·(i-1) and its peers on the next port.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    default=Path("raftkv-dev-data"),
    show_default=True,
    help="Directory of all nodes' data: n1, n2, … below it, each with its pid and log.",
)
@click.option("--restart", is_flag=True, help="Start a node again when it dies. Without this it is left dead.")
def dev(count: int, port: int, data_dir: Path, *, restart: bool) -> None:
    """Run a cluster of separate node processes on loopback until Ctrl-C, which stops all of them in good order.

    Prints "ready" on a line of its own once every node answers and a leader serves writes. Starting it again on the
    same data directory goes on where it was.
    """
    with failures_as_exit_codes():
        asyncio.run(_run(plan_nodes(count, port, data_dir), data_dir, restart=restart))


async def _run(nodes: tuple[DevNode, ...], data_dir: Path, *, restart: bool) -> None:
    cluster = DevCluster(nodes, restart=restart, say=click.echo, introduce=_introduce)
    await cluster.run(Control(cluster, data_dir))


def _introduce(nodes: tuple[DevNode, ...]) -> None:
    for node in nodes:
        click.echo(f"{node.name}: {node.url}  (pid {node.pid}, log {node.log_path})")
    first, last = nodes[0].url, nodes[-1].url
    click.echo("try:")
    click.echo(f"  curl -L -X PUT {last}/v1/kv/greeting --data-binary hello")
    click.echo(f"  curl {first}/v1/kv/greeting")
    click.echo(f"  curl {first}/v1/cluster")
