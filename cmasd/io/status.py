"""The state of a run, read from its folder: by anyone, from anywhere, while it runs or after."""

from datetime import UTC, datetime
from typing import Any

from cmasd.errors import RunFolderError
from cmasd.io.run_folder import RunFolder

SILENT_AFTER_SECONDS = 60.0
"""A running attempt renews its record far more often, unless a single shard takes longer."""


def status(address: str) -> dict[str, Any]:
    """Raises `RunFolderError` when there is no run."""
    folder = RunFolder(address)
    manifest = folder.manifest()
    if manifest is None:
        raise RunFolderError(f"{address}: is not a run folder, it has no manifest.json.")
    attempts = folder.attempts()
    last = attempts[-1] if attempts else None
    plan = manifest["plan"]
    done = folder.output_positions()
    rows_done = sum(_rows(plan, *position) for position in done)
    totals = last["totals"] if last else {}
    summary = folder.read_json("summary.json")
    return {
        "run": folder.address,
        "state": _state(last, len(done) == plan["shards"] and summary is not None),
        "shards": plan["shards"],
        "shards_done": len(done),
        "rows": plan["rows"],
        "rows_done": rows_done,
        "errors": sum(attempt["totals"]["errors"] for attempt in attempts),
        "tokens_per_second": _rate(totals.get("output_tokens", 0), last),
        "eta_seconds": _eta(plan["rows"] - rows_done, last),
        "attempts": len(attempts),
        "started_at": attempts[0]["started_at"] if attempts else None,
        "updated_at": last["updated_at"] if last else None,
        "error": last["error"] if last else None,
        "fingerprint": manifest["fingerprint"],
        "summary": summary,
    }


def _state(last: dict[str, Any] | None, complete: bool) -> str:
    """planned, running, silent (killed, or in a long shard), interrupted, failed, or complete.

    Every shard may be there and the run still have failed, by its last shard's bad rows: the summary closes a run.
    """
    if complete:
        return "complete"
    if last is None:
        return "planned"
    if last["state"] != "running":
        return "incomplete" if last["state"] == "finished" else str(last["state"])
    silent = (datetime.now(UTC) - datetime.fromisoformat(last["updated_at"])).total_seconds()
    return "running" if silent < SILENT_AFTER_SECONDS else "silent"


def _rate(amount: float, last: dict[str, Any] | None) -> float | None:
    return round(amount / last["seconds"], 2) if last and last["seconds"] else None


def _eta(rows_left: int, last: dict[str, Any] | None) -> float | None:
    """Null unless the attempt is running and has finished a shard."""
    rate = _rate(last["totals"]["rows"], last) if last and last["state"] == "running" else None
    return round(rows_left / rate, 1) if rate else None


def _rows(plan: dict[str, Any], file: int, index: int) -> int:
    """Of one shard."""
    size: int = plan["rows_per_shard"]
    return min(size, int(plan["files"][file]["rows"]) - index * size)
