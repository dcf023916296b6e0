"""Decoders whose queries and keys are rotated, as `rotary.c` knows them: Llama and its kin.

Shapes: d width, H heads of queries, G heads of keys and values, D head width, L places.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from cmasd.kernels.weights import ACTIVATIONS, Packed, fields_of


class _Rms(ctypes.Structure):
    """`struct rms` of rotary.c."""

    _fields_ = (*fields_of("gain"), ("epsilon", ctypes.c_double))


class _Turn(ctypes.Structure):
    """`struct turn`."""

    _fields_ = (
        *fields_of(
            "first middle after_keep after_end of_queries of_keys query key value keep gate up end angles", "span"
        ),
    )


class _Rotary(ctypes.Structure):
    """`struct rotary`."""

    _fields_ = (
        *fields_of("turns last", "count width heads kept head inner places activation room"),
        ("scale", ctypes.c_double),
    )


@dataclass(frozen=True)
class RootNorm:
    """By the root of the mean square."""

    gain: Tensor
    epsilon: float

    @cached_property
    def struct(self) -> ctypes.Structure:
        """What C knows of it."""
        return _Rms(self.gain.data_ptr(), self.epsilon)


class Turn(NamedTuple):
    """A layer."""

    first: RootNorm
    """Before attention."""
    middle: RootNorm
    """Before the feed-forward."""
    after_keep: RootNorm | None
    """Of what attention adds, in some families."""
    after_end: RootNorm | None
    """Of what the feed-forward adds."""
    of_queries: RootNorm | None
    """Of each head."""
    of_keys: RootNorm | None
    attention: tuple[Packed, Packed, Packed, Packed]
    """Of queries, keys and values, and the one behind."""
    forward: tuple[Packed, Packed, Packed]
    """Whose activation is the factor of the second's, the second, and the one behind."""
    angles: Tensor
    """(L, D) of each place: the cosines of half a head, then the sines."""
    span: int
    """Places that a query sees back, itself included; 0: all."""


class PackedRotary:
    """For `Kernels.rotate`."""

    def __init__(
        self, turns: Sequence[Turn], last: RootNorm, heads: int, kept: int, activation: str, scale: float
    ) -> None:
        """`heads` of queries, `kept` ones of keys and values; `scale` is of scores."""
        self._parts = turns, last  # kept alive
        query, gate = turns[0].attention[0], turns[0].forward[0]
        width, head, inner = query.shape[1], query.outputs // heads, gate.outputs
        self.room = 2 * width + 2 * heads * head + 2 * kept * head + 2 * inner
        """Numbers of scratch for each token."""
        self._turns = (_Turn * len(turns))(*(_struct(turn) for turn in turns))
        places = len(turns[0].angles)
        sizes = len(turns), width, heads, kept, head, inner, places, ACTIVATIONS[activation], self.room
        self._struct = _Rotary(ctypes.addressof(self._turns), _address(last), *sizes, scale)
        self.address = ctypes.addressof(self._struct)


def _struct(turn: Turn) -> _Turn:
    norms = turn.first, turn.middle, turn.after_keep, turn.after_end, turn.of_queries, turn.of_keys
    products = (product.address for product in (*turn.attention, *turn.forward))
    return _Turn(*map(_address, norms), *products, turn.angles.data_ptr(), turn.span)


def _address(norm: RootNorm | None) -> int | None:
    return None if norm is None else ctypes.addressof(norm.struct)
