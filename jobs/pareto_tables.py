"""Speed against quality as a person reads it: one table, and what became of the budgets' promise."""

from collections.abc import Sequence
from typing import Any

from jobs.bench_tables import to_plain
from jobs.tables import share, table

HEADER = (
    "setting",
    "tokens/s",
    "x plain (95 %)",
    "gap nats/token",
    "= plain",
    "BLEU to plain",
    "chrF to plain",
    "BLEU to ref",
    "tok/iter",
    "accepted",
    "lossless",
    "front",
)
Point = dict[str, Any]


def pareto_table(points: Sequence[Point]) -> str:
    """One line per setting; `front` names the measures of quality by which no other setting dominates."""
    return table([_cells(point) for point in points], HEADER)


def _cells(point: Point) -> tuple[str, ...]:
    reference = point["bleu_to_references"]
    return (
        point["engine"],
        f"{point['tokens_per_second']:,.0f}",
        to_plain(point),
        f"{point['mean_gap_nats_per_token']:.4f}",
        share(point["exact_match_to_plain"]),
        f"{point['bleu_to_plain']:.2f}",
        f"{point['chrf_to_plain']:.2f}",
        "-" if reference is None else f"{reference:.2f}",
        f"{point['tokens_per_iteration']:.2f}",
        "-" if point["acceptance_rate"] is None else f"{point['acceptance_rate']:.0%}",
        point["lossless"],
        front(point),
    )


def front(point: Point) -> str:
    """By which measures of quality a point is on the front."""
    by = [name for name, key in (("gap", "on_gap_front"), ("BLEU", "on_bleu_front")) if point[key]]
    return "+".join(by) or "-"


def promises(points: Sequence[Point]) -> list[str]:
    """The budgets' promise, a mean gap of at most the budget over all tokens of an engine, kept or broken."""
    with_budget = [point for point in points if point["within_budget"] is not None]
    broken = [point for point in with_budget if not point["within_budget"]]
    lines = [
        f"{point['engine']}: mean gap {point['life_gap_nats_per_token']:.5f} nats per token is over the budget: BROKEN"
        for point in broken
    ]
    kept = len(with_budget) - len(broken)
    return [*lines, f"mean gap at most the budget, over all tokens of each engine: {kept} of {len(with_budget)} kept"]
