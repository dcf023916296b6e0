"""Trains a router (R-Stitch+): lessons, a warm start, then DAPO on rollouts of our own engine. Both models are frozen.

    lessons.npz   latency.json   warm/   checkpoint.pt   log.jsonl        in the recipe's work folder, in this order

All of it is kept there, and a training that was killed goes on from what is there: it ends with the weights of one that
was not, because a step is a function of the weights, the seed and its number. What is measured, the latency, is
measured once.

Shapes: P questions, G rollouts of each, N decisions.
"""

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cmasd.checkpoints.router_folder import save_router
from cmasd.models.router_network import RouterNetwork
from cmasd.policies.latency import Latency
from cmasd.training.recipe import Recipe
from cmasd.training.router_loss import advantages, clipped_loss, logprobs, reward
from cmasd.training.router_rollouts import CheckedQuestion, Rollout, Rollouts, drawn_by
from cmasd.training.router_warm import Lessons, learn, warm_start
from cmasd.training.trainer import TrainingProgress, rate, restore, save_checkpoint

LOG = "log.jsonl"
PIECE = 8192
"""Decisions whose gradients are computed at once."""


@dataclass(frozen=True)
class StepFigures:
    """What a step of DAPO came to: a line of the log, and of the curves."""

    step: int
    reward: float
    """Mean over the step's rollouts, as are the next four; of groups that were dropped for others they know nothing."""
    accuracy: float
    latency: float
    """Over that of the large model alone, by the fitted model."""
    small_share: float
    """Of the output tokens, the small model's."""
    tokens: float
    """Of an output."""
    groups: int
    """Questions whose rollouts were not all worth the same."""
    loss: float
    """Mean over decisions, before the first update of the step; 0 where there was none."""
    clipped: float
    """Share of the decisions that were clipped in its last update."""


@dataclass(frozen=True)
class RolloutGroup:
    """The rollouts of one question."""

    played: list[Rollout]
    rewards_G: list[float]
    latencies_G: list[float]


class RouterTraining:
    """One training run."""

    def __init__(
        self, recipe: Recipe, rollouts: Rollouts, questions: Sequence[CheckedQuestion], latency: Latency | None = None
    ) -> None:
        """`latency`: what forwards cost; None: what was measured at the first start."""
        self.recipe = recipe
        self.rollouts = rollouts
        self.questions = questions
        self.work = Path(recipe.work)
        self._given = latency
        self.lessons = Lessons.none()
        self.warm: RouterNetwork | None = None
        """As the warm start left it."""

    # ---------------------------------------------------------------- before the first reward

    def prepare(self, report: Callable[[int, int], None] = lambda done, all: None) -> RouterNetwork:
        """Lessons, prices and the warm start, as far as they are not there."""
        self.work.mkdir(parents=True, exist_ok=True)
        self.rollouts.latency = self._latency()
        piece = 4 * self.recipe.router.prompts
        self.lessons = learn(self.rollouts, self.questions, self.work, piece, report)
        self.warm = warm_start(self.recipe.router, self.lessons, self.recipe.schedule.seed)
        save_router(self.warm, self.work / "warm")
        return copy.deepcopy(self.warm)

    def _latency(self) -> Latency:
        if self._given is not None:
            return self._given
        path = self.work / "latency.json"
        try:
            return Latency.of(json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            latency = self.rollouts.measure(self.recipe.router.latency_rows)
            path.write_text(json.dumps(latency.as_dict()) + "\n")
            return latency

    # ---------------------------------------------------------------- DAPO

    def train(
        self,
        report: Callable[[TrainingProgress], None] = lambda progress: None,
        learned: Callable[[int, int], None] = lambda done, all: None,
    ) -> tuple[RouterNetwork, float]:
        """To `schedule.steps`, from the checkpoint if there is one; the router, and the seconds that it took."""
        schedule = self.recipe.schedule
        began = saved = time.monotonic()
        network = self.prepare(learned).to(self.rollouts.pair.device)
        weights = [{"params": [network.weight_HF], "weight_decay": schedule.weight_decay}]
        others = [one for name, one in network.named_parameters() if name != "weight_HF"]
        optimiser = torch.optim.AdamW([*weights, {"params": others, "weight_decay": 0.0}], lr=schedule.learning_rate)
        first, spent = restore(self.work, network, optimiser, None, self.rollouts.pair.device)
        self._cut_log(first)
        for step in range(first, schedule.steps):
            started = time.monotonic()
            for group in optimiser.param_groups:
                group["lr"] = rate(step, schedule)
            figures = self._step(network, optimiser, step)
            with (self.work / LOG).open("a") as file:
                file.write(json.dumps(asdict(figures)) + "\n")
            now = time.monotonic()
            speed = figures.tokens * self.recipe.router.prompts * self.recipe.router.rollouts / (now - started)
            eta = (now - started) * (schedule.steps - step - 1)
            gauge = "reward", figures.reward
            shown = TrainingProgress(step + 1, schedule.steps, figures.loss, gauge, rate(step, schedule), speed, eta)
            if now - saved > self.recipe.checkpoint_seconds or step + 1 == schedule.steps:
                saved = now
                save_checkpoint(self.work, network, optimiser, None, step + 1, spent + now - began)
            report(shown)
        return network, spent + time.monotonic() - began

    def _cut_log(self, steps: int) -> None:
        """Of the steps that the checkpoint knows of, and no others."""
        path = self.work / LOG
        kept = [line for line in curve(self.work) if line["step"] <= steps]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def _step(self, network: RouterNetwork, optimiser: torch.optim.Optimizer, step: int) -> StepFigures:
        groups = self._groups(network, step)
        rewards_PG = np.array([group.rewards_G for group in groups])
        advantage_PG = advantages(rewards_PG)
        told = [
            (one, advantage)
            for group, advantages_G in zip(groups, advantage_PG, strict=True)
            for one, advantage in zip(group.played, advantages_G.tolist(), strict=True)
            if not np.isnan(advantage)
        ]
        loss, clipped = self._update(network, optimiser, told) if told else (0.0, 0.0)
        played = [one for group in groups for one in group.played]
        said = sum(len(one.said) for one in played)
        return StepFigures(
            step=step + 1,
            reward=float(rewards_PG.mean()),
            accuracy=float(np.mean([one.right for one in played])),
            latency=float(np.mean([group.latencies_G for group in groups])),
            small_share=sum(one.num_small for one in played) / max(1, said),
            tokens=said / len(played),
            groups=int((~np.isnan(advantage_PG[:, 0])).sum()),
            loss=loss,
            clipped=clipped,
        )

    def _groups(self, network: RouterNetwork, step: int) -> list[RolloutGroup]:
        """Rollouts of a step's questions; where all of a group's are worth the same, of others in their place."""
        recipe, schedule = self.recipe.router, self.recipe.schedule
        order = np.random.default_rng([schedule.seed, step]).permutation(len(self.questions)).tolist()
        kept: list[RolloutGroup] = []
        flat: list[RolloutGroup] = []
        for attempt in range(1 + recipe.tries):
            wanted, order = order[: recipe.prompts - len(kept)], order[recipe.prompts - len(kept) :]
            if not wanted:
                break
            seed = (schedule.seed * 1_000_003 + step) * (1 + recipe.tries) + attempt
            for group in self._play(network, wanted, seed):
                (flat if len(set(group.rewards_G)) == 1 else kept).append(group)
        return [*kept, *flat][: max(len(kept), recipe.prompts)]

    def _play(self, network: RouterNetwork, wanted: list[int], seed: int) -> list[RolloutGroup]:
        size = self.recipe.router.rollouts
        questions = [self.questions[index] for index in wanted for _ in range(size)]
        played = self.rollouts.play(questions, drawn_by(network, seed))
        groups = []
        for number, index in enumerate(wanted):
            own = played[number * size : (number + 1) * size]
            latencies = [self.latency(index, one) for one in own]
            worth = [self.reward(one, latency) for one, latency in zip(own, latencies, strict=True)]
            groups.append(RolloutGroup(own, worth, latencies))
        return groups

    def latency(self, index: int, one: Rollout) -> float:
        """Over that of the large model alone, for this question."""
        return one.seconds / self.rollouts.alone(self.questions[index], int(self.lessons.said_Q[index]))

    def reward(self, one: Rollout, latency: float) -> float:
        """See `router_loss`."""
        return reward(one.right, latency, self.recipe.router.latency_weight)

    def _update(
        self, network: RouterNetwork, optimiser: torch.optim.Optimizer, told: list[tuple[Rollout, float]]
    ) -> tuple[float, float]:
        """`passes` updates by the decisions of rollouts with their advantages; loss and share clipped."""
        recipe, device = self.recipe.router, self.rollouts.pair.device
        asked = [one.decisions.asked_N for one, _ in told]
        features_NF = _joined([one.decisions.features_NF for one, _ in told], asked).to(device)
        wants_N = _joined([one.decisions.wants_large_N for one, _ in told], asked).to(device)
        counts = torch.tensor([int(one.sum()) for one in asked])
        advantage_N = torch.tensor([a for _, a in told], dtype=torch.float64).repeat_interleave(counts).to(device)
        if not len(wants_N):
            return 0.0, 0.0
        with torch.no_grad():
            drawn_N = torch.cat([logprobs(network(f), w) for f, w in _pieces(features_NF, wants_N)])
        first, clipped = 0.0, 0
        for update in range(recipe.passes):
            optimiser.zero_grad(set_to_none=True)
            total, clipped = 0.0, 0
            for features_nF, wants_n, drawn_n, advantage_n in _pieces(features_NF, wants_N, drawn_N, advantage_N):
                logprob_n = logprobs(network(features_nF), wants_n)
                loss_n, clipped_n = clipped_loss(logprob_n, drawn_n, advantage_n, recipe.clip_low, recipe.clip_high)
                loss = loss_n.sum() / len(wants_N)
                loss.backward()
                total, clipped = total + loss.item(), clipped + int(clipped_n.sum())
            first = total if update == 0 else first
            nn.utils.clip_grad_norm_(network.parameters(), self.recipe.schedule.clip_norm)
            optimiser.step()
        return first, clipped / len(wants_N)


def _joined(columns: Sequence[Any], asked: Sequence[Any]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([column[which] for column, which in zip(columns, asked, strict=True)]))


def _pieces(*columns: torch.Tensor) -> Any:
    return zip(*(column.split(PIECE) for column in columns), strict=True)


def curve(work: Path) -> list[dict[str, Any]]:
    """The log's lines, see `StepFigures`; a line that a kill has cut short is left out."""
    lines = []
    path = work / LOG
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def export_router(network: RouterNetwork, recipe: Recipe) -> None:
    """Write what `stitch.router` loads, with the recipe and the curves beside it."""
    folder = Path(recipe.output)
    save_router(network, folder)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    (folder / "curve.json").write_text(json.dumps(curve(Path(recipe.work)), indent=1) + "\n")
