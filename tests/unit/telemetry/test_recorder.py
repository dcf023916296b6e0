"""Results -> rows of the output schema."""

import hashlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from cmasd.core import Result, RowError, Teaching
from cmasd.signals import IterationTrace, TokenTrace
from cmasd.telemetry.recorder import SAMPLES_EACH_WAY, Row, record, samples
from cmasd.telemetry.schema import SCHEMA_VERSION, Level, output_schema
from cmasd.telemetry.totals import Totals

TOKEN_LISTS = [field.name for field in output_schema("token") if field.name.startswith("token_")]


def floats(*values: float) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    return np.array(values, dtype=np.float32)


def result(tokens: int, level: Level, key: int = 0) -> Result:
    """`tokens` tokens, all but the last one accepted drafts of one iteration."""
    nan = math.nan
    ones = floats(*[0.5] * (tokens - 1), nan)
    source = np.array([1] * (tokens - 1) + [0], dtype=np.int8)
    tau, gap, logprob = (floats(*[value] * tokens) for value in (0.0, 0.25, -1.0))
    position = np.array([*range(1, tokens), 0])
    trace = TokenTrace(source, ones, ones, ones, ones, tau, gap, logprob, position, ones)
    one = floats(nan)
    iterations = IterationTrace(
        np.array([tokens], np.int32), np.array([tokens - 1], np.int32), one, one, one, one, np.array([1], np.int8)
    )
    return Result(
        key=key,
        token_ids=np.arange(tokens, dtype=np.int32),
        finish_reason="stop",
        num_input_tokens=7,
        num_iterations=1,
        num_drafted_tokens=tokens,
        num_accepted_tokens=tokens - 1,
        mean_confidence=0.5 if tokens > 1 else nan,
        mean_gap_nats=0.25,
        iterations=None if level == "none" else iterations,
        tokens=trace if level == "token" else None,
    )


@pytest.mark.parametrize("level", ["none", "iteration", "token"])
def test_schema_and_order(level: Level) -> None:
    rows = [
        Row("a", result(3, level), "x y"),
        Row("b", RowError("read", "text is null"), None),
        Row("c", result(1, level), "z"),
    ]
    table = record(rows, level)
    assert table.schema.equals(output_schema(level), check_metadata=True)
    assert table["id"].to_pylist() == ["a", "b", "c"]
    assert table["output"].to_pylist() == ["x y", None, "z"]
    assert table["finish_reason"].to_pylist() == ["stop", "error", "stop"]
    assert table["error"].to_pylist() == [None, "read: text is null", None]
    assert table["num_output_tokens"].to_pylist() == [3, 0, 1]
    assert table["num_drafted_tokens"].to_pylist() == [3, 0, 1]
    assert table["mean_confidence"].to_pylist() == [0.5, None, None]
    assert table["mean_gap_nats"].to_pylist() == [0.25, 0.0, 0.25]


def test_rows_of_two_speakers() -> None:
    """Who said how much; a gap that nobody knows is null."""
    stitched = replace(result(3, "token"), num_small_tokens=2, num_switches=5, mean_gap_nats=math.nan)
    table = record([Row("a", stitched, "x"), Row("b", result(3, "token"), "y")], "token")
    assert table["num_small_tokens"].to_pylist() == [2, 0]
    assert table["num_switches"].to_pylist() == [5, 0]
    assert table["mean_gap_nats"].to_pylist() == [None, 0.25]
    totals = Totals.of(table)
    assert (totals.small_tokens, totals.switches) == (2, 5)


def test_token_lists_have_one_entry_per_token_and_keep_nan() -> None:
    table = record([Row("a", result(3, "token"), "x"), Row("b", RowError("encode", "no"), None)], "token")
    for name in TOKEN_LISTS:
        assert pc.list_value_length(table[name]).to_pylist() == [3, 0], name
    confidence = pc.list_flatten(table["token_confidence"])
    assert confidence.null_count == 0
    values: Any = confidence.to_pylist()
    assert values[:2] == [0.5, 0.5]
    assert math.isnan(values[2])
    assert table["iteration_rejected_margin"].to_pylist()[1] == []


@pytest.mark.parametrize("level", ["none", "iteration", "token"])
def test_only_failed_rows(level: Level) -> None:
    table = record([Row("a", RowError("read", "no"), None)], level)
    assert table.schema.equals(output_schema(level))
    assert table.num_rows == 1


def test_sources_are_kept_of_rows_that_a_report_shows() -> None:
    """Those with the most rejected tokens are among them, failed rows are not, and a shard has few."""
    rejected = [0, 3, 9, 1, *[0] * 40, 5, 7, 2, 8]
    rows = [
        Row(str(n), replace(result(3, "none"), num_drafted_tokens=2 + lost), "x") for n, lost in enumerate(rejected)
    ]
    rows[5] = Row("5", RowError("read", "no"), None)
    chosen = samples(rows)
    assert chosen == samples(rows) == sorted(set(chosen))
    assert {1, 2, 44, 45, 46, 47} <= set(chosen)
    assert 5 not in chosen
    assert len(chosen) <= 2 * SAMPLES_EACH_WAY
    table = record(rows, "none", sources=[None, "a", *[None] * (len(rows) - 2)])
    assert table.column_names[-1] == "source_text"
    assert table["source_text"].to_pylist()[:3] == [None, "a", None]
    assert "source_text" not in record(rows, "none").column_names


def test_no_rows() -> None:
    assert record([], "token").num_rows == 0


def test_kept_columns_come_last_with_their_types() -> None:
    keep = pa.table({"score": pa.array([1.5, 2.5]), "when": pa.array([1, 2], pa.timestamp("ns"))})
    table = record([Row("a", result(2, "none"), "x"), Row("b", RowError("read", "no"), None)], "none", keep)
    assert table.column_names[-2:] == ["score", "when"]
    assert table["when"].type == pa.timestamp("ns")
    assert table["score"].to_pylist() == [1.5, 2.5]


def test_totals_add_up() -> None:
    rows = [Row("a", result(3, "none"), "x"), Row("b", RowError("read", "no"), None)]
    totals = Totals.of(record(rows, "none"))
    assert totals == Totals(2, 1, 1, 0, 7, 3, 1, 3, 2)
    assert (totals + totals).output_tokens == 6
    assert totals.acceptance_rate == pytest.approx(2 / 3)
    assert totals.tokens_per_iteration == 3
    assert Totals().acceptance_rate == Totals().tokens_per_iteration == 0


def test_columns_hold_the_signals_of_their_names() -> None:
    given = replace(
        result(1, "token"),
        tokens=TokenTrace(*[np.full(1, 10.0 + one.place) for one in TokenTrace.signals]),
        iterations=IterationTrace(*[np.full(1, 20.0 + one.place) for one in IterationTrace.signals]),
    )
    table = record([Row("a", given, "x")], "token")
    assert table["token_tau"].to_pylist() == [[15.0]]
    assert table["token_gap_nats"].to_pylist() == [[16.0]]
    assert table["iteration_accepted"].to_pylist() == [[21]]
    assert table["iteration_rejected_softmax"].to_pylist() == [[25.0]]


@pytest.mark.parametrize(("version", "digest"), [(6, "296468785ba2a03f")])
def test_the_schema_has_a_version_for_each_of_its_forms(version: int, digest: str) -> None:
    """Whoever changes a name, a type or a meaning raises `SCHEMA_VERSION`, and writes both down here."""
    schema = output_schema("token", teacher_top_k=2, keeps_source=True)
    columns = [(field.name, str(field.type), field.metadata) for field in schema]
    assert (SCHEMA_VERSION, hashlib.sha256(repr(columns).encode()).hexdigest()[:16]) == (version, digest)


def test_what_a_drafter_may_learn_from_stays_with_its_tokens() -> None:
    def taught(tokens: int) -> Result:
        ids = np.arange(2 * tokens, dtype=np.int32).reshape(tokens, 2)
        return replace(result(tokens, "none"), teaching=Teaching(ids, -ids.astype(np.float32)))

    rows = [Row("a", taught(2), "x"), Row("b", RowError("read", "null"), None), Row("c", taught(1), "y")]
    table = record(rows, "none", teacher_top_k=2)
    assert table.schema.equals(output_schema("none", teacher_top_k=2), check_metadata=True)
    assert table["token_top_ids"].to_pylist() == [[[0, 1], [2, 3]], [], [[0, 1]]]
    assert table["token_top_logprobs"].to_pylist() == [[[0, -1], [-2, -3]], [], [[0, -1]]]
