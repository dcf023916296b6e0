"""Where a router begins: does the small model say what the large one says? Learned by labels, before any reward.

The large model answers every question, the small one is asked at each of its tokens and never heard. Behind a token
put forward by the small model the large one should speak where its own is another; behind one of the large model, where
the small one's next is another. The bias is then set so that few such places are missed (R2R, arXiv 2505.21600).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import binary_cross_entropy_with_logits

from cmasd.errors import ConfigError
from cmasd.models.router_network import RouterNetwork, RouterShape
from cmasd.policies.base import Float64, Int64
from cmasd.policies.router import FEATURES, Decisions
from cmasd.training.recipe import RouterRecipe
from cmasd.training.router_rollouts import ALWAYS, CheckedQuestion, Rollouts, Speakers

FILE = "lessons.npz"
BATCH = 4096
"""Decisions that a step of the warm start looks at."""


@dataclass(frozen=True)
class Lessons:
    """What the large model's own answers have taught, question after question."""

    features_NF: Float64
    differs_N: NDArray[np.bool_]
    """Whether the large model should speak."""
    said_Q: Int64
    """Tokens of the large model's answer, for each question so far."""
    right_Q: NDArray[np.bool_]

    @classmethod
    def none(cls) -> "Lessons":
        """Of no question."""
        return cls(np.zeros((0, len(FEATURES))), np.zeros(0, bool), np.zeros(0, np.int64), np.zeros(0, bool))

    @classmethod
    def read(cls, work: Path) -> "Lessons":
        """As far as they were learned before; whatever is damaged is learned anew."""
        try:
            with np.load(work / FILE) as kept:
                return cls(*(kept[name] for name in ("features", "differs", "said", "right")))
        except (OSError, ValueError, KeyError):
            return cls.none()

    def write(self, work: Path) -> None:
        """Whole or not at all."""
        work.mkdir(parents=True, exist_ok=True)
        with (work / f"{FILE}.tmp").open("wb") as file:
            np.savez(file, features=self.features_NF, differs=self.differs_N, said=self.said_Q, right=self.right_Q)
        (work / f"{FILE}.tmp").replace(work / FILE)

    def plus(self, *more: "Lessons") -> "Lessons":
        """These, and others behind them."""
        columns = zip(*(vars(one).values() for one in (self, *more)), strict=True)
        return Lessons(*(np.concatenate(column) for column in columns))


def learn(
    rollouts: Rollouts,
    questions: Sequence[CheckedQuestion],
    work: Path,
    piece: int,
    report: Callable[[int, int], None] = lambda done, all: None,
) -> Lessons:
    """All questions, `piece` at a time; goes on where it was killed."""
    lessons = Lessons.read(work)
    if len(lessons.said_Q) > len(questions):
        raise ConfigError(
            f"work: {work} holds lessons of {len(lessons.said_Q)} questions, got {len(questions)} to learn from; "
            "expected the work folder of the same training. Pass another work=PATH."
        )
    while (done := len(lessons.said_Q)) < len(questions):
        lessons = lessons.plus(taught(rollouts, questions[done : done + piece]))
        lessons.write(work)
        report(len(lessons.said_Q), len(questions))
    return lessons


def taught(rollouts: Rollouts, questions: Sequence[CheckedQuestion]) -> Lessons:
    """By these questions."""
    played = rollouts.play(questions, Speakers(chance=ALWAYS))
    rows = [labelled(one.decisions) for one in played]
    return Lessons(
        np.concatenate([features for features, _ in rows]),
        np.concatenate([differs for _, differs in rows]),
        np.array([len(one.said) for one in played], dtype=np.int64),
        np.array([one.right for one in played], dtype=bool),
    )


def labelled(row: Decisions) -> tuple[Float64, NDArray[np.bool_]]:
    """Features of a row's decisions, and whether the large model should have been the one to speak; without that behind
    its last token.
    """
    small, large = ~row.is_large_N, row.is_large_N
    said = dict(zip(row.places_N[large].tolist(), row.tokens_N[large].tolist(), strict=True))
    put_forward = zip(row.places_N[small].tolist(), row.tokens_N[small].tolist(), strict=True)
    differs = {place: token != said[place] for place, token in put_forward if place in said}
    about = (row.places_N + row.is_large_N).tolist()
    known = np.array([place in differs for place in about], dtype=bool)
    return row.features_NF[known], np.array([differs[place] for place in about if place in differs], dtype=bool)


def warm_start(recipe: RouterRecipe, lessons: Lessons, seed: int) -> RouterNetwork:
    """A router that speaks as these lessons say; raises `ConfigError` where nothing is to be decided."""
    network = RouterNetwork(RouterShape(FEATURES, recipe.hidden, recipe.tau), seed)
    asked_N = lessons.features_NF[:, 0] > recipe.tau
    features_NF = torch.from_numpy(lessons.features_NF[asked_N])
    differs_N = torch.from_numpy(lessons.differs_N[asked_N])
    if not bool(differs_N.any()) or bool(differs_N.all()):
        raise ConfigError(
            f"router.tau: leaves nothing to learn, got {recipe.tau:g}: of {len(differs_N)} tokens above it the small "
            f"model says {int((~differs_N).sum())} as the large one does; expected some, and not all. Lower it, or "
            "take more questions."
        )
    network.standardise(features_NF)
    optimiser = torch.optim.Adam(network.parameters(), lr=recipe.warm_rate)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(recipe.warm_steps):
        batch = torch.randint(len(features_NF), (min(BATCH, len(features_NF)),), generator=generator)
        loss = binary_cross_entropy_with_logits(network(features_NF[batch]), differs_N[batch].double())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        found_N = network(features_NF)[differs_N]
        network.bias.sub_(found_N.quantile(1 - recipe.recall) - 1e-6)
    return network
