"""Rules of timestamps against `WhisperTimeStampLogitsProcessor`, position by position of ragged windows."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import WhisperTimeStampLogitsProcessor

from cmasd.generation.constraints import Constraints
from cmasd.generation.timestamps import Timestamps
from tests.unit.runner.tiny_whisper import END, FIRST, NONE, START, VOCABULARY, generation_config

PROMPT, HELD = [START, 62, 66], 9


def rules(most: int | None = None) -> Constraints:
    return Constraints(timestamps=Timestamps(NONE, FIRST, END, most))


def random_row(generator: torch.Generator, count: int) -> list[int]:
    """Words and timestamps, as no decoding would say them, too."""
    words = torch.randint(0, END, (count,), generator=generator)
    times = torch.randint(FIRST, VOCABULARY, (count,), generator=generator).sort().values
    return torch.where(torch.rand(count, generator=generator) < 0.5, words, times).tolist()


def expected(logits_V: Tensor, said: list[int], most: int | None) -> Tensor:
    config: Any = generation_config()
    config.max_initial_timestamp_index = most
    processor = WhisperTimeStampLogitsProcessor(config, begin_index=len(PROMPT))
    processed: Tensor = processor(torch.tensor([PROMPT + said]), logits_V[None].clone())[0]
    return processed


@pytest.mark.parametrize("most", [None, 4])
def test_every_position_is_as_transformers_has_it(most: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    for round_number in range(40):
        rows, window = 3, 1 + round_number % 4
        counts = torch.randint(0, HELD - window + 1, (rows,), generator=generator).tolist()
        said = [random_row(generator, count + window) for count in counts]
        if round_number % 3 == 0:
            said[0], counts[0] = random_row(generator, window - 1), 0
            said[0] = [*said[0], 1]
        tokens_BL = torch.zeros(rows, len(PROMPT) + HELD, dtype=torch.int64)
        for row, one in enumerate(said):
            tokens_BL[row, : len(PROMPT) + counts[row]] = torch.tensor(PROMPT + one[: counts[row]])
        # The last known token of a row is fed first, so a window begins one place before what was said in it.
        starts_B = torch.tensor([len(PROMPT) + count - 1 for count in counts])
        last = [(PROMPT + one[:count])[-1] for one, count in zip(said, counts, strict=True)]
        window_BT = torch.tensor(
            [[token, *one[count : count + window - 1]] for token, one, count in zip(last, said, counts, strict=True)]
        )
        logits_BTV = torch.randn(rows, window, VOCABULARY, generator=generator) * 3
        prompts_B, limits_B = torch.full((rows,), len(PROMPT)), torch.full((rows,), 40)
        got_BTV = rules(most).apply(logits_BTV.clone(), tokens_BL, starts_B, prompts_B, limits_B, window_BT)
        for row in range(rows):
            for place in range(window):
                known = said[row][: counts[row] + place]
                want_V = expected(logits_BTV[row, place], known, most)
                assert torch.equal(got_BTV[row, place], want_V), (row, place, known)


def test_rows_without_timestamps_have_no_such_rules() -> None:
    rule, logits_BTV = rules(), torch.randn(2, 1, VOCABULARY)
    tokens_BL = torch.tensor([[START, 62, 66, NONE], [START, 62, 66, FIRST]])
    starts_B, prompts_B, limits_B = torch.tensor([3, 3]), torch.tensor([4, 3]), torch.tensor([9, 9])
    assert not rule.rests(tokens_BL, starts_B, prompts_B)
    got_BTV = rule.apply(logits_BTV.clone(), tokens_BL, starts_B, prompts_B, limits_B, tokens_BL[:, 3:])
    assert torch.equal(got_BTV[0], logits_BTV[0])
    assert not torch.equal(got_BTV[1], logits_BTV[1])


def test_rules_rest_where_no_row_begins() -> None:
    rule = Constraints(begin_suppressed=(7,), timestamps=Timestamps(NONE, FIRST, END, None))
    tokens_BL = torch.tensor([[START, 62, 66, NONE, 5, 6]])
    prompts_B = torch.tensor([4])
    assert not rule.rests(tokens_BL, torch.tensor([3]), prompts_B)
    assert rule.rests(tokens_BL, torch.tensor([4]), prompts_B)
    assert not Constraints(begin_suppressed=(7,), min_length=3, eos_token_ids=(1,)).rests(
        tokens_BL, torch.tensor([4]), prompts_B
    )
    assert Constraints().rests(tokens_BL, torch.tensor([3]), prompts_B)
