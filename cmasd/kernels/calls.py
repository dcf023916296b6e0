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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cmasd.kernels.build import built
from cmasd.kernels.layers import Packed, PackedDecoder, PackedDrafter, lines, places
from cmasd.kernels.rows import RowKernels

REALS = {
    torch.float32: (
        "-DREAL=float",
        "-DEXP=expf",
        "-DERF=erff",
        "-DLOG=logf",
        "-DSQRT=sqrtf",
        "-DFABS=fabsf",
        "-DNARROW",
    ),
    torch.float64: ("-DREAL=double", "-DEXP=exp", "-DERF=erf", "-DLOG=log", "-DSQRT=sqrt", "-DFABS=fabs"),
}
"""The names that C knows a number format by."""
LEAST_SCALE = 1e-30
"""Instead of zero, which nothing can be divided by."""
NO_ROOM = "no memory for a draft"

log = logging.getLogger(__name__)


class Kernels(RowKernels):
    """`kernels.c` for one number format."""

    def __init__(self, library: Path) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self.name = library.stem
        """Of this source, compiler and processor."""
        loaded = ctypes.CDLL(str(library))
        super().__init__(loaded)
        self._read, self._statistics = loaded.attend, loaded.statistics
        self._product, self._decode, self._encode = loaded.product, loaded.decode, loaded.encode
        self._fill = loaded.fill
        self._guess, self._catch_up = loaded.guess, loaded.catch_up
        self._propose, self._remember = loaded.propose, loaded.remember
        self._read.argtypes = [pointer, size, pointer, size, size, pointer, size, size, size, pointer]
        self._statistics.argtypes = [pointer, size, size, pointer, pointer]
        self._product.argtypes = [pointer, pointer, size, size, pointer, pointer]
        self._decode.argtypes = [pointer, pointer, size, size, *[pointer] * 4]
        self._encode.argtypes = [pointer, pointer, pointer, size, size, pointer, pointer]
        self._fill.argtypes = [pointer, pointer, size, size, pointer, pointer, pointer]
        self._guess.argtypes = [*[pointer] * 5, size, size, *[pointer] * 4]
        self._catch_up.argtypes = [*[pointer] * 4, size, pointer, size, pointer, size, size, *[pointer] * 4]
        self._propose.argtypes = [pointer, pointer, size, pointer, size, pointer, size, size, *[pointer] * 6]
        self._remember.argtypes = [pointer, size, size, size, pointer, size, pointer]
        self._catch_up.restype = self._guess.restype = self._propose.restype = size
        self._lanes, self._panel, self._quad, self._zero = (
            size.in_dll(loaded, name).value for name in ("lanes", "panel", "quad", "zero")
        )
        self.multiplies_bytes = self._quad > 1
        """Whether int8 products round their inputs as well, and are much faster than those of 16 or 32 bits."""
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

    def encode(self, encoder: PackedDecoder, tokens_BS: Tensor, lengths_B: Tensor) -> Tensor:
        """(B, S, d) hidden states of sources that see the first `lengths_B` tokens of themselves, at least one."""
        rows, window = tokens_BS.shape
        tokens_BS, lengths_B = tokens_BS.contiguous(), lengths_B.contiguous()
        kind = encoder.tables[0]
        room = kind.new_empty(rows * window * (encoder.room + 2 * encoder.width))
        out_BSd = kind.new_empty(rows, window, encoder.width)
        whole = tokens_BS.data_ptr(), lengths_B.data_ptr(), rows, window
        self._encode(encoder.address, *whole, room.data_ptr(), out_BSd.data_ptr())
        return out_BSd

    def fill(self, decoder: PackedDecoder, encoded_BSd: Tensor, slots_B: Tensor, source_KSHLP: Tensor) -> None:
        """Keep the keys and values of sources (B, S, d) in these slots."""
        encoded_BSd, (rows, window, width) = encoded_BSd.contiguous(), encoded_BSd.shape
        room, source = encoded_BSd.new_empty(rows * window * 2 * width), lines(source_KSHLP, None)
        self._fill(
            *(decoder.address, encoded_BSd.data_ptr(), rows, window, slots_B.data_ptr()),
            *(ctypes.addressof(source), room.data_ptr()),
        )

    def argmax(self, logits: Tensor) -> Tensor:
        """(...) int64 of (..., V): the first of equals."""
        return self._scan(logits, None)

    def statistics(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Of (..., V): the argmax (...), and the numbers (..., 6) of `cmasd.confidence.largest.Statistics`."""
        numbers = logits.new_empty(*logits.shape[:-1], 6)
        return self._scan(logits, numbers), numbers

    def guess(
        self,
        model: tuple[PackedDecoder, Packed, Tensor | None],
        tokens_B: Tensor,
        starts_B: Tensor,
        count: int,
        caches: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Greedy tokens (B, count) behind one token for each row, and the numbers (B, count, 6) of their logits.

        A model is a decoder, its head, and the ids (S,) of the head's columns where these are not all. Caches are those
        of the output and of the source, and the source's lengths (B,). The numbers are those of `statistics`.
        """
        tokens_B, starts_B = tokens_B.contiguous(), starts_B.contiguous()
        found, numbers, behind = self._behind(model, len(starts_B), count, caches)
        if not self._guess(*behind[:3], tokens_B.data_ptr(), starts_B.data_ptr(), len(starts_B), *behind[3:]):
            raise MemoryError(NO_ROOM)
        return found, numbers

    def catch_up(
        self,
        model: tuple[PackedDecoder, Packed, Tensor | None],
        tokens_BL: Tensor,
        lengths_B: Tensor,
        cached_B: Tensor,
        count: int,
        caches: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, int]:
        """As `guess`, behind all tokens that the cache lacks, which knows `cached_B` (B,); and how many at most.

        The cache holds them all afterwards.
        """
        rows = len(lengths_B)
        found, numbers, behind = self._behind(model, rows, count, caches)
        tokens, lengths = (tokens_BL.data_ptr(), tokens_BL.stride(0)), (lengths_B.data_ptr(), lengths_B.stride(0))
        missing: int = self._catch_up(*behind[:3], *tokens, *lengths, cached_B.data_ptr(), rows, *behind[3:])
        if not missing:
            raise MemoryError(NO_ROOM)
        return found, numbers, missing

    def _behind(
        self,
        model: tuple[PackedDecoder, Packed, Tensor | None],
        rows: int,
        count: int,
        caches: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
        """What both fill, and what both are told."""
        (decoder, head, ids_S), (past_KSHLP, source_KSHLP, counts_B) = model, caches
        found, numbers = counts_B.new_empty(rows, count), past_KSHLP.new_empty(rows, count, 6)
        stored = ctypes.byref(lines(past_KSHLP, None)), ctypes.byref(lines(source_KSHLP, counts_B))
        about = decoder.address, head.address, None if ids_S is None else ids_S.data_ptr()
        return found, numbers, (*about, count, *stored, found.data_ptr(), numbers.data_ptr())

    def propose(
        self,
        drafter: PackedDrafter,
        tokens_BL: Tensor,
        lengths_B: Tensor,
        stored_B: Tensor,
        count: int,
        seen_SLd: Tensor,
        caches: tuple[Tensor, Tensor | None, Tensor | None],
    ) -> tuple[Tensor, Tensor, Tensor | None, int]:
        """Greedy tokens (B, count) of one pass, their numbers (B, count, 6), and the predicted acceptance (B, count)
        where there is a head for it; and how many places the cache lacked at most, from `stored_B` (B,) on.

        Caches are as for `guess`, without a source where there is none.
        """
        past_KSHLP, source_KSHLP, counts_B = caches
        rows = len(lengths_B)
        found, numbers = stored_B.new_empty(rows, count), past_KSHLP.new_empty(rows, count, 6)
        predicted = past_KSHLP.new_empty(rows, count) if drafter.has_judge else None
        stored = ctypes.byref(places(seen_SLd)), ctypes.byref(lines(past_KSHLP, None))
        source = None if source_KSHLP is None else ctypes.byref(lines(source_KSHLP, counts_B))
        missing: int = self._propose(
            *(drafter.address, tokens_BL.data_ptr(), tokens_BL.stride(0), lengths_B.data_ptr(), lengths_B.stride(0)),
            *(stored_B.data_ptr(), rows, count, *stored, source, found.data_ptr(), numbers.data_ptr()),
            None if predicted is None else predicted.data_ptr(),
        )
        if not missing:
            raise MemoryError(NO_ROOM)
        return found, numbers, predicted, missing

    def remember(self, hidden_BTd: Tensor, lengths_B: Tensor, seen_SLd: Tensor) -> None:
        """Keep a window's hidden states at the places behind each row's `lengths_B` (B,) tokens."""
        hidden_BTd, seen = hidden_BTd.contiguous(), ctypes.byref(places(seen_SLd))
        self._remember(hidden_BTd.data_ptr(), *hidden_BTd.shape, lengths_B.data_ptr(), lengths_B.stride(0), seen)

    def pack(self, weight_OI: Tensor, bias_O: Tensor | None, int8: bool = False, is_draft: bool = False) -> Packed:
        """For `product`: in 16 bits where no weight loses a digit, or with `int8` rounded, with a scale per output.

        `is_draft` halves what is float32 whatever it loses.
        """
        outputs = len(weight_OI)
        padding = -outputs % self._panel
        bias_O = weight_OI.new_zeros(outputs) if bias_O is None else bias_O
        bias, scales, offsets, quad = F.pad(bias_O, (0, padding)), None, None, 1
        if int8:
            scale_O = weight_OI.abs().amax(1).clamp_min(LEAST_SCALE) / 127
            weight_OI, scales, quad = (weight_OI / scale_O[:, None]).round(), F.pad(scale_O, (0, padding)), self._quad
            offsets = F.pad((-self._zero * weight_OI.sum(1)).to(torch.int32), (0, padding))
        halves = [half for half in self.halves if is_draft or _fits(weight_OI, half)]
        dtype = torch.int8 if int8 else next(iter(halves), weight_OI.dtype)
        padded = F.pad(weight_OI, (0, -weight_OI.shape[1] % quad, 0, padding))
        strips = padded.view(-1, self._lanes, padded.shape[1] // quad, quad).transpose(1, 2)
        return Packed(strips.to(dtype).contiguous(), weight_OI.shape, bias, scales, offsets)

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
