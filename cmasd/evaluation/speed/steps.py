"""Milliseconds of one forward, by rows and query tokens per row: what decides how much speculation can gain.

A verifier forward over k + 1 query tokens replaces up to k + 1 plain ones, so its cost over that of one query token
is the price of a draft; the drafter's forward over one token is the price of a drafted token. Output layers are
included; the choice of tokens, verification and the host's bookkeeping are not. All windows of a batch take turns,
so that a busy machine is fair to all.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from cmasd.config.tree import Config
from cmasd.engine import Engine, Pair
from cmasd.evaluation.speed.lineup import can_draft
from cmasd.runner.base import Runner

QUERY_TOKENS = (1, 2, 3, 4, 6, 8)
PREFIX_TOKENS = 16
"""Tokens that a row has before the window: about the middle of a sentence."""
WARM_UPS, MOST_REPEATS = 3, 30
Shape = tuple[str, int]
"""Model and query tokens per row."""


@dataclass(frozen=True)
class StepCost:
    """One model at one shape."""

    model: str
    """`verifier` or `drafter`."""
    rows: int
    query_tokens: int
    """Per row."""
    milliseconds: float
    """Median."""
    low: float
    """Lower quartile in milliseconds."""
    high: float
    ratio_to_one: float
    """Over one query token of the same model and rows."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def step_costs(
    pair: Pair,
    config: Config,
    sources: list[list[int]],
    rows: list[int],
    seconds: float,
    query_tokens: tuple[int, ...] = QUERY_TOKENS,
) -> list[StepCost]:
    """Verifier at every number of rows and query tokens, and one forward of the drafter; in about `seconds` together.

    The drafter's query tokens are those of its forward: one, or the whole draft where it drafts in one pass.
    """
    share = seconds / len(rows)
    return [
        cost
        for count in rows
        for cost in _costs(pair, config, [sources[i % len(sources)] for i in range(count)], query_tokens, share)
    ]


@torch.inference_mode()
def _costs(
    pair: Pair, config: Config, sources: list[list[int]], windows: tuple[int, ...], seconds: float
) -> list[StepCost]:
    rows = len(sources)
    room = replace(pair.sized_for(sources), max_new_tokens=PREFIX_TOKENS + max(windows))
    policy = replace(config.policy, kind="fixed" if can_draft(pair, config) else "plain")
    engine = Engine(room, replace(config, engine=replace(config.engine, slots=rows), policy=policy))
    verifier, slots = engine.verifier, list(range(rows))
    verifier.prefill(slots, sources)
    prefix = [PREFIX_TOKENS if pair.is_encoder_decoder else len(row) - 1 for row in sources]
    starts_B = torch.tensor(prefix, device=verifier.device)
    steps = {("verifier", window): _step(verifier, rows, window, starts_B) for window in windows}
    drafter = engine.drafter
    if drafter is not None and (forward := drafter.rehearse(slots, sources)) is not None:
        tokens = engine.policy.max_draft_tokens if drafter.one_pass else 1
        steps["drafter", tokens] = partial(forward, starts_B)
    times = _take_turns(steps, seconds)
    costs = []
    for (model, window), measured in times.items():
        ones = times.get((model, 1))
        low, middle, high = np.quantile(measured, [0.25, 0.5, 0.75]).tolist()
        ratio = middle / float(np.median(ones)) if ones else float("nan")
        costs.append(StepCost(model, rows, window, middle, low, high, ratio))
    return costs


def _step(runner: Runner, rows: int, window: int, starts_B: torch.Tensor) -> Callable[[], None]:
    """One forward, over when its result is there; the ids do not matter to its cost."""
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(runner.vocabulary_size, (rows, window), generator=generator).to(runner.device)

    def step() -> None:
        runner.forward(tokens_BT, starts_B)
        if runner.device.type == "cuda":
            torch.cuda.synchronize()

    return step


def _take_turns(steps: dict[Shape, Callable[[], None]], seconds: float) -> dict[Shape, list[float]]:
    """Milliseconds of every step, three times at least and until the time is over."""
    for step in steps.values():
        for _ in range(WARM_UPS):
            step()
    times: dict[Shape, list[float]] = {shape: [] for shape in steps}
    deadline = time.perf_counter() + seconds
    for repeat in range(MOST_REPEATS):
        if repeat >= 3 and time.perf_counter() > deadline:
            break
        for shape, step in steps.items():
            started = time.perf_counter()
            step()
            times[shape].append(1000 * (time.perf_counter() - started))
    return times
