"""The linear layers of stock models in packed form, everything else of them as transformers has it.

Decoder-only families and T5 are modules of transformers, whoever runs them. Here each `nn.Linear` in them, and GPT-2's
`Conv1D`, gives way to a module whose forward is the packed product (`cmasd.kernels`), and a large embedding to one that
looks up rows of 16 bits and widens those. Results differ by rounding alone, to 8 or 4 bits where that is asked for. The
modules around them are shells of the given ones (`copy.copy`), so a model that was given stays as it was.

Shapes: V vocabulary, O outputs, I inputs, d width.
"""

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cmasd.errors import ModelError
from cmasd.kernels import Bits, Kernels, Packed, kernels_for
from cmasd.models.allocator import give_back_freed

GIVEN_BACK_BYTES = 2**21
"""Of weights, from which on holes in the heap count."""
Exchange = Callable[[nn.Module], nn.Module]
"""A module to what takes its place, itself where nothing does."""


class PackedLinear(nn.Module):
    """A linear layer whose weights are kept in packed form alone."""

    def __init__(self, packed: Packed, kernels: Kernels, has_bias: bool) -> None:
        super().__init__()
        self.packed, self.kernels = packed, kernels
        self.out_features, self.in_features = packed.shape
        self.weight = torch.empty(packed.shape, dtype=kernels.dtype, device="meta")
        """What modules around it ask for shape and format; it holds no numbers."""
        self.bias = packed.bias if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O)"""
        out_NO = self.kernels.product(x.reshape(-1, self.in_features), self.packed)
        return out_NO.view(*x.shape[:-1], self.out_features)

    def rounded(self, bits: Bits) -> "PackedLinear":
        """The same weights in so many bits, or itself where they are, or are wanted as they are."""
        if bits in (None, self.packed.bits):
            return self
        weight_OI = self.packed.stored() if self.packed.bits is None else self.packed.unpacked()
        return pack(weight_OI, self.bias, self.kernels, bits)


class LookUp(nn.Module):
    """An embedding whose rows are widened when they are read."""

    def __init__(self, table: Tensor | Packed, dtype: torch.dtype, scale: float | None) -> None:
        """`table` (V, d) in any format, or an output layer whose weights it shares; Gemma scales what is read."""
        super().__init__()
        self.table, self.scale = table, scale
        self.num_embeddings, self.embedding_dim = table.shape
        self.weight = torch.empty(tuple(table.shape), dtype=dtype, device="meta")
        """As in `PackedLinear`."""

    def forward(self, ids: Tensor) -> Tensor:
        """(...) to (..., d)"""
        found = self.table.rows(ids) if isinstance(self.table, Packed) else F.embedding(ids, self.table)
        found = found.to(self.weight.dtype)
        return found if self.scale is None else found * self.scale

    def unpacked(self) -> Tensor:
        """(V, d) all rows, not scaled."""
        whole = self.table.unpacked() if isinstance(self.table, Packed) else self.table
        return whole.to(self.weight.dtype)


def is_packed(model: nn.Module) -> bool:
    """Whether any of its layers are."""
    return any(isinstance(module, PackedLinear) for module in model.modules())


def weight_of(module: Any) -> Tensor:
    """(O, I) or (V, d) of a linear layer or an embedding, packed or not."""
    if isinstance(module, PackedLinear):
        return module.packed.unpacked()
    return module.unpacked() if isinstance(module, LookUp) else module.weight.detach()


def bytes_to_pack(model: nn.Module, bits: Bits) -> int:
    """What packing the linear layers of a model takes, at most; nothing where they are in the form that is wanted."""
    layers = [layer for layer in linears(model) if not _is_ready(layer, bits)]
    return sum(one.packed.nbytes if isinstance(one, PackedLinear) else one.weight.nbytes for one in layers)


def _is_ready(layer: nn.Module, bits: Bits) -> bool:
    return isinstance(layer, PackedLinear) and bits in (None, layer.packed.bits)


def outputs_of(layer: Any) -> int:
    """Of a linear layer."""
    return int(layer.nf if isinstance(layer, Conv1D) else layer.out_features)


def linears(module: nn.Module) -> list[Any]:
    """All linear layers of a model."""
    return [one for one in module.modules() if isinstance(one, nn.Linear | Conv1D | PackedLinear)]


def packed_form(model: PreTrainedModel, bits: Bits = None) -> PreTrainedModel:
    """The model with packed linear layers, rounded to `bits`; itself where they are so or there are no kernels.

    Raises `ModelError` where rounding is asked for and cannot be had.
    """
    kernels = kernels_for(torch.empty(0, dtype=model.dtype, device=model.device))
    if kernels is None:
        if bits is not None:
            raise no_rounding(bits, model.dtype, model.device)
        return model
    return cast(PreTrainedModel, exchanged(model, lambda module: _packed(module, kernels, bits)))


def pack_in_place(model: PreTrainedModel, bits: Bits = None) -> PreTrainedModel:
    """The same, layer after layer, each of which is given up for its packed form: there are no two copies of all."""
    kernels = kernels_for(torch.empty(0, dtype=model.dtype, device=model.device))
    if kernels is None:
        return packed_form(model, bits)
    for path in [path for path, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]:
        parent, _, name = path.rpartition(".")
        model.get_submodule(parent)._modules[name] = _packed(model.get_submodule(path), kernels, bits)
    return model


def pack(weight_OI: Tensor, bias_O: Tensor | None, kernels: Kernels, bits: Bits) -> PackedLinear:
    """Weights of any format; what packing many took for a moment is handed back."""
    packed = PackedLinear(kernels.pack(weight_OI, bias_O, bits), kernels, bias_O is not None)
    if weight_OI.nbytes > GIVEN_BACK_BYTES:
        give_back_freed()
    return packed


def no_rounding(bits: int, dtype: torch.dtype, device: torch.device) -> ModelError:
    """What int8 and int4 need."""
    return ModelError(
        f"models: int{bits} needs a CPU under Linux, a C compiler and a model loaded in float32, got "
        f"{str(dtype).removeprefix('torch.')} on {device.type}. Use models.dtype=auto and models.drafter_dtype=auto."
    )


def exchanged(module: nn.Module, exchange: Exchange, known: dict[int, nn.Module] | None = None) -> nn.Module:
    """A module in which others take the places of some; what holds none of these is not copied."""
    known = {} if known is None else known
    if id(module) in known:
        return known[id(module)]
    taken = exchange(module)
    if taken is module:
        inner = {name: one and exchanged(one, exchange, known) for name, one in module._modules.items()}
        if any(one is not module._modules[name] for name, one in inner.items()):
            taken = copy.copy(module)
            taken._modules = inner
    known[id(module)] = taken
    return taken


def _packed(module: Any, kernels: Kernels, bits: Bits) -> nn.Module:
    if isinstance(module, PackedLinear):
        return module.rounded(bits)
    if isinstance(module, nn.Linear):
        return pack(module.weight.detach(), module.bias, kernels, bits)
    if isinstance(module, Conv1D):
        return pack(module.weight.detach().T, module.bias, kernels, bits)
    return cast(nn.Module, module)
