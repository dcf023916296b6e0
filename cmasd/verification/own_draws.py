"""Speculative sampling in which every row has draws of its own, so that none depends on its neighbours.

A draw is a hash of the seed, the row's key, the place in the row and what it is for (SplitMix64, Steele et al. 2014):
no state, no order. A row comes out the same in every batch, at every batch size.

Shapes: B rows, K draft positions, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmasd.verification.sampling import SamplingVerification

SMALL, COIN, LARGE = range(3)
"""What a draw is for: a token of the small model, the acceptance of one, a token of the large model."""
MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def uniform(seed: int, keys: NDArray[np.int64], places: NDArray[np.int64], purpose: int) -> NDArray[np.float64]:
    """Numbers in [0, 1), each a function of its row, its place, and what all share."""
    state = np.full(np.broadcast(keys, places).shape, seed % 2**64, dtype=np.uint64)
    for part in (keys, places, np.int64(purpose)):
        state = _mixed(state ^ np.asarray(part).astype(np.uint64))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    gamma, first, second = (np.uint64(factor) for factor in MIX)
    state = state + gamma
    state = (state ^ (state >> np.uint64(30))) * first
    state = (state ^ (state >> np.uint64(27))) * second
    return state ^ (state >> np.uint64(31))


class OwnDraws(SamplingVerification):
    """Lossless in distribution as `sampling` is, where it judges drafts."""

    def __init__(self, temperature: float, seed: int) -> None:
        super().__init__(temperature, seed)
        self._keys_B = self._places_B = np.zeros(0, np.int64)

    def about(self, keys: Sequence[int], places_B: Tensor) -> None:
        """The rows of the next `verify`, and the place of what follows in each."""
        self._keys_B, self._places_B = np.array(keys, dtype=np.int64), places_B.cpu().numpy()

    def coins(self, like_BK: Tensor) -> Tensor:
        """See `SamplingVerification.coins`."""
        places_BK = self._places_B[:, None] + np.arange(like_BK.shape[1])
        coins_BK = uniform(self.seed, self._keys_B[:, None], places_BK, COIN)
        return torch.from_numpy(coins_BK).to(like_BK.device)

    def draw(self, probs_BV: Tensor) -> Tensor:
        """See `SamplingVerification.draw`."""
        return self.draw_for(LARGE, probs_BV)

    def draw_for(self, purpose: int, probs_BV: Tensor) -> Tensor:
        """(B,) tokens drawn from (B, V) weights."""
        mass_BV = probs_BV.double().cumsum(-1)
        share_B = torch.from_numpy(uniform(self.seed, self._keys_B, self._places_B, purpose)).to(mass_BV.device)
        whole_B1 = mass_BV[:, -1:]
        # Below the whole, so that a token without mass is never hit.
        wanted_B1 = (share_B[:, None] * whole_B1).minimum(whole_B1.nextafter(torch.zeros_like(whole_B1)))
        return torch.searchsorted(mass_BV, wanted_B1, right=True).squeeze(1)
