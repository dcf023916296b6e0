"""The decoding engine: continuous batching, one iteration for all live rows. Knows nothing of Ray."""

from cmasd.engine.engine import Engine
from cmasd.engine.pair import Pair, load_pair

__all__ = ["Engine", "Pair", "load_pair"]
