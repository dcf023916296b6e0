"""A comparison: ways are what they say, samples stand for the corpus, advice follows from the figures."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from cmasd.config import Config, from_dict
from cmasd.config.rules import check
from cmasd.config.tree import COMPARED, COMPARED_WHEN_ASKED
from cmasd.core import RowError
from cmasd.engine import Pair
from cmasd.errors import InputError
from cmasd.evaluation import ways as ways_module
from cmasd.evaluation.baseline import EngineDecoder
from cmasd.evaluation.bench import Watcher
from cmasd.evaluation.compare import Compared, Comparison, by_position, compare
from cmasd.evaluation.cost import accelerator_hours, mean_estimate, student_95, widest
from cmasd.evaluation.peers import HfGenerate
from cmasd.evaluation.recommend import recommend
from cmasd.evaluation.sample import Sample, read_sample
from cmasd.evaluation.significance import paired_scores
from cmasd.evaluation.speed import FEWEST_CHUNKS, Measured
from cmasd.evaluation.ways import WAYS, way_config
from cmasd.runner.text import TextCodec
from tests.unit.engine.pairs import ragged_requests, shared_pair, tiny_config

PEERS = ["ar_beam", "hf_generate"]
NAMES = [*(name for name in COMPARED if name != "ctranslate2"), *COMPARED_WHEN_ASKED]
SOURCES = [request.source for request in ragged_requests(11, seed=3)]


class Words:
    """Turns ids into text as they are, and texts of one word or more into as many ids."""

    def decode(self, rows: list[list[int]]) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]

    def encode(self, texts: list[str]) -> list[list[int] | RowError]:
        return [list(range(len(text.split()))) if text != "bad" else RowError("encode", "bad") for text in texts]


class Log(Watcher):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.left_out: dict[str, str] = {}

    def skipped(self, engine: str, reason: str) -> None:
        self.left_out[engine] = reason


def with_words(family: str, max_new_tokens: int = 6) -> Pair:
    return replace(shared_pair(family, "noisy", max_new_tokens=max_new_tokens), codec=cast(TextCodec, Words()))


def configured(**sections: dict[str, Any]) -> Config:
    asked = {"engines": NAMES, "max_seconds": 0.01, **sections.pop("compare", {})}
    return tiny_config(compare=asked, drafter={"max_draft_tokens": 3}, **sections)


def a_sample(count: int = 11) -> Sample:
    return Sample(SOURCES[:count], [f"{i} 5 7 9 {i}" for i in range(count)], corpus_rows=1000.0)


@pytest.fixture(scope="module", params=["marian", "t5", "llama"])
def measured(request: pytest.FixtureRequest) -> Comparison:
    config = configured(cost={"accelerator_per_hour": 3.0}, verification={"beta": 64, "tau": 50.0})
    return compare(with_words(request.param), config, a_sample())


def test_every_way_is_measured_on_the_same_rows(measured: Comparison) -> None:
    assert [one.name for one in measured.results] == NAMES
    assert {(one.batch_size, one.rows, one.chunks) for one in measured.results} == {
        (3, 4 * FEWEST_CHUNKS, FEWEST_CHUNKS)
    }, "no time: the fewest rounds of the fewest rows"
    assert {one.scored_rows for one in measured.results} == {11}


def test_figures_agree(measured: Comparison) -> None:
    plain = measured.results[0]
    assert (plain.name, plain.speedup, plain.exact_match, plain.relative_bleu) == ("ar_greedy", 1.0, 1.0, 100.0)
    for one in measured.results:
        assert one.speedup == pytest.approx(one.tokens_per_second / plain.tokens_per_second)
        assert 0 < one.speedup_low <= one.speedup_high
        assert one.accelerator_hours_low <= one.accelerator_hours <= one.accelerator_hours_high
        seconds = one.output_tokens / one.tokens_per_second
        assert one.accelerator_hours == pytest.approx(seconds / one.rows * 1000 / 3600)
        assert one.cost == pytest.approx(3 * one.accelerator_hours)
        assert one.cost_high == pytest.approx(3 * one.accelerator_hours_high)


def test_lossless_ways_give_the_tokens_of_plain(measured: Comparison) -> None:
    ours = {one.name: one for one in measured.results if one.name in WAYS}
    exact = {name for name, one in ours.items() if one.lossless == "exact"}
    assert exact == {"ar_greedy", "fixed_exact", "adaptive_k", "goodput"}
    assert {(ours[name].exact_match, ours[name].mean_gap_nats) for name in exact} == {(1.0, 0.0)}
    assert {one.lossless for name, one in ours.items() if name not in exact} == {"lossy"}


def test_a_lossy_way_has_a_gap() -> None:
    config = configured(compare={"engines": ["fixed_relaxed"]}, verification={"beta": 64, "tau": 50.0})
    _, relaxed = compare(with_words("marian"), config, a_sample()).results
    assert relaxed.mean_gap_nats
    assert relaxed.exact_match < 1


def test_counters_agree(measured: Comparison) -> None:
    for one in measured.results:
        if one.name in PEERS:
            assert one.acceptance_by_position is None
            assert one.tokens_per_iteration is one.mean_gap_nats is None
        elif one.acceptance_rate is None:
            assert one.wasted_tokens_per_output_token == 0
            assert one.rollback_rate is None
        else:
            assert one.acceptance_by_position is not None
            assert len(one.acceptance_by_position) == 3
            assert one.wasted_tokens_per_output_token is not None
            known = [share for share in one.acceptance_by_position if share is not None]
            assert min(known) <= one.acceptance_rate <= max(known)
    fixed = next(one for one in measured.results if one.name == "fixed_relaxed")
    assert fixed.tokens_per_iteration is not None
    assert fixed.tokens_per_iteration > 1


def test_acceptance_by_position_does_not_depend_on_telemetry() -> None:
    names = {"engines": ["fixed_exact", "adaptive_k"]}
    found = [
        compare(with_words("marian"), configured(compare=names, telemetry={"level": level}), a_sample()).results
        for level in ("none", "token")
    ]
    shares = [[one.acceptance_by_position for one in results] for results in found]
    assert shares[0] == shares[1]
    assert shares[0][0] is None, "plain drafts nothing"
    rate, known = found[0][1].acceptance_rate, [share for share in shares[0][1] or [] if share is not None]
    assert rate is not None
    assert min(known) <= rate <= max(known)


def test_scores_are_against_references(measured: Comparison) -> None:
    assert set(measured.signatures) == {"bleu", "chrf"}
    for one in measured.results:
        assert one.scores is not None
        assert (one.scores.bleu_p_value is None) == (one.name == "ar_greedy")
        assert one.to_dict()["bleu"] == one.scores.bleu


def test_rows_are_json(measured: Comparison) -> None:
    read = json.loads(json.dumps([one.to_dict() for one in measured.results]))
    assert set(read[0]) >= {field.name for field in fields(Compared)} - {"scores"}


def test_a_way_differs_in_policy_and_verification_alone() -> None:
    config = configured(verification={"kind": "sampling", "tau": 1.0}, policy={"kind": "paper", "alpha": 0.7})
    for name, way in WAYS.items():
        one = way_config(name, config)
        check(one)
        assert (one.policy.kind, one.verification.kind) == (way.policy, way.verification)
        assert one.quality_budget == (0.02 if name == "goodput_budget" else 0)
        same_policy = replace(one.policy, kind="paper", quality_budget_nats_per_token=0.0)
        same_rule = replace(one.verification, kind="sampling", tau_form="prose")
        assert replace(one, policy=same_policy, verification=same_rule) == config
    assert way_config("paper_printed", config).verification.tau_form == "printed"
    assert way_config("paper_prose", config).verification.tau_form == "prose"


def test_ways_have_the_names_that_may_be_asked_for() -> None:
    assert {*WAYS, *PEERS, "ctranslate2"} == {*COMPARED, *COMPARED_WHEN_ASKED}


def test_a_pair_without_a_drafter(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any) -> Any:
        raise RuntimeError("no memory\nat all")

    monkeypatch.setattr(ways_module, "hf_contender", fails)
    log, pair = Log(), replace(with_words("marian", 2), drafter=None)
    sample = replace(a_sample(), references=None)
    result = compare(pair, configured(telemetry={"level": "none"}), sample, watcher=log)
    assert [one.name for one in result.results] == ["ar_greedy"]
    drafting = set(NAMES) - {"ar_greedy", *PEERS}
    assert log.left_out == {**dict.fromkeys(drafting, "the pair has no drafter"), **dict.fromkeys(PEERS, "no memory")}
    [plain] = result.results
    assert (plain.scores, plain.cost, plain.acceptance_by_position) == (None, None, None)
    assert plain.to_dict()["bleu"] is None
    assert result.signatures == {}


def test_plain_is_measured_unasked_and_must_work(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured(compare={"engines": ["fixed_exact"]})
    result = compare(with_words("marian", 2), config, a_sample())
    assert [one.name for one in result.results] == ["ar_greedy", "fixed_exact"]

    def fails(*arguments: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(EngineDecoder, "decode", fails)
    with pytest.raises(RuntimeError, match="broken"):
        compare(with_words("marian", 2), config, a_sample())


@pytest.mark.parametrize(("asked", "stops_at"), [(1e9, FEWEST_CHUNKS), (1e-9, 500)])
def test_rounds_go_on_until_costs_are_known(asked: float, stops_at: int) -> None:
    config = configured(compare={"engines": ["ar_greedy"], "max_relative_ci": asked, "max_seconds": 600.0})
    [plain] = compare(with_words("marian", 1), config, a_sample(2)).results
    assert plain.chunks == stops_at
    assert plain.scored_rows == 2, "rows that came again are scored once"


def test_ar_beam_searches() -> None:
    pair, requests = with_words("marian", 6), ragged_requests(4, seed=5, max_new_tokens=6)
    requests = [replace(request, max_new_tokens=6) for request in requests]
    found = HfGenerate(pair, 1, beams=5).decode(requests)
    model: Any = pair.verifier
    for request in requests:
        row = model.generate(torch.tensor([request.source]), num_beams=5, do_sample=False, max_new_tokens=6)
        assert found[request.key] == row[0, 1:].tolist()


# -------------------------------------------------------------------- the sample


@pytest.mark.parametrize(("count", "rows"), [(100, 8), (100, 7), (3, 8), (1, 4)])
def test_chunks_are_stratified_by_length(count: int, rows: int) -> None:
    sources = [[0] * int(length) for length in np.random.default_rng(0).permutation(count)]
    chunks = Sample(sources, None, count).chunks(rows, most=count // rows or 2)
    assert {len(chunk) for chunk in chunks} == {rows}
    flat = [place for chunk in chunks for place in chunk]
    if count >= rows:
        assert len(set(flat)) == len(flat), "no row twice as long as there are others"
    ranked = np.sort([[len(sources[place]) for place in chunk] for chunk in chunks], axis=1)
    assert (np.ptp(ranked, axis=0) <= count / rows + 1).all(), "chunks have like lengths"


def test_a_sample_is_read_from_all_over_the_corpus(tmp_path: Path) -> None:
    rows = [{"text": f"{'word ' * (i % 9)}end", "de": f"ref {i}" if i % 2 else None} for i in range(3000)]
    rows[0]["text"] = rows[300]["text"] = "bad"
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = from_dict({"input": {"path": f"{tmp_path}/in.jsonl"}, "output": {"path": "out", "rows_per_shard": 30}})
    codec = cast(TextCodec, Words())
    sample = read_sample(config, codec, "de", rows=64)
    assert 60 <= len(sample.sources) <= 64
    assert sample.references is not None
    places = [int(reference.split()[1]) for reference in sample.references if reference]
    assert max(places) - min(places) > 2500
    assert all(len(sample.sources[i]) == int(ref.split()[1]) % 9 + 1 for i, ref in enumerate(sample.references) if ref)
    assert sample.corpus_rows == pytest.approx(3000 * len(sample.sources) / 64)
    whole = read_sample(config, codec, rows=10**6)
    assert (whole.references, len(whole.sources)) == (None, 960 - 1), "of 32 shards, all rows that can be encoded"


def test_a_corpus_without_a_good_row(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("bad\nbad\n")
    config = from_dict({"input": {"path": f"{tmp_path}/in.txt"}, "output": {"path": "out"}})
    with pytest.raises(InputError, match="none of 2 rows can be encoded"):
        read_sample(config, cast(TextCodec, Words()))


# -------------------------------------------------------------------- intervals, counts, scores, advice


def test_intervals_are_students() -> None:
    estimate = mean_estimate([1.0, 2.0, 3.0])
    assert estimate.value == 2.0
    assert estimate.high == pytest.approx(2 + 4.303 / math.sqrt(3))
    assert estimate.relative_ci == pytest.approx(4.303 / math.sqrt(3) / 2)
    assert mean_estimate([5.0]).relative_ci == math.inf
    for freedom, expected in {6: 2.4469, 9: 2.2622, 15: 2.1314, 30: 2.0423, 1000: 1.9623}.items():
        assert student_95(freedom) == pytest.approx(expected, rel=1e-3)


def test_the_interval_holds_the_true_cost_in_95_of_100_corpora() -> None:
    random = np.random.default_rng(1)
    drawn = [mean_estimate(list(random.normal(10, 2, 4))) for _ in range(2000)]
    held = np.mean([one.low <= 10 <= one.high for one in drawn])
    assert 0.935 < held < 0.965


def test_hours_of_the_whole_corpus() -> None:
    one, other = Measured([36.0, 36.0], [1, 1]), Measured([36.0, 72.0], [1, 1])
    hours = accelerator_hours(one, chunk_rows=10, corpus_rows=5000)
    assert (hours.low, hours.value, hours.high) == (5.0, 5.0, 5.0)
    assert widest([one, other]) == pytest.approx(mean_estimate([36.0, 72.0]).relative_ci)


def test_acceptance_by_position() -> None:
    # Ten iterations drafted nothing, four one token, six two; of these eight kept none, ... and one kept both.
    assert by_position(np.array([[10, 4, 6, 0], [14, 5, 1, 0]])) == [0.6, 1 / 6, None]
    assert by_position(np.zeros((2, 4), dtype=np.int64)) is None


def test_scores_are_paired_with_the_first() -> None:
    references = ["a b c d e", "f g h i j", "", "k l m n o"]
    texts = {"one": list(references), "same": list(references), "bad": ["x", "y", "z", "w"]}
    texts["one"][2] = "of a row without a reference"
    scores, signatures = paired_scores(texts, references)
    assert scores["one"].bleu == pytest.approx(100)
    assert scores["bad"].bleu == pytest.approx(0, abs=1e-3)
    assert scores["one"].bleu_p_value is None
    assert (scores["same"].bleu_p_value, scores["same"].chrf_p_value) == (1, 1)
    assert (scores["bad"].bleu_p_value or 1) < 0.2
    assert "bs:1000" in signatures["bleu"]
    assert paired_scores(texts, None) == ({}, {})
    assert paired_scores(texts, [""] * 4) == ({}, {})


def test_rouge_where_it_is_installed() -> None:
    pytest.importorskip("rouge_score", reason="rouge-score is not installed (extra `bench`)")
    scores, _ = paired_scores({"one": ["a b c d"], "half": ["a b"]}, ["a b c d"])
    assert (scores["one"].rouge1, scores["one"].rougeLsum) == (100, 100)
    assert scores["half"].rouge1 == pytest.approx(100 * 2 / 3)


def way(name: str, speedup: float, low: float, high: float, lossless: str = "exact") -> Compared:
    figures = {"name": name, "speedup": speedup, "speedup_low": low, "speedup_high": high, "lossless": lossless}
    return cast(Compared, SimpleNamespace(**figures))


def test_only_a_lossless_way_that_is_faster_beyond_doubt_is_recommended() -> None:
    plain = way("ar_greedy", 1, 1, 1)
    unsure, sure = way("goodput", 1.3, 0.98, 1.6), way("fixed_exact", 1.2, 1.1, 1.3)
    lossy, peer = way("fixed_relaxed", 1.6, 1.5, 1.7, "lossy"), way("ctranslate2", 3.0, 2.5, 3.5)
    int8, beam = way("ctranslate2_int8", 5.0, 4.0, 6.0, "lossy"), way("ar_beam", 2.0, 1.9, 2.1, "beam search")
    assert recommend([plain]).choice is plain
    assert recommend([plain]).best_drafting is None
    advice = recommend([plain, unsure])
    assert (advice.choice, advice.best_drafting) == (plain, unsure)
    advice = recommend([plain, sure, lossy, peer, int8, beam])
    assert (advice.choice, advice.faster_lossy, advice.faster_peer) == (sure, lossy, peer)
    advice = recommend([plain, way("fixed_exact", 1.55, 1.4, 1.65), lossy])
    assert advice.faster_lossy is None, "within the noise of the choice"
