"""Models with a ragged key/value cache: prefill, forward over a window, rollback by passing a smaller start.

The only door to transformers at inference time. `load_runner` turns a loaded model into a `Runner`.
"""

from cmasd.runner.base import Runner
from cmasd.runner.load import load_runner

__all__ = ["Runner", "load_runner"]
