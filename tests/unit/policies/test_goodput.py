"""The goodput policy: Theta by hand, when it stops a draft, and when it gives the drafter up and tries it again."""

from itertools import groupby
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmasd.policies import GoodputPolicy, Observation
from cmasd.policies.acceptance import REFIT_EVERY
from cmasd.policies.costs import ENOUGH, IterationCosts, StepTable
from cmasd.policies.goodput import (
    FIRST_TRIAL_ROWS,
    LEARNED_EVERY,
    LONGEST_NEAR_REST,
    LONGEST_REST,
    PLAIN,
    PLAIN_EVERY,
    RATES_EVERY,
    SHORTEST_REST,
    STALE,
    TRIAL_ROWS,
)
from tests.unit.policies.iterations import iteration

ROWS = 4
LOST_FIRST_TRIAL, FIRST_TRIAL = (rows // ROWS for rows in FIRST_TRIAL_ROWS)
LOST_TRIAL, LONG_TRIAL = (rows // ROWS for rows in TRIAL_ROWS)
"""Iterations."""


def policy_of(verify: list[float], draft: float = 0.1) -> GoodputPolicy:
    """`verify`: seconds for windows of 1, 2, ... tokens, whatever the number of rows."""
    policy = GoodputPolicy(max_draft_tokens=len(verify) - 1)
    policy.costs = IterationCosts(StepTable((1,), (tuple(verify),), (draft,)))
    return policy


def live(policy: GoodputPolicy, iterations: int, accepted: int, confidence: float = 0.5) -> list[int]:
    """Drafted tokens of each iteration, when every row accepts `accepted` of them and costs are those of the table."""
    assert policy.costs is not None
    lengths = []
    for _ in range(iterations):
        drafted = policy.plan(ROWS)
        kept = min(accepted, drafted)
        draft, verdict = iteration(torch.full((ROWS, drafted), confidence), [drafted] * ROWS, [kept] * ROWS)
        policy.observe(Observation(draft, verdict, policy.costs.table.seconds(ROWS, drafted), is_typical=True))
        lengths.append(drafted)
    return lengths


def costs_of(verify: list[float], draft: float = 0.1) -> IterationCosts:
    """That have seen plain iterations."""
    costs = policy_of(verify, draft).costs
    assert costs is not None
    for _ in range(ENOUGH):
        costs.observe(ROWS, 0, verify[0])
    return costs


def runs(lengths: list[int]) -> list[tuple[bool, int]]:
    """(whether it drafted, for how many iterations in a row)."""
    return [(drafts, len(list(group))) for drafts, group in groupby(length > 0 for length in lengths)]


# -------------------------------------------------------------------- Theta


def test_goodput_by_hand() -> None:
    """Nothing judged yet: three of four are assumed to be accepted at each position."""
    theta = policy_of([1.0, 1.2, 1.5]).goodput(rows=2)
    assert theta == pytest.approx([2 / 1.0, 2 * 1.75 / 1.3, 2 * (1 + 0.75 + 0.75**2) / 1.7])


def test_goodput_follows_what_was_accepted() -> None:
    """Of four rows all accept one of two tokens: rates 7/8 and 3/8 with what is assumed beforehand."""
    policy = policy_of([1.0, 1.2, 1.5])
    live(policy, 1, accepted=1)
    assert policy.goodput(rows=1) == pytest.approx([1.0, (1 + 7 / 8) / 1.3, (1 + 7 / 8 + 7 / 8 * 3 / 8) / 1.7])


@pytest.mark.parametrize(("confidences", "goes_on"), [([0.9, 0.9], True), ([0.9, 0.3], False)])
def test_drafting_goes_on_while_theta_rises(confidences: list[float], goes_on: bool) -> None:
    """After one token: (2 + 1.8)/1.3 < (2 + 1.8 + 1.35)/1.7, but (2 + 1.2)/1.3 > (2 + 1.2 + 0.9)/1.7."""
    answer_B = policy_of([1.0, 1.2, 1.5]).go_on(torch.tensor([[c] for c in confidences]))
    assert answer_B.tolist() == [goes_on, goes_on]


def test_a_step_in_the_costs_is_looked_beyond() -> None:
    """The second token costs more than it brings, but with it the third and fourth are nearly free."""
    dear_then_free = policy_of([1.0, 1.0, 1.7, 1.7, 1.7], draft=0.0)
    sure_B1 = torch.tensor([[0.999]])
    theta = dear_then_free.goodput(1)
    assert theta[2] < theta[1] < max(theta[3:])
    assert dear_then_free.go_on(sure_B1).all()
    assert not policy_of([1.0, 1.0, 1.7], draft=0.0).go_on(sure_B1).any()


@settings(max_examples=60)
@given(
    st.lists(st.floats(0.1, 2.0), min_size=4, max_size=4),
    st.lists(st.lists(st.floats(0.01, 0.99), min_size=3, max_size=3), min_size=1, max_size=4),
    st.integers(1, 3),
)
def test_the_stop_is_where_no_longer_draft_has_a_higher_theta(
    steps: list[float], confidences: list[list[float]], drafted: int
) -> None:
    seconds = [sum(steps[: k + 1]) for k in range(4)]
    policy, rows = policy_of(seconds, draft=0.0), len(confidences)

    def theta(k: int) -> float:
        """Own confidences as far as they are known, then the rate that is assumed of all."""
        tokens = float(rows)
        for row in confidences:
            survival = 1.0
            for j in range(k):
                survival *= row[j] if j < drafted else 0.75
                tokens += survival
        return tokens / seconds[k]

    best = max([theta(k) for k in range(drafted + 1, 4)], default=0.0)
    if abs(best - theta(drafted)) < 1e-5:
        return
    answer_B = policy.go_on(torch.tensor(confidences)[:, :drafted])
    assert answer_B.tolist() == [best > theta(drafted)] * rows


def test_a_drafter_without_confidence() -> None:
    """NaN counts as 1/2 before anything is known; what is accepted then decides."""
    policy, nothing_BJ = policy_of([1.0, 1.2, 1.5]), torch.full((ROWS, 1), torch.nan)
    assert not policy.go_on(nothing_BJ).any(), "(1 + 0.5)/1.3 > (1 + 0.5 + 0.375)/1.7"
    assert set(live(policy, FIRST_TRIAL + 2 * REFIT_EVERY, accepted=2, confidence=torch.nan)) == {0, 2}
    assert policy.go_on(nothing_BJ).all()


def test_a_policy_that_does_not_look_plans_the_best_length() -> None:
    """Two of three tokens were always accepted, the third never, which is then not worth its step."""
    policy = policy_of([1.0, 1.1, 1.2, 1.3])
    policy.looks = False
    live(policy, FIRST_TRIAL + PLAIN, accepted=2)
    lengths = live(policy, 20, accepted=2)
    assert set(lengths) == {2}
    unsure_BK = torch.full((ROWS, 2), 0.01)
    assert policy.go_on(unsure_BK[:, :1]).all()
    assert policy.cut(unsure_BK, torch.tensor([2, 1, 2, 0])).tolist() == [2, 1, 2, 0]


def test_a_neighbour_of_the_best_length_is_measured_before_it_is_left() -> None:
    """By the table two tokens are best; three, which it has too dear, are when they are tried."""
    policy = policy_of([1.0, 1.1, 1.2, 1.6])
    policy.looks = False
    costs = costs_of([1.0, 1.1, 1.2, 1.6])
    for _ in range(ENOUGH):
        costs.observe(ROWS, 2, 1.4)
    policy.costs = costs
    theta = [ROWS, ROWS * 1.9 / 1.2, ROWS * 2.7 / 1.4, ROWS * 3.4 / 1.9]
    assert policy._best_length(theta, ROWS) == 3, "1.79 is near 1.93, 1.58 of one token is not"
    for _ in range(ENOUGH):
        costs.observe(ROWS, 3, 1.9)
    assert policy._best_length(theta, ROWS) == 2
    policy.looks = True
    assert policy._best_length(theta, ROWS) == 3, "the most, which confidence cuts"


@pytest.mark.parametrize("looks", [True, False])
def test_of_drafts_that_nobody_looks_into_some_are_learned_from(looks: bool) -> None:
    """And all of a trial."""
    policy = policy_of([1.0, 1.1, 1.2])
    policy.looks = looks
    assert policy.costs is not None
    with patch.object(policy.costs, "observe", wraps=policy.costs.observe) as observe:
        drafting = [length for length in live(policy, FIRST_TRIAL, accepted=2) if length]
        assert observe.call_count == len(drafting) == FIRST_TRIAL
        live(policy, PLAIN, accepted=2)
        observe.reset_mock()
        assert all(live(policy, 8 * LEARNED_EVERY, accepted=2))
        assert observe.call_count == (8 * LEARNED_EVERY if looks else 8)


# -------------------------------------------------------------------- drafting at all


@pytest.mark.parametrize(
    ("verify", "accepted"),
    [([1.0, 1.4, 1.7], 0), ([1.0, 1.85, 2.3], 1)],
    ids=["nothing is accepted", "one token is accepted for the price of 0.95"],
)
def test_where_plain_wins_the_drafter_rests_longer_each_time(verify: list[float], accepted: int) -> None:
    lengths = live(policy_of(verify), 4 * LONGEST_REST, accepted=accepted)
    if accepted:
        first, later, factor, longest = FIRST_TRIAL, LONG_TRIAL, 1, LONGEST_NEAR_REST
    else:
        first, later, factor, longest = LOST_FIRST_TRIAL, LOST_TRIAL, 4, LONGEST_REST
    rests = [factor * SHORTEST_REST]
    while rests[-1] < longest:
        rests.append(min(2 * factor * rests[-1], longest))
    assert rests[-1] == longest
    expected = [run for rest in [*rests, longest] for run in ((True, later), (False, rest))]
    expected[:2] = (True, first), (False, PLAIN + rests[0])
    assert runs(lengths)[: len(expected)] == expected


def test_where_drafting_pays_plain_is_measured_now_and_then() -> None:
    assert runs(live(policy_of([1.0, 1.2, 1.5]), FIRST_TRIAL + 2 * (PLAIN + PLAIN_EVERY), accepted=2)) == [
        (True, FIRST_TRIAL),
        (False, PLAIN),
        (True, PLAIN_EVERY),
        (False, PLAIN),
        (True, PLAIN_EVERY),
    ]


@pytest.mark.parametrize("rows", [1, 5, FIRST_TRIAL_ROWS[0], 1000])
def test_a_first_trial_that_is_lost_ends_when_enough_rows_were_seen(rows: int) -> None:
    policy, iterations = policy_of([1.0, 1.5]), 0
    while policy.plan(rows):
        draft, verdict = iteration(torch.full((rows, 1), 0.5), [1] * rows, [0] * rows)
        policy.observe(Observation(draft, verdict, 9.0, is_typical=True))
        iterations += 1
    assert (iterations - 1) * rows < FIRST_TRIAL_ROWS[0] <= iterations * rows


def test_a_trial_counts_the_rows_that_it_saw() -> None:
    """Begun with one row, it is over soon when many more come: not after as many iterations as one needs."""
    policy = policy_of([1.0, 1.5])
    rows_seen: list[int] = []
    while (rows := 1 if len(rows_seen) < 4 else 16) and policy.plan(rows):
        draft, verdict = iteration(torch.full((rows, 1), 0.5), [1] * rows, [0] * rows)
        policy.observe(Observation(draft, verdict, 9.0, is_typical=True))
        rows_seen.append(rows)
    assert rows_seen == [1] * 4 + [16] * 4


def test_a_trial_ends_where_rows_come_for_which_even_perfect_drafts_would_not_pay() -> None:
    """And is made anew, from the start, once fewer are left."""
    policy = GoodputPolicy(max_draft_tokens=1)
    policy.costs = IterationCosts(StepTable((1, 16), ((1.0, 1.2), (4.0, 8.0)), (0.1, 0.5)))
    draft, verdict = iteration(torch.full((1, 1), 0.5), [1], [1])
    plain = iteration(torch.zeros(16, 0), [0] * 16, [0] * 16)
    for _ in range(4):
        assert policy.plan(1) == 1
        policy.observe(Observation(draft, verdict, 1.3, is_typical=True))
    for _ in range(SHORTEST_REST):
        assert policy.plan(16) == 0
        policy.observe(Observation(*plain, 4.0, is_typical=True))
    for _ in range(FIRST_TRIAL_ROWS[0]):
        assert policy.plan(1) == 1
        policy.observe(Observation(draft, verdict, 1.3, is_typical=True))


def test_a_trial_that_succeeds_ends_the_long_rests() -> None:
    """The same acceptance, but drafting gets cheap for a while."""
    policy = policy_of([1.0, 1.2, 1.25, 1.3], draft=0.82)
    assert runs(live(policy, FIRST_TRIAL + PLAIN + LONG_TRIAL + 3 * SHORTEST_REST, accepted=1)) == [
        (True, FIRST_TRIAL),
        (False, PLAIN + SHORTEST_REST),
        (True, LONG_TRIAL),
        (False, 2 * SHORTEST_REST),
    ]
    dear, policy.costs = policy.costs, costs_of([1.0, 1.2, 1.25, 1.3])
    assert runs(live(policy, 3 * LONG_TRIAL + 3, accepted=1)) == [(True, 3 * LONG_TRIAL + 3)]
    policy.costs = dear
    (drafts_on, until), *others = runs(live(policy, RATES_EVERY + PLAIN + SHORTEST_REST, accepted=1))
    assert drafts_on
    assert until < RATES_EVERY, "it looks at its rates and costs again"
    assert others == [(False, PLAIN + SHORTEST_REST), (True, RATES_EVERY - until)], "at plain too, before it rests"


def test_plain_is_timed_with_as_many_rows_before_drafting_is_trusted_to_pay() -> None:
    """With one row it pays; sixteen rows come, with which plain iterations are faster than one would think."""
    policy = GoodputPolicy(max_draft_tokens=1)
    policy.costs = IterationCosts(StepTable((1, 16), ((1.0, 1.2), (4.0, 4.8)), (0.1, 0.4)))
    plain_seconds = {1: 1.0, 16: 2.0}

    def lengths(rows: int, iterations: int) -> list[int]:
        made = []
        for _ in range(iterations):
            drafted = policy.plan(rows)
            draft, verdict = iteration(torch.full((rows, drafted), 0.5), [drafted] * rows, [drafted] * rows)
            assert policy.costs is not None
            seconds = policy.costs.table.seconds(rows, 1) if drafted else plain_seconds[rows]
            policy.observe(Observation(draft, verdict, seconds, is_typical=True))
            made.append(drafted)
        return made

    assert runs(lengths(1, FIRST_TRIAL_ROWS[1] + PLAIN + STALE // 2))[-1] == (True, STALE // 2)
    (drafts_on, until), *others = runs(lengths(16, RATES_EVERY + PLAIN + SHORTEST_REST // 2))
    assert drafts_on
    assert until <= RATES_EVERY
    assert others == [(False, RATES_EVERY + PLAIN + SHORTEST_REST // 2 - until)]


def test_drafting_that_has_begun_goes_on_for_less_gain() -> None:
    """Two tokens for 1.9 are too little to begin with, and enough to stay; for 1.96 they are not."""
    policy = policy_of([1.0, 1.2], draft=0.5)
    live(policy, FIRST_TRIAL + PLAIN + RATES_EVERY, accepted=1)
    policy.costs = costs_of([1.0, 1.2], draft=0.70)
    assert runs(live(policy, PLAIN_EVERY // 2, accepted=1)) == [(True, PLAIN_EVERY // 2)]
    policy.costs = costs_of([1.0, 1.2], draft=0.76)
    assert not runs(live(policy, PLAIN_EVERY // 2, accepted=1))[-1][0]
    policy.costs = costs_of([1.0, 1.2], draft=0.70)
    assert not runs(live(policy, 4 * SHORTEST_REST, accepted=1))[-1][0]


def test_where_even_perfect_drafts_would_not_pay_none_is_tried() -> None:
    """It asks again after a rest, and tries once costs allow."""
    policy = policy_of([1.0, 1.2, 1.3], draft=0.85)
    assert policy.most_gain(ROWS) == pytest.approx(3 / 3.0)
    assert runs(live(policy, 3 * LONGEST_REST, accepted=2)) == [(False, 3 * LONGEST_REST)]
    policy.costs = policy_of([1.0, 1.2, 1.3], draft=0.6).costs
    assert runs(live(policy, 2 * SHORTEST_REST, accepted=2))[-1][0]


def test_measured_seconds_overrule_the_table() -> None:
    """By the table drafting pays; what iterations take says otherwise, and only typical ones are asked."""
    for is_typical, drafts_on in ((True, False), (False, True)):
        policy = policy_of([1.0, 1.2, 1.5])
        for _ in range(FIRST_TRIAL):
            draft, verdict = iteration(torch.full((ROWS, 2), 0.5), [2] * ROWS, [2] * ROWS)
            policy.observe(Observation(draft, verdict, 100.0, is_typical))
        plain = iteration(torch.zeros(ROWS, 0), [0] * ROWS, [0] * ROWS)
        policy.observe(Observation(*plain, 1.0, is_typical=True))
        assert (policy.plan(ROWS) > 0) == drafts_on


def test_an_iteration_that_had_no_room_to_draft_uses_up_no_trial() -> None:
    """Rows at their limit draft nothing, although the policy asked for it."""
    policy = policy_of([1.0, 1.4, 1.7])
    for _ in range(2 * FIRST_TRIAL):
        assert policy.plan(ROWS) == 2
        policy.observe(Observation(*iteration(torch.zeros(ROWS, 0), [0] * ROWS, [0] * ROWS), 1.0, is_typical=True))
    assert runs(live(policy, LOST_FIRST_TRIAL + 1, accepted=0)) == [(True, LOST_FIRST_TRIAL), (False, 1)]
