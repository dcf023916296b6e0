"""Attention in C computes what tensor operations do, row by row, whatever stands beside a row."""

import shutil

import pytest
import torch
from torch import Tensor

from cmasd.kernels import Kernels, kernels
from cmasd.runner.attention import Attend, Native, TensorReading, TensorWriting
from cmasd.runner.cache import Geometry, SlotCache, SourceCache
from cmasd.runner.masks import CausalMask

LENGTH, SOURCE, LAYERS = 40, 17, 2


def kernel(dtype: torch.dtype) -> Kernels:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    found = kernels(dtype)
    assert found is not None
    return found


class Slots:
    """Caches of random content, with rows of different lengths."""

    def __init__(self, rows: int, heads: int, width: int, dtype: torch.dtype) -> None:
        torch.manual_seed(rows * 1000 + heads * 100 + width)
        geometry = Geometry(LAYERS, heads, width, dtype, torch.device("cpu"))
        self.cache, self.sources = SlotCache(geometry, rows + 2, LENGTH), SourceCache(geometry, rows + 2, SOURCE)
        for layer in (*self.cache.layers_SHLP, *self.sources.layers_SHLP):
            layer.normal_()
        self.lengths_B = torch.randint(1, SOURCE + 1, (rows,))
        self.lengths_B[0] = SOURCE
        pairs = [(torch.randn(rows, heads, SOURCE, width, dtype=dtype),) * 2 for _ in range(LAYERS)]
        self.sources.store(torch.arange(rows), self.lengths_B, pairs)
        self.causal = CausalMask.build(LENGTH, dtype, torch.device("cpu"))
        self.heads, self.width, self.dtype = heads, width, dtype

    def projected(self, rows: int, window: int) -> Tensor:
        return torch.randn(rows * window, 3 * self.heads * self.width, dtype=self.dtype)

    def open(self, starts_B: Tensor, window: int) -> Tensor:
        positions_BT = starts_B[:, None] + torch.arange(window)
        read = self.cache.extend(len(starts_B), int(starts_B.max()) + window)
        self.cache.open_window(positions_BT, starts_B[:, None], read)
        return self.causal.window(positions_BT, read, span=None)

    def native(self, starts_B: Tensor, window: int) -> tuple[Attend, Attend]:
        self.open(starts_B, window)
        lengths_B = self.sources.lengths(len(starts_B))
        return (
            Native(kernel(self.dtype).extend, self.cache.layers_SHLP, starts_B),
            Native(kernel(self.dtype).read, self.sources.layers_SHLP, lengths_B),
        )

    def tensor(self, starts_B: Tensor, window: int) -> tuple[Attend, Attend]:
        mask = self.open(starts_B, window)
        view, source_mask = self.sources.open(len(starts_B), SOURCE)
        assert self.cache.view is not None
        return (
            TensorWriting(self.cache, TensorReading.of(self.cache.view.products, mask, self.heads)),
            TensorReading.of(view.products, source_mask, self.heads),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [4, 20, 32, 64, 128])
@pytest.mark.parametrize("window", [1, 5])
@pytest.mark.parametrize("rows", [1, 7])
def test_both_ways_agree_and_leave_the_same_cache(dtype: torch.dtype, width: int, window: int, rows: int) -> None:
    slots, starts_B = Slots(rows, 3, width, dtype), torch.randint(0, LENGTH - window, (rows,))
    starts_B[0] = 0
    projected = slots.projected(rows, window)
    queries = projected[:, : 3 * width]
    before = slots.cache.layers_SHLP[1].clone()
    write, read = slots.native(starts_B, window)
    got = write(1, projected), read(1, queries)
    after = slots.cache.layers_SHLP[1].clone()
    slots.cache.layers_SHLP[1].copy_(before)
    write, read = slots.tensor(starts_B, window)
    torch.testing.assert_close(got[0], write(1, projected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got[1], read(1, queries), rtol=1e-4, atol=1e-5)
    assert torch.equal(after, slots.cache.layers_SHLP[1])
    assert not torch.equal(after, before)


def test_a_row_gets_the_same_bits_alone_and_token_by_token() -> None:
    slots, starts_B = Slots(6, 2, 64, torch.float32), torch.tensor([30, 0, 7, 19, 3, 11])
    projected = slots.projected(6, 4)
    together = slots.native(starts_B, 4)[0](0, projected).view(6, 4, -1)
    alone = [slots.native(starts_B[:1] + t, 1)[0](0, projected[t : t + 1]) for t in range(4)]
    assert torch.equal(torch.cat(alone), together[0])
