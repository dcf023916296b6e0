"""One table of what is counted and traced: its columns are read by name, and numbered for C as for Python."""

import re
from typing import get_args, get_type_hints

import numpy as np
import pytest

from cmasd import signals
from cmasd.config.speculation import INSIGHTS, ConfidenceConfig
from cmasd.signals import (
    COMPONENTS,
    COUNTERS,
    LOGIT_SCORES,
    TRACES,
    IterationTrace,
    LogitNumbers,
    RowNumbers,
    Table,
    TokenTrace,
    Trace,
    as_c,
)
from cmasd.telemetry.stats import EngineStats


@pytest.mark.parametrize("trace", TRACES)
def test_a_column_is_read_by_its_name(trace: type[Trace]) -> None:
    made = trace(*np.arange(trace.width())[:, None].repeat(2, axis=1))
    for place, signal in enumerate(trace.signals):
        values = getattr(made, signal.name)
        assert (values.tolist(), values.dtype) == ([place] * 2, signal.kind)


def test_a_table_has_its_own_signals_alone() -> None:
    assert TokenTrace.width() == 10
    assert IterationTrace.width() == 7
    assert Table.signals == Trace.signals == ()
    assert [one.name for one in RowNumbers.signals[:2]] == ["length", "limit"], "read together, see `Snapshot`"


def test_what_nobody_drafted_is_of_the_verifier_and_has_no_scores() -> None:
    source, *scores, tau, gap, logprob, position, drafter_logprob = TokenTrace.without_draft()
    assert (source, tau, gap, logprob, position) == (0, 0, 0, 0, 0)
    assert np.isnan([*scores, drafter_logprob]).all()
    assert IterationTrace.without_draft()[:2] == IterationTrace.without_draft()[6:] * 2 == (0, 0)


@pytest.mark.parametrize(("trace", "first"), [(TokenTrace, "confidence"), (IterationTrace, "rejected_confidence")])
def test_components_stand_behind_a_confidence(trace: type[Trace], first: str) -> None:
    """They are copied side by side."""
    names = [one.name for one in trace.signals]
    at = names.index(first)
    prefix = first.removesuffix("confidence")
    assert names[at + 1 : at + 1 + len(COMPONENTS)] == [f"{prefix}{name}" for name in COMPONENTS]


def test_confidence_can_be_made_of_every_score() -> None:
    kinds = set(get_args(get_type_hints(ConfidenceConfig)["kind"]))
    assert set(LOGIT_SCORES) == kinds - {"auto", "head", "ensemble", *INSIGHTS}


def test_c_has_the_same_places() -> None:
    sources, *enumerations = re.findall(r"enum \{ (\w+(?:, \w+)*) \};", as_c())
    assert [getattr(signals, name, None) for name in sources.split(", ")[:-1]] == list(range(sources.count(",")))
    tables: tuple[type[Table], ...] = (*TRACES, RowNumbers, LogitNumbers)
    assert len(enumerations) == len(tables)
    for table, names in zip(tables, enumerations, strict=True):
        expected = [f"{table.prefix}_{one.name}".upper() for one in sorted(table.signals, key=lambda one: one.place)]
        assert names.split(", ") == [*expected, f"{table.prefix}_width".upper()]


def test_an_engine_adds_up_what_its_rows_have_counted() -> None:
    stats = EngineStats(iterations=7, drafted_tokens=1)
    stats.add_rows(range(len(COUNTERS)))
    assert (stats.iterations, stats.drafted_tokens, stats.accepted_tokens) == (7, 1 + 1, 2)
    assert (stats.drafting_row_iterations, stats.rollbacks) == (3, 4)
