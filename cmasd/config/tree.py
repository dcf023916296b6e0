"""Every key a user can set, its default and its meaning.

The docstring under a field is the comment beside it in `configs/reference.yaml`, which a test
keeps equal to this file. Ranges are checked in `rules.py`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from cmasd.config.comparing import BaselineConfig, CompareConfig, CostConfig, PeersConfig
from cmasd.config.running import ActorsConfig, LimitsConfig, LoggingConfig, NotifyConfig, TelemetryConfig
from cmasd.config.speech import SpeechConfig

MOST_SLOTS = {"cpu": 32, "cuda": 1024}
"""For `engine.slots` null, where more rows stop paying: a CPU is bound by arithmetic long before, a GPU's matrix units
are full by then, and every further row only makes each row wait longer."""

KEPT_PLACES = 128
"""Of a slot on a CPU: so many tokens' keys and values stay allocated for the next row; those behind are given back when
a row has left."""

HOPE = 0.75
"""Acceptance that is assumed of each token before any was judged; hopeful, for who never drafts never learns."""
FREE_DRAFTERS = ("previous", "memory", "copy", "recycle")
MODEL_DRAFTERS = ("model", "parallel", "self", "quantised")


@dataclass(frozen=True)
class InputConfig:
    """Which rows are read."""

    path: str = ""
    """File, folder, glob, s3:// address, or the name of a Hugging Face dataset."""
    format: Literal["auto", "parquet", "jsonl", "csv", "text", "datasets", "audio"] = "auto"
    """`auto` goes by the file name's ending; `audio`: each file is a recording (wav, flac, ogg, opus, mp3)."""
    quote: Literal["auto", "double", "none"] = "auto"
    """`double`: CSV fields may stand in double quotes, and hold line ends there; `none`: quotes are plain characters;
    `auto`: double, but none in .tsv files."""
    change_check: Literal["auto", "content"] = "auto"
    """How a later start notices that a file has changed, on a storage without content tags: `content`: by every byte;
    `auto`: so for local input of up to 1 GiB in all, else by size, modification time and samples."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    sample: float = 1.0
    """Share of the shards that is decoded, chosen by their position alone; 1: all."""
    text_column: str = "text"
    """Column that holds the text to decode from."""
    messages_column: str | None = None
    """Column of conversations in place of texts: lists of messages with role and content, or their JSON; a name with
    dots looks inside (body.messages in OpenAI's batch files, of whose requests nothing else is read)."""
    id_column: str | None = None
    """Column that identifies a row; null: `<file>:<row number>`."""
    keep_columns: list[str] = field(default_factory=list)
    """Input columns copied to the output."""
    template: str | None = None
    """Prompt with `{text}` in it, e.g. "summarize: {text}"; null: the text alone."""
    chat: bool = False
    """Wrap each text in the tokenizer's chat template, as one user turn."""
    system: str | None = None
    """System message of each conversation that has none of its own, with `chat` or `messages_column`."""
    thinking: Literal["keep", "drop"] = "keep"
    """`drop`: what reasoning models write between <think> and </think> is left out of the output's text, and of the
    assistant's earlier turns; it is generated, and counted, in any case."""
    on_too_long: Literal["error", "truncate"] = "error"
    """What a source longer than `engine.max_source_tokens` gets: a row error, or its first tokens."""
    max_text_bytes: int = 1_000_000
    """A longer text is a row error, before anyone counts its tokens: no row may take a worker's memory."""

    @property
    def column(self) -> str:
        """What is decoded from."""
        return self.messages_column or self.text_column


@dataclass(frozen=True)
class OutputConfig:
    """Where the run is kept."""

    path: str = ""
    """Run folder, local or s3://: `outputs/*.parquet`, `manifest.json`, `summary.json`."""
    rows_per_shard: int | None = None
    """Rows read, decoded, written and resumed as one, in one output file; null: by input size. Fixed at first start."""
    show_rows: int = 0
    """Rows that `cmasd run` shows at its end, source beside output."""


@dataclass(frozen=True)
class ModelsConfig:
    """The pair."""

    verifier: str = "en-de/verifier"
    """Model whose output is wanted: bundled name, folder or hub name."""
    drafter: str | None = "en-de/drafter"
    """Model that proposes tokens, for `drafter.kind` model (same tokenizer as the verifier) or parallel (trained for
    the verifier)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64", "int8"] = "auto"
    """`auto`: the checkpoint's own on a GPU, float32 on a CPU; `int8`, on a CPU: weights and, where it multiplies
    bytes, inputs in 8 bits.
    """
    drafter_dtype: Literal["auto", "same", "int8"] = "auto"
    """Of what `models.drafter` names; exact output does not depend on it. `same`: the verifier's; `int8`: as above;
    `auto`: int8 beside a float32 verifier on a CPU that multiplies bytes, where there are kernels."""
    cache_dtype: Literal["auto", "bfloat16"] = "auto"
    """Of keys and values of decoder-only models: `bfloat16` halves what rows take beside float32 weights, and rounds
    what the model sees of earlier tokens; `auto`: the model's own."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU when there is one."""
    source_language: str | None = None
    """Language code of the input, for M2M100, NLLB and mBART."""
    target_language: str | None = None
    """Language code of the output, for M2M100, NLLB and mBART."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model."""
    allow_pickle: bool = False
    """Load pickled weights; safetensors only by default, because a pickle can run code."""


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

    kind: Literal["auto", "head", "max_prob", "entropy", "margin", "softmax", "ensemble"] = "auto"
    """`head`: predicted by a parallel drafter; `ensemble`: the weighted sum of entropy, margin and softmax; `auto`:
    max_prob, which tells accepted from rejected tokens best of them with every drafter that was measured."""
    weights: list[float] = field(default_factory=lambda: [0.34, 0.33, 0.33])
    """Ensemble weights of entropy, margin and softmax; not negative, sum 1."""
    margin_form: Literal["full", "printed"] = "full"
    """`full`: 2*sigmoid(z1 - z2) - 1; `printed`: sigmoid(z1 - z2), never under 0.5."""
    calibration: str | None = None
    """File of calibration maps, written by `cmasd calibrate`, on every node; null: raw scores."""


@dataclass(frozen=True)
class EngineConfig:
    """The continuous batch."""

    slots: int | None = 32
    """Rows decoded at once in one actor; auto or null: as many as memory holds, up to 32 on a CPU, 1024 on a GPU."""
    max_new_tokens: int | None = None
    """Most tokens generated per row; null: the checkpoint's `max_new_tokens` or `max_length`, else 256."""
    max_source_tokens: int | None = 512
    """Longest source, or prompt, in tokens; capped by what the model takes, and null: all that it takes."""
    cache_tokens: int | None = None
    """Tokens, input and longest output, that the rows in memory may have together; others wait. null: as many as memory
    holds, on a CPU, where a slot takes the memory that its row needs; on a GPU every slot is as long as the longest
    row that may come."""
    fixed_shapes: bool = False
    """Whether a row must come out the same to the last bit whatever rows are beside it, whatever is drafted and however
    many slots there are. So it does where the verifier runs whole in C kernels: BART and its kin, Llama, Qwen, Mistral
    and Gemma on a Linux CPU with a compiler. Others, a GPU too, are refused; and so is all but exact verification.
    """
    graphs: Literal["auto", "on", "off"] = "auto"
    """CUDA graphs of iterations, or else forwards, that recur; `auto`: on a GPU; `on`: or fail (in a file, quote it);
    `off`: never.
    """


@dataclass(frozen=True)
class Config:
    """One run."""

    input: InputConfig = field(default_factory=InputConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    models: ModelsConfig = field(default_factory=ModelsConfig)
    speech: SpeechConfig = field(default_factory=SpeechConfig)
    drafter: DrafterConfig = field(default_factory=DrafterConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    stitch: StitchConfig = field(default_factory=StitchConfig)
    verification: VerificationConfig = field(default_factory=VerificationConfig)
    confidence: ConfidenceConfig = field(default_factory=ConfidenceConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    actors: ActorsConfig = field(default_factory=ActorsConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    notify: NotifyConfig = field(default_factory=NotifyConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    cost: CostConfig = field(default_factory=CostConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    peers: PeersConfig = field(default_factory=PeersConfig)

    @property
    def source_column(self) -> str:
        """Of the input: what is decoded from."""
        return self.speech.audio_column or self.input.column

    @property
    def source_key(self) -> str:
        """By which that column is named."""
        if self.speech.audio_column:
            return "speech.audio_column"
        return "input.messages_column" if self.input.messages_column else "input.text_column"

    @property
    def drafter_name(self) -> str | None:
        """Who drafts: `models.drafter`, or `drafter.kind` where no model is named."""
        if not self.drafter.is_named:
            return self.drafter.name
        return " + ".join([*self.drafter.free, self.models.drafter]) if self.models.drafter else None

    @property
    def score(self) -> str:
        """What confidence is made from: `confidence.kind`, with `auto` resolved as `2026-11-29-signals` of
        `infra/benchmarks` says: of the bundled parallel drafter, too, where AUC is 0.10 above that of its own head.
        """
        return "max_prob" if self.confidence.kind == "auto" else self.confidence.kind

    @property
    def is_stitched(self) -> bool:
        """Whether a model other than the verifier says tokens that nobody checks."""
        return self.policy.kind == "stitch" and (
            self.stitch.tau > 0 or bool(self.stitch.random) or self.stitch.router is not None
        )

    @property
    def stitched_by(self) -> str:
        """What decides who of two models speaks, as it is set."""
        if self.stitch.random:
            return f"stitch.random={self.stitch.random}"
        if self.stitch.router is not None:
            return f"stitch.router={self.stitch.router}"
        return f"stitch.tau={self.stitch.tau:g}"

    @property
    def claim(self) -> str:
        """`lossless`, and against what: a verifier of fewer bits is another model than the checkpoint."""
        dtype, parts = self.models.dtype, []
        if dtype not in ("auto", "float32", "float64"):
            parts.append(f"{'rounded to' if dtype == 'int8' else 'in'} {dtype}")
        if self.models.cache_dtype != "auto":
            parts.append(f"with keys and values in {self.models.cache_dtype}")
        return f"{self.lossless} against the verifier {' '.join(parts)}" if parts else self.lossless

    @property
    def lossless(self) -> str:
        """What may be said of the output: `exact`, `in distribution` or `lossy`."""
        if self.policy.kind == "plain" and self.verification.kind != "sampling":
            return "exact"
        if self.is_stitched:
            return "lossy"
        return {"exact": "exact", "sampling": "in distribution"}.get(self.verification.kind, "lossy")
