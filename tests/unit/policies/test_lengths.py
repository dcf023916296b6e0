"""The rule by prices, against every rule that there is."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmasd.policies.base import Float64
from cmasd.policies.costs import Curve, StepTable
from cmasd.policies.lengths import choose, expected, priced, tried
from tests.unit.policies.machine import HEADS, MODEL


def table(steps: list[float], draft: float, one_pass: bool = False) -> StepTable:
    return StepTable((1,), (tuple(np.cumsum([1.0, *steps]).tolist()),), (draft,), one_pass)


def best_of_all(survival_NK: Float64, curve: Curve) -> float:
    """Speed by every combination of thresholds that tell the remembered rows apart."""
    most = survival_NK.shape[1]
    cuts = [sorted({*np.unique(survival_NK[:, place]), np.inf}) for place in range(most)]
    goes = [[-np.inf]] * most if curve.one_pass else [[*cut] for cut in cuts[:-1]] + [[np.inf]]
    best = 0.0
    for go_on in product(*goes):
        keeps = np.array(list(product(*cuts)))
        go_on_LK = np.broadcast_to(np.array(go_on), keeps.shape)
        tokens_L, seconds_L = expected(survival_NK, go_on_LK, keeps, curve)
        some_L = (survival_NK[:, None, 0] >= keeps[:, 0]).mean(0) >= 0.25  # who drafts sends a quarter at least
        best = max(best, float((tokens_L / seconds_L)[some_L].max()))
    return best


ACCEPTANCE = st.lists(st.lists(st.sampled_from([0.2, 0.5, 0.7, 0.95]), min_size=3, max_size=3), min_size=1, max_size=4)
STEPS = st.lists(st.sampled_from([0.0, 0.02, 0.1, 0.4, 0.9]), min_size=3, max_size=3)


@settings(max_examples=60, deadline=None)
@given(STEPS, ACCEPTANCE, st.sampled_from([0.0, 0.05, 0.3]), st.booleans())
def test_prices_come_near_the_best_of_all_thresholds(
    steps: list[float], acceptance: list[list[float]], draft: float, one_pass: bool
) -> None:
    """Within 8 % for costs that rise ever faster, though one price serves all places; within 20 % for any staircase."""
    survival_NK, usual_K = np.array(acceptance).cumprod(1), np.array(acceptance).mean(0)
    for near, staircase in ((0.92, sorted(steps)), (0.8, steps)):
        curve = table(staircase, draft, one_pass).curve(1)
        assert choose(survival_NK, usual_K, curve).speed >= near * best_of_all(survival_NK, curve)


@settings(max_examples=60, deadline=None)
@given(STEPS, ACCEPTANCE, st.sampled_from([0.0, 0.05, 0.3]), st.booleans(), st.integers(1, 4))
def test_no_fixed_length_is_better(
    steps: list[float], acceptance: list[list[float]], draft: float, one_pass: bool, rows: int
) -> None:
    """Whatever staircase the costs are, and however many rows."""
    survival_NK = np.array(acceptance).cumprod(1)
    costs = table(steps, draft, one_pass)
    speed = choose(survival_NK, np.array(acceptance).mean(0), costs.curve(rows)).speed
    curve = costs.curve(rows)
    for length in (1, 2, 3):
        drafting = curve.draft_R[-1] * (1 if one_pass else length)
        fixed = (1 + survival_NK[:, :length].sum(1).mean()) / (curve.verify_N[rows * length] + drafting)
        assert speed >= fixed - 1e-9


def test_expectation_by_hand() -> None:
    """Two rows in one batch: one sends two tokens of three drafted, the other none of one; 5 tokens verified in all."""
    costs = StepTable((1, 2), ((1.0,) * 4, (2.0, 3.0, 5.0, 6.0)), (0.25, 0.5))
    survival_NK = np.array([[0.9, 0.8, 0.2], [0.3, 0.3, 0.3]])
    tokens_L, seconds_L = expected(
        survival_NK, np.array([[0.5, 0.5, np.inf]]), np.array([[0.4, 0.4, 0.4]]), costs.curve(2)
    )
    assert tokens_L == pytest.approx([1 + (0.9 + 0.8) / 2])
    assert seconds_L == pytest.approx([3.0 + 0.5 + 0.25 + 0.25])


def test_a_step_in_the_costs_is_looked_beyond() -> None:
    """The second token costs more than it brings, but with it the third and fourth are nearly free."""
    sure_1K = np.full((1, 4), 0.999).cumprod(1)
    free_later = choose(sure_1K, np.full(4, 0.999), table([0.0, 0.7, 0.0, 0.0], 0.0).curve(1))
    assert free_later.tokens == pytest.approx(1 + sure_1K.sum())
    dear = choose(sure_1K[:, :2], np.full(2, 0.999), table([0.0, 1.2], 0.0).curve(1))
    assert dear.tokens == pytest.approx(1.999)


@pytest.mark.parametrize("costs", [MODEL, HEADS])
def test_thresholds_rise_with_the_price(costs: StepTable) -> None:
    """The more tokens a second makes, the surer must be a token that takes some of it."""
    usual_K, curve = np.full(5, 0.8), costs.curve(8)
    cheap, dear = (priced(theta, usual_K, curve) for theta in (0.5 / curve.plain, 1 / curve.plain))
    for low_LK, high_LK in zip(cheap, dear, strict=True):
        assert (low_LK <= high_LK).all()
    assert (cheap[1] < dear[1]).any()


@pytest.mark.parametrize("costs", [MODEL, HEADS])
def test_sure_rows_send_more_than_unsure_rows(costs: StepTable) -> None:
    rng = np.random.default_rng(0)
    p_NK = np.repeat(rng.choice([0.3, 0.95], (256, 1)), 5, axis=1)
    choice = choose(p_NK.cumprod(1), p_NK.mean(0), costs.curve(8))
    rule = choice.rule(1.0, np.zeros(5))
    survival_2K = np.array([[0.95], [0.3]]) ** np.arange(1, rule.most + 1)
    sent = [int(np.logical_and.accumulate(row_K >= rule.keep_K).sum()) for row_K in survival_2K]
    assert sent[0] > sent[1]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_some_of_the_rows_that_have_a_draft_are_sent(share: float) -> None:
    """However poor the drafts are, and however few rows have one."""
    p_NK = np.full((512, 5), 0.05)
    p_NK[int(share * 512) :] = 0.0
    choice = choose(p_NK.cumprod(1), np.full(5, 0.05), HEADS.curve(8))
    assert choice.keep_K[0] <= 0.05


@pytest.mark.parametrize("rows", [1, 2, 8, 32, 128, 700])
@pytest.mark.parametrize("remembered", [1, 7, 512])
def test_any_number_of_rows_can_be_planned_for(rows: int, remembered: int) -> None:
    """With fewer remembered, a batch is made of them in proportion: dearer than one row, cheaper than all tokens."""
    survival_NK = np.random.default_rng(0).uniform(0.1, 1, (remembered, 5)).cumprod(1)
    for costs in (MODEL, HEADS):
        choice = choose(survival_NK, np.full(5, 0.5), costs.curve(rows))
        assert 1 <= choice.tokens <= 6
        assert costs.seconds(rows, 0) <= choice.seconds <= costs.seconds(rows, 5) + 1e-9


def test_where_nobody_may_look_every_row_drafts_to_one_length() -> None:
    """The best of all lengths, by the mean survival; and no confidence matters to it."""
    survival_NK: Float64 = np.random.default_rng(0).uniform(0.3, 1.0, (400, 4)).cumprod(1)
    curve = Curve(4, 1 + 0.05 * np.arange(17.0), np.array([0.0, 0.05, 0.05, 0.05, 0.05]), one_pass=False)
    rule = choose(survival_NK, np.full(4, 0.65), curve, looks=False).rule(1.0, np.zeros(4))
    assert not rule.looks
    speeds = [
        (1 + survival_NK[:, :k].mean(0).sum()) / (curve.verify_N[4 * k] + k * curve.draft_R[4]) for k in range(1, 5)
    ]
    assert rule.most == 1 + int(np.argmax(speeds))


@pytest.mark.parametrize("most", [1, 5, 8, 9, 31, 32, 64])
def test_of_long_drafts_some_lengths_are_tried(most: int) -> None:
    """All up to eight, then in steps of a quarter at most; always the longest."""
    lengths = tried(most).tolist()
    assert lengths == sorted(set(lengths))
    assert lengths[: min(most, 8)] == list(range(1, min(most, 8) + 1))
    assert lengths[-1] == most
    assert all(longer <= max(shorter + 1, 1.25 * shorter) for shorter, longer in pairwise(lengths))
    assert len(lengths) <= 8 + 4 * max(0, most.bit_length() - 3)
