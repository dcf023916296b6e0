"""The charts of a report, from the evidence; a chart whose data the telemetry does not hold is left out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cmasd.evaluation.calibration.judged import Array, Places
from cmasd.evaluation.calibration.reliability import (
    GROUPS,
    ScoredTokens,
    area_under_curve,
    expected_calibration_error,
    reliability_curve,
)
from cmasd.reports.charts import Bar, Chart, Line
from cmasd.reports.evidence import Evidence, ShardFacts
from cmasd.telemetry.acceptance import Acceptance

MOST_POINTS = 60
"""Of a line."""
FEWEST_ROWS_SHOWN = 0.01
"""Share of rows that reach an iteration, under which its mean is left to the table."""
MOST_ACTORS = 24
"""Bars of the chart of actors."""
MOST_SLOW_SHARDS = 10


def drafting(evidence: Evidence) -> list[Chart]:
    """What was drafted and accepted."""
    return [chart for chart in (_by_position(evidence), _by_source(evidence), _over_iterations(evidence),
                                _by_length(evidence), _over_shards(evidence)) if chart]  # fmt: skip


def _by_source(evidence: Evidence) -> Chart | None:
    """By who proposed the tokens, of runs with more than one who did."""
    acceptance = sum((shard.totals.acceptance for shard in evidence.shards), start=Acceptance())
    sources = acceptance.shown()["source"]
    if len(sources) < 2:
        return None
    judged = sum(one["judged"] for one in sources)
    most = max(sources, key=lambda one: one["judged"])
    return Chart(
        key="by-source",
        title="Acceptance by source",
        says=f"{most['judged'] / judged:.0%} of the judged tokens were proposed by: {most['of']}; {most['share']:.0%} "
        "of those were accepted.",
        x_label="who proposed the token",
        y_label="accepted",
        header=("source", "judged", "accepted", "accepted of judged"),
        rows=[[one["of"], f"{one['judged']:,}", f"{one['accepted']:,}", f"{one['share']:.1%}"] for one in sources],
        bars=[Bar(one["of"], one["share"]) for one in sources],
        top=1.0,
        shares=True,
    )


def _by_position(evidence: Evidence) -> Chart | None:
    drafted, checked, accepted = evidence.iterations.by_position()
    if not checked.sum():
        return None
    shares = accepted / np.maximum(checked, 1)
    rows = [
        [str(k), f"{d:,.0f}", f"{c:,.0f}", f"{a:,.0f}", f"{share:.1%}" if c else "-"]
        for k, (d, c, a, share) in enumerate(zip(drafted, checked, accepted, shares, strict=True), start=1)
    ]
    last = len(rows)
    ends = f", {shares[last - 1]:.0%} of those at position {last}" if last > 1 and checked[last - 1] else ""
    return Chart(
        key="by-position",
        title="Acceptance by draft position",
        says=f"{shares[0]:.0%} of the tokens at position 1 were accepted{ends}.",
        x_label="position in the draft",
        y_label="accepted",
        header=("position", "drafted", "judged", "accepted", "accepted of judged"),
        rows=rows,
        bars=[Bar(str(k), float(share)) for k, share in enumerate(shares, start=1)],
        top=1.0,
        shares=True,
    )


def _over_iterations(evidence: Evidence) -> Chart | None:
    counts = evidence.iterations
    if not counts.drafted_at.sums.sum():
        return None
    edges = _edges(len(counts.rows_at.sums))
    rows_at, drafted, accepted = (
        np.add.reduceat(histogram.sums, edges[:-1])
        for histogram in (counts.rows_at, counts.drafted_at, counts.accepted_at)
    )
    ends = [_span(low, high) for low, high in pairwise(edges.tolist())]
    drafted, accepted = drafted / rows_at, accepted / rows_at
    shown = int((rows_at >= FEWEST_ROWS_SHOWN * rows_at[0]).sum())
    return Chart(
        key="over-iterations",
        title="Draft length along a row",
        says=f"Mean tokens per iteration. First iterations of a row drafted {drafted[0]:.2f} tokens, the last ones "
        f"shown {drafted[shown - 1]:.2f}. Drawn as far as {FEWEST_ROWS_SHOWN:.0%} of the rows reach.",
        x_label="iteration of the row",
        y_label="tokens",
        header=("iteration", "row iterations", "mean drafted", "mean accepted"),
        rows=[
            [end, f"{n:,.0f}", f"{d:.2f}", f"{a:.2f}"]
            for end, n, d, a in zip(ends, rows_at, drafted, accepted, strict=True)
        ],
        lines=[
            Line("drafted", _points(edges[:shown] + 1, drafted[:shown])),
            Line("accepted", _points(edges[:shown] + 1, accepted[:shown])),
        ],
    )


def _by_length(evidence: Evidence) -> Chart | None:
    iterations, accepted = evidence.iterations.drafted.sums, evidence.iterations.accepted_by_drafted.sums
    if len(iterations) < 2:
        return None
    means = accepted / np.maximum(iterations, 1)
    total = iterations.sum()
    return Chart(
        key="by-length",
        title="What drafts of each length yield",
        says=f"{iterations[0] / total:.0%} of the row iterations drafted nothing.",
        x_label="draft length",
        y_label="tokens",
        header=("draft length", "row iterations", "share", "mean accepted", "mean rejected or unread"),
        rows=[
            [str(k), f"{n:,.0f}", f"{n / total:.1%}", f"{mean:.2f}", f"{k - mean:.2f}" if n else "-"]
            for k, (n, mean) in enumerate(zip(iterations, means, strict=True))
        ],
        bars=[
            Bar(str(k), float(means[k]), float(k - means[k]) if iterations[k] else 0.0)
            for k in range(1, len(iterations))
        ],
        bar_names=("accepted", "not accepted"),
    )


def _over_shards(evidence: Evidence) -> Chart | None:
    shards = evidence.shards
    if len(shards) < 2:
        return None
    edges = _edges(len(shards))
    iterations, drafted, accepted = (
        np.add.reduceat(np.array([getattr(shard.totals, name) for shard in shards], dtype=np.float64), edges[:-1])
        for name in ("iterations", "drafted_tokens", "accepted_tokens")
    )
    drafted, accepted = drafted / np.maximum(iterations, 1), accepted / np.maximum(iterations, 1)
    ends = [_span(low, high) for low, high in pairwise(edges.tolist())]
    return Chart(
        key="over-shards",
        title="Draft length over the corpus",
        says=f"Mean tokens per row and iteration, between {drafted.min():.2f} and {drafted.max():.2f} drafted.",
        x_label="shard, in input order",
        y_label="tokens",
        header=("shard", "mean drafted", "mean accepted"),
        rows=[[end, f"{d:.2f}", f"{a:.2f}"] for end, d, a in zip(ends, drafted, accepted, strict=True)],
        lines=[
            Line("drafted", _points(edges[:-1] + 1, drafted)),
            Line("accepted", _points(edges[:-1] + 1, accepted)),
        ],
    )


def confidence(evidence: Evidence) -> list[Chart]:
    """Confidence against acceptance, by the score that was in force."""
    sample = evidence.sample(evidence.score_in_force)
    return list(_of_sample(sample)) if sample is not None and sample.size else []


def _of_sample(sample: ScoredTokens) -> Iterator[Chart]:
    groups = reliability_curve(sample)
    by_low = {round(group.low * GROUPS): group for group in groups}
    table = [
        [
            f"{group.low:.1f} to {group.low + 1 / GROUPS:.1f}",
            f"{group.tokens:,}",
            f"{group.mean_confidence:.3f}",
            f"{group.accepted_share:.1%}",
        ]
        for group in groups
    ]
    header = ("confidence", "judged tokens", "mean confidence", "accepted")
    most = max(groups, key=lambda group: group.tokens)
    yield Chart(
        key="by-confidence",
        title="Acceptance by confidence",
        says=f"Most judged tokens, {most.tokens / sample.size:.0%}, have a confidence of {most.low:.1f} to "
        f"{most.low + 1 / GROUPS:.1f}; {most.accepted_share:.0%} of those were accepted.",
        x_label="confidence",
        y_label="judged tokens",
        header=header,
        rows=table,
        bars=[
            Bar(f"{g / GROUPS:.1f}", group.tokens * group.accepted_share, group.tokens * (1 - group.accepted_share))
            if (group := by_low.get(g))
            else Bar(f"{g / GROUPS:.1f}", 0.0)
            for g in range(GROUPS)
        ],
        bar_names=("accepted", "rejected"),
    )
    yield Chart(
        key="reliability",
        title="Reliability curve",
        says=f"ECE {expected_calibration_error(sample):.3f}, AUC {area_under_curve(sample):.3f}. On the diagonal, "
        "confidence is the probability of acceptance.",
        x_label="mean confidence",
        y_label="accepted",
        header=header,
        rows=table,
        lines=[
            Line("measured", [(group.mean_confidence, group.accepted_share) for group in groups]),
            Line("calibrated", [(0.0, 0.0), (1.0, 1.0)]),
        ],
        top=1.0,
        shares=True,
    )


@dataclass(frozen=True)
class Actor:
    """What one actor did."""

    name: str
    shards: int
    rows: int
    output_tokens: int
    seconds: float
    """From its first shard's start to its last one's end."""

    @property
    def tokens_per_second(self) -> float:
        """Output tokens."""
        return self.output_tokens / self.seconds if self.seconds else 0.0


def actors(shards: Sequence[ShardFacts]) -> list[Actor]:
    """In the order of their starts; shards without a recorded time are left out."""
    by_actor: dict[str, list[ShardFacts]] = {}
    for shard in shards:
        if shard.timing:
            by_actor.setdefault(shard.timing.actor, []).append(shard)
    spans = {
        name: [(shard.timing.started_at, shard.timing.ended_at) for shard in own if shard.timing]
        for name, own in by_actor.items()
    }
    return [
        Actor(
            name,
            len(by_actor[name]),
            sum(shard.totals.rows for shard in by_actor[name]),
            sum(shard.totals.output_tokens for shard in by_actor[name]),
            max(end for _, end in spans[name]) - min(start for start, _ in spans[name]),
        )
        for name in sorted(by_actor, key=lambda name: min(spans[name]))
    ]


def throughput(evidence: Evidence) -> Chart | None:
    """Of each actor; null where the times are not recorded."""
    found = actors(evidence.shards)
    if not found:
        return None
    rates = [actor.tokens_per_second for actor in found]
    return Chart(
        key="actors",
        title="Throughput by actor",
        says=f"{len(found)} actor(s), between {min(rates):,.0f} and {max(rates):,.0f} output tokens per second each.",
        x_label="actor, in order of start",
        y_label="tokens/s",
        header=("actor", "name", "shards", "rows", "output tokens", "seconds", "tokens/s"),
        rows=[
            [str(n), actor.name, f"{actor.shards:,}", f"{actor.rows:,}", f"{actor.output_tokens:,}",
             f"{actor.seconds:,.1f}", f"{actor.tokens_per_second:,.1f}"]
            for n, actor in enumerate(found, start=1)
        ],
        bars=[Bar(str(n), rate) for n, rate in enumerate(rates[:MOST_ACTORS], start=1)],
    )  # fmt: skip


def slowest(evidence: Evidence) -> tuple[list[str], list[list[str]]]:
    """Table of the slowest shards by seconds, or of those with the most work where seconds are not recorded."""
    timed = [(shard.timing.seconds, shard) for shard in evidence.shards if shard.timing]
    ranked = timed or [(float(shard.totals.iterations), shard) for shard in evidence.shards]
    ranked = sorted(ranked, key=lambda pair: pair[0], reverse=True)[:MOST_SLOW_SHARDS]
    first = ["seconds"] if timed else []
    rows = [
        [
            "part-{:05d}-{:06d}".format(*shard.position),
            *([f"{value:,.1f}"] if timed else []),
            f"{shard.totals.rows:,}",
            f"{shard.totals.output_tokens:,}",
            f"{shard.totals.iterations:,}",
            f"{shard.totals.acceptance_rate:.1%}" if shard.totals.drafted_tokens else "-",
            f"{shard.totals.errors:,}",
        ]
        for value, shard in ranked
    ]
    return ["shard", *first, "rows", "output tokens", "verifier forwards", "acceptance", "failed"], rows


def _edges(size: int) -> Places:
    """Borders of at most `MOST_POINTS` groups of neighbours."""
    return np.unique(np.linspace(0, size, min(size, MOST_POINTS) + 1).astype(np.int64))


def _span(low: int, high: int) -> str:
    return str(low + 1) if high == low + 1 else f"{low + 1} to {high}"


def _points(at: Places, values: Array) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in zip(at, values, strict=True)]
