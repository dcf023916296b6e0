"""A run folder drawn from a known truth, without models: every draft token is accepted with a known probability."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cmasd.config import Config, from_dict
from cmasd.core import FinishReason, Result, RowError
from cmasd.io.plan import Shard, make_plan
from cmasd.io.provenance import provenance
from cmasd.io.run_folder import RunFolder
from cmasd.pipeline.attempt import Attempt
from cmasd.pipeline.report import ShardReport
from cmasd.pipeline.summary import summarise
from cmasd.pipeline.tally import Tally
from cmasd.signals import FROM_DRAFT, FROM_VERIFIER, IterationTrace, TokenTrace
from cmasd.telemetry.clock import ShardTiming
from cmasd.telemetry.recorder import Row, record, samples
from cmasd.telemetry.stats import EngineStats
from cmasd.telemetry.totals import Totals

MOST_DRAFTED = 3
HOSTILE = "<script>alert(1)</script> & \"quoted\" 'too' \x00\x0b"
STARTED_AT = 1_700_000_000.0
Truth = Callable[[float], float]
"""Probability of acceptance by confidence."""


def drawn(rng: np.random.Generator, truth: Truth, iterations: int, most_drafted: int = MOST_DRAFTED) -> Result:
    """One row, whose traces hold together as the engine's do."""
    nothing = [np.nan] * 4
    tokens: list[list[float]] = []
    steps: list[list[float]] = []
    confidences: list[float] = []
    for _ in range(iterations):
        drafted, accepted, rejected = int(rng.integers(0, most_drafted + 1)), 0, [*nothing, FROM_VERIFIER]
        for confidence in rng.random(drafted):
            confidences.append(float(confidence))
            if rng.random() >= truth(confidence):
                rejected = [*[float(confidence)] * 4, FROM_DRAFT]
                break
            tokens.append([FROM_DRAFT, *[float(confidence)] * 4, 0.0, 0.0, -0.1, accepted + 1, -0.2])
            accepted += 1
        tokens.append([FROM_VERIFIER, *nothing, 0.0, 0.0, -0.1, 0, np.nan])
        steps.append([drafted, accepted, *rejected])
    token_trace = TokenTrace(*np.array(tokens).T)
    step_trace = IterationTrace(*np.array(steps).T)
    return Result(
        key=0,
        token_ids=rng.integers(5, 50, len(tokens)).astype(np.int32),
        finish_reason=_reason(rng),
        num_input_tokens=4,
        num_iterations=iterations,
        num_drafted_tokens=int(step_trace.draft_length.sum()),
        num_accepted_tokens=int(step_trace.accepted.sum()),
        mean_confidence=float(np.mean(confidences)) if confidences else float("nan"),
        mean_gap_nats=0.0,
        iterations=step_trace,
        tokens=token_trace,
    )


def _reason(rng: np.random.Generator) -> FinishReason:
    return "length" if rng.random() < 0.01 else "stop"


def make_run(
    folder: Path,
    address: str | None = None,
    rows: int = 300,
    truth: Truth = lambda confidence: confidence,
    baseline: dict[str, Any] | None = None,
    unfinished_shards: int = 0,
    timed: bool = True,
    errors: bool = True,
    drafting: float = 1.0,
    **sections: dict[str, Any],
) -> str:
    """Write a run and return its address; every 50th row failed, and such a share of the iterations drafted."""
    source = folder / "in.jsonl"
    lines = [{"id": f"<b>{i}</b>", "text": f"row {i}", "note": HOSTILE} for i in range(rows)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    keys: dict[str, dict[str, Any]] = {
        "input": {"path": str(source), "id_column": "id", "keep_columns": ["note"]},
        "output": {"path": address or str(folder / "run"), "rows_per_shard": 32},
        "drafter": {"max_draft_tokens": MOST_DRAFTED},
        "confidence": {"kind": "max_prob"},
        "policy": {"kind": "fixed"},
        "telemetry": {"level": "token", "keep_source": "none"},
    }
    for name, values in sections.items():
        keys[name] = {**keys.get(name, {}), **values}
    config = from_dict(keys)
    run, plan = RunFolder(config.output.path), make_plan(config)
    run.start(config, plan, provenance())
    tally = Tally(plan.rows, Totals())
    attempt = Attempt(run, tally)
    shards = list(plan.shards())
    for shard in shards[: len(shards) - unfinished_shards]:
        _write(run, config, shard, truth, tally, timed, errors, drafting)
    attempt.write("interrupted" if unfinished_shards else "finished")
    if not unfinished_shards:
        run.write_json(summarise(config, tally.now, run.attempts(), 0, baseline, [f"notice {HOSTILE}"]), "summary.json")
    return config.output.path


def _write(
    run: RunFolder,
    config: Config,
    shard: Shard,
    truth: Truth,
    tally: Tally,
    timed: bool,
    errors: bool,
    drafting: float,
) -> None:
    rng = np.random.default_rng([1, shard.index])
    rows = []
    for number in range(shard.start, shard.stop):
        result: Result | RowError = drawn(rng, truth, int(rng.integers(1, 12)))
        if errors and number % 50 == 7:
            result = RowError("read", f"line {number}: {HOSTILE}")
        rows.append(Row(f"<b>{number}</b>", result, f"output {number} {HOSTILE}"))
    keep = pa.table({"note": [HOSTILE] * len(rows)})
    timing = ShardTiming(f"actor-{shard.index % 2}", STARTED_AT + shard.index, 2.0 + shard.index)
    sources: list[str | None] | None = None
    if config.telemetry.keep_source != "none":
        sources = [None] * len(rows)
        for place in samples(rows):
            sources[place] = f"kept {rows[place].id} {HOSTILE}"
    table = record(rows, config.telemetry.level, keep, sources=sources)
    totals = run.write_shard(shard, table, timing if timed else None)
    stats = EngineStats(
        iterations=100,
        row_iterations=9 * totals.iterations,
        slot_iterations=10 * totals.iterations,
        drafting_row_iterations=round(9 * totals.iterations * drafting),
        rollbacks=round(9 * totals.iterations * drafting / 2),
    )
    tally.add(ShardReport(shard, totals, timing.actor, STARTED_AT, stats, [], None))


BASELINE = {
    "rows": 64,
    "ar_tokens_per_second": 100.0,
    "tokens_per_second": 80.0,
    "speedup": 0.8,
    "speedup_low": 0.7,
    "speedup_high": 0.9,
    "drafted_tokens": 40,
    "tokens_per_iteration": 1.2,
    "acceptance_rate": 0.5,
    "exact_match": 1.0,
    "asked": {"rows": 64, "hf_generate": False, "batch_sizes": [], "rerun_dtype": None},
}
"""Of a run that is slower than AR, beyond doubt."""
