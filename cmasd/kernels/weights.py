"""Linear layers and norms as `kernels.c` knows them: structures of pointers, beside the tensors that these point into.

Shapes: I inputs, O outputs, G strips of P outputs, q inputs side by side.
"""

import ctypes
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from cmasd.kernels import fours

Bits = Literal[8, 4] | None
"""That weights are rounded to; None: they stay as they are."""

FORMATS = {torch.float16: 1, torch.bfloat16: 2, torch.int8: 3, torch.uint8: 4}
"""What C calls the formats in which weights can be packed; 0 is their own."""
PAIRED = 5
"""And bfloat16 with two inputs side by side."""
ACTIVATIONS = {"relu": 1, "gelu": 2, "silu": 3, "gelu_tanh": 4}
"""What C calls them; 0 is none."""
POINTER, SIZE = ctypes.c_void_p, ctypes.c_int64


def fields_of(pointers: str = "", sizes: str = "") -> list[tuple[str, Any]]:
    return [*((name, POINTER) for name in pointers.split()), *((name, SIZE) for name in sizes.split())]


class _Norm(ctypes.Structure):
    """`struct norm` of kernels.c."""

    _fields_ = (*fields_of("gain offset"), ("epsilon", ctypes.c_double))


class _Layer(ctypes.Structure):
    """`struct layer`."""

    _fields_ = (*fields_of("weights bias scales offsets norm", "format inputs outputs activation"),)


@dataclass(frozen=True)
class Norm:
    """A layer norm."""

    gain: Tensor
    offset: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        """Of the last dimension."""
        return torch.layer_norm(x, self.gain.shape, self.gain, self.offset, self.epsilon)

    @cached_property
    def struct(self) -> ctypes.Structure:
        """What C knows of it."""
        return _Norm(self.gain.data_ptr(), self.offset.data_ptr(), self.epsilon)


class Packed:
    """A linear layer in strips, and what follows it: an activation, or a residual and a norm of both."""

    def __init__(
        self,
        strips: Tensor,
        shape: tuple[int, ...],
        bias: Tensor,
        scales: Tensor | None = None,
        offsets: Tensor | None = None,
        activation: str | None = None,
        norm: Norm | None = None,
    ) -> None:
        """`strips` (G, I/q, P, q) of weights of `shape` (O, I), in their own format or a smaller one, q inputs (4, 2 or
        1) side by side; `bias` and, for int8, `scales` and int32 `offsets` are (G*P,). In 4 bits strips and scales are
        those of `fours.in_strips`.
        """
        self._parts = strips, shape, bias, scales, offsets
        self.outputs = shape[0]
        self.norm = norm
        addresses = (None if one is None else one.data_ptr() for one in (strips, bias, scales, offsets))
        format = PAIRED if self.inputs_abreast == 2 else FORMATS.get(strips.dtype, 0)
        kinds = format, shape[1], shape[0], ACTIVATIONS.get(activation or "", 0)
        self._struct = _Layer(*addresses, _address(norm), *kinds)
        self.address = ctypes.addressof(self._struct)
        """Of what C knows of it."""

    @property
    def dtype(self) -> torch.dtype:
        """The format in which weights are kept."""
        return self._parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """(O, I)"""
        return self._parts[1]

    @property
    def inputs_abreast(self) -> int:
        """q"""
        return self._parts[0].shape[3]

    @property
    def nbytes(self) -> int:
        """Of all that is kept."""
        strips, _, *others = self._parts
        return strips.nbytes + sum(one.nbytes for one in others if one is not None)

    @property
    def bias(self) -> Tensor:
        """(O,)"""
        return self._parts[2][: self.outputs]

    def rows(self, ids: Tensor) -> Tensor:
        """(..., I) weights of these outputs, in the format of the inputs."""
        strips, (_, inputs), bias, scales, _ = self._parts
        if self.bits == 4 and scales is not None:
            return fours.rows(strips, scales, ids, inputs)
        lanes = strips.shape[2]
        found = strips[ids // lanes, :, ids % lanes].flatten(-2)[..., :inputs].to(bias.dtype)
        return found if scales is None else found * scales[ids][..., None]

    @property
    def bits(self) -> Bits:
        """That weights were rounded to, and are kept in."""
        if self._parts[3] is None:
            return None
        return 4 if self.dtype == torch.uint8 else 8

    def unpacked(self) -> Tensor:
        """(O, I) all weights, in the format of the inputs."""
        return self.rows(torch.arange(self.outputs))

    def stored(self) -> Tensor:
        """(O, I) all weights, in the format in which they are kept, of 16 bits or more."""
        return self._parts[0].transpose(1, 2).flatten(2).flatten(0, 1)[: self.outputs, : self.shape[1]]

    def with_bias(self, bias_O: Tensor) -> "Packed":
        """The same weights with another bias."""
        strips, shape, bias, scales, offsets = self._parts
        padded = torch.zeros_like(bias)
        padded[: self.outputs] = bias_O
        return Packed(strips, shape, padded, scales, offsets)

    def followed(self, activation: str | None = None, norm: Norm | None = None) -> "Packed":
        """The same weights, with this behind them."""
        return Packed(*self._parts, activation, norm)


def _address(norm: Norm | None) -> int | None:
    return None if norm is None else ctypes.addressof(norm.struct)
