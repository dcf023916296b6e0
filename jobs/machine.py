"""The machine that a measurement or a training ran on, and its memory allocator."""

import ctypes
import os
import platform
from collections.abc import Mapping

MALLOC_SETTINGS = (
    "GLIBC_TUNABLES",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
)
"""Environment variables by which a user tunes glibc's malloc."""
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
MOST_BYTES, GROWTH_BYTES = 2**31 - 1, 500_000_000


def machine(on_gpu: bool) -> str:
    """Name of the GPU in use, or count and name of the processors."""
    from cmasd.io.provenance import provenance

    hardware = provenance()["hardware"]
    if on_gpu:
        return str(hardware["gpus"][0]) if hardware["gpus"] else "a GPU of unknown name"
    return f"{hardware['cpu_count']} cores of {hardware['cpu']}"


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Let glibc keep freed buffers of up to 2 GiB for the next training step, instead of faulting them in again.

    Returns whether it did: not on another C library, and not where the environment has settings of its own.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in environment for name in MALLOC_SETTINGS):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((M_MMAP_THRESHOLD, MOST_BYTES), (M_TRIM_THRESHOLD, MOST_BYTES), (M_TOP_PAD, GROWTH_BYTES))
    return all(mallopt(name, value) == 1 for name, value in settings)
