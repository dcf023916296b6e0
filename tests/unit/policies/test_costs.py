"""Costs of iterations: between the table's row counts, and as experience corrects them."""

import pytest

from cmasd.policies.costs import CUT, ENOUGH, FORGET, KEPT, IterationCosts, StepTable

TABLE = StepTable(
    rows=(1, 4, 16), verify=((10.0, 12.0, 14.0), (16.0, 24.0, 32.0), (40.0, 72.0, 104.0)), draft=(1, 2, 6)
)


@pytest.mark.parametrize(
    ("rows", "drafted", "seconds"),
    [
        (1, 0, 10.0),
        (4, 0, 16.0),
        (1, 2, 14.0 + 2 * 1),
        (16, 1, 72.0 + 6),
        (2, 0, 12.0),  # a third of the way from 1 to 4
        (10, 1, 48.0 + 4),  # half way from 4 to 16
        (10, 2, 68.0 + 2 * 4),
        (99, 0, 40.0),  # past the table: its end
    ],
)
def test_the_table_adds_drafting_and_verifying_and_interpolates(rows: int, drafted: int, seconds: float) -> None:
    assert TABLE.seconds(rows, drafted) == pytest.approx(seconds)
    assert IterationCosts(TABLE).seconds(rows, drafted) == pytest.approx(seconds), "nothing was observed yet"


def test_the_middle_of_enough_iterations_replaces_the_table() -> None:
    costs = IterationCosts(TABLE)
    costs.observe(4, 1, 1000.0)
    for _ in range(ENOUGH - 2):
        costs.observe(4, 1, 5.0)
    assert costs.seconds(4, 1) != 5.0, "too few to count"
    costs.observe(4, 1, 5.0)
    assert costs.seconds(4, 1) == 5.0, "one outlier does not move it"


def test_only_the_latest_iterations_count() -> None:
    costs = IterationCosts(TABLE)
    for _ in range(3 * KEPT):
        costs.observe(4, 1, 5.0)
    cut = KEPT // CUT
    for seen in range(1, KEPT + 1):
        costs.observe(4, 1, 7.0)
        share = min(max(seen - cut, 0) / (KEPT - 2 * cut), 1.0)
        assert costs.seconds(4, 1) == pytest.approx(5.0 + 2.0 * share), "the mean but for the ends"


def test_row_counts_up_to_the_same_power_of_two_share_their_experience() -> None:
    costs = IterationCosts(TABLE)
    for rows in (5, 6, 7):
        costs.observe(rows, 1, 3.0)
    assert costs.seconds(8, 1) == 3.0
    assert {costs.seconds(4, 1), costs.seconds(9, 1)}.isdisjoint({3.0})


def test_what_was_never_seen_is_the_table_at_the_level_of_what_was() -> None:
    """Plain and drafting iterations each have a level; one that is missing borrows the other's."""
    costs = IterationCosts(TABLE)
    costs.observe(4, 0, 2 * TABLE.seconds(4, 0))
    assert costs.seconds(16, 0) == pytest.approx(2 * TABLE.seconds(16, 0))
    assert costs.seconds(16, 2) == pytest.approx(2 * TABLE.seconds(16, 2))
    costs.observe(4, 1, 3 * TABLE.seconds(4, 1))
    assert costs.seconds(16, 2) == pytest.approx(3 * TABLE.seconds(16, 2))
    assert costs.seconds(16, 0) == pytest.approx(2 * TABLE.seconds(16, 0))


def test_the_level_follows_the_load_slowly() -> None:
    costs = IterationCosts(TABLE)
    costs.observe(4, 0, TABLE.seconds(4, 0))
    costs.observe(4, 0, 11 * TABLE.seconds(4, 0))
    assert costs.seconds(1, 0) == pytest.approx((1 + FORGET * 10) * TABLE.seconds(1, 0))
