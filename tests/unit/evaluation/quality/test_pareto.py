"""Speed against quality: settings are what they say, scores are sacrebleu's, gaps and fronts are right."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from cmasd.config import Config, from_dict
from cmasd.config.rules import check
from cmasd.core import Request
from cmasd.engine import Pair, load_pair
from cmasd.errors import ConfigError, InputError
from cmasd.evaluation.quality.pareto import BUDGETED, BUDGETS, TAUS, ParetoPoint, keeps, pareto, settings, with_fronts
from cmasd.evaluation.quality.references import first_pairs
from cmasd.evaluation.speed.request_decoder import EngineDecoder
from tests.unit.engine.pairs import noisy_copy
from tests.unit.training.small import save_small_model, sentences, write_rows

TEXTS = sentences(5, seed=4)
REFERENCES = [text.upper() for text in TEXTS]
Measurement = tuple[list[ParetoPoint], dict[str, str]]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    model = str(save_small_model(tmp_path_factory.mktemp("pareto")))
    tree = {
        "input": {"path": "in"},
        "output": {"path": "out"},
        "models": {"verifier": model, "drafter": model, "device": "cpu", "dtype": "float64"},
        "drafter": {"max_draft_tokens": 3},
        "verification": {"beta": 8, "tau": 4.0},
        "engine": {"slots": 2, "max_new_tokens": 6, "max_source_tokens": 20},
    }
    return from_dict(tree)


@pytest.fixture(scope="module")
def pair(config: Config) -> Pair:
    pair = load_pair(config)
    return replace(pair, drafter=noisy_copy(pair.verifier, noise=0.5))


@pytest.fixture(scope="module")
def sources(pair: Pair) -> list[list[int]]:
    return [ids for ids in pair.codec.encode(list(TEXTS)) if isinstance(ids, list)]


@pytest.fixture(scope="module")
def places() -> list[tuple[str, float]]:
    return []


@pytest.fixture(scope="module")
def measured(pair: Pair, config: Config, sources: list[list[int]], places: list[tuple[str, float]]) -> Measurement:
    return pareto(pair, config, sources, REFERENCES, 2, on_turn=lambda name, share: places.append((name, share)))


def test_every_setting_once_plain_first(measured: Measurement, places: list[tuple[str, float]]) -> None:
    points = measured[0]
    expected = [("plain", None), *(("goodput, budget", nats) for nats in BUDGETS)]
    expected += [(kind, nats) for kind in ("fixed, relaxed", "goodput, relaxed") for nats in TAUS]
    assert [(point.kind, point.nats) for point in points] == expected
    assert {point.kind for point in points} == {"plain", BUDGETED, "fixed, relaxed", "goodput, relaxed"}
    assert len({point.engine for point in points}) == len(points)
    assert len(places) == len(points) * points[0].chunks
    assert places[-1][1] == pytest.approx(1)


def test_settings_differ_in_policy_and_verification_alone(config: Config) -> None:
    config = replace(config, policy=replace(config.policy, kind="paper", alpha=0.7))
    for one in settings(config):
        check(one.config)
        kinds = (one.config.policy.kind, one.config.verification.kind)
        same_policy = replace(one.config.policy, kind="paper")
        same = replace(one.config, policy=same_policy, verification=config.verification)
        assert same == config
        if one.kind == "plain":
            assert (kinds, one.config.lossless) == (("plain", "exact"), "exact")
        elif one.kind == "goodput, budget":
            assert kinds == ("goodput", "budget" if one.nats else "exact")
            assert not one.nats or one.config.verification.budget_nats_per_token == one.nats
            assert one.config.verification.tau == 4.0, "what a single token may cost is the configuration's"
        else:
            assert kinds == (one.kind.split(",")[0], "relaxed")
            assert (one.config.verification.tau, one.config.verification.beta) == (one.nats, 8)


def test_plain_is_the_zero(measured: Measurement) -> None:
    plain = measured[0][0]
    assert (plain.ratio_to_plain, plain.ratio_low, plain.ratio_high) == (1, 1, 1)
    assert (plain.bleu_to_plain, plain.chrf_to_plain, plain.exact_match_to_plain) == (100, 100, 1)
    assert (plain.mean_gap_nats_per_token, plain.within_budget, plain.tokens_per_iteration) == (0, None, 1)


def test_exact_settings_equal_plain_and_lossy_ones_show(measured: Measurement) -> None:
    points = measured[0]
    exact = [point for point in points if point.lossless == "exact"]
    assert [point.engine for point in exact] == ["plain", "goodput, budget 0"]
    for point in exact:
        assert (point.exact_match_to_plain, point.bleu_to_plain, point.mean_gap_nats_per_token) == (1, 100, 0)
        assert point.bleu_to_references == points[0].bleu_to_references
    loosest = next(point for point in points if point.engine == f"fixed, relaxed {TAUS[-1]:g}")
    assert loosest.exact_match_to_plain < 1
    assert loosest.bleu_to_plain < 100
    assert 0 < loosest.mean_gap_nats_per_token <= TAUS[-1]


def test_the_budgets_promise(measured: Measurement) -> None:
    for point in measured[0]:
        assert (point.within_budget is None) == (point.kind != "goodput, budget")
        if point.within_budget is not None and point.nats is not None:
            assert point.within_budget
            assert point.life_gap_nats_per_token <= point.nats * 1.001


def test_a_gap_over_the_budget_is_seen() -> None:
    assert keeps(0.05, 0.05)
    assert keeps(0.05 * (1 + 1e-6), 0.05), "rounding"
    assert not keeps(0.051, 0.05)
    assert keeps(0.0, 0.0)
    assert not keeps(1e-9, 0.0)


def test_scores_are_those_of_sacrebleu(
    pair: Pair, config: Config, sources: list[list[int]], measured: Measurement
) -> None:
    """Decoded once more, fixed drafts under the widest tolerance do what they did."""
    points, signatures = measured
    setting = next(one for one in settings(config) if one.name == "fixed, relaxed 3")
    point = next(point for point in points if point.engine == setting.name)
    requests = [Request(i, source, pair.max_new_tokens) for i, source in enumerate(sources)]
    both = [EngineDecoder(pair, one.config).decode(requests) for one in (setting, settings(config)[0])]
    texts, plain = ([str(text) for text in pair.codec.decode([rows[i] for i in range(5)])] for rows in both)
    assert point.bleu_to_plain == pytest.approx(sacrebleu.corpus_bleu(texts, [plain]).score, abs=0.006)
    assert point.chrf_to_plain == pytest.approx(sacrebleu.corpus_chrf(texts, [plain]).score, abs=0.006)
    assert point.bleu_to_references == pytest.approx(sacrebleu.corpus_bleu(texts, [REFERENCES]).score, abs=0.006)
    assert point.exact_match_to_plain == sum(both[0][i] == both[1][i] for i in range(5)) / 5
    assert "tok:13a" in signatures["bleu"]
    assert "nc:6" in signatures["chrf"]


def test_rows_that_come_up_again_are_scored_once(measured: Measurement) -> None:
    assert {(point.rows, point.scored_rows, point.batch_size) for point in measured[0]} == {(40, 5, 2)}


def test_points_are_json(measured: Measurement) -> None:
    read = json.loads(json.dumps([point.to_dict() for point in measured[0]]))
    assert [ParetoPoint(**row) for row in read] == measured[0]
    assert list(read[0]) == [field.name for field in fields(ParetoPoint)]


def test_a_pair_that_cannot_speculate(pair: Pair, config: Config, sources: list[list[int]]) -> None:
    with pytest.raises(ConfigError, match=r"models\.drafter: must be set for --pareto"):
        pareto(replace(pair, drafter=None), config, sources, None, 2)


# ---------------------------------------------------------------- fronts


def fronts(measured: Measurement, figures: list[tuple[float, float, float]]) -> list[tuple[bool, bool]]:
    """Of (ratio, gap, BLEU)."""
    changed = [
        replace(measured[0][0], ratio_to_plain=ratio, mean_gap_nats_per_token=gap, bleu_to_plain=bleu, drafted_tokens=9)
        for ratio, gap, bleu in figures
    ]
    return [(point.on_gap_front, point.on_bleu_front) for point in with_fronts(changed)]


def test_dominated_points_are_not_on_the_front(measured: Measurement) -> None:
    figures = [
        (1.0, 0.0, 100.0),
        (1.5, 0.1, 90.0),
        (1.4, 0.1, 95.0),  # slower than the one before at its gap, but closer to plain in BLEU
        (1.5, 0.1, 90.0),  # equal to another: neither dominates
        (1.2, 0.2, 80.0),
    ]
    expected = [(True, True), (True, True), (False, True), (True, True), (False, False)]
    assert fronts(measured, figures) == expected


def test_a_setting_that_drafted_nothing_is_as_fast_as_plain(measured: Measurement) -> None:
    plain = measured[0][0]
    idle = replace(plain, engine="goodput, budget 0", ratio_to_plain=1.07)
    assert plain.drafted_tokens == idle.drafted_tokens == 0
    assert plain.acceptance_rate is None
    assert [point.on_gap_front for point in with_fronts([plain, idle])] == [True, True]


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=8))
def test_a_front_is_never_empty_and_covers_all(measured: Measurement, figures: list[tuple[int, int]]) -> None:
    """Every point off the front is dominated by one that is on it."""
    marks = fronts(measured, [(ratio, gap, 100.0 - gap) for ratio, gap in figures])
    assert all(gap == bleu for gap, bleu in marks)
    on = [figure for figure, (is_on, _) in zip(figures, marks, strict=True) if is_on]
    assert all(any(one[0] >= two[0] and one[1] <= two[1] for one in on) for two in figures)
    assert not any(one[0] >= two[0] and one[1] <= two[1] and one != two for one in on for two in on)


# ---------------------------------------------------------------- references


def test_references_stay_with_their_texts(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "rows.parquet", text=["a", None, "c", "d", "e"], de=["A", "B", None, "D", "E"], other=[1, 2, 3, 4, 5]
    )
    config = from_dict({"input": {"path": str(path), "keep_columns": ["other"]}, "output": {"path": "out"}})
    assert first_pairs(config, "de", 9) == [("a", "A"), ("d", "D"), ("e", "E")]
    assert first_pairs(config, "de", 2) == [("a", "A"), ("d", "D")]
    assert first_pairs(config, "other", 1) == [("a", "1")]


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.parquet", text=["a"], de=["A"])
    with pytest.raises(InputError, match="no column 'fr'"):
        first_pairs(from_dict({"input": {"path": str(path)}, "output": {"path": "out"}}), "fr", 9)
