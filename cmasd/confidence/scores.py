"""Confidence C in [0, 1] from one row of drafter logits (CM-ASD, arXiv 2508.15371, section 3).

The paper prints the normalised entropy itself, which measures uncertainty; it is inverted here. Its
logit margin sigmoid(z1 - z2) never falls under 0.5; the full range is the default, the printed form
an option. Raw scores are not calibrated: P(accept | C = c) = c holds only after a fitted map.

Shapes: B rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cmasd.confidence.largest import Statistics, statistics
from cmasd.confidence.maps import CalibrationMap, load_calibration
from cmasd.config.speculation import INSIGHTS, ConfidenceConfig
from cmasd.signals import COMPONENTS, LOGIT_SCORES


class Components(Protocol):
    """What a confidence is made of; float32, of one shape."""

    @property
    def entropy(self) -> Tensor:
        """1 - H(P_d)/ln V."""

    @property
    def margin(self) -> Tensor:
        """2*sigmoid(z1 - z2) - 1, or sigmoid(z1 - z2) in the printed form."""

    @property
    def softmax(self) -> Tensor:
        """p1 - p2."""

    @property
    def max_prob(self) -> Tensor:
        """p1."""


class Scores(NamedTuple):
    """`Components` of one drafted position, (B,), or of several, (B, K)."""

    token: Tensor
    """int64: the argmax."""
    values: Tensor
    """(..., 4): `LOGIT_SCORES`."""

    @classmethod
    def stack(cls, positions: Sequence["Scores"]) -> "Scores":
        """(B, K) of K positions."""
        tokens, values = zip(*positions, strict=True)
        return cls(torch.stack(tokens, -1), torch.stack(values, -2))

    @property
    def entropy(self) -> Tensor:
        """See `Components`."""
        return self.values[..., LOGIT_SCORES.index("entropy")]

    @property
    def margin(self) -> Tensor:
        """See `Components`."""
        return self.values[..., LOGIT_SCORES.index("margin")]

    @property
    def softmax(self) -> Tensor:
        """See `Components`."""
        return self.values[..., LOGIT_SCORES.index("softmax")]

    @property
    def max_prob(self) -> Tensor:
        """See `Components`."""
        return self.values[..., LOGIT_SCORES.index("max_prob")]

    @property
    def components(self) -> Tensor:
        """(..., 3): `COMPONENTS`, as a draft carries them."""
        return self.values[..., : len(COMPONENTS)]


def score(logits_BV: Tensor, margin_form: str = "full") -> Scores:
    """From one pass over the logits; masked ones (-inf) count as probability 0."""
    return scores_of(statistics(logits_BV.float()), margin_form)


def scores_of(found: Statistics, margin_form: str) -> Scores:
    """The statistics as they are asked for."""
    values = found.scores
    if margin_form == "printed":
        values = values.clone()
        values[..., LOGIT_SCORES.index("margin")].add_(1).mul_(0.5)
    return Scores(found.token, values)


@dataclass(frozen=True)
class Confidence:
    """One way of turning components into C."""

    kind: str
    weights: tuple[float, float, float]
    margin_form: str
    calibration: CalibrationMap | None

    def __call__(self, logits_BV: Tensor, judged_B: Tensor | None = None) -> tuple[Tensor, Scores]:
        """Return C (B,) float32 in [0, 1] and what is behind it; `judged_B` as in `combine`."""
        scores = score(logits_BV, self.margin_form)
        return self.combine(scores, judged_B), scores

    def combine(self, scores: Components, judged: Tensor | None = None) -> Tensor:
        """C of given components, in their shape; `judged`: what is not made of them, for the kind `head` the drafter's
        own prediction, for the others see `Insight`.
        """
        if self.kind == "ensemble":
            w1, w2, w3 = self.weights
            raw = w1 * scores.entropy + w2 * scores.margin + w3 * scores.softmax
        elif self.kind == "head" or self.kind in INSIGHTS:
            assert judged is not None, "a configuration is checked to have it"
            raw = judged.float()
        else:
            raw = getattr(scores, self.kind)
        return raw if self.calibration is None else self.calibration(raw)

    @property
    def linear(self) -> tuple[tuple[float, float, float, float], float] | None:
        """C as weights of entropy, margin (in the full form), softmax and max_prob, and what is added; None where it is
        something else.
        """
        if self.calibration is not None or self.kind not in (*LOGIT_SCORES, "ensemble"):
            return None
        own = (
            (*self.weights, 0.0) if self.kind == "ensemble" else tuple(float(one == self.kind) for one in LOGIT_SCORES)
        )
        entropy, margin, softmax, max_prob = own
        if self.margin_form == "printed":  # (margin + 1) / 2
            return (entropy, margin / 2, softmax, max_prob), margin / 2
        return (entropy, margin, softmax, max_prob), 0.0


def build_confidence(config: ConfidenceConfig, kind: str | None = None) -> Confidence:
    """Of `kind`, which is `config.kind` unless told otherwise (`Config.score` resolves `auto`).

    Raises `ConfigError` when the calibration file is missing or malformed.
    """
    w1, w2, w3 = config.weights
    score = config.kind if kind is None else kind
    return Confidence(score, (w1, w2, w3), config.margin_form, load_calibration(config, score))
