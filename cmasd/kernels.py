"""Three things in C that torch has no kernel for on a CPU: attention of short windows over rows of different lengths,
all that is asked of a row of logits in one call, and products of few rows with weights that serve again and again.

Batched products read every row up to the longest, and for small models most of their time is the overhead of each
operation, or the reading of weights. `kernels.c` is compiled by the machine's own compiler when it is first needed
(some seconds; kept in the cache folder), for its own processor, and shares the threads of torch. Without a compiler, on
another system, or for other number formats there are no kernels, and the callers' tensor operations do the same more
slowly.

Shapes: B rows, T window, N = B*T, H heads, D head width, d = H*D, L cache length, V columns, I inputs, O outputs, G
strips of P outputs.
"""

import ctypes
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SOURCE = Path(__file__).with_name("kernels.c")
REALS = {
    torch.float32: (ctypes.c_float, ("-DREAL=float", "-DEXP=expf", "-DLOG=logf", "-DSQRT=sqrtf", "-DNARROW")),
    torch.float64: (ctypes.c_double, ("-DREAL=double", "-DEXP=exp", "-DLOG=log", "-DSQRT=sqrt")),
}
"""What Python passes, and the names that C knows it by."""
FORMATS = {torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}
"""What C calls the formats in which weights can be packed; 0 is their own."""
LEAST_SCALE = 1e-30
"""Instead of zero, which nothing can be divided by."""
FLAGS = ("-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC", "-shared", "-nostartfiles")
"""The last leaves out what gcc adds for fast mathematics, which would flush small numbers in the whole process."""
COMPILE_SECONDS = 60.0

log = logging.getLogger(__name__)


class Kernels:
    """`kernels.c` for one number format."""

    def __init__(self, library: Path, real: Any) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self.name = library.stem
        """Of this source, compiler and processor."""
        loaded = ctypes.CDLL(str(library))
        self._attend, self._statistics = loaded.attend, loaded.statistics
        self._attend.restype = self._statistics.restype = None
        self._attend.argtypes = [
            *(pointer, size, pointer, pointer, size, size, pointer),
            *(size, size, size, size, real, pointer),
        ]
        self._statistics.argtypes = [pointer, size, size, pointer, pointer]
        self._lanes, self._panel = (size.in_dll(loaded, name).value for name in ("lanes", "panel"))
        reads = {torch.float16: "reads_float16", torch.bfloat16: "reads_bfloat16"}
        self.halves = [dtype for dtype, name in reads.items() if size.in_dll(loaded, name).value]
        """Formats of 16 bits that `product` widens on the way."""
        self._product = loaded.product
        self._product.restype = None
        self._product.argtypes = [pointer, pointer, size, size, pointer, pointer]

    def extend(self, projected_N3d: Tensor, lines_SHLP: Tensor, starts_B: Tensor) -> Tensor:
        """(N, d): keep the window's keys and values behind each row's `starts_B`, then attend to all up to each token.

        `projected_N3d` holds queries, then (key, value) head by head; rows are slots 0..B-1 of `lines_SHLP`.
        """
        width = lines_SHLP.shape[1] * lines_SHLP.shape[3] // 2
        fresh = projected_N3d.data_ptr() + width * projected_N3d.element_size()
        return self._sums(projected_N3d, width, fresh, lines_SHLP, starts_B)

    def read(self, queries_Nd: Tensor, lines_SHLP: Tensor, counts_B: Tensor) -> Tensor:
        """(N, d): attend to the first `counts_B` positions of each row, at least one."""
        return self._sums(queries_Nd, queries_Nd.shape[1], None, lines_SHLP, counts_B)

    def _sums(self, queries: Tensor, width: int, fresh: int | None, lines: Tensor, counts_B: Tensor) -> Tensor:
        rows, (_, heads, _, pair) = counts_B.shape[0], lines.shape
        out_Nd = queries.new_empty(queries.shape[0], width)
        self._attend(
            *(queries.data_ptr(), queries.stride(0), fresh, lines.data_ptr(), lines.stride(0), lines.stride(1)),
            *(counts_B.data_ptr(), rows, queries.shape[0] // rows, heads, pair // 2, (pair // 2) ** -0.5),
            out_Nd.data_ptr(),
        )
        return out_Nd

    def argmax(self, logits: Tensor) -> Tensor:
        """(...) int64 of (..., V): the first of equals."""
        return self._scan(logits, None)

    def statistics(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Of (..., V): the argmax (...), and z1, z2, log sum exp(z - z1), sum p (z - z1) as (..., 4)."""
        numbers = logits.new_empty(*logits.shape[:-1], 4)
        return self._scan(logits, numbers), numbers

    def pack(self, weight_OI: Tensor, bias_O: Tensor | None, int8: bool = False) -> "Packed":
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

    def product(self, x_NI: Tensor, packed: "Packed", residual_NO: Tensor | None = None) -> Tensor:
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


@dataclass(frozen=True)
class Norm:
    """A layer norm."""

    gain: Tensor
    offset: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        """Of the last dimension."""
        return torch.layer_norm(x, self.gain.shape, self.gain, self.offset, self.epsilon)


class _Layer(ctypes.Structure):
    """`struct layer` of kernels.c."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("format", ctypes.c_int64),
        ("bias", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("relu", ctypes.c_int64),
        ("gain", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("epsilon", ctypes.c_double),
    )


class Packed:
    """A linear layer as `Kernels.product` reads it, and what follows it: a relu, or a residual and a norm of both."""

    def __init__(
        self,
        strips_GIP: Tensor,
        bias: Tensor,
        scales: Tensor | None,
        outputs: int,
        relu: bool = False,
        norm: Norm | None = None,
    ) -> None:
        """`strips_GIP` in the weights' own format or a smaller one; `bias` and, for int8, `scales` are (G*P,)."""
        self.strips_GIP = strips_GIP
        self.bias = bias
        self.scales = scales
        self.outputs = outputs
        self.norm = norm
        closing = (None, None, 0.0) if norm is None else (norm.gain.data_ptr(), norm.offset.data_ptr(), norm.epsilon)
        weights = strips_GIP.data_ptr(), FORMATS.get(strips_GIP.dtype, 0)
        factors = bias.data_ptr(), None if scales is None else scales.data_ptr()
        self._layer = _Layer(*weights, *factors, strips_GIP.shape[1], outputs, relu, *closing)
        self.address = ctypes.addressof(self._layer)
        """Of what C knows of it."""

    def followed(self, relu: bool = False, norm: Norm | None = None) -> "Packed":
        """The same weights, with this behind them."""
        return Packed(self.strips_GIP, self.bias, self.scales, self.outputs, relu, norm)


def _fits(weight: Tensor, dtype: torch.dtype) -> bool:
    return torch.equal(weight.to(dtype).to(weight.dtype), weight)


def kernels_for(tensor: Tensor) -> Kernels | None:
    """The kernels for a tensor's device and number format; None where there are none."""
    return kernels(tensor.dtype) if tensor.device.type == "cpu" else None


@cache
def kernels(dtype: torch.dtype) -> Kernels | None:
    """For tensors on the CPU; built when first asked for."""
    if dtype not in REALS or sys.platform != "linux":
        return None
    real, definitions = REALS[dtype]
    try:
        return Kernels(_built(*definitions), real)
    except (OSError, subprocess.SubprocessError) as error:
        log.info("%s", {"event": "kernels.none", "cause": str(error).splitlines()[0]})
        return None


def cache_folder() -> Path:
    """Where what was built or measured for this machine is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cmasd"


def _built(*definitions: str) -> Path:
    """The library, from the cache folder if it was built before; raises `OSError` where it cannot be."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise OSError("there is no C compiler")
    command = [compiler, *FLAGS, *definitions]
    processor = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    known = [line for line in processor.splitlines() if line.startswith(("model", "flags", "Features", "CPU"))]
    threads = _threads()
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=COMPILE_SECONDS).stdout
    about = repr([command, known, threads, version, SOURCE.read_bytes()])
    library = cache_folder() / "kernels" / f"kernels-{sha256(about.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            built = Path(folder) / library.name
            subprocess.run(
                [*command, str(SOURCE), *threads, "-lm", "-o", str(built)],
                capture_output=True,
                check=True,
                timeout=COMPILE_SECONDS,
            )
            built.replace(library)
    return library


def _threads() -> list[str]:
    """The OpenMP library that torch has loaded: two of them would fight for the processors."""
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/lib" in line}
    return sorted(path for path in loaded if Path(path).name.startswith(("libgomp", "libiomp5")))[:1]
