"""A calibration as a person reads it: every score, then the best one by draft position and by confidence."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cmasd.evaluation.calibration.judged import SHARES
from jobs.tables import table

if TYPE_CHECKING:
    from cmasd.evaluation.calibration.drift import Drift
    from cmasd.evaluation.calibration.fit import Fitted
    from cmasd.evaluation.calibration.judged import Judged
    from cmasd.evaluation.calibration.reliability import Reliability

MOST_POSITIONS = 8
"""Columns of a reliability table."""


def report(run: str, judged: "Judged", fitted: Sequence["Fitted"]) -> str:
    """All tables."""
    best = fitted[0]
    fit, choose, rest = (f"{share:.0%}" for share in SHARES)
    parts = [
        f"{run}: {judged.tokens:,} judged draft tokens of {judged.rows:,} rows. Maps are fitted to {fit} of the rows "
        f"and chosen by {choose}; all figures are of the other {rest}.",
        _scores(fitted),
        f"{best.score} by draft position:",
        _positions(best),
        f"Share of drafts accepted, by {best.score} as it is and by draft position (tokens in brackets):",
        _curve(best.before, best.positions_before),
    ]
    if best.method != "none":
        parts += [
            f"The same after calibration by {best.method}: each share should lie within the bounds on its left.",
            _curve(best.after, best.positions_after),
        ]
    return "\n\n".join(parts)


def advice(best: "Fitted", file: str, output: str) -> str:
    """What to do with the maps, in a run folder of its own; one that is not better than none is not recommended."""
    if best.helps:
        return f"To use it: confidence.kind={best.score} confidence.calibration={file} output.path={output}"
    plain = f"confidence.kind={best.score} confidence.calibration=null output.path={output}"
    if best.method == "none":
        return f"No map of {best.score} is better than the score as it is. Use it so: {plain}"
    return (
        f"The map of {best.score}, by {best.method}, is not better than the score as it is on held-out rows "
        f"({best.after.log_loss_nats:.4f} nats, {best.before.log_loss_nats:.4f} without). Use it so: {plain}"
    )


def _scores(fitted: Sequence["Fitted"]) -> str:
    header = ("score", "map", "tokens", "accepted", "ECE before", "after", "AUC", "nats before", "after", "monotone")
    rows = [
        (
            one.score,
            one.method,
            f"{one.before.tokens:,}",
            f"{one.before.accepted_share:.1%}",
            f"{one.before.ece:.3f}",
            f"{one.after.ece:.3f}",
            f"{one.after.auc:.3f}",
            f"{one.before.log_loss_nats:.3f}",
            f"{one.after.log_loss_nats:.3f}",
            _yes(one.before.is_monotone),
        )
        for one in fitted
    ]
    return table(rows, header)


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def drift_table(run: str, other: str, judged: "Judged", drifts: Sequence["Drift"]) -> str:
    """What the maps of one run are worth on another."""
    head = (
        f"{other}: {judged.tokens:,} judged draft tokens of {judged.rows:,} rows, by the maps of {run} and by its own; "
        "all figures are of the same held-out rows."
    )
    header = ("score", "tokens", "accepted", "ECE raw", f"maps of {run}", "own maps", "AUC", "nats raw", "moved", "own")
    rows = [
        (
            one.score,
            f"{one.raw.tokens:,}",
            f"{one.raw.accepted_share:.1%}",
            *(f"{part.ece:.3f}" for part in (one.raw, one.moved, one.own)),
            f"{one.raw.auc:.3f}",
            *(f"{part.log_loss_nats:.3f}" for part in (one.raw, one.moved, one.own)),
        )
        for one in drifts
    ]
    return f"{head}\n\n{table(rows, header)}"


def _positions(best: "Fitted") -> str:
    header = ("position", "tokens", "accepted", "mean before", "after", "ECE before", "after", "AUC")
    rows = [
        (
            str(number),
            f"{before.tokens:,}",
            f"{before.accepted_share:.1%}",
            f"{before.mean_confidence:.1%}",
            f"{after.mean_confidence:.1%}",
            f"{before.ece:.3f}",
            f"{after.ece:.3f}",
            f"{after.auc:.3f}",
        )
        for number, (before, after) in enumerate(zip(best.positions_before, best.positions_after, strict=True), start=1)
    ]
    return table(rows, header)


def _curve(whole: "Reliability", by_position: Sequence["Reliability"]) -> str:
    from cmasd.evaluation.calibration.reliability import GROUPS

    columns = [whole, *by_position[:MOST_POSITIONS]]
    shares = [{group.low: f"{group.accepted_share:.0%} ({group.tokens:,})" for group in one.curve} for one in columns]
    header = ("confidence", "all", *(str(number) for number in range(1, len(columns))))
    rows = [
        (f"{low / GROUPS:.0%} to {(low + 1) / GROUPS:.0%}", *(one.get(low / GROUPS, "-") for one in shares))
        for low in range(GROUPS)
    ]
    return table(rows, header)
