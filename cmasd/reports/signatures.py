"""Known ways in which a run disappoints, recognised in its figures, each with what to do about it.

A signature is named only where the evidence is more than noise: enough tokens, an interval, three standard errors.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from cmasd.evaluation.calibration.reliability import GROUPS, Group, expected_calibration_error, falls, reliability_curve
from cmasd.reports.evidence import Evidence

MOST_ROLLBACKS = 0.4
"""Share of drafting iterations with a rejection."""
LEAST_EXACT_MATCH = 0.9
"""Share of rows that equal AR decoding, under which a lossy run is named."""
MOST_GAP_NATS = 0.02
"""Mean log-probability gap per output token, above which a lossy run is named."""
LEAST_DRAFTING = 0.1
"""Share of iterations that drafted, under which drafts are no problem of the run, however poor: one that drafts takes
about twice as long as one that does not, so all of them together cost a tenth of the time at most."""
LEAST_OCCUPANCY = 0.8
LEAST_ROWS_PER_SLOT = 10
"""With fewer, the end of a run, where slots run empty because no row is left, is a large part of it."""
MOST_CUT = 0.05
LEAST_LOSS = 0.05
"""Share of AR's speed that a run must lose to be called a problem; less is what looking for a faster way may cost."""


@dataclass(frozen=True)
class Signature:
    """One finding."""

    key: str
    weight: Literal["problem", "notice"]
    title: str
    says: str
    """What the figures are."""
    advice: str


def signatures(evidence: Evidence) -> list[Signature]:
    """Problems first."""
    found = [signature for check in CHECKS for signature in check(evidence)]
    return sorted(found, key=lambda signature: signature.weight, reverse=True)


def _weight_of_drafts(evidence: Evidence) -> Literal["problem", "notice"]:
    """What is wrong with drafts is no problem of a run that hardly drafts."""
    drafting = evidence.drafting_share
    return "problem" if drafting is None or drafting >= LEAST_DRAFTING else "notice"


def _rollbacks(evidence: Evidence) -> Iterator[Signature]:
    rate, drafting = evidence.summary["rollback_rate"] or 0.0, evidence.drafting_share
    if rate > MOST_ROLLBACKS:
        of_all = "" if drafting is None else f"{drafting:.1%} of all; "
        yield Signature(
            "rollback",
            _weight_of_drafts(evidence),
            "Many drafts are rolled back",
            f"{rate:.1%} of the iterations that drafted ({of_all}above {MOST_ROLLBACKS:.0%}) had a rejection: drafter "
            "and verifier disagree.",
            "Distil the drafter from the verifier's own outputs (cmasd train), or lower drafter.max_draft_tokens.",
        )


def _quality(evidence: Evidence) -> Iterator[Signature]:
    baseline, gap = evidence.summary["baseline"], evidence.mean_gap_nats
    match = baseline["exact_match"] if baseline else None
    shown = f"{match:.1%} of the compared rows equal AR decoding" if match is not None else "no AR baseline was run"
    if evidence.config.is_stitched:
        if match is not None and match < LEAST_EXACT_MATCH:
            yield Signature(
                "quality",
                "notice",
                "Outputs are not the large model's",
                f"The small model speaks unchecked where it is sure; {shown}. Whether they are worse, a check of the "
                "answers tells.",
                "cmasd compare with compare.answer does that; a lower stitch.tau lets the large model speak more.",
            )
    elif evidence.config.lossless == "lossy":
        if gap > MOST_GAP_NATS or (match is not None and match < LEAST_EXACT_MATCH):
            yield Signature(
                "quality",
                "problem",
                "Outputs drift from AR decoding",
                f"The verifier gives output tokens {gap:.3f} nats less than its best token on average; {shown}.",
                "The tolerance is too permissive: lower verification.tau or gamma, or bound the loss with "
                "verification.kind=budget and a small verification.budget_nats_per_token.",
            )
    elif evidence.config.lossless == "exact" and match is not None and match < 1:
        yield Signature(
            "quality",
            "notice",
            "Lossless, yet some rows differ from AR decoding",
            f"Verification was exact, but only {shown}. Near-ties of two logits fall either way when forwards have "
            "other shapes.",
            "models.dtype=float32 or float64 makes such ties rarer; float64 shows whether they are the cause.",
        )


def _no_speedup(evidence: Evidence) -> Iterator[Signature]:
    baseline = evidence.summary["baseline"]
    if not baseline or baseline.get("drafted_tokens") == 0 or baseline["speedup"] >= 1:
        return
    sure = baseline["speedup_high"] < 1
    is_much = sure and baseline["speedup"] < 1 - LEAST_LOSS
    sample = evidence.sample(evidence.score_in_force)
    error = f" Confidence is off by {expected_calibration_error(sample):.3f} on average (ECE)." if sample else ""
    yield Signature(
        "no-speed-up",
        "problem" if is_much else "notice",
        "No speed-up over AR decoding" + ("" if sure else " could be shown"),
        f"{baseline['speedup']:.2f} times AR ({baseline['speedup_low']:.2f} to {baseline['speedup_high']:.2f}, 95 %), "
        f"{baseline['tokens_per_iteration']:.2f} tokens per row and iteration.{error}",
        "Decode plainly (policy.kind=plain), or try fewer engine.slots or a cheaper drafter. cmasd bench CONFIG "
        "--steps shows what a drafted token costs on this machine; cmasd calibrate RUN mends confidence.",
    )


def _not_monotone(evidence: Evidence) -> Iterator[Signature]:
    sample = evidence.sample(evidence.score_in_force)
    if sample is None:
        return
    if found := falls(reliability_curve(sample)):
        shown = ", ".join(
            f"from {low.accepted_share:.1%} at {_range(low)} to {high.accepted_share:.1%} at {_range(high)}"
            for low, high in found
        )
        yield Signature(
            "not-monotone",
            _weight_of_drafts(evidence),
            "More confidence does not mean more acceptance",
            f"The accepted share falls {shown}.",
            "Fit a calibration map (cmasd calibrate RUN), or switch confidence.kind to a single component.",
        )


def _range(group: Group) -> str:
    return f"{group.low:.1f} to {group.low + 1 / GROUPS:.1f}"


def _idle_slots(evidence: Evidence) -> Iterator[Signature]:
    occupancy, stats = evidence.summary["slot_occupancy"], evidence.stats
    if not 0 < occupancy < LEAST_OCCUPANCY:
        return
    actors = max([1, *(attempt["actors"] for attempt in evidence.attempts)])
    slots = actors * stats.slot_iterations / (stats.iterations + stats.idle_iterations)
    if evidence.summary["rows"] >= LEAST_ROWS_PER_SLOT * slots:
        yield Signature(
            "idle-slots",
            "notice",
            "Slots stand idle",
            f"{occupancy:.1%} of the slots held a row, over all iterations (under {LEAST_OCCUPANCY:.0%}).",
            "Raise actors.shards_in_flight or output.rows_per_shard, or lower engine.slots.",
        )


def _cut(evidence: Evidence) -> Iterator[Signature]:
    cut, rows = evidence.summary["finish_reasons"]["length"], evidence.summary["rows"]
    if rows and cut / rows > MOST_CUT:
        yield Signature(
            "cut",
            "notice",
            "Many outputs were cut",
            f"{cut:,} of {rows:,} rows reached the token limit before they ended (above {MOST_CUT:.0%}).",
            "Raise engine.max_new_tokens.",
        )


def _failed_rows(evidence: Evidence) -> Iterator[Signature]:
    errors = evidence.summary["errors"]
    if errors:
        yield Signature(
            "failed-rows",
            "notice",
            "Rows failed",
            f"{errors:,} of {evidence.summary['rows']:,} rows have no output.",
            "The kinds are listed under Failed rows; each row's own reason is in the column error.",
        )


CHECKS: tuple[Callable[[Evidence], Iterator[Signature]], ...] = (
    _rollbacks,
    _quality,
    _no_speedup,
    _not_monotone,
    _idle_slots,
    _cut,
    _failed_rows,
)
