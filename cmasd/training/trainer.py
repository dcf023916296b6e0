"""The training loop: any task, checkpointed, resumable, seeded.

A recipe and a seed decide the weights: a run that was killed and resumed ends with those of one that was not.
Several processes that are connected (`torch.distributed`) take a batch each and average their gradients: W of them do
what one does that accumulates W batches. The first writes the checkpoints, where all can read them.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cmasd.errors import ConfigError
from cmasd.training.corpus import Corpus, stream
from cmasd.training.recipe import Recipe, ScheduleRecipe


@dataclass(frozen=True)
class TrainingProgress:
    """What the trainer reports every `report_every` steps."""

    step: int
    steps: int
    loss_nats: float
    gauge: tuple[str, float]
    """What tells whether the right thing is learned, by its name."""
    learning_rate: float
    target_tokens_per_second: float
    eta_seconds: float


class Batch(Protocol):
    """What a task has made of some rows."""

    @property
    def tokens(self) -> int:
        """Target tokens, padding left out."""


Prepared = TypeVar("Prepared", bound=Batch)


class Task(Protocol[Prepared]):
    """What is learned, from batches of its own kind."""

    @property
    def model(self) -> nn.Module:
        """Its parameters with gradients are trained."""

    losses_per_batch: int
    """Losses that one prepared batch is good for."""

    def prepare(self, rows: NDArray[np.int64]) -> Prepared:
        """Rows of the corpus as tensors."""

    def loss(self, batch: Prepared, seed: int) -> Tensor:
        """Mean loss in nats; whatever is random in it comes from the seed."""

    def gauge(self, batch: Prepared) -> tuple[str, float]:
        """A figure for the log, and its name."""


def rate(step: int, schedule: ScheduleRecipe) -> float:
    """Learning rate at `step`: warm-up, constant, linear decay to zero."""
    decay_steps = max(1, round(schedule.steps * schedule.decay_share))
    rising = (step + 1) / max(1, schedule.warmup_steps)
    falling = (schedule.steps - step) / decay_steps
    return schedule.learning_rate * min(1.0, rising, falling)


def preferred_autocast(device: torch.device) -> torch.autocast:
    """bf16 where the device multiplies bf16 matrices natively; elsewhere it is slower than float32."""
    native = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bool(native))


def train(
    recipe: Recipe,
    task: Task[Prepared],
    corpus: Corpus,
    report: Callable[[TrainingProgress], None],
    report_every: int = 50,
) -> float:
    """Train to `recipe.schedule.steps`, resuming from `recipe.work` when a checkpoint is there.

    Returns the seconds it took, those before a resumption included.
    """
    schedule, work = recipe.schedule, Path(recipe.work)
    model = task.model.train()
    device = next(model.parameters()).device
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() == 2], "weight_decay": schedule.weight_decay},
        {"params": [p for p in trained if p.dim() != 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.98), eps=1e-9, fused=True)
    average = averaged(model, schedule.average_decay)
    first, spent = restore(work, model, optimiser, average, device)
    rank, workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    batches_before = first * schedule.accumulate // task.losses_per_batch * workers
    all_batches = stream(corpus, schedule.seed, schedule.batch_tokens, skip=batches_before)
    batches = islice(all_batches, rank, None, workers)
    batch: Prepared | None = None
    began = saved = mark = time.monotonic()
    tokens, losses = 0, []
    for step in range(first, schedule.steps):
        for group in optimiser.param_groups:
            group["lr"] = rate(step, schedule)
        for index in range(step * schedule.accumulate, (step + 1) * schedule.accumulate):
            if batch is None or index % task.losses_per_batch == 0:
                batch = task.prepare(next(batches))
                tokens += batch.tokens
            with preferred_autocast(device):
                seed = schedule.seed * 1_000_003 + index * workers + rank
                loss = task.loss(batch, seed) / schedule.accumulate
            loss.backward()
            losses.append(loss.item() * schedule.accumulate)
        if workers > 1:
            average_gradients(trained, workers)
        nn.utils.clip_grad_norm_(trained, schedule.clip_norm)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if average is not None:
            average.update_parameters(model)
        assert batch is not None, "a step has at least one batch"
        if (step + 1) % report_every == 0 or step + 1 == schedule.steps:
            gauge = task.gauge(batch)
            now = time.monotonic()
            eta = (now - mark) / len(losses) * schedule.accumulate * (schedule.steps - step - 1)
            mean, speed = math.fsum(losses) / len(losses), tokens * workers / (now - mark)
            report(TrainingProgress(step + 1, schedule.steps, mean, gauge, rate(step, schedule), speed, eta))
            mark, tokens, losses = now, 0, []
        if rank == 0 and time.monotonic() - saved > recipe.checkpoint_seconds:
            saved = time.monotonic()
            save_checkpoint(work, model, optimiser, average, step + 1, spent + saved - began)
    if first < schedule.steps:
        spent += time.monotonic() - began
        if rank == 0:
            save_checkpoint(work, model, optimiser, average, schedule.steps, spent)
    if average is not None:
        model.load_state_dict(average.module.state_dict())
    model.eval()
    return spent


def averaged(model: nn.Module, decay: float) -> AveragedModel | None:
    """The moving average of the weights; None where `decay` is 0."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None


def average_gradients(parameters: list[nn.Parameter], workers: int) -> None:
    """Over all processes, in one exchange."""
    for one in parameters:
        one.grad = torch.zeros_like(one) if one.grad is None else one.grad
    gradients = [one.grad for one in parameters if one.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, (flat / workers).split([one.numel() for one in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def save_checkpoint(
    work: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    average: AveragedModel | None,
    step: int,
    seconds: float,
) -> None:
    """Write atomically: a killed write leaves the previous checkpoint whole."""
    work.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
    state |= {"step": step, "seconds": seconds, "average": average and average.state_dict()}
    torch.save(state, work / "checkpoint.tmp")
    (work / "checkpoint.tmp").replace(work / "checkpoint.pt")


def restore(
    work: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    average: AveragedModel | None,
    device: torch.device,
) -> tuple[int, float]:
    """Load the checkpoint, if any; returns steps taken and seconds spent so far."""
    path = work / "checkpoint.pt"
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, map_location=device, weights_only=True)
    try:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        if average is not None and state.get("average"):
            average.load_state_dict(state["average"])
    except (RuntimeError, ValueError):
        raise ConfigError(
            f"work: {path} is of a model of another shape. Pass another work=PATH, or remove the file to start again."
        ) from None
    return int(state["step"]), float(state["seconds"])
