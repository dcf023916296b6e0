"""A stand-in for CUDA graphs on a CPU: the operations of a function, recorded once and run again without its Python.

As in a graph, addresses stay, and whatever the host decided stays decided. An operation that a capture forbids, because
the host would wait for the device or hand it new numbers, fails here as well.
"""

from collections.abc import Callable
from dataclasses import is_dataclass
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
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS | UPLOADS or (name.startswith("index") and _has_mask(args)):
            raise RuntimeError(f"{name} cannot be captured")
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._keep(value)
        out = func(*args, **(kwargs or {}))
        self._steps.append((func, args, kwargs or {}, _tensors(out)))
        return out

    def _keep(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._before.setdefault(storage.data_ptr(), (storage, storage.clone()))

    def undo(self) -> None:
        """A capture computes nothing: memory is as it was before."""
        for storage, before in self._before.values():
            storage.copy_(before)
        self._before.clear()

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
    leaves = [vars(leaf) if is_dataclass(leaf) else leaf for leaf in tree_leaves(tree)]
    return [leaf for leaf in tree_leaves(leaves) if isinstance(leaf, Tensor)]


class TapeRecorder:
    """In place of `cmasd.runner.graphs.Recorder`."""

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cpu"

    def record(self, function: Callable[[], Any], warm_ups: int) -> tuple[Tape, Any]:
        """Like a capture, it computes nothing that may be used before the first replay."""
        for _ in range(min(warm_ups, 1)):
            function()
        # Inference mode hands operations to the tape whole, with what they wait for inside.
        with torch.inference_mode(False), torch.no_grad(), Tape() as tape:
            output = function()
        tape.undo()
        for tensor in _tensors(output):
            tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
        return tape, output
