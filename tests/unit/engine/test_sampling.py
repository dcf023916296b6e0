"""Speculative sampling end to end: what the engine emits has the distribution of AR sampling from the verifier.

The distribution is computed exactly, by running the verifier on every possible prefix, and compared by a chi-square
test over whole outputs of up to three tokens. Seeds are fixed, so a result is the same on every run.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from cmasd.core import Draft, Logits, Request, Verdict
from cmasd.engine import Engine, Pair
from cmasd.generation.constraints import Constraints
from cmasd.policies.costs import StepTable
from cmasd.verification import Verification
from tests.unit.engine.pairs import decode, ragged_requests, shared_pair, tiny_config, tokens_of

VOCABULARY, STEPS, EOS, ROWS, SLOTS = 8, 3, 4, 3000, 500
TEMPERATURE = 0.8
SOURCE = [3, 5, 1, 7, 2, 6, 5, 0, 3, 4, 7]
ACCEPTED_P, REFUSED_P = 1e-3, 1e-6
Output = tuple[int, ...]


def small_pair(family: str, quality: str) -> Pair:
    constraints = Constraints(eos_token_ids=(EOS,), suppressed=(1,))
    return shared_pair(family, quality, constraints, seed=3, vocabulary=VOCABULARY, max_new_tokens=STEPS)


@torch.no_grad()
def exact_distribution(pair: Pair) -> dict[Output, float]:
    """Probability of every output of AR sampling."""
    model: Any = pair.verifier
    rest: dict[Output, float] = {(): 1.0}
    whole: dict[Output, float] = {}
    while rest:
        start = pair.decoder_start if pair.is_encoder_decoder else SOURCE
        rows = torch.tensor([start + list(prefix) for prefix in rest])
        if pair.is_encoder_decoder:
            logits = model(input_ids=torch.tensor([SOURCE] * len(rows)), decoder_input_ids=rows).logits[:, -1]
        else:
            logits = model(input_ids=rows).logits[:, -1]
        logits[:, list(pair.constraints.suppressed)] = -torch.inf
        probs = torch.softmax(logits / TEMPERATURE, -1)
        grown = {
            (*prefix, token): chance * float(probs[row, token])
            for row, (prefix, chance) in enumerate(rest.items())
            for token in range(VOCABULARY)
        }
        ended = {output for output in grown if output[-1] == EOS or len(output) == STEPS}
        whole |= {output: grown[output] for output in ended}
        rest = {output: chance for output, chance in grown.items() if output not in ended}
    return whole


def p_value(counts: Counter[Output], expected: dict[Output, float]) -> float:
    """Chi-square test; outputs expected fewer than five times are counted together."""
    total = sum(counts.values())
    assert all(expected.get(output, 0.0) > 0 for output in counts), "an impossible output came out"
    often = [output for output, chance in expected.items() if chance * total >= 5]
    cells = [(counts[output], expected[output] * total) for output in often]
    seen, due = (sum(column) for column in zip(*cells, strict=True))
    if total - due > 1e-6:
        cells.append((total - seen, total - due))
    statistic = sum((count - mean) ** 2 / mean for count, mean in cells)
    half = torch.tensor([(len(cells) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def sample(pair: Pair, sections: dict[str, Any], change: Callable[[Engine], None] = lambda engine: None) -> Engine:
    """An engine with the same source in every row; `counted` runs it."""
    base: dict[str, Any] = {
        "verification": {"kind": "sampling", "temperature": TEMPERATURE, "seed": 11},
        "engine": {"slots": SLOTS},
        "telemetry": {"level": "none"},
    }
    engine = Engine(pair, tiny_config(**base, **sections))
    change(engine)
    engine.submit([Request(key, SOURCE, STEPS) for key in range(ROWS)])
    return engine


def counted(engine: Engine) -> Counter[Output]:
    counts = Counter(tuple(result.token_ids.tolist()) for result in engine.decode([]))
    assert sum(counts.values()) == ROWS
    return counts


@pytest.fixture(autouse=True)
def made_up_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafting pays up to a length that depends on the confidences, and no measured second has a say."""
    table = StepTable((1,), (tuple(1 + 0.3 * tokens for tokens in range(9)),), (0.1,))
    monkeypatch.setattr("cmasd.engine.engine.step_table", lambda *shapes: table)


WAYS: dict[str, dict[str, Any]] = {
    "plain": {"policy": {"kind": "plain"}},
    "fixed": {"policy": {"kind": "fixed"}, "drafter": {"max_draft_tokens": 3}},
    "paper": {"policy": {"kind": "paper", "alpha": 2.0}, "drafter": {"max_draft_tokens": 3}},
    "survival": {"policy": {"kind": "survival", "threshold": 0.15}, "drafter": {"max_draft_tokens": 3}},
    "goodput": {"policy": {"kind": "goodput"}, "drafter": {"max_draft_tokens": 3}},
    "lookup": {"policy": {"kind": "fixed"}, "drafter": {"kind": "lookup", "max_draft_tokens": 3}},
    "memory": {"policy": {"kind": "fixed"}, "drafter": {"kind": ["memory", "copy"], "max_draft_tokens": 3}},
    "memory, model": {"policy": {"kind": "fixed"}, "drafter": {"kind": ["memory", "model"], "max_draft_tokens": 3}},
    "memory, model goodput": {
        "policy": {"kind": "goodput"},
        "drafter": {"kind": ["memory", "copy", "model"], "max_draft_tokens": 3},
    },
    "tree": {"policy": {"kind": "fixed"}, "drafter": {"max_draft_tokens": 3, "tree_nodes": 6, "tree_branching": 3}},
    "tree survival": {
        "policy": {"kind": "survival", "threshold": 0.1},
        "drafter": {"max_draft_tokens": 3, "tree_nodes": 5, "tree_branching": 4},
    },
    "memory tree": {
        "policy": {"kind": "fixed"},
        "drafter": {"kind": ["memory", "copy", "model"], "max_draft_tokens": 3, "tree_nodes": 5},
    },
    "parallel tree": {
        "policy": {"kind": "fixed"},
        "drafter": {"kind": "parallel", "max_draft_tokens": 3, "tree_nodes": 7, "tree_branching": 3},
    },
    "lookup survival": {
        "policy": {"kind": "survival", "threshold": 0.15},
        "drafter": {"kind": "lookup", "max_draft_tokens": 3},
    },
}


@pytest.mark.parametrize(
    ("family", "quality", "way"),
    [
        ("marian", "noisy", "plain"),
        ("marian", "noisy", "fixed"),
        ("marian", "unrelated", "fixed"),
        ("marian", "noisy", "paper"),
        ("marian", "noisy", "survival"),
        ("llama", "noisy", "survival"),
        ("marian", "noisy", "goodput"),
        ("llama", "unrelated", "goodput"),
        ("llama", "noisy", "lookup"),
        ("marian", "noisy", "lookup survival"),
        ("marian", "noisy", "memory"),
        ("llama", "noisy", "memory, model"),
        ("marian", "noisy", "memory, model goodput"),
        ("marian", "noisy", "tree"),
        ("llama", "unrelated", "tree"),
        ("marian", "unrelated", "tree survival"),
        ("llama", "noisy", "memory tree"),
        ("marian", "noisy", "parallel tree"),
    ],
)
def test_output_is_distributed_as_ar_sampling(family: str, quality: str, way: str) -> None:
    pair = small_pair(family, quality)
    engine = sample(pair, WAYS[way])
    assert p_value(counted(engine), exact_distribution(pair)) > ACCEPTED_P
    if way != "plain":
        assert 0 < engine.stats.acceptance_rate < 1
        assert engine.stats.rollbacks > 50


def test_the_exact_distribution_adds_up() -> None:
    chances = exact_distribution(small_pair("marian", "noisy"))
    assert sum(chances.values()) == pytest.approx(1)
    longest = sum(1 for output in product(range(VOCABULARY), repeat=STEPS) if output in chances)
    assert longest == (VOCABULARY - 1) ** 2 * VOCABULARY, "outputs that end early are shorter"


def accept_always(engine: Engine) -> None:
    class Always(Verification):
        inner = engine.verification

        def verify(self, draft: Draft, logits: Logits) -> Verdict:
            last_BTV = logits.padded_BTV[:, -1:].repeat(1, logits.longest, 1)
            verdict = self.inner.verify(replace(draft, lengths_B=draft.lengths_B * 0), Logits.rectangle(last_BTV))
            return replace(verdict, accepted_B=draft.lengths_B)

    engine.iterations.verification = Always()


def skip_the_residual(engine: Engine) -> None:
    """The classic mistake: after a rejection, draw from P_v instead of norm(max(0, P_v - P_d))."""
    rule: Any = engine.verification
    rule._residual = lambda probs_BTV, drafted_BKV, accepted_B, lengths_B: probs_BTV[
        torch.arange(len(accepted_B)), accepted_B
    ]


def peek(engine: Engine) -> None:
    """An anticipating policy: a draft token is withheld when the token itself, once drawn, is unlikely."""
    drafter: Any = engine.drafter
    draft_of = drafter.draft

    def draft(context: Any, room_B: Tensor, rule: Any) -> Draft:
        drafted: Draft = draft_of(context, room_B, rule)
        assert drafted.probs_BKV is not None
        own_BK = drafted.probs_BKV.gather(2, drafted.tokens_BK[..., None]).squeeze(2)
        likely_B = (own_BK > 0.2).long().cumprod(-1).sum(-1)
        return replace(drafted, lengths_B=drafted.lengths_B.minimum(likely_B))

    drafter.draft = draft


def try_ways_anew(engine: Engine) -> None:
    """Every way is tried as if none had been refused before it."""
    rule: Any = engine.verification
    try_ways = rule.try_ways

    def anew(probs_V: Tensor, tokens: list[int], drafted: list[Tensor | None]) -> tuple[int | None, Tensor]:
        for way, (token, drafted_V) in enumerate(zip(tokens, drafted, strict=True)):
            taken, left_V = try_ways(probs_V, [token], [drafted_V])
            if taken is not None:
                return way, left_V
        return None, probs_V

    rule.try_ways = anew


def test_a_mistake_in_a_tree_is_noticed() -> None:
    pair = small_pair("marian", "noisy")
    engine = sample(pair, WAYS["tree"], try_ways_anew)
    assert p_value(counted(engine), exact_distribution(pair)) < REFUSED_P


@pytest.mark.parametrize("mistake", [accept_always, skip_the_residual, peek])
def test_a_mistake_is_noticed(mistake: Callable[[Engine], None]) -> None:
    """The test above can fail: each of these changes the distribution."""
    pair = small_pair("marian", "noisy")
    engine = sample(pair, WAYS["fixed"], mistake)
    assert p_value(counted(engine), exact_distribution(pair)) < REFUSED_P


def test_the_seed_decides_the_output() -> None:
    pair, requests = shared_pair("marian"), ragged_requests(5, seed=1)
    outputs = [
        tokens_of(decode(pair, tiny_config(verification={"kind": "sampling", "seed": seed}), requests))
        for seed in (1, 1, 2)
    ]
    assert outputs[0] == outputs[1] != outputs[2]
