"""Everything that is compared: policy families, solvers, cache schedules and back-ends, and their combinations."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, structs

from policies.acceleration.calibration import Method
from policies.diffusion.config import TransformerConfig, UNetConfig
from policies.flow.config import ExpertConfig
from policies.generative.config import DiffusionChain, FlowPath, NetConfig, Process, SolverConfig
from robot_stack.config.compose import DEFAULTS
from robot_stack.config.policies import POLICY_PRESETS
from robot_stack.config.schema import PolicySettings

BackendName = Literal["eager", "onnx", "compiled"]
BACKENDS: tuple[BackendName, ...] = ("eager", "onnx", "compiled")
MARGIN = 0.03


class Cache(Struct, frozen=True, kw_only=True, order=True):
    """A cache schedule: how it is found, and updates of each block (the first call's included)."""

    method: Method
    budget: int

    def __str__(self) -> str:
        return f"{self.method}-{self.budget}"


class Configuration(Struct, frozen=True, kw_only=True):
    """One way of sampling from the policies of a family; the back-end does not change what is sampled."""

    family: str
    solver: SolverConfig
    cache: Cache | None = None

    def __str__(self) -> str:
        cached = "" if self.cache is None else f"+{self.cache}"
        return f"{self.family}/{self.solver.kind}-{self.solver.steps}{cached}"

    @property
    def uncached(self) -> Configuration:
        return Configuration(family=self.family, solver=self.solver)


class Family(Struct, frozen=True, kw_only=True):
    """A kind of policy and all ways of sampling from it; `solvers[0]` is the reference that others are paired with.

    Attributes:
        watched: the solver of the rollouts that are run while training.
        headline: the cache whose effect alone is stated, on `solvers[0]`.
        caches: for each solver, by kind and steps, the caches to try.
        lr, steps, batch_size: of the training. rollout_every: steps of it between two rollouts that are watched.
        shipped: a preset of the stack: its own training and horizon are taken instead.
    """

    net: NetConfig
    process: Process
    solvers: tuple[SolverConfig, ...]
    watched: SolverConfig
    headline: Cache
    caches: dict[str, tuple[Cache, ...]]
    lr: float = 1e-3
    steps: int = 4000
    batch_size: int = 128
    rollout_every: int = 1000
    shipped: PolicySettings | None = None

    def configurations(self, name: str) -> list[Configuration]:
        """All combinations, the reference first."""
        return [
            Configuration(family=name, solver=solver, cache=cache)
            for solver in self.solvers
            for cache in (None, *self.caches.get(f"{solver.kind}-{solver.steps}", ()))
        ]

    def headline_pair(self, name: str) -> tuple[Configuration, Configuration]:
        """The reference without and with the headline's cache."""
        reference = Configuration(family=name, solver=self.solvers[0])
        return reference, Configuration(family=name, solver=self.solvers[0], cache=self.headline)


def _solvers(*names: str) -> tuple[SolverConfig, ...]:
    pairs = [name.split("-") for name in names]
    return tuple(SolverConfig(kind=kind, steps=int(steps)) for kind, steps in pairs)  # type: ignore[arg-type]


def _caches(*names: str) -> tuple[Cache, ...]:
    pairs = [name.split("-") for name in names]
    return tuple(Cache(method=method, budget=int(budget)) for method, budget in pairs)  # type: ignore[arg-type]


CHAIN = DiffusionChain(train_steps=100, prediction="epsilon")
SHIPPED = POLICY_PRESETS[DEFAULTS["policy"]]

FAMILIES = {
    "transformer": Family(
        net=TransformerConfig(embed_dim=96, layers=8, heads=4),
        process=CHAIN,
        solvers=_solvers(
            "ddpm-100", "ddim-50", "ddim-20", "ddim-10", "ddim-5", "ddim-3", "dpmpp-20", "dpmpp-10", "dpmpp-5"
        ),
        watched=SolverConfig(kind="ddim", steps=10),
        headline=Cache(method="adaptive", budget=10),
        caches={
            "ddpm-100": _caches(
                *("adaptive-20", "adaptive-10", "adaptive-5", "adaptive_no_union-10", "uniform-20", "uniform-10"),
                *("teacache-20", "teacache-10"),
            ),
            "ddim-20": _caches("adaptive-10", "adaptive-5", "uniform-10", "uniform-5", "teacache-10"),
            "ddim-10": _caches("adaptive-5", "adaptive-3", "uniform-5", "teacache-5"),
            "ddim-5": _caches("adaptive-3", "uniform-3"),
            "dpmpp-10": _caches("adaptive-5", "uniform-5"),
            "dpmpp-5": _caches(
                "adaptive-3",
            ),
        },
    ),
    "unet": Family(
        net=UNetConfig(channels=(64, 128), kernel=5, groups=8, time_dim=64),
        process=CHAIN,
        solvers=_solvers("ddpm-100", "ddim-20", "ddim-10", "ddim-5", "dpmpp-10", "dpmpp-5"),
        watched=SolverConfig(kind="ddim", steps=10),
        headline=Cache(method="deepcache", budget=10),
        caches={
            "ddpm-100": _caches("deepcache-20", "deepcache-10", "adaptive-20", "adaptive-10"),
            "ddim-20": _caches("deepcache-10", "adaptive-10"),
            "ddim-10": _caches("deepcache-5", "adaptive-5"),
            "dpmpp-10": _caches("deepcache-5"),
        },
    ),
    "flow": Family(
        net=ExpertConfig(embed_dim=96, layers=6, heads=4),
        process=FlowPath(),
        solvers=_solvers("euler-10", "euler-4", "euler-2", "euler-1", "heun-5", "heun-2"),
        watched=SolverConfig(kind="euler", steps=4),
        headline=Cache(method="adaptive", budget=4),
        caches={
            "euler-10": _caches("adaptive-5", "adaptive-4", "uniform-5", "uniform-4", "teacache-5"),
            "euler-4": _caches("adaptive-2", "uniform-2"),
        },
    ),
    "shipped": Family(
        net=SHIPPED.training.net,
        process=SHIPPED.training.process,
        solvers=_solvers("ddim-5", "ddim-10", "ddim-3", "ddim-2"),
        watched=SHIPPED.training.solver,
        headline=Cache(method="adaptive", budget=3),
        caches={"ddim-5": _caches("adaptive-3")},
        steps=SHIPPED.training.steps,
        shipped=SHIPPED,
    ),
}


class Training(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Network and training of a family on one task, where they differ from those of `Family`."""

    net: NetConfig | None = None
    process: Process | None = None
    steps: int | None = None
    lr: float | None = None
    rollout_every: int | None = None


_SAMPLES = Training(process=DiffusionChain(train_steps=100, prediction="sample"))
TRAININGS = {
    "peg_insertion": {"transformer": _SAMPLES, "unet": _SAMPLES},
    "pusht": {
        "transformer": Training(
            net=TransformerConfig(embed_dim=64, layers=3, heads=4, detail=3),
            process=_SAMPLES.process,
            steps=12_000,
            rollout_every=3_000,
        ),
        "unet": Training(
            net=UNetConfig(channels=(48, 96), kernel=3, groups=8, time_dim=128, detail=3),
            steps=12_000,
            rollout_every=3_000,
        ),
        "flow": Training(
            net=ExpertConfig(embed_dim=64, layers=3, heads=4, detail=3), steps=12_000, rollout_every=3_000
        ),
    },
}
"""By task, then by family. Transformers that predict the noise had no success after 4,000 updates on peg insertion and
12,000 on PushT; predicting the actions themselves, they had. PushT: small networks, so that one core makes many updates
in the time that there is."""


def family_on(task: str, name: str, family: Family) -> Family:
    """The family as it is trained on that task."""
    changed = structs.asdict(TRAININGS.get(task, {}).get(name, Training()))
    return structs.replace(family, **{key: value for key, value in changed.items() if value is not None})


QUICK_CHAIN = DiffusionChain(train_steps=10, prediction="epsilon")

QUICK_FAMILIES = {
    "transformer": Family(
        net=TransformerConfig(embed_dim=16, layers=2, heads=2),
        process=QUICK_CHAIN,
        solvers=_solvers("ddpm-10", "ddim-4", "dpmpp-4"),
        watched=SolverConfig(kind="ddim", steps=2),
        headline=Cache(method="adaptive", budget=4),
        caches={"ddpm-10": _caches("adaptive-4", "uniform-4"), "ddim-4": _caches("adaptive-2")},
        steps=60,
    ),
    "unet": Family(
        net=UNetConfig(channels=(16, 32), kernel=3, groups=4, time_dim=16),
        process=QUICK_CHAIN,
        solvers=_solvers("ddpm-10", "ddim-4"),
        watched=SolverConfig(kind="ddim", steps=2),
        headline=Cache(method="deepcache", budget=4),
        caches={"ddpm-10": _caches("deepcache-4")},
        steps=60,
    ),
    "flow": Family(
        net=ExpertConfig(embed_dim=16, layers=2, heads=2),
        process=FlowPath(),
        solvers=_solvers("euler-4", "euler-2", "heun-2"),
        watched=SolverConfig(kind="euler", steps=1),
        headline=Cache(method="adaptive", budget=2),
        caches={"euler-4": _caches("adaptive-2")},
        steps=60,
    ),
}
"""Tiny, hardly trained: they show that everything runs."""
