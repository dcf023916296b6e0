"""Trees of drafts, grown, laid out and judged in C: in Python these took longer than a small verifier's forward.

`PackedForest` holds the rows' trees of one iteration; what is done with them is said by `Forest` of
`cmasd/drafters/forest.py`, which does the same where there is no compiler, and `tree_judge` by
`cmasd/verification/trees.py`. All of it lies on the host.

Shapes: B rows, K tokens of a tree, F tokens that are gone on from, n ways behind one, N tokens of a window, R rows of
it, M moves, L token buffer, V vocabulary.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


class _Forest(ctypes.Structure):
    """As `struct forest`."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("go_on", "keep", "offsets")),
        ("slope", ctypes.c_double),
        ("edge", ctypes.c_double),
        ("more", ctypes.c_double * 2),
        *((name, ctypes.c_int64) for name in ("is_mean", "most", "budget", "rows", "room")),
        *((name, ctypes.c_void_p) for name in ("rooms", "ends")),
        *((name, ctypes.c_int64) for name in ("end_count", "depth", "drawn")),
        *((name, ctypes.c_void_p) for name in ("counts", "fed_counts", "latest", "tokens", "parents", "drawn_from")),
        *((name, ctypes.c_void_p) for name in ("order", "fed", "chances", "statistics")),
        *((name, ctypes.c_void_p) for name in ("confidence", "logprobs", "components")),
    ]


class TreeRule(NamedTuple):
    """What a rule says, in plain numbers; see `Rule` of `cmasd/policies/base.py`."""

    go_on_K: Float64
    keep_K: Float64
    is_mean: bool
    budget: int
    calibration: tuple[float, Float64, float] | None
    """Slope, offsets (K,), and how far from 0 and 1 confidences are kept; None: as they are."""
    more_2: Float64 | None


class TreeKernels:
    """Calls of `kernels.c` about trees."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self.tree_grow, self.tree_window = loaded.tree_grow, loaded.tree_window
        self.tree_draft, self.tree_path, self._judge = loaded.tree_draft, loaded.tree_path, loaded.tree_judge
        self.tree_grow.argtypes = [pointer, size, *[pointer] * 6]
        self.tree_window.argtypes = [pointer] * 6
        self.tree_draft.argtypes = [pointer, size, *[pointer] * 6]
        self.tree_path.argtypes = [pointer, pointer, size, *[pointer] * 4]
        self._judge.argtypes = [pointer, size, pointer, pointer, pointer, pointer, size, size, pointer, pointer]
        for function in (self.tree_grow, self.tree_window, self.tree_path):
            function.restype = size

    def tree_judge(
        self, logits_NV: Tensor, firsts_B1: Tensor, tokens_BK: Tensor, parents_BK: Tensor, lengths_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Paths (B, K) by their tokens' numbers, and how long each is (B,)."""
        logits_NV, tokens_BK, parents_BK = logits_NV.contiguous(), tokens_BK.contiguous(), parents_BK.contiguous()
        lengths_B = lengths_B.contiguous()
        paths_BK, sizes_B = torch.zeros_like(tokens_BK), torch.empty_like(lengths_B)
        self._judge(
            *(logits_NV.data_ptr(), logits_NV.shape[1], firsts_B1.data_ptr(), tokens_BK.data_ptr()),
            *(parents_BK.data_ptr(), lengths_B.data_ptr(), *tokens_BK.shape, paths_BK.data_ptr(), sizes_B.data_ptr()),
        )
        return paths_BK, sizes_B


class PackedForest:
    """A tree for each row."""

    def __init__(self, kernels: TreeKernels, rule: TreeRule, rooms: Sequence[int], ends: Tensor, ways: int) -> None:
        """`rooms`: how deep each row's tree may be; `ways`: behind a token, at most."""
        rows, budget = len(rooms), rule.budget
        room = (budget + 1) * ways
        self._kernels, self.budget = kernels, budget
        self.whole = np.zeros((3 + budget + 4 * room) * rows, dtype=np.int64)
        self._real = np.empty(2 * room * rows)
        self._short = np.empty(5 * room * rows, dtype=np.float32)
        self.rooms = np.array([min(one, len(rule.go_on_K)) for one in rooms], dtype=np.int64)
        self.counts, self.fed_counts, self.latest = self.whole[: 3 * rows].reshape(3, rows)
        self.latest[:] = self.rooms > 0
        self._ends = ends.cpu().contiguous()
        self._go_on, self._keep = (np.ascontiguousarray(one, dtype=np.float64) for one in (rule.go_on_K, rule.keep_K))
        slope, offsets, edge = rule.calibration or (1.0, None, 0.0)
        self._offsets = None if offsets is None else np.ascontiguousarray(offsets, dtype=np.float64)
        more = (0.0, 0.0) if rule.more_2 is None else tuple(rule.more_2.tolist())
        wholes = _places(self.whole, [rows] * 3 + [room * rows] * 4 + [budget * rows])
        reals = _places(self._real, [room * rows] * 2)
        shorts = _places(self._short, [room * rows] * 2 + [3 * room * rows])
        self.forest = _Forest(
            *(self._go_on.ctypes.data, self._keep.ctypes.data),
            *(None if self._offsets is None else self._offsets.ctypes.data, slope, edge, more),
            *(rule.is_mean, len(self._go_on), budget, rows, room, self.rooms.ctypes.data),
            *(self._ends.data_ptr(), len(self._ends), 0, 0, *wholes, *reals, *shorts),
        )
        self._address = ctypes.addressof(self.forest)

    @property
    def depth(self) -> int:
        """Tokens behind a row's last, those included that are to be gone on from."""
        return int(self.forest.depth)

    @property
    def asked(self) -> int:
        """Tokens that are to be gone on from; 0 when the trees are grown."""
        return int(self.latest.sum())

    def grow(
        self, tokens_Fn: Tensor, shares_Fn: Tensor, logprobs_Fn: Tensor, confidence_F: Tensor, components_F3: Tensor
    ) -> None:
        """What may follow each token that is to be gone on from; shares are of the first way's probability."""
        given = [one.cpu().contiguous() for one in (tokens_Fn, shares_Fn, logprobs_Fn, confidence_F, components_F3)]
        assert len(tokens_Fn) == self.asked, "each token has its ways"
        addresses = (one.data_ptr() for one in given)
        self._kernels.tree_grow(self._address, tokens_Fn.shape[1], *addresses, UNKNOWN.ctypes.data)

    def window(self) -> tuple[Int64, Int64, Int64, Int64, Int64]:
        """Rows (R,), firsts (R + 1,), tokens (N,), parents (N,) by their places in the row's run, and where those are
        that are to be gone on from (F,).
        """
        rows, fed, asked = len(self.rooms), int(self.fed_counts.sum()), self.asked
        sizes = [rows, rows + 1, fed, fed, asked]
        out = np.empty(sum(sizes), dtype=np.int64)
        count = self._kernels.tree_window(self._address, *_places(out, sizes))
        rows_R, firsts_R1, tokens_N, parents_N, asked_F = np.split(out, np.cumsum(sizes)[:-1])
        size = firsts_R1[count]
        return rows_R[:count], firsts_R1[: count + 1], tokens_N[:size], parents_N[:size], asked_F

    def latest_tokens(self) -> tuple[Int64, Int64]:
        """Of the tokens that are to be gone on from: their rows (F,), and what they are (F,)."""
        rows_R, firsts_R1, tokens_N, _, asked_F = self.window()
        row_N = np.repeat(rows_R, np.diff(firsts_R1))
        return row_N[asked_F], tokens_N[asked_F]

    def draft(self) -> tuple[list[Int64], list[NDArray[np.float32]]]:
        """Tokens, parents and what they were drawn from (B, K each), lengths (B,); confidences and log-probabilities
        (B, K each), components (B, K, 3).
        """
        rows, lengths_B = len(self.rooms), self.counts.clip(max=self.budget)
        shape = rows, int(lengths_B.max())
        tokens_BK, drawn_BK = np.zeros((2, *shape), dtype=np.int64)
        parents_BK = np.full(shape, -1, dtype=np.int64)
        real_BK5 = np.full(5 * shape[0] * shape[1], np.nan, dtype=np.float32)
        confidence_BK, logprobs_BK, components_BK3 = np.split(real_BK5, np.array([1, 2]) * shape[0] * shape[1])
        whole = (tokens_BK, parents_BK, drawn_BK)
        self._kernels.tree_draft(
            *(self._address, shape[1], *(one.ctypes.data for one in whole)),
            *(confidence_BK.ctypes.data, components_BK3.ctypes.data, logprobs_BK.ctypes.data),
        )
        real = [confidence_BK.reshape(shape), logprobs_BK.reshape(shape), components_BK3.reshape(*shape, 3)]
        return [*whole, lengths_B], real

    def path(self, tokens_BL: Tensor, lengths_B: Tensor, accepted_B: Tensor) -> tuple[Tensor, Tensor]:
        """How many of the tokens that were accepted lie on a path of those that were gone on from (B,); and the moves
        (M, 3) that make it contiguous: row, from, to.
        """
        tokens_BL, lengths_B, accepted_B = (one.cpu() for one in (tokens_BL, lengths_B, accepted_B))
        lengths_B, accepted_B = lengths_B.contiguous(), accepted_B.contiguous()
        held_B, moves_M3 = torch.empty_like(accepted_B), torch.empty(int(accepted_B.sum()), 3, dtype=torch.int64)
        said = tokens_BL.data_ptr(), tokens_BL.stride(0), lengths_B.data_ptr(), accepted_B.data_ptr()
        count = self._kernels.tree_path(self._address, *said, held_B.data_ptr(), moves_M3.data_ptr())
        return held_B, moves_M3[:count]


UNKNOWN = np.full(3, np.nan, dtype=np.float32)
"""Components of siblings."""


def _places(values: NDArray[np.generic], sizes: Sequence[int]) -> list[int]:
    """Addresses of parts that lie one behind the other."""
    firsts = np.cumsum([0, *sizes])
    assert firsts[-1] <= values.size, "all of them fit"
    return [values.ctypes.data + values.itemsize * first for first in firsts[:-1].tolist()]
