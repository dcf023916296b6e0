"""A stand-in for CUDA graphs on a CPU: the operations of a function, recorded once and run again without its Python.

As in a graph, addresses stay, and whatever the host decided stays decided. An operation that a capture forbids, because
the host would wait for the device or hand it new numbers, fails here as well.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "unique_dim", "_unique2", "bincount"}
"""The host reads what the device computed."""
UPLOADS = {"lift_fresh", "lift_fresh_copy"}
"""`torch.tensor(...)`: the host's numbers are copied to the device."""


class Tape(TorchDispatchMode):
    """Records what runs inside of it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._steps: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS | UPLOADS or (name.startswith("index") and _has_mask(args)):
            raise RuntimeError(f"{name} cannot be captured")
        out = func(*args, **(kwargs or {}))
        self._steps.append((func, args, kwargs or {}, _tensors(out)))
        return out

    def replay(self) -> None:
        """Everything again, into the same memory."""
        with torch.inference_mode():
            for func, args, kwargs, outputs in self._steps:
                for old, new in zip(outputs, _tensors(func(*args, **kwargs)), strict=True):
                    if old.is_mkldnn:  # weights that were packed meanwhile: the same again, and never in a graph
                        continue
                    if old.data_ptr() != new.data_ptr():  # else it is a view, or was changed in place
                        old.copy_(new)


def _has_mask(args: Any) -> bool:
    """Indexing by a mask counts its ones first."""
    return any(tensor.dtype in (torch.bool, torch.uint8) for tensor in _tensors(args[1:2]))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class TapeRecorder:
    """In place of `cmasd.runner.graphs.Recorder`."""

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cpu"

    def record(self, function: Callable[[], Tensor]) -> tuple[Tape, Tensor]:
        """Like a capture, it computes nothing that may be used before the first replay."""
        function()
        # Inference mode hands operations to the tape whole, with what they wait for inside.
        with torch.inference_mode(False), torch.no_grad(), Tape() as tape:
            output = function()
        output.fill_(float("nan"))
        return tape, output
