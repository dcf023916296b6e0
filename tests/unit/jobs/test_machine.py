"""What is said of the machine."""

import pytest

from jobs.machine import machine


def test_processor_or_gpu() -> None:
    count, _, name = machine(on_gpu=False).partition(" cores of ")
    assert int(count) >= 1
    assert name
    assert " cores of " not in machine(on_gpu=True)


def test_one_name_for_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware = {"cpu": "Test CPU", "cpu_count": 8, "gpus": ["Test GPU", "Test GPU"]}
    monkeypatch.setattr("cmasd.io.provenance.provenance", lambda: {"hardware": hardware})
    assert machine(on_gpu=True) == "Test GPU"
    assert machine(on_gpu=False) == "8 cores of Test CPU"
