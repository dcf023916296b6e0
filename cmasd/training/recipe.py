"""What a training run is: data, tokenizer, architecture, schedule.

Plain frozen dataclasses, so that the trainer needs neither omegaconf nor ray. A recipe and a seed
decide the weights; machine speed decides only how long it takes.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DataRecipe:
    """Where the sentence pairs come from and how much of each corpus is taken."""

    path: str = ""
    """Parquet file or folder."""
    source_column: str = "en"
    target_column: str = "de"
    group_column: str | None = None
    """Column that names the corpus of a row; null when there is one corpus."""
    mix: dict[str, float] = field(default_factory=dict)
    """Share of each corpus taken per epoch, by the value of `group_column`; absent means 1."""
    max_tokens: int = 64
    """Pairs with a longer side, in tokens, are left out."""
    max_ratio: float | None = 3.0
    """So are pairs with one side this many times as long as the other, and 8 tokens more; null: for summaries."""
    teacher: bool = False
    """Take the targets from what `telemetry.teacher_top_k` kept of an exact run, and learn its distributions."""
    config: str | None = None
    """Configuration of the run that wrote the data, for `kind: parallel`: its template, chat and system message make
    prompts of the sources, as they did then; null: sources are read as they are."""
    where: str = ""
    """Where such data can be had, in a sentence or two; said where `path` is missing."""
    audio_column: str | None = None
    """Column of recordings, in place of `source_column`, for `kind: parallel` and a verifier that hears."""
    language: str | None = None
    """What is spoken in these, such as en; null: the verifier knows one language."""


@dataclass(frozen=True)
class TokenizerRecipe:
    """A joint byte-level BPE, trained on both sides, or an existing one."""

    path: str | None = None
    """Folder of a tokenizer to reuse; null trains one."""
    vocabulary_size: int = 8000


@dataclass(frozen=True)
class ModelRecipe:
    """An encoder-decoder with tied embeddings."""

    architecture: str = "marian"
    """`marian` (sinusoidal positions, ReLU), `bart` (learned positions, normed embeddings, GELU) or `t5` (relative
    positions, norms before layers, ReLU)."""

    encoder_layers: int = 6
    decoder_layers: int = 6
    width: int = 256
    feed_forward: int = 512
    heads: int = 4
    max_positions: int = 512
    dropout: float = 0.0
    """Share of the activations that training sets to zero, of each layer's output; 0 where few passes are made."""


@dataclass(frozen=True)
class StartRecipe:
    """Weights to begin with: those of a larger model with the same width and vocabulary."""

    path: str | None = None
    """Folder of that model, e.g. the verifier; null begins at random."""
    decoder_layers: list[int] = field(default_factory=lambda: [0])
    """For each decoder layer of the new model, the layer it is copied from."""
    train_encoder: bool = False
    """Whether the copied encoder and embeddings are trained too, or kept as they are."""


@dataclass(frozen=True)
class ParallelRecipe:
    """A drafter of one pass, for `kind: parallel`: it begins with decoder layers of another model where they fit."""

    verifier: str = ""
    """Bundled name, folder or hub name of the model whose outputs the data are."""
    queries: int = 8
    """Most tokens drafted in one pass."""
    layers: int = 1
    """Of its own; 0: heads on the verifier's latest state alone, which read neither text nor source."""
    feed_forward: int = 512
    rank: int = 64
    """Of the Markov head; 0: none."""
    has_confidence: bool = True
    """Whether a head learns to predict acceptance."""
    own_encoder: bool = False
    """Whether the drafter learns to read the source with an encoder of its own, which begins as the verifier's."""
    shortlist: int | None = 3000
    """Drafts are made of this many tokens, the most frequent of the data, and where these are fewer the lowest ids
    beside them; null: the whole vocabulary."""
    start: str | None = None
    """A token-by-token drafter of the same verifier, whose decoder layers it begins with; null: the verifier's own."""
    positions: int = 3
    """Positions of the draft that a loss looks at, behind every place of a row; the first is always among them."""
    losses_per_batch: int = 2
    """Steps taken on a batch, with other positions, before the verifier reads the next one."""
    ce: float = 0.1
    """Weight of the cross entropy of the verifier's token."""
    tv: float = 0.9
    """Weight of the total variation to the verifier's distribution."""
    confidence: float = 1.0
    """Weight of the binary cross entropy of the predicted acceptance."""
    glance: float = 1.0
    """Share of its wrong guesses that are put right before the Markov head reads them (glancing, SpecDec)."""
    decay: float = 4.0
    """Draft positions over which a token is looked at less often by a factor of e."""


@dataclass(frozen=True)
class RouterRecipe:
    """Who of two models speaks (R-Stitch+), for `kind: router`: a warm start under supervision, then DAPO.

    Of `schedule` its steps, rates, weight decay, clipping and seed apply; of `data` the path and the two columns:
    questions and right answers.
    """

    config: str = ""
    """Configuration of the runs that the router is for: their models, prompts, slots, lengths, and how answers are
    checked (`compare.answer`)."""
    overrides: list[str] = field(default_factory=list)
    """Of that configuration, as `key=value`."""
    questions: int | None = None
    """The first so many rows of the data; null: all."""
    tau: float = 0.02
    """Entropy over ln V above which the router is asked; below, the small model speaks."""
    hidden: int = 32
    """Units of the router's hidden layer."""
    warm_steps: int = 400
    warm_rate: float = 1e-2
    """Learning rate of the warm start."""
    recall: float = 0.95
    """Share of the tokens at which the two models differ that the warm start leaves to the large one."""
    prompts: int = 8
    """Questions of a step."""
    rollouts: int = 8
    """Of each question of a step: a group."""
    tries: int = 2
    """Times that other questions take the places of those whose rollouts are all worth the same, in a step."""
    passes: int = 2
    """Updates made of a step's rollouts."""
    latency_weight: float = 0.3
    """Lambda: what of a right answer's worth is lost where it takes as long as with the large model alone."""
    latency_rows: int | None = None
    """Rows at a time of the runs that the router is for, at which forwards are priced: where rollouts are made many at
    a time and runs are not, reading costs other shares of a step. null: as many as `engine.slots`."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    """A decision may become less likely, or more likely, by these shares in a step (clip-higher)."""


@dataclass(frozen=True)
class ScheduleRecipe:
    """AdamW with linear warm-up, a constant stretch, and linear decay to zero."""

    steps: int = 4000
    warmup_steps: int = 400
    decay_share: float = 0.3
    """Share of `steps` at the end over which the rate falls linearly to zero."""
    learning_rate: float = 1e-3
    batch_tokens: int = 3072
    """Target tokens per step, padding included."""
    label_smoothing: float = 0.1
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    accumulate: int = 1
    """Batches whose gradients are added up in one step."""
    average_decay: float = 0.0
    """Of the moving average over the steps' weights, which is what is exported: 0.999 averages over the last thousand
    steps or so; 0: the last weights alone."""
    seed: int = 1


@dataclass(frozen=True)
class TestRecipe:
    """References that the finished model is scored on."""

    path: str | None = None
    """Parquet file; null: no scores."""
    source_column: str = "en"
    target_column: str = "de"
    set_column: str | None = "set"
    """Column that names the set of a row; null when there is one set."""
    rows: int | None = None
    """So many of each set, spread evenly over it; null: all."""


@dataclass(frozen=True)
class CardRecipe:
    """What the model card says beyond the recipe and the scores."""

    title: str = ""
    languages: list[str] = field(default_factory=list)
    licence: str = ""
    data: str = ""
    """Sources, attribution and licences of the training data, as Markdown."""
    limits: str = ""
    """What the model is not good at, as Markdown."""
    task: str = "translation"
    """As model hubs name it."""


@dataclass(frozen=True)
class Recipe:
    """One training run."""

    kind: str = "seq2seq"
    """`seq2seq`: a MarianMT model (`model`, `start`); `parallel`: a drafter of one pass (`parallel`); `router`: who
    of two models speaks (`router`)."""
    role: str = "verifier"
    """`verifier`, `drafter` or `router`: what the model card calls the result."""
    output: str = ""
    """Folder that receives weights, tokenizer, generation config and model card."""
    work: str = ""
    """Folder for checkpoints and the log; removed by nobody."""
    data: DataRecipe = field(default_factory=DataRecipe)
    tokenizer: TokenizerRecipe = field(default_factory=TokenizerRecipe)
    model: ModelRecipe = field(default_factory=ModelRecipe)
    start: StartRecipe = field(default_factory=StartRecipe)
    parallel: ParallelRecipe = field(default_factory=ParallelRecipe)
    router: RouterRecipe = field(default_factory=RouterRecipe)
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    test: TestRecipe = field(default_factory=TestRecipe)
    card: CardRecipe = field(default_factory=CardRecipe)
    dtype: str = "bfloat16"
    """Of the shipped weights: `float32`, `float16` or `bfloat16`, which processors with a matrix unit multiply as it
    is: there decoding many rows is up to twice as fast as with the others."""
    threads: int = 0
    """CPU threads; 0: all. Of each worker."""
    workers: int = 1
    """Processes that train together, a batch each per step, through Ray Train; one GPU each where there are GPUs."""
    checkpoint_seconds: float = 300.0
