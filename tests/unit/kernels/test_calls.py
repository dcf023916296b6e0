"""Kernels are built once, for this machine, and done without where they cannot be had."""

import logging
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cmasd.kernels import kernels, kernels_for
from cmasd.runner.load import load_runner
from tests.unit.runner.tiny import tiny_model


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is built yet; what the test builds is forgotten."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels.cache_clear()
    yield
    kernels.cache_clear()


def build(dtype: torch.dtype) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    assert kernels(dtype) is not None


def test_a_decoder_computes_the_same_without_a_compiler(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    tokens_BT, starts_B = torch.tensor([[5, 6], [7, 8]]), torch.tensor([3, 0])

    def logits() -> Tensor:
        kernels.cache_clear()
        runner = load_runner(tiny_model("bart"), slots=2, max_length=16, max_source_length=8)
        runner.prefill([0, 1], [[4, 5, 6, 7], [8, 9]])
        runner.forward(torch.full((2, 3), 9), torch.tensor([0, 0]))
        return runner.forward(tokens_BT, starts_B)

    build(torch.float32)
    with_kernel = logits()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    without = logits()
    assert kernels(torch.float32) is None
    torch.testing.assert_close(with_kernel, without, rtol=1e-4, atol=1e-5)
    assert not torch.equal(with_kernel, without), "the two ways round differently, so both were gone"


def test_a_compiler_that_fails_is_named_and_done_without(
    monkeypatch: pytest.MonkeyPatch, fresh: None, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "false")
    with caplog.at_level(logging.INFO):
        assert kernels(torch.float32) is None
    assert "kernels.none" in caplog.text


def test_it_is_built_once(monkeypatch: pytest.MonkeyPatch, fresh: None, tmp_path: Path) -> None:
    build(torch.float32)
    [library] = (tmp_path / "cmasd" / "kernels").iterdir()
    built = library.stat().st_mtime_ns
    commands: list[list[str]] = []
    run = subprocess.run

    def noted(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", noted)
    kernels.cache_clear()
    build(torch.float32)
    assert [command[1:] for command in commands] == [["--version"]]
    assert library.stat().st_mtime_ns == built


def test_loading_it_leaves_small_numbers_as_they_are() -> None:
    build(torch.float32)
    assert torch.tensor(1e-39).mul(1.0).item() > 0


def test_other_devices_and_formats_have_none() -> None:
    assert kernels(torch.bfloat16) is None
    assert kernels_for(torch.zeros(1, device="meta")) is None
