"""What the prompts of many rows begin with, such as a system message: computed once, copied from there on.

What a model keeps of a place depends on the tokens up to it alone, so any beginning of the kept one serves as well. It
is taken from a batch of new rows where at least half of them share it, and replaced when too few rows begin with it.

Shapes: K layers, H heads, P = 2 * head width, L places, d model width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

LEAST_SHARED = 16
"""Tokens that are worth it: copying fewer costs as much as computing them beside the others."""


class Prefix:
    """Of one runner."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._lines_KHLP: Tensor | None = None
        self._states_Ld: Tensor | None = None

    def fresh(self, prompts: Sequence[list[int]]) -> list[int] | None:
        """A beginning that is worth computing on its own, since half of these rows share it and not the kept one."""
        covered = sum(self.shared(prompt) > 0 for prompt in prompts)
        if len(prompts) < 2 or 2 * covered >= len(prompts):
            return None
        ordered = sorted(prompts)
        step = len(ordered) // 2
        pairs = [(ordered[i], ordered[i + step]) for i in range(len(ordered) - step)]
        best = max(pairs, key=lambda pair: common(*pair))  # all rows between two have what the two have in common
        length = common(*best)
        return best[0][:length] if length >= LEAST_SHARED else None

    def shared(self, prompt: list[int]) -> int:
        """Leading tokens of a prompt that are kept; 0 where they are too few."""
        length = common(self.tokens, prompt)
        return length if length >= LEAST_SHARED else 0

    def keep(self, tokens: list[int], lines_KHLP: Tensor, states_Ld: Tensor | None) -> None:
        """What was computed of these tokens; the last hidden states where anyone wants them."""
        self.tokens = tokens
        self._lines_KHLP = lines_KHLP[:, :, : len(tokens)].clone()
        self._states_Ld = None if states_Ld is None else states_Ld.clone()

    def place(self, length: int, slot: int, buffer_KSHLP: Tensor) -> None:
        """Leave the keys and values of the first tokens in a slot."""
        if length:
            assert self._lines_KHLP is not None, "something is kept"
            buffer_KSHLP[:, slot, :, :length] = self._lines_KHLP[:, :, :length]

    def states(self, length: int) -> Tensor:
        """(length, d) last hidden states of the first tokens."""
        assert self._states_Ld is not None, "they were asked for"
        return self._states_Ld[:length]


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Leading tokens that both have."""
    most = min(len(one), len(other))
    if one[:most] == other[:most]:
        return most
    return next(i for i in range(most) if one[i] != other[i])


def rest_of(states_Ld: Tensor, length: int) -> Tensor:
    """Padded by zeros behind."""
    return torch.nn.functional.pad(states_Ld, (0, 0, 0, length - len(states_Ld)))
