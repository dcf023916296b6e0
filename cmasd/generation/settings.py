"""What a checkpoint's generation config says of greedy output: each of its settings is followed, refused or named.

`SETTINGS` holds every field that transformers knows; a test walks them, so that none of a later release is dropped in
silence. Rules on logits are followed in `constraints.py`, lengths and first tokens here. The user's own key goes first.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from cmasd.config.tree import EngineConfig
from cmasd.errors import ConfigError, ModelError

DEFAULT_MAX_NEW_TOKENS = 256
"""Where neither the configuration nor the checkpoint sets a limit."""


@dataclass(frozen=True)
class Setting:
    """One field of `GenerationConfig`."""

    kind: Literal["followed", "refused", "named", "idle"]
    """`refused`: an error, unless harmless; `named`: a notice, unless harmless; `idle`: greedy output is the same."""
    harmless: tuple[Any, ...] = ()
    """Values that leave greedy output alone."""
    why: str = ""
    """Of a notice, what is done in its stead; of an idle setting, what it acts on."""


def _all(kind: Literal["followed", "idle"], why: str, names: str) -> dict[str, Setting]:
    return dict.fromkeys(names.split(), Setting(kind, why=why))


GREEDY = "greedy decoding is used"
_OFFLOADED = ("offloaded", "offloaded_static", "offloaded_hybrid", "offloaded_hybrid_chunked")
_CACHES = (None, "dynamic", "static", "sliding_window", "hybrid", "hybrid_chunked", "paged", *_OFFLOADED)
DRAFTS = "drafts, which are verified"
SAMPLES = "samples are drawn at verification.temperature, and not by its temperature, top_k or top_p"
SETTINGS: dict[str, Setting] = {
    **_all("followed", "lengths", "max_length max_new_tokens min_length min_new_tokens"),
    **_all("followed", "first and last tokens", "decoder_start_token_id bos_token_id eos_token_id"),
    **_all("followed", "forced tokens", "forced_bos_token_id forced_eos_token_id"),
    **_all("followed", "repetition", "repetition_penalty no_repeat_ngram_size"),
    **_all("followed", "bans", "bad_words_ids suppress_tokens begin_suppress_tokens remove_invalid_values"),
    "guidance_scale": Setting("refused", (None, 1, 1.0)),
    "sequence_bias": Setting("refused", (None,)),
    "encoder_repetition_penalty": Setting("refused", (None, 1.0)),
    "encoder_no_repeat_ngram_size": Setting("refused", (None, 0)),
    "exponential_decay_length_penalty": Setting("refused", (None,)),
    "watermarking_config": Setting("refused", (None,)),
    "stop_strings": Setting("refused", (None, [])),
    "max_time": Setting("refused", (None,)),
    "token_healing": Setting("refused", (None, False)),
    "penalty_alpha": Setting("refused", (None, 0, 0.0)),
    "dola_layers": Setting("refused", (None,)),
    "constraints": Setting("refused", (None,)),
    "force_words_ids": Setting("refused", (None,)),
    "is_assistant": Setting("refused", (None, False)),
    "num_beams": Setting("named", (None, 0, 1), GREEDY),
    "do_sample": Setting("named", (None, False), GREEDY),
    "num_return_sequences": Setting("named", (None, 0, 1), "each row gets one output"),
    "cache_implementation": Setting(
        "named",
        _CACHES,
        "keys and values are kept as they are computed",
    ),
    "diversity_penalty": Setting("idle", why="beams; refused beside them"),
    **_all("idle", "beams", "early_stopping length_penalty num_beam_groups"),
    **_all("idle", "samples", "temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff"),
    **_all("idle", "probabilities, and not which is largest", "renormalize_logits"),
    **_all("idle", "what is kept and when", "use_cache cache_config max_cache_len prefill_chunk_size low_memory"),
    **_all("idle", "speed", "compile_config disable_compile continuous_batching_config"),
    **_all("idle", "what generate returns", "output_attentions output_hidden_states output_scores output_logits"),
    **_all("idle", "what generate returns", "return_dict_in_generate"),
    **_all("idle", "what stands outside a row", "pad_token_id transformers_version"),
    **_all("idle", DRAFTS, "use_mtp num_assistant_tokens num_assistant_tokens_schedule assistant_early_exit"),
    **_all("idle", DRAFTS, "assistant_confidence_threshold assistant_lookbehind target_lookbehind speculation_type"),
    **_all("idle", DRAFTS, "prompt_lookup_num_tokens max_matching_ngram_size"),
    **_all("idle", "what a drafter adds to samples", "assistant_ensemble_weight"),
}
"""By name."""


class Limits(NamedTuple):
    """How long rows may be."""

    max_source_tokens: int
    """Longest source, or prompt."""
    max_new_tokens: int
    """Most tokens generated for a row."""
    max_length: int | None = None
    """Of a decoder-only row, prompt and output together; None: as its prompt and `max_new_tokens` make it."""
    notices: tuple[str, ...] = ()
    """What of the checkpoint's or the user's lengths could not be had."""


def refuse(generation: GenerationConfig) -> None:
    """Raise ModelError for a setting that would change greedy output and is not supported."""
    for name, setting in SETTINGS.items():
        value = getattr(generation, name, None)
        if setting.kind == "refused" and value not in setting.harmless:
            raise ModelError(
                f"generation_config.{name}: changes greedy output and is not supported, got {value!r}; expected "
                f"{setting.harmless[-1]!r}. Remove it from the checkpoint's generation_config.json."
            )
    if (generation.num_beams or 1) > 1 and getattr(generation, "diversity_penalty", None):
        raise ModelError(
            f"generation_config.diversity_penalty: needs beam search, which is not supported, got "
            f"{generation.diversity_penalty!r}; expected 0.0. Remove it from the checkpoint's generation_config.json."
        )


def notices(generation: GenerationConfig, samples: bool) -> tuple[str, ...]:
    """One sentence for each setting of the checkpoint that is replaced; `samples`: by speculative sampling."""
    found = []
    for name, setting in SETTINGS.items():
        value = getattr(generation, name, None)
        if setting.kind == "named" and value not in setting.harmless:
            shown = str(value).lower() if isinstance(value, bool) else value
            why = SAMPLES if samples and name == "do_sample" else setting.why
            found.append(f"generation_config.{name}: {shown} in the checkpoint; {why}.")
    if generation.eos_token_id is None:
        found.append("generation_config.eos_token_id: none in the checkpoint; rows end at their longest alone.")
    return tuple(found)


def check_end(name: str, generation: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError where nothing says what ends a row."""
    if generation.eos_token_id is None and tokenizer.eos_token_id is None:
        raise ModelError(
            f"{name}: nothing ends a row, got neither eos_token_id in generation_config.json nor eos_token in "
            "tokenizer_config.json; expected the token that the model generates at the end of a row. Set both."
        )


def rounding(asked: str, stored: object) -> tuple[str, ...]:
    """A notice where `models.dtype` has fewer bits than the checkpoint, whose dtype is `stored` if it says so."""
    own = str(stored or "float32").removeprefix("torch.")
    if asked in ("auto", "float32", "float64", own):
        return ()
    return (
        f"models.dtype: {asked} rounds the verifier's {own} weights; what is said of outputs is said of the rounded "
        "model, and the checkpoint itself may answer otherwise.",
    )


def decoder_start(generation: GenerationConfig, config: PretrainedConfig, vocabulary_size: int) -> int:
    """The decoder's first token; as in transformers, the beginning of a sequence where no other is named."""
    name, start = "decoder_start_token_id", generation.decoder_start_token_id
    if start is None and generation.bos_token_id is not None:
        name, start = "bos_token_id", generation.bos_token_id
    if start is None:
        start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        raise ModelError(
            "models.verifier: its configuration names no decoder_start_token_id, so decoding cannot begin. "
            "Set it in the checkpoint's generation_config.json."
        )
    if isinstance(start, list | tuple) and len(start) == 1:
        [start] = start
    if not isinstance(start, int) or not 0 <= start < vocabulary_size:
        raise ModelError(
            f"generation_config.{name}: is no token to begin with, got {start!r}; expected an id from 0 to "
            f"{vocabulary_size - 1}. Mend the checkpoint's generation_config.json."
        )
    return start


def limits(engine: EngineConfig, generation: GenerationConfig, config: PretrainedConfig) -> Limits:
    """Lengths that configuration, checkpoint and positions allow."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    asked = engine.max_new_tokens
    source = _longest_source(engine.max_source_tokens, positions)
    name, most = ("engine.max_new_tokens", asked) if asked is not None else _own_limit(generation)
    if positions is None:
        return Limits(source, most)
    if config.is_encoder_decoder:
        told = (f"{name}: allows {most} tokens; the model has {positions} positions, where rows end.",)
        return Limits(min(source, positions), min(most, positions), notices=told if name and most > positions else ())
    if asked is not None:
        return _as_asked(positions, source, asked)
    if not name:
        source = min(source, positions - min(most, positions // 2))
        return Limits(source, min(most, positions - source))
    return _as_the_checkpoint_says(positions, source, generation, name)


def _longest_source(asked: int | None, positions: int | None) -> int:
    if asked is None and positions is None:
        raise ConfigError(
            "engine.max_source_tokens: has to be set, got null; the model knows no longest input. Set a number."
        )
    return positions if asked is None else asked  # type: ignore[return-value]


def _own_limit(generation: GenerationConfig) -> tuple[str, int]:
    """The checkpoint's setting, or nothing; and how many tokens it allows behind a prompt of one."""
    if generation.max_new_tokens is not None:
        return "generation_config.max_new_tokens", generation.max_new_tokens
    if generation.max_length is None:
        return "", DEFAULT_MAX_NEW_TOKENS
    if generation.max_length < 2:
        raise ModelError(
            f"generation_config.max_length: leaves no token to generate, got {generation.max_length}; expected at "
            "least 2. Set engine.max_new_tokens, or mend the checkpoint's generation_config.json."
        )
    return "generation_config.max_length", generation.max_length - 1


def _as_asked(positions: int, source: int, asked: int) -> Limits:
    """Prompt and output lie in the same positions; what the user asked of the output goes first."""
    if asked >= positions:
        raise ConfigError(
            f"engine.max_new_tokens: leaves no room for a prompt, got {asked}; expected at most {positions - 1}, "
            "because the model has that many positions and one more."
        )
    return Limits(min(source, positions - asked), asked)


def _as_the_checkpoint_says(positions: int, source: int, generation: GenerationConfig, name: str) -> Limits:
    """A long prompt leaves less to generate, as in transformers; a row's last token needs no position."""
    room, length = positions + 1, generation.max_length if generation.max_new_tokens is None else None
    whole = room if length is None else min(length, room)
    source, wanted = min(source, whole - 1), generation.max_new_tokens or whole - 1
    told = (
        f"{name}: {generation.max_new_tokens or length} in the checkpoint; prompt and output share the model's "
        f"{positions} positions, where rows end.",
    )
    is_cut = source + wanted > room if length is None else length > room
    most = min(wanted, whole - 1)
    return Limits(source, most, whole if source + most > whole else None, told if is_cut else ())
