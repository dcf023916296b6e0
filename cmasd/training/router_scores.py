"""What a trained router is worth: the same questions by it, by its warm start, by entropy, by chance, by one model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cmasd.models.router_network import RouterNetwork
from cmasd.policies.router import Router
from cmasd.policies.stitch import Chance
from cmasd.training.router_loss import reward
from cmasd.training.router_rollouts import ALWAYS, CheckedQuestion, Rollout, Rollouts, Speakers, rates


@dataclass(frozen=True)
class RouterScore:
    """One way of deciding who speaks, on the test questions."""

    name: str
    rows: int
    right: int
    reward: float
    """Mean, as the router was trained for."""
    latency: float
    """Mean, over that of the large model alone, by the fitted model and not by a clock."""
    small_share: float
    """Of the output tokens, the small model's."""
    tokens: float
    """Of an output."""

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.right / self.rows


def score_router(
    rollouts: Rollouts,
    questions: Sequence[CheckedQuestion],
    trained: RouterNetwork,
    warm: RouterNetwork,
    weight: float,
    on_score: Callable[[RouterScore], None] = lambda score: None,
) -> list[RouterScore]:
    """Each way in turn; the random router drops and hands back as often as the trained one."""
    alone = rollouts.play(questions, Speakers(chance=ALWAYS))
    base = [rollouts.alone(question, len(one.said)) for question, one in zip(questions, alone, strict=True)]
    scores: list[RouterScore] = []

    def note(name: str, played: list[Rollout], latencies: list[float]) -> None:
        worth = [reward(one.right, latency, weight) for one, latency in zip(played, latencies, strict=True)]
        said = sum(len(one.said) for one in played)
        small = sum(one.num_small for one in played) / max(1, said)
        right, mean = sum(one.right for one in played), float(np.mean(latencies))
        scores.append(RouterScore(name, len(played), right, float(np.mean(worth)), mean, small, said / len(played)))
        on_score(scores[-1])

    def decode(name: str, speakers: Speakers) -> list[Rollout]:
        played = rollouts.play(questions, speakers)
        note(name, played, [one.seconds / seconds for one, seconds in zip(played, base, strict=True)])
        return played

    note("large alone", alone, [1.0] * len(alone))
    decode("small alone", Speakers(tau=1.0))
    decode(f"entropy, tau {trained.shape.tau:g}", Speakers(tau=trained.shape.tau))
    decode("warm start", Speakers(router=Router(warm)))
    by_router = decode("router", Speakers(router=Router(trained)))
    decode("random router", Speakers(chance=Chance(1, *rates(by_router))))
    return scores
