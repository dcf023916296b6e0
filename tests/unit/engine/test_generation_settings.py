"""What a checkpoint's generation config says reaches the output: from a folder to ids, against `generate`."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import GenerationConfig

from cmasd.core import Request, RowError
from cmasd.errors import ModelError
from cmasd.generation.constraints import Constraints
from cmasd.generation.settings import SETTINGS
from tests.unit.engine.checkpoints import VOCABULARY, generated, loaded, outputs, save_checkpoint, words
from tests.unit.engine.pairs import decode, tiny_config, tokens_of
from tests.unit.runner.tiny import ENCODER_DECODER, FAMILIES, POSITIONS, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")
IDS: dict[str, int] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
TEXTS = [words(9), words(5, 2, 30), words(11, 40, 41, 7), words(0, 20, 1, 21, 3, 22)]


def equal(folder: Path, texts: Sequence[str | list[int]] = TEXTS, **sections: dict[str, Any]) -> list[list[int]]:
    """Our output, once it is known to be that of `generate`."""
    ours = outputs(loaded(folder, **sections), texts)
    assert ours == generated(folder, texts)
    return cast(list[list[int]], ours)


def value_of(name: str, said: list[list[int]]) -> Any:
    """One that changes what was `said`."""
    values: dict[str, Any] = {
        "max_length": 12,
        "max_new_tokens": 3,
        "min_length": 30,
        "min_new_tokens": 17,
        "decoder_start_token_id": 45,
        "bos_token_id": 46,
        "eos_token_id": [2, said[0][1]],
        "forced_bos_token_id": 33,
        "forced_eos_token_id": 50,
        "repetition_penalty": 0.3,
        "no_repeat_ngram_size": 1,
        "bad_words_ids": [[said[0][0]], [said[1][0], said[1][1]]],
        "suppress_tokens": [said[0][1]],
        "begin_suppress_tokens": [said[0][0]],
    }
    return values[name]


FOLLOWED = [name for name, setting in SETTINGS.items() if setting.kind == "followed"]
STARTS = ("decoder_start_token_id", "bos_token_id")
UNFELT = ("bart", "no_repeat_ngram_size")
"""No token comes twice there."""


BASE = {**IDS, "max_length": 24}


@pytest.fixture(scope="module", params=["bart", "t5", "llama"])
def before(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, list[list[int]], int]:
    """A family, what it says without the settings, and a token that ends most of its rows."""
    rows = equal(save_checkpoint(tmp_path_factory.mktemp("base"), request.param, BASE))
    assert max(map(len, rows)) > 17
    return request.param, rows, rows[0][4]


@pytest.mark.parametrize("name", [name for name in FOLLOWED if name != "remove_invalid_values"])
def test_what_is_followed_is_followed(name: str, before: tuple[str, list[list[int]], int], tmp_path: Path) -> None:
    """A setting changes the output, and to that of `generate`."""
    family, said, end = before
    if name in STARTS and family not in ENCODER_DECODER:
        return
    base = {**BASE, "eos_token_id": end} if name.startswith("min_") else BASE  # rows end early, and may not
    without = equal(save_checkpoint(tmp_path / "without", family, base)) if base is not BASE else said
    given = {**base, name: value_of(name, said)}
    if name == "bos_token_id":
        del given["decoder_start_token_id"]
    ours = equal(save_checkpoint(tmp_path / "with", family, given))
    assert (family, name) == UNFELT or ours != without


IDLE: dict[str, Any] = {
    "early_stopping": True,
    "length_penalty": 2.0,
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.5,
    "min_p": 0.3,
    "top_h": 0.4,
    "typical_p": 0.5,
    "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.1,
    "renormalize_logits": True,
    "use_cache": False,
    "pad_token_id": 5,
    "prefill_chunk_size": 2,
    "low_memory": True,
    "num_assistant_tokens": 3,
    "num_assistant_tokens_schedule": "heuristic",
    "assistant_confidence_threshold": 0.9,
    "prompt_lookup_num_tokens": 3,
    "assistant_ensemble_weight": 0.5,
    "disable_compile": True,
}
"""Those that transformers lets a tiny model have."""


@pytest.mark.parametrize("name", IDLE)
def test_what_is_idle_changes_nothing(name: str) -> None:
    assert SETTINGS[name].kind == "idle"
    model: Any = tiny_model("llama", layers=1).double()
    base = {**IDS, "max_length": 20}
    rows = []
    for settings in (base, {**base, name: IDLE[name]}):
        config = GenerationConfig(**settings)
        ids = torch.tensor([[9, 30, 7, 9, 30]])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0].tolist()
        rows.append((output, Constraints.from_generation_config(config, VOCABULARY)))
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("length", "expected"), [({"max_length": 10}, [9, 7, 6, 4]), ({"max_length": 100}, None), ({}, None)]
)
def test_a_prompt_counts_in_a_language_models_length(
    length: dict[str, int], expected: list[int] | None, tmp_path: Path
) -> None:
    ids = {**IDS, "eos_token_id": 63}
    folder = save_checkpoint(tmp_path, "llama", {**ids, **length})
    if not length:
        assert [len(cast(list[int], row)) for row in outputs(loaded(folder), TEXTS)] == [POSITIONS // 2] * 4
        return
    rows = equal(folder)
    assert expected is None or [len(row) for row in rows] == expected


def test_a_prompt_as_long_as_a_row_may_be_is_an_error_of_that_row(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, "llama", {**IDS, "max_length": 6})
    longest, too_long = outputs(loaded(folder), [words(9, 10, 11, 12, 13), words(9, 10, 11, 12, 13, 14)])
    assert [longest] == generated(folder, [words(9, 10, 11, 12, 13)])
    assert isinstance(too_long, RowError)
    assert "the source has 6 tokens; expected at most 5" in str(too_long)


def test_more_new_tokens_than_half_of_the_positions(tmp_path: Path) -> None:
    most = POSITIONS - 8
    folder = save_checkpoint(
        tmp_path, "gpt2", {**IDS, "eos_token_id": 63, "suppress_tokens": [63], "max_new_tokens": most}
    )
    pair = loaded(folder)
    assert outputs(pair, TEXTS) == generated(folder, TEXTS)
    [notice] = pair.notices
    assert notice.startswith(f"generation_config.max_new_tokens: {most} in the checkpoint; prompt and output share the")
    long = words(*range(4, 34))
    [row] = outputs(pair, [long])
    room = POSITIONS + 1 - 30
    assert [row] == generated(folder, [long], max_new_tokens=room)
    assert len(cast(list[int], row)) == room


def test_the_users_own_length_goes_first(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, "llama", {**IDS, "max_length": 10})
    rows = outputs(loaded(folder, engine={"max_new_tokens": 15}), TEXTS)
    assert rows == generated(folder, TEXTS, max_new_tokens=15)
    assert max(len(cast(list[int], row)) for row in rows) == 15


@pytest.mark.parametrize("family", ["bart", "mbart", "m2m100"])
def test_without_a_decoder_start_the_decoder_begins_with_bos(family: str, tmp_path: Path) -> None:
    """The model's own configuration names another, which transformers does not read here."""
    given = {"bos_token_id": 7, "eos_token_id": 2, "pad_token_id": 1, "max_length": 20}
    named = save_checkpoint(tmp_path / "named", family, {**given, "decoder_start_token_id": 2})
    assert equal(save_checkpoint(tmp_path / "bos", family, given)) != equal(named)
    listed = save_checkpoint(tmp_path / "listed", family, {**given, "decoder_start_token_id": [2]})
    assert equal(listed) == equal(named)


def test_a_start_of_several_tokens_is_refused_when_the_pair_is_loaded(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, "bart", {**IDS, "decoder_start_token_id": [2, 5]})
    with pytest.raises(ModelError, match=r"decoder_start_token_id: is no token to begin with, got \[2, 5\]"):
        loaded(folder)


@pytest.mark.parametrize("family", ["bart", "llama"])
def test_a_tokenizer_without_an_end_of_sequence(family: str, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, family, {**IDS, "max_length": 24, "eos_token_id": 30}, has_eos=False)
    pair = loaded(folder)
    assert cast(Any, pair.codec)._tokenizer.eos_token_id is None
    assert outputs(pair, TEXTS) == generated(folder, TEXTS)
    with pytest.raises(ModelError, match="nothing ends a row"):
        loaded(save_checkpoint(tmp_path / "none", family, {"decoder_start_token_id": 0}, has_eos=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_odd_generation_configs_of_every_family(family: str, tmp_path: Path) -> None:
    """Drawn settings together, special tokens in the text; and the same again with drafts."""
    choose = random.Random(FAMILIES.index(family))
    drawn: dict[str, Any] = {
        "max_length": choose.choice([16, 24, 40]),
        "min_length": choose.choice([0, 8]),
        "forced_bos_token_id": choose.choice([None, 0, 33]),
        "forced_eos_token_id": choose.choice([None, 2, [5, 2]]),
        "repetition_penalty": choose.choice([None, 0.7, 1.4]),
        "no_repeat_ngram_size": choose.choice([0, 2]),
        "suppress_tokens": choose.choice([None, [7, 9]]),
        "eos_token_id": choose.choice([2, [2, 30, 31, 32]]),
        "bad_words_ids": choose.choice([None, [[0]], [[4], [10, 17]]]),
    }
    model: Any = tiny_model(family, layers=1)
    start = {"decoder_start_token_id": model.config.decoder_start_token_id} if family in ENCODER_DECODER else {}
    folder = save_checkpoint(tmp_path, family, {"pad_token_id": 0, "bos_token_id": 1, **start, **drawn})
    sources = [[choose.choice([0, 1, 2, choose.randrange(3, 64)]) for _ in range(n)] for n in (1, 2, 4, 7)]
    plain, pair = equal(folder, sources), loaded(folder)
    requests = [Request(i, source, pair.max_new_tokens) for i, source in enumerate(sources)]
    drafting = tiny_config(policy={"kind": "fixed"}, drafter={"kind": "lookup", "max_draft_tokens": 3})
    assert tokens_of(decode(pair, drafting, requests)) == dict(enumerate(plain))


@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float32"])
def test_a_rounded_checkpoint_is_named(dtype: str, tmp_path: Path) -> None:
    pair = loaded(save_checkpoint(tmp_path, "marian", IDS), models={"dtype": dtype})
    told = (
        f"models.dtype: {dtype} rounds the verifier's float32 weights; what is said of outputs is said of the rounded"
    )
    assert [notice.startswith(told) for notice in pair.notices] == ([] if dtype == "float32" else [True])


class TestTokensPastTheModel:
    """A tokenizer that knows more tokens than the model has embeddings for."""

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("family", ["bart", "marian", "t5", "m2m100", "llama", "gpt2"])
    def test_their_rows_are_errors_and_no_others(self, family: str, dtype: str, tmp_path: Path) -> None:
        folder = save_checkpoint(tmp_path, family, {**IDS, "max_length": 16}, tokens=VOCABULARY + 2)
        good, past, last, other = outputs(
            loaded(folder, models={"dtype": dtype}), [words(9, 10), words(9, 64, 65), words(63), words(12, 65)]
        )
        assert isinstance(good, list)
        assert isinstance(last, list)
        told = "expected ids below 64, the size of its table"
        assert str(past) == f"encode: the model has no embedding for token 64 ('w64'); {told}"
        assert str(other) == f"encode: the model has no embedding for token 65 ('w65'); {told}"

    def test_a_text_that_is_cut_before_them_is_decoded(self, tmp_path: Path) -> None:
        folder = save_checkpoint(tmp_path, "llama", {**IDS, "max_length": 16}, tokens=VOCABULARY + 2)
        pair = loaded(folder, input={"on_too_long": "truncate"}, engine={"max_source_tokens": 2})
        cut, whole = outputs(pair, [words(9, 10, 64), words(9, 64)])
        assert cut == outputs(pair, [words(9, 10)])[0]
        assert isinstance(whole, RowError)

    def test_a_pad_outside_the_table_pads_nothing(self, tmp_path: Path) -> None:
        """-1 is what some checkpoints say where they have none."""
        folder = save_checkpoint(
            tmp_path, "llama", {"eos_token_id": 2, "max_length": 20}, model_config={"pad_token_id": -1}
        )
        assert outputs(loaded(folder), TEXTS) == generated(folder, TEXTS)
