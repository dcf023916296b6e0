"""A comparison: ways are what they say, and figures agree with each other."""

import json
from dataclasses import fields, replace
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch

from cmasd.checkpoints.by_name import Model
from cmasd.codecs.text import TextCodec
from cmasd.config import Config
from cmasd.config.comparing import COMPARED, COMPARED_WHEN_ASKED, STITCHED
from cmasd.config.rules import check
from cmasd.core import Request, RowError
from cmasd.engine import Pair
from cmasd.engine.tail import MOST_DRAFTED
from cmasd.evaluation.compare import comparison as comparison_module
from cmasd.evaluation.compare import ways as ways_module
from cmasd.evaluation.compare.comparison import Compared, Comparison, by_position, compare
from cmasd.evaluation.compare.sample import Sample
from cmasd.evaluation.compare.ways import WAYS, way_config
from cmasd.evaluation.speed.bench import BenchWatcher
from cmasd.evaluation.speed.peers import HfGenerate, stock_verifier
from cmasd.evaluation.speed.request_decoder import EngineDecoder
from cmasd.evaluation.speed.timing import FEWEST_CHUNKS
from tests.unit.engine.pairs import decode_plain, ragged_requests, shared_pair, tiny_config, tokens_of

PEERS = ["ar_beam", "hf_generate"]
NAMES = [name for name in (*COMPARED, *COMPARED_WHEN_ASKED) if name not in ("ctranslate2", "previous", *STITCHED)]
SOURCES = [request.source for request in ragged_requests(11, seed=3)]


class Words:
    """Turns ids into text as they are, and texts of one word or more into as many ids."""

    tokens: ClassVar[dict[str, int]] = {}

    def decode(self, rows: list[list[int]]) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]

    def encode(self, texts: list[str]) -> list[list[int] | RowError]:
        return [list(range(len(text.split()))) if text != "bad" else RowError("encode", "bad") for text in texts]


class Log(BenchWatcher):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.left_out: dict[str, str] = {}

    def skipped(self, engine: str, reason: str) -> None:
        self.left_out[engine] = reason


def with_words(family: str, max_new_tokens: int = 6) -> Pair:
    return replace(shared_pair(family, "noisy", max_new_tokens=max_new_tokens), codec=cast(TextCodec, Words()))


def configured(**sections: dict[str, Any]) -> Config:
    asked = {"engines": NAMES, "max_seconds": 0.01, **sections.pop("compare", {})}
    drafter = {"max_draft_tokens": 3, **sections.pop("drafter", {})}
    return tiny_config(compare=asked, drafter=drafter, **sections)


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
    assert exact == {"ar_greedy", "fixed_exact", "adaptive_k", "goodput", "copy", "memory", "all"}
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
            assert 1 <= len(one.acceptance_by_position) <= MOST_DRAFTED
            assert one.acceptance_by_position[-1] is not None, "as far as any draft reached"
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
    config = replace(config, compare=replace(config.compare, quality_budget_nats_per_token=0.05))
    for name, way in WAYS.items():
        if way.drafters:
            continue
        one = way_config(name, config)
        check(one)
        assert (one.policy.kind, one.verification.kind) == (way.policy, way.verification)
        assert (one.verification.kind == "budget") == (name == "goodput_budget")
        assert one.verification.budget_nats_per_token == 0.05, "that of the comparison"
        same_policy = replace(one.policy, kind="paper")
        same_rule = replace(one.verification, kind="sampling", tau_form="prose", budget_nats_per_token=0.02)
        assert replace(one, policy=same_policy, verification=same_rule) == config
    assert way_config("paper_printed", config).verification.tau_form == "printed"
    assert way_config("paper_prose", config).verification.tau_form == "prose"


@pytest.mark.parametrize(
    ("name", "drafter", "models", "kinds"),
    [
        ("copy", {}, {}, ["copy"]),
        ("memory", {"previous": "a", "kind": "previous"}, {}, ["memory"]),
        ("previous", {"previous": "a", "kind": ["copy", "previous"]}, {}, ["previous"]),
        ("all", {}, {}, ["memory", "copy", "recycle", "model"]),
        ("all", {}, {"drafter": None}, ["memory", "copy"]),
        ("all", {"kind": "self"}, {"drafter": None}, ["memory", "copy", "recycle", "self"]),
        (
            "all",
            {"previous": "a", "kind": ["previous", "parallel"]},
            {},
            ["previous", "memory", "copy", "recycle", "parallel"],
        ),
        ("all", {"previous": "a", "kind": "previous"}, {}, ["previous", "memory", "copy"]),
    ],
)
def test_a_way_of_free_drafts(name: str, drafter: dict[str, Any], models: dict[str, Any], kinds: list[str]) -> None:
    one = way_config(name, tiny_config(drafter=drafter, models=models))
    check(one)
    assert one.drafter.kind == kinds
    assert one.drafter.previous == ("a" if "previous" in kinds else None)
    assert (one.policy.kind, one.lossless) == ("goodput", "exact")


def test_without_an_earlier_run_there_is_no_such_way() -> None:
    log = Log()
    config = configured(compare={"engines": ["previous", "copy"]})
    result = compare(with_words("marian", 2), config, a_sample(), watcher=log)
    assert [one.name for one in result.results] == ["ar_greedy", "copy"]
    assert log.left_out == {"previous": "drafter.previous names no run"}


def test_an_earlier_run_drafts_for_the_rows_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the rows' ids, wherever chunks have them."""
    pair, sample = with_words("marian", 8), replace(a_sample(), ids=[f"r{place}" for place in range(11)])
    outputs = tokens_of(decode_plain(pair, [Request(i, source, 8) for i, source in enumerate(SOURCES)]))

    def said(config: Config, pair: Pair, ids: Any) -> list[list[int] | None]:
        assert ids == sample.ids
        return [outputs[int(one[1:])] for one in ids]

    monkeypatch.setattr(comparison_module, "previous_outputs", said)
    config = configured(
        compare={"engines": ["fixed_exact"]}, drafter={"kind": "previous", "previous": "a", "max_draft_tokens": 8}
    )
    [_, drafting] = compare(pair, config, sample).results
    assert drafting.acceptance_rate == 1.0
    assert drafting.tokens_per_iteration == 8.0


def test_ways_have_the_names_that_may_be_asked_for() -> None:
    assert {*WAYS, *PEERS, *STITCHED, "ctranslate2"} == {*COMPARED, *COMPARED_WHEN_ASKED}


def test_a_pair_without_a_drafter(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any) -> Any:
        raise RuntimeError("no memory\nat all")

    monkeypatch.setattr(ways_module, "hf_contender", fails)
    log, pair = Log(), replace(with_words("marian", 2), drafter=None)
    sample = replace(a_sample(), references=None)
    result = compare(pair, configured(telemetry={"level": "none"}), sample, watcher=log)
    assert [one.name for one in result.results] == ["ar_greedy", "copy", "memory"]
    drafting = set(NAMES) - {"ar_greedy", "copy", "memory", *PEERS}
    assert log.left_out == {**dict.fromkeys(drafting, "the pair has no drafter"), **dict.fromkeys(PEERS, "no memory")}
    plain = result.results[0]
    assert (plain.scores, plain.cost, plain.acceptance_by_position) == (None, None, None)
    assert plain.to_dict()["bleu"] is None
    assert result.signatures == {}


def test_peers_share_one_model_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large one there is memory for no more."""
    made: list[Pair] = []

    def stock(pair: Pair, config: Config) -> Model:
        made.append(pair)
        return stock_verifier(pair, config)

    monkeypatch.setattr(ways_module, "stock_verifier", stock)
    config = configured(telemetry={"level": "none"}, compare={"engines": ["hf_generate", "ar_beam", "ctranslate2"]})
    batch = [Request(0, [5, 6], 2)]
    warm, _ = ways_module.first_batch(with_words("marian", 2), config, 1, batch, lambda name, reason: None)
    assert [one.engine for one in warm[:3]] == ["ar_greedy", "hf_generate", "ar_beam"]
    assert len(made) == 1


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


# -------------------------------------------------------------------- intervals, counts, scores, advice


def test_acceptance_by_position() -> None:
    # Ten iterations drafted nothing, four one token, six two; of these eight kept none, ... and one kept both.
    assert by_position(np.array([[10, 4, 6, 0], [14, 5, 1, 0]])) == [0.6, 1 / 6], "no draft had three"
    assert by_position(np.zeros((2, 4), dtype=np.int64)) is None
