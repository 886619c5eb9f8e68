"""LeRobot's SAC learner in LeRobot's own environment; started by `python -m benchmarks.lerobot_updates`.

    PYTHONPATH=. .venv-lerobot/bin/python -P benchmarks/lerobot_learner.py

Lines of JSON on standard input, each a `Block`, answered by one line: a list of `Passed`. A block is so many rounds of
LeRobot's learner loop: `updates` critic updates, each on a batch of its own from two of LeRobot's replay buffers (half
and half), with LeRobot's losses, optimisers (Adam), clipping and target averages, and after the last one an actor and a
temperature update. LeRobot's loop itself cannot be called: it is one function that also talks to the actor's process.
What is left out of it is what costs time and trains nothing: logging, queues, weights for the actor.
"""

from __future__ import annotations

import importlib
import sys
import time
from contextlib import redirect_stdout
from importlib.metadata import version
from typing import Any

import msgspec
import torch
from msgspec import Struct

from policies.lerobot.imports import policy_class
from robot_stack.core.errors import PolicyError
from robot_stack.core.specs import ACTION, STATE

STORED = 5_000
EPISODE = 100
WARM_ROUNDS = 3


class Sizes(Struct, frozen=True, kw_only=True):
    """What both learners have alike. `updates`: critic updates for one of the actor's, or one round."""

    critics: int
    hidden: tuple[int, ...]
    updates: int
    subset: int = 2
    observation_dim: int = 18
    action_dim: int = 7
    batch: int = 256

    @property
    def name(self) -> str:
        return f"{self.critics} critics of {'x'.join(map(str, self.hidden))}"


class Block(Struct, frozen=True, kw_only=True):
    """So many rounds, of a warm learner of these sizes. `compile`: LeRobot's own `use_torch_compile`."""

    sizes: Sizes
    compile: bool
    rounds: int


class Ready(Struct, frozen=True):
    """The first line of the answers."""

    lerobot: str
    torch: str


class Passed(Struct, frozen=True):
    """Time that one round took."""

    wall_s: float
    cpu_s: float


class Learner:
    """LeRobot's policy, buffers and optimisers. Its encoder of the state is as wide as the state: it cannot be left
    out, and so its critics and its actor have inputs of the same size as ours."""

    def __init__(self, sizes: Sizes, compiled: bool) -> None:
        self._sizes = sizes
        torch.manual_seed(0)
        self._policy = _policy(sizes, compiled).train()
        parts = self._policy.get_optim_params()
        config = self._policy.config
        self._optimizers = {
            "critic": torch.optim.Adam(self._policy.critic_ensemble.parameters(), lr=config.critic_lr),
            "actor": torch.optim.Adam(parts["actor"], lr=config.actor_lr),
            "temperature": torch.optim.Adam([self._policy.log_alpha], lr=config.temperature_lr),
        }
        self._trained = {
            "critic": list(self._policy.critic_ensemble.parameters()),
            "actor": list(self._policy.actor.parameters()),
            "temperature": [self._policy.log_alpha],
        }
        buffers = importlib.import_module("lerobot.rl.buffer")
        self._join = buffers.concatenate_batch_transitions
        self._iterators = [
            _filled(buffers.ReplayBuffer, sizes).get_iterator(sizes.batch // 2, async_prefetch=False, queue_size=2)
            for _ in range(2)
        ]
        for _ in range(WARM_ROUNDS):
            self.round()

    def round(self) -> None:
        for _ in range(self._sizes.updates):
            batch = self._batch()
            self._descend("critic", batch)
            self._policy.update_target_networks()
        self._descend("actor", batch)
        self._descend("temperature", batch)

    def _batch(self) -> dict[str, Any]:
        drawn = self._join(*(next(iterator) for iterator in self._iterators))
        for value in (drawn[ACTION], *drawn["state"].values(), *drawn["next_state"].values()):
            if torch.isnan(value).any():  # as its learner looks at every batch
                raise PolicyError("a batch of LeRobot's buffers has NaN; fill them with finite numbers")
        names = (ACTION, "reward", "state", "next_state", "done")
        return {name: drawn[name] for name in names} | {
            "observation_feature": None,
            "next_observation_feature": None,
            "complementary_info": None,
        }

    def _descend(self, model: str, batch: dict[str, Any]) -> None:
        loss = self._policy.forward(batch, model=model)[f"loss_{model}"]
        optimizer = self._optimizers[model]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained[model], self._policy.config.grad_clip_norm).item()
        optimizer.step()


def _policy(sizes: Sizes, compiled: bool) -> Any:
    policy_class("act")  # makes LeRobot's imports work beside a CPU torch
    types = importlib.import_module("lerobot.configs.types")
    settings = importlib.import_module("lerobot.policies.sac.configuration_sac")
    widths = list(sizes.hidden)
    config = settings.SACConfig(
        input_features={STATE: types.PolicyFeature(types.FeatureType.STATE, (sizes.observation_dim,))},
        output_features={ACTION: types.PolicyFeature(types.FeatureType.ACTION, (sizes.action_dim,))},
        num_critics=sizes.critics,
        num_subsample_critics=sizes.subset,
        utd_ratio=sizes.updates,
        latent_dim=sizes.observation_dim,
        critic_network_kwargs=settings.CriticNetworkConfig(hidden_dims=widths),
        actor_network_kwargs=settings.ActorNetworkConfig(hidden_dims=widths),
        use_backup_entropy=False,
        use_torch_compile=compiled,
        device="cpu",
    )
    return importlib.import_module("lerobot.policies.sac.modeling_sac").SACPolicy(config)


def _filled(kind: Any, sizes: Sizes) -> Any:
    buffer = kind(STORED, device="cpu", state_keys=[STATE], storage_device="cpu", optimize_memory=True)
    for index in range(STORED):
        state, following = (torch.randn(1, sizes.observation_dim) for _ in range(2))
        action = torch.rand(1, sizes.action_dim) * 2.0 - 1.0
        done = index % EPISODE == EPISODE - 1
        buffer.add({STATE: state}, action, float(done), {STATE: following}, done, truncated=False)
    return buffer


def timed(learner: Learner, rounds: int) -> list[Passed]:
    passed = []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        learner.round()
        passed.append(Passed(time.perf_counter() - wall, time.process_time() - cpu))
    return passed


def main() -> int:
    torch.set_num_threads(1)
    answers = sys.stdout
    with redirect_stdout(sys.stderr):  # LeRobot prints
        answers.write(msgspec.json.encode(Ready(version("lerobot"), str(torch.__version__))).decode() + "\n")
        answers.flush()
        learners: dict[tuple[str, bool], Learner] = {}
        for line in sys.stdin:
            block = msgspec.json.decode(line, type=Block)
            key = block.sizes.name, block.compile
            if key not in learners:
                learners[key] = Learner(block.sizes, block.compile)
            answers.write(msgspec.json.encode(timed(learners[key], block.rounds)).decode() + "\n")
            answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
