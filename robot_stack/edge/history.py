"""What a policy that looks back sees: the features of the control steps before this one."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from robot_stack.core.errors import PolicyError
from robot_stack.core.messages import Features
from robot_stack.core.specs import PolicySpec


class History:
    """The features of an episode's last steps, oldest first: never more than asked for, and no array is copied.

    A gap in the steps' numbers, as at the beginning of an episode, empties it: what came before belongs to something
    else.

    Args:
        keys: features that are kept; images too, where the policy reads them.
        length: steps that are kept, 0 for none.
    """

    def __init__(self, keys: Collection[str], length: int) -> None:
        if length < 0:
            raise PolicyError(f"a history of {length} steps; allowed: 0 or more")
        self._keys = tuple(keys)
        self._frames: deque[Features] = deque(maxlen=length)
        self._next_index = 0

    @classmethod
    def of(cls, policy: PolicySpec | None) -> History:
        """What this policy reads beside the present observation; nothing for None."""
        return cls((), 0) if policy is None else cls(policy.observation, policy.history - 1)

    def add(self, index: int, features: Features) -> tuple[Features, ...]:
        """The features of the steps before step `index`; then this step's are kept."""
        if index == 0 or index != self._next_index:
            self._frames.clear()
        past = tuple(self._frames)
        self._frames.append({key: features[key] for key in self._keys if key in features})
        self._next_index = index + 1
        return past
