"""A bench as a person reads it: the table by batch size, the cost of a step, and what follows in words."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from cmasd.evaluation.engines import drafts
from cmasd.evaluation.plots import label
from jobs.tables import claim, table

HEADER = (
    "engine",
    "batch",
    "tokens/s",
    "quartiles",
    "x plain (95 %)",
    "x HF",
    "x CT2",
    "x best fixed",
    "tok/iter",
    "accepted",
    "= plain",
    "lossless",
)
Row = dict[str, Any]


def result_table(results: Sequence[Row]) -> str:
    """One table, with a gap between batch sizes."""
    lines = table([_cells(row) for row in results], HEADER).splitlines()
    groups = [
        list(rows) for _, rows in groupby(zip(results, lines[2:], strict=True), lambda pair: pair[0]["batch_size"])
    ]
    return "\n\n".join(["\n".join(lines[:2]), *("\n".join(line for _, line in group) for group in groups)])


def _cells(row: Row) -> tuple[str, ...]:
    acceptance, per_iteration = row["acceptance_rate"], row["tokens_per_iteration"]
    return (
        label(row),
        str(row["batch_size"]),
        f"{row['tokens_per_second']:,.0f}",
        f"{row['chunk_low']:,.0f}-{row['chunk_high']:,.0f}",
        f"{row['ratio_to_plain']:.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})",
        *(_ratio(row[f"ratio_to_{name}"]) for name in ("hf_generate", "ctranslate2", "best_fixed")),
        "-" if per_iteration is None else f"{per_iteration:.2f}",
        "-" if acceptance is None else f"{acceptance:.0%}",
        f"{row['exact_match_to_plain']:.1%}",
        claim(row),
    )


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def step_table(steps: Sequence[Row]) -> str:
    """Milliseconds of one forward, and how many times one of a single query token."""
    windows = sorted({step["query_tokens"] for step in steps})
    groups = groupby(steps, lambda step: (step["model"], step["rows"]))
    rows = [[model, str(count), *_step_cells(list(group), windows)] for (model, count), group in groups]
    header = ["ms of a forward (x one token)", "rows", *(f"{window} tokens/row" for window in windows)]
    return table(rows, header)


def _step_cells(group: Sequence[Row], windows: Iterable[int]) -> list[str]:
    by_window = {step["query_tokens"]: step for step in group}
    return [
        f"{step['milliseconds']:.2f} ({step['ratio_to_one']:.2f})" if (step := by_window.get(window)) else "-"
        for window in windows
    ]


def conclusions(results: Sequence[Row]) -> list[str]:
    """One sentence per batch size: who is fastest, and where speculation loses to plain decoding."""
    groups = groupby(results, lambda row: row["batch_size"])
    return [_conclusion(size, list(rows)) for size, rows in groups]


def _conclusion(batch_size: int, rows: Sequence[Row]) -> str:
    best = max(rows, key=lambda row: float(row["tokens_per_second"]))
    speculating = [row for row in rows if drafts(row["engine"])]
    parts = [f"batch {batch_size}: fastest is {label(best)}, {best['ratio_to_plain']:.2f} x plain"]
    loses = [row for row in speculating if row["ratio_high"] < 1]
    wins = [row for row in speculating if row["ratio_low"] > 1]
    even = [row for row in speculating if row not in loses and row not in wins]
    for what, group in (
        ("speculation LOSES to plain", loses),
        ("speculation beats plain", wins),
        ("not told apart from plain", even),
    ):
        if group:
            parts.append(f"{what}: " + ", ".join(f"{row['engine']} {row['ratio_to_plain']:.2f}" for row in group))
    return "; ".join(parts)
