"""Kernels in C for a CPU, and what they are given."""

from cmasd.kernels.build import cache_folder
from cmasd.kernels.calls import Kernels, kernels, kernels_for
from cmasd.kernels.layers import Block, Norm, Packed, PackedDecoder, PackedDrafter

__all__ = [
    "Block",
    "Kernels",
    "Norm",
    "Packed",
    "PackedDecoder",
    "PackedDrafter",
    "cache_folder",
    "kernels",
    "kernels_for",
]
