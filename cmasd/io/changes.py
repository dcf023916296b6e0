"""Input files that are not what they were: since a run was started, or while it was reading them.

By name, size and stamp (`Storage.stamp`). Between two starts a change is refused, for old and new rows would be mixed;
what changes during one start is told at its end.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cmasd.config.corpus import InputConfig
from cmasd.errors import CmasdError, RunFolderError
from cmasd.io.inputs import InputFile, Listing, list_inputs
from cmasd.io.storage import BY_TIME


def refuse_changes(entries: Iterable[Mapping[str, Any]], listing: Listing, folder: str) -> None:
    """Raises `RunFolderError` unless the files are those of a manifest's entries."""
    before = {entry["name"]: entry for entry in entries}
    now = {file.name: file for file in listing.files}
    for name in sorted(before.keys() ^ now.keys()):
        change = "is gone from" if name in before else "is new in"
        raise RunFolderError(f"{folder}: {name} {change} the input since the run was started. Use a new run folder.")
    for name, file in now.items():
        if (file.bytes, file.stamp) != (before[name]["bytes"], before[name]["stamp"]):
            raise _refused(folder, file, before[name])


def _refused(folder: str, file: InputFile, before: Mapping[str, Any]) -> RunFolderError:
    (was, _, earlier), (now, _, later) = before["stamp"].rpartition(":"), file.stamp.rpartition(":")
    if file.bytes == before["bytes"] and was == now and was.startswith(BY_TIME):
        return RunFolderError(
            f"{folder}: {file.name} was modified since the run was started, got {later} (seconds since 1970); expected "
            f"{earlier}. Use a new run folder; or, if its content is the same, set the time: touch -d @{earlier} FILE."
        )
    return RunFolderError(
        f"{folder}: {file.name} has changed since the run was started "
        f"({before['bytes']} bytes -> {file.bytes}). Use a new run folder, or restore the file."
    )


def changed_since(config: InputConfig, planned: Sequence[InputFile]) -> list[str]:
    """What users should know of files that are not as they were when they were planned; nothing if none can be seen."""
    try:
        now = {file.name: (file.bytes, file.stamp) for file in list_inputs(config).files}
    except CmasdError:  # the rows are there, and whoever removed the input may have waited for them
        return []
    changed = [file.name for file in planned if file.name in now and now[file.name] != (file.bytes, file.stamp)]
    if not changed:
        return []
    more = f" and {len(changed) - 1:,} more file(s)" if len(changed) > 1 else ""
    return [
        f"{changed[0]}{more}: changed while the run was reading; its rows may be of either content. "
        "Decode it again in a new run folder."
    ]
