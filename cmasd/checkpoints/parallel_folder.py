"""A parallel drafter as a folder: `config.json`, `model.safetensors`, and `shortlist.json` beside them.

Weights are safetensors alone. What was trained for another verifier is refused where its shape tells.
"""

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from cmasd.checkpoints.by_name import resolve
from cmasd.errors import ModelError
from cmasd.models.parallel_network import ParallelNetwork, ParallelShape

MODEL_TYPE = "cmasd-parallel"
"""`model_type` in `config.json`."""


def save_parallel(network: ParallelNetwork, folder: Path, dtype: torch.dtype) -> None:
    """Write configuration and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": MODEL_TYPE, **asdict(network.shape)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: weight.detach().to("cpu", dtype).contiguous() for name, weight in network.state_dict().items()}
    save_file(weights, folder / "model.safetensors")


def is_parallel(name: str) -> bool:
    """Whether the model is a folder with a parallel drafter in it."""
    return _config(name) is not None


def _config(name: str) -> dict[str, Any] | None:
    """What `config.json` says of a parallel drafter; None where there is none."""
    try:
        source = resolve(name)
        config = json.loads((source / "config.json").read_text()) if isinstance(source, Path) else None
    except (OSError, ValueError, ModelError):
        return None
    return config if isinstance(config, dict) and config.get("model_type") == MODEL_TYPE else None


def load_parallel(
    name: str, expected: ParallelShape, dtype: torch.dtype, device: torch.device, encoder: nn.Module | None = None
) -> ParallelNetwork:
    """Read a drafter; raises `ModelError` unless it fits the verifier, whose sizes `expected` has.

    `encoder` is the verifier's, as which an encoder of the drafter's own is built.
    """
    config = _config(name)
    if config is None:
        raise ModelError(
            f"models.drafter: {name} is not a folder with a parallel drafter, which drafter.kind 'parallel' needs. "
            "Train one with cmasd train, or set drafter.kind=model."
        )
    shape = _shape(name, config)
    for key in ("width", "has_source"):
        mine, theirs = getattr(shape, key), getattr(expected, key)
        if mine != theirs:
            raise ModelError(
                f"models.drafter: {name} was trained for another verifier: its {key} is {mine}, the verifier's "
                f"{theirs}. A parallel drafter reads the verifier's states, so train one for this verifier."
            )
    own_encoder = copy.deepcopy(encoder) if shape.own_encoder else None
    with torch.device("meta"):
        network = ParallelNetwork(shape, own_encoder)
    try:
        weights = load_file(Path(resolve(name)) / "model.safetensors")
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{name}: model.safetensors is damaged ({reason}). Copy the whole folder again.") from error
    try:
        network.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{name}: model.safetensors is not of this version of cmasd, or not of its config.json ({reason}). "
            "Train it again."
        ) from error
    return network.to(device=device, dtype=dtype).requires_grad_(False).eval()


def _shape(name: str, config: dict[str, Any]) -> ParallelShape:
    try:
        return ParallelShape(**{key: value for key, value in config.items() if key != "model_type"})
    except TypeError as error:
        raise ModelError(f"{name}: config.json is not of this version of cmasd ({error}). Train it again.") from None
