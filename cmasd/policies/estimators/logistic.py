"""Acceptance by several signals of a token: its confidence, its position, and beyond these entropy and softmax margin.

log-odds = slope * logit(C) + offset_j + weights . (logit(c_ent) - logit(C), logit(p1 - p2) - logit(C)), fitted online
as in `acceptance`. Where C is max_prob the two add little; where C is a head's own prediction, much. A token without
logits (a free draft, a sibling in a tree) is estimated by confidence and position alone. The logit margin is not among
them: with p1 and p1 - p2 it is known. Nor is the row's own acceptance so far, which tells accepted tokens from
rejected ones no better than chance.

Shapes: N rows that are remembered, K draft, J judged tokens of these.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmasd.config.speculation import HOPE
from cmasd.policies.acceptance import REMEMBERED, Calibration, beforehand, newton, side_by_side
from cmasd.policies.base import Float64, Int64, Observation, beyond


class SignalsCalibration(Calibration):
    """Beforehand the new signals are thought to say nothing, within 1."""

    wants_signals = True

    def __init__(self, max_draft_tokens: int, hope: float = HOPE) -> None:
        super().__init__(max_draft_tokens, hope)
        self.weights_2 = np.zeros(2)
        self._beyond_NK2 = np.zeros((REMEMBERED, max_draft_tokens, 2))

    def log_odds(self) -> Float64:
        """See `Calibration`."""
        assert self.weights_2 is not None, "made at the beginning"
        odds_NK: Float64 = super().log_odds() + self._beyond_NK2[: self.rows] @ self.weights_2
        return odds_NK

    def _remembered(self) -> dict[str, NDArray[Any]]:
        return super()._remembered() | {"beyond": self._beyond_NK2}

    def _remember(self, seen: Sequence[Observation], confidence_NK: Float64, places: Int64) -> None:
        components = [
            np.empty((len(one.lengths_B), 0, 3)) if one.components_BK3 is None else one.components_BK3 for one in seen
        ]
        components_NK3 = side_by_side(components, len(self.offsets_K))[-len(places) :]
        self._beyond_NK2[places] = beyond(confidence_NK, components_NK3)

    def _fit(self) -> None:
        """Of slope, offsets and weights together."""
        at_J, position_J = self._judged()
        accepted_J, positions = position_J < self._counts_N3[at_J, 2], len(self.offsets_K)
        odds_J1, is_at_JK = self._odds_NK[at_J, position_J, None], np.eye(positions)[position_J]
        feature_JF = np.concatenate([odds_J1, is_at_JK, self._beyond_NK2[at_J, position_J]], axis=1)
        trusted, belief = beforehand(positions)
        trusted_F, belief_FF = np.r_[trusted, 0.0, 0.0], np.eye(len(trusted) + 2)
        belief_FF[: len(trusted), : len(trusted)] = belief
        start_F = np.r_[self.slope, self.offsets_K, self.weights_2]
        weights_F, _ = newton(feature_JF, accepted_J, start_F, trusted_F, belief_FF)
        self.slope, self.offsets_K, self.weights_2 = float(weights_F[0]), weights_F[1:-2], weights_F[-2:]
