"""Taking over as a state machine: every wish in every phase, and what no sequence of wishes can lead to."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from robot_stack.core.seat import DRIVING, Intent, Phase
from robot_stack.edge.operator import Rule
from robot_stack.edge.takeover import TakeOver

RULES: tuple[Rule, ...] = ("rac", "hg_dagger", "demonstration")
BETWEEN, AUTO, PAUSED, REC, COR = Phase.BETWEEN, Phase.AUTONOMOUS, Phase.PAUSED, Phase.RECOVERING, Phase.CORRECTING

# Where a takeover can be: phase, has recovered, has corrected.
SITUATIONS = {
    "autonomous": (AUTO, False, False),
    "paused": (PAUSED, False, False),
    "recovering": (REC, True, False),
    "paused after a recovery": (PAUSED, True, False),
    "correcting": (COR, True, True),
    "correcting at once": (COR, False, True),
    "paused after a correction": (PAUSED, True, True),
}

# For each: the phase after hold, rewind, recover, correct, resume, finish. None: refused; over: the intervention ends.
TABLE: dict[Rule, dict[str, tuple[Phase | str | None, ...]]] = {
    "rac": {
        "autonomous": (PAUSED, REC, REC, None, AUTO, None),
        "paused": (PAUSED, REC, REC, None, AUTO, None),
        "recovering": (PAUSED, REC, REC, COR, None, "over"),
        "paused after a recovery": (PAUSED, REC, REC, COR, None, "over"),
        "correcting": (PAUSED, None, None, COR, None, "over"),
        "correcting at once": (PAUSED, None, None, None, None, "over"),
        "paused after a correction": (PAUSED, None, None, COR, None, "over"),
    },
    "hg_dagger": {
        "autonomous": (PAUSED, REC, REC, COR, AUTO, None),
        "paused": (PAUSED, REC, REC, COR, AUTO, None),
        "recovering": (PAUSED, REC, REC, COR, "over", "over"),
        "paused after a recovery": (PAUSED, REC, REC, COR, "over", "over"),
        "correcting": (PAUSED, None, None, COR, "over", "over"),
        "correcting at once": (PAUSED, None, None, COR, "over", "over"),
        "paused after a correction": (PAUSED, None, None, COR, "over", "over"),
    },
    "demonstration": {
        "autonomous": (PAUSED, REC, REC, COR, None, None),
        "paused": (PAUSED, REC, REC, COR, None, None),
        "recovering": (PAUSED, REC, REC, COR, None, "over"),
        "paused after a recovery": (PAUSED, REC, REC, COR, None, "over"),
        "correcting": (PAUSED, None, None, COR, None, "over"),
        "correcting at once": (PAUSED, None, None, COR, None, "over"),
        "paused after a correction": (PAUSED, None, None, COR, None, "over"),
    },
}
INTENTS = (Intent.HOLD, Intent.REWIND, Intent.RECOVER, Intent.CORRECT, Intent.RESUME, Intent.FINISH)


def situation(rule_: Rule, name: str) -> TakeOver:
    takeover = TakeOver(rule_)
    takeover.begin()
    takeover.phase, takeover.recovered, takeover.corrected = SITUATIONS[name]
    return takeover


def facts(takeover: TakeOver) -> tuple[object, ...]:
    return takeover.phase, takeover.acting, takeover.recovered, takeover.corrected, takeover.over


@pytest.mark.parametrize("rule_", RULES)
@pytest.mark.parametrize("name", SITUATIONS)
@pytest.mark.parametrize("intent", INTENTS, ids=lambda intent: intent.value)
def test_every_wish_in_every_phase(rule_: Rule, name: str, intent: Intent) -> None:
    takeover, expected = situation(rule_, name), TABLE[rule_][name][INTENTS.index(intent)]
    before = facts(takeover)
    refusal = takeover.ask(intent)
    if expected is None:
        assert refusal and facts(takeover) == before
    elif expected == "over":
        assert not refusal and takeover.over and takeover.phase is before[0]
    else:
        assert not refusal and takeover.phase is expected and not takeover.over


@pytest.mark.parametrize("rule_", RULES)
@pytest.mark.parametrize("intent", INTENTS, ids=lambda intent: intent.value)
def test_nothing_can_be_wanted_between_episodes(rule_: Rule, intent: Intent) -> None:
    takeover = TakeOver(rule_)
    assert "no episode" in takeover.ask(intent) and takeover.phase is BETWEEN
    takeover.begin()
    takeover.end()
    assert "no episode" in takeover.ask(intent) and takeover.phase is BETWEEN


@pytest.mark.parametrize("rule_", RULES)
@pytest.mark.parametrize("intent", INTENTS, ids=lambda intent: intent.value)
def test_when_an_intervention_ends_a_person_can_still_hold_and_then_go_on(rule_: Rule, intent: Intent) -> None:
    takeover = situation(rule_, "paused after a correction")
    takeover.ask(Intent.FINISH)
    refusal = takeover.ask(intent)
    assert (refusal == "") == (intent is Intent.HOLD)
    assert takeover.over == (intent is not Intent.HOLD)
    if not refusal:
        assert takeover.standing and not takeover.ask(Intent.CORRECT) and takeover.phase is COR


def test_what_is_asked_for_while_a_step_runs_is_judged_with_that_step() -> None:
    takeover = situation("hg_dagger", "paused")
    takeover.ask(Intent.CORRECT)
    takeover.step_begins()
    takeover.let_go()
    assert takeover.phase is PAUSED and takeover.acting is COR
    assert "after a correction" in takeover.ask(Intent.RECOVER)


def test_a_correction_that_was_let_go_before_its_first_step_never_was() -> None:
    takeover = situation("hg_dagger", "paused")
    takeover.ask(Intent.CORRECT)
    takeover.let_go()
    assert not takeover.ask(Intent.RECOVER)


class Episodes(RuleBasedStateMachine):
    """Any wishes at any time, with a control loop that runs between them."""

    @initialize(rule_=st.sampled_from(RULES))
    def start(self, rule_: Rule) -> None:
        self.rule_, self.takeover, self.driven = rule_, TakeOver(rule_), list[Phase]()

    @precondition(lambda self: self.takeover.phase is BETWEEN)
    @rule()
    def begin(self) -> None:
        self.takeover.begin()
        self.driven.clear()

    @rule(intent=st.sampled_from(INTENTS))
    def wants(self, intent: Intent) -> None:
        before, refused = facts(self.takeover), self.takeover.ask(intent)
        if refused:
            assert facts(self.takeover) == before
        elif intent in DRIVING:
            assert self.takeover.phase in (REC, COR)

    @rule()
    def lets_go(self) -> None:
        self.takeover.let_go()
        assert self.takeover.phase not in (REC, COR)

    @precondition(lambda self: self.takeover.phase is not BETWEEN and not self.takeover.standing)
    @rule()
    def step(self) -> None:
        over = self.takeover.over
        self.takeover.step_begins()
        acting = self.takeover.acting
        if acting in (REC, COR):
            self.driven.append(acting)
        if over:
            assert self.driven, "only what was driven can be over"
            self.driven.clear()
            self.takeover.handed_back() if self.rule_ == "hg_dagger" else self.takeover.end()
        elif acting is AUTO:
            assert not self.driven, "the policy never acts in the middle of an intervention"

    @rule()
    def ends(self) -> None:
        self.takeover.end()
        self.driven.clear()

    @invariant()
    def the_data_rules_hold(self) -> None:
        if not hasattr(self, "driven"):
            return
        if self.rule_ == "rac" and COR in self.driven:
            assert self.driven[0] is REC
        if self.rule_ == "rac" and self.takeover.phase is COR:
            assert self.takeover.recovered
        if COR in self.driven:
            assert REC not in self.driven[self.driven.index(COR) :]
            assert self.takeover.phase is not REC


Episodes.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_any_order_of_wishes = Episodes.TestCase
