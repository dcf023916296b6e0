"""Names of what a bench compares, and what may be said of their rows. Imports nothing heavy: a command line needs them.

What an engine promises is one thing, and what its rows were another: nothing is called exact whose rows differ.
"""

from dataclasses import dataclass

ENGINES = ("plain", "fixed", "paper", "goodput", "hf_generate", "ctranslate2")
OPENVINO, OPENVINO_DRAFTED = "openvino", "openvino_drafted"
OPTIONAL = ("survival", "paper_modulated", "hf_assisted", OPENVINO, OPENVINO_DRAFTED)
STOCK = ("hf_generate", "ctranslate2", "hf_assisted")
"""Peers that begin with the verifier as transformers has it."""
PEERS = (*STOCK, OPENVINO, OPENVINO_DRAFTED)
EXACT, TIES = "exact", "exact but for ties"
LOSSLESS = (EXACT, TIES)
"""Exact verification; in some rows a near-tie of two logits fell the other way."""
GREEDY, SAME_ROWS, OTHER_ROWS = "greedy", "same rows", "rows differ"
"""What a peer that decodes greedily promises, and what its rows may turn out to be: its arithmetic is its own."""
PEERS_GREEDY = (SAME_ROWS, OTHER_ROWS)
SAME_DECODING = "same decoding"
"""In place of a ratio to plain decoding, of an engine that drafted nothing: what would be measured is noise."""


def as_measured(promise: str, exact_match: float) -> str:
    """What may be said of an engine, given its promise and the share of its rows that equal plain decoding's."""
    said = {EXACT: (EXACT, TIES), GREEDY: PEERS_GREEDY}.get(promise, (promise, promise))
    return said[exact_match < 1]


@dataclass(frozen=True)
class Lineup:
    """What a user asks for."""

    engines: tuple[str, ...] = ENGINES
    """Any of `ENGINES` and `OPTIONAL`; `plain` takes part in any case."""
    fixed: tuple[int, ...] = ()
    """Further draft lengths of policy `fixed`, each an engine `fixed_<k>`."""


def drafts(engine: str) -> bool:
    """Whether an engine of that name speculates."""
    return engine not in (*PEERS, "plain")
