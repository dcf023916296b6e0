"""Sums that are said step by step, by two crafted models: a task with a checkable answer that takes no training.

A token is a partial sum and the number of sevens still to be added; behind it comes the next sum, until none is left.
Either model knows its last token alone. The large one is right. The small one, by the sum that it has to say:

    sums 1, 4, 7   is in two minds between two spellings, and says the other one: another token, the same answer
    sums 2, 5      is in three minds, and says a wrong sum
    sum 8          is in many minds, and says the right sum
    others         is sure, and right

So entropy alone cannot tell what matters, nor can whether both models say the same; the answer can.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
import transformers as hf
from transformers import PreTrainedModel

from cmasd.codecs.text import TextCodec
from cmasd.config import Config
from cmasd.engine import Pair
from cmasd.generation.constraints import Constraints
from cmasd.policies.latency import ForwardPrice, Latency
from cmasd.training.recipe import Recipe, RouterRecipe, ScheduleRecipe
from cmasd.training.router_rollouts import CheckedQuestion, Rollouts, rollout_config
from tests.unit.engine.pairs import tiny_config

EOS, FIRST, STEPS, VOCABULARY = 2, 3, 4, 104
SPELLINGS, WRONG, UNSURE = (1, 4, 7), (2, 5), (8,)
SURE = 14.0
PRICES = Latency(small=ForwardPrice(1.0, 0.0, 0.0), large=ForwardPrice(4.0, 0.1, 0.0))


def token(total: int, left: int, spelling: int = 0) -> int:
    """Its id."""
    return FIRST + (left * 10 + total % 10) * 2 + spelling


def table(is_small: bool) -> torch.Tensor:
    """(V, V) logits behind each token."""
    logits_VV = torch.zeros(VOCABULARY, VOCABULARY, dtype=torch.float64)
    for left in range(STEPS + 1):
        for total in range(10):
            for spelling in (0, 1):
                logits_V = logits_VV[token(total, left, spelling)]
                if left == 0:
                    logits_V[EOS] = SURE
                    continue
                said, after = (total + 7) % 10, left - 1
                logits_V[token(said, after)] = SURE
                if is_small and said in SPELLINGS:
                    logits_V[token(said, after, 1)] = SURE + 0.3
                elif is_small and said in WRONG:
                    logits_V[token(said + 1, after)] = SURE + 0.3
                    logits_V[token(said + 2, after)] = SURE - 0.3
                elif is_small and said in UNSURE:
                    logits_V[:60] = SURE - 3.0
                    logits_V[token(said, after)] = SURE
    return logits_VV


@cache
def crafted(is_small: bool) -> PreTrainedModel:
    """A Llama whose layer does nothing: its output layer is the table."""
    config = hf.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=VOCABULARY,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=8,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=EOS,
    )
    torch.manual_seed(0)
    model: Any = hf.LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(VOCABULARY))
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.lm_head.weight.copy_(table(is_small).T / VOCABULARY**0.5)
    return cast(PreTrainedModel, model)


def sums_pair() -> Pair:
    """Both."""
    return Pair(
        verifier=crafted(False),
        drafter=crafted(True),
        codec=cast(TextCodec, None),
        constraints=Constraints(eos_token_ids=(EOS,)),
        max_new_tokens=STEPS + 3,
        max_source_tokens=4,
    )


def questions() -> list[CheckedQuestion]:
    """Each sum to begin with, and what it comes to."""
    return [CheckedQuestion([token(total, STEPS)], str((total + 7 * STEPS) % 10)) for total in range(10)]


def grade(said: list[list[int]], answers: list[str]) -> list[bool]:
    """By the last sum said."""
    totals = [(one[-2] - FIRST) // 2 if len(one) > 1 and one[-1] == EOS else -1 for one in said]
    return [total == int(answer) for total, answer in zip(totals, answers, strict=True)]


def sums_config(slots: int = 80) -> Config:
    """Of an engine for rollouts."""
    return rollout_config(tiny_config(engine={"slots": slots}))


def sums_rollouts() -> Rollouts:
    """In one engine."""
    return Rollouts(sums_pair(), sums_config(), grade)


def sums_recipe(folder: Path, **schedule: Any) -> Recipe:
    """Of a router, for a few seconds."""
    recipe = Recipe(
        kind="router",
        output=str(folder / "router"),
        work=str(folder / "work"),
        router=RouterRecipe(
            config="unused", tau=0.02, hidden=16, warm_steps=60, prompts=10, rollouts=8, passes=2, latency_weight=0.5
        ),
        schedule=ScheduleRecipe(
            steps=12, warmup_steps=1, decay_share=0.2, learning_rate=0.05, weight_decay=0.0, clip_norm=1.0, seed=1
        ),
    )
    return replace(recipe, schedule=replace(recipe.schedule, **schedule))
