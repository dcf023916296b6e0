"""The goodput policy on made-up machines: what it loses, what it finds, and how soon.

Speeds are tokens per second over plain decoding, of what the iterations would have taken without noise.
"""

from dataclasses import replace

import numpy as np
import pytest

from cmasd.config import Config, from_dict
from cmasd.policies import GoodputPolicy, build_policy
from cmasd.policies.base import Observation, Rule
from cmasd.policies.costs import StepTable
from cmasd.policies.lengths import choose
from tests.unit.policies.machine import HEADS, MODEL, MS, Confidences, Machine, in_milliseconds, sure_or_not

MOST = 5
TEXTS = replace(MODEL, draft=(0.0, 0.0, 0.0))
"""Known texts, which cost next to nothing."""
MIXED, POOR, GOOD = sure_or_not(0.6, 0.85, 0.33), sure_or_not(1, 0.3, 0.3), sure_or_not(1, 0.9, 0.9)


def policy_of(costs: StepTable, share: float = 0.01) -> GoodputPolicy:
    """Whose learning takes no time, so that runs are repeatable."""
    policy = GoodputPolicy(MOST, share, clock=lambda: 0.0)
    policy.learn_costs(costs)
    return policy


def best_speed(costs: StepTable, confidences: Confidences, rows: int) -> float:
    """Of plain decoding and of the rule for confidences that are true, known beforehand."""
    p_NK = confidences(np.random.default_rng(9), 4096, MOST)
    curve = costs.curve(rows)
    return max(1.0, choose(p_NK.cumprod(1), p_NK.mean(0), curve).speed * curve.plain)


@pytest.mark.parametrize("rows", [1, 8, 32, 128])
@pytest.mark.parametrize("costs", [MODEL, HEADS], ids=["model", "heads"])
@pytest.mark.parametrize("confidences", [MIXED, POOR, GOOD], ids=["mixed", "poor", "good"])
def test_regret_is_bounded(costs: StepTable, confidences: Confidences, rows: int) -> None:
    """Over 3,000 iterations never under 0.97 of plain decoding, nor under 0.95 of the best that could be known."""
    speed = Machine(costs, MOST, confidences, seed=rows).run(policy_of(costs), 3000, rows).speed()
    assert speed > 0.97
    assert speed > 0.95 * best_speed(costs, confidences, rows)


def test_heads_pay_at_eight_rows_where_a_model_does_not() -> None:
    heads = Machine(HEADS, MOST, MIXED).run(policy_of(HEADS), 3000)
    model = Machine(MODEL, MOST, MIXED).run(policy_of(MODEL), 3000)
    assert heads.speed() > 1.2
    assert heads.drafting(1000) > 0.9
    assert model.drafting(1000) < 0.3


@pytest.mark.parametrize("share", [0.002, 0.01, 0.05])
@pytest.mark.parametrize("rows", [1, 8, 64])
def test_where_drafting_cannot_pay_only_the_share_is_lost(share: float, rows: int) -> None:
    """And what the first look may lose: ten iterations' time, and as much again by what it did not expect."""
    machine = Machine(MODEL, MOST, POOR, outliers=0.0).run(policy_of(MODEL, share), 5000, rows)
    lost = 1 - machine.speed()
    assert 0 < lost < share + 20 / 5000


def test_without_a_share_nothing_is_looked_at() -> None:
    assert Machine(HEADS, MOST, GOOD).run(policy_of(HEADS, share=0.0), 2000).drafting() == 0


def test_what_a_drafter_needs_beside_iterations_counts() -> None:
    """A plain iteration's time for the sources of new rows, before each: iterations alone say that drafting pays."""
    for seed in range(3):
        alone, beside = (Machine(MODEL, MOST, MIXED, beside=seconds, seed=seed) for seconds in (0.0, MS))
        for machine in (alone, beside):
            machine.run(policy_of(MODEL), 3000, 1)
        assert alone.drafting(1000) > 0.3
        assert beside.drafting(1000) < 0.1
        assert beside.speed() > 0.95


def test_what_looks_need_beside_iterations_is_lost_as_well() -> None:
    """Of poor drafts, with a plain iteration's time for new rows' sources: fewer looks than iterations alone allow."""
    machines = [Machine(HEADS, MOST, POOR, beside=MS, seed=seed).run(policy_of(HEADS), 1500, 1) for seed in range(6)]
    assert np.mean([machine.speed() for machine in machines]) > 0.975


@pytest.mark.parametrize("rows", [1, 8])
def test_iterations_in_which_nothing_was_known_count_as_well(rows: int) -> None:
    """One in six knows a draft, and asking takes a quarter of a plain one: what drafts win, asking loses."""
    half, asking = sure_or_not(1, 0.5, 0.5), TEXTS.verify_seconds(rows, rows) / 4
    for seed in range(3):
        machine = Machine(TEXTS, MOST, half, known=1 / 6, asking=asking, seed=seed)
        assert machine.run(policy_of(TEXTS), 3000, rows).speed() > 0.97


def test_where_even_perfect_drafts_would_not_pay_none_is_tried() -> None:
    dear = replace(MODEL, draft=(MS, 3 * MS, 9 * MS))
    assert Machine(dear, MOST, GOOD).run(policy_of(dear), 3000, rows=8).drafting() == 0


@pytest.mark.parametrize("rows", [1, 8, 64])
def test_what_pays_clearly_is_found_at_once(rows: int) -> None:
    """Within the first hundred iterations."""
    machine = Machine(HEADS, MOST, GOOD).run(policy_of(HEADS), 200, rows)
    assert machine.drafting(100) == 1.0
    assert machine.speed(100) > 0.93 * best_speed(HEADS, GOOD, rows)


@pytest.mark.parametrize("rows", [1, 8, 64])
@pytest.mark.parametrize(
    ("before", "after", "late"),
    [(MIXED, POOR, 300), (POOR, MIXED, 1500), (GOOD, POOR, 300), (POOR, GOOD, 1500)],
    ids=["mixed to poor", "poor to mixed", "good to poor", "poor to good"],
)
def test_a_change_of_the_text_is_followed(before: Confidences, after: Confidences, late: int, rows: int) -> None:
    policy = policy_of(HEADS)
    machine = Machine(HEADS, MOST, before).run(policy, 2000, rows)
    machine.confidences = after
    machine.run(policy, late + 1000, rows)
    assert machine.speed(1000) > 0.96 * best_speed(HEADS, after, rows)


@pytest.mark.parametrize("rows", [8, 64])
def test_a_drafter_that_becomes_better_than_it_says_is_found_out(rows: int) -> None:
    """Its confidence stays at 0.3, while nine in ten are accepted; where it rested, little is sent."""
    policy = policy_of(HEADS)
    machine = Machine(HEADS, MOST, POOR).run(policy, 2000, rows)
    assert machine.speed(1000) < 1.0
    machine.acceptance = lambda confidence_BK: 3 * confidence_BK
    machine.run(policy, 2500, rows)
    assert machine.speed(1000) > 1.05
    machine.acceptance = lambda confidence_BK: confidence_BK
    machine.run(policy, 2500, rows)
    assert machine.speed(1000) > 0.97, "looks have spent the time that nothing was lost while drafting was right"


@pytest.mark.parametrize("rows", [1, 8])
def test_a_change_of_costs_is_followed(rows: int) -> None:
    """The drafter's forwards come to take ten times as long as by the table, and as long as before."""
    dear = replace(HEADS, draft=tuple(10 * seconds for seconds in HEADS.draft), one_pass=True)
    poor = sure_or_not(1, 0.5, 0.5)
    policy = policy_of(HEADS)
    machine = Machine(HEADS, MOST, poor).run(policy, 1000, rows)
    assert machine.speed(500) > 1.05
    machine.costs = dear
    machine.run(policy, 1300, rows)
    assert machine.speed(1000) > 0.96
    machine.costs = HEADS
    machine.run(policy, 4000, rows)
    assert machine.speed(1000) > 1.05


def test_a_load_that_doubles_and_goes_changes_nothing_for_long() -> None:
    policy = policy_of(HEADS)
    machine = Machine(HEADS, MOST, MIXED).run(policy, 1000)
    for factor in (2.0, 1.0):
        verify = tuple(tuple(factor * seconds for seconds in window) for window in HEADS.verify)
        machine.costs = replace(HEADS, verify=verify, draft=tuple(factor * seconds for seconds in HEADS.draft))
        machine.run(policy, 1200)
        assert machine.speed(1000) > 0.95 * best_speed(HEADS, MIXED, 8)


@pytest.mark.parametrize("confidences", [MIXED, POOR], ids=["mixed", "poor"])
def test_a_load_that_wanders_misleads_little(confidences: Confidences) -> None:
    """By 15 %, back and forth within a hundred iterations: arms are never measured under the same."""
    for costs in (MODEL, HEADS):
        speed = Machine(costs, MOST, confidences, wander=0.15).run(policy_of(costs), 3000).speed()
        assert speed > 0.96 * best_speed(costs, confidences, 8)


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_looks_that_begin_cold_mislead_no_comparison(rows: int) -> None:
    """The first iterations after a change take 2.5 times as long: a short look at plain decoding would have it lose.

    No run loses more than looks cost; on average they find what little there is to gain at one row.
    """
    for confidences in (MIXED, POOR):
        machines = [Machine(MODEL, MOST, confidences, cold=1.5, seed=seed) for seed in range(4)]
        speeds = [machine.run(policy_of(MODEL), 4000, rows).speed() for machine in machines]
        assert min(speeds) > 0.97
        assert np.mean(speeds) > 0.95 * best_speed(MODEL, confidences, rows)


@pytest.mark.parametrize("wrong", [0.5, 2.0])
def test_a_table_that_is_wrong_is_overruled(wrong: float) -> None:
    """Windows cost less, or more, than it says: whether to draft is decided by what iterations take."""
    table = replace(HEADS, verify=tuple((v[0], *(v[0] + wrong * (t - v[0]) for t in v[1:])) for v in HEADS.verify))
    for confidences in (MIXED, GOOD, POOR):
        speed = Machine(HEADS, MOST, confidences).run(policy_of(table), 3000).speed()
        assert speed > max(0.97, 0.93 * best_speed(HEADS, confidences, 8))


@pytest.mark.parametrize("rows", [1, 8])
def test_what_the_engine_adds_to_each_iteration_makes_drafts_longer(rows: int) -> None:
    """As much again as a plain iteration: the table does not have it, what the two arms take tells."""
    overhead = MODEL.seconds(rows, 0)
    slower = replace(MODEL, verify=tuple(tuple(seconds + overhead for seconds in window) for window in MODEL.verify))
    for confidences in (MIXED, GOOD):
        machine = Machine(MODEL, MOST, confidences, overhead=overhead).run(policy_of(MODEL), 2500, rows)
        assert machine.speed(1000) > 0.96 * best_speed(slower, confidences, rows)


def test_iterations_that_are_never_typical_are_learned_from_all_the_same() -> None:
    policy, machine = policy_of(HEADS), Machine(HEADS, MOST, GOOD)
    for _ in range(1000):
        seen = replace(machine.iteration(policy.plan(8), 8), is_typical=False)
        policy.observe(seen)
    assert machine.run(policy, 500).speed() > 1.3


def test_as_rows_run_dry_each_number_of_them_has_its_own_answer() -> None:
    """The drafting model pays for one row and for two at most."""
    policy, machine = policy_of(MODEL), Machine(MODEL, MOST, sure_or_not(1, 0.8, 0.8))
    for rows in (32, 16, 8, 4, 2, 1):
        machine.run(policy, 1000, rows)
        assert machine.speed(1000) > 0.97
    assert machine.drafting(500) > 0.9


@pytest.mark.parametrize("wander", [0.0, 0.15])
def test_lists_that_end_with_their_long_rows_mislead_no_comparison(wander: float) -> None:
    """Forty iterations of 32 rows, then ever fewer, which take twice as long as by the table; and again."""
    for seed in range(4):
        policy = policy_of(MODEL)
        machine = Machine(MODEL, MOST, MIXED, long=1.0, wander=wander, seed=seed)
        for _ in range(20):
            machine.run(policy, 40, rows=32)
            for rows in range(31, 13, -1):
                machine.run(policy, 2, rows)
        assert machine.speed() > 0.97 - wander / 10


def test_rows_that_come_and_go_at_the_edge_of_a_range_change_nothing() -> None:
    policy, machine = policy_of(HEADS), Machine(HEADS, MOST, MIXED)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        machine.run(policy, 1, rows=int(rng.integers(7, 11)))
    assert machine.speed(1000) > 1.2


def test_a_drafter_without_confidence_is_used_by_position() -> None:
    policy = policy_of(HEADS)
    machine = Machine(HEADS, MOST, lambda rng, rows, most: np.full((rows, most), np.nan))
    machine.acceptance = lambda confidence_BK: np.full(confidence_BK.shape, 0.9)
    assert machine.run(policy, 2000).speed(1000) > 0.95 * best_speed(HEADS, GOOD, 8)


def test_the_plan_is_the_same_object_until_something_was_learned() -> None:
    policy, machine = policy_of(HEADS), Machine(HEADS, MOST, GOOD)
    machine.run(policy, 500)
    plans = []
    for _ in range(200):
        plans.append(policy.plan(8))
        assert policy.plan(7) is plans[-1], "as many rows, about"
        policy.observe(machine.iteration(plans[-1], 8))
    assert len({id(plan) for plan in plans}) < 20


def test_what_learning_takes_lengthens_the_rests() -> None:
    """A clock that runs a millisecond at each look at it, where an iteration takes three: it is seldom looked at."""
    ticks = iter(range(10**9))
    policy = GoodputPolicy(MOST, 0.01, clock=lambda: MS * next(ticks))
    policy.learn_costs(HEADS)
    machine = Machine(HEADS, MOST, MIXED).run(policy, 3000)
    learned = MS * next(ticks) / 2
    assert learned < 0.01 * sum(seconds for *_, seconds in machine.told) + 10 * MS
    assert machine.speed(1000) > 1.2


def test_iterations_that_had_no_room_to_draft_teach_nothing() -> None:
    """Rows at their limit draft nothing, although the policy asked for it."""
    policy = policy_of(HEADS)
    zeros_B = np.zeros(8, dtype=np.int64)
    for _ in range(500):
        policy.plan(8)
        nothing_BK = np.full((8, MOST), np.nan)
        policy.observe(Observation(zeros_B, zeros_B, nothing_BK, zeros_B, 3 * MS, is_typical=True, asked=False))
    assert Machine(HEADS, MOST, GOOD).run(policy, 600).speed(400) > 1.3


def test_plans_may_run_ahead_of_what_is_told() -> None:
    policy, machine = policy_of(HEADS), Machine(HEADS, MOST, MIXED)
    flying: list[tuple[Rule | None, Observation]] = []
    made = seconds = 0.0
    for turn in range(3000):
        rule = policy.plan(8)
        flying.append((rule, machine.iteration(rule, 8)))
        if len(flying) > 2:
            _, seen = flying.pop(0)
            policy.observe(seen)
            if turn > 1000:
                made, seconds = made + 8 + int(seen.accepted_B.sum()), seconds + seen.seconds
    outliers = 1 + machine.outliers * 10.5
    assert made / 8 * HEADS.seconds(8, 0) * outliers / seconds > 1.15


LONG = 32
TEXTS = in_milliseconds(
    rows=(1, 4, 16),
    verify=tuple(
        tuple(np.interp(range(LONG + 1), (0, 1, 4, 8, 16, LONG), seconds).tolist())
        for seconds in (
            (0.11, 0.13, 0.16, 0.25, 0.39, 0.76),
            (0.17, 0.26, 0.48, 0.87, 1.94, 3.61),
            (0.67, 1.34, 2.54, 4.09, 11.0, 16.9),
        )
    ),
    draft=(0.0, 0.0, 0.0),
)
TEXTS = replace(TEXTS, one_pass=True)
"""The bundled verifier in 8 bits on one core, with drafts of an earlier run."""


@pytest.mark.parametrize("overhead", [0.0, 1.0])
@pytest.mark.parametrize("rows", [1, 4, 16])
def test_what_an_earlier_run_said_is_found_within_the_first_iterations(rows: int, overhead: float) -> None:
    """With long drafts at once, whatever the engine adds to an iteration."""
    policy = build_policy(config_of_previous())
    assert isinstance(policy, GoodputPolicy)
    policy.learn_costs(TEXTS)
    machine = Machine(TEXTS, LONG, sure_or_not(1, 0.97, 0.97), overhead=overhead * TEXTS.seconds(rows, 0), noise=0.2)
    machine.run(policy, 10, rows)
    rule = policy.plan(rows)
    assert rule is not None
    assert rule.most > 2
    machine.run(policy, 30, rows)
    assert machine.drafting(30) == 1.0
    assert machine.speed(30) > 0.85 * best_speed_of_texts(rows)


@pytest.mark.parametrize("rows", [4, 16])
def test_the_first_few_drafts_do_not_decide_a_short_list(rows: int) -> None:
    """Lists begin with rows of which little came out as before; and learning takes as long as some iterations, of which
    its share of the time would let nobody learn again for hundreds.
    """
    plain, ticks = TEXTS.seconds(rows, 0), iter(range(10**9))
    hope = config_of_previous().drafter.hope
    policy = GoodputPolicy(LONG, clock=lambda: 3 * plain * next(ticks), hope=hope)
    policy.learn_costs(TEXTS)
    machine = Machine(TEXTS, LONG, sure_or_not(1, 0.8, 0.8)).run(policy, 14, rows)
    machine.confidences = sure_or_not(1, 0.97, 0.97)
    machine.run(policy, 150, rows)
    assert machine.speed(100) > 0.85 * best_speed_of_texts(rows)


def test_of_rules_that_are_as_good_one_looks_at_each_row() -> None:
    """Before anything was judged all rows are alike, and one that proves to be unsure is cut all the same."""
    choice = choose(np.full((1, LONG), 0.95).cumprod(1), np.full(LONG, 0.95), TEXTS.curve(1))
    assert (choice.keep_K[1:] > 0).all()


def config_of_previous() -> Config:
    drafter = {"kind": ["previous"], "previous": "runs/a", "max_draft_tokens": LONG}
    return from_dict({"input": {"path": "i"}, "output": {"path": "o"}, "drafter": drafter})


def best_speed_of_texts(rows: int) -> float:
    curve = TEXTS.curve(rows)
    p_NK = np.full((1, LONG), 0.97)
    return choose(p_NK.cumprod(1), p_NK[0], curve).speed * curve.plain


def test_one_token_at_most() -> None:
    costs = StepTable((1, 8), ((1.0, 1.1), (3.0, 3.3)), (0.1, 0.2))
    policy = GoodputPolicy(1, clock=lambda: 0.0)
    policy.learn_costs(costs)
    assert Machine(costs, 1, GOOD).run(policy, 1000).speed(500) > 1.55
