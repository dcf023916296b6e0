"""A loaded pair: both models, the text codec and the checkpoint's rules, checked against each other.

Models are shared by every engine built on the pair; caches belong to an engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from cmasd.checkpoints.by_name import (
    Model,
    Tokenizer,
    load_config,
    load_shortlist,
    load_tokenizer,
    source_vocabulary,
    vocabulary_size,
)
from cmasd.checkpoints.streaming import load_ready
from cmasd.codecs.speech import speech_limits
from cmasd.codecs.text import TextCodec
from cmasd.config.tree import Config
from cmasd.drafters.kinds import KINDS, load_drafter
from cmasd.engine.hearing import SoundRules
from cmasd.engine.speech_pair import check_ears, speech_of
from cmasd.errors import ConfigError, ModelError
from cmasd.generation.constraints import Constraints
from cmasd.generation.settings import check_end, decoder_start, limits, rounding
from cmasd.kernels import Bits, kernels
from cmasd.models.parallel_network import ParallelNetwork


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
    bits: Bits = None
    """That the verifier's runner rounds the weights to."""
    drafter_bits: Bits = None
    """That the drafter's does."""
    parallel: ParallelNetwork | None = None
    """For `drafter.kind: parallel`."""
    cache_dtype: torch.dtype | None = None
    """Of keys and values; None: the model's own."""
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

    @property
    def places_heard(self) -> int:
        """Of an encoder that takes sound: every window has them, whatever is said in it."""
        return 0 if self.sound is None else self.max_source_tokens

    def sized_for(self, sources: Sequence[Sequence[int]]) -> "Pair":
        """The same, with caches for these sources and none longer; windows of sound are all of one length."""
        if self.sound is not None:
            return self
        return replace(self, max_source_tokens=min(self.max_source_tokens, max(map(len, sources))))

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
    bits: Bits = 8 if models.dtype == "int8" else None
    verifier = load_ready(models.verifier, models.dtype, device, bits=bits, **trust)
    tokenizer = load_tokenizer(models.verifier, trust_remote_code=models.trust_remote_code)
    check_end(models.verifier, verifier.generation_config, tokenizer)
    drafter_bits = _drafted_bits(config, verifier)
    drafter, parallel = load_drafter(config, verifier, tokenizer, drafter_bits)
    check_ears(verifier, drafter, parallel)
    encoder_decoder = bool(verifier.config.is_encoder_decoder)
    speech = speech_of(config, verifier, tokenizer)
    measure = limits if speech is None else speech_limits
    lengths = measure(config.engine, verifier.generation_config, verifier.config)
    codec = speech.codec if speech is not None else text_codec(config, verifier, tokenizer, lengths.max_source_tokens)
    constraints = Constraints.from_generation_config(
        verifier.generation_config,
        vocabulary_size(verifier.config),
        forced_bos_token_id=codec.forced_bos_token_id,
        samples=config.verification.kind == "sampling",
    )
    constraints = constraints if speech is None else speech.constraints(constraints, verifier)
    stored = load_config(models.verifier, trust_remote_code=models.trust_remote_code).dtype
    told = *constraints.notices, *lengths.notices, *rounding(models.dtype, stored), *_cache_notice(config)
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
        bits=bits,
        drafter_bits=drafter_bits,
        parallel=parallel,
        cache_dtype=_cache_dtype(config, verifier),
        max_length=lengths.max_length,
        sound=None if speech is None else speech.sound,
    )
    _ = pair.decoder_start if encoder_decoder else None  # raises where there is none
    return pair


def _cache_dtype(config: Config, verifier: Model) -> torch.dtype | None:
    if config.models.cache_dtype == "auto":
        return None
    if verifier.config.is_encoder_decoder:
        raise ModelError(
            f"models.cache_dtype: is of decoder-only models, got bfloat16 with {config.models.verifier}; expected "
            "auto. Leave it out."
        )
    return torch.bfloat16


def _cache_notice(config: Config) -> tuple[str, ...]:
    if config.models.cache_dtype == "auto":
        return ()
    return (
        "models.cache_dtype: bfloat16 rounds keys and values; what is said of outputs is said of the model that reads "
        "them so, and the checkpoint itself may answer otherwise.",
    )


def text_codec(config: Config, verifier: Model, tokenizer: Tokenizer, max_source_tokens: int) -> TextCodec:
    """As `input` and `models` of the configuration say."""
    return TextCodec(
        tokenizer,
        template=config.input.template,
        chat=config.input.chat,
        messages=config.input.messages_column is not None,
        system=config.input.system,
        drops_thinking=config.input.thinking == "drop",
        source_language=config.models.source_language,
        target_language=config.models.target_language,
        on_too_long=config.input.on_too_long,
        max_source_tokens=max_source_tokens,
        is_encoder_decoder=bool(verifier.config.is_encoder_decoder),
        known_ids=source_vocabulary(verifier),
    )


def _drafted_bits(config: Config, verifier: Model) -> Bits:
    """What is drafted is verified, so a drafter may be rounded where that makes it faster."""
    models, kind = config.models, config.drafter.model
    if kind is not None and KINDS[kind].is_rounded:
        return config.drafter.bits
    if config.drafter.is_named and models.drafter_dtype == "int4":
        return 4
    if models.dtype == "int8":
        return 8
    if not config.drafter.is_named:
        return None
    if models.drafter_dtype != "auto" or config.policy.kind == "stitch":  # whose small model nobody checks
        return 8 if models.drafter_dtype == "int8" else None
    native = kernels(verifier.dtype) if verifier.device.type == "cpu" and verifier.dtype == torch.float32 else None
    return 8 if native is not None and native.multiplies_bytes else None


def _shortlist(config: Config, verifier: Model, constraints: Constraints) -> tuple[int, ...] | None:
    """Ids that a trained drafter drafts from; None: all."""
    if config.drafter.shortlist is None or not config.drafter.is_named:
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
