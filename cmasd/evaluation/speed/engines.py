"""Names of what a bench compares. Imports nothing heavy, so that a command line can offer them."""

from dataclasses import dataclass

ENGINES = ("plain", "fixed", "paper", "goodput", "hf_generate", "ctranslate2")
OPTIONAL = ("survival", "paper_modulated")
PEERS = ("hf_generate", "ctranslate2")


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
