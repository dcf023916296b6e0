"""The house rules that no single module can break alone: directions, doors, sizes, silence, hosts."""

import ast
import statistics
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "cmasd"
FILE_AIM_LINES, FILE_LIMIT_LINES, MEDIAN_LIMIT_LINES = 300, 500, 150
REGISTRY_HOSTS = [
    ".".join(labels)
    for labels in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download", "pytorch", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("anaconda", "org"),
        ("deb", "debian", "org"),
    )
]
"""Spelt in parts, so that this file passes its own test."""


def library_sources() -> list[Path]:
    return sorted(LIBRARY.rglob("*.py"))


SPOKEN = {"print", "exit", "input", "sys.exit", "sys.argv", "sys.stdout", "argparse"}


def spoken_names(tree: ast.AST) -> Iterator[str]:
    """Uses of names through which a module would print, exit, or read argv."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names = [node.func.id]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        else:
            continue
        yield from (f"{name} in line {node.lineno}" for name in names if name in SPOKEN)


def kept_files() -> list[Path]:
    """Files that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_import_contracts_hold() -> None:
    """In a process of its own: what other tests imported into this one must not matter."""
    code = "from importlinter.cli import lint_imports_command as main; main()"
    command = [sys.executable, "-c", code, "--no-logo", "--config", str(ROOT / "pyproject.toml")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


IMPORT_ALL = """
import importlib, pkgutil, sys
blocked, left_out, rooms = (argument.split() for argument in sys.argv[1:])
sys.modules.update(dict.fromkeys(blocked))
for room in rooms:
    package = importlib.import_module(room)
    for module in pkgutil.walk_packages(getattr(package, "__path__", []), room + "."):
        if not any((module.name + ".").startswith(name + ".") for name in left_out):
            importlib.import_module(module.name)
"""


@pytest.mark.parametrize(
    ("blocked", "left_out", "rooms"),
    [
        pytest.param("ray", "cmasd.pipeline", "cmasd", id="engine and all but the pipeline, without ray"),
        pytest.param(
            "ray torch transformers",
            "",
            "cmasd.errors cmasd.core cmasd.config cmasd.telemetry cmasd.io",
            id="what plan and --help need, without torch",
        ),
    ],
)
def test_rooms_load_without(blocked: str, left_out: str, rooms: str) -> None:
    """Contracts on imports cannot tell a type-only import from a real one; a blocked module can."""
    command = [sys.executable, "-c", IMPORT_ALL, blocked, left_out, rooms]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("path", library_sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_library_module_is_silent(path: Path) -> None:
    assert list(spoken_names(ast.parse(path.read_text(encoding="utf-8")))) == []


def test_spoken_names_are_found() -> None:
    code = "import argparse\nimport sys\nprint(1)\nsys.exit(sys.argv)\n"
    assert len(list(spoken_names(ast.parse(code)))) == 4, "print, argparse, sys.exit and sys.argv"


def test_file_sizes() -> None:
    """Files over the aim are reported as a warning; the limit fails."""
    lines = {
        path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines())
        for room in ("cmasd", "jobs")
        for path in (ROOT / room).rglob("*.py")
    }
    long = {str(path): count for path, count in lines.items() if count > FILE_AIM_LINES}
    if long:
        warnings.warn(f"files over the aim of {FILE_AIM_LINES} lines: {long}", stacklevel=1)
    assert max(lines.values()) <= FILE_LIMIT_LINES, long
    assert statistics.median(lines.values()) <= MEDIAN_LIMIT_LINES


def test_no_registry_host_is_named() -> None:
    """Where packages come from is the installing machine's affair."""
    found = [
        f"{path.relative_to(ROOT)}: {host}"
        for path in kept_files()
        for host in REGISTRY_HOSTS
        if host.encode() in path.read_bytes()
    ]
    assert found == []
