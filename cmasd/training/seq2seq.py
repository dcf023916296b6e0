"""A MarianMT, BART or T5 model from scratch, or from some layers of a larger one.

Small models tend to learn a language model that ignores its source under the default initialisation. Post-norm
residual branches therefore start small (DeepNet, arXiv 2203.00555, folded into the initial weights), and T5's heads
start with places to look at. The log carries the source gain: how many nats the loss rises when sources are shuffled.
Near zero means that the source is ignored.

Shapes: B rows, S source length, T target length, N real target tokens, D width, V vocabulary.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from cmasd.errors import ConfigError
from cmasd.models.families import output_scale
from cmasd.training.corpus import Corpus
from cmasd.training.recipe import ModelRecipe, Recipe, StartRecipe

Seq2SeqModel = MarianMTModel | BartForConditionalGeneration | T5ForConditionalGeneration
LOOK_NATS = 5.0
"""How much more likely the places are that a head of T5 starts by looking at."""


class Seq2SeqTask:
    """Say the target, given the source."""

    losses_per_batch = 1

    def __init__(
        self, model: Seq2SeqModel, corpus: Corpus, tokenizer: PreTrainedTokenizerFast, smoothing: float
    ) -> None:
        self.model = model
        self._corpus = corpus
        self._pad = int(tokenizer.pad_token_id)
        self._smoothing = smoothing

    def prepare(self, rows: NDArray[np.int64]) -> "PaddedPairs":
        """Both sides, padded."""
        source, target = (side.padded(rows, self._pad) for side in (self._corpus.source, self._corpus.target))
        teacher, device = self._corpus.teacher, self.model.device
        taught = None if teacher is None else teacher.of(self._corpus.target, rows)
        return PaddedPairs(
            source.to(device),
            target.to(device),
            int((target != self._pad).sum()),
            None if taught is None else (taught[0].to(device), taught[1].to(device)),
        )

    def loss(self, batch: "PaddedPairs", seed: int) -> Tensor:
        """See `Task.loss`; dropout is what is random."""
        torch.manual_seed(seed)
        return token_loss(self.model, batch.source_BS, batch.target_BT, self._smoothing, batch.teacher)

    def gauge(self, batch: "PaddedPairs") -> tuple[str, float]:
        """The source gain in nats."""
        return "source gain", source_gain(self.model, batch.source_BS, batch.target_BT)


@dataclass(frozen=True)
class PaddedPairs:
    """Padded token ids, and how many of the target's are real."""

    source_BS: Tensor
    target_BT: Tensor
    tokens: int
    teacher: tuple[Tensor, Tensor] | None
    """Ids (N, k) and probabilities (N, k) of the real target tokens, row after row; None: the targets are certain."""


def build_model(recipe: ModelRecipe, tokenizer: PreTrainedTokenizerFast) -> Seq2SeqModel:
    """A randomly initialised model with tied embeddings, ready for a short warm-up."""
    return _build_t5(recipe, tokenizer) if recipe.architecture == "t5" else _build_bart(recipe, tokenizer)


def _build_bart(recipe: ModelRecipe, tokenizer: PreTrainedTokenizerFast) -> Seq2SeqModel:
    """MarianMT or BART."""
    is_bart = recipe.architecture == "bart"
    kind: Any = BartConfig if is_bart else MarianConfig
    config = kind(
        vocab_size=len(tokenizer),
        d_model=recipe.width,
        encoder_layers=recipe.encoder_layers,
        decoder_layers=recipe.decoder_layers,
        encoder_ffn_dim=recipe.feed_forward,
        decoder_ffn_dim=recipe.feed_forward,
        encoder_attention_heads=recipe.heads,
        decoder_attention_heads=recipe.heads,
        max_position_embeddings=recipe.max_positions,
        activation_function="gelu" if is_bart else "relu",
        dropout=recipe.dropout,
        attention_dropout=0.0,
        activation_dropout=0.0,
        scale_embedding=True,
        share_encoder_decoder_embeddings=True,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id if is_bart else tokenizer.pad_token_id,
        forced_eos_token_id=None,
    )
    config._attn_implementation = "eager"
    model: Seq2SeqModel = BartForConditionalGeneration(config) if is_bart else MarianMTModel(config)
    initialise(model, recipe)
    return model


def _build_t5(recipe: ModelRecipe, tokenizer: PreTrainedTokenizerFast) -> Seq2SeqModel:
    """T5, version 1.0: positions are relative, so that `max_positions` limits nothing but the export's outputs."""
    kind: Any = T5Config
    config = kind(
        vocab_size=len(tokenizer),
        d_model=recipe.width,
        d_kv=recipe.width // recipe.heads,
        d_ff=recipe.feed_forward,
        num_layers=recipe.encoder_layers,
        num_decoder_layers=recipe.decoder_layers,
        num_heads=recipe.heads,
        dropout_rate=recipe.dropout,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    config._attn_implementation = "eager"
    model = T5ForConditionalGeneration(config)
    ready_to_copy(model)
    return model


def begin(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Seq2SeqModel:
    """The model that training starts with."""
    model = build_model(recipe.model, tokenizer)
    if recipe.start.path:
        copy_weights(model, recipe.start)
    return model


def initialise(model: Seq2SeqModel, recipe: ModelRecipe) -> None:
    """Xavier weights with DeepNet's gains: post-norm residual branches start small."""
    n, m = recipe.encoder_layers, recipe.decoder_layers
    encoder_gain = 0.87 * (n**4 * m) ** (-1 / 16) / (0.81 * (n**4 * m) ** (1 / 16)) ** 0.5
    decoder_gain = (12 * m) ** -0.25 / ((3 * m) ** 0.25) ** 0.5
    for name, weight in model.named_parameters():
        if "embed_tokens" in name or name.endswith("shared.weight"):
            nn.init.normal_(weight, std=recipe.width**-0.5)
        elif weight.dim() == 2 and "embed_positions" not in name:
            small = any(part in name for part in ("v_proj", "out_proj", "fc1", "fc2"))
            gain = decoder_gain if "decoder" in name else encoder_gain
            nn.init.xavier_normal_(weight, gain=gain if small else 1.0)


@torch.no_grad()
def ready_to_copy(model: Any) -> None:
    """Start from a T5 that finds a token of the target in the source and sees what stands beside it.

    Heads of self-attention look one token back, one ahead (where they may) and anywhere, in turns: Adam moves a bias by
    no more than the learning rate in a step, so that they would need thousands of steps to look at a neighbour at all.
    Queries and keys that meet in the source agree on like contents, and values come through as they are (mimetic
    initialisation, arXiv 2305.09828).
    """
    for stack in (model.encoder, model.decoder):
        bias_RH = stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.zero_()
        ahead = len(bias_RH) // 2 + 1
        places = [1, None] if stack.is_decoder else [1, ahead, None]
        for head in range(bias_RH.shape[1]):
            if (bucket := places[head % len(places)]) is not None:
                bias_RH[bucket, head] = LOOK_NATS
    for block in model.encoder.block:
        own = block.layer[0].SelfAttention
        own.o.weight.copy_(own.v.weight.T)
    for block in model.decoder.block:
        cross = block.layer[1].EncDecAttention
        cross.k.weight.copy_(cross.q.weight * cross.key_value_proj_dim**0.5)
        cross.o.weight.copy_(cross.v.weight.T)


def copy_weights(model: Seq2SeqModel, recipe: StartRecipe) -> None:
    """Start from a larger model: its encoder, its embeddings, and the decoder layers that the recipe names.

    Raises ConfigError when the shapes do not fit.
    """
    given: Any = AutoModelForSeq2SeqLM.from_pretrained(recipe.path or "", dtype=torch.float32)
    layers = "decoder.block." if isinstance(model, T5ForConditionalGeneration) else "model.decoder.layers."
    shared = ".relative_attention_bias."  # T5's first layer holds it for all
    weights = {name: one for name, one in given.state_dict().items() if not name.startswith(layers) or shared in name}
    for new, old in enumerate(recipe.decoder_layers):
        old_prefix, new_prefix = f"{layers}{old}.", f"{layers}{new}."
        for name, weight in given.state_dict().items():
            if name.startswith(old_prefix) and shared not in name:
                weights[new_prefix + name.removeprefix(old_prefix)] = weight
    own = model.state_dict()
    weights = {name: widened(name, weight, own.get(name, weight)) for name, weight in weights.items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"start: {recipe.path} does not fit the model of this recipe: {reason}") from None
    if not recipe.train_encoder:
        for part in (model.get_encoder(), model.get_input_embeddings(), model.lm_head):
            part.requires_grad_(False)


def widened(name: str, given: Tensor, own: Tensor) -> Tensor:
    """A feed-forward weight or bias with the units that the new model has and the given one lacks.

    They read what the new model's own initial weights read, and say nothing at first: the function is the given one's
    (as Net2Net grows networks, arXiv 1511.05641). Every other weight, and one that does not fit, comes back as it is.
    """
    fits = given.dim() == own.dim() and all(old <= new for old, new in zip(given.shape, own.shape, strict=True))
    if given.shape == own.shape or not fits or not (".fc1." in name or ".fc2." in name):
        return given
    grown = own.clone() if ".fc1.weight" in name else torch.zeros_like(own)
    grown[tuple(slice(size) for size in given.shape)] = given
    return grown


def token_loss(
    model: Seq2SeqModel,
    source_BS: Tensor,
    target_BT: Tensor,
    smoothing: float,
    teacher: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Mean cross entropy per target token, in nats; padding is left out.

    To the target, label-smoothed; or to the `teacher`'s distribution (`PaddedPairs.teacher`) instead.
    """
    pad, start = int(model.config.pad_token_id or 0), int(model.config.decoder_start_token_id or 0)
    inputs_BT = torch.cat([torch.full_like(target_BT[:, :1], start), target_BT[:, :-1]], dim=1)
    mask_BS = torch.ne(source_BS, pad).long()
    given: Any = model
    encoded_BSD = given.get_encoder()(source_BS, attention_mask=mask_BS).last_hidden_state
    decoded = given.get_decoder()(
        input_ids=inputs_BT, encoder_hidden_states=encoded_BSD, encoder_attention_mask=mask_BS, use_cache=False
    )
    real_BT = target_BT != pad
    hidden_ND = decoded.last_hidden_state[real_BT] * (output_scale(model) or 1.0)
    bias_1V = getattr(model, "final_logits_bias", None)
    logits_NV = F.linear(hidden_ND, model.lm_head.weight, None if bias_1V is None else bias_1V[0]).float()
    if teacher is None:
        return F.cross_entropy(logits_NV, target_BT[real_BT], label_smoothing=smoothing)
    ids_Nk, probs_Nk = teacher
    return -(probs_Nk * logits_NV.log_softmax(-1).gather(1, ids_Nk)).sum(-1).mean()


@torch.no_grad()
def source_gain(model: Seq2SeqModel, source: Tensor, target: Tensor) -> float:
    """Nats per token that the true sources save over the same sources in another order, without dropout."""
    training = model.training
    model.train(False)
    right = token_loss(model, source, target, 0.0)
    gain = (token_loss(model, source.roll(1, 0), target, 0.0) - right).item()
    model.train(training)
    return gain


def export(model: Seq2SeqModel, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, dtype: torch.dtype) -> None:
    """Write safetensors, tokenizer and generation config that plain `transformers` loads."""
    model.to(dtype)  # type: ignore[arg-type]
    model.generation_config = GenerationConfig(
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=model.config.decoder_start_token_id,
        bad_words_ids=[[tokenizer.pad_token_id]],
        max_length=recipe.model.max_positions // 2,
        num_beams=1,
    )
    folder = Path(recipe.output)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
