"""Batch inference with confidence-modulated speculative decoding: a drafter proposes, a verifier decides.

The library computes: it reads no argv, prints nothing and never exits. `jobs` speaks to people.
Importing this package imports neither torch nor ray.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmasd.api import Decoded, Decoder

__version__ = "0.1.0"
__all__ = ["Decoded", "Decoder", "__version__"]


def __getattr__(name: str) -> Any:
    """What decodes is loaded when it is first asked for."""
    if name in ("Decoded", "Decoder"):
        from cmasd import api

        return getattr(api, name)
    raise AttributeError(f"module 'cmasd' has no attribute {name!r}")
