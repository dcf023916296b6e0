"""Prompts in pieces: which tokens of which rows are run together, so that no forward holds more than so many.

A piece of a prompt sees what the pieces before it left in the cache; where kernels run windows as they are, cutting
changes no bit.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cmasd.window import Window


class Piece(NamedTuple):
    """Of one row."""

    row: int
    start: int
    stop: int


def flat_passes(starts: Sequence[int], ends: Sequence[int], most: int) -> Iterator[list[Piece]]:
    """At most so many tokens a pass, no row twice in one."""
    pieces: list[Piece] = []
    room = most
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        while start < end:
            stop = min(end, start + room)
            pieces.append(Piece(row, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield pieces
                pieces, room = [], most
    if pieces:
        yield pieces


def padded_passes(starts: Sequence[int], ends: Sequence[int], most: int) -> Iterator[list[Piece]]:
    """The same, padding counted, of rows that begin at one place in each pass."""
    for start in sorted(set(starts)):
        rows = [row for row, own in enumerate(starts) if own == start and ends[row] > start]
        longest = max((ends[row] for row in rows), default=start) - start
        step = max(1, most // max(1, longest))
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            length = max(1, most // len(part))
            for at in range(start, max(ends[row] for row in part), length):
                yield [Piece(row, at, min(ends[row], at + length)) for row in part if ends[row] > at]


def window_of(pieces: Sequence[Piece], slots: Sequence[int], prompts: Sequence[list[int]]) -> Window:
    """On the host."""
    lengths_R = torch.tensor([stop - start for _, start, stop in pieces])
    return Window(
        torch.tensor([token for row, start, stop in pieces for token in prompts[row][start:stop]]),
        torch.tensor([slots[piece.row] for piece in pieces]),
        torch.tensor([piece.start for piece in pieces]),
        torch.nn.functional.pad(lengths_R.cumsum(0), (1, 0)),
        int(lengths_R.amax()),
    )


def side_by_side(states: Sequence[Tensor], longest: int) -> Tensor:
    """(B, longest, d) of each row's (L, d), padded behind."""
    shape = len(states), longest, states[0].shape[-1]
    padded_BTd = states[0].new_zeros(shape)
    for row, states_Ld in enumerate(states):
        padded_BTd[row, : len(states_Ld)] = states_Ld
    return padded_BTd
