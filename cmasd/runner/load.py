"""From a loaded transformers model to a runner with its cache allocated.

The cache's shape is measured with one token rather than read from the config, whose names differ by family.
Does not load checkpoints (`cmasd.checkpoints.by_name` and `streaming` do); the model stays usable as it was.
"""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from cmasd.errors import ModelError
from cmasd.kernels import Bits
from cmasd.models.families import ANY_WORD, Family, Words, family_of
from cmasd.models.packed import packed_form
from cmasd.models.parallel_network import ParallelShape
from cmasd.runner.base import Runner
from cmasd.runner.cache import Geometry
from cmasd.runner.decoder_only import DecoderOnlyRunner
from cmasd.runner.graphs import GraphsMode
from cmasd.runner.runners import EncoderDecoderRunner, _SlotRunner
from cmasd.runner.stacks import encode, first_caches


def load_runner(
    model: PreTrainedModel,
    slots: int,
    max_length: int,
    max_source_length: int,
    words: Words = ANY_WORD,
    bits: Bits = None,
    graphs: GraphsMode = "auto",
    cache_dtype: torch.dtype | None = None,
) -> Runner:
    """Allocate a cache of `slots` rows and `max_length` decoder positions around a loaded model.

    `max_length` includes room for the last window. `max_source_length` concerns encoder-decoder models alone.
    `words` says which ids the logits are computed for; `bits` rounds the weights. `graphs`: see
    `cmasd.runner.graphs`; `auto` uses them on a GPU. `cache_dtype` is of keys and values of a decoder-only model; None:
    the model's own.
    """
    assert slots >= 1, f"a runner needs at least one slot, got {slots}"
    family = family_of(model)
    origin = model
    if not family.is_bart:
        model = packed_form(model, bits)
    model.eval()
    geometry, how = measure(model, family), (words, bits, graphs, origin)
    if not family.is_encoder_decoder:
        return DecoderOnlyRunner(model, family, geometry, slots, max_length, max_length, *how, cache_dtype)
    assert cache_dtype is None, "asked of decoder-only models alone"
    _check_source_length(model, family, max_source_length)
    family.prepare(model.get_decoder(), max_length)
    return EncoderDecoderRunner(
        model, family, geometry, slots, max_length, max_source_length, words, bits, graphs, origin
    )


def share_encoder(runner: Runner, other: Runner) -> bool:
    """Let `runner` use the encoder of `other` where both have the same weights; returns whether it does."""
    if isinstance(runner, EncoderDecoderRunner) and isinstance(other, EncoderDecoderRunner):
        return runner.share_encoder(other)
    return False


def share_sources(runner: Runner, other: Runner, may_round: bool = False) -> None:
    """Let the runner of a model's decoder, rounded or the beginning of it, read the keys and values of sources that the
    whole model's runner keeps, or these rounded to 16 bits; that one is prefilled before, and rows move in both alike.
    """
    if isinstance(runner, EncoderDecoderRunner) and isinstance(other, EncoderDecoderRunner):
        runner.share_sources(other, may_round)


def share_weights(runner: Runner, other: Runner) -> None:
    """Let the runner of a model's beginning (`early_exit`) use the weights as the whole model's runner stored them."""
    assert isinstance(runner, _SlotRunner), "made by load_runner"
    assert isinstance(other, _SlotRunner), "made by load_runner"
    runner.share_weights(other)


def parallel_shape(verifier: PreTrainedModel) -> ParallelShape:
    """The shape of a parallel drafter for this verifier, with the default sizes where the verifier leaves a choice."""
    geometry = measure(verifier, family_of(verifier))
    embeddings: Any = verifier.get_input_embeddings()
    width = int(embeddings.weight.shape[1])
    return ParallelShape(width, geometry.heads, geometry.width, bool(verifier.config.is_encoder_decoder))


@torch.no_grad()
def measure(model: PreTrainedModel, family: Family) -> Geometry:
    """Run one token and look at the keys that come out; what hears would have to be run over a whole window."""
    if family.hears:
        config: Any = model.config
        decoder: Any = model.get_decoder()
        heads, layers = config.decoder_attention_heads, len(decoder.layers)  # fewer than the config's where it is cut
        return Geometry(layers, heads, config.d_model // heads, model.dtype, model.device)
    token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    if family.is_encoder_decoder:
        length = torch.ones(1, dtype=torch.long, device=model.device)
        encoded_BSd = encode(model.get_encoder(), token, length, model.dtype)
        cache: Any = first_caches(model.get_decoder(), encoded_BSd, length).self_attention_cache
    else:
        cache = DynamicCache()
        model.base_model(input_ids=token, past_key_values=cache, use_cache=True)
    keys = cache.layers[0].keys
    assert all(layer.keys.shape == keys.shape for layer in cache.layers), "layers differ in their key shapes"
    return Geometry(len(cache.layers), keys.shape[1], keys.shape[3], keys.dtype, keys.device)


def _check_source_length(model: PreTrainedModel, family: Family, max_source_length: int) -> None:
    if not family.has_position_table or family.positions_key is None:
        return
    limit: int = getattr(model.config, family.positions_key)
    if max_source_length > limit:
        raise ModelError(
            f"models: {type(model).__name__} takes at most {limit} source tokens, got a source length of "
            f"{max_source_length}. Lower the source length."
        )
