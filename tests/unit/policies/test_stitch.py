"""Who is sure, and how long rows wait for each other."""

import numpy as np
import pytest
import torch

from cmasd.policies.costs import StepTable
from cmasd.policies.stitch import StitchPolicy, SwitchHabits, best_gathering

STREAMED = StepTable((1, 8), ((1.0,) * 5, (1.0,) * 5), (0.3, 0.3))
"""Forwards wait for weights alone: they cost the same for one row as for eight, however many tokens they read."""
COUNTED = StepTable((1, 8), (tuple(float(t) for t in range(1, 6)), tuple(8.0 * t for t in range(1, 6))), (0.01, 0.01))
"""Every token of the large model costs the same, and the small model nothing to speak of."""


def policy_of(tau: float = 0.02, max_wait: int = 8, costs: StepTable | None = None) -> StitchPolicy:
    policy = StitchPolicy(tau, 4, speculates=False, max_wait=max_wait)
    if costs is not None:
        policy.learn_costs(costs)
    return policy


@pytest.mark.parametrize(("tau", "sure"), [(0.0, [0, 0, 0, 0]), (0.02, [1, 1, 0, 0]), (1.0, [1, 1, 1, 1])])
def test_who_is_sure(tau: float, sure: list[int]) -> None:
    """1 - H/ln V of a distribution without any doubt, of one with little, of one with more, and of an even one."""
    certainty_B = torch.tensor([1.0, 0.985, 0.97, 0.0])
    for is_large in (False, True):
        assert policy_of(tau).is_sure(certainty_B, is_large).int().tolist() == sure


def test_the_large_model_may_have_a_tau_of_its_own() -> None:
    certainty_B = torch.tensor([1.0, 0.985, 0.97, 0.0])
    policy = policy_of(0.02)
    policy.tau_large = 1.0
    assert policy.is_sure(certainty_B, is_large=False).int().tolist() == [1, 1, 0, 0]
    assert policy.is_sure(certainty_B, is_large=True).int().tolist() == [1, 1, 1, 1]
    policy.tau = 0.0
    assert not policy.is_sure(certainty_B, is_large=True).any(), "the large model says all"


def test_a_row_that_is_alone_never_waits() -> None:
    policy = policy_of(costs=STREAMED)
    assert policy.is_due(ready=1, others=0, waited=0)
    assert not policy.is_due(ready=0, others=1, waited=0)


def test_nobody_waits_where_costs_are_not_known() -> None:
    assert policy_of().is_due(ready=1, others=7, waited=0)


def test_rows_gather_where_a_forward_costs_the_same_for_all() -> None:
    policy = policy_of(costs=STREAMED)
    assert not policy.is_due(ready=1, others=7, waited=0)
    assert policy.is_due(ready=7, others=1, waited=0)


def test_rows_do_not_gather_where_each_costs_as_much() -> None:
    assert policy_of(costs=COUNTED).is_due(ready=1, others=7, waited=0)


def test_no_row_waits_longer_than_it_may() -> None:
    policy = policy_of(max_wait=3, costs=STREAMED)
    assert [policy.is_due(ready=1, others=7, waited=waited) for waited in range(5)] == [False] * 3 + [True] * 2


def simulated(gather: int, rows: int, habits: SwitchHabits, costs: StepTable, seed: int = 0) -> float:
    """Tokens per second of rows that go between the models at random, when the large one runs for `gather` of them."""
    rng, waiting, tokens, seconds = np.random.default_rng(seed), 0, 0, 0.0
    small = [costs.draft_seconds(n) for n in range(rows + 1)]
    large = [0.0, *(costs.verify_seconds(n, n * habits.reading) for n in range(1, rows + 1))]
    for dropping, returning in rng.random((4000, 2, rows)).tolist():
        if others := rows - waiting:
            dropped = sum(one < habits.dropping for one in dropping[:others])
            tokens, seconds = tokens + others - dropped, seconds + small[others]
            waiting += dropped
        if waiting >= min(gather, rows):
            tokens, seconds = tokens + waiting, seconds + large[waiting]
            waiting -= sum(one < habits.returning for one in returning[:waiting])
    return tokens / seconds


@pytest.mark.parametrize("dropped", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("costs", [STREAMED, COUNTED], ids=["streamed", "counted"])
def test_the_best_gathering_is_near_the_best_of_a_simulation(dropped: float, costs: StepTable) -> None:
    habits = SwitchHabits(small=1000.0, dropped=1000 * dropped, large=100.0, returned=60.0, read=100.0)
    chosen = best_gathering(8, habits, costs.draft_seconds, lambda rows, tokens: costs.verify_seconds(rows, tokens))
    rates = [simulated(gather, 8, habits, costs) for gather in range(1, 9)]
    assert rates[chosen - 1] > 0.95 * max(rates)


def test_habits_are_learned_and_forgotten() -> None:
    """Rows that are handed over all the time gather by themselves; such that hardly ever are must not wait for long."""
    policy = policy_of(max_wait=1000, costs=STREAMED)
    for _ in range(500):
        policy.learn(small=8, dropped=4, large=4, returned=4, read=4)
    often = policy._gather(8)
    for _ in range(2000):
        policy.learn(small=8, dropped=0, large=0, returned=0, read=0)
    rarely = policy._gather(8)
    assert rarely < often


def test_long_windows_cost_what_they_grow_by() -> None:
    """The table ends at five tokens a row; a row that brings fifteen costs three times as much, not the same."""
    policy = policy_of(costs=COUNTED)
    assert policy._large_seconds(8, 8 * 15) == pytest.approx(8 * 15)
    assert policy_of(costs=STREAMED)._large_seconds(8, 8 * 15) == pytest.approx(1.0)
