"""What the goodput policy learned in one run, as another begins with it: on made-up machines, through JSON."""

import json
from typing import Any

import numpy as np
import pytest

from cmasd.policies import GoodputPolicy
from cmasd.policies.costs import StepTable
from cmasd.policies.estimators import ESTIMATORS
from cmasd.policies.ranges import Known
from tests.unit.policies.machine import HEADS, MODEL, Confidences, Machine, sure_or_not

MOST = 5
MIXED, POOR, GOOD = sure_or_not(0.6, 0.85, 0.33), sure_or_not(1, 0.3, 0.3), sure_or_not(1, 0.9, 0.9)


def policy_of(costs: StepTable, estimator: str = "signals") -> GoodputPolicy:
    policy = GoodputPolicy(MOST, clock=lambda: 0.0, estimator=estimator)
    policy.learn_costs(costs)
    return policy


def after(costs: StepTable, confidences: Confidences, rows: int = 8, estimator: str = "signals") -> dict[str, Any]:
    """What is known when a run ends, as it is read from a file."""
    policy = policy_of(costs, estimator)
    Machine(costs, MOST, confidences, seed=7).run(policy, 1500, rows)
    learned: dict[str, Any] = json.loads(json.dumps(policy.learned()))
    return learned


def begun(costs: StepTable, learned: dict[str, Any], estimator: str = "signals") -> GoodputPolicy:
    policy = policy_of(costs, estimator)
    policy.begin_with(learned)
    return policy


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
@pytest.mark.parametrize("rows", [1, 8])
def test_what_pays_is_drafted_from_the_first_iteration(rows: int, estimator: str) -> None:
    learned = after(HEADS, GOOD, rows, estimator)
    machine = Machine(HEADS, MOST, GOOD).run(begun(HEADS, learned, estimator), 20, rows)
    new = Machine(HEADS, MOST, GOOD).run(policy_of(HEADS, estimator), 20, rows)
    assert machine.drafting() == 1.0
    assert machine.speed() > new.speed()


@pytest.mark.parametrize("rows", [8, 32])
def test_a_short_list_where_drafting_loses_loses_less(rows: int) -> None:
    """A list as short as three looks: over some seeds a third of what a policy loses that knows nothing, at most."""
    learned = after(MODEL, POOR, rows)

    def lost(knows: bool) -> list[float]:
        policies = [begun(MODEL, learned) if knows else policy_of(MODEL) for _ in range(6)]
        return [
            1 - Machine(MODEL, MOST, POOR, seed=seed).run(policy, 100, rows).speed()
            for seed, policy in enumerate(policies)
        ]

    known, new = lost(knows=True), lost(knows=False)
    assert np.mean(known) < np.mean(new) / 3
    assert np.mean(known) < 0.01


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize(("before", "now"), [(GOOD, POOR), (POOR, GOOD)], ids=["good to poor", "poor to good"])
def test_what_has_changed_since_is_found(before: Confidences, now: Confidences, rows: int) -> None:
    """Other texts: over all hardly slower than who knows nothing, and as fast in the end."""
    known = Machine(HEADS, MOST, now).run(begun(HEADS, after(HEADS, before, rows)), 2000, rows)
    new = Machine(HEADS, MOST, now).run(policy_of(HEADS), 2000, rows)
    assert known.speed() > 0.95, "never much slower than plain decoding"
    assert known.speed() > 0.97 * new.speed()
    assert known.speed(500) > 0.98 * new.speed(500)


def test_what_was_known_and_not_met_again_is_handed_on() -> None:
    learned = after(HEADS, GOOD, rows=8)
    policy = begun(HEADS, learned)
    Machine(HEADS, MOST, GOOD).run(policy, 200, rows=1)
    later = json.loads(json.dumps(policy.learned()))
    assert set(learned["leads"]) < set(later["leads"])
    for power, kept in learned["leads"].items():
        before, now = Known.of(kept), Known.of(later["leads"][power])
        assert (now.worth.mean, now.level.mean, now.pays) == (before.worth.mean, before.level.mean, before.pays)
        assert now.worth.variance > before.worth.variance, "it is older"


def test_who_has_compared_nothing_hands_nothing_on() -> None:
    assert policy_of(MODEL).learned() == {}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda learned: learned.pop("leads"),
        lambda learned: learned.pop("drafts"),
        lambda learned: learned["leads"].update({"3": [1.0]}),
        lambda learned: learned["leads"].update({"some": [0.0] * 6}),
        lambda learned: learned["drafts"].pop("counts"),
        lambda learned: learned["drafts"].update(odds=[[0.0]]),
        lambda learned: learned["drafts"].update(counts=[[1, 1]] * len(learned["drafts"]["odds"])),
    ],
)
def test_anything_else_is_refused_and_changes_nothing(spoil: Any) -> None:
    learned = after(HEADS, GOOD)
    spoil(learned)
    policy = policy_of(HEADS)
    with pytest.raises((KeyError, TypeError, ValueError)):
        policy.begin_with(learned)
    spoilt, new = Machine(HEADS, MOST, GOOD).run(policy, 50), Machine(HEADS, MOST, GOOD).run(policy_of(HEADS), 50)
    assert spoilt.told == new.told
