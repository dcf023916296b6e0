"""Attention in C computes what tensor operations do, row by row, whatever stands beside a row."""

import shutil

import pytest
import torch

from cmasd.kernels import Kernels, kernels
from cmasd.models.attention import NativeReading, TensorReading
from cmasd.runner.cache import Geometry, SourceCache

SOURCE, LAYERS = 17, 2


def kernel(dtype: torch.dtype) -> Kernels:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    found = kernels(dtype)
    assert found is not None
    return found


class Sources:
    """A cache of random content, with rows of different lengths."""

    def __init__(self, rows: int, heads: int, width: int, dtype: torch.dtype) -> None:
        torch.manual_seed(rows * 1000 + heads * 100 + width)
        self.cache = SourceCache(Geometry(LAYERS, heads, width, dtype, torch.device("cpu")), rows + 2, SOURCE)
        lengths_B = torch.randint(1, SOURCE + 1, (rows,))
        lengths_B[0] = SOURCE
        pairs = [(torch.randn(rows, heads, SOURCE, width, dtype=dtype),) * 2 for _ in range(LAYERS)]
        self.cache.store(torch.arange(rows), lengths_B, pairs)
        self.rows, self.heads, self.width, self.dtype = rows, heads, width, dtype

    def queries(self, window: int) -> torch.Tensor:
        return torch.randn(self.rows * window, self.heads * self.width, dtype=self.dtype)

    def native(self, rows: int) -> NativeReading:
        return NativeReading(kernel(self.dtype), self.cache.layers_SHLP, rows, self.cache.counts_S)

    def tensor(self) -> TensorReading:
        view, mask = self.cache.open(self.rows, SOURCE)
        return TensorReading.of(view.product, mask, self.heads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [4, 20, 32, 64, 128])
@pytest.mark.parametrize("window", [1, 5])
@pytest.mark.parametrize("rows", [1, 7])
def test_both_ways_agree(dtype: torch.dtype, width: int, window: int, rows: int) -> None:
    sources = Sources(rows, 3, width, dtype)
    queries = sources.queries(window)
    native, tensor = sources.native(rows)(1, queries), sources.tensor()(1, queries)
    torch.testing.assert_close(native, tensor, rtol=1e-4, atol=1e-5)


def test_a_row_gets_the_same_bits_alone() -> None:
    sources = Sources(6, 2, 64, torch.float32)
    queries = sources.queries(4)
    together, alone = sources.native(6)(0, queries), sources.native(1)(0, queries[:4])
    assert torch.equal(together[:4], alone)
