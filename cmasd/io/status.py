"""The state of a run, read from its folder: by anyone, from anywhere, while it runs or after."""

from typing import Any

from cmasd.errors import RunFolderError
from cmasd.io.lease import LeaseRecord, newest_lease
from cmasd.io.outputs import positions_held
from cmasd.io.plan import outline
from cmasd.io.run_folder import RunFolder

ENDED = ("complete", "no rows")
"""States in which nothing is left to do."""


def status(address: str) -> dict[str, Any]:
    """Raises `RunFolderError` when there is no run."""
    folder = RunFolder(address)
    manifest = folder.manifest()
    if manifest is None:
        raise RunFolderError(f"{address}: is not a run folder, it has no manifest.json.")
    attempts = folder.attempts()
    last = attempts[-1] if attempts else None
    lease = newest_lease(folder.storage)
    plan = manifest["plan"]
    files = folder.output_files()
    shards = list(outline(manifest).shards())
    done = positions_held(files, (shard.position for shard in shards))
    rows_done = sum(shard.rows for shard in shards if shard.position in done)
    totals = last["totals"] if last else {}
    summary = folder.read_json("summary.json")
    return {
        "run": folder.address,
        "state": _state(last, lease, plan["rows"], len(done) == plan["shards"] and summary is not None),
        "shards": plan["shards"],
        "shards_done": len(done),
        "rows": plan["rows"],
        "rows_done": rows_done,
        "files": len(files),
        "errors": last["errors_before"] + totals["errors"] if last else 0,
        "tokens_per_second": _rate(totals.get("output_tokens", 0), last),
        "eta_seconds": _eta(plan["rows"] - rows_done, last),
        "attempts": len(attempts),
        "started_at": attempts[0]["started_at"] if attempts else None,
        "updated_at": last["updated_at"] if last else None,
        "error": last["error"] if last else None,
        "holder": _holder(lease),
        "fingerprint": manifest["fingerprint"],
        "summary": summary,
    }


def _state(last: dict[str, Any] | None, lease: LeaseRecord | None, rows: int, complete: bool) -> str:
    """planned, running, compacting, killed, interrupted, failed, incomplete, complete or no rows.

    Every shard may be there and the run still have failed, by its last shard's bad rows: the summary closes a run.
    """
    if lease is not None and lease.is_live:
        return "compacting" if lease.verb == "compact" else "running"
    if complete:
        return "complete" if rows else "no rows"
    if last is None:
        return "planned"
    return {"running": "killed", "finished": "incomplete"}.get(last["state"], str(last["state"]))


def _holder(lease: LeaseRecord | None) -> dict[str, Any] | None:
    """Who works on the run now."""
    if lease is None or not lease.is_live:
        return None
    return {"verb": lease.verb, "host": lease.host, "pid": lease.pid, "expires_at": lease.expires}


def _rate(amount: float, last: dict[str, Any] | None) -> float | None:
    return round(amount / last["seconds"], 2) if last and last["seconds"] else None


def _eta(rows_left: int, last: dict[str, Any] | None) -> float | None:
    """Null unless the attempt is running and has finished a shard."""
    rate = _rate(last["totals"]["rows"], last) if last and last["state"] == "running" else None
    return round(rows_left / rate, 1) if rate else None
