"""Everything that decodes, trains or measures loads where only torch and transformers are; only reading needs more."""

import subprocess
import sys
from pathlib import Path

import pytest

import cmasd.config
from cmasd.config import reading

ROOT = Path(__file__).resolve().parents[3]
ROOMS = "config confidence runner policies verification drafters engine training evaluation"
LOAD_ALL = """
import importlib, pkgutil, sys
sys.modules.update(ray=None, omegaconf=None)
for room in sys.argv[1].split():
    package = importlib.import_module(f"cmasd.{room}")
    for module in pkgutil.walk_packages(package.__path__, f"cmasd.{room}."):
        if module.name != "cmasd.config.reading":
            importlib.import_module(module.name)
from cmasd.config import Config, fingerprint, to_dict
assert len(fingerprint(Config())) == 16 and to_dict(Config())["engine"]
"""


def test_loads_without_ray_and_omegaconf() -> None:
    command = [sys.executable, "-c", LOAD_ALL, ROOMS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_name_is_there_and_is_no_module() -> None:
    """A submodule of the same name would take a function's place once it is imported."""
    for name in cmasd.config.__all__:
        assert callable(getattr(cmasd.config, name)), name
    assert cmasd.config.load is reading.load
    assert cmasd.config.from_dict is reading.from_dict


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'cmasd\.config' has no attribute 'lod'"):
        cmasd.config.lod  # noqa: B018
