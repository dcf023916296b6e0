"""Drafters: who proposes the tokens that the verifier checks."""

from cmasd.drafters.base import Context, Drafter
from cmasd.drafters.free import FreeDrafter
from cmasd.drafters.mixed import MixedDrafter
from cmasd.drafters.model import ModelDrafter
from cmasd.drafters.parallel import ParallelDrafter

__all__ = ["Context", "Drafter", "FreeDrafter", "MixedDrafter", "ModelDrafter", "ParallelDrafter"]
