"""Drafters: who proposes the tokens that the verifier checks."""

from cmasd.drafters.base import Context, Drafter
from cmasd.drafters.lookup import LookupDrafter
from cmasd.drafters.model import ModelDrafter
from cmasd.drafters.parallel import ParallelDrafter

__all__ = ["Context", "Drafter", "LookupDrafter", "ModelDrafter", "ParallelDrafter"]
