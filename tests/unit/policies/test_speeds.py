"""How sure a measured speed is, what a look loses, and which arm is looked at."""

import math
from dataclasses import replace

import numpy as np
import pytest

from cmasd.policies.base import Observation
from cmasd.policies.costs import StepTable
from cmasd.policies.explorer import Explorer, Ledger
from cmasd.policies.speeds import ArmMeasured, Lead, PairedBatch, Plain, Speed, overhead_seconds

TABLE = StepTable((1, 4), ((1.0, 1.5, 2.0), (2.0, 4.0, 6.0)), (0.25, 0.5))


def seen(lengths: list[int], accepted: list[int], seconds: float, is_typical: bool = True) -> Observation:
    lengths_B = np.array(lengths)
    confidence_BK = np.full((len(lengths), 2), 0.5)
    return Observation(lengths_B, np.array(accepted), confidence_BK, lengths_B, seconds, is_typical)


def batch(observations: list[Observation], rows: int = 4) -> PairedBatch:
    return PairedBatch(observations, TABLE, TABLE.curve(rows))


def test_speed_is_tokens_over_seconds_of_a_plain_step() -> None:
    """4 rows make 6 tokens in 4 seconds; plainly, 4 in 2."""
    measured = batch([seen([1, 1, 1, 0], [1, 1, 0, 0], 4.0)] * 8).measured()
    assert measured is not None
    assert math.exp(measured.worth - measured.level) == pytest.approx((6 / 4) / (4 / 2))
    assert measured.seconds == pytest.approx(3.5 + 0.25 + 0.25 / 3 * 2), "7 tokens verified, 3 rows drafted"
    assert math.exp(measured.level) == pytest.approx(4.0 / measured.seconds)


def test_a_machine_under_load_changes_the_level_and_not_the_worth() -> None:
    quiet, loaded = (batch([seen([1, 1, 0, 0], [1, 0, 0, 0], seconds)] * 8).measured() for seconds in (4.0, 12.0))
    assert quiet is not None
    assert loaded is not None
    assert loaded.worth == quiet.worth
    assert loaded.level - quiet.level == pytest.approx(math.log(3))


def test_iterations_of_fewer_rows_count_by_what_they_cost() -> None:
    measured = batch([seen([0] * rows, [0] * rows, TABLE.seconds(rows, 0)) for rows in (3, 4, 4, 3)]).measured()
    assert measured is not None
    assert (measured.worth, measured.level) == pytest.approx((0.0, 0.0))


def test_a_disturbed_iteration_hardly_counts() -> None:
    plain = [seen([0] * 4, [0] * 4, seconds) for seconds in (2.0, 2.1, 1.9, 2.0, 2.05, 1.95, 80.0)]
    measured = batch(plain).measured()
    assert measured is not None
    assert measured.level == pytest.approx(0.0, abs=0.05)
    assert batch(plain).lost(0.0) < 1.0, "nor is it lost by looking"


def test_catching_up_is_not_timed_but_lost() -> None:
    late = [seen([0] * 4, [0] * 4, 7.0, is_typical=False)] + [seen([0] * 4, [0] * 4, 2.0)] * 5
    measured = batch(late).measured()
    assert measured is not None
    assert measured.level == pytest.approx(0.0)
    assert batch(late).lost_by_change() == pytest.approx(5.0)
    assert batch(late).lost(math.log(2)) == pytest.approx(5.0 + 6 * 1.0)


@pytest.mark.parametrize("accepted", [0, 1])
def test_a_few_rows_that_were_alike_are_not_sure(accepted: int) -> None:
    few, many = (batch([seen([1], [accepted], 2.0)] * count, rows=1).measured() for count in (4, 64))
    assert few is not None
    assert many is not None
    assert math.sqrt(few.worth_noise) > 0.08 > 4 * math.sqrt(many.worth_noise)


def test_what_was_not_seen_for_long_is_doubted() -> None:
    speed = Speed(0.0)
    assert speed.doubt(0) == 1.0
    speed.learn(0.5, 0.0001, iteration=100)
    assert speed.mean == pytest.approx(0.5, abs=0.001)
    doubts = [speed.doubt(iteration) for iteration in (100, 200, 1000, 10**7)]
    assert doubts == sorted(doubts)
    assert doubts[0] == pytest.approx(0.0001, rel=0.01)
    assert doubts[-1] == 1.0


def test_the_lead_is_doubted_where_iterations_have_come_to_take_longer() -> None:
    """Who knows whether the machine is slower, or the arm is."""
    lead = Lead(Speed(0.3, 0.0001), Speed(0.1, 0.0001))
    assert lead.mean == pytest.approx(0.2)
    assert lead.doubt(0) == pytest.approx(0.0002)
    lead.moved = math.log(0.5)
    assert lead.doubt(0) > 0.4
    assert Plain().doubt(10**6) == 0.0


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_overhead_is_where_the_line_through_both_arms_begins(factor: float) -> None:
    """0.4 more than by the table, on a machine that takes so many times as long."""
    plain, drafting = (ArmMeasured(0.0, 0.0, math.log(factor * (t + 0.4) / t), 0.0, t) for t in (2.0, 3.5))
    assert overhead_seconds(plain, drafting) == pytest.approx(0.4)
    slower = replace(drafting, level=math.log(1.5) + drafting.level)
    untouched = ArmMeasured(0.0, 0.0, math.log(factor), 0.0, 2.0)
    assert overhead_seconds(untouched, slower) == 0.0, "the drafter is dearer than by the table"
    assert 0 <= overhead_seconds(replace(untouched, level=math.log(9.0)), drafting) <= 2.0


def explorer(
    plain: float, drafting: float, sure: float = 0.01, share: float = 0.01, seen_at: tuple[int, int] = (0, 0)
) -> Explorer:
    speeds = [Speed(mean, sure**2, at) for mean, at in zip((plain, drafting), seen_at, strict=True)]
    return Explorer(Ledger(share, total=1000.0), speeds, candidates=[0, 1], looked_at={0, 1})


def test_an_arm_that_is_surely_worse_is_left_alone_until_that_is_old() -> None:
    assert explorer(0.0, -0.2).decide(1, 1.0) == 0
    arms = explorer(0.0, -0.2, seen_at=(10_000, 0))
    assert arms.decide(10_000, 1.0, may_look=False) == 0
    assert arms.decide(10_000, 1.0) == 1, "a look"
    assert arms.force == 0


@pytest.mark.parametrize(("drafting", "kept"), [(0.03, 0), (0.2, 1)])
def test_drafting_stays_in_force_only_where_it_is_surely_faster(drafting: float, kept: int) -> None:
    """When plain decoding was looked at; the other way round an arm has to prove that it is faster."""
    arms = explorer(0.0, drafting, sure=0.05)
    arms.home = 0
    arms.force, arms.now = 1, 0
    arms.decide(1, 1.0, may_look=False)
    assert arms.force == kept
    arms.force, arms.now = 0, 1
    arms.decide(1, 1.0, may_look=False)
    assert arms.force == kept


def test_an_arm_that_is_hopeless_for_long_is_not_hoped_for_before() -> None:
    arms = explorer(0.0, -0.2, seen_at=(50, 50))
    until = 50 + int(arms.hopeless_for(50))
    assert arms.decide(until - 1, 1.0) == 0
    assert arms.decide(until + 2, 1.0) == 1
    assert explorer(0.0, 0.2).hopeless_for(50) == 0
    arms.candidates = []
    assert arms.hopeless_for(50) == math.inf


def test_no_look_beyond_the_share() -> None:
    """Six iterations at four fifths of the speed lose 1.1 seconds."""
    for lost, looks in ((8.0, 1), (9.5, 0)):
        arms = explorer(0.0, -0.2, sure=0.2)
        arms.ledger.lost = lost
        assert arms.decide(1, 1.0) == looks


def test_the_arm_in_force_changes_when_a_look_was_sure_of_it() -> None:
    for lead, force in ((0.1, 1), (0.01, 0)):
        arms = explorer(0.0, lead, sure=0.03)
        assert arms.decide(1, 1.0) == 1
        arms.decide(2, 1.0)
        assert arms.force == force


def test_a_look_is_short_and_the_arm_in_force_decodes_before_the_next() -> None:
    arms = explorer(0.0, 0.0, sure=0.03)
    assert [arms.decide(iteration, 1.0) for iteration in range(1, 5)] == [1, 0, 1, 0]


def test_learning_takes_half_of_the_share_and_what_it_took_is_not_looked_with() -> None:
    ledger = Ledger(0.01, total=1000.0)
    assert ledger.rest(2.0) == pytest.approx(400.0)
    assert ledger.affords(8.0)
    assert not ledger.affords(8.5)
    assert Ledger(0.0).rest(1.0) == math.inf


def test_what_was_won_is_no_credit() -> None:
    ledger = Ledger(0.01)
    ledger.charge(-5.0)
    ledger.charge(3.0)
    assert ledger.lost == 3.0
