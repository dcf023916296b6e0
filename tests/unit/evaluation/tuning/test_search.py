"""A search ends in settings that do what it says, goes on where it was left, and is measured on rows of its own."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from cmasd.config import Config, load
from cmasd.core import Request
from cmasd.engine import Pair
from cmasd.errors import ConfigError
from cmasd.evaluation.compare.sample import Sample
from cmasd.evaluation.quality.pareto import ParetoPoint, measure
from cmasd.evaluation.speed.request_decoder import EngineDecoder, plain_config
from cmasd.evaluation.tuning.candidates import (
    CONFIGURED,
    EXACT,
    LOSSY,
    PLAIN,
    Candidate,
    candidates,
    choose,
    configuration_file,
)
from cmasd.evaluation.tuning.iteration_times import IterationTimes, enveloped, measure_times
from cmasd.evaluation.tuning.knobs import Knobs
from cmasd.evaluation.tuning.lab import Tried, best_first
from cmasd.evaluation.tuning.search import (
    COHORT,
    FEWEST_REPLAYS,
    MOST_REPLAYS,
    Search,
    check_optuna,
    check_tunable,
    divide,
    search,
)
from cmasd.policies.costs import StepTable
from tests.unit.engine.pairs import ragged_requests, shared_pair, tiny_config
from tests.unit.evaluation.compare.test_comparison import with_words

SOURCES = [request.source for request in ragged_requests(12, seed=3)]
MOST = 4


def configured(**sections: dict[str, Any]) -> Config:
    rule = {"beta": 64, "tau_base": 1.0, "gamma": 1.0}
    return tiny_config(drafter={"max_draft_tokens": 3}, verification=rule, **sections)


def tried(speedup: float, gap_nats: float) -> Tried:
    return Tried(Knobs(1, 1.0, (1.0, 0.0, 0.0), 0.5), speedup, gap_nats, 1.0, 9)


def searched(storage: Path | None = None, pair: Pair | None = None, **given: Any) -> Search:
    pytest.importorskip("optuna", reason="optuna is not installed (extra `tune`)")
    pair = pair or shared_pair("marian", max_new_tokens=8)
    return search(pair, configured(), SOURCES, most=MOST, seconds=1.0, trials=COHORT, storage=storage, **given)


def test_a_search_tries_both_kinds_of_settings() -> None:
    turns: list[str] = []
    found = searched(on_turn=turns.append)
    assert FEWEST_REPLAYS <= found.replayed <= MOST_REPLAYS
    assert (found.decoded, found.pruned, found.rows) == (2, 6, 12), "of eight four, of four two reach all rows"
    assert [sum(turn.endswith(f" {rows} rows") for turn in turns) for rows in (3, 6, 12)] == [8, 4, 2]
    assert found.lossless.knobs.is_lossless
    assert found.lossless.gap_nats == 0
    assert found.best_lossy is not None
    assert not found.best_lossy.knobs.is_lossless
    gaps = [one.gap_nats for one in found.lossy]
    assert gaps == sorted(gaps)
    assert all(one.speedup >= found.lossless.speedup for one in found.lossy if one.gap_nats > 0)


def test_figures_of_a_search_are_those_of_decoding() -> None:
    """Tokens per iteration and gaps, of both kinds; seconds are of a table."""
    pair = shared_pair("marian", max_new_tokens=8)
    found = searched(pair=pair)
    assert found.best_lossy is not None
    for one in (found.lossless, found.best_lossy):
        decoder = EngineDecoder(pair, one.knobs.configured(configured()))
        decoder.decode([Request(key, source, 8) for key, source in enumerate(SOURCES)])
        assert one.tokens_per_iteration == pytest.approx(decoder.stats.tokens_per_iteration)
        assert one.gap_nats == pytest.approx(decoder.gap_nats / decoder.stats.output_tokens, abs=1e-6)


def test_a_search_goes_on_from_its_storage(tmp_path: Path) -> None:
    once = searched(tmp_path / "trials.log")
    twice = searched(tmp_path / "trials.log")
    assert (once.decoded, twice.decoded) == (2, 4)
    assert twice.times == once.times, "old and new trials are judged by one table"
    assert searched().decoded == 2


def test_dominated_settings_go_last() -> None:
    fast, exact, middle, beaten, worst = tried(2, 0.5), tried(1.1, 0), tried(1.5, 0.2), tried(1.4, 0.3), tried(1, 0.4)
    some = [worst, beaten, middle, exact, fast]
    assert best_first(some, None) == [exact, middle, fast]
    assert best_first(some, 4) == [exact, middle, fast, beaten]
    assert best_first(some, 2) == [exact, fast], "both ends of a front that is too long"
    assert best_first(some, 9) == [exact, middle, fast, beaten, worst]


def test_measured_rows_are_not_those_of_the_search() -> None:
    sample = Sample([[0] * (1 + i % 7) for i in range(50)], None, 50.0)
    places, others = divide(sample, 16, seed=0)
    assert len(places) == len(set(places)) == 16
    assert set(places).isdisjoint(others)
    assert len(others) == len(set(others)) >= 16
    assert divide(sample, 16, seed=0) == (places, others)
    assert divide(sample, 16, seed=1) != (places, others)
    assert len(divide(sample, 400, seed=0)[0]) == 25, "half of what there is"
    assert divide(Sample([[1]], None, 1.0), 8, seed=0) == ([0], [0])


def test_times_are_levelled_tables() -> None:
    config = tiny_config(drafter={"max_draft_tokens": 2}, engine={"slots": 4})
    requests = [Request(key, source, 8) for key, source in enumerate(SOURCES)]
    times = measure_times(shared_pair("marian"), config, requests)
    assert [len(row) for row in times.table.verify] == [3] * 2
    assert min(min(row) for row in times.table.verify) > 0
    assert times.plain_level > 0
    assert times.drafting_level > 0
    assert times.seconds((2, 2, 2, 2)) == pytest.approx(times.drafting_level * times.table.seconds(4, 2))
    assert times.seconds((0, 0, 0, 0)) == pytest.approx(times.plain_level * times.table.seconds(4, 0))
    assert measure_times(shared_pair("marian"), config, [replace(requests[0], max_new_tokens=1)]).drafting_level == 1


def test_disturbed_measurements_are_brought_under_larger_shapes() -> None:
    table = StepTable((1, 4), ((1.0, 9.0, 3.0), (5.0, 4.0, 6.0)), (2.0, 1.0), one_pass=True)
    assert enveloped(table) == StepTable((1, 4), ((1.0, 3.0, 3.0), (4.0, 4.0, 6.0)), (1.0, 1.0), one_pass=True)
    assert enveloped(enveloped(table)) == enveloped(table)


def test_what_cannot_be_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, config = shared_pair("marian"), configured()
    check_tunable(pair, config)
    with pytest.raises(ConfigError, match=r"drafter\.kind: must be model, parallel, self or quantised .*, got lookup"):
        check_tunable(pair, tiny_config(drafter={"kind": "lookup"}))
    with pytest.raises(ConfigError, match=r"drafter\.kind: must be"):
        check_tunable(replace(pair, drafter=None), config)
    with pytest.raises(ConfigError, match=r"confidence\.calibration: must be null for tuning, .* got maps\.json"):
        check_tunable(pair, configured(confidence={"calibration": "maps.json"}))
    monkeypatch.setattr("cmasd.evaluation.tuning.search.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs optuna, which is not installed.*pip install 'cmasd\[tune\]'"):
        check_optuna()


# ---------------------------------------------------------------- what is measured, and chosen

NO_TIMES = IterationTimes(StepTable((), (), ()), 1.0, 1.0)
FRONT = [tried(1 + i / 10, i / 10) for i in range(1, 10)]


def found_by(lossy: list[Tried], best: Tried | None) -> Search:
    lossless = replace(tried(1.2, 0.0), knobs=Knobs(2, 1.5, (0.2, 0.3, 0.5)))
    return Search(5, 4, 3, 9, lossless, lossy, best, NO_TIMES)


def test_plain_the_users_own_and_a_front_are_measured() -> None:
    config = configured(policy={"kind": "goodput"})
    chosen = candidates(config, found_by(FRONT, FRONT[-1]), most_lossy=3)
    names = [one.setting.name for one in chosen]
    assert names == [PLAIN, CONFIGURED, EXACT, *(f"{LOSSY} {number}" for number in (1, 2, 3))]
    assert chosen[0].setting.config == plain_config(config)
    assert chosen[1].setting.config == config
    assert chosen[2].setting.config.confidence.weights == [0.2, 0.3, 0.5]
    assert [one.tried for one in chosen[3:]] == [FRONT[0], FRONT[4], FRONT[8]]
    for kind in ("plain", "stitch"):
        own = replace(config, policy=replace(config.policy, kind=cast(Any, kind)))
        names = [one.setting.name for one in candidates(own, found_by([], FRONT[0]))]
        assert names == [PLAIN, EXACT, f"{LOSSY} 1"], "dominated, and measured all the same"
    assert len(candidates(config, found_by([], None))) == 3


def measured_points() -> tuple[list[ParetoPoint], list[Candidate]]:
    config = configured(policy={"kind": "paper"})
    chosen = candidates(config, found_by(FRONT, None), most_lossy=2)
    pair = with_words("marian", 4)
    return measure(pair, [one.setting for one in chosen], SOURCES, None, 3)[0], chosen


def test_the_choice_keeps_the_gap_and_is_faster_beyond_doubt() -> None:
    points, chosen = measured_points()
    assert [one.engine for one in points] == [one.setting.name for one in chosen]
    assert [one.lossless for one in points] == ["exact", "exact", "exact", "lossy", "lossy"]
    plain, own, exact, gentle, harsh = (
        replace(one, ratio_to_plain=ratio, ratio_low=low, mean_gap_nats_per_token=gap, drafted_tokens=9)
        for one, ratio, low, gap in zip(
            points, (1, 1.1, 1.3, 1.5, 2.0), (1, 1.05, 1.2, 1.4, 1.9), (0, 0, 0, 0.02, 0.4), strict=True
        )
    )
    some = [plain, own, exact, gentle, harsh]
    assert choose(some, 0.0) == exact
    assert choose(some, 0.02) == gentle
    assert choose(some, 1.0) == harsh
    idle = replace(exact, drafted_tokens=0)
    assert choose([plain, own, idle], 0.0) == own, "what drafted nothing decodes plainly"
    doubtful = [plain, *(replace(one, ratio_low=0.99) for one in some[1:])]
    assert choose(doubtful, 1.0) == plain
    assert choose([plain, replace(gentle, mean_gap_nats_per_token=0.0)], 0.0) == plain, "lossy, and lucky so far"


def test_a_written_configuration_loads_as_it_was(tmp_path: Path) -> None:
    config = candidates(configured(notify={"webhook": "https://x/secret"}), found_by(FRONT, None))[2].setting.config
    text = configuration_file(config, ["one", "two"])
    assert text.startswith("# one\n# two\n# Keys of `notify`")
    assert "secret" not in text
    (tmp_path / "tuned.yaml").write_text(text)
    assert load([tmp_path / "tuned.yaml"]) == replace(config, notify=load([tmp_path / "tuned.yaml"]).notify)
