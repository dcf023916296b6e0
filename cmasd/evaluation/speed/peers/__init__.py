"""Other decoders on the same requests, for side-by-side measurements."""

from cmasd.evaluation.speed.peers.ct2 import Converted, CTranslate2, load_ctranslate2
from cmasd.evaluation.speed.peers.ct2_heard import CTranslate2Heard
from cmasd.evaluation.speed.peers.hf import HfGenerate, stock_verifier

__all__ = ["CTranslate2", "CTranslate2Heard", "Converted", "HfGenerate", "load_ctranslate2", "stock_verifier"]
