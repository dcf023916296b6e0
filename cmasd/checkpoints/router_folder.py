"""A router as a folder: `config.json` and `model.safetensors`. Weights are safetensors alone."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cmasd.errors import ModelError
from cmasd.models.router_network import RouterNetwork, RouterShape

MODEL_TYPE = "cmasd-router"
"""`model_type` in `config.json`."""
KEY = "stitch.router"
"""What names such a folder."""


def save_router(network: RouterNetwork, folder: Path) -> None:
    """Write configuration and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": MODEL_TYPE, **asdict(network.shape)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: weight.detach().cpu().contiguous() for name, weight in network.state_dict().items()}
    save_file(weights, folder / "model.safetensors")


def load_router(name: str, features: tuple[str, ...]) -> RouterNetwork:
    """Read a router that looks at these features; raises `ModelError` for anything else."""
    folder = Path(name).expanduser()
    shape = _shape(name, folder)
    if shape.features != features:
        raise ModelError(
            f"{KEY}: {name} looks at {', '.join(shape.features)}, got a version of cmasd that has "
            f"{', '.join(features)}. Train it again."
        )
    network = RouterNetwork(shape)
    try:
        network.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{KEY}: {name}: model.safetensors is damaged ({reason}). Copy the whole folder again."
        ) from None
    return network.requires_grad_(False).eval()


def _shape(name: str, folder: Path) -> RouterShape:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        if config.pop("model_type") != MODEL_TYPE:
            raise ValueError("of another model")
        return RouterShape(**{**config, "features": tuple(config["features"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(
            f"{KEY}: no router, got {name}; expected a folder that cmasd train has written with kind: router. "
            "Train one, or set stitch.router=null."
        ) from None
