"""The end of a run in one flat record: `summary.json`, the closing table and the last line of output.

Row figures come from the output files, hence cover the whole run whoever wrote them; engine figures and seconds are
added up over attempts, hence also hold work that a kill made worthless.
"""

from collections.abc import Sequence
from typing import Any

from cmasd.config import fingerprint
from cmasd.config.tree import Config
from cmasd.telemetry.stats import EngineStats
from cmasd.telemetry.totals import Totals

SECONDS_PER_HOUR = 3600


def summarise(
    config: Config,
    totals: Totals,
    attempts: Sequence[dict[str, Any]],
    rows_done_before: int,
    baseline: dict[str, Any] | None,
    notices: Sequence[str],
) -> dict[str, Any]:
    """`attempts` are the records of all starts, this one included."""
    phases, hours = seconds_by_phase(attempts, baseline), actor_hours(attempts, baseline)
    seconds = phases["decoding"]
    stats = sum((EngineStats.of(attempt["stats"]) for attempt in attempts), start=EngineStats())
    return {
        "rows": totals.rows,
        "errors": totals.errors,
        "input_tokens": totals.input_tokens,
        "output_tokens": totals.output_tokens,
        "drafted_tokens": totals.drafted_tokens,
        "verified_tokens": stats.verified_tokens,
        "drafter_tokens": stats.drafter_tokens,
        "small_tokens": totals.small_tokens,
        "switches": totals.switches,
        "seconds": round(seconds, 2),
        "seconds_by_phase": {name: round(value, 2) for name, value in phases.items()},
        "tokens_per_second": _rounded(totals.output_tokens / seconds if seconds else 0.0),
        "tokens_per_iteration": _rounded(totals.tokens_per_iteration),
        "acceptance_rate": _rounded(totals.acceptance_rate) if totals.drafted_tokens else None,
        "acceptance": totals.acceptance.shown(),
        "slot_occupancy": _rounded(stats.slot_occupancy),
        "rollback_rate": _rounded(stats.rollback_rate) if stats.drafting_row_iterations else None,
        "lookup_share": _rounded(stats.lookup_share) if config.drafter.free and config.policy.kind != "plain" else None,
        "tail_seconds": {"all": round(stats.tail_seconds, 2), "saved": round(stats.tail_saved_seconds, 2)},
        "lossless": config.claim,
        "finish_reasons": {"stop": totals.stopped, "length": totals.cut, "error": totals.errors},
        "rows_done_before": rows_done_before,
        "attempts": len(attempts),
        "actor_hours": {name: round(value, 6) for name, value in hours.items()},
        "cost": _cost(config, hours, totals),
        "baseline": baseline,
        "notices": [*notices, *own_notices(config, baseline)],
        "fingerprint": fingerprint(config),
        "output": config.output.path,
    }


def seconds_by_phase(attempts: Sequence[dict[str, Any]], baseline: dict[str, Any] | None) -> dict[str, float]:
    """Start-up: until the first models were loaded; decoding: from then to the last shard; comparing: `baseline.rows`,
    loading the models again included.
    """
    return {
        "start_up": sum(attempt.get("start_up_seconds", 0.0) for attempt in attempts),
        "decoding": sum(attempt["seconds"] for attempt in attempts),
        "comparing": (baseline or {}).get("seconds", 0.0),
    }


def actor_hours(attempts: Sequence[dict[str, Any]], baseline: dict[str, Any] | None) -> dict[str, float]:
    """What the actors were held for: while decoding, and in the whole job; comparing takes one."""
    decoding = sum(attempt["seconds"] * attempt["actors"] for attempt in attempts)
    start_up = sum(attempt.get("start_up_seconds", 0.0) * max(1, attempt["actors"]) for attempt in attempts)
    whole = decoding + start_up + (baseline or {}).get("seconds", 0.0)
    return {"decoding": decoding / SECONDS_PER_HOUR, "whole_job": whole / SECONDS_PER_HOUR}


def own_notices(config: Config, baseline: dict[str, Any] | None) -> list[str]:
    """What the settings and the check against AR mean for a user."""
    notices = []
    if config.lossless == "lossy":
        notices.append(f"{_lossy_by(config)} is lossy: outputs may differ from AR decoding.")
    if baseline and baseline.get("drafted_tokens") == 0:
        notices.append("Nothing was drafted in the check against AR: it is the same decoding.")
    elif baseline and baseline["speedup_high"] < 1:
        interval = f"{baseline['speedup_low']:.2f}-{baseline['speedup_high']:.2f}"
        notices.append(
            f"Slower than AR on the rows compared: {baseline['speedup']:.2f} times ({interval}). "
            "`cmasd compare` says which way is fastest."
        )
    if baseline and baseline.get("algorithmic"):
        notices.append(
            f"{baseline['algorithmic']} of {baseline['rows']} compared rows differ from AR decoding by more than "
            f"rounding, which is a fault of cmasd: `cmasd audit {config.output.path}` shows where."
        )
    return notices


def _lossy_by(config: Config) -> str:
    """The setting that makes a run lossy."""
    if config.verification.kind == "budget":
        return f"verification.budget_nats_per_token={config.verification.budget_nats_per_token:g}"
    if config.is_stitched:
        return f"policy.kind=stitch with {config.stitched_by}"
    return f"verification.kind={config.verification.kind}"


def _cost(config: Config, hours: dict[str, float], totals: Totals) -> dict[str, float] | None:
    """`total` is of decoding; `whole_job` has start-up and comparing in it."""
    price = config.cost.accelerator_per_hour
    if price is None:
        return None

    def per_million(total: float) -> float:
        return round(total / totals.output_tokens * 1e6 if totals.output_tokens else 0.0, 4)

    total, whole = price * hours["decoding"], price * hours["whole_job"]
    return {
        "total": round(total, 6),
        "per_million_output_tokens": per_million(total),
        "whole_job": round(whole, 6),
        "whole_job_per_million_output_tokens": per_million(whole),
    }


def _rounded(value: float) -> float:
    return round(value, 4)
