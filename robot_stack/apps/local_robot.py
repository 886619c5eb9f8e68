"""A robot server of one's own: for commands that need a simulated robot for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from robot_stack.apps.build import has_simulated_vendor
from robot_stack.apps.connections import free_network, network_overrides
from robot_stack.apps.layout import RunLayout
from robot_stack.apps.supervisor import Supervisor, robot_stack_command
from robot_stack.config.schema import NetworkConfig, StackConfig
from robot_stack.core.errors import UnreachableError


@contextmanager
def local_robot_server(
    config: StackConfig, overrides: Sequence[str], connect: bool = False, name: str = "robot-server-local"
) -> Iterator[NetworkConfig]:
    """Addresses of a robot server that lives as long as the context; of the running one if `connect`."""
    if connect:
        yield config.network
        return
    network = free_network(domain=has_simulated_vendor(config))
    with Supervisor(RunLayout.of(config).logs, announce=lambda _: None) as supervisor:
        everything = [*overrides, *network_overrides(network)]
        if has_simulated_vendor(config):
            supervisor.start(f"vendor-sim-of-{name}", robot_stack_command("vendor-sim", *everything))
        supervisor.start(name, robot_stack_command("robot-server", *everything))
        try:
            yield network
        except UnreachableError:
            supervisor.watch()  # if the server ended with an error, this says which
            raise
