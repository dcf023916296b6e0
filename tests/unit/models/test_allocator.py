"""The allocator's settings."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from cmasd.models.allocator import MALLOC_SETTINGS, keep_freed_memory

ROOT = Path(__file__).resolve().parents[3]
COUNT_FAULTS = """
import resource, sys
from cmasd.models.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory({}), "not switched on"
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
b"x" * (64 << 20)
before = faults()
for _ in range(10):
    b"x" * (64 << 20)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is meant")
def test_freed_memory_is_kept() -> None:
    faults = {}
    for how in ("default", "kept"):
        command = [sys.executable, "-c", COUNT_FAULTS, how]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        faults[how] = int(done.stdout)
    assert faults["kept"] < 100 < faults["default"]


@pytest.mark.parametrize("name", MALLOC_SETTINGS)
def test_settings_of_the_user_stay(name: str) -> None:
    assert not keep_freed_memory({name: "1"})
