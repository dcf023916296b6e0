"""The beginning of a model as a model of its own: its first decoder layers, then its final norm and output layer.

It drafts for the whole model without any training (`drafter.kind: self`). Nothing is copied but the modules' outer
shells: every weight is the verifier's own tensor, and the verifier stays as it was.
"""

import copy
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from cmasd.errors import ConfigError

LAYER_LISTS = ("layers", "block", "h")
"""Names under which decoders keep their layers."""


def early_exit(model: PreTrainedModel, layers: int | None) -> PreTrainedModel:
    """The model with its first `layers` decoder layers; None: half of them. Raises `ConfigError`."""
    path, name = _layer_list(model)
    whole = cast(nn.ModuleList, model.get_submodule(f"{path}.{name}"))
    count = max(1, len(whole) // 2) if layers is None else layers
    if count >= len(whole):
        raise ConfigError(
            f"drafter.self_layers: must be fewer than the verifier's {len(whole)} decoder layers, got {count}. "
            "Lower it, or set drafter.kind=model."
        )
    shell = _shell(model)
    inner: Any = shell
    for part in path.split("."):
        inner._modules[part] = _shell(inner._modules[part])
        inner = inner._modules[part]
    inner._modules[name] = whole[:count]
    return cast(PreTrainedModel, shell)


def _layer_list(model: Any) -> tuple[str, str]:
    """Where the decoder is in the model, and the name of its list of layers."""
    decoder = model.get_decoder() if model.config.is_encoder_decoder else model.base_model
    [path] = [path for path, module in model.named_modules() if module is decoder]
    [name] = [name for name in LAYER_LISTS if isinstance(getattr(decoder, name, None), nn.ModuleList)]
    return path, name


def _shell(module: Any) -> Any:
    """A module with the same parameters and submodules, of which single ones can be exchanged."""
    shell = copy.copy(module)
    shell._modules = dict(module._modules)
    return shell
