"""Batch inference with confidence-modulated speculative decoding: a drafter proposes, a verifier decides.

The library computes: it reads no argv, prints nothing and never exits. `jobs` speaks to people.
Importing this package imports neither torch nor ray.
"""

__version__ = "0.1.0"
