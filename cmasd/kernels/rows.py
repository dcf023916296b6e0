"""What becomes of rows in an iteration, in C: small work on whole numbers, one call each.

The numbers of a row are columns of the engine's state (`cmasd.signals.RowNumbers`).

Shapes: B rows, C slots, T window, K draft, L token buffer, V vocabulary.
"""

import ctypes

import torch
from torch import Tensor


class RowKernels:
    """Calls of `kernels.c` that know nothing of models."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self._accept, self._commit, self._trace = loaded.accept, loaded.commit, loaded.trace
        self._room, self._show, self._advance, self._keep = loaded.room, loaded.show, loaded.advance, loaded.keep
        self._until_end = loaded.until_end
        self._accept.argtypes = [pointer, pointer, pointer, pointer, size, size, size, pointer, pointer]
        self._room.argtypes = [pointer, size, size, size, pointer]
        self._show.argtypes = [
            *(pointer, size, pointer, size, pointer, pointer, size, size),
            *(pointer, pointer, pointer, pointer),
        ]
        self._advance.argtypes = [pointer, size, size, pointer, pointer, pointer]
        self._advance.restype = size
        self._keep.argtypes = [pointer, size, pointer, pointer]
        self._until_end.argtypes = [pointer, size, size, pointer, size, pointer, pointer]
        self._commit.argtypes = [
            *(pointer, pointer, pointer, size, size, pointer, pointer, pointer, size, pointer, size),
            *(pointer, size, pointer, size, pointer, size, pointer, pointer, pointer),
        ]
        self._trace.argtypes = [
            *(pointer, pointer, size, size, size, pointer, pointer, pointer, pointer, pointer, pointer, pointer),
            *(pointer, pointer, size, pointer, size, size, pointer, pointer, size, pointer, size, pointer, size),
        ]

    def accept(
        self, logits_NV: Tensor, firsts_B1: Tensor, draft_BK: Tensor, lengths_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """How many leading draft tokens are the argmax (B,), within lengths; and the argmax behind those (B,).

        The logits behind each row's last token are at `firsts_B1`, those behind its draft tokens follow.
        """
        logits_NV, draft_BK, lengths_B = (one.contiguous() for one in (logits_NV, draft_BK, lengths_B))
        accepted_B, next_B = torch.empty_like(lengths_B), torch.empty_like(lengths_B)
        self._accept(
            *(logits_NV.data_ptr(), firsts_B1.data_ptr(), draft_BK.data_ptr(), lengths_B.data_ptr(), *draft_BK.shape),
            *(logits_NV.shape[1], accepted_B.data_ptr(), next_B.data_ptr()),
        )
        return accepted_B, next_B

    def room(self, numbers_C9: Tensor, rows: int, most: int) -> Tensor:
        """How many tokens each row may draft (B,), `most` at most, by its limit."""
        room_B = numbers_C9.new_empty(rows)
        self._room(numbers_C9.data_ptr(), numbers_C9.stride(0), rows, most, room_B.data_ptr())
        return room_B

    def show(
        self, numbers_C9: Tensor, tokens_BL: Tensor, draft_BK: Tensor, lengths_B: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The verifier's window: tokens (N,), slots (B,), starts (B,) and firsts (B + 1,); a run for each row, its last
        token and `lengths_B` (B,) tokens of its draft.
        """
        rows, drafted = draft_BK.shape
        draft_BK, lengths_B = draft_BK.contiguous(), lengths_B.contiguous()
        tokens_N = numbers_C9.new_empty(rows * (drafted + 1))
        slots_B, starts_B, firsts_B1 = (numbers_C9.new_empty(size) for size in (rows, rows, rows + 1))
        self._show(
            *(numbers_C9.data_ptr(), numbers_C9.stride(0), tokens_BL.data_ptr(), tokens_BL.stride(0)),
            *(draft_BK.data_ptr(), lengths_B.data_ptr(), rows, drafted),
            *(tokens_N.data_ptr(), slots_B.data_ptr(), starts_B.data_ptr(), firsts_B1.data_ptr()),
        )
        return tokens_N[: firsts_B1[-1]] if drafted else tokens_N, slots_B, starts_B, firsts_B1

    def advance(self, numbers_C9: Tensor, count_B: Tensor, ended_B: Tensor) -> list[int]:
        """Lengths grow by `count_B`, and rows that ended are closed; gives the slots of all that are done."""
        rows = len(count_B)
        done = (ctypes.c_int64 * rows)()
        numbers = numbers_C9.data_ptr(), numbers_C9.stride(0)
        return done[: self._advance(*numbers, rows, count_B.data_ptr(), ended_B.data_ptr(), done)]

    def keep(self, held_C: Tensor, accepted_B: Tensor, drafted_B: Tensor) -> None:
        """Of the draft tokens that a cache holds, all but the last of `drafted_B`, those that were accepted stay."""
        accepted_B, drafted_B = accepted_B.contiguous(), drafted_B.contiguous()
        self._keep(held_C.data_ptr(), len(accepted_B), accepted_B.data_ptr(), drafted_B.data_ptr())

    def until_end(self, draft_BK: Tensor, eos_ids: Tensor, room_B: Tensor) -> Tensor:
        """(B,) <= room_B: how much of a draft counts; what lies behind an end of sequence does not."""
        draft_BK, room_B = draft_BK.contiguous(), room_B.contiguous()
        lengths_B = torch.empty_like(room_B)
        ends = (eos_ids.data_ptr(), len(eos_ids))
        self._until_end(draft_BK.data_ptr(), *draft_BK.shape, *ends, room_B.data_ptr(), lengths_B.data_ptr())
        return lengths_B

    def commit(
        self,
        draft_BK: Tensor,
        lengths_B: Tensor,
        confidence_BK: Tensor,
        accepted_B: Tensor,
        next_B: Tensor,
        eos_ids: Tensor,
        numbers_C9: Tensor,
        tokens_BL: Tensor,
        lengths_2K: Tensor,
        confidence_sum_C: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `cmasd.engine.commit`: emitted (B, T), count (B,), ended (B,) bool; the last four are updated."""
        draft_BK, confidence_BK, lengths_B = (one.contiguous() for one in (draft_BK, confidence_BK, lengths_B))
        accepted_B, next_B = accepted_B.contiguous(), next_B.contiguous()
        rows, drafted = draft_BK.shape
        emitted_BT, count_B = draft_BK.new_empty(rows, drafted + 1), draft_BK.new_empty(rows)
        ended_B = torch.empty(rows, dtype=torch.bool)
        judged = (accepted_B, next_B, eos_ids)
        self._commit(
            *(draft_BK.data_ptr(), lengths_B.data_ptr(), confidence_BK.data_ptr(), rows, drafted),
            *(*(one.data_ptr() for one in judged), len(eos_ids), numbers_C9.data_ptr(), numbers_C9.stride(0)),
            *(tokens_BL.data_ptr(), tokens_BL.stride(0), lengths_2K.data_ptr(), lengths_2K.stride(0)),
            *(confidence_sum_C.data_ptr(), confidence_sum_C.stride(0)),
            *(emitted_BT.data_ptr(), count_B.data_ptr(), ended_B.data_ptr()),
        )
        return emitted_BT, count_B, ended_B

    def trace(
        self,
        logits_NV: Tensor,
        firsts_B1: Tensor,
        emitted_BT: Tensor,
        count_B: Tensor,
        accepted_B: Tensor,
        draft: tuple[Tensor, Tensor, Tensor, Tensor],
        logprob_BK: Tensor | None,
        source: Tensor | None,
        numbers_C9: Tensor,
        plain_token_8: Tensor,
        kept: tuple[Tensor | None, Tensor | None, Tensor | None],
    ) -> None:
        """See `cmasd.engine.trace`, whose kept tensors are updated: tokens (C, N, 8), iterations (C, N, 6), gaps (C,).

        A draft is its lengths (B,), confidences (B, K) and their components (B, K, 3), and the tolerances (B, K);
        `logprob_BK` what the drafter gave its tokens, where that is known; `source` who proposed them, (B,) or (B, K).
        """
        logits_NV, emitted_BT, count_B = logits_NV.contiguous(), emitted_BT.contiguous(), count_B.contiguous()
        logprob_BK = None if logprob_BK is None else logprob_BK.float().contiguous()
        draft_4 = [one.contiguous() for one in (accepted_B, *draft)]
        steps = (0, 0) if source is None else (*source.stride(), 0)[:2]
        places = [(None, 0) if one is None else (one.data_ptr(), one.stride(0)) for one in kept]
        self._trace(
            *(logits_NV.data_ptr(), firsts_B1.data_ptr(), *emitted_BT.shape, logits_NV.shape[1]),
            *(emitted_BT.data_ptr(), count_B.data_ptr()),
            *(*(one.data_ptr() for one in draft_4), None if logprob_BK is None else logprob_BK.data_ptr()),
            *(numbers_C9.data_ptr(), numbers_C9.stride(0)),
            *(None if source is None else source.data_ptr(), *steps),
            *(plain_token_8.data_ptr(), *(value for place in places for value in place)),
        )
