"""Costs of iterations: between the table's row counts and windows."""

import numpy as np
import pytest

from cmasd.policies.costs import StepTable

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


@pytest.mark.parametrize(("tokens", "seconds"), [(4, 16.0), (6, 20.0), (8, 24.0), (11, 30.0), (12, 32.0), (99, 32.0)])
def test_a_token_more_costs_its_share_of_a_window(tokens: int, seconds: float) -> None:
    assert TABLE.verify_seconds(4, tokens) == pytest.approx(seconds)


def test_a_drafter_of_one_pass_is_paid_once() -> None:
    once = StepTable(TABLE.rows, TABLE.verify, TABLE.draft, one_pass=True)
    assert [once.seconds(4, drafted) for drafted in range(3)] == pytest.approx([16.0, 26.0, 34.0])


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_a_curve_is_the_table_looked_up(rows: int) -> None:
    curve = TABLE.curve(rows)
    assert curve.verify_N == pytest.approx([TABLE.verify_seconds(rows, rows + more) for more in range(2 * rows + 1)])
    assert curve.draft_R[1:] == pytest.approx([TABLE.draft_seconds(still) for still in range(1, rows + 1)])
    assert curve.draft_R[0] == 0.0, "nobody drafts"
    assert curve.plain == TABLE.seconds(rows, 0)


def test_more_tokens_never_cost_less() -> None:
    """A measurement that was disturbed is as short as a longer window's."""
    curve = StepTable((1,), ((1.0, 9.0, 3.0, 4.0),), (0.0,)).curve(1)
    assert np.array_equal(curve.verify_N, [1.0, 3.0, 3.0, 4.0])
