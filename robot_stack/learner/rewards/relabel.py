"""How a learner uses a reward model: recorded rewards and ends are replaced before its curator sees the steps.

A step is judged by what was seen after its action, so it is held until the next step of its episode arrives or the
episode ends. Everything is a function of the sequence of steps alone.

A success that the model sees, and that is confirmed, ends the episode: that step is terminated, and what was recorded
after it is left out. So an episode has at most one success. An end that was recorded because of a success that the
model does not see becomes a truncation: the state after it goes on having a value. Where the recording lacks what the
base policy would have done there, replays leave that last step out. A recorded end without a success (the object fell)
stays what it is.

An episode whose beginning is not known, because retention dropped it, is left out: it may have succeeded there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from robot_stack.buffer.replay import ReplayStep
from robot_stack.core.messages import Features, FloatArray, Step, Verdict
from robot_stack.core.protocols import Judgement, Outcome, RewardModel
from robot_stack.learner.curation import Curator, Kept
from robot_stack.learner.rewards.outcomes import OTHER_REWARD, EpisodeKey, episode_key


@dataclass(slots=True)
class Counts:
    """Of episodes that were judged: how many there were, and how their successes compare with the recorded ones.

    `early`: successes that were seen before the episode's recorded end. `unconfirmed`: steps with a positive verdict
    that did not count.
    """

    episodes: int = 0
    successes: int = 0
    early: int = 0
    recorded_successes: int = 0
    unconfirmed: int = 0
    left_out_steps: int = 0

    def metrics(self) -> dict[str, float]:
        return {f"reward_{name}": float(value) for name, value in dataclasses.asdict(self).items()}


@dataclass(slots=True)
class _Episode:
    """What is known of a robot's present episode. `over`: it succeeded, or its beginning is not known."""

    key: EpisodeKey
    over: bool
    held: tuple[Step, ReplayStep] | None = None
    streak: int = 0


@dataclass(frozen=True, slots=True)
class _After:
    """The state after a step, as recorded, flattened, and what the base policy would have done there."""

    features: Features | None
    observation: FloatArray | None
    action_base: FloatArray | None


class RewardedCurator:
    """Gives the steps to another curator with the rewards and ends that a model says; a `Curator`.

    `consecutive`: so many positive verdicts in a row make a success, unless the model is sure. A refused action
    achieved nothing: its verdict counts in the row, but a success is only ever that of an action that was executed.
    """

    selective = True

    def __init__(self, curator: Curator, model: RewardModel, consecutive: int = 1) -> None:
        self.counts = Counts()
        self._curator = curator
        self._model = model
        self._consecutive = consecutive
        self._episodes: dict[tuple[str, str], _Episode] = {}

    def take(self, step: Step, replayed: ReplayStep) -> Iterable[Kept]:
        robot, kept = (step.run, step.robot), list[Kept]()
        episode = self._episodes.get(robot)
        if episode is None or episode.key != episode_key(step):
            if episode is not None:
                kept += self._interrupted(episode)
            episode = self._episodes[robot] = _Episode(key=episode_key(step), over=step.index != 0)
            self.counts.episodes += step.index == 0
        elif episode.held is not None and episode.held[0].index + 1 != step.index:
            kept += self._interrupted(episode)
        elif episode.held is not None:
            kept += self._judged(episode, _After(step.observation, replayed.observation, replayed.action_base))
        if episode.over:
            self.counts.left_out_steps += 1
        else:
            episode.held = (step, replayed)
        if step.terminated or step.truncated:
            self.counts.recorded_successes += step.success
            if episode.held is not None:
                final = _After(step.final_observation, replayed.final_observation, replayed.final_action_base)
                kept += self._judged(episode, final)
            del self._episodes[robot]
        return kept

    def _interrupted(self, episode: _Episode) -> Iterator[Kept]:
        """The held step was followed by nothing that belongs to it: nobody knows what its action did."""
        if episode.held is not None:
            step, replayed = episode.held
            episode.held, episode.streak = None, 0
            yield from self._given(step, replayed, OTHER_REWARD, success=False)

    def _judged(self, episode: _Episode, after: _After) -> list[Kept]:
        if episode.held is None:
            return []
        step, replayed = episode.held
        episode.held = None
        judgement = self._model.judge([Outcome(step=step, after=after.features)])[0]
        if not self._confirmed(episode, step, judgement):
            reward = OTHER_REWARD if judgement.success else judgement.reward
            self.counts.unconfirmed += judgement.success
            return list(self._given(step, replayed, reward, success=False))
        episode.over = True
        self.counts.successes += 1
        self.counts.early += not (step.terminated or step.truncated)
        step = msgspec.structs.replace(step, final_observation=after.features, final_action_base=after.action_base)
        replayed = dataclasses.replace(
            replayed, final_observation=after.observation, final_action_base=after.action_base
        )
        return list(self._given(step, replayed, judgement.reward, success=True))

    def _confirmed(self, episode: _Episode, step: Step, judgement: Judgement) -> bool:
        episode.streak = episode.streak + 1 if judgement.success else 0
        enough = judgement.sure or episode.streak >= self._consecutive
        return judgement.success and enough and step.verdict is not Verdict.REFUSED

    def _given(self, step: Step, replayed: ReplayStep, reward: float, *, success: bool) -> Iterable[Kept]:
        denied = step.terminated and step.success and not success
        terminated = success or (step.terminated and not denied)
        truncated = not terminated and (step.truncated or denied)
        return self._curator.take(
            msgspec.structs.replace(step, reward=reward, success=success, terminated=terminated, truncated=truncated),
            dataclasses.replace(replayed, reward=reward, terminated=terminated, truncated=truncated),
        )
