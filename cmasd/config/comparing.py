"""The keys of comparisons: with AR decoding at a run's end, of ways of decoding (`cmasd compare`), with other decoders,
and in money.
"""

from dataclasses import dataclass, field
from typing import Literal

COMPARED = (
    *("ar_greedy", "ar_beam", "hf_generate", "fixed_exact", "fixed_relaxed", "adaptive_k", "adaptive_tau"),
    *("paper_printed", "paper_prose", "goodput", "goodput_budget", "ctranslate2"),
)
STITCHED = ("small_alone", "stitch", "stitch_once", "stitch_speculate", "stitch_router", "random_router")
COMPARED_WHEN_ASKED = ("adaptive_tau_printed", "copy", "memory", "previous", "all", *STITCHED)
"""What `compare.engines` may name besides its default."""


@dataclass(frozen=True)
class BaselineConfig:
    """The check against plain AR decoding at the end of a run."""

    rows: int = 0
    """Rows decoded again, plainly and as configured, side by side in one engine; 0: no check."""
    hf_generate: bool = False
    """Whether `generate` of transformers decodes the same rows as well, in batches of as many rows."""
    batch_sizes: list[int] = field(default_factory=list)
    """Numbers of rows at a time at which the same is done besides those of the run, on fewer rows where it is fewer."""
    rerun_dtype: Literal["float32", "bfloat16", "float16", "int8"] | None = None
    """The same rows again by the verifier in this dtype: plainly, and with their output so far as drafts
    (`drafter.kind=previous`), as when a model has changed and a corpus is decoded once more; null: not."""


@dataclass(frozen=True)
class CostConfig:
    """Money."""

    accelerator_per_hour: float | None = None
    """Price of one actor's machine share per hour, in any currency; null: no cost is shown."""


@dataclass(frozen=True)
class PeersConfig:
    """Other decoders that `cmasd bench` may set beside this one, where they have to be told more than the model."""

    openvino: str | None = None
    """Folder of the verifier as `optimum-cli export openvino` writes it, for the bench's engines openvino and
    openvino_drafted; null: neither can take part."""
    openvino_drafter: str | None = None
    """The same of the drafter, for openvino_drafted: it drafts `drafter.max_draft_tokens` tokens at a time."""
    openvino_python: str | None = None
    """Interpreter of an environment that has openvino-genai; null: the one that runs cmasd."""


@dataclass(frozen=True)
class CompareConfig:
    """`cmasd compare`."""

    engines: list[str] = field(default_factory=lambda: list(COMPARED))
    """Ways of decoding to compare; adaptive_tau_printed may be added, and copy, memory, previous and all, which are
    goodput with drafts that cost nothing; small_alone, stitch, stitch_once (with `stitch.tau_large` 1) and
    stitch_speculate (policy `stitch`), stitch_router (the same by `stitch.router`), random_router, which switches as
    often as stitch and stitch_router but by chance; ar_greedy takes part in any case."""
    max_relative_ci: float = 0.05
    """Rows are decoded until half the 95 % interval of each engine's cost is at most this share of the cost."""
    max_seconds: float = 1800.0
    """Most seconds of measuring, start-up of the engines included, as far as three rounds of one batch allow."""
    min_rows: int = 0
    """Rows that each engine decodes at least, however well its cost is known before, if there is time."""
    quality_budget_nats_per_token: float = 0.02
    """Quality budget of engine `goodput_budget`."""
    taus: list[float] = field(default_factory=lambda: [0.001, 0.02, 0.03])
    """`stitch.tau` of the engines stitch, stitch_once, stitch_speculate and random_router: one of each for each."""
    answer: Literal["none", "gsm8k", "regex", "exact"] = "none"
    """How an output is checked against `answer_column`: `gsm8k`: the number behind ####, in a box, or else the last;
    `regex`: what `answer_pattern` finds last; `exact`: all of it."""
    answer_column: str = "answer"
    """Column of right answers."""
    answer_pattern: str = ""
    """Regular expression; of its first group where it has one."""
