"""A parallel drafter of a model that hears: learned from what was said of recordings, lossless in the engine."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cmasd.checkpoints.by_name import load_tokenizer
from cmasd.errors import ConfigError, InputError
from cmasd.models.parallel_network import ParallelNetwork
from cmasd.runner.load import parallel_shape
from cmasd.training.corpus import Corpus, Side, write_shortlist
from cmasd.training.heard_corpus import Lessons, build_heard_corpus, listen_to_sounds
from cmasd.training.parallel_drafter import build_network, drafted_ids
from cmasd.training.parallel_loss import DrafterWords, accepted, choose_steps, loss_of, tokens_per_iteration
from cmasd.training.recipe import DataRecipe, ParallelRecipe
from tests.unit.engine.hearing import hearing_pair, requests, sound, whisper
from tests.unit.engine.pairs import decode, decode_plain, tiny_config, tokens_of
from tests.unit.runner import tiny_whisper as tiny

QUERIES = 4
FIXED: dict[str, Any] = {"policy": {"kind": "fixed"}, "confidence": {"kind": "max_prob"}}
DRAFTER = {"kind": "parallel", "max_draft_tokens": QUERIES}


def test_what_is_learned_is_what_the_engine_accepts() -> None:
    """Rows of several languages, with a start of four tokens; a long recording with timestamps is lossless as well."""
    model, pair = whisper(), hearing_pair(whisper(), None)
    sounds = [sound(model, 5000 + 700 * seed, seed, language=("en", "de")[seed % 2]) for seed in range(10)]
    said = tokens_of(decode_plain(pair, requests(sounds)))
    lesson = listen_to_sounds(model, sounds, [said[key] for key in range(len(sounds))], tiny.FRAMES)
    torch.manual_seed(0)
    network = ParallelNetwork(replace(parallel_shape(model), queries=QUERIES, feed_forward=64, rank=8)).double()
    words = DrafterWords.of(model, torch.arange(tiny.VOCABULARY))
    optimiser, generator = torch.optim.AdamW(network.parameters(), lr=1e-2), torch.Generator().manual_seed(0)
    for _ in range(60):
        loss_of(network, lesson, words, choose_steps(2, QUERIES, 4.0, generator), ParallelRecipe(tv=0.5)).backward()
        optimiser.step()
        optimiser.zero_grad()
    network.requires_grad_(False).eval()
    tokens, iterations = tokens_per_iteration(accepted(network, lesson, words)[0], lesson, QUERIES)
    assert tokens / iterations > 1.3
    fast = decode(replace(pair, parallel=network), tiny_config(**FIXED, drafter=DRAFTER, engine={"slots": 3}),
                  requests(sounds))  # fmt: skip
    assert tokens_of(fast) == said
    assert sum(result.num_iterations for result in fast.values()) == iterations
    mixed = [sound(model, 3 * tiny.SAMPLES + 1234, 3), *sounds[:2], sound(model, 9000, 4, timestamps=True)]
    both = {**DRAFTER, "kind": ["copy", "parallel"]}
    again = decode(replace(pair, parallel=network), tiny_config(**FIXED, drafter=both, engine={"slots": 2}),
                   requests(mixed))  # fmt: skip
    assert tokens_of(again) == tokens_of(decode_plain(pair, requests(mixed)))


def test_a_network_has_the_activation_of_the_layers_it_begins_with() -> None:
    model = whisper()
    hidden = model.get_decoder().layers[-1].fc1.out_features
    assert model.config.activation_function == "gelu"
    network = build_network(ParallelRecipe(feed_forward=hidden), model)
    assert (network.shape.activation, network.shape.norm_first) == ("gelu", True)


def test_few_recordings_leave_no_word_undraftable(tmp_path: Path) -> None:
    """What was never said follows what was, lowest ids first, up to as many tokens as are asked for."""
    model: Any = whisper()
    end = model.config.eos_token_id
    tokens = np.array([9, 9, 7, end], dtype=np.int32)
    side = Side(tokens, np.array([0, len(tokens)], dtype=np.int64))
    corpus = Corpus(side, side, np.ones(1))
    ids = drafted_ids(ParallelRecipe(shortlist=6), corpus, model)
    assert (ids[0], set(ids)) == (9, {9, 7, end, 0, 1, 2} if end > 2 else {9, 7, *range(4)})
    assert drafted_ids(ParallelRecipe(shortlist=2), corpus, model) == [end, 9]
    write_shortlist(corpus, tmp_path, ids)
    assert json.loads((tmp_path / "shortlist.json").read_text()) == ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("heard")
    tiny.save(made / "whisper")
    return made


def written(folder: Path, texts: list[str | None]) -> DataRecipe:
    soundfile = pytest.importorskip("soundfile")
    rows = []
    for seed, _ in enumerate(texts):
        path = folder / f"{seed}.wav"
        soundfile.write(path, tiny.noise(tiny.SAMPLES // 2 if seed else 2 * tiny.SAMPLES, seed), tiny.RATE)
        rows.append({"bytes": path.read_bytes(), "path": None})
    pq.write_table(pa.table({"audio": rows, "output": texts}), folder / "said.parquet")
    return DataRecipe(path=str(folder / "said.parquet"), audio_column="audio", target_column="output", language="en")


def test_rows_of_a_window_with_what_was_said(folder: Path) -> None:
    """Longer recordings, and those of which nothing was said, are left out; lessons are the same one by one."""
    pytest.importorskip("soxr")
    recipe = written(folder, ["w1 w2", "w3", None, "w4 w5 w6"])
    model: Any = tiny.tiny_whisper()
    name = str(folder / "whisper")
    heard = build_heard_corpus(recipe, name, model, load_tokenizer(name))
    rows = np.arange(len(heard.sounds))
    first, second = heard.corpus.target.lists(rows)
    assert first[-1] == second[-1] == tiny.END
    assert 1 < len(first) < len(second)
    assert heard.corpus.source.lists(rows) == [[0], [1]]
    lessons = Lessons(model, heard)
    for _ in range(2):  # made, then kept
        lesson = lessons.of([1, 0])
        whole = listen_to_sounds(model, heard.sounds[::-1], heard.corpus.target.lists(rows[::-1]), heard.frames)
        assert torch.equal(lesson.tokens_BU[0], whole.tokens_BU[0])
        assert torch.equal(lesson.ends_B, whole.ends_B)
        for row, end in enumerate(lesson.ends_B.tolist()):
            torch.testing.assert_close(lesson.hidden_BTd[row, :end], whole.hidden_BTd[row, :end], rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match=r"data\.language: must name what is spoken, got None"):
        build_heard_corpus(replace(recipe, language=None), name, model, load_tokenizer(name))
    with pytest.raises(InputError, match="has no column said"):
        build_heard_corpus(replace(recipe, target_column="said"), name, model, load_tokenizer(name))


def test_trained_by_the_command_and_loaded_by_the_engine(folder: Path) -> None:
    from cmasd import Decoder
    from jobs.main import main

    recipe = written(folder, ["w0", "w1 w2", "w3 w2", "w4 w5 w6"])
    work, made, name = folder / "work", folder / "parallel", str(folder / "whisper")
    (folder / "recipe.yaml").write_text(
        f"kind: parallel\nrole: drafter\noutput: {made}\nwork: {work}\nparallel: {{verifier: {name}, queries: 4}}\n"
        f"data: {{path: {recipe.path}, audio_column: audio, target_column: output, language: en}}\n"
        "schedule: {steps: 4, warmup_steps: 1, batch_tokens: 16}\nthreads: 1\ncard: {title: tiny}\n"
    )
    assert main(["train", str(folder / "recipe.yaml")]) == 0
    clip = [tiny.noise(9000, 1)]
    plain = Decoder(name, models={"dtype": "float64"}, speech={"language": "en"}, input={"path": "-"})
    drafting = Decoder(
        name, str(made), models={"dtype": "float64"}, speech={"language": "en"}, input={"path": "-"},
        drafter={"kind": "parallel", "max_draft_tokens": 4}, policy={"kind": "fixed"},
    )  # fmt: skip
    [one], [other] = plain(cast(Any, clip)), drafting(cast(Any, clip))
    assert one.result is not None
    assert other.result is not None
    assert one.result.token_ids.tolist() == other.result.token_ids.tolist()
    assert other.result.num_drafted_tokens > 0
