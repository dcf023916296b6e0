"""The draft tokens that a verifier judged, counted by score, from the telemetry of a run.

Of each iteration the accepted tokens count and the first rejected one: the verifier's verdict on later ones means
nothing, because they follow a token that is not in the output. Rows are split at random into three parts, to fit, to
choose and to report. Tokens are counted in fine bins of log-odds and never kept, so memory does not grow with the run.

Shapes: N tokens, P parts, K draft positions, J bins.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cmasd.config.tree import Config
from cmasd.signals import COMPONENTS, FROM_SMALL, FROM_VERIFIER

Array = NDArray[np.float64]
Places = NDArray[np.int64]

FIT, CHOOSE, REPORT = 0, 1, 2
SHARES = (0.6, 0.2, 0.2)
"""Of the rows, by part."""
BINS, MOST_LOG_ODDS = 2048, 14.0
"""Of log-odds, evenly from -14 to 14; scores nearer to 0 or 1 are in the outermost."""
SCORES = ("max_prob", *COMPONENTS, "ensemble")
"""What confidence can be made from where the drafter has logits; a drafter's own head is told by what it recorded."""
RECORDED = ("confidence", *COMPONENTS)
COLUMNS = (
    "iteration_accepted",
    "token_source",
    *(f"{place}_{name}" for place in ("iteration_rejected", "token") for name in RECORDED),
)


@dataclass
class Counts:
    """Judged tokens of one score."""

    tokens_PKJ: Array
    accepted_PKJ: Array
    sums_PKJ: Array
    """Sum of the scores in a bin."""

    @classmethod
    def empty(cls, positions: int) -> "Counts":
        """Nothing counted."""
        tokens, accepted, sums = np.zeros((3, len(SHARES), positions, BINS))
        return cls(tokens, accepted, sums)

    def add(self, score_N: Array, part_N: Places, position_N: Places, accepted_N: Array) -> None:
        """Count tokens; those without a score are left out."""
        known_N = ~np.isnan(score_N)
        score_N, accepted_N = score_N[known_N], accepted_N[known_N]
        shape = self.tokens_PKJ.shape
        place_N = np.ravel_multi_index((part_N[known_N], position_N[known_N], _bin(score_N)), shape)
        for total, weight_N in ((self.tokens_PKJ, None), (self.accepted_PKJ, accepted_N), (self.sums_PKJ, score_N)):
            total += np.bincount(place_N, weight_N, total.size).reshape(shape)


def _bin(score_N: Array) -> Places:
    edge = 1 / (1 + np.exp(MOST_LOG_ODDS))
    inside_N = np.clip(score_N, edge, 1 - edge)
    share_N = (np.log(inside_N / (1 - inside_N)) + MOST_LOG_ODDS) / (2 * MOST_LOG_ODDS)
    return np.clip((share_N * BINS).astype(np.int64), 0, BINS - 1)


@dataclass
class Judged:
    """Counts of every score of one run."""

    config: Config
    """Of the run."""
    seed: int
    rows: int = 0
    tokens: int = 0
    counts: dict[str, Counts] = field(default_factory=dict)
    """By score; those that the telemetry cannot tell are absent."""

    def add(self, batch: pa.RecordBatch, place: tuple[int, ...]) -> None:
        """Rows of an output; `place`, the batch's own, seeds the split."""
        split_R = np.random.default_rng([self.seed, *place]).random(batch.num_rows)
        part_R = np.searchsorted(np.cumsum(SHARES)[:-1], split_R, side="right")
        part_I = np.repeat(part_R, lengths(batch, "iteration_accepted"))
        columns = {name: flat(batch, name) for name in COLUMNS}
        kept_I = columns["iteration_accepted"].astype(np.int64)
        is_accepted = ~np.isin(columns["token_source"], (FROM_VERIFIER, FROM_SMALL))
        assert is_accepted.sum() == kept_I.sum(), "each accepted draft token is in the output"
        is_rejected_I = ~np.isnan(columns["iteration_rejected_confidence"])
        accepted, rejected = int(kept_I.sum()), int(is_rejected_I.sum())
        part_N = np.concatenate([np.repeat(part_I, kept_I), part_I[is_rejected_I]])
        position_N = np.concatenate([places(kept_I), kept_I[is_rejected_I]])
        accepted_N = np.repeat([1.0, 0.0], [accepted, rejected])
        raw = {
            name: np.concatenate(
                [columns[f"token_{name}"][is_accepted], columns[f"iteration_rejected_{name}"][is_rejected_I]]
            )
            for name in RECORDED
        }
        self.rows += batch.num_rows
        self.tokens += accepted + rejected
        for score, score_N in self._scores(raw):
            counts = self.counts.setdefault(score, Counts.empty(self.config.drafter.max_draft_tokens))
            counts.add(score_N, part_N, position_N, accepted_N)

    def _scores(self, raw: dict[str, Array]) -> Iterator[tuple[str, Array]]:
        """Raw scores by name: recorded, or computed from the recorded components."""
        settings = self.config.confidence
        recorded = None if settings.calibration else self.config.score
        if recorded is not None:
            yield recorded, raw["confidence"]
        if np.isnan(raw["margin"]).all():
            return
        entropy, margin, softmax = (raw[name] for name in COMPONENTS)
        w1, w2, w3 = settings.weights
        computed = {
            "max_prob": largest_probability(margin, softmax, settings.margin_form),
            **{name: raw[name] for name in COMPONENTS},
            "ensemble": w1 * entropy + w2 * margin + w3 * softmax,
        }
        yield from ((name, values) for name, values in computed.items() if name != recorded)


def largest_probability(margin: Array, softmax: Array, margin_form: str) -> Array:
    """p1 from p1 - p2 and z1 - z2: p1 - p2 = p1 * (1 - exp(z2 - z1)), and the sigmoid gives exp(z2 - z1)."""
    sigmoid = margin if margin_form == "printed" else (1 + margin) / 2
    sigmoid = np.clip(sigmoid, 0.5 + 1e-7, 1.0)
    return np.clip(softmax * sigmoid / (2 * sigmoid - 1), 0.0, 1.0)


def places(kept_I: Places) -> Places:
    """0, 1, ... kept - 1 of each iteration, one after the other."""
    ends = np.cumsum(kept_I)
    return np.arange(int(kept_I.sum())) - np.repeat(ends - kept_I, kept_I)


def flat(batch: pa.RecordBatch, name: str) -> Any:
    """All entries of a list column, as float64."""
    return pc.list_flatten(batch.column(name)).to_numpy(zero_copy_only=False).astype(np.float64)


def lengths(batch: pa.RecordBatch, name: str) -> Any:
    """Entries of each row's list."""
    return pc.list_value_length(batch.column(name)).to_numpy(zero_copy_only=False)
