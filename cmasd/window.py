"""The tokens of one forward, as a flat list: run after run, a run being consecutive tokens of one slot, or a tree.

A forward pays for the tokens that there are, and each row may bring as many as it likes: that is how a row's own
confidence saves work in a batch. `padded` is for backends that want a rectangle; it costs what the longest run costs.
In a tree a token sees what its slot held before, and its ancestors; it stands as far behind the run's start as it is
deep. Keys and values lie in the order of the run, until a path is made contiguous (`Runner.settle`).

Shapes: N tokens, R runs, T the longest run.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """What is fed; all int64, on one device."""

    tokens_N: Tensor
    """(N,)"""
    slots_R: Tensor
    """(R,) the slot of each run, no two of one slot."""
    starts_R: Tensor
    """(R,) the place of each run's first token in its slot; the others follow it."""
    firsts_R1: Tensor
    """(R + 1,) where each run begins in the list, and where the last one ends."""
    longest: int
    """T, or more."""
    covers_first: bool = False
    """Whether run i is known to be in slot i."""
    parents_N: Tensor | None = None
    """(N,) int64: which token of its run each one follows, -1 where that is what the slot holds; parents come first.
    None: the one before.
    """

    @classmethod
    def rectangle(cls, tokens_RT: Tensor, starts_R: Tensor) -> "Window":
        """Runs of one length, of slots 0..R-1."""
        runs, length = tokens_RT.shape
        steps_R1 = torch.arange(runs + 1, device=tokens_RT.device)
        tokens_N = tokens_RT.reshape(-1).contiguous()
        return cls(tokens_N, steps_R1[:-1], starts_R.contiguous(), steps_R1 * length, length, covers_first=True)

    @classmethod
    def prefixes(cls, tokens_RT: Tensor, lengths_R: Tensor, slots_R: Tensor | None = None) -> "Window":
        """The first tokens of each row of a rectangle, from place 0 on; in slots 0..R-1 unless told otherwise."""
        rows, longest = tokens_RT.shape
        slots_R = torch.arange(rows, device=tokens_RT.device) if slots_R is None else slots_R
        firsts_R1 = torch.nn.functional.pad(lengths_R.cumsum(0), (1, 0))
        count = int(firsts_R1[-1])
        window = cls(tokens_RT.new_empty(count), slots_R, torch.zeros_like(lengths_R), firsts_R1, longest)
        return replace(window, tokens_N=window.flat(tokens_RT))

    @classmethod
    def stretch(
        cls, tokens_SL: Tensor, slots_R: Tensor, starts_R: Tensor, ends_R: Tensor, covers_first: bool = False
    ) -> "Window":
        """Of the tokens of slots, those at places from `starts_R` up to `ends_R`."""
        lengths_R = ends_R - starts_R
        firsts_R1 = torch.nn.functional.pad(lengths_R.cumsum(0), (1, 0))
        count, longest = torch.stack([firsts_R1[-1], lengths_R.amax()]).tolist()
        window = cls(tokens_SL.new_empty(count), slots_R, starts_R, firsts_R1, longest, covers_first)
        return replace(window, tokens_N=tokens_SL[window.slots_N, window.places_N])

    @classmethod
    def singles(cls, tokens_R: Tensor, slots_R: Tensor, starts_R: Tensor, covers_first: bool = False) -> "Window":
        """One token of each of these slots."""
        firsts_R1 = torch.arange(len(slots_R) + 1, device=slots_R.device)
        return cls(tokens_R, slots_R, starts_R, firsts_R1, 1, covers_first)

    def to(self, device: torch.device) -> "Window":
        """The same on another device."""
        if device == self.tokens_N.device:
            return self
        tokens_N, slots_R, starts_R = (part.to(device) for part in (self.tokens_N, self.slots_R, self.starts_R))
        return Window(tokens_N, slots_R, starts_R, self.firsts_R1.to(device), self.longest, self.covers_first)

    @property
    def is_rectangle(self) -> bool:
        """Whether all runs are of one length."""
        return len(self.tokens_N) == len(self.slots_R) * self.longest

    @cached_property
    def index_RT(self) -> Tensor:
        """(R, T): where the tokens of each run are in the list; behind its last one, that again."""
        steps_T = torch.arange(self.longest, device=self.firsts_R1.device)
        return (self.firsts_R1[:-1, None] + steps_T).minimum(self.firsts_R1[1:, None] - 1)

    @cached_property
    def runs_N(self) -> Tensor:
        """(N,) the run of each token."""
        runs = torch.arange(len(self.slots_R), device=self.firsts_R1.device)
        return runs.repeat_interleave(self.firsts_R1.diff(), output_size=len(self.tokens_N))

    @cached_property
    def steps_N(self) -> Tensor:
        """(N,) the place of each token in its run."""
        return torch.arange(len(self.tokens_N), device=self.firsts_R1.device) - self.firsts_R1[:-1][self.runs_N]

    @cached_property
    def sees_RTT(self) -> Tensor:
        """(R, T, T) bool: whether a token sees another one of its run: itself and its ancestors; behind a run's end as
        its last.
        """
        assert self.parents_N is not None, "the runs are trees"
        parents_RT = self.padded(self.parents_N)
        numbers_T = torch.arange(self.longest, device=parents_RT.device)
        steps_RTT = (parents_RT[..., None] == numbers_T) | torch.eye(self.longest, device=parents_RT.device).bool()
        sees_RTT = steps_RTT.float()
        for _ in range(max(self.longest - 1, 1).bit_length()):  # of one step, then of two, of four, ...
            sees_RTT = (sees_RTT @ sees_RTT).clamp_max_(1.0)
        return sees_RTT.bool()

    @cached_property
    def depths_N(self) -> Tensor:
        """(N,) int64: how many tokens of its run each one follows."""
        if self.parents_N is None:
            return self.steps_N
        return self.flat(self.sees_RTT.sum(-1) - 1)

    def along(self, chosen_M: Tensor, counts_R: Tensor) -> "Window":
        """Of each run, as its first token behind the same place, these tokens in turn: `counts_R` (R,) of the list."""
        firsts_R1 = torch.nn.functional.pad(counts_R.cumsum(0), (1, 0))
        longest = int(counts_R.max())
        return Window(self.tokens_N[chosen_M], self.slots_R, self.starts_R, firsts_R1, longest, self.covers_first)

    @property
    def places_N(self) -> Tensor:
        """(N,) the place of each token in its slot."""
        return self.starts_R[self.runs_N] + self.steps_N

    @property
    def slots_N(self) -> Tensor:
        """(N,) the slot of each token."""
        return self.slots_R[self.runs_N]

    def padded(self, values_N: Tensor) -> Tensor:
        """(R, T, ...) of what there is of each token (N, ...); behind a run's end its last value again."""
        if self.is_rectangle:
            return values_N.view(len(self.slots_R), self.longest, *values_N.shape[1:])
        return values_N[self.index_RT]

    def flat(self, values_RT: Tensor) -> Tensor:
        """(N, ...) of a rectangle (R, T, ...)."""
        if self.is_rectangle:
            return values_RT.flatten(0, 1)
        values_N: Tensor = values_RT[self.runs_N, self.steps_N]
        return values_N
