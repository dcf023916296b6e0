"""Iterations of a policy without decoding: replayed from drafts that were recorded before every output token.

Under exact verification the output is the verifier's own, whatever is drafted. So one pass that drafts k_max tokens
before each of its tokens, and keeps none, knows what any policy would have drafted there and how much of it would have
been accepted: for a policy that goes by the row's own confidences (fixed, paper) the iterations are exactly those of
decoding. Which rows share an iteration follows from the order in which the engine takes them. Seconds are not
replayed: they are those of a table by the rows' drafts.

Not replayed: `goodput`, which learns while running, and lossy verification, whose output is another.

Shapes: N places, one before each output token, K draft, B rows.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from cmasd.confidence import build_confidence
from cmasd.confidence.largest import argmax
from cmasd.config.tree import Config
from cmasd.core import Draft, Logits, Request, Result, Verdict
from cmasd.engine import Engine, Pair
from cmasd.policies import build_policy
from cmasd.verification import Verification
from cmasd.verification.exact import ExactVerification

REPLAYED = ("fixed", "paper")
"""Policies whose iterations follow from a recording."""
Lengths = tuple[int, ...]
"""Draft tokens that each live row of an iteration sends to the verifier, longest first."""
Seconds = Callable[[Lengths], float]
"""Of an iteration."""


@dataclass(frozen=True)
class Walk:
    """A row's way through its output."""

    key: int
    source_tokens: int
    drafted: Sequence[int]
    """Tokens sent to the verifier, by iteration."""
    accepted: Sequence[int]
    """Of those, by iteration."""
    output_tokens: int

    @classmethod
    def of(cls, result: Result) -> "Walk":
        """Of a row that was decoded, with iterations in its telemetry."""
        trace = result.iterations
        assert trace is not None, "iterations are traced from telemetry level `iteration` on"
        drafted, accepted = trace.draft_length.tolist(), trace.accepted.tolist()
        return cls(result.key, result.num_input_tokens, drafted, accepted, result.num_output_tokens)


@dataclass(frozen=True)
class Schedule:
    """Rows in the slots of one engine, from the first iteration to the last."""

    shapes: list[Lengths]
    """By iteration."""
    walks: Sequence[Walk]

    def seconds(self, seconds: Seconds) -> float:
        """By a table."""
        return sum(map(seconds, self.shapes))

    @property
    def output_tokens(self) -> int:
        """Of all rows."""
        return sum(walk.output_tokens for walk in self.walks)


def schedule(walks: Sequence[Walk], slots: int) -> Schedule:
    """The engine's order: longest sources first, then by key; a row that ends makes room for the next."""
    queue = deque(sorted(walks, key=lambda walk: (-walk.source_tokens, walk.key)))
    live: list[tuple[Walk, int]] = []
    shapes = []
    while queue or live:
        while queue and len(live) < slots:
            live.append((queue.popleft(), 0))
        shapes.append(tuple(sorted((walk.drafted[at] for walk, at in live), reverse=True)))
        live = [(walk, at + 1) for walk, at in live if at + 1 < len(walk.drafted)]
    return Schedule(shapes, walks)


# ------------------------------------------------------------------------------- recording


@dataclass
class Recording:
    """What was drafted before every output token of some rows, and how much of it exact verification accepts."""

    k_max: int
    source_tokens: dict[int, int] = field(default_factory=dict)
    outputs: dict[int, list[int]] = field(default_factory=dict)
    """Token ids by key, greedy AR; places are in the order of these rows."""
    components_NK3: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 3))
    """Entropy, margin, softmax; NaN where nothing was drafted."""
    drafted_N: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """Of k_max: fewer where the draft says that the row ends, or near the limit of tokens."""
    accepted_N: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def walks(self, config: Config) -> list[Walk]:
        """Every row under another policy, k_max or confidence, exactly verified."""
        assert config.policy.kind in REPLAYED, f"policy {config.policy.kind} cannot be replayed"
        k_max = config.drafter.max_draft_tokens
        rule = build_policy(config).plan(rows=1)
        assert rule is not None, "what is replayed drafts"
        assert k_max <= self.k_max, "no draft was longer"
        entropy, margin, softmax = self.components_NK3[:, :k_max].unbind(-1)
        scores = _Recorded(entropy, margin, softmax)
        confidence = build_confidence(config.confidence, config.score)
        assert confidence.kind in ("entropy", "margin", "softmax", "ensemble"), "made from what was recorded"
        sent_N = rule.lengths(confidence.combine(scores), self.drafted_N.clamp_max(k_max))
        return self._walks(sent_N.tolist(), self.accepted_N.minimum(sent_N).tolist())

    def plain(self) -> list[Walk]:
        """Every row decoded plainly."""
        nothing = [0] * len(self.drafted_N)
        return self._walks(nothing, nothing)

    def _walks(self, sent_N: list[int], accepted_N: list[int]) -> list[Walk]:
        walks, first = [], 0
        for key, output in self.outputs.items():
            tokens, at = len(output), 0
            drafted, accepted = [], []
            while at < tokens:
                drafted.append(sent_N[first + at])
                accepted.append(min(accepted_N[first + at], tokens - at))
                at += accepted[-1] + 1
            walks.append(Walk(key, self.source_tokens[key], drafted, accepted, tokens))
            first += tokens
        return walks


@dataclass(frozen=True)
class _Recorded:
    """`Components` that are recorded."""

    entropy: Tensor
    margin: Tensor
    softmax: Tensor

    @property
    def max_prob(self) -> Tensor:
        """Is not."""
        raise NotImplementedError("the probability of the argmax was not recorded")


class _Rejection(Verification):
    """Exact verification that keeps nothing of a draft, and remembers what it would have kept."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._exact = ExactVerification()
        self.seen: dict[int, list[tuple[Tensor, int, int]]] = {}
        """By key, for every output token so far: components (k, 3), drafted, accepted."""

    def verify(self, draft: Draft, logits: Logits) -> Verdict:
        """One token of the verifier's own for each row."""
        verdict = self._exact.verify(draft, logits)
        numbers = zip(draft.lengths_B.tolist(), verdict.accepted_B.tolist(), strict=True)
        components_BK3 = draft.components_BK3.cpu().clone()
        for row, (drafted, accepted) in enumerate(numbers):
            kept = components_BK3[row, :drafted]
            self.seen.setdefault(self._engine.state.keys[row], []).append((kept, drafted, accepted))
        none_B, own_B = torch.zeros_like(verdict.accepted_B), argmax(logits.values_NV[logits.firsts_B1[:-1]])
        return replace(verdict, accepted_B=none_B, next_B=own_B)


def record(pair: Pair, config: Config, requests: Sequence[Request]) -> Recording:
    """Draft `drafter.max_draft_tokens` before every output token; `config` is one that an engine is built from."""
    fixed = replace(config.policy, kind="fixed")
    exact = replace(config.verification, kind="exact")
    quiet = replace(config.telemetry, level="none")
    engine = Engine(pair, replace(config, policy=fixed, verification=exact, telemetry=quiet))
    engine.iterations.verification = rejection = _Rejection(engine)
    recording = Recording(config.drafter.max_draft_tokens)
    for result in engine.decode(list(requests)):
        recording.outputs[result.key] = result.token_ids.tolist()
        recording.source_tokens[result.key] = result.num_input_tokens
    places = [place for key in recording.outputs for place in rejection.seen[key]]
    numbers = np.array([place[1:] for place in places], dtype=np.int64).reshape(-1, 2)
    recording.drafted_N, recording.accepted_N = torch.from_numpy(numbers).unbind(1)
    recording.components_NK3 = torch.full((len(places), recording.k_max, 3), torch.nan)
    for n, (components_J3, drafted, _) in enumerate(places):
        recording.components_NK3[n, :drafted] = components_J3
    return recording


def decode(pair: Pair, config: Config, requests: Sequence[Request]) -> list[Result]:
    """Rows as configured, with their iterations; where a replay would not be exact."""
    traced = replace(config, telemetry=replace(config.telemetry, level="iteration"))
    return list(Engine(pair, traced).decode(list(requests)))
