"""Checkpoints straight into packed form, tensor by tensor: no float32 copy of a model, and no second copy of any kind.

The model is built without memory (the meta device), then each tensor is read from safetensors, packed or kept, and
forgotten; peak memory is what comes of it and the largest tensor. Large embeddings keep their 16 bits; an output layer
tied to them is packed once and they are looked up in it, unless it is rounded: then the embedding stays in 16 bits.
For models on a CPU in float32 or int8 that run on transformers' modules. Whatever is unusual about a checkpoint (other
names, pickles, tensors too few) goes the way of `load_model`, which also says what is wrong, and is packed after that.
"""

import logging
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig, PretrainedConfig
from transformers.pytorch_utils import Conv1D
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from cmasd.checkpoints.by_name import (
    LOADING_ERRORS,
    DtypeName,
    Model,
    in_silence,
    is_local,
    load_config,
    load_model,
    resolve,
)
from cmasd.kernels import Bits, Kernels, Packed, kept_zeros, kernels_for
from cmasd.models.families import FAMILIES
from cmasd.models.packed import LookUp, PackedLinear, pack, pack_in_place

ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
_QUIETLY: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
log = logging.getLogger(__name__)


class Unusual(Exception):
    """A checkpoint that is left to `load_model`."""


def load_ready(
    name: str,
    dtype: DtypeName,
    device: torch.device,
    *,
    bits: Bits = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Model:
    """A model in the form in which runners multiply; raises `ModelError`. `bits` that linear layers are rounded to go
    with `dtype` auto, float32 or int8, which is 8 unless they say otherwise.
    """
    trust = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    config = load_config(name, trust_remote_code=trust_remote_code)
    family = FAMILIES.get((config.architectures or [""])[0])
    packs = device.type == "cpu" and dtype in ("auto", "float32", "int8") and kernels_for(torch.empty(0)) is not None
    if family is None or family.is_bart or not packs:
        return load_model(name, dtype, device, **trust)
    bits = bits or (8 if dtype == "int8" else None)
    try:
        with in_silence():
            return _Stream(name, config, bits).model()
    except (Unusual, *LOADING_ERRORS) as error:
        log.info("%s", {"event": "model.not_streamed", "model": name, "cause": str(error).partition("\n")[0]})
    return pack_in_place(load_model(name, dtype, device, **trust), bits)


class _Stream:
    """One model on its way in."""

    def __init__(self, name: str, config: PretrainedConfig, bits: Bits) -> None:
        self._source = resolve(name)
        self._local = is_local(self._source)
        self._bits = bits
        kernels = kernels_for(torch.empty(0))
        assert kernels is not None, "the caller has asked"
        self._kernels: Kernels = kernels
        factory: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        with torch.device("meta"):
            self._model: Any = factory.from_config(config, dtype=torch.float32)
        self._tied: dict[str, str] = dict(self._model.all_tied_weights_keys)
        self._files = self._places()

    @torch.no_grad()
    def model(self) -> Model:
        """All of it."""
        self._compute_buffers()
        table = self._path_of(self._model.get_input_embeddings(), "weight")
        self._take_table(self._tied.get(table, table))
        for path, module in list(self._model.named_modules()):
            if isinstance(module, nn.Linear | Conv1D):
                self._put(path, self._linear(path, module))
            elif not isinstance(module, LookUp | PackedLinear):
                self._fill(path, module)
        self._check()
        self._model.generation_config = self._generation_config()
        return cast(Model, self._model.requires_grad_(False).eval())

    # ---------------------------------------------------------------- files

    def _paths(self) -> list[Path]:
        ask: dict[str, Any] = {"local_files_only": self._local}
        one, index = (cached_file(self._source, name, **_QUIETLY, **ask) for name in (ONE_FILE, INDEX))
        if one is not None:
            return [Path(one)]
        if index is None:
            raise Unusual("there are no safetensors")
        return [Path(path) for path in get_checkpoint_shard_files(str(self._source), index, **ask)[0]]

    def _places(self) -> dict[str, tuple[Path, str]]:
        """Of each tensor of the model its file and its name there, which may have a prefix more or less."""
        wanted, prefix = set(self._model.state_dict()), f"{self._model.base_model_prefix}."
        found: dict[str, tuple[Path, str]] = {}
        for path in self._paths():
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118 (not a mapping)
                    for name in (key, prefix + key, key.removeprefix(prefix)):
                        if name in wanted:
                            if name in found:
                                raise Unusual(f"{name} is stored twice")
                            found[name] = (path, key)
                            break
        if lacking := sorted(wanted - found.keys() - self._tied.keys()):
            raise Unusual(f"{lacking[0]} is not stored")
        for target, source in list(self._tied.items()):
            if target in found and not torch.equal(_read(*found[target]), _read(*found[source])):
                del self._tied[target]
        return found

    def _tensor(self, key: str, shape: torch.Size) -> Tensor:
        tensor = _read(*self._files[key])
        if tensor.shape != shape or not tensor.is_floating_point() or tensor.itemsize < 2:
            raise Unusual(f"{key} is {tuple(tensor.shape)} of {tensor.dtype}, not {tuple(shape)}")
        return tensor

    # ---------------------------------------------------------------- modules

    def _take_table(self, key: str) -> None:
        """The input embedding, and every layer that is tied to it."""
        keys = [key, *(target for target, source in self._tied.items() if source == key)]
        modules = {one: self._model.get_submodule(one.rpartition(".")[0]) for one in keys}
        weight_Vd = self._tensor(key, modules[key].weight.shape)
        head = next((one for one, module in modules.items() if isinstance(module, nn.Linear)), None)
        table: Packed | Tensor = weight_Vd
        if head is not None:
            layer = pack(weight_Vd, None, self._kernels, self._bits)
            table = weight_Vd if self._bits else layer.packed
            self._put(head.rpartition(".")[0], layer)
        if isinstance(table, Tensor):
            table = kept_zeros(*table.shape, dtype=table.dtype).copy_(table)
        for one, module in modules.items():
            if one != head:
                scale = getattr(module, "scalar_embed_scale", None)
                self._put(one.rpartition(".")[0], LookUp(table, torch.float32, scale))

    def _linear(self, path: str, module: Any) -> PackedLinear:
        key = f"{path}.weight"
        weight = self._tensor(self._tied.get(key, key), module.weight.shape)
        bias_O = None if module.bias is None else self._tensor(f"{path}.bias", module.bias.shape)
        return pack(weight.T if isinstance(module, Conv1D) else weight, bias_O, self._kernels, self._bits)

    def _fill(self, path: str, module: nn.Module) -> None:
        """Norms, small tables and buffers that are stored, in float32."""
        own = {name: one for name, one in module._parameters.items() if one is not None}
        for name, one in own.items():
            key = f"{path}.{name}" if path else name
            value = self._tensor(self._tied.get(key, key), one.shape).to(torch.float32, copy=True)
            module._parameters[name] = nn.Parameter(value, requires_grad=False)
        for name in set(module._buffers) - module._non_persistent_buffers_set:
            if module._buffers[name] is not None:
                key = f"{path}.{name}" if path else name
                module._buffers[name] = _read(*self._files[key]).clone()

    def _put(self, path: str, module: nn.Module) -> None:
        parent, _, name = path.rpartition(".")
        self._model.get_submodule(parent)._modules[name] = module

    def _path_of(self, module: nn.Module, name: str) -> str:
        return next(f"{path}.{name}" for path, one in self._model.named_modules() if one is module)

    def _compute_buffers(self) -> None:
        """What is computed and not stored, such as rotations, in the way of transformers."""
        for module in self._model.modules():
            computed = [name for name in module._non_persistent_buffers_set if module._buffers[name] is not None]
            for name in computed:
                meta = cast(Tensor, module._buffers[name])
                if not meta.is_floating_point():
                    raise Unusual(f"the buffer {name} is computed")
                module._buffers[name] = torch.full_like(meta, torch.nan, device="cpu")
            if computed:
                self._model._init_weights(module)

    def _check(self) -> None:
        for name, one in [*self._model.named_parameters(), *self._model.named_buffers()]:
            if one.device.type == "meta" or (one.is_floating_point() and bool(one.isnan().any())):
                raise Unusual(f"{name} holds no numbers")

    def _generation_config(self) -> GenerationConfig:
        """As `from_pretrained` does."""
        ask: dict[str, Any] = {"local_files_only": self._local}
        try:
            return GenerationConfig.from_pretrained(self._source, **ask)
        except OSError:
            return GenerationConfig.from_pretrained(
                self._source, config_file_name="config.json", _from_model_config=True, **ask
            )


def _read(path: Path, key: str) -> Tensor:
    """A file is opened anew each time, so that what was read before takes no memory of this process."""
    with safe_open(path, "pt") as file:
        return cast(Tensor, file.get_tensor(key))
