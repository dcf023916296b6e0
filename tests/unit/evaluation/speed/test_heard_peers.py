"""Peers that hear: CTranslate2's Whisper says what the engine's plain decoding says, and benches count audio."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from cmasd.core import Request
from cmasd.evaluation.compare.comparison import compare
from cmasd.evaluation.compare.sample import Sample
from cmasd.evaluation.speed.bench import bench
from cmasd.evaluation.speed.engines import Lineup
from cmasd.evaluation.speed.peers import CTranslate2Heard, load_ctranslate2
from tests.unit.engine.hearing import hearing_pair, requests, sound, whisper
from tests.unit.engine.pairs import decode_plain, tiny_config, tokens_of
from tests.unit.runner import tiny_whisper as tiny

SHORT, LONG = 7500, 2 * tiny.SAMPLES + 1234


@pytest.fixture
def asked() -> list[Request]:
    """Two languages, with timestamps and without, and one recording of three windows."""
    model = whisper()
    rows = [(SHORT, "de", False), (tiny.SAMPLES, "en", True), (12500, "de", False), (LONG, "fr", True)]
    sounds = [
        sound(model, samples, seed, language=language, timestamps=timed)
        for seed, (samples, language, timed) in enumerate(rows)
    ]
    some = requests(sounds)
    return [*some, replace(some[0], key=4, max_new_tokens=3)]


@pytest.mark.parametrize("ends", [False, True])
def test_ctranslate2_equals_plain_decoding(ends: bool, asked: list[Request]) -> None:
    pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed (extra `bench`)")
    pair = hearing_pair(_ending() if ends else whisper(), None)
    plain = decode_plain(pair, asked)
    assert len(plain[3].windows) > 1
    expected = tokens_of(plain)
    assert any(row[-1] == tiny.END for row in expected.values()) == ends
    converted = load_ctranslate2(pair, pair.verifier, threads=1)["float32"]
    for batch_size in (1, 3):
        assert CTranslate2Heard(pair, converted, batch_size).decode(asked) == expected


def test_a_bench_of_recordings_counts_their_seconds(asked: list[Request]) -> None:
    pair, sources = hearing_pair(whisper(), whisper(1)), [one.source for one in asked]
    names = ("plain", "goodput", "hf_generate")
    rows = list(bench(pair, tiny_config(), sources, [2], Lineup(names), chunks=2, rows=3))
    assert [row.engine for row in rows] == list(names)
    assert {row.rows for row in rows} == {6}
    assert {row.exact_match_to_plain for row in rows} == {1.0}
    for row in rows:
        assert row.audio_seconds_per_second is not None
        assert row.audio_seconds_per_second > 0


def test_a_comparison_of_recordings(asked: list[Request]) -> None:
    settings: dict[str, Any] = {"engine": {"slots": 2}, "compare": {"engines": ["goodput"], "max_seconds": 1.0}}
    config = tiny_config(**settings)
    found = compare(_with_texts(whisper(), whisper(1)), config, Sample([one.source for one in asked], None, 100.0))
    assert [one.name for one in found.results] == ["ar_greedy", "goodput"]
    assert all(one.exact_match == 1.0 and (one.audio_seconds_per_second or 0) > 0 for one in found.results)


@torch.no_grad()
def _ending() -> Any:
    """A model whose rows end: where the other one says a word that it says often."""
    said = tokens_of(decode_plain(hearing_pair(whisper(), None), requests([sound(whisper(), SHORT, 0, language="de")])))
    model: Any = tiny.tiny_whisper().double()
    model.proj_out.weight[tiny.END] = model.proj_out.weight[said[0][8]] * 1.2
    return model


def _with_texts(verifier: Any, drafter: Any) -> Any:
    class Codec:
        def decode(self, rows: list[list[int]]) -> list[str]:
            return [" ".join(map(str, row)) for row in rows]

    return hearing_pair(verifier, drafter, codec=Codec())
