"""`robot-stack keys make|list|revoke`."""

from __future__ import annotations

import argparse
import sys

from robot_stack.apps.layout import RunLayout
from robot_stack.config.compose import compose_config
from robot_stack.core.errors import ConfigError
from robot_stack.transport.keys import KeyStore, Role


def run_keys(arguments: argparse.Namespace) -> int:
    store = KeyStore(RunLayout.of(compose_config(arguments.overrides)).keys)
    if arguments.action == "list":
        for info in store.list():
            state = "revoked" if info.revoked else "valid"
            sys.stdout.write(f"{info.name:20} {info.role.value:10} {state:8} {info.created}\n")
        return 0
    if not arguments.name:
        raise ConfigError(f"say which key: robot-stack keys {arguments.action} NAME run=RUN")
    if arguments.action == "make":
        roles = [role.value for role in Role]
        if arguments.role not in roles:
            raise ConfigError(f"there is no role '{arguments.role}'; roles are: {', '.join(roles)}")
        store.make(arguments.name, Role(arguments.role))
        sys.stdout.write(
            f"made key '{arguments.name}' with role {arguments.role} in {store.directory}; its private half is "
            f"{store.directory}/private/{arguments.name}.json and never leaves the machine that uses it\n"
        )
        return 0
    store.revoke(arguments.name)
    sys.stdout.write(f"revoked '{arguments.name}': servers refuse it from now on\n")
    return 0
