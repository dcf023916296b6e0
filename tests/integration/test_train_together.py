"""Workers that train together end with the weights of one process that accumulates their batches."""

from pathlib import Path

import pytest
import torch
import yaml

from jobs.main import main
from tests.unit.training.small import SMALL_MODEL, copy_data, small_tokenizer


def recipe(folder: Path, data: Path, **keys: object) -> str:
    """A recipe file that trains in `folder`."""
    small_tokenizer().save_pretrained(folder.parent / "tokenizer")
    content = {
        "output": str(folder / "model"),
        "work": str(folder / "work"),
        "dtype": "float32",
        "threads": 1,
        "data": {"path": str(data)},
        "tokenizer": {"path": str(folder.parent / "tokenizer")},
        "model": vars(SMALL_MODEL),
        "schedule": {"steps": 6, "warmup_steps": 2, "batch_tokens": 128, "label_smoothing": 0.0},
    }
    content["schedule"] |= keys.pop("schedule", {})  # type: ignore[operator]
    folder.mkdir()
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(content | keys))
    return str(file)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = torch.load(folder / "work" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 6
    found: dict[str, torch.Tensor] = state["model"]
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_workers_do_what_one_does_that_accumulates_two_batches(tmp_path: Path) -> None:
    data = copy_data(tmp_path)
    assert main(["train", recipe(tmp_path / "two", data, workers=2)]) == 0
    assert main(["train", recipe(tmp_path / "one", data, schedule={"accumulate": 2})]) == 0
    two, one = weights(tmp_path / "two"), weights(tmp_path / "one")
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-5)
    assert (tmp_path / "two" / "model" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_more_workers_than_processors_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", recipe(tmp_path / "many", copy_data(tmp_path), workers=1000)]) == 2
    assert "workers: must be at most" in capsys.readouterr().err
