"""The tested versions fit the ranges that the package asks for."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import cmasd

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = [
    line
    for line in (ROOT / "infra" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]


def requirements() -> list[Requirement]:
    """Of the package and of every extra."""
    extras = PROJECT["optional-dependencies"]
    return [
        Requirement(text) for text in [*PROJECT["dependencies"], *(text for extra in extras.values() for text in extra)]
    ]


def test_extras_are_those_that_messages_name() -> None:
    assert {"bench", "test", "tune"} <= set(PROJECT["optional-dependencies"])
    assert {"ctranslate2", "matplotlib"} <= {need.name for need in requirements()}


def test_constraints_are_plain_sorted_pins() -> None:
    assert [pin for pin in PINS if not re.fullmatch(r"[a-z0-9.-]+==[0-9][0-9a-z.]*", pin)] == []
    names = [pin.split("==")[0] for pin in PINS]
    assert names == sorted(set(names))


def test_every_requirement_is_pinned_inside_its_range() -> None:
    pins = {canonicalize_name(name): Version(version) for name, version in (pin.split("==") for pin in PINS)}
    bad = [str(need) for need in requirements() if pins[canonicalize_name(need.name)] not in need.specifier]
    assert bad == []


def test_ranges_admit_what_the_project_promises() -> None:
    ranges = {need.name: need.specifier for need in requirements()}
    assert Version("2.11.0") in ranges["torch"]
    assert Version("5.17.0") in ranges["transformers"]


def test_version_is_said_once_more_only_in_the_package() -> None:
    assert cmasd.__version__ == PROJECT["version"]
