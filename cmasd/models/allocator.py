"""glibc's memory allocator, told to keep what is freed.

Logits and activations of a megabyte and more come and go in every step. By default glibc gives such buffers back to
the system, and the next step faults their pages in again: on two cores a quarter of a training step's time, and a tenth
of a decoding step's.
"""

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


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Let glibc keep freed buffers of up to 2 GiB for the next step, instead of faulting them in again.

    Returns whether it did: not on another C library, and not where the environment has settings of its own.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in environment for name in MALLOC_SETTINGS):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((M_MMAP_THRESHOLD, MOST_BYTES), (M_TRIM_THRESHOLD, MOST_BYTES), (M_TOP_PAD, GROWTH_BYTES))
    return all(mallopt(name, value) == 1 for name, value in settings)


def give_back_freed() -> None:
    """Hand what is free in the heap to the system, holes between buffers in use as well; with glibc alone."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
