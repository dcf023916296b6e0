"""Kernels in C for a CPU, and what they are given."""

from cmasd.kernels.build import cache_folder
from cmasd.kernels.calls import Kernels, kernels, kernels_for
from cmasd.kernels.forwards import Caches, Drafted, Speaker
from cmasd.kernels.layers import Block, PackedDecoder, PackedDrafter, PackedRule
from cmasd.kernels.lookups import Asked, Found, Lookups, Proposal, asked_of, lookups_library
from cmasd.kernels.mappings import give_back, kept_zeros
from cmasd.kernels.rotary import PackedRotary, RootNorm, Turn
from cmasd.kernels.trees import PackedForest, TreeRule
from cmasd.kernels.weights import Bits, Norm, Packed

__all__ = [
    "Asked",
    "Bits",
    "Block",
    "Caches",
    "Drafted",
    "Found",
    "Kernels",
    "Lookups",
    "Norm",
    "Packed",
    "PackedDecoder",
    "PackedDrafter",
    "PackedForest",
    "PackedRotary",
    "PackedRule",
    "Proposal",
    "RootNorm",
    "Speaker",
    "TreeRule",
    "Turn",
    "asked_of",
    "cache_folder",
    "give_back",
    "kept_zeros",
    "kernels",
    "kernels_for",
    "lookups_library",
]
