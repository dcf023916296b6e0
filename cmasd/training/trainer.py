"""Seq2seq training of one MarianMT model: checkpointed, resumable, seeded.

Post-norm MarianMT diverges, or learns a language model that ignores its source, under the default
initialisation and a short warm-up. Residual branches therefore start small (DeepNet, arXiv
2203.00555, folded into the initial weights), and the log carries `source_gain_nats`: how much the
loss rises when sources are shuffled. Near zero means that the source is ignored.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig, MarianConfig, MarianMTModel, PreTrainedTokenizerFast

from cmasd.errors import ConfigError
from cmasd.runner.models import SHORTLIST
from cmasd.training.corpus import Corpus, stream
from cmasd.training.recipe import ModelRecipe, Recipe, ScheduleRecipe, StartRecipe


@dataclass(frozen=True)
class Progress:
    """What the trainer reports every `report_every` steps."""

    step: int
    steps: int
    loss_nats: float
    source_gain_nats: float
    learning_rate: float
    target_tokens_per_second: float
    eta_seconds: float


def build_model(recipe: ModelRecipe, tokenizer: PreTrainedTokenizerFast) -> MarianMTModel:
    """A randomly initialised MarianMT with tied embeddings, ready for a short warm-up."""
    config = MarianConfig(
        vocab_size=len(tokenizer),
        d_model=recipe.width,
        encoder_layers=recipe.encoder_layers,
        decoder_layers=recipe.decoder_layers,
        encoder_ffn_dim=recipe.feed_forward,
        decoder_ffn_dim=recipe.feed_forward,
        encoder_attention_heads=recipe.heads,
        decoder_attention_heads=recipe.heads,
        max_position_embeddings=recipe.max_positions,
        activation_function="relu",
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        scale_embedding=True,
        share_encoder_decoder_embeddings=True,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        forced_eos_token_id=None,
    )
    config._attn_implementation = "eager"
    model = MarianMTModel(config)
    initialise(model, recipe)
    return model


def initialise(model: MarianMTModel, recipe: ModelRecipe) -> None:
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


def copy_weights(model: MarianMTModel, recipe: StartRecipe) -> None:
    """Start from a larger model: its encoder, its embeddings, and the decoder layers that the recipe names.

    Raises ConfigError when the shapes do not fit.
    """
    given: MarianMTModel = MarianMTModel.from_pretrained(recipe.path, dtype=torch.float32)
    weights = {name: weight for name, weight in given.state_dict().items() if ".decoder.layers." not in name}
    for new, old in enumerate(recipe.decoder_layers):
        old_prefix, new_prefix = f"model.decoder.layers.{old}.", f"model.decoder.layers.{new}."
        for name, weight in given.state_dict().items():
            if name.startswith(old_prefix):
                weights[new_prefix + name.removeprefix(old_prefix)] = weight
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"start: {recipe.path} does not fit the model of this recipe: {reason}") from None
    if not recipe.train_encoder:
        for part in (model.model.encoder, model.model.shared, model.lm_head):
            part.requires_grad_(False)


def rate(step: int, schedule: ScheduleRecipe) -> float:
    """Learning rate at `step`: warm-up, constant, linear decay to zero."""
    decay_steps = max(1, round(schedule.steps * schedule.decay_share))
    rising = (step + 1) / max(1, schedule.warmup_steps)
    falling = (schedule.steps - step) / decay_steps
    return schedule.learning_rate * min(1.0, rising, falling)


def token_loss(model: MarianMTModel, source_BS: Tensor, target_BT: Tensor, smoothing: float) -> Tensor:
    """Mean label-smoothed cross entropy per target token, in nats; padding is left out."""
    pad, start = int(model.config.pad_token_id or 0), model.config.decoder_start_token_id
    inputs_BT = torch.cat([torch.full_like(target_BT[:, :1], start), target_BT[:, :-1]], dim=1)
    mask_BS = torch.ne(source_BS, pad).long()
    outputs = model.model(source_BS, attention_mask=mask_BS, decoder_input_ids=inputs_BT, use_cache=False)
    hidden_BTD = outputs.last_hidden_state
    real_BT = target_BT != pad
    logits_NV = F.linear(hidden_BTD[real_BT], model.lm_head.weight, model.final_logits_bias[0])
    return F.cross_entropy(logits_NV.float(), target_BT[real_BT], label_smoothing=smoothing)


def preferred_autocast(device: torch.device) -> torch.autocast:
    """bf16 where the device multiplies bf16 matrices natively; elsewhere it is slower than float32."""
    native = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bool(native))


def train(
    recipe: Recipe,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    report: Callable[[Progress], None],
    report_every: int = 50,
) -> tuple[MarianMTModel, float]:
    """Train to `recipe.schedule.steps`, resuming from `recipe.work` when a checkpoint is there.

    Returns the model and the seconds it took, those before a resumption included.
    """
    schedule, work = recipe.schedule, Path(recipe.work)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(schedule.seed)
    model = build_model(recipe.model, tokenizer)
    if recipe.start.path:
        copy_weights(model, recipe.start)
    model.train().to(device)
    decayed = [p for p in model.parameters() if p.requires_grad and p.dim() == 2]
    plain = [p for p in model.parameters() if p.requires_grad and p.dim() != 2]
    groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.98), eps=1e-9, fused=True)
    first, spent = restore(work, model, optimiser, device)
    batches = stream(corpus, schedule.seed, schedule.batch_tokens, skip=first)
    began = saved = mark = time.monotonic()
    tokens, losses = 0, []
    for step in range(first, schedule.steps):
        rows = next(batches)
        source = corpus.source.padded(rows, tokenizer.pad_token_id).to(device)
        target = corpus.target.padded(rows, tokenizer.pad_token_id).to(device)
        for group in optimiser.param_groups:
            group["lr"] = rate(step, schedule)
        with preferred_autocast(device):
            loss = token_loss(model, source, target, schedule.label_smoothing)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), schedule.clip_norm)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
        tokens += int((target != tokenizer.pad_token_id).sum())
        if (step + 1) % report_every == 0 or step + 1 == schedule.steps:
            gain = source_gain(model, source, target)
            now = time.monotonic()
            eta = (now - mark) / len(losses) * (schedule.steps - step - 1)
            mean = math.fsum(losses) / len(losses)
            report(Progress(step + 1, schedule.steps, mean, gain, rate(step, schedule), tokens / (now - mark), eta))
            mark, tokens, losses = now, 0, []
        if time.monotonic() - saved > recipe.checkpoint_seconds:
            saved = time.monotonic()
            save_checkpoint(work, model, optimiser, step + 1, spent + saved - began)
    if first < schedule.steps:
        spent += time.monotonic() - began
        save_checkpoint(work, model, optimiser, schedule.steps, spent)
    model.eval()
    return model, spent


@torch.no_grad()
def source_gain(model: MarianMTModel, source: Tensor, target: Tensor) -> float:
    """Nats per token that the true sources save over the same sources in another order."""
    right = token_loss(model, source, target, 0.0)
    return (token_loss(model, source.roll(1, 0), target, 0.0) - right).item()


def save_checkpoint(work: Path, model: nn.Module, optimiser: torch.optim.Optimizer, step: int, seconds: float) -> None:
    """Write atomically: a killed write leaves the previous checkpoint whole."""
    work.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
    state |= {"step": step, "seconds": seconds}
    torch.save(state, work / "checkpoint.tmp")
    (work / "checkpoint.tmp").replace(work / "checkpoint.pt")


def restore(work: Path, model: nn.Module, optimiser: torch.optim.Optimizer, device: torch.device) -> tuple[int, float]:
    """Load the checkpoint, if any; returns steps taken and seconds spent so far."""
    path = work / "checkpoint.pt"
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, map_location=device, weights_only=True)
    try:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
    except (RuntimeError, ValueError):
        raise ConfigError(
            f"work: {path} is of a model of another shape. Pass another work=PATH, or remove the file to start again."
        ) from None
    return int(state["step"]), float(state["seconds"])


def write_shortlist(corpus: Corpus, folder: Path) -> None:
    """Every id of the targets, most frequent first, for `drafter.shortlist`."""
    counts = np.bincount(corpus.target.tokens)
    ids = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    (folder / SHORTLIST).write_text(json.dumps(ids.tolist()) + "\n")


def export(model: MarianMTModel, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, dtype: torch.dtype) -> None:
    """Write safetensors, tokenizer and generation config that plain `transformers` loads."""
    model.to(dtype)  # type: ignore[arg-type]
    model.generation_config = GenerationConfig(
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        bad_words_ids=[[tokenizer.pad_token_id]],
        max_length=recipe.model.max_positions // 2,
        num_beams=1,
    )
    folder = Path(recipe.output)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
