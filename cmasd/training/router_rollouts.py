"""Questions decoded by our own engine with both models, and every decision written down: what a router learns from.

One engine serves all: who speaks is a matter of its policy alone, which is set anew for each call of `play`. A rollout
is a function of the weights, the question and its key's draws; the batch that it is decoded in does not matter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cmasd.config.tree import Config
from cmasd.core import Request
from cmasd.engine import Engine, Pair
from cmasd.engine.capacity import resolve
from cmasd.engine.measured_costs import measured_latency
from cmasd.models.router_network import RouterNetwork
from cmasd.policies import StitchPolicy
from cmasd.policies.latency import Latency
from cmasd.policies.router import DecisionLog, Decisions, Router
from cmasd.policies.stitch import Chance

ALWAYS = Chance(seed=0, dropped=1.0, returned=1.0)
"""The small model is asked at every token and never heard: the output is the large model's."""


@dataclass(frozen=True)
class CheckedQuestion:
    """A row with a checkable answer."""

    prompt: list[int]
    answer: str


@dataclass(frozen=True)
class Speakers:
    """Who speaks where: the first of these that is there decides."""

    chance: Chance | None = None
    router: Router | None = None
    tau: float = 0.0


@dataclass(frozen=True)
class Rollout:
    """One question, decoded."""

    right: bool
    said: list[int]
    """Output tokens."""
    num_small: int
    """Of those, the small model's."""
    seconds: float
    """By the fitted latency."""
    decisions: Decisions


def rollout_config(config: Config) -> Config:
    """A run's configuration, as a router of it is trained: greedy tokens, no drafts, nothing recorded."""
    return replace(
        config,
        policy=replace(config.policy, kind="stitch"),
        stitch=replace(config.stitch, tau=1.0, tau_large=None, speculate=False, random=[], router=None),
        verification=replace(config.verification, kind="exact"),
        confidence=replace(config.confidence, margin_form="full"),
        drafter=replace(config.drafter, shortlist=None, tree_nodes=0),
        telemetry=replace(config.telemetry, level="none", teacher_top_k=0),
    )


class Rollouts:
    """Decodes questions."""

    def __init__(self, pair: Pair, config: Config, grade: Callable[[list[list[int]], list[str]], list[bool]]) -> None:
        """`config`: see `rollout_config`; `grade` says of outputs whether they give these answers."""
        self.pair = pair
        self._engine = Engine(pair, resolve(pair, config))
        self._grade = grade
        self.latency: Latency | None = None
        """What forwards cost; None: nothing has a price yet."""

    def measure(self, rows: int | None = None) -> Latency:
        """What forwards of so many rows cost here, when nothing is being decoded; None: of all slots."""
        engine, costs = self._engine, self._policy.costs
        assert engine.drafter is not None, "the policy needs one"
        assert costs is not None, "and measures it"
        return measured_latency(engine.verifier, engine.drafter, costs, rows or engine.shape.slots)

    @property
    def _policy(self) -> StitchPolicy:
        policy = self._engine.policy
        assert isinstance(policy, StitchPolicy), "the configuration is of that policy"
        return policy

    def play(self, questions: Sequence[CheckedQuestion], speakers: Speakers) -> list[Rollout]:
        """Each once, in order; the place in the list is the key of its draws."""
        policy, log = self._policy, DecisionLog()
        if speakers.router is not None:
            speakers.router.network.to(self.pair.device)
        policy.chance, policy.router, policy.tau, policy.log = speakers.chance, speakers.router, speakers.tau, log
        requests = [Request(key, one.prompt, self._room(one)) for key, one in enumerate(questions)]
        results = {result.key: result for result in self._engine.decode(requests)}
        policy.log = None
        said = [results[key].token_ids.tolist() for key in range(len(questions))]
        right = self._grade(said, [one.answer for one in questions])
        rows = log.take().by_row(len(questions))
        return [
            Rollout(right[key], said[key], results[key].num_small_tokens, self._seconds(rows[key], one), rows[key])
            for key, one in enumerate(questions)
        ]

    def alone(self, question: CheckedQuestion, said: int) -> float:
        """Seconds of the large model alone, where it says so many tokens."""
        return 1.0 if self.latency is None else self.latency.alone(self._prompt(question), said)

    def _seconds(self, row: Decisions, question: CheckedQuestion) -> float:
        return 1.0 if self.latency is None else self.latency.stitched(row, self._prompt(question))

    def _prompt(self, question: CheckedQuestion) -> int:
        """Tokens that the decoder begins with."""
        return 1 if self.pair.is_encoder_decoder else len(question.prompt)

    def _room(self, question: CheckedQuestion) -> int:
        return self.pair.room(self._prompt(question))


def rates(rollouts: Sequence[Rollout]) -> tuple[float, float]:
    """Share of the small model's tokens that were dropped, and of the large model's behind which it handed back; behind
    the last token of a row nobody does.
    """
    ends = [len(one.decisions.places_N) - int(one.decisions.is_large_N[-1]) for one in rollouts]
    large = np.concatenate([one.decisions.is_large_N[:end] for one, end in zip(rollouts, ends, strict=True)])
    wants = np.concatenate([one.decisions.wants_large_N[:end] for one, end in zip(rollouts, ends, strict=True)])
    dropped, kept = wants[~large], wants[large]
    return (float(dropped.mean()) if len(dropped) else 0.0), (float(1 - kept.mean()) if len(kept) else 0.0)


def drawn_by(network: RouterNetwork, seed: int) -> Speakers:
    """By a router, in training."""
    return Speakers(router=Router(network, draws=seed))
