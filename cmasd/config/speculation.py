"""The keys of speculation: who drafts, how much, what is accepted, and by what confidence."""

from dataclasses import dataclass, field
from typing import Any, Literal

HOPE = 0.75
"""Acceptance that is assumed of each token before any was judged; hopeful, for who never drafts never learns."""
FREE_DRAFTERS = ("previous", "memory", "copy", "recycle")
MODEL_DRAFTERS = ("model", "parallel", "self", "quantised")
INSIGHTS = ("similarity", "dropout")
"""Of `confidence.kind`, those that need more than logits (`cmasd.confidence.insight`)."""


@dataclass(frozen=True)
class DrafterConfig:
    """Who drafts."""

    kind: Any = "model"
    """`model`: a smaller model, token by token; `parallel`: all tokens in one pass over the verifier's own states;
    `self`: the verifier's first decoder layers, without any training; `quantised`: the verifier's own weights rounded
    to `bits`, on a CPU, without any training; without a model `copy` (or `lookup`): what followed the same words in the
    row's source or output; `memory`: in rows before it; `previous`: an earlier run's output of the row. Or a list of
    those without a model, and at most one with: [previous, memory, copy, model]; with a model also `recycle`: what its
    draft said behind a token that was rejected."""
    bits: Literal[8, 4] = 8
    """Of weights that `quantised` rounds: 4 are little more than half as many bytes as 8, and guess worse. With the
    bundled verifier 100 % of drafts of 4 tokens were accepted in 8 bits and 87 % in 4, at .71 and .56 of the cost of a
    plain token; with SmolLM2-135M 84 % and 60 %, at .46 and .36 (one thread of a busy CPU): 4 bits are the better ones
    for the first by these figures, and 8 for the second."""
    previous: str | None = None
    """Run folder, local or s3://, whose outputs of the same ids `previous` goes by."""
    memory: str | None = None
    """Run folder, local or s3://, with what whose rows said `memory` begins, beside what this run's own said before it
    was resumed; null: that of `drafter.previous`, if it has any."""
    memory_tokens: int = 1_000_000
    """Output tokens that `memory` holds in one actor, and the run folder for each; the oldest make room."""
    max_draft_tokens: int = 5
    """k_max: most tokens drafted per iteration; with `previous` up to 64 are worth it. Drafts without a model may be
    longer at a job's end, where slots are empty (policies `goodput` and `survival`): up to 64."""
    min_draft_tokens: int = 1
    """k_min: fewest tokens drafted per iteration (policy `paper`)."""
    tree_nodes: int = 0
    """Most tokens of a row's draft where it is a tree: the likeliest ways to go on, k_max deep at most; 0: one way. For
    few live rows, where the verifier looks at more tokens for little."""
    tree_branching: int = 3
    """Most ways to go on behind a token of a tree."""
    shortlist: int | None = None
    """Drafts are made of this many tokens, the most frequent by the drafter's shortlist.json: a smaller output layer,
    fewer right guesses; null: the whole vocabulary."""
    self_layers: int | None = None
    """Decoder layers of the verifier that draft (drafter `self`); null: half of them."""
    max_ngram: int = 3
    """Longest n-gram that `copy` matches; `memory` tells places apart by as many tokens, and at least by 8."""

    @property
    def window(self) -> int:
        """Tokens of a row that the verifier is fed at most: its last one and the draft."""
        return 1 + max(self.max_draft_tokens, self.tree_nodes)

    @property
    def kinds(self) -> tuple[str, ...]:
        """All of `kind`, each once, by the name of today."""
        listed = self.kind if isinstance(self.kind, list) else [self.kind]
        return tuple(dict.fromkeys("copy" if kind == "lookup" else kind for kind in listed))

    @property
    def hope(self) -> float:
        """`HOPE`, or more: most of what an earlier run made of the same rows is hoped to come out as before."""
        return 0.95 if "previous" in self.kinds else HOPE

    @property
    def free(self) -> tuple[str, ...]:
        """Those without a model."""
        return tuple(kind for kind in self.kinds if kind in FREE_DRAFTERS)

    @property
    def model(self) -> str | None:
        """That with a model."""
        return next((kind for kind in self.kinds if kind not in FREE_DRAFTERS), None)

    @property
    def name(self) -> str:
        """`kind` in words."""
        return " + ".join(self.kind) if isinstance(self.kind, list) else str(self.kind)

    @property
    def is_named(self) -> bool:
        """Whether `models.drafter` names what drafts; else the kind says it all."""
        return self.model in ("model", "parallel")


@dataclass(frozen=True)
class PolicyConfig:
    """How many tokens to draft."""

    kind: Literal["goodput", "plain", "fixed", "paper", "survival", "stitch"] = "goodput"
    """`goodput`: as many as raise the expected tokens per second, none where none do; `plain`: none (AR decoding);
    `fixed`: k_max; `paper`: floor(alpha * mean confidence * k_max); `survival`: while the product of confidences stays
    at or above `threshold`; `stitch` (lossy): the drafter speaks for itself where it is sure, see `stitch`."""
    estimator: Literal["logistic", "signals", "bayesian"] = "signals"
    """How policy `goodput` learns what share of drafted tokens is accepted: `logistic`: by the confidence and the place
    in the draft, from the latest drafts; `signals`: by entropy and softmax margin as well; `bayesian`: as logistic,
    from all drafts, older ones fading, and less sure of places that few have reached."""
    alpha: float = 1.0
    """Factor of policy `paper`."""
    threshold: float = 0.4
    """Least survival probability at which policy `survival` drafts on."""
    explore_share: float = 0.01
    """Share of the time that may be lost by looking: of policy `goodput`, whether drafting or plain decoding has become
    the faster one; of every policy on a CPU, whether fewer or more threads have."""


@dataclass(frozen=True)
class StitchConfig:
    """Policy `stitch` (R-Stitch): the drafter is a small model that says tokens unchecked, the verifier a large one,
    which speaks where the small one is not sure.
    """

    tau: float = 0.02
    """Entropy over its largest value, ln V, above which the small model's token is dropped and the large model speaks,
    until a token of its own is at or below; 0: the large model alone, 1: the small one alone."""
    tau_large: float | None = None
    """The same, of the large model's own tokens, where it is not to be `tau`, as in the paper. 1: it says one token and
    hands back, so that every token is first asked of the small model (as in R2R, arXiv 2505.21600): a token of that
    costs less than one of the large model's, and is dropped if it is not sure."""
    speculate: bool = False
    """Where the small model is not sure, let it go on for up to `drafter.max_draft_tokens` and the large model check
    them all, in place of the large model speaking word for word."""
    random: list[float] = field(default_factory=list)
    """Not by entropy, but by chance: the share of the small model's tokens that are dropped, and the share of the large
    model's behind which it hands back. What entropy is worth is told by the difference. Empty: by entropy."""
    router: str | None = None
    """Folder of a router, trained for the pair by `cmasd train` (R-Stitch+), on every node: where a speaker's entropy
    is above the tau that the router was trained with, it says who speaks next. `tau` is then not looked at. null: by
    entropy alone."""
    max_wait: int = 8
    """Steps of the small model that a row which needs the large one waits at most for others to need it too; as long as
    the measured cost of both says that it pays."""


@dataclass(frozen=True)
class VerificationConfig:
    """When a draft token is accepted.

    Only `exact` equals greedy AR; `sampling` equals AR sampling in distribution; the others are lossy.
    """

    kind: Literal["exact", "relaxed", "modulated", "budget", "sampling", "typical"] = "exact"
    """`exact`: the argmax; `relaxed`: in the top `beta` within `tau` nats; `modulated`: tau from confidence; `budget`:
    as relaxed, while the mean gap of all output stays within a budget, spent where it buys the most tokens; `sampling`:
    speculative sampling; `typical`: entropy-dependent threshold."""
    beta: int = 5
    """Draft tokens must be among the verifier's top `beta` (relaxed, modulated, budget)."""
    tau: float = 3.0
    """Largest accepted log-probability gap in nats (relaxed, budget)."""
    budget_nats_per_token: float = 0.02
    """Mean log-probability gap per output token that may be spent on draft tokens that are not the argmax (budget)."""
    tau_base: float = 0.5
    """Tolerance in nats before modulation (modulated)."""
    gamma: float = 1.0
    """Strength of the modulation in nats (modulated)."""
    tau_form: Literal["prose", "printed"] = "prose"
    """`prose`: tau_base + gamma*C; `printed`: tau_base + gamma*(1 - C), which relaxes where the drafter is unsure."""
    temperature: float = 1.0
    """Temperature of drafter and verifier (sampling)."""
    epsilon: float = 0.3
    """Upper bound of the acceptance threshold (typical)."""
    delta: float = 0.09
    """Factor on exp(-entropy) in the acceptance threshold (typical)."""
    seed: int = 0
    """Seed of the random draws (sampling)."""


@dataclass(frozen=True)
class ConfidenceConfig:
    """How sure the drafter is, from its logits."""

    kind: Literal["auto", "head", "max_prob", "entropy", "margin", "softmax", "ensemble", "similarity", "dropout"] = (
        "auto"
    )
    """`head`: predicted by a parallel drafter; `ensemble`: the weighted sum of entropy, margin and softmax; of a model
    that drafts token by token also `similarity`: the likeliest tokens count as far as their rows of the output layer
    are like the first one's, and `dropout`: whether masks of the last state agree, which costs eight output layers;
    `auto`: what tells accepted from rejected tokens best of them with the drafter, as measured: margin with
    `quantised`, max_prob with every other."""
    weights: list[float] = field(default_factory=lambda: [0.34, 0.33, 0.33])
    """Ensemble weights of entropy, margin and softmax; not negative, sum 1."""
    margin_form: Literal["full", "printed"] = "full"
    """`full`: 2*sigmoid(z1 - z2) - 1; `printed`: sigmoid(z1 - z2), never under 0.5."""
    calibration: str | None = None
    """File of calibration maps, written by `cmasd calibrate`, on every node; null: raw scores."""
