"""Whisper's encoder: two convolutions over log-mel frames, then layers like BART's with their norms first.

Every recording is heard in windows of one length, with silence behind its end: rows need no mask, and each window is
encoded by itself, so that a batch takes no more memory than one. The convolutions are torch's.

Shapes: B rows, M mel bins, F frames, S places, d model width.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cmasd.core import Sound
from cmasd.kernels import Bits
from cmasd.models.bart import BartEncoder, FeedForward, SelfAttention, norm_of
from cmasd.models.dense import dense

AT_ONCE = {"cpu": 1, "cuda": 16}
"""Windows: on a CPU one fills all threads."""


class SoundEncoder(BartEncoder):
    """Windows of sound to hidden states. It remembers its latest batch, for a drafter that shares it."""

    def __init__(self, encoder: Any, max_source_length: int, bits: Bits = None) -> None:
        assert max_source_length == encoder.config.max_source_positions, "all windows are of one length"
        self.modules = encoder
        make = partial(dense, bits=bits)
        self._layers = [
            (SelfAttention.of(layer, True, make), None, FeedForward.of(layer, True, make)) for layer in encoder.layers
        ]
        self._norm = norm_of(encoder.layer_norm)
        self._kernels = self._packed = None
        self._latest = None
        self.kept = 0
        """Windows whose states are remembered: a drafter that shares the encoder may come to them later."""
        self._known: dict[Sound, Tensor] = {}
        self._positions_Sd: Tensor = encoder.embed_positions.weight
        self._bins: int = encoder.conv1.in_channels
        self._frames = max_source_length * encoder.conv1.stride[0] * encoder.conv2.stride[0]

    def silence(self) -> Sound:
        """A window of it."""
        return Sound(np.zeros((self._bins, self._frames), dtype=np.float32), self._frames, ())

    def __call__(self, sources: list[list[int]], ids_BS: Tensor, lengths_B: Tensor) -> Tensor:
        """(B, S, d) states of `sources`; what is the same is encoded once."""
        if self._latest is None or self._latest[0] != sources:
            self._latest = (sources, self._encode_all([one for one in sources if isinstance(one, Sound)]))
        return self._latest[1]

    def _encode_all(self, sounds: list[Sound]) -> Tensor:
        windows = [one for one in dict.fromkeys(sounds) if one not in self._known]
        count, fresh = AT_ONCE.get(self._positions_Sd.device.type, 1), dict[Sound, Tensor]()
        for first in range(0, len(windows), count):
            some = windows[first : first + count]
            heard_BMF = torch.from_numpy(np.stack([one.window(self._frames) for one in some]))
            fresh.update(zip(some, self._hear(heard_BMF.to(self._positions_Sd)), strict=True))
        states_BSd = torch.stack([fresh[one] if one in fresh else self._known[one] for one in sounds])
        if self.kept:
            self._known |= fresh
            for one in list(self._known)[: -self.kept]:
                del self._known[one]
        return states_BSd

    def _hear(self, features_BMF: Tensor) -> Tensor:
        """(B, S, d)"""
        x_BdF = F.gelu(self.modules.conv2(F.gelu(self.modules.conv1(features_BMF))))
        x_BSd = x_BdF.transpose(1, 2) + self._positions_Sd
        rows, places, width = x_BSd.shape
        x_Nd = x_BSd.reshape(rows * places, width)
        for attention, _, feed_forward in self._layers:
            x_Nd = feed_forward(attention.over_source(x_Nd, rows, None))
        assert self._norm is not None, "norms come first"
        return self._norm(x_Nd).view(rows, places, width)
