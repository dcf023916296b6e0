"""The YAML files in `configs/`: the reference is complete, and every other one loads."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from cmasd.config import Config, flatten, load
from cmasd.config.reference import reference_yaml

FOLDER = Path(__file__).resolve().parents[3] / "configs"
FILES = sorted(path for path in FOLDER.rglob("*.yaml") if not path.name.startswith("train_"))


def test_the_reference_is_written_from_the_code() -> None:
    assert (FOLDER / "reference.yaml").read_text(encoding="utf-8") == reference_yaml(), (
        "write cmasd.config.reference.reference_yaml() to configs/reference.yaml"
    )


def test_the_reference_explains_every_key() -> None:
    lines = reference_yaml().splitlines()
    tree: Any = OmegaConf.to_container(OmegaConf.create(reference_yaml()))
    assert [f"{section}.{name}" for section in tree for name in tree[section]] == [key for key, _ in flatten(Config())]
    for above, line in pairwise(lines):
        if line.startswith("  ") and not line.startswith("  #"):
            assert above.startswith("  # "), line
            assert above.rstrip().endswith("."), above


def test_the_reference_holds_the_defaults() -> None:
    """Apart from the two paths that a user has to give."""
    config = load([FOLDER / "reference.yaml"], ["input.path=in", "output.path=out"])
    assert config == load([], ["input.path=in", "output.path=out"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_shipped_file_loads(file: Path) -> None:
    load([file], ["input.path=in.jsonl", "output.path=out"])


@pytest.mark.parametrize("file", [file for file in FILES if file.stem != "reference"], ids=lambda file: file.stem)
def test_examples_say_where_they_read_and_write(file: Path) -> None:
    config = load([file])
    assert config.input.path
    assert config.output.path
