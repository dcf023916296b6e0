"""Weights in 4 bits, as `fours.c` multiplies them: one of 16 levels, of a scale that `GROUP` inputs of an output share.

The levels are not even: weights of a layer lie about zero like a bell, and levels that are closer there make the error
of a group of 32 as small as that of even levels with an offset of their own, which would take half a bit more. The
largest weight of a group is met nearly exactly, by the end that lies farther out. Rounding is done part by part, by the
caller.

Shapes: O outputs, I inputs, G strips of P outputs, N groups of an output's inputs, q inputs side by side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP = 32
"""Inputs that share a scale."""
LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""Of a scale; those of llama.cpp's IQ4_NL."""
DEFINITIONS = (f"-DGROUP={GROUP}", f"-DLEVELS={','.join(map(str, LEVELS))}")
"""For `fours.c`."""
SCALE_DTYPE = torch.bfloat16
SIDE = 256
"""Halves of a scale on either side of zero: up to the outermost level, and what rounding of the scale adds."""
NEAREST = torch.tensor(
    [min(range(16), key=lambda i: abs(2 * LEVELS[i] - half - 0.5)) for half in range(-SIDE, SIDE)], dtype=torch.uint8
)
"""The level nearest to what lies in each of them."""


def rounded(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """(O, N, GROUP) uint8 codes, with those of zeros behind the last input, and (O, N) scales in `SCALE_DTYPE`."""
    outputs, inputs = weight_OI.shape
    grouped = F.pad(weight_OI.float(), (0, -inputs % GROUP)).view(outputs, -1, GROUP)
    farthest = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True))
    scales = (farthest / LEVELS[0]).to(SCALE_DTYPE)
    each = scales.float()
    # Levels are whole numbers, so all that lies between two halves of a scale is nearest to the same one.
    halves = (grouped * torch.where(each == 0, 0.0, 2 / each)).floor_().add_(SIDE).clamp_(0, 2 * SIDE - 1)
    codes = NEAREST.index_select(0, halves.to(torch.int32).flatten()).view_as(grouped)
    return codes, scales[..., 0]


def in_strips(codes: Tensor, scales: Tensor, lanes: int, quad: int) -> tuple[Tensor, Tensor]:
    """(G, N*GROUP/2q, P, q) bytes with two codes each, and (G, N, P) scales, of a multiple of P outputs."""
    outputs, groups, _ = codes.shape
    pairs = codes.view(outputs // lanes, lanes, groups * GROUP // (2 * quad), 2, quad)
    both = pairs[..., 0, :] | pairs[..., 1, :] << 4
    return both.transpose(1, 2), scales.view(-1, lanes, groups).transpose(1, 2)


def read(codes: Tensor, scales: Tensor, inputs: int) -> Tensor:
    """(..., I) float32 weights of (..., N, GROUP) codes and (..., N) scales."""
    levels = torch.tensor(LEVELS, dtype=torch.float32)[codes.int()]
    return (levels * scales.float()[..., None]).flatten(-2)[..., :inputs]


def rows(strips: Tensor, scales: Tensor, ids: Tensor, inputs: int) -> Tensor:
    """(..., I) float32 weights of these outputs, of `in_strips`."""
    lanes = strips.shape[2]
    found = strips[ids // lanes, :, ids % lanes]
    codes = torch.stack([found & 15, found >> 4], dim=-2).flatten(-3).unflatten(-1, (-1, GROUP))
    return read(codes, scales[ids // lanes, :, ids % lanes], inputs)
