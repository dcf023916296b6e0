"""The source texts of sample rows, read from the input again where it is still what the run read.

Nothing is fetched for it: an input that is gone or has changed, a data set of the hub, and files in which a row is
found by reading all before it, beyond a size, are left alone, with a sentence that says so. A text is shown only
where the input's row has the output's identity.
"""

from collections.abc import Sequence
from typing import Any

from cmasd.config.tree import Config
from cmasd.errors import CmasdError
from cmasd.io.formats.recordings import shown
from cmasd.io.plan import Plan, Shard, source_of, stored_plan
from cmasd.io.run_folder import BATCH_ROWS
from cmasd.io.shards import read_shards
from cmasd.reports.picks import Place

MOST_READ_BYTES = 1_000_000_000
"""Of files that are read from their start."""
SEEKABLE = ("parquet",)
"""Formats in which a shard is found without reading what is before it."""
ADVICE = "Name the text's column in input.keep_columns to have it in the output."


def source_texts(
    config: Config, manifest: dict[str, Any], address: str, chosen: Sequence[tuple[Place, str]]
) -> tuple[dict[Place, str], str | None]:
    """Texts by place, of rows given by place and identity; and why there are none, if so."""
    if manifest["plan"]["format"] == "datasets":
        return {}, f"Source texts are not shown: they would have to be fetched from the hub. {ADVICE}"
    try:
        plan = stored_plan(manifest["plan"], config, address)
        shards = {place: found for place, _ in chosen if (found := shard_of(plan, place))}
        files = {shard.file for shard, _ in shards.values()}
        size = sum(plan.files[number].file.bytes for number in files)
        if plan.format not in SEEKABLE and size > MOST_READ_BYTES:
            return {}, f"Source texts are not shown: {size / 1e9:,.1f} GB of input would have to be read. {ADVICE}"
        return _read(config, plan, shards, dict(chosen)), None
    except (CmasdError, OSError) as error:
        return {}, f"Source texts are not shown, since the input cannot be read again ({error}) {ADVICE}"


def shard_of(plan: Plan, place: Place) -> tuple[Shard, int] | None:
    """The shard of an output row, and the row's number in it; a merged file's rows go on into the next shards."""
    file, index, piece, row = place
    left = piece * BATCH_ROWS + row
    for shard in plan.shards():
        if shard.position < (file, index):
            continue
        if left < shard.rows:
            return shard, left
        left -= shard.rows
    return None


def _read(
    config: Config, plan: Plan, shards: dict[Place, tuple[Shard, int]], identities: dict[Place, str]
) -> dict[Place, str]:
    texts: dict[Place, str] = {}
    for number in sorted({shard.file for shard, _ in shards.values()}):
        todo = {shard.index for shard, _ in shards.values() if shard.file == number}
        for shard, rows in read_shards(plan.part(number), source_of(config, plan.files[number].file), todo):
            for place in (place for place, (own, _) in shards.items() if own == shard):
                row = shards[place][1]
                text = rows["text"][row].as_py()
                if text is not None and str(rows["id"][row].as_py()) == identities[place]:
                    texts[place] = shown(text)
    return texts
