"""Parallel drafters learn their verifier, and draft in the engine what they learned in training."""

import copy
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from cmasd.core import Request
from cmasd.models.parallel_network import ParallelNetwork
from cmasd.runner.load import parallel_shape
from cmasd.training.listening import Lesson, listen
from cmasd.training.parallel_drafter import copy_layers
from cmasd.training.parallel_loss import DrafterWords, accepted, choose_steps, loss_of, tokens_per_iteration
from cmasd.training.recipe import ParallelRecipe
from tests.unit.engine.pairs import decode, decode_plain, shared_model, shared_pair, tiny_config, tokens_of
from tests.unit.runner.tiny import FAMILIES

QUERIES, VOCABULARY = 4, 64
REQUESTS = [Request(key, [3 + (7 * key + 5 * i) % 60 for i in range(3 + key % 8)], 16) for key in range(48)]


def outputs(family: str) -> tuple[list[list[int]], list[list[int]]]:
    decoded = tokens_of(decode_plain(shared_pair(family), REQUESTS))
    return [request.source for request in REQUESTS], [decoded[request.key] for request in REQUESTS]


def learned(family: str, steps: int, glance: float = 1.0, **shape: Any) -> tuple[ParallelNetwork, Lesson, DrafterWords]:
    """Trained on a few outputs of a tiny verifier, over and over."""
    verifier = shared_model(family)
    torch.manual_seed(0)
    sizes = replace(parallel_shape(verifier), queries=QUERIES, feed_forward=64, **{"rank": 8, **shape})
    encoder = copy.deepcopy(verifier.get_encoder()).requires_grad_() if sizes.own_encoder else None
    network = ParallelNetwork(sizes, encoder).double()
    words = DrafterWords.of(verifier, torch.arange(VOCABULARY))
    lesson = listen(verifier, *outputs(family))
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    recipe = ParallelRecipe(tv=0.5, glance=glance)
    for _ in range(steps):
        chosen = choose_steps(2, QUERIES, 4.0, generator)
        loss_of(network, lesson, words, chosen, recipe, generator).backward()
        optimiser.step()
        optimiser.zero_grad()
    return network.requires_grad_(False).eval(), lesson, words


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        ("marian", {}),
        ("marian", {"layers": 0}),
        ("marian", {"own_encoder": True, "rank": 0, "has_confidence": False}),
        ("t5", {"rank": 0}),
        ("llama", {"has_confidence": False, "layers": 2}),
        ("gemma3", {"norm_first": True}),
    ],
)
def test_what_is_learned_is_what_the_engine_accepts(family: str, shape: dict[str, Any]) -> None:
    """The simulation over known outputs and real decoding take the same number of iterations, row by row in sum."""
    network, lesson, words = learned(family, 60, **shape)
    accepted_BC, judged_BCK = accepted(network, lesson, words)
    tokens, iterations = tokens_per_iteration(accepted_BC, lesson, QUERIES)
    assert tokens / iterations > 1.3
    assert judged_BCK.shape == (*accepted_BC.shape, QUERIES)
    assert bool(((judged_BCK >= 0) & (judged_BCK <= 1)).all())
    pair = replace(shared_pair(family), parallel=network)
    config = tiny_config(
        policy={"kind": "fixed"},
        drafter={"kind": "parallel", "max_draft_tokens": QUERIES},
        confidence={"kind": "max_prob"},
        engine={"slots": 5},
    )
    fast = decode(pair, config, REQUESTS)
    assert tokens_of(fast) == tokens_of(decode_plain(pair, REQUESTS))
    assert sum(result.num_iterations for result in fast.values()) == iterations


def test_glancing_puts_a_share_of_the_wrong_guesses_right() -> None:
    """The Markov head reads its own guesses, or the truth in their place; at a draft's first token there is none."""
    network, lesson, words = learned("marian", 5)

    def loss(glance: float, steps: list[int]) -> float:
        generator = torch.Generator().manual_seed(1)
        return float(loss_of(network, lesson, words, steps, ParallelRecipe(glance=glance), generator))

    assert loss(0.0, [0]) == loss(1.0, [0])
    whole, half, none = (loss(glance, [0, 2]) for glance in (1.0, 0.5, 0.0))
    assert len({whole, half, none}) == 3
    trained, _, _ = learned("marian", 60, glance=0.3)
    tokens, iterations = tokens_per_iteration(accepted(trained, lesson, words)[0], lesson, QUERIES)
    assert tokens / iterations > 1.3


def test_rows_shorter_than_the_position_that_is_looked_at() -> None:
    network, _, words = learned("marian", 0)
    short = listen(shared_model("marian"), [[3, 4], [5]], [[6], [7, 8]])
    loss = float(loss_of(network, short, words, [0, 3], ParallelRecipe(tv=0.5)))
    assert loss == float(loss_of(network, short, words, [0], ParallelRecipe(tv=0.5)))


def test_confidence_is_learned() -> None:
    """Every other row says something new each time, which nobody can guess: the drafter learns to know these rows."""
    verifier, (sources, targets) = shared_model("marian"), outputs("marian")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"queries": QUERIES, "feed_forward": 64, "rank": 8}
    network = ParallelNetwork(replace(parallel_shape(verifier), **sizes)).double()
    words, recipe = DrafterWords.of(verifier, torch.arange(VOCABULARY)), ParallelRecipe()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)

    def lesson() -> Lesson:
        noise = [torch.randint(3, VOCABULARY, (len(target),), generator=generator).tolist() for target in targets]
        mixed = [noise[i] if i % 2 else target for i, target in enumerate(targets)]
        return listen(verifier, sources, mixed)

    for _ in range(60):
        batch = lesson()
        loss_of(network, batch, words, choose_steps(2, QUERIES, 4.0, generator), recipe).backward()
        optimiser.step()
        optimiser.zero_grad()
    batch = lesson()
    _, judged_BCK = accepted(network, batch, words)
    inside_BT = torch.arange(judged_BCK.shape[1]) < batch.ends_B[:, None]
    first_BT = judged_BCK[..., 0]
    known, noise = (float(first_BT[k::2][inside_BT[k::2]].mean()) for k in (0, 1))
    assert known > noise + 0.3


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_listened_to(family: str) -> None:
    """The verifier, run over its own outputs at once, says them again."""
    verifier, (sources, targets) = shared_model(family), outputs(family)
    lesson = listen(verifier, sources, targets)
    logits_BTV = cast(Any, DrafterWords.of(verifier, torch.arange(VOCABULARY)).head)(lesson.hidden_BTd)
    for row, target in enumerate(targets):
        first = int(lesson.first_B[row])
        assert logits_BTV[row, first : first + len(target)].argmax(-1).tolist() == target
        assert int(lesson.ends_B[row]) == first + len(target)
        assert lesson.tokens_BU[row, first + 1 : first + 1 + len(target)].tolist() == target


def test_the_first_token_is_always_looked_at_and_early_ones_come_more_often() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen = [choose_steps(2, QUERIES, 1.0, generator) for _ in range(2000)]
    assert all(steps[0] == 0 and 1 <= steps[1] < QUERIES for steps in chosen)
    counts = torch.bincount(torch.tensor([steps[1] for steps in chosen]), minlength=QUERIES)[1:] / len(chosen)
    expected = torch.exp(-torch.arange(1, QUERIES) / 1.0)
    torch.testing.assert_close(counts, expected / expected.sum(), atol=0.04, rtol=0)
    assert sorted(choose_steps(99, QUERIES, 1.0, generator)) == list(range(QUERIES))
    assert choose_steps(1, QUERIES, 1.0, generator) == [0]


def test_it_begins_as_the_drafter_that_it_is_given() -> None:
    """Before any step, its first token is what a token-by-token drafter of one layer says."""
    verifier, (sources, targets) = shared_model("marian"), outputs("marian")
    drafter = copy.deepcopy(verifier)
    decoder: Any = drafter.get_decoder()
    decoder.layers = decoder.layers[-1:]
    decoder.layers[0].activation_fn = torch.nn.ReLU()  # which a parallel drafter's layers have
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in decoder.layers.parameters():
            weight.copy_((weight + torch.randn_like(weight)).float())  # as they are copied
    network = ParallelNetwork(replace(parallel_shape(verifier), feed_forward=verifier.config.decoder_ffn_dim))
    assert copy_layers(network, drafter)
    lesson, words = listen(verifier, sources, targets), DrafterWords.of(verifier, torch.arange(VOCABULARY))
    accepted_BC, _ = accepted(network.double(), lesson, words)
    model: Any = drafter
    said_BTV = model(
        input_ids=lesson.source_BS,
        attention_mask=(lesson.source_mask[:, 0, 0] == 0).long() if lesson.source_mask is not None else None,
        decoder_input_ids=lesson.tokens_BU[:, :-1],
    ).logits
    right_BT = said_BTV.argmax(-1) == lesson.tokens_BU[:, 1:]
    inside_BT = torch.arange(right_BT.shape[1]) < lesson.ends_B[:, None]
    assert torch.equal((accepted_BC > 0) & inside_BT, right_BT & inside_BT)
    assert 0 < int(right_BT[inside_BT].sum()) < int(inside_BT.sum())


def test_layers_of_the_verifier_are_copied_where_they_fit() -> None:
    verifier = shared_model("marian")
    fitting = ParallelNetwork(replace(parallel_shape(verifier), feed_forward=verifier.config.decoder_ffn_dim))
    assert copy_layers(fitting, verifier)
    mine, theirs = fitting.layers[0].state_dict(), verifier.get_decoder().layers[-1].state_dict()
    width = fitting.shape.head_width
    for name, first, other in (("fc1.", 0, "fc1."), ("encoder_attn.kv_proj.", width, "encoder_attn.v_proj.")):
        for part in ("weight", "bias"):
            assert torch.equal(mine[name + part][first : first + width].double(), theirs[other + part][:width])
    assert not copy_layers(ParallelNetwork(replace(fitting.shape, feed_forward=8)), verifier)
    assert not copy_layers(ParallelNetwork(parallel_shape(shared_model("t5"))), shared_model("t5"))


def test_tokens_per_iteration_walks_from_cut_to_cut() -> None:
    one = torch.zeros(1, dtype=torch.int64)
    nothing = torch.zeros(1)
    lesson = Lesson(nothing, one + 1, one + 9, nothing, None, None, None)
    accepted_BC = torch.tensor([[3, 9, 9, 9, 0, 5, 9, 9]])
    # From the first cut: 3 accepted and one more, the fifth: none and one more, the sixth: cut off by the end.
    assert tokens_per_iteration(accepted_BC, lesson, 8) == (8, 3)
    assert tokens_per_iteration(accepted_BC, lesson, 1) == (8, 5)
