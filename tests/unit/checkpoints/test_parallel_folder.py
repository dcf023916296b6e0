"""Parallel drafters as folders: what is written is read, and what does not fit is refused by name."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cmasd.checkpoints.parallel_folder import is_parallel, load_parallel, save_parallel
from cmasd.errors import ModelError
from cmasd.models.parallel_network import ParallelNetwork, ParallelShape
from cmasd.runner.load import parallel_shape
from tests.unit.runner.tiny import tiny_model

SHAPE = ParallelShape(width=8, heads=2, head_width=4, has_source=True, queries=3, feed_forward=16, rank=2)
CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_parallel(ParallelNetwork(SHAPE), tmp_path / "drafter", torch.float32)
    return tmp_path / "drafter"


def test_what_is_written_is_read(folder: Path) -> None:
    torch.manual_seed(0)
    network = load_parallel(str(folder), SHAPE, torch.float32, CPU)
    assert network.shape == SHAPE
    for name, weight in ParallelNetwork(SHAPE).state_dict().items():
        assert torch.equal(network.state_dict()[name], weight)
    assert load_parallel(str(folder), SHAPE, torch.float64, CPU).start.dtype == torch.float64


def test_sizes_of_its_own_may_differ_from_what_is_expected(folder: Path) -> None:
    assert (
        load_parallel(str(folder), replace(SHAPE, queries=8, rank=64, heads=1), torch.float32, CPU).shape.queries == 3
    )


def test_an_encoder_of_its_own_is_in_the_folder(tmp_path: Path) -> None:
    verifier = tiny_model("marian")
    shape, encoder = replace(parallel_shape(verifier), own_encoder=True), copy.deepcopy(verifier.get_encoder())
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.mul_(2)
    save_parallel(ParallelNetwork(shape, encoder), tmp_path / "drafter", torch.float32)
    read = load_parallel(str(tmp_path / "drafter"), shape, torch.float32, CPU, verifier.get_encoder())
    assert read.encoder is not None
    for name, weight in verifier.get_encoder().state_dict().items():
        assert torch.equal(read.encoder.state_dict()[name], 2 * weight)


@pytest.mark.parametrize(("key", "value"), [("width", 16), ("has_source", False)])
def test_a_drafter_of_another_verifier_is_refused(folder: Path, key: str, value: int) -> None:
    with pytest.raises(ModelError, match=f"trained for another verifier: its {key} is"):
        load_parallel(str(folder), replace(SHAPE, **{key: value}), torch.float32, CPU)  # type: ignore[arg-type]


def test_other_models_are_refused(tmp_path: Path) -> None:
    for name in ("en-de/drafter", str(tmp_path), str(tmp_path / "nowhere"), "someone/elsewhere"):
        assert not is_parallel(name)
        with pytest.raises(ModelError, match=r"not a folder with a parallel drafter.*drafter.kind=model"):
            load_parallel(name, SHAPE, torch.float32, CPU)


def test_damage_is_told_in_one_line(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not safetensors"):
        weights.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"model.safetensors is damaged"):
            load_parallel(str(folder), SHAPE, torch.float32, CPU)
    weights.unlink()
    with pytest.raises(ModelError, match=r"model.safetensors is damaged"):
        load_parallel(str(folder), SHAPE, torch.float32, CPU)


def test_a_configuration_of_another_version_is_refused(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "stride": 2}))
    with pytest.raises(ModelError, match=r"not of this version"):
        load_parallel(str(folder), SHAPE, torch.float32, CPU)


def test_weights_of_another_version_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["layers.0.self_attn.k_proj.weight"] = weights.pop("layers.0.self_attn.kv_proj.weight")
    save_file(weights, path)
    with pytest.raises(ModelError, match=r"model.safetensors is not of this version.*Train it again"):
        load_parallel(str(folder), SHAPE, torch.float32, CPU)
