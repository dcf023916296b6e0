"""A loaded pair: both models, the text codec and the checkpoint's rules, checked against each other.

Models are shared by every engine built on the pair; caches belong to an engine.
"""

from dataclasses import dataclass

import torch

from cmasd.config.tree import Config
from cmasd.errors import ConfigError, ModelError
from cmasd.kernels import kernels
from cmasd.runner.constraints import Constraints
from cmasd.runner.early_exit import early_exit
from cmasd.runner.families import family_of
from cmasd.runner.load import parallel_shape
from cmasd.runner.models import (
    Model,
    Tokenizer,
    check_pair,
    load_model,
    load_shortlist,
    load_tokenizer,
    vocabulary_size,
)
from cmasd.runner.parallel import ParallelNetwork
from cmasd.runner.parallel_folder import is_parallel, load_parallel
from cmasd.runner.text import TextCodec

DEFAULT_MAX_NEW_TOKENS = 256
"""Where neither the configuration nor the checkpoint sets a limit."""


@dataclass(frozen=True)
class Pair:
    """What an engine is built from."""

    verifier: Model
    drafter: Model | None
    """For `drafter.kind: model`."""
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
        start = self.verifier.generation_config.decoder_start_token_id
        start = self.verifier.config.decoder_start_token_id if start is None else start
        if start is None:
            raise ModelError(
                "models.verifier: its configuration names no decoder_start_token_id, so decoding cannot begin."
            )
        return [start]


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
    verifier = load_model(models.verifier, models.dtype, device, **trust)
    tokenizer = load_tokenizer(models.verifier, trust_remote_code=models.trust_remote_code)
    drafter, parallel = _load_drafter(config, verifier, tokenizer)
    encoder_decoder = bool(verifier.config.is_encoder_decoder)
    max_source, max_new = _limits(config, verifier, encoder_decoder)
    codec = TextCodec(
        tokenizer,
        template=config.input.template,
        chat=config.input.chat,
        source_language=models.source_language,
        target_language=models.target_language,
        on_too_long=config.input.on_too_long,
        max_source_tokens=max_source,
        is_encoder_decoder=encoder_decoder,
    )
    constraints = Constraints.from_generation_config(
        verifier.generation_config, vocabulary_size(verifier.config), forced_bos_token_id=codec.forced_bos_token_id
    )
    shortlist = _shortlist(config, verifier, constraints) if drafter is not None or parallel is not None else None
    return Pair(
        verifier,
        drafter,
        codec,
        constraints,
        max_new,
        max_source,
        shortlist,
        int8=models.dtype == "int8",
        drafter_int8=_drafts_in_int8(config, verifier, drafter),
        parallel=parallel,
    )


def _load_drafter(config: Config, verifier: Model, tokenizer: Tokenizer) -> tuple[Model | None, ParallelNetwork | None]:
    """The model that drafts, in one of two forms, or none: a policy may never draft, and lookup needs no model."""
    models, kind, name = config.models, config.drafter.kind, config.models.drafter or ""
    if config.policy.kind == "plain" or kind == "lookup":
        return None, None
    if kind == "self":
        return early_exit(verifier, config.drafter.self_layers), None
    if kind == "parallel":
        encoder = verifier.get_encoder() if verifier.config.is_encoder_decoder else None
        parallel = load_parallel(name, parallel_shape(verifier), verifier.dtype, verifier.device, encoder)
        if config.drafter.max_draft_tokens > parallel.shape.queries:
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
    drafter = load_model(name, models.dtype, verifier.device, **trust)
    drafter_tokenizer = load_tokenizer(name, trust_remote_code=models.trust_remote_code)
    check_pair(verifier.config, drafter.config, tokenizer, drafter_tokenizer)
    return drafter, None


def _drafts_in_int8(config: Config, verifier: Model, drafter: Model | None) -> bool:
    """What is drafted is verified, so a drafter may be rounded where that makes it faster."""
    models = config.models
    if models.dtype == "int8" or not config.drafter.is_named:
        return models.dtype == "int8"
    if models.drafter_dtype != "auto":
        return models.drafter_dtype == "int8"
    native = kernels(verifier.dtype) if verifier.device.type == "cpu" and verifier.dtype == torch.float32 else None
    has_products = drafter is None or family_of(drafter).is_bart
    return has_products and native is not None and native.multiplies_bytes


def _shortlist(config: Config, verifier: Model, constraints: Constraints) -> tuple[int, ...] | None:
    """Ids that a trained drafter drafts from; None: all."""
    if config.drafter.shortlist is None or config.drafter.kind == "self":
        return None
    known = vocabulary_size(verifier.config)
    ids = [one for one in load_shortlist(config.models.drafter or "") if one < known][: config.drafter.shortlist]
    shortlist = tuple(sorted({*ids, *constraints.eos_token_ids} - set(constraints.banned)))
    if len(shortlist) < 2:
        raise ConfigError(f"drafter.shortlist: leaves one token to draft, got {config.drafter.shortlist}. Raise it.")
    return shortlist


def _limits(config: Config, verifier: Model, encoder_decoder: bool) -> tuple[int, int]:
    """(longest source, most new tokens) that configuration, checkpoint and positions allow."""
    positions = getattr(verifier.config, "max_position_embeddings", None)
    generation = verifier.generation_config
    own = generation.max_new_tokens or (generation.max_length and generation.max_length - 1) or DEFAULT_MAX_NEW_TOKENS
    if not encoder_decoder:
        own = generation.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
    max_new = config.engine.max_new_tokens or own
    max_source = config.engine.max_source_tokens
    if positions is None:
        return max_source, max_new
    if encoder_decoder:
        return min(max_source, positions), min(max_new, positions - 1)
    return _share_positions(positions, max_source, config.engine.max_new_tokens, own)


def _share_positions(positions: int, max_source: int, asked: int | None, own: int) -> tuple[int, int]:
    """Prompt and output lie in the same positions; what the user asked of the output goes first."""
    if asked is not None and asked >= positions:
        raise ConfigError(
            f"engine.max_new_tokens: leaves no room for a prompt, got {asked}; expected at most {positions - 1}, "
            "because the model has that many positions and one more."
        )
    max_source = min(max_source, positions - (asked or min(own, positions // 2)))
    return max_source, asked or min(own, positions - max_source)
