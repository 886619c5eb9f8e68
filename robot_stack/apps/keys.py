"""Keys of a run: who they are, and making the ones a single machine needs."""

from __future__ import annotations

import fcntl

from robot_stack.apps.layout import RunLayout
from robot_stack.config.schema import DEFAULT_EDGE
from robot_stack.core.errors import ConfigError
from robot_stack.transport.keys import KeyStore, Role

ROBOT_KEY = "robot"
EDGE_KEY = DEFAULT_EDGE
LEARNER_KEY = "learner"
VIEWER_KEY = "viewer"
OPERATOR_KEY = "operator"
POLICY_KEY = "policy"
DEVICE_KEY = "device"

_NEEDED = (
    (ROBOT_KEY, Role.ROBOT),
    (EDGE_KEY, Role.EDGE),
    (LEARNER_KEY, Role.LEARNER),
    (VIEWER_KEY, Role.VIEWER),
    (OPERATOR_KEY, Role.OPERATOR),
    (POLICY_KEY, Role.POLICY),
    (DEVICE_KEY, Role.DEVICE),
)


def ensure_keys(layout: RunLayout) -> KeyStore:
    """The run's keys; those missing are made. For runs on one machine, where all keys lie in one place.

    Every edge has a key of its own under its own name; ConfigError if that is the name of another kind of key.
    Several processes of a new run may start at once: one of them makes the keys, the others wait for it.
    """
    store = KeyStore(layout.keys)
    layout.root.mkdir(parents=True, exist_ok=True)
    with (layout.root / "keys.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = {info.name: info.role for info in store.list()}
        for name, role in (*_NEEDED, (layout.edge_name, Role.EDGE)):
            if name not in known:
                known[name] = store.make(name, role).role
    if known[layout.edge_name] is not Role.EDGE:
        raise ConfigError(
            f"edge.name = '{layout.edge_name}' is the name of a key of role {known[layout.edge_name].value} in "
            f"{layout.keys}; choose another name"
        )
    return store
