"""The bench measures every engine at every batch size and says what it measured."""

import json
from dataclasses import fields, replace

import pytest

from cmasd.evaluation.bench import CHUNKS, BenchRow, bench, rows_for, variants
from tests.unit.engine.pairs import ragged_requests, shared_pair, tiny_config

ENGINES = ["plain", "fixed", "paper", "paper_modulated", "survival", "hf_generate"]
SOURCES = [request.source for request in ragged_requests(7, seed=3)]


@pytest.fixture(scope="module")
def rows() -> list[BenchRow]:
    pair = shared_pair("marian", "noisy", max_new_tokens=4)
    return list(bench(pair, tiny_config(), SOURCES, [1, 3]))


def test_every_engine_at_every_batch_size(rows: list[BenchRow]) -> None:
    assert [(row.batch_size, row.engine) for row in rows] == [(size, name) for size in (1, 3) for name in ENGINES]
    assert {(row.rows, row.dtype) for row in rows} == {(7, "float64")}


def test_figures_agree(rows: list[BenchRow]) -> None:
    for row in rows:
        plain = next(one for one in rows if one.engine == "plain" and one.batch_size == row.batch_size)
        assert row.tokens_per_second > 0
        assert 0 < row.chunk_low <= row.chunk_median <= row.chunk_high
        assert row.ratio_to_plain == pytest.approx(row.tokens_per_second / plain.tokens_per_second)
        assert 0 < row.ratio_low <= row.ratio_high


def test_plain_is_the_reference(rows: list[BenchRow]) -> None:
    for row in rows:
        if row.engine == "plain":
            assert (row.ratio_to_plain, row.ratio_low, row.ratio_high) == (1, 1, 1)
            assert (row.tokens_per_iteration, row.acceptance_rate) == (1, 0)


def test_exact_engines_give_the_tokens_of_plain(rows: list[BenchRow]) -> None:
    lossless = {row.engine: row.lossless for row in rows}
    assert lossless == {name: "lossy" if name == "paper_modulated" else "exact" for name in ENGINES}
    # generate() ends rows at its checkpoint's own end of sequence, which this pair goes past.
    ours = [row for row in rows if row.engine != "hf_generate"]
    assert {row.exact_match_to_plain for row in ours if row.lossless == "exact"} == {1.0}


def test_counters_are_of_our_engines_alone(rows: list[BenchRow]) -> None:
    for row in rows:
        if row.engine == "hf_generate":
            assert row.tokens_per_iteration is row.acceptance_rate is None
        else:
            assert row.tokens_per_iteration is not None
            assert row.tokens_per_iteration >= 1


def test_rows_are_json(rows: list[BenchRow]) -> None:
    read = json.loads(json.dumps([row.to_dict() for row in rows]))
    assert [BenchRow(**row) for row in read] == rows
    assert list(read[0]) == [field.name for field in fields(BenchRow)]


def test_one_source_and_no_drafter() -> None:
    pair = replace(shared_pair("marian", max_new_tokens=4), drafter=None)
    rows = list(bench(pair, tiny_config(), SOURCES[:1], [2]))
    assert [row.engine for row in rows] == ["plain", "hf_generate"]
    assert rows[0].chunk_low == rows[0].chunk_high


def test_progress_tells_of_every_chunk() -> None:
    told: list[tuple[int, str, int]] = []
    pair = replace(shared_pair("marian", max_new_tokens=2), drafter=None)
    list(bench(pair, tiny_config(), SOURCES, [2], lambda *place: told.append(place)))
    assert sorted(told) == sorted((2, name, chunk) for name in ("plain", "hf_generate") for chunk in range(CHUNKS))


def test_variants_share_all_but_policy_and_verification() -> None:
    config = tiny_config(verification={"kind": "sampling"}, drafter={"max_draft_tokens": 7}, policy={"threshold": 0.1})
    for name, variant in variants(config).items():
        kinds = ("exact", name) if name != "paper_modulated" else ("modulated", "paper")
        assert (variant.verification.kind, variant.policy.kind) == kinds
        same = replace(
            variant, verification=config.verification, policy=replace(variant.policy, kind=config.policy.kind)
        )
        assert same == config


@pytest.mark.parametrize("batch_size", [1, 2, 8, 64])
def test_chunks_fill_the_batch(batch_size: int) -> None:
    assert rows_for(batch_size) / CHUNKS >= 3 * batch_size
    assert rows_for(batch_size) / CHUNKS >= 8
