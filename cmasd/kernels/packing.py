"""Weights into the strips that `products.c` and `fours.c` multiply: as they were stored, or rounded to 8 or 4 bits.

Weights come in any format, of 16 bits as well, and are packed a few rows at a time, so that packing needs little memory
beside what comes of it. Kernels of float64 round as well, and store what comes of it as it is: there the rounding of
weights is all that differs.

Shapes: O outputs, I inputs, q inputs side by side.
"""

import ctypes
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from cmasd.kernels import fours
from cmasd.kernels.mappings import kept_zeros
from cmasd.kernels.weights import Bits, Packed

LEAST_SCALE = 1e-30
"""Instead of zero, which nothing can be divided by."""
PACKED_AT_ONCE = 2**21
"""Weights."""
TILE_INPUTS = 32
"""In 16 bits, of a tile (`tiles.c`)."""


class PackingKernels:
    """What the products of `kernels.c` want of weights, for one number format."""

    def __init__(self, loaded: ctypes.CDLL, dtype: torch.dtype) -> None:
        self.dtype = dtype
        """Of inputs and outputs."""
        self._lanes, self._panel, self._quad, self._zero = (
            ctypes.c_int64.in_dll(loaded, name).value for name in ("lanes", "panel", "quad", "zero")
        )
        self._pair = int(loaded.pairs_inputs())
        self.multiplies_bytes = self._quad > 1
        """Whether products of 8 and 4 bits round their inputs as well, and are much faster than those of 16 or 32."""
        reads = {torch.float16: "reads_float16", torch.bfloat16: "reads_bfloat16"}
        if self._pair:
            reads = dict(reversed(reads.items()))
        self.halves = [dtype for dtype, name in reads.items() if ctypes.c_int64.in_dll(loaded, name).value]
        """Formats of 16 bits that `product` widens on the way, or multiplies as they are: those first."""

    def pack(self, weight_OI: Tensor, bias_O: Tensor | None, bits: Bits = None, is_draft: bool = False) -> Packed:
        """In 16 bits where no weight loses a digit, or rounded to `bits`: to 8 with a scale per output, to 4 as
        `fours.py` says. `is_draft` halves what is float32 whatever it loses.
        """
        outputs, inputs = weight_OI.shape
        bias = torch.zeros(outputs + -outputs % self._panel, dtype=self.dtype)
        if bias_O is not None:
            bias[:outputs] = bias_O
        if bits == 4 and self.dtype == torch.float32:
            return self._in_fours(weight_OI, bias)
        if bits == 8 and self.dtype == torch.float32:
            return self._in_bytes(weight_OI, bias)
        dtype = self._format(weight_OI, bits, is_draft)
        abreast = self._pair if dtype == torch.bfloat16 and self._pair and inputs % TILE_INPUTS == 0 else 1
        strips = kept_zeros(len(bias) // self._lanes, inputs // abreast, self._lanes, abreast, dtype=dtype)
        for first, part_OI in self._parts(weight_OI):
            if bits == 8:
                whole_OI, scale_O = _in_steps(part_OI.to(self.dtype))
                part_OI = whole_OI * scale_O[:, None]
            elif bits == 4:
                part_OI = fours.read(*fours.rounded(part_OI), inputs)
            self._place(part_OI.to(dtype), strips, first)
        return Packed(strips, weight_OI.shape, bias)

    def _in_bytes(self, weight_OI: Tensor, bias: Tensor) -> Packed:
        strips = kept_zeros(
            len(bias) // self._lanes, -(-weight_OI.shape[1] // self._quad), self._lanes, self._quad, dtype=torch.int8
        )
        scales, offsets = torch.zeros(len(bias), dtype=self.dtype), torch.zeros(len(bias), dtype=torch.int32)
        for first, part_OI in self._parts(weight_OI):
            whole_OI, scales[first : first + len(part_OI)] = _in_steps(part_OI.to(self.dtype))
            offsets[first : first + len(part_OI)] = (-self._zero * whole_OI.sum(1)).to(torch.int32)
            self._place(whole_OI.to(torch.int8), strips, first)
        return Packed(strips, weight_OI.shape, bias, scales, offsets)

    def _in_fours(self, weight_OI: Tensor, bias: Tensor) -> Packed:
        count, groups = len(bias) // self._lanes, -(-weight_OI.shape[1] // fours.GROUP)
        steps = groups * fours.GROUP // (2 * self._quad)
        strips = kept_zeros(count, steps, self._lanes, self._quad, dtype=torch.uint8)
        scales = kept_zeros(count, groups, self._lanes, dtype=fours.SCALE_DTYPE)
        for first, part_OI in self._parts(weight_OI):
            padded_OI = F.pad(part_OI, (0, 0, 0, -len(part_OI) % self._lanes))
            both, each = fours.in_strips(*fours.rounded(padded_OI), self._lanes, self._quad)
            rows = slice(first // self._lanes, first // self._lanes + len(both))
            strips[rows], scales[rows] = both, each
        return Packed(strips, weight_OI.shape, bias, scales)

    def _parts(self, weight_OI: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Rows that are packed together, whole panels of them, and which is the first."""
        step = max(1, PACKED_AT_ONCE // (weight_OI.shape[1] * self._panel)) * self._panel
        for first in range(0, len(weight_OI), step):
            yield first, weight_OI[first : first + step]

    def _place(self, part_OI: Tensor, strips: Tensor, first: int) -> None:
        quad = strips.shape[3]
        padded = F.pad(part_OI, (0, -part_OI.shape[1] % quad, 0, -len(part_OI) % self._lanes))
        taken = padded.view(-1, self._lanes, padded.shape[1] // quad, quad).transpose(1, 2)
        strips[first // self._lanes :][: len(taken)] = taken

    def _format(self, weight_OI: Tensor, bits: Bits, is_draft: bool) -> torch.dtype:
        """That weights are kept in, which loses none of their digits unless `is_draft`."""
        if bits is not None or self.dtype == torch.float64:
            return self.dtype
        if weight_OI.dtype in self.halves:
            return weight_OI.dtype
        step = max(1, PACKED_AT_ONCE // weight_OI.shape[1])
        fitting = (half for half in self.halves if is_draft or all(_fits(part, half) for part in weight_OI.split(step)))
        return next(fitting, self.dtype)


def _in_steps(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers (O, I) of 127 either way, and what one of them is (O,)."""
    scale_O = weight_OI.abs().amax(1).clamp_min(LEAST_SCALE) / 127
    return (weight_OI / scale_O[:, None]).round(), scale_O


def _fits(weight: Tensor, dtype: torch.dtype) -> bool:
    return torch.equal(weight.to(dtype).to(weight.dtype), weight)
