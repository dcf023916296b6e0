"""A loaded pair: both models, the text codec and the checkpoint's rules, checked against each other.

Models are shared by every engine built on the pair; caches belong to an engine.
"""

from dataclasses import dataclass, replace

import torch

from cmasd.config.tree import Config
from cmasd.engine.hearing import SoundRules
from cmasd.engine.speech import check_ears, speech_of
from cmasd.errors import ConfigError, ModelError
from cmasd.kernels import kernels
from cmasd.runner.checkpoints import check_end, decoder_start, limits, rounding
from cmasd.runner.constraints import Constraints
from cmasd.runner.early_exit import early_exit
from cmasd.runner.load import parallel_shape
from cmasd.runner.models import (
    Model,
    Tokenizer,
    check_pair,
    load_config,
    load_shortlist,
    load_tokenizer,
    source_vocabulary,
    vocabulary_size,
)
from cmasd.runner.parallel import ParallelNetwork
from cmasd.runner.parallel_folder import is_parallel, load_parallel
from cmasd.runner.speech import speech_limits
from cmasd.runner.streaming import load_ready
from cmasd.runner.text import TextCodec


@dataclass(frozen=True)
class Pair:
    """What an engine is built from."""

    verifier: Model
    drafter: Model | None
    """For `drafter.kind` model, self and quantised."""
    codec: TextCodec
    constraints: Constraints
    max_new_tokens: int
    """Tokens generated per row at most."""
    max_source_tokens: int
    """Longest source or prompt."""
    shortlist: tuple[int, ...] | None = None
    """Ids that the drafter drafts from; None: all."""
    int8: bool = False
    """Whether the verifier's runner quantises the weights."""
    drafter_int8: bool = False
    """Whether the drafter's does."""
    parallel: ParallelNetwork | None = None
    """For `drafter.kind: parallel`."""
    max_length: int | None = None
    """Of a row, prompt and output together at most; None: whatever the two make."""
    sound: SoundRules | None = None
    """Of a verifier that hears; None: sources are texts."""

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether sources go through an encoder."""
        return bool(self.verifier.config.is_encoder_decoder)

    @property
    def device(self) -> torch.device:
        """Where both models are."""
        return self.verifier.device

    @property
    def notices(self) -> tuple[str, ...]:
        """What a user should know of how the checkpoint is decoded."""
        return self.constraints.notices

    @property
    def decoder_start(self) -> list[int]:
        """The decoder's first tokens, for encoder-decoder models."""
        model = self.verifier
        return [decoder_start(model.generation_config, model.config, vocabulary_size(model.config))]

    @property
    def max_prompt(self) -> int:
        """Decoder tokens that a row starts with at most."""
        if self.sound is not None:
            return self.sound.most_start
        return 1 if self.is_encoder_decoder else self.max_source_tokens

    @property
    def max_source_ids(self) -> int:
        """Of a source that goes through an encoder; a recording has none."""
        return self.max_source_tokens if self.is_encoder_decoder and self.sound is None else 0

    def room(self, prompt_tokens: int) -> int:
        """Tokens generated at most behind a prompt, or a decoder's start, of this length."""
        if self.max_length is None:
            return self.max_new_tokens
        return min(self.max_new_tokens, self.max_length - prompt_tokens)


def choose_device(name: str) -> torch.device:
    """`auto` is a GPU when there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("models.device: is cuda, but torch finds no GPU. Use models.device=auto.")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def load_pair(config: Config) -> Pair:
    """Load and check what `models.*` names; raises `ModelError` or `ConfigError`."""
    models, device = config.models, choose_device(config.models.device)
    trust = {"trust_remote_code": models.trust_remote_code, "allow_pickle": models.allow_pickle}
    verifier = load_ready(models.verifier, models.dtype, device, **trust)
    tokenizer = load_tokenizer(models.verifier, trust_remote_code=models.trust_remote_code)
    check_end(models.verifier, verifier.generation_config, tokenizer)
    drafter, parallel = _load_drafter(config, verifier, tokenizer)
    check_ears(verifier, drafter)
    encoder_decoder = bool(verifier.config.is_encoder_decoder)
    speech = speech_of(config, verifier, tokenizer)
    measure = limits if speech is None else speech_limits
    lengths = measure(config.engine, verifier.generation_config, verifier.config)
    codec = (
        speech.codec
        if speech is not None
        else TextCodec(
            tokenizer,
            template=config.input.template,
            chat=config.input.chat,
            source_language=models.source_language,
            target_language=models.target_language,
            on_too_long=config.input.on_too_long,
            max_source_tokens=lengths.max_source_tokens,
            is_encoder_decoder=encoder_decoder,
            known_ids=source_vocabulary(verifier),
        )
    )
    constraints = Constraints.from_generation_config(
        verifier.generation_config,
        vocabulary_size(verifier.config),
        forced_bos_token_id=codec.forced_bos_token_id,
        samples=config.verification.kind == "sampling",
    )
    constraints = constraints if speech is None else speech.constraints(constraints, verifier)
    stored = load_config(models.verifier, trust_remote_code=models.trust_remote_code).dtype
    told = *constraints.notices, *lengths.notices, *rounding(models.dtype, stored)
    constraints = replace(constraints, notices=told)
    shortlist = _shortlist(config, verifier, constraints) if drafter is not None or parallel is not None else None
    pair = Pair(
        verifier,
        drafter,
        codec,
        constraints,
        lengths.max_new_tokens,
        lengths.max_source_tokens,
        shortlist,
        int8=models.dtype == "int8",
        drafter_int8=_drafts_in_int8(config, verifier),
        parallel=parallel,
        max_length=lengths.max_length,
        sound=None if speech is None else speech.sound,
    )
    _ = pair.decoder_start if encoder_decoder else None  # raises where there is none
    return pair


def _load_drafter(config: Config, verifier: Model, tokenizer: Tokenizer) -> tuple[Model | None, ParallelNetwork | None]:
    """The model that drafts, in one of two forms, or none: a policy may never draft, and texts need no model."""
    models, kind, name = config.models, config.drafter.model, config.models.drafter or ""
    if config.policy.kind == "plain" or kind is None:
        return None, None
    if kind == "quantised":
        return verifier, None
    if kind == "self":
        return early_exit(verifier, config.drafter.self_layers), None
    if kind == "parallel":
        encoder = verifier.get_encoder() if verifier.config.is_encoder_decoder else None
        parallel = load_parallel(name, parallel_shape(verifier), verifier.dtype, verifier.device, encoder)
        if not config.drafter.free and config.drafter.max_draft_tokens > parallel.shape.queries:
            raise ConfigError(
                f"drafter.max_draft_tokens: must be at most {parallel.shape.queries}, which {name} was trained for, "
                f"got {config.drafter.max_draft_tokens}."
            )
        if config.score == "head" and not parallel.shape.has_confidence:
            raise ConfigError(
                f"confidence.kind: {name} has no confidence head, got {config.confidence.kind}. Use max_prob."
            )
        return None, parallel
    if is_parallel(name):
        raise ModelError(f"models.drafter: {name} drafts in one pass. Set drafter.kind=parallel.")
    trust = {"trust_remote_code": models.trust_remote_code, "allow_pickle": models.allow_pickle}
    drafter = load_ready(name, models.dtype, verifier.device, int8=_drafts_in_int8(config, verifier), **trust)
    drafter_tokenizer = load_tokenizer(name, trust_remote_code=models.trust_remote_code)
    check_pair(verifier.config, drafter.config, tokenizer, drafter_tokenizer)
    return drafter, None


def _drafts_in_int8(config: Config, verifier: Model) -> bool:
    """What is drafted is verified, so a drafter may be rounded where that makes it faster."""
    models = config.models
    if models.dtype == "int8" or config.drafter.model == "quantised":
        return True
    if not config.drafter.is_named:
        return False
    if models.drafter_dtype != "auto":
        return models.drafter_dtype == "int8"
    native = kernels(verifier.dtype) if verifier.device.type == "cpu" and verifier.dtype == torch.float32 else None
    return native is not None and native.multiplies_bytes


def _shortlist(config: Config, verifier: Model, constraints: Constraints) -> tuple[int, ...] | None:
    """Ids that a trained drafter drafts from; None: all."""
    if config.drafter.shortlist is None or config.drafter.model in ("self", "quantised"):
        return None
    known, listed = vocabulary_size(verifier.config), load_shortlist(config.models.drafter or "")
    if strangers := [one for one in listed if not 0 <= one < known]:
        raise ModelError(
            f"drafter.shortlist: {config.models.drafter} lists a token that the verifier cannot say, got "
            f"{strangers[0]}; expected ids from 0 to {known - 1}. Train the drafter for this verifier."
        )
    ids = listed[: config.drafter.shortlist]
    shortlist = tuple(sorted({*ids, *constraints.eos_token_ids} - set(constraints.banned)))
    if len(shortlist) < 2:
        raise ConfigError(f"drafter.shortlist: leaves one token to draft, got {config.drafter.shortlist}. Raise it.")
    return shortlist
