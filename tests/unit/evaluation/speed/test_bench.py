"""The bench measures every engine at every batch size, on the same rows, and says what it measured."""

import json
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from cmasd.core import Request
from cmasd.evaluation.speed import lineup as lineup_module
from cmasd.evaluation.speed.bench import BenchRow, BenchWatcher, bench, best_fixed, take_turns
from cmasd.evaluation.speed.engines import ENGINES, OPTIONAL, PEERS, Lineup, as_measured
from cmasd.evaluation.speed.lineup import engine_configs, our_contender
from cmasd.evaluation.speed.peers import HfGenerate
from cmasd.evaluation.speed.timing import CHUNKS, FEWEST_CHUNKS, MOST_CHUNKS, Measured
from cmasd.telemetry.stats import EngineStats
from tests.unit.engine.checkpoints import loaded, pair_config, save_checkpoint
from tests.unit.engine.pairs import ragged_requests, shared_pair, tiny_config

OURS = ["plain", "fixed", "paper", "goodput", "survival", "paper_modulated", "fixed_1"]
OPENVINO = ("openvino", "openvino_drafted")
ALL = Lineup((*ENGINES, *OPTIONAL), fixed=(1,))
SOURCES = [request.source for request in ragged_requests(7, seed=3)]
CT2 = ["ctranslate2", "ctranslate2"] if find_spec("ctranslate2") else []


class Log(BenchWatcher):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.left_out: dict[str, str] = {}
        self.places: list[tuple[int, str, float]] = []

    def skipped(self, engine: str, reason: str) -> None:
        self.left_out[engine] = reason

    def progress(self, batch_size: int, engine: str, share: float) -> None:
        self.places.append((batch_size, engine, share))


@pytest.fixture(scope="module")
def log() -> Log:
    return Log()


@pytest.fixture(scope="module")
def rows(log: Log) -> list[BenchRow]:
    pair = shared_pair("marian", "noisy", max_new_tokens=4)
    return list(bench(pair, tiny_config(), SOURCES, [1, 3], ALL, watcher=log))


def test_every_engine_at_every_batch_size(rows: list[BenchRow], log: Log) -> None:
    expected = {1: [*OURS, "hf_generate", "hf_assisted", *CT2], 3: [*OURS, "hf_generate", *CT2]}
    assert [(row.batch_size, row.engine) for row in rows] == [
        (size, name) for size in (1, 3) for name in expected[size]
    ]
    assert {(row.batch_size, row.rows, row.chunks) for row in rows} == {
        (1, CHUNKS * 8, CHUNKS),
        (3, CHUNKS * 9, CHUNKS),
    }
    assert {row.dtype for row in rows if row.engine != "ctranslate2"} == {"float64"}
    assert [row.dtype for row in rows if row.engine == "ctranslate2"] == ["float32", "int8"][: len(CT2)] * 2
    assert set(log.left_out) == {*OPENVINO, *(() if CT2 else ("ctranslate2",))}
    assert log.left_out["openvino"] == "decodes decoder-only models alone here."


def _near(ratio: float | None, fast: BenchRow, slow: BenchRow) -> bool:
    """A ratio within chunks lies between those of their slowest and fastest quarters, or not far from them."""
    low, high = fast.chunk_low / slow.chunk_high, fast.chunk_high / slow.chunk_low
    return ratio is not None and 0.5 * low <= ratio <= 2 * high


def test_figures_agree(rows: list[BenchRow]) -> None:
    for row in rows:
        same = {(one.engine, one.dtype): one for one in rows if one.batch_size == row.batch_size}
        plain, hf = same["plain", "float64"], same["hf_generate", "float64"]
        assert 0 < row.chunk_low <= row.tokens_per_second <= row.chunk_high
        assert _near(row.ratio_to_plain, row, plain)
        assert _near(row.ratio_to_hf_generate, row, hf)
        assert 0 < row.ratio_low <= row.ratio_high
        if CT2:
            ct2 = same["ctranslate2", "float32"]
            assert _near(row.ratio_to_ctranslate2, row, ct2)
        else:
            assert row.ratio_to_ctranslate2 is None


def test_goodput_is_compared_with_the_best_fixed_length(rows: list[BenchRow]) -> None:
    for row in rows:
        if row.engine != "goodput":
            assert (row.best_fixed, row.ratio_to_best_fixed) == (None, None)
            continue
        fixed = {one.engine: one for one in rows if one.batch_size == row.batch_size and "fixed" in one.engine}
        best = max(fixed.values(), key=lambda one: one.tokens_per_second)
        assert row.best_fixed == best.engine
        assert _near(row.ratio_to_best_fixed, row, best)


def test_plain_is_the_reference(rows: list[BenchRow]) -> None:
    for row in rows:
        if row.engine == "plain":
            assert (row.ratio_to_plain, row.ratio_low, row.ratio_high) == (1, 1, 1)
            assert (row.drafted_tokens, row.tokens_per_iteration, row.acceptance_rate) == (0, 1, None)


def test_exact_engines_give_the_tokens_of_plain(rows: list[BenchRow]) -> None:
    lossy = {(row.engine, row.dtype) for row in rows if row.lossless == "lossy"}
    assert lossy == {("paper_modulated", "float64")} | ({("ctranslate2", "int8")} if CT2 else set())
    ours = [row for row in rows if row.engine in OURS and row.lossless != "lossy"]
    assert {(row.lossless, row.exact_match_to_plain) for row in ours} == {("exact", 1.0)}


def test_a_peer_is_called_what_its_rows_are(rows: list[BenchRow]) -> None:
    peers = [row for row in rows if row.engine in PEERS and row.lossless != "lossy"]
    assert peers
    for row in peers:
        assert row.lossless == ("same rows" if row.exact_match_to_plain == 1 else "rows differ")


@pytest.mark.parametrize(
    ("promise", "exact_match", "said"),
    [
        ("exact", 1.0, "exact"),
        ("exact", 0.999, "exact but for ties"),
        ("greedy", 1.0, "same rows"),
        ("greedy", 0.887, "rows differ"),
        ("lossy", 1.0, "lossy"),
        ("in distribution", 0.2, "in distribution"),
        ("beam search", 0.5, "beam search"),
    ],
)
def test_nothing_is_called_exact_whose_rows_differ(promise: str, exact_match: float, said: str) -> None:
    assert as_measured(promise, exact_match) == said


def test_counters_are_of_our_engines_alone(rows: list[BenchRow]) -> None:
    for row in rows:
        if row.engine in OURS:
            assert row.tokens_per_iteration is not None
            assert row.tokens_per_iteration >= 1
        else:
            assert row.tokens_per_iteration is row.acceptance_rate is row.drafted_tokens is None


def test_rows_are_json(rows: list[BenchRow]) -> None:
    read = json.loads(json.dumps([row.to_dict() for row in rows]))
    assert [BenchRow(**row) for row in read] == rows
    assert list(read[0]) == [field.name for field in fields(BenchRow)]


def test_progress_grows_to_the_whole(rows: list[BenchRow], log: Log) -> None:
    assert len(log.places) == CHUNKS * len(rows)
    shares = [share for _, _, share in log.places]
    assert shares == sorted(set(shares))
    assert shares[-1] == pytest.approx(1)


def test_a_pair_without_a_drafter() -> None:
    pair, log = replace(shared_pair("marian", max_new_tokens=2), drafter=None), Log()
    lineup = Lineup(("fixed", "paper", "hf_generate"), fixed=(2,))
    rows = list(bench(pair, tiny_config(), SOURCES[:1], [2], lineup, watcher=log))
    assert [row.engine for row in rows] == ["plain", "hf_generate"]
    assert log.left_out == dict.fromkeys(["fixed", "paper", "fixed_2"], "the pair has no drafter")
    lookup = tiny_config(drafter={"kind": "lookup"})
    assert "fixed" in {row.engine for row in bench(pair, lookup, SOURCES, [2], Lineup(("fixed",)))}


def test_drafts_of_an_earlier_run_alone_have_nothing_to_show() -> None:
    pair, log = shared_pair("marian", max_new_tokens=2), Log()
    config = tiny_config(drafter={"kind": "previous", "previous": "runs/a"})
    assert [row.engine for row in bench(pair, config, SOURCES[:1], [2], Lineup(("fixed",)), watcher=log)] == ["plain"]
    assert log.left_out == {"fixed": "bench has no outputs of an earlier run, which cmasd compare has"}


def test_a_peer_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmasd.evaluation.speed.peers.ct2.find_spec", lambda name: None)
    pair, log = shared_pair("marian", max_new_tokens=2), Log()
    rows = list(bench(pair, tiny_config(), SOURCES, [2], Lineup(("plain", "ctranslate2")), watcher=log))
    assert [row.engine for row in rows] == ["plain"]
    assert log.left_out == {"ctranslate2": "is not installed. pip install 'cmasd[bench]' adds it."}


def test_peers_that_do_not_fit_into_memory_are_left_out_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 our own weights are no peer's."""
    folder, log = save_checkpoint(tmp_path, "llama", {"eos_token_id": 2, "max_new_tokens": 2}), Log()
    pair = loaded(folder, models={"dtype": "bfloat16"})
    config = pair_config(folder, models={"dtype": "bfloat16"}, engine={"max_new_tokens": 2})
    lineup = Lineup(("plain", "hf_generate", "ctranslate2"))
    monkeypatch.setattr("cmasd.evaluation.speed.peers.hf.host_free_bytes", lambda: 0)
    rows = list(bench(pair, config, SOURCES[:1], [2], lineup, watcher=log))
    assert [row.engine for row in rows] == ["plain"]
    expected = "needs 0.0 GiB of memory for its weights, 0.0 GiB are free"
    assert log.left_out == dict.fromkeys(["hf_generate", "ctranslate2"], expected)


def test_a_limit_of_time_changes_the_number_of_rows() -> None:
    pair, lineup = shared_pair("marian", max_new_tokens=2), Lineup(("plain", "hf_generate"))
    short = list(bench(pair, tiny_config(), SOURCES, [1, 2], lineup, seconds=0.0))
    assert {(row.chunks, row.rows) for row in short} == {(FEWEST_CHUNKS, FEWEST_CHUNKS * 4)}
    asked = list(bench(pair, tiny_config(), SOURCES, [1, 2], lineup, chunks=2))
    assert {(row.chunks, row.rows) for row in asked} == {(2, 2 * 8)}
    long = list(bench(pair, tiny_config(), SOURCES, [1, 2], lineup, seconds=60.0))
    assert {(row.chunks, row.rows) for row in long} == {(MOST_CHUNKS, MOST_CHUNKS * 8)}


def test_the_warm_up_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everyone decodes one batch before the first chunk."""
    calls: list[int] = []

    class Counting(HfGenerate):
        def decode(self, requests: list[Request]) -> dict[int, list[int]]:
            calls.append(len(requests))
            return super().decode(requests)

    monkeypatch.setattr(lineup_module, "HfGenerate", Counting)
    pair = shared_pair("marian", max_new_tokens=2)
    list(bench(pair, tiny_config(), SOURCES, [3], Lineup(("plain", "hf_generate"))))
    assert calls == [3, *[9] * CHUNKS]


def test_nothing_before_the_first_chunk_is_counted() -> None:
    """Neither start-up, in which goodput measures, nor the first batch; tokens are those of the chunks."""
    pair, requests = shared_pair("marian", "noisy", max_new_tokens=4), ragged_requests(6, seed=3)
    sources = [request.source for request in requests]
    contenders = [our_contender("goodput", pair, tiny_config(), batch_size=2)]
    assert contenders[0].stats == EngineStats(), "the table of step costs was measured outside of decoding"
    [timed] = take_turns(pair, sources, contenders, 2, None, lambda name, share: None)
    assert timed.stats is not None
    assert timed.stats.output_tokens == sum(timed.measured.tokens)
    assert timed.contender.stats is not None
    assert timed.contender.stats.output_tokens > timed.stats.output_tokens


def test_best_of_one_fixed_length_is_not_a_comparison() -> None:
    one, two = Measured([1.0], [10]), Measured([1.0], [20])
    assert best_fixed({"plain": two, "fixed": one}) is None
    assert best_fixed({"plain": two, "fixed": one, "fixed_2": two}) == "fixed_2"


def test_engines_share_all_but_policy_and_verification() -> None:
    config = tiny_config(verification={"kind": "sampling"}, drafter={"max_draft_tokens": 7}, policy={"threshold": 0.1})
    configs = engine_configs(config, Lineup((*ENGINES, *OPTIONAL)))
    assert list(configs) == [name for name in OURS if name != "fixed_1"]
    for name, one in configs.items():
        kinds = ("exact", name) if name != "paper_modulated" else ("modulated", "paper")
        assert (one.verification.kind, one.policy.kind) == kinds
        same = replace(one, verification=config.verification, policy=replace(one.policy, kind=config.policy.kind))
        assert same == config


def test_fixed_lengths() -> None:
    config = tiny_config(drafter={"max_draft_tokens": 7, "min_draft_tokens": 2})
    configs = engine_configs(config, Lineup(("fixed",), fixed=(1, 3)))
    lengths = {name: (one.drafter.max_draft_tokens, one.drafter.min_draft_tokens) for name, one in configs.items()}
    assert lengths == {"plain": (7, 2), "fixed": (7, 2), "fixed_1": (1, 1), "fixed_3": (3, 2)}
    assert {configs[name].policy.kind for name in ("fixed", "fixed_1", "fixed_3")} == {"fixed"}
