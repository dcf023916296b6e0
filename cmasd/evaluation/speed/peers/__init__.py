"""Other decoders on the same requests, for side-by-side measurements."""

from cmasd.evaluation.speed.peers.ct2 import Converted, CTranslate2, load_ctranslate2
from cmasd.evaluation.speed.peers.ct2_heard import CTranslate2Heard
from cmasd.evaluation.speed.peers.hf import HfAssisted, HfGenerate, stock_drafter, stock_verifier
from cmasd.evaluation.speed.peers.ov import OpenVino, OpenVinoProcess, load_openvino

__all__ = [
    "CTranslate2",
    "CTranslate2Heard",
    "Converted",
    "HfAssisted",
    "HfGenerate",
    "OpenVino",
    "OpenVinoProcess",
    "load_ctranslate2",
    "load_openvino",
    "stock_drafter",
    "stock_verifier",
]
