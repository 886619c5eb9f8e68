"""Keys of a run: who they are, and making the ones a single machine needs."""

from __future__ import annotations

import fcntl

from robot_stack.apps.layout import RunLayout
from robot_stack.transport.keys import KeyStore, Role

ROBOT_KEY = "robot"
EDGE_KEY = "edge"
LEARNER_KEY = "learner"
VIEWER_KEY = "viewer"
OPERATOR_KEY = "operator"
POLICY_KEY = "policy"

_NEEDED = (
    (ROBOT_KEY, Role.ROBOT),
    (EDGE_KEY, Role.EDGE),
    (LEARNER_KEY, Role.LEARNER),
    (VIEWER_KEY, Role.VIEWER),
    (OPERATOR_KEY, Role.OPERATOR),
    (POLICY_KEY, Role.POLICY),
)


def ensure_keys(layout: RunLayout) -> KeyStore:
    """The run's keys; those missing are made. For runs on one machine, where all keys lie in one place.

    Several processes of a new run may start at once: one of them makes the keys, the others wait for it.
    """
    store = KeyStore(layout.keys)
    layout.root.mkdir(parents=True, exist_ok=True)
    with (layout.root / "keys.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = {info.name for info in store.list()}
        for name, role in _NEEDED:
            if name not in known:
                store.make(name, role)
    return store
