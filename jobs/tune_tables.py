"""A tuning as a person reads it: what was tried, what the knobs are, and what to do."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cmasd.evaluation.speed.engines import SAME_DECODING
from jobs.tables import table

if TYPE_CHECKING:
    from cmasd.evaluation.quality.pareto import ParetoPoint
    from cmasd.evaluation.tuning.search import Search

KNOBS = ("setting", "k_max", "alpha", "entropy", "margin", "softmax", "tau", "tau_base", "gamma", "x plain, searched",
         "measured", "gap, searched", "measured")  # fmt: skip
Row = dict[str, Any]


def searched(found: "Search") -> str:
    """How much was tried, and how."""
    return (
        f"{found.replayed} lossless settings were replayed from one recording of {found.rows} rows; "
        f"{found.decoded} lossy ones were decoded on all of them, {found.pruned} more on some and given up. Speeds of "
        "the search are of a table of iteration times; measured ones are of other rows, in turns with plain decoding."
    )


def knob_table(rows: Sequence[Row]) -> str:
    """One line for each setting that the search proposed."""
    return table([_knob_cells(row) for row in rows if row["tried"] is not None], KNOBS)


def _knob_cells(row: Row) -> tuple[str, ...]:
    tried = row["tried"]
    knobs = tried["knobs"]
    lossy = knobs["tau_base"] is not None
    return (
        row["engine"],
        str(knobs["max_draft_tokens"]),
        f"{knobs['alpha']:g}",
        *(f"{weight:g}" for weight in knobs["weights"]),
        knobs["tau_form"] if lossy else "exact",
        f"{knobs['tau_base']:g}" if lossy else "-",
        f"{knobs['gamma']:g}" if lossy else "-",
        f"{tried['speedup']:.2f}",
        f"{row['ratio_to_plain']:.2f}" if row["drafted_tokens"] else SAME_DECODING,
        f"{tried['gap_nats']:.4f}",
        f"{row['mean_gap_nats_per_token']:.4f}",
    )


def sentence(best: "ParetoPoint", rows: Sequence[Row], max_gap_nats: float) -> str:
    """What to do."""
    asked = "the same output" if max_gap_nats == 0 else f"a gap of at most {max_gap_nats:g} nats per token"
    if best.kind != "plain":
        return (
            f"Use {best.engine}: {best.ratio_to_plain:.2f} ({best.ratio_low:.2f}-{best.ratio_high:.2f}) times plain "
            f"decoding, with {asked}; BLEU {best.bleu_to_plain:.1f} to plain's output."
        )
    drafting = [row for row in rows if row["drafted_tokens"]]
    if not drafting:
        return "Use plain decoding: no setting drafted anything, which is the same decoding."
    fastest = max(drafting, key=lambda row: float(row["ratio_to_plain"]))
    return (
        f"Use plain decoding: with {asked}, no setting is faster beyond the noise. The fastest that drafts is "
        f"{fastest['engine']} with {fastest['ratio_to_plain']:.2f} ({fastest['ratio_low']:.2f}-"
        f"{fastest['ratio_high']:.2f}) times plain's speed, a gap of {fastest['mean_gap_nats_per_token']:.3f} nats per "
        f"token and BLEU {fastest['bleu_to_plain']:.1f} to plain's output."
    )
