"""Every key a user can set, its default and its meaning.

The docstring under a field is the comment beside it in `configs/reference.yaml`, which a test
keeps equal to this file. Ranges are checked in `rules.py`.
"""

from dataclasses import dataclass, field
from typing import Literal

from cmasd.config.comparing import BaselineConfig, CompareConfig, CostConfig, PeersConfig
from cmasd.config.corpus import InputConfig, OutputConfig
from cmasd.config.running import ActorsConfig, LimitsConfig, LoggingConfig, NotifyConfig, TelemetryConfig
from cmasd.config.speculation import ConfidenceConfig, DrafterConfig, PolicyConfig, StitchConfig, VerificationConfig
from cmasd.config.speech import SpeechConfig

MOST_SLOTS = {"cpu": 32, "cuda": 1024}
"""For `engine.slots` null, where more rows stop paying: a CPU is bound by arithmetic long before, a GPU's matrix units
are full by then, and every further row only makes each row wait longer."""

KEPT_PLACES = 128
"""Of a slot on a CPU: so many tokens' keys and values stay allocated for the next row; those behind are given back when
a row has left."""


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
    drafter_dtype: Literal["auto", "same", "int8", "int4"] = "auto"
    """Of what `models.drafter` names; exact output does not depend on it. `same`: the verifier's; `int8`: as above;
    `int4`, on a CPU: weights in 4 bits with a scale for every 32, half the bytes and so a cheaper token at few rows,
    and as a rule fewer accepted; `auto`: int8 beside a float32 verifier on a CPU that multiplies bytes, where there
    are kernels."""
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
        """What confidence is made from: `confidence.kind`, with `auto` resolved as the records of signals in
        `infra/benchmarks` say: max_prob, of the bundled parallel drafter, too, where AUC is 0.10 above that of its own
        head; margin where rounded weights draft for the same ones whole, which say something else only where two tokens
        are close, however unsure they are of both.
        """
        if self.confidence.kind != "auto":
            return self.confidence.kind
        return "margin" if self.drafter.model == "quantised" else "max_prob"

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
