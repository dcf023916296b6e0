"""A bench as a person reads it: the table by batch size, the cost of a step, and what follows in words."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from cmasd.evaluation.plots import label
from cmasd.evaluation.speed.engines import SAME_DECODING, drafts
from jobs.tables import claim, table, whole_share

BEFORE = ("engine", "batch", "tokens/s", "quartiles", "x plain (95 %)")
BEHIND = ("tok/iter", "accepted", "= plain", "lossless")
OTHERS = {"hf_generate": "x HF", "ctranslate2": "x CT2", "openvino": "x OV", "best_fixed": "x best fixed"}
WHERE_MEASURED = ("openvino",)
"""Of these a column is shown only where there is something in it."""
Row = dict[str, Any]


def result_table(results: Sequence[Row]) -> str:
    """One table, with a gap between batch sizes."""
    others = [
        name
        for name in OTHERS
        if name not in WHERE_MEASURED or any(row.get(f"ratio_to_{name}") is not None for row in results)
    ]
    header = (*BEFORE, *(OTHERS[name] for name in others), *BEHIND)
    cells = [_cells(row, others) for row in results]
    heard = [row.get("audio_seconds_per_second") for row in results]
    if any(one is not None for one in heard):
        header = (*header[:3], "audio s/s", *header[3:])
        cells = [(*row[:3], _ratio(one), *row[3:]) for row, one in zip(cells, heard, strict=True)]
    lines = table(cells, header).splitlines()
    groups = [
        list(rows) for _, rows in groupby(zip(results, lines[2:], strict=True), lambda pair: pair[0]["batch_size"])
    ]
    return "\n\n".join(["\n".join(lines[:2]), *("\n".join(line for _, line in group) for group in groups)])


def _cells(row: Row, others: Sequence[str]) -> tuple[str, ...]:
    acceptance, per_iteration = row["acceptance_rate"], row["tokens_per_iteration"]
    return (
        label(row),
        str(row["batch_size"]),
        f"{row['tokens_per_second']:,.0f}",
        f"{row['chunk_low']:,.0f}-{row['chunk_high']:,.0f}",
        to_plain(row),
        *(_ratio(row.get(f"ratio_to_{name}")) for name in others),
        "-" if per_iteration is None else f"{per_iteration:.2f}",
        "-" if acceptance is None else f"{acceptance:.0%}",
        whole_share(row["exact_match_to_plain"]),
        claim(row),
    )


def to_plain(row: Row) -> str:
    """The ratio with its interval; of an engine of ours that drafted nothing there is none."""
    if row["engine"] != "plain" and is_plain(row):
        return SAME_DECODING
    return f"{row['ratio_to_plain']:.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})"


def is_plain(row: Row) -> bool:
    """Whether it is an engine of ours, and drafted nothing."""
    return bool(row["drafted_tokens"] == 0)


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
    others = [row for row in rows if row["engine"] != "plain" and not is_plain(row)]
    speculating = [row for row in others if drafts(row["engine"])]
    parts = [f"batch {batch_size}: {_fastest([row for row in others if row['ratio_low'] > 1])}"]
    for what, group in (
        ("speculation LOSES to plain", [row for row in speculating if row["ratio_high"] < 1]),
        ("speculation beats plain", [row for row in speculating if row["ratio_low"] > 1]),
        ("not told apart from plain", [row for row in speculating if row["ratio_low"] <= 1 <= row["ratio_high"]]),
    ):
        if group:
            parts.append(f"{what}: " + ", ".join(f"{row['engine']} {row['ratio_to_plain']:.2f}" for row in group))
    if idle := [row["engine"] for row in rows if row["engine"] != "plain" and is_plain(row)]:
        parts.append(f"drafted nothing, the same decoding as plain: {', '.join(idle)}")
    return "; ".join(parts)


def _fastest(faster: Sequence[Row]) -> str:
    """Of those that are faster than plain beyond the noise; and of those with its rows, where that is another."""
    if not faster:
        return "nothing is faster than plain beyond the noise"
    best = max(faster, key=_to_plain)
    same = [row for row in faster if row["exact_match_to_plain"] == 1]
    said = f"fastest is {label(best)}, {_to_plain(best):.2f} x plain"
    if best in same:
        return said
    said += f" with {whole_share(best['exact_match_to_plain'])} of the rows equal to its"
    if not same:
        return f"{said}, and nothing with all of them is faster than plain beyond the noise"
    return f"{said}, and with all of them {label(max(same, key=_to_plain))}, {_to_plain(max(same, key=_to_plain)):.2f}"


def _to_plain(row: Mapping[str, Any]) -> float:
    return float(row["ratio_to_plain"])
