"""What torch has no kernel for on a CPU, in C: attention of short windows over rows of different lengths, all that is
asked of a row of logits, products of few rows with weights that serve again and again, and a decoder of all these.

Batched products read every row up to the longest, and for small models most of their time is the overhead of each
operation, or the reading of weights. `kernels.c` is compiled when it is first needed (some seconds; see `build.py`) and
shares the threads of torch. Without a compiler, on another system, or for other number formats there are no kernels,
and the callers' tensor operations do the same more slowly.

Shapes: B rows, T window, N = B*T, H heads, D head width, d = H*D, P = 2*D, L cache length, S slots, K layers, V
columns, I inputs, O outputs.
"""

import ctypes
import logging
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cmasd.kernels.build import built
from cmasd.kernels.layers import Packed, PackedDecoder, lines

REALS = {
    torch.float32: ("-DREAL=float", "-DEXP=expf", "-DERF=erff", "-DLOG=logf", "-DSQRT=sqrtf", "-DNARROW"),
    torch.float64: ("-DREAL=double", "-DEXP=exp", "-DERF=erf", "-DLOG=log", "-DSQRT=sqrt"),
}
"""The names that C knows a number format by."""
LEAST_SCALE = 1e-30
"""Instead of zero, which nothing can be divided by."""

log = logging.getLogger(__name__)


class Kernels:
    """`kernels.c` for one number format."""

    def __init__(self, library: Path) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self.name = library.stem
        """Of this source, compiler and processor."""
        loaded = ctypes.CDLL(str(library))
        self._read, self._statistics = loaded.attend, loaded.statistics
        self._product, self._decode = loaded.product, loaded.decode
        self._guess, self._until_end = loaded.guess, loaded.until_end
        self._accept, self._commit, self._trace = loaded.accept, loaded.commit, loaded.trace
        self._read.argtypes = [pointer, size, pointer, size, size, pointer, size, size, size, pointer]
        self._statistics.argtypes = [pointer, size, size, pointer, pointer]
        self._product.argtypes = [pointer, pointer, size, size, pointer, pointer]
        self._decode.argtypes = [pointer, pointer, size, size, *[pointer] * 4]
        self._accept.argtypes = [pointer, pointer, pointer, size, size, pointer, pointer]
        self._guess.argtypes = [*[pointer] * 4, size, size, pointer, size, *[pointer] * 5]
        self._until_end.argtypes = [pointer, size, size, pointer, size, pointer, pointer]
        self._commit.argtypes = [
            *(pointer, pointer, pointer, size, size, pointer, pointer, pointer, size, pointer, size),
            *(pointer, size, pointer, size, pointer, size, pointer, pointer, pointer),
        ]
        self._trace.argtypes = [
            *(pointer, size, size, size, pointer, pointer, pointer, pointer, pointer, pointer, pointer),
            *(pointer, size, pointer, pointer, size, pointer, size, pointer, size),
        ]
        self._lanes, self._panel = (size.in_dll(loaded, name).value for name in ("lanes", "panel"))
        reads = {torch.float16: "reads_float16", torch.bfloat16: "reads_bfloat16"}
        self.halves = [dtype for dtype, name in reads.items() if size.in_dll(loaded, name).value]
        """Formats of 16 bits that `product` widens on the way."""

    def read(self, queries_Nd: Tensor, lines_SHLP: Tensor, counts_B: Tensor) -> Tensor:
        """(N, d): attend to the first `counts_B` positions, at least one, of slots 0..B-1."""
        rows, (_, heads, _, pair) = counts_B.shape[0], lines_SHLP.shape
        out_Nd = torch.empty_like(queries_Nd)
        self._read(
            *(queries_Nd.data_ptr(), queries_Nd.shape[0] // rows, lines_SHLP.data_ptr(), *lines_SHLP.stride()[:2]),
            *(counts_B.data_ptr(), rows, heads, pair // 2, out_Nd.data_ptr()),
        )
        return out_Nd

    def decode(
        self,
        decoder: PackedDecoder,
        tokens_BT: Tensor,
        past_KSHLP: Tensor,
        starts_B: Tensor,
        source_KSHLP: Tensor,
        counts_B: Tensor,
    ) -> Tensor:
        """(B, T, d) hidden states of windows that begin at places `starts_B` of slots 0..B-1, and are kept there.

        Every token sees those before it, and the first `counts_B` places of the source, at least one.
        """
        (rows, window), width = tokens_BT.shape, decoder.width
        tokens_BT, starts_B = tokens_BT.contiguous(), starts_B.contiguous()
        room = past_KSHLP.new_empty(rows * window * decoder.room)
        out_BTd = past_KSHLP.new_empty(rows, window, width)
        past, source = lines(past_KSHLP, starts_B), lines(source_KSHLP, counts_B)
        self._decode(
            *(decoder.address, tokens_BT.data_ptr(), rows, window, ctypes.addressof(past), ctypes.addressof(source)),
            *(room.data_ptr(), out_BTd.data_ptr()),
        )
        return out_BTd

    def argmax(self, logits: Tensor) -> Tensor:
        """(...) int64 of (..., V): the first of equals."""
        return self._scan(logits, None)

    def statistics(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Of (..., V): the argmax (...), and the numbers (..., 6) of `cmasd.confidence.largest.Statistics`."""
        numbers = logits.new_empty(*logits.shape[:-1], 6)
        return self._scan(logits, numbers), numbers

    def guess(
        self,
        decoder: PackedDecoder,
        head: Packed,
        ids_S: Tensor | None,
        window: tuple[Tensor, Tensor, Tensor | None],
        count: int,
        past_KSHLP: Tensor,
        source_KSHLP: Tensor,
        counts_B: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Greedy tokens behind a window (count, B), and the numbers (count, B, 6) of their logits, as `statistics`.

        The window is tokens (B, T), starts (B,) and, where windows are padded, the place (B,) of each one's last token;
        with `ids_S` these alone are the head's columns. Otherwise as `decode`.
        """
        tokens_BT, starts_B, only_B = window[0].contiguous(), window[1].contiguous(), window[2]
        (rows, width), pointer_of = tokens_BT.shape, Tensor.data_ptr
        room = past_KSHLP.new_empty(rows * (width * (decoder.width + decoder.room) + head.outputs))
        found, numbers = tokens_BT.new_empty(count, rows), past_KSHLP.new_empty(count, rows, 6)
        past, source = lines(past_KSHLP, starts_B), lines(source_KSHLP, counts_B)
        self._guess(
            *(decoder.address, head.address, None if ids_S is None else ids_S.data_ptr(), pointer_of(tokens_BT)),
            *(rows, width, None if only_B is None else only_B.data_ptr(), count),
            *(ctypes.addressof(past), ctypes.addressof(source), *map(pointer_of, (room, found, numbers))),
        )
        return found, numbers

    def pack(self, weight_OI: Tensor, bias_O: Tensor | None, int8: bool = False) -> Packed:
        """For `product`: in 16 bits where no weight loses a digit, or with `int8` rounded, with a scale per output."""
        outputs, inputs = weight_OI.shape
        padding = -outputs % self._panel
        bias_O = weight_OI.new_zeros(outputs) if bias_O is None else bias_O
        bias, scales = F.pad(bias_O, (0, padding)), None
        if int8:
            scale_O = weight_OI.abs().amax(1).clamp_min(LEAST_SCALE) / 127
            weight_OI, scales = (weight_OI / scale_O[:, None]).round(), F.pad(scale_O, (0, padding))
        dtype = torch.int8 if int8 else next((half for half in self.halves if _fits(weight_OI, half)), weight_OI.dtype)
        strips_GIP = F.pad(weight_OI, (0, 0, 0, padding)).view(-1, self._lanes, inputs).transpose(1, 2)
        return Packed(strips_GIP.to(dtype).contiguous(), bias, scales, outputs)

    def product(self, x_NI: Tensor, packed: Packed, residual_NO: Tensor | None = None) -> Tensor:
        """(N, O): each row's sums are the same whatever rows are beside it.

        The norm, where there is one, is taken of the product and the residual.
        """
        if x_NI.stride(1) != 1:
            x_NI = x_NI.contiguous()
        rows = x_NI.shape[0]
        out_NO = x_NI.new_empty(rows, packed.outputs)
        residual = None
        if residual_NO is not None:
            residual_NO = residual_NO.contiguous()
            residual = residual_NO.data_ptr()
        self._product(packed.address, x_NI.data_ptr(), x_NI.stride(0), rows, residual, out_NO.data_ptr())
        return out_NO

    def accept(self, draft_BK: Tensor, lengths_B: Tensor, best_BT: Tensor) -> tuple[Tensor, Tensor]:
        """How many leading draft tokens are the best ones (B,), within lengths; and the best one behind those (B,)."""
        draft_BK, lengths_B = draft_BK.contiguous(), lengths_B.contiguous()
        accepted_B, next_B = torch.empty_like(lengths_B), torch.empty_like(lengths_B)
        self._accept(
            *(draft_BK.data_ptr(), lengths_B.data_ptr(), best_BT.data_ptr(), *best_BT.shape),
            *(accepted_B.data_ptr(), next_B.data_ptr()),
        )
        return accepted_B, next_B

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
        logits_BTV: Tensor,
        emitted_BT: Tensor,
        count_B: Tensor,
        accepted_B: Tensor,
        draft: tuple[Tensor, Tensor, Tensor, Tensor],
        numbers_C9: Tensor,
        plain_token_8: Tensor,
        kept: tuple[Tensor | None, Tensor | None, Tensor | None],
    ) -> None:
        """See `cmasd.engine.trace`, whose kept tensors are updated: tokens (C, N, 8), iterations (C, N, 6), gaps (C,).

        A draft is its lengths (B,), confidences (B, K) and their components (B, K, 3), and the tolerances (B, K).
        """
        logits_BTV, emitted_BT, count_B = logits_BTV.contiguous(), emitted_BT.contiguous(), count_B.contiguous()
        draft_4 = [one.contiguous() for one in (accepted_B, *draft)]
        places = [(None, 0) if one is None else (one.data_ptr(), one.stride(0)) for one in kept]
        self._trace(
            *(logits_BTV.data_ptr(), *logits_BTV.shape, emitted_BT.data_ptr(), count_B.data_ptr()),
            *(*(one.data_ptr() for one in draft_4), numbers_C9.data_ptr(), numbers_C9.stride(0)),
            *(plain_token_8.data_ptr(), *(value for place in places for value in place)),
        )

    def _scan(self, logits: Tensor, numbers: Tensor | None) -> Tensor:
        logits, columns = logits.contiguous(), logits.shape[-1]
        tokens = torch.empty(logits.shape[:-1], dtype=torch.int64)
        out = None if numbers is None else numbers.data_ptr()
        self._statistics(logits.data_ptr(), tokens.numel(), columns, tokens.data_ptr(), out)
        return tokens


def _fits(weight: Tensor, dtype: torch.dtype) -> bool:
    return torch.equal(weight.to(dtype).to(weight.dtype), weight)


def kernels_for(tensor: Tensor) -> Kernels | None:
    """The kernels for a tensor's device and number format (any, for ids); None where there are none."""
    dtype = torch.float32 if tensor.dtype == torch.int64 else tensor.dtype
    return kernels(dtype) if tensor.device.type == "cpu" else None


@cache
def kernels(dtype: torch.dtype) -> Kernels | None:
    """For tensors on the CPU; built when first asked for."""
    if dtype not in REALS or sys.platform != "linux":
        return None
    try:
        return Kernels(built(*REALS[dtype]))
    except (OSError, subprocess.SubprocessError) as error:
        log.info("%s", {"event": "kernels.none", "cause": str(error).splitlines()[0]})
        return None
