"""Layers as `kernels.c` knows them: structures of pointers, beside the tensors that these point into.

Shapes: d width, V vocabulary, L places, K tokens of a draft.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmasd.kernels.weights import SIZE, Norm, Packed, fields_of
from cmasd.window import Window


class _Block(ctypes.Structure):
    """`struct block`."""

    _fields_ = (*fields_of("first0 first1 first2 project keep query add store inner end recall"),)


class _Decoder(ctypes.Structure):
    """`struct decoder`."""

    _fields_ = (
        *fields_of("tokens positions embedded last blocks", "vocabulary places padding width heads count room"),
    )


class _Drafter(ctypes.Structure):
    """`struct drafter`."""

    _fields_ = (*fields_of("decoder fuse head context out queries previous judge ids", "rank"),)


class _Seen(ctypes.Structure):
    """`struct seen`."""

    _fields_ = (*fields_of("first", "slot"),)


class _Lines(ctypes.Structure):
    """`struct lines`."""

    _fields_ = (*fields_of("first counts", "block slot head is_narrow"), *fields_of("where"))


class _Window(ctypes.Structure):
    """`struct window`."""

    _fields_ = (*fields_of("tokens slots starts firsts", "runs"), *fields_of("parents"))


class _Drafted(ctypes.Structure):
    """`struct drafted`."""

    _fields_ = (*fields_of("tokens numbers made sent"),)


class _Rule(ctypes.Structure):
    """`struct rule`."""

    _fields_ = (
        *fields_of("go_on keep offsets"),
        *((name, ctypes.c_double) for name in ("slope", "edge", "bias")),
        ("weights", ctypes.c_double * 4),
        ("more", ctypes.c_double * 2),
        ("is_mean", SIZE),
    )


class Block(NamedTuple):
    """A layer of a decoder, or without `query`, `add` and `store` of an encoder.

    Each part has a norm before it, or in its last product.
    """

    first: tuple[Norm | None, Norm | None, Norm | None]
    """Before attention to the output so far, to the source, and before the feed-forward."""
    project: Packed
    """Queries, then (key, value) head by head."""
    keep: Packed
    query: Packed | None
    add: Packed | None
    store: Packed | None
    """The source's states to (key, value) head by head."""
    inner: Packed
    end: Packed
    recall: Packed | None = None
    """Places to (key, value) head by head, where `project` makes queries alone."""


class PackedDecoder:
    """Embeddings and blocks, for `Kernels.decode` and `Kernels.encode`."""

    def __init__(
        self,
        tokens_Vd: Tensor,
        positions_Ld: Tensor,
        padding: int | None,
        embedded: Norm | None,
        blocks: Sequence[Block],
        heads: int,
        last: Norm | None,
    ) -> None:
        """`padding` is the id that has place 0 and moves the others up by one; norms follow embeddings and blocks."""
        self.tables = tokens_Vd.contiguous(), positions_Ld.contiguous()
        self._parts = blocks, embedded, last  # kept alive
        self.width = tokens_Vd.shape[1]
        self.heads = heads
        self.room = 4 * self.width + max([3 * self.width, *(block.inner.outputs for block in blocks)])
        """Numbers of scratch for each token."""
        self._blocks = (_Block * len(blocks))(
            *(
                _Block(*map(_address, block.first), *(layer and layer.address for layer in block[1:]))
                for block in blocks
            )
        )
        tables = (table.data_ptr() for table in self.tables)
        norms = _address(embedded), _address(last)
        sizes = len(tokens_Vd), len(positions_Ld), -1 if padding is None else padding
        self._struct = _Decoder(
            *(*tables, *norms, ctypes.addressof(self._blocks), *sizes, self.width, heads, len(blocks), self.room)
        )
        self.address = ctypes.addressof(self._struct)


class PackedDrafter:
    """A drafter of one pass, for `Kernels.propose`; see `cmasd.models.parallel_network`."""

    def __init__(
        self,
        decoder: PackedDecoder,
        fuse: Packed,
        head: Packed,
        markov: tuple[Packed, Tensor, Packed] | None,
        queries_Kd: Tensor,
        judge_f: Tensor | None,
        ids_S: Tensor | None,
    ) -> None:
        """`decoder` hears tokens, and its blocks read. The Markov head is its context, (V, r) of the token before, and
        what is added to the logits; `judge_f` (d + r + 1,) the confidence head's weights and offset; `ids_S` the head's
        columns where these are not all ids.
        """
        context, previous_Vr, out = markov or (None, None, None)
        tensors = [None if one is None else one.contiguous() for one in (queries_Kd, previous_Vr, judge_f, ids_S)]
        self._parts = decoder, fuse, head, markov, tensors  # kept alive
        self.has_judge = judge_f is not None
        layers = (None if one is None else one.address for one in (fuse, head, context, out))
        addresses = (None if one is None else one.data_ptr() for one in tensors)
        rank = 0 if previous_Vr is None else previous_Vr.shape[1]
        self._struct = _Drafter(decoder.address, *layers, *addresses, rank)
        self.address = ctypes.addressof(self._struct)


class PackedRule:
    """A rule that ends drafts (`cmasd.policies.base.Rule`), over a confidence that is linear in a token's scores."""

    def __init__(
        self,
        go_on_K: NDArray[np.float64],
        keep_K: NDArray[np.float64],
        is_mean: bool,
        calibration: tuple[float, NDArray[np.float64], float] | None,
        weights_4: tuple[float, float, float, float],
        bias: float,
        more_2: NDArray[np.float64] | None = None,
    ) -> None:
        """`calibration` is slope, offsets (K,) and edge; confidence is bias + weights * (entropy, margin, softmax,
        max_prob); `more_2` are weights of entropy and softmax beyond it.
        """
        slope, offsets_K, edge = calibration or (1.0, None, 0.0)
        arrays = [
            None if one is None else np.ascontiguousarray(one, np.float64) for one in (go_on_K, keep_K, offsets_K)
        ]
        self._parts = arrays  # kept alive
        addresses = (None if one is None else one.ctypes.data for one in arrays)
        more = (ctypes.c_double * 2)(*((0.0, 0.0) if more_2 is None else more_2))
        self._struct = _Rule(*addresses, slope, edge, bias, (ctypes.c_double * 4)(*weights_4), more, int(is_mean))
        self.address = ctypes.addressof(self._struct)


def window_struct(window: Window) -> ctypes.Structure:
    """A window on the host."""
    parts = window.tokens_N, window.slots_R, window.starts_R, window.firsts_R1
    assert all(part.is_contiguous() for part in parts), "kernels read whole lists"
    parents_N = window.parents_N
    assert parents_N is None or parents_N.is_contiguous(), "kernels read whole lists"
    parents = None if parents_N is None else parents_N.data_ptr()
    return _Window(*(part.data_ptr() for part in parts), len(window.slots_R), parents)


def drafted_into(tokens_BK: Tensor, numbers_BK6: Tensor, made_B: Tensor, sent_B: Tensor) -> ctypes.Structure:
    """Where drafts are written."""
    return _Drafted(tokens_BK.data_ptr(), numbers_BK6.data_ptr(), made_B.data_ptr(), sent_B.data_ptr())


def places(seen_SLd: Tensor) -> ctypes.Structure:
    """Hidden states of the places of slots."""
    return _Seen(seen_SLd.data_ptr(), seen_SLd.stride(0))


def lines(cache_KSHLP: Tensor, counts_S: Tensor | None, where_S: Tensor | None = None) -> Any:
    """Keys and values of K layers in slots, of which `counts_S` (S,) int64 places count; those of a slot are in that of
    `where_S` (S,) int64, or its own.
    """
    block, slot, head = cache_KSHLP.stride()[:3]
    counts, where = (None if one is None else one.data_ptr() for one in (counts_S, where_S))
    return _Lines(cache_KSHLP.data_ptr(), counts, block, slot, head, cache_KSHLP.dtype == torch.bfloat16, where)


def _address(norm: Norm | None) -> int | None:
    return None if norm is None else ctypes.addressof(norm.struct)
