"""Which of three values the gripper takes: a small deep Q-network beside the actor (HIL-SERL, arXiv 2410.21845).

The values are learned from the best next choice of the network as its moving average values it (double Q-learning,
arXiv 1509.06461). A choice other than the middle costs a penalty, so that the gripper does not flutter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from policies.gaussian.actor import grasp_network
from policies.gaussian.config import GaussianConfig
from robot_stack.learner.algorithms.adamw import adamw, adamw_tensors
from robot_stack.learner.algorithms.settings.sac import GraspConfig
from robot_stack.learner.algorithms.training import Sharing, average, descend

_MIDDLE = 1


class GraspCritic:
    """The network, its target and its update."""

    def __init__(
        self,
        config: GraspConfig,
        actor: GaussianConfig,
        observation_dim: int,
        generator: torch.Generator,
        sharing: Sharing | None = None,
    ) -> None:
        self._config, self._sharing = config, sharing
        self.network = grasp_network(actor, observation_dim, generator)
        self._target = grasp_network(actor, observation_dim, torch.Generator()).requires_grad_(False)
        self._target.load_state_dict(self.network.state_dict())
        self._optimizer = adamw([self.network.flat], config.lr)

    def learn(
        self,
        observation: Tensor,
        gripper: Tensor,
        return_n: Tensor,
        bootstrap: Tensor,
        next_observation: Tensor,
        *,
        polyak: float,
        max_norm: float,
        updates: int,
    ) -> dict[str, float]:
        """One update from standardised observations (B, D) and what the gripper was told, (B,) in [-1, 1]."""
        choice = gripper.round().long() + _MIDDLE
        with torch.no_grad():
            best = self.network(next_observation)[0].argmax(dim=1, keepdim=True)
            value = self._target(next_observation)[0].gather(1, best)[:, 0]
            target = return_n - self._config.penalty * (choice != _MIDDLE) + bootstrap * value
        estimate = self.network(observation)[0].gather(1, choice[:, None])[:, 0]
        loss = (estimate - target).square().mean()
        descend(loss, self.network.flat, self._optimizer, max_norm, updates, self._sharing)
        average(self._target.flat, self.network.flat, polyak)
        return {"grasp_loss": loss.item(), "grasp_q_mean": estimate.mean().item()}

    def state_tensors(self) -> dict[str, Tensor]:
        """Every tensor that learning depends on, by name; not copies."""
        tensors = {f"grasp.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"grasp_target.{name}": value for name, value in self._target.state_dict().items()}
        return tensors | adamw_tensors(self._optimizer, "grasp_optimizer")
