"""A comparison as a person reads it: speed and counters, quality and cost, and what to do in one sentence."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cmasd.evaluation.speed.engines import SAME_DECODING
from jobs.tables import claim, table, whole_share

if TYPE_CHECKING:
    from cmasd.evaluation.compare.comparison import Compared
    from cmasd.evaluation.compare.recommend import Recommendation

PLAIN = "ar_greedy"
Row = dict[str, Any]
SPEED = ("engine", "tokens/s", "x AR (95 %)", "tok/iter", "accepted", "rolled back", "wasted/token", "by position")
WORTH = ("engine", "lossless", "= AR", "BLEU to AR", "gap nats/token", "accelerator-hours (95 %)", "cost (95 %)")
ANSWERS = (
    "engine",
    "right (95 %)",
    "points to AR (95 %)",
    "of rows",
    "tokens/row",
    "s/row",
    "tokens/s",
    "x AR (95 %)",
    "large",
    "switches/row",
)
WORDS = ("engine", "word error rate (95 %)")
SCORES = ("engine", "BLEU (95 %)", "p", "chrF (95 %)", "p", "ROUGE-1", "ROUGE-2", "ROUGE-Lsum")


def speed_table(rows: Sequence[Row]) -> str:
    """How fast, and what became of the drafts."""
    return table([_speed_cells(row) for row in rows], SPEED)


def _speed_cells(row: Row) -> tuple[str, ...]:
    return (
        row["name"],
        f"{row['tokens_per_second']:,.0f}",
        speedup(row),
        _or_dash(row["tokens_per_iteration"], "{:.2f}"),
        _or_dash(row["acceptance_rate"], "{:.0%}"),
        _or_dash(row["rollback_rate"], "{:.0%}"),
        _or_dash(row["wasted_tokens_per_output_token"], "{:.2f}"),
        " ".join(_or_dash(share, "{:.0%}") for share in row["acceptance_by_position"] or []) or "-",
    )


def worth_table(rows: Sequence[Row]) -> str:
    """How like plain decoding, and what the whole corpus takes."""
    return table([_worth_cells(row) for row in rows], WORTH)


def _worth_cells(row: Row) -> tuple[str, ...]:
    return (
        row["name"],
        claim(row),
        whole_share(row["exact_match"]),
        f"{row['relative_bleu']:.2f}",
        _or_dash(row["mean_gap_nats"], "{:.4f}"),
        _interval(row, "accelerator_hours", number),
        _interval(row, "cost", number),
    )


def score_table(rows: Sequence[Row]) -> str:
    """Against references; `p` is of a difference from `ar_greedy` by chance. Of transcripts word error rates alone."""
    if all(row.get("wer") is not None for row in rows):
        return table(
            [(row["name"], f"{row['wer']:.2f}% ({row['wer_low']:.2f}-{row['wer_high']:.2f})") for row in rows], WORDS
        )
    return table([_score_cells(row) for row in rows], SCORES)


def _score_cells(row: Row) -> tuple[str, ...]:
    cells = [row["name"]]
    for name in ("bleu", "chrf"):
        cells += [f"{row[name]:.2f} +- {row[f'{name}_ci']:.2f}", _or_dash(row[f"{name}_p_value"], "{:.3f}")]
    return (*cells, *(_or_dash(row[name], "{:.2f}") for name in ("rouge1", "rouge2", "rougeLsum")))


def answer_table(rows: Sequence[Row]) -> str:
    """How many answers are right, what that took, and who said it."""
    return table([_answer_cells(row) for row in rows], ANSWERS)


def _answer_cells(row: Row) -> tuple[str, ...]:
    return (
        row["name"],
        f"{row['accuracy']:.1%} ({row['accuracy_low']:.1%}-{row['accuracy_high']:.1%})",
        _points(row),
        f"{row['scored_rows']:,}",
        f"{row['output_tokens'] / row['rows']:,.0f}",
        f"{row['seconds'] / row['rows']:.3g}",
        f"{row['tokens_per_second']:,.0f}",
        speedup(row),
        _or_dash(row["large_share"], "{:.1%}"),
        _or_dash(row["switches_per_row"], "{:.1f}"),
    )


def _points(row: Row) -> str:
    """Of a hundred."""
    if row["name"] == PLAIN or row.get("accuracy_gap") is None:
        return "-"
    gap, low, high = (100 * row[f"accuracy_gap{end}"] for end in ("", "_low", "_high"))
    return f"{gap:+.1f} ({low:+.1f} to {high:+.1f})"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def speedup(row: Row) -> str:
    """Over plain decoding, with its interval; of a way that drafted nothing there is none."""
    if row["drafted_tokens"] == 0 and row["name"] != PLAIN and row.get("large_share", 1) == 1:
        return SAME_DECODING
    return f"{row['speedup']:.2f} ({row['speedup_low']:.2f}-{row['speedup_high']:.2f})"


def _interval(row: Row, name: str, say: Callable[[float], str]) -> str:
    if row[name] is None:
        return "-"
    return f"{say(row[name])} ({say(row[f'{name}_low'])}-{say(row[f'{name}_high'])})"


def number(value: float) -> str:
    """Three digits, without an exponent: of hours and money, which may be of any size."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 4
    return f"{value:,.{digits}f}"


def sentence(one: "Recommendation", plain: "Compared") -> str:
    """What to do."""
    choice, best = one.choice, one.best_drafting
    if choice is not plain:
        saved = f"{number(plain.accelerator_hours - choice.accelerator_hours)} of {number(plain.accelerator_hours)}"
        said = (
            f"Use {choice.name} ({settings(choice.name)}): {speedup(choice.to_dict())} times plain decoding with "
            f"{_same_output(choice)}, which saves {saved} accelerator-hours{_money(plain, choice)}"
        )
    elif best is None and one.same_decoding:
        said = (
            f"Use plain decoding (policy.kind=plain): {' and '.join(one.same_decoding)} drafted nothing, which is the "
            "same decoding"
        )
    elif best is None:
        said = "Use plain decoding (policy.kind=plain): no lossless way of drafting was measured"
    else:
        said = (
            "Use plain decoding (policy.kind=plain): no lossless way of drafting is faster beyond the noise, the best "
            f"being {best.name} with {speedup(best.to_dict())} times its speed"
        )
    if (lossy := one.faster_lossy) is not None:
        said += (
            f"; {lossy.name}, which is lossy, reaches {lossy.speedup:.2f} times at BLEU {lossy.relative_bleu:.1f} "
            "to its output"
        )
    if (peer := one.faster_peer) is not None:
        said += f"; {peer.name} reaches {peer.speedup:.2f} times with {_same_output(peer)}"
    return said + "."


def _same_output(one: "Compared") -> str:
    rows = "" if one.exact_match == 1 else f" in {whole_share(one.exact_match)} of the rows"
    return f"the same output{rows}"


def settings(name: str) -> str:
    """The overrides that choose a way of decoding."""
    from cmasd.evaluation.compare.ways import WAYS

    return f"policy.kind={WAYS[name].policy} verification.kind={WAYS[name].verification}"


def _money(plain: "Compared", choice: "Compared") -> str:
    if plain.cost is None or choice.cost is None:
        return ""
    return f" and {number(plain.cost - choice.cost)} of {number(plain.cost)} in money"
