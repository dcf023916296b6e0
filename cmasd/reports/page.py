"""Puts a report together: one HTML file that needs nothing else, neither network nor scripts.

Whatever comes from the data is escaped by the template engine. The page is well-formed XML too, so that a test can
hold it to that: characters that XML does not know are replaced.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from cmasd import __version__
from cmasd.config.tree import Config
from cmasd.evaluation.calibration.reliability import Reliability
from cmasd.evaluation.speed.engines import SAME_DECODING
from cmasd.pipeline.summary import own_notices
from cmasd.reports import charts, figures, palette
from cmasd.reports.evidence import Evidence
from cmasd.reports.picks import Place
from cmasd.reports.signatures import Signature, signatures
from cmasd.reports.sources import source_texts
from cmasd.reports.tokens import MOST_TOKENS, UNSURE, SampleRow, sample_row, splitter
from cmasd.telemetry.schema import SOURCE_FIELD

FILE_NAME = "report.html"
"""In a run folder, unless another is asked for."""
TEMPLATE = "report.html"
MOST_ERROR_ROWS = 20
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
LOSSLESS = {
    "exact": ("Lossless.", "Outputs equal greedy AR decoding token for token, up to near-ties of two logits."),
    "in distribution": ("Lossless in distribution.", "Outputs are distributed as by AR sampling."),
    "lossy": ("Lossy.", "Outputs may differ from AR decoding."),
}
PHASES = {"start_up": "start-up", "decoding": "decoding", "comparing": "comparing"}
LEVEL_NOTES = {
    "none": "telemetry.level is none: draft positions, draft lengths along a row, confidences and tokens were not "
    "recorded. Run with telemetry.level=token to see them.",
    "iteration": "telemetry.level is iteration: confidences of accepted tokens and the tokens themselves were not "
    "recorded. Run with telemetry.level=token to see them.",
    "token": None,
}


def render(evidence: Evidence) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: _NOT_IN_XML.sub("\ufffd", value) if type(value) is str else value,
    )
    return environment.get_template(TEMPLATE).render(**content(evidence, signatures(evidence)))


def _claim(config: Config) -> tuple[str, str]:
    """What may be said of the output, and of which model."""
    head, text = LOSSLESS[config.lossless]
    against = config.claim.removeprefix(config.lossless).strip()
    return head, f"{text} This is said {against}." if against else text


def content(evidence: Evidence, found: list[Signature]) -> dict[str, Any]:
    """What the template shows."""
    rows, notes = _sample_rows(evidence)
    return {
        "version": __version__,
        "address": evidence.folder.address,
        "state": _state(evidence),
        "lossless": _claim(evidence.config),
        "settings": _settings(evidence),
        "cards": _cards(evidence),
        "signatures": found,
        "notices": _notices(evidence),
        "baseline": _baseline(evidence),
        "level_note": LEVEL_NOTES[evidence.level],
        "has_drafts": any(shard.totals.drafted_tokens for shard in evidence.shards),
        "drafting": figures.drafting(evidence),
        "confidence": figures.confidence(evidence),
        "scores": _scores(evidence),
        "throughput": figures.throughput(evidence),
        "slowest": figures.slowest(evidence),
        "attempts": _attempts(evidence),
        "cost": _cost(evidence),
        "errors": [
            (kind, f"{count:,}", evidence.error_examples[kind])
            for kind, count in evidence.errors.most_common(MOST_ERROR_ROWS)
        ],
        "error_kinds_left": max(0, len(evidence.errors) - MOST_ERROR_ROWS),
        "samples": rows,
        "samples_notes": notes,
        "most_tokens": MOST_TOKENS,
        "unsure": UNSURE,
        "origin": _origin(evidence.manifest),
        "manifest_config": json.dumps(evidence.manifest["config"], indent=1, ensure_ascii=False),
        "palettes": {"light": palette.LIGHT, "dark": palette.DARK},
        "levels": palette.LEVELS,
        "frame": charts,
    }


def _state(evidence: Evidence) -> tuple[str, str]:
    state = evidence.state
    counts = f"{state['rows_done']:,} of {state['rows']:,} rows, {state['shards_done']:,} of {state['shards']:,} shards"
    if evidence.is_complete:
        return "Complete.", f"{counts}."
    why = f" {state['error']}" if state["error"] else ""
    return f"Not finished ({state['state']}).", f"Figures are of {counts}.{why}"


def _notices(evidence: Evidence) -> list[str]:
    """Without what header and findings say in words of their own."""
    said = own_notices(evidence.config, evidence.summary["baseline"])
    return [notice for notice in evidence.summary["notices"] if notice not in said]


def _settings(evidence: Evidence) -> list[tuple[str, str]]:
    config = evidence.config
    return [
        ("Input", config.input.path),
        ("Verifier", config.models.verifier),
        ("Drafter", "none" if config.policy.kind == "plain" else str(config.drafter_name)),
        ("Policy", config.policy.kind + (f", {config.stitched_by}" if config.is_stitched else "")),
        ("Verification", config.verification.kind),
        ("Confidence", config.score + (", calibrated" if config.confidence.calibration else "")),
        ("Started", _time(evidence.state["started_at"])),
        ("Last seen", _time(evidence.state["updated_at"])),
    ]


def _time(stamp: str | None) -> str:
    return stamp.replace("T", " ").replace("+00:00", " UTC") if stamp else "-"


def _cards(evidence: Evidence) -> list[tuple[str, str, str]]:
    """Name, figure, remark."""
    summary, baseline = evidence.summary, evidence.summary["baseline"]
    speedup = ("-", "no AR baseline in this run")
    if baseline and not drafted_in(baseline):
        speedup = ("-", "nothing was drafted: the same decoding")
    elif baseline:
        low, high = baseline["speedup_low"], baseline["speedup_high"]
        speedup = (f"{baseline['speedup']:.2f} x", f"{low:.2f} to {high:.2f} (95 %)")
    drafting = evidence.drafting_share
    drafted = "not recorded" if drafting is None else f"{drafting:.1%} of iterations drafted"
    cut, phases = summary["finish_reasons"]["length"], summary["seconds_by_phase"]
    seconds = ", ".join(f"{value:,.1f} s {PHASES[name]}" for name, value in phases.items() if value)
    return [
        ("Rows", f"{summary['rows']:,}", f"{summary['errors']:,} failed, {cut:,} cut"),
        ("Output tokens", f"{summary['output_tokens']:,}", seconds or "-"),
        ("Tokens/s", f"{summary['tokens_per_second']:,.1f}", f"while decoding; {summary['attempts']} start(s)"),
        ("Speed-up over AR", *speedup),
        ("Tokens per iteration", f"{summary['tokens_per_iteration']:.2f}", "1 is plain decoding"),
        ("Acceptance rate", _share(summary["acceptance_rate"]), "of drafted tokens"),
        ("Rollback rate", _share(summary["rollback_rate"]), drafted),
        ("Slot occupancy", f"{summary['slot_occupancy']:.1%}", "of all iterations"),
        *_stitched(summary),
    ]


def _stitched(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Where two models spoke in turn; a summary of an earlier version does not say."""
    small, rows = summary.get("small_tokens", 0), summary["rows"] - summary["errors"]
    if not small:
        return []
    switches = f"unchecked; {summary['switches'] / rows:.1f} switches per row"
    return [("Said by the small model", f"{small / summary['output_tokens']:.1%}", switches)]


def drafted_in(baseline: dict[str, Any]) -> bool:
    """Whether the check against AR drafted anything; one of an earlier version did not say."""
    return bool(baseline.get("drafted_tokens", 1))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _baseline(evidence: Evidence) -> list[list[str]] | None:
    baseline = evidence.summary["baseline"]
    if not baseline:
        return None
    interval = f"{baseline['speedup']:.2f} ({baseline['speedup_low']:.2f} to {baseline['speedup_high']:.2f})"
    return [
        ["AR", f"{baseline['ar_tokens_per_second']:,.0f}", "1.00", "1.00", "-", "-"],
        [
            "this run's settings",
            f"{baseline['tokens_per_second']:,.0f}",
            interval if drafted_in(baseline) else SAME_DECODING,
            f"{baseline['tokens_per_iteration']:.2f}",
            _share(baseline["acceptance_rate"] if drafted_in(baseline) else None),
            f"{baseline['exact_match']:.1%}",
        ],
    ]


def _scores(evidence: Evidence) -> list[list[str]]:
    """How well each score tells what is accepted."""
    rows = []
    for name in evidence.judged.counts:
        sample = evidence.sample(name)
        if sample is None or not sample.size:
            continue
        quality = Reliability.of(sample)
        title = f"{name} (in force)" if name == evidence.score_in_force else name
        rows.append([title, f"{quality.mean_confidence:.3f}", f"{quality.accepted_share:.1%}",
                     f"{quality.ece:.3f}", f"{quality.auc:.3f}"])  # fmt: skip
    return rows


def _attempts(evidence: Evidence) -> list[list[str]]:
    return [
        [
            str(attempt["number"]),
            attempt["state"],
            _time(attempt["started_at"]),
            f"{attempt.get('start_up_seconds', 0.0):,.1f}",
            f"{attempt['seconds']:,.1f}",
            str(attempt["actors"]),
            f"{attempt['totals']['rows']:,}",
            f"{attempt['totals']['output_tokens'] / attempt['seconds']:,.1f}" if attempt["seconds"] else "-",
        ]
        for attempt in evidence.attempts
    ]


def _cost(evidence: Evidence) -> list[tuple[str, str]]:
    hours, cost = evidence.summary["actor_hours"], evidence.summary["cost"]
    rows = [("actor-hours decoding", f"{hours['decoding']:,.4f}"), ("of the whole job", f"{hours['whole_job']:,.4f}")]
    if cost is None:
        return rows
    return [
        *rows,
        ("price of an actor-hour", f"{evidence.config.cost.accelerator_per_hour:g}"),
        ("decoding", f"{cost['total']:,.4f}"),
        ("per million output tokens", f"{cost['per_million_output_tokens']:,.2f}"),
        ("the whole job", f"{cost['whole_job']:,.4f}"),
        ("per million output tokens", f"{cost['whole_job_per_million_output_tokens']:,.2f}"),
    ]


def _sample_rows(evidence: Evidence) -> tuple[list[SampleRow], list[str]]:
    """Rows, and what they are shown without."""
    chosen, config = evidence.picks.read(evidence.folder), evidence.config
    texts: dict[Place, str] = {}
    notes: list[str] = []
    rows = [(place, row["id"]) for _, place, row in chosen if row.get(SOURCE_FIELD.name) is None]
    if rows and config.source_column not in chosen[0][2]:
        texts, why_not = source_texts(config, evidence.manifest, evidence.folder.address, rows)
        notes += [why_not] if why_not else []
    split = splitter(config) if chosen and evidence.level == "token" else None
    if isinstance(split, str):
        notes.append(f"The verifier's tokenizer cannot be loaded here, so rows are not split into tokens: {split}")
        split = None
    shown = [sample_row(why, row, split, texts.get(place), config.source_column) for why, place, row in chosen]
    return shown, notes


def _origin(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the run comes from."""
    hardware = manifest.get("hardware") or {}
    memory = hardware.get("memory_bytes")
    facts = [
        ("Fingerprint", manifest.get("fingerprint")),
        ("Commit", manifest.get("git_commit")),
        ("CPU", f"{hardware.get('cpu')}, {hardware.get('cpu_count')} cores" if hardware else None),
        ("Memory", f"{memory / 2**30:.1f} GiB" if memory else None),
        ("GPUs", ", ".join(map(str, hardware.get("gpus") or [])) or "none"),
        ("Platform", hardware.get("platform")),
        ("Versions", ", ".join(f"{name} {text}" for name, text in (manifest.get("versions") or {}).items())),
    ]
    return [(name, str(value)) for name, value in facts if value]
