"""Plain aligned tables, the same on a terminal and in a log."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cmasd.evaluation.speed.engines import SAME_DECODING

if TYPE_CHECKING:
    from cmasd.config import Config
    from cmasd.io.plan import Plan
    from cmasd.io.runs import Run

MOST_SHOWN = 110
"""Characters of a text."""


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """First column left, the others right."""
    lines = [list(header), *rows] if header else list(rows)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [_aligned(line, widths) for line in lines]
    rule = ["  ".join("-" * width for width in widths)]
    return "\n".join(text[:1] + rule + text[1:] if header else text)


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values, both left-aligned."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def share(value: float | None) -> str:
    """A dash where there is nothing that it could be a share of."""
    return "-" if value is None else f"{value:.1%}"


def whole_share(value: float) -> str:
    """In percent, rounded down: only the whole is 100 %."""
    return f"{math.floor(1000 * value + 1e-9) / 10:.1f}%"


def claim(row: dict[str, Any]) -> str:
    """What may be said of an engine's output: exact output of a rounded model is exact to that model."""
    said, dtype = str(row["lossless"]), row.get("dtype", "float32")
    is_exact_to_it = said in ("exact", "exact but for ties", "in distribution")
    return f"{said} to {dtype}" if is_exact_to_it and dtype not in ("float32", "float64") else said


def summary_table(summary: dict[str, Any]) -> str:
    """The run in a dozen lines: what everyone asks first, the field's own words after."""
    reasons, done_before = summary["finish_reasons"], summary["rows_done_before"]
    ends = f"{reasons['stop']:,} stopped, {reasons['length']:,} cut, {summary['errors']:,} failed"
    ends += f"; {done_before:,} done before" if done_before else ""
    phases, times = summary["seconds_by_phase"], summary["attempts"]
    started = "" if times == 1 else f" in {times} starts"
    seconds = f"{phases['start_up']:,.1f} start-up, {phases['decoding']:,.1f} decoding"
    seconds += f", {phases['comparing']:,.1f} comparing" if phases["comparing"] else ""
    rows = [
        ("rows", f"{summary['rows']:,} ({ends})"),
        *_audio_rows(summary.get("audio_seconds"), phases["decoding"]),
        ("output tokens", f"{summary['output_tokens']:,}"),
        ("seconds", f"{sum(phases.values()):,.1f} ({seconds}){started}"),
        ("tokens/s", f"{summary['tokens_per_second']:,.1f} while decoding"),
        *_cost_rows(summary["cost"]),
        ("tokens per iteration", f"{summary['tokens_per_iteration']:.2f}"),
        ("acceptance rate", share(summary["acceptance_rate"])),
        *_source_rows(summary.get("acceptance", {})),
        ("rollback rate", share(summary["rollback_rate"])),
        ("slot occupancy", share(summary["slot_occupancy"])),
        *_stitched(summary),
        *_lookup_rows(summary.get("lookup_share")),
        *_tail_rows(summary.get("tail_seconds", {})),
        ("lossless", summary["lossless"]),
        ("output", f"{summary['output']}/outputs"),
    ]
    return "\n" + pairs(rows) + "\n"


def length(seconds: float) -> str:
    """Of recordings."""
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:,.1f} minutes"


def _audio_rows(heard: float | None, decoding: float) -> list[tuple[str, str]]:
    """Of recordings: how long they are, and how long that took."""
    if heard is None or not decoding:
        return []
    return [("audio", f"{length(heard)}, {heard / decoding:,.1f} seconds of it per second of decoding")]


def _stitched(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Where two models spoke in turn."""
    small, rows = summary["small_tokens"], summary["rows"] - summary["errors"]
    if not small:
        return []
    said = f"{share(small / summary['output_tokens'])} of the tokens, {summary['switches'] / rows:.1f} switches per row"
    return [("small model", said)]


def _source_rows(acceptance: dict[str, list[dict[str, Any]]]) -> list[tuple[str, str]]:
    """Of runs in which several proposed tokens; of what was judged."""
    sources = acceptance.get("source", [])
    said = ", ".join(f"{one['of']} {share(one['share'])} of {one['judged']:,}" for one in sources)
    return [("  by source", said)] if len(sources) > 1 else []


def rows_table(rows: Sequence[tuple[str, str]]) -> str:
    """Source above output, a row each."""
    return "".join(f"\n{_one_line(source)}\n  {_one_line(output)}\n" for source, output in rows)


def _one_line(text: str) -> str:
    """As much as one line of a terminal holds."""
    line = " ".join(text.split())
    return line if len(line) <= MOST_SHOWN else line[: MOST_SHOWN - 1] + "…"


def _lookup_rows(lookup_share: float | None) -> list[tuple[str, str]]:
    """Of runs that draft of known texts."""
    return [] if lookup_share is None else [("text look-ups", f"{share(lookup_share)} of an iteration")]


def _tail_rows(seconds: dict[str, float]) -> list[tuple[str, str]]:
    """Of runs whose last rows had longer drafts."""
    if not seconds.get("saved"):
        return []
    return [("tail", f"{seconds['all']:.2f} s with empty slots, {seconds['saved']:.2f} s less by longer drafts")]


def _cost_rows(cost: dict[str, float] | None) -> list[tuple[str, str]]:
    if cost is None:
        return []
    return [
        (name, f"{cost[total]:.4f} ({cost[each]:.2f} per million output tokens)")
        for name, total, each in (
            ("cost of decoding", "total", "per_million_output_tokens"),
            ("cost of the whole job", "whole_job", "whole_job_per_million_output_tokens"),
        )
    ]


def baseline_table(baseline: dict[str, Any]) -> str:
    """AR against CM-ASD on the same rows, side by side; at other batch sizes and once more, where asked for."""
    rows = [_with_size(baseline, cells) for cells in _side_by_side(baseline)]
    for other in baseline.get("others", []):
        rows += [_with_size(other, cells) for cells in _side_by_side(other)]
    rerun = baseline.get("rerun")
    if rerun:
        names = f"AR in {rerun['dtype']}", "again, output as drafts"
        rows += [_with_size(rerun, cells) for cells in _side_by_side(rerun, *names)]
    header = [
        *("rows at a time", "", "tokens/s", "speed-up (95 %)"),
        *("tokens per iteration", "acceptance rate", "exact-match to AR"),
    ]
    found = ""
    if "algorithmic" in baseline:
        ties = f"{baseline['near_ties']:,} near-ties of rounding"
        found = f"{baseline['rows']:,} rows, {baseline['algorithmic']:,} algorithmic differences, {ties}\n"
    if rerun:
        found += (
            f"In {rerun['dtype']} the model says something else in {rerun['changed']:.0%} of the rows. A corpus again "
            "after such a change: drafter.kind=previous drafter.previous=RUN\n"
        )
    return f"AR against CM-ASD on {baseline['rows']:,} rows, side by side:\n{table(rows, header)}\n{found}"


def _with_size(measured: dict[str, Any], cells: list[str]) -> list[str]:
    return [f"{measured['batch_size']}" if "batch_size" in measured else "-", *cells]


def _side_by_side(measured: dict[str, Any], ar: str = "AR", ours: str = "CM-ASD") -> list[list[str]]:
    """`generate` first, where it was measured: what one would do otherwise."""
    drafted = measured.get("drafted_tokens", 1)  # a result kept from an earlier version does not say
    generate = measured.get("hf_generate")
    return [
        *([_generate_cells(generate)] if generate else []),
        [ar, f"{measured['ar_tokens_per_second']:,.0f}", "1.00", "1.00", "-", "-"],
        [
            ours,
            f"{measured['tokens_per_second']:,.0f}",
            _interval(measured) if drafted else SAME_DECODING,
            f"{measured['tokens_per_iteration']:.2f}",
            share(measured["acceptance_rate"] if drafted else None),
            whole_share(measured["exact_match"]),
        ],
    ]


def _generate_cells(measured: dict[str, float]) -> list[str]:
    same = whole_share(measured["exact_match"])
    return ["HF generate", f"{measured['tokens_per_second']:,.0f}", _interval(measured), "1.00", "-", same]


def _interval(measured: dict[str, float]) -> str:
    return f"{measured['speedup']:.2f} ({measured['speedup_low']:.2f}-{measured['speedup_high']:.2f})"


def plan_table(config: "Config", run: "Run") -> str:
    """What would be read, run and written."""
    shards, todo = sum(1 for _ in run.plan.shards()), run.todo
    rows_todo = sum(shard.rows for shard in todo)
    actors = str(config.actors.count or f"{config.actors.min} to {config.actors.max}")
    actors = "none: decodes in this process, without Ray" if config.actors.local is True else actors
    slots = config.engine.slots or "as many as fit"
    done = "there are no rows" if run.plan.nothing else "the run is complete"
    why = "new run" if run.is_new else "same configuration and input as before"
    rows = [
        ("input", f"{config.input.path} ({run.plan.format}, {len(run.plan.files)} file(s))"),
        ("changes told by", _stamps(run.plan)),
        ("rows", f"{run.plan.rows:,} total, {run.plan.rows - rows_todo:,} done, {rows_todo:,} to do"),
        ("shards", f"{shards:,} total, {shards - len(todo):,} done, {len(todo):,} to do ({why})"),
        ("rows per shard", f"{run.plan.rows_per_shard:,}"),
        ("output", f"{run.folder.address}/outputs"),
        ("verifier", config.models.verifier),
        ("drafter", "none (policy.kind plain)" if config.policy.kind == "plain" else str(config.drafter_name)),
        ("decoding", f"policy {config.policy.kind}, verification {config.verification.kind} ({config.claim})"),
        ("actors", f"{actors}, {slots} slots and {config.actors.cpus_each:g} CPU(s) each"),
        ("would run", f"{len(todo):,} shard(s)" if todo else f"nothing: {done}"),
    ]
    files = [[f.file.name, f"{f.file.bytes:,}", f"{f.rows:,}"] for f in run.plan.files[:20]]
    more = f"\n... and {len(run.plan.files) - 20} more" if len(run.plan.files) > 20 else ""
    notices = "".join(f"\nnotice: {notice}" for notice in run.plan.notices)
    return f"{pairs(rows)}\n\n{table(files, ['input file', 'bytes', 'rows'])}{more}{notices}"


def _stamps(plan: "Plan") -> str:
    """How a later start will notice changed input."""
    from cmasd.io.storage import BY_CONTENT, BY_TAG, BY_TIME

    ways = {
        BY_TAG: "the storage's content tags",
        BY_CONTENT: "every byte",
        BY_TIME: "size, modification time and samples (input.change_check=content: every byte)",
    }
    kinds = sorted({file.file.stamp.partition(":")[0] for file in plan.files})
    return "; ".join(ways.get(kind, "the dataset's fingerprint") for kind in kinds)


def status_table(state: dict[str, Any]) -> str:
    """The state of a run."""
    from cmasd.io.status import ENDED

    rows = [
        ("run", state["run"]),
        ("state", state["state"] + (f": {state['error']}" if state["error"] else "")),
        ("held by", _holder(state["holder"])),
        ("shards", f"{state['shards_done']:,} of {state['shards']:,}, in {state['files']:,} file(s)"),
        ("rows", f"{state['rows_done']:,} of {state['rows']:,}, {state['errors']:,} failed"),
        ("tokens/s", "?" if state["tokens_per_second"] is None else f"{state['tokens_per_second']:,.1f}"),
        *([] if state["state"] in ENDED else [("ETA", _eta(state["eta_seconds"]))]),
        ("attempts", f"{state['attempts']}, started {state['started_at']}, last seen {state['updated_at']}"),
    ]
    return pairs(rows)


def _eta(seconds: float | None) -> str:
    from jobs.progress import clock

    return "?" if seconds is None else clock(seconds)


def _holder(holder: dict[str, Any] | None) -> str:
    return f"process {holder['pid']} on {holder['host']}, until {holder['expires_at']}" if holder else "nobody"
