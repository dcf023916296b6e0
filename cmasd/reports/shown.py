"""Some rows of a finished run, source beside output: what a person wants to see first."""

from cmasd.config.tree import Config
from cmasd.io.run_folder import RunFolder
from cmasd.reports.picks import spread_rows
from cmasd.reports.sources import source_texts


def shown_rows(config: Config, rows: int) -> list[tuple[str, str]]:
    """`output.show_rows` of them, evenly spread over `rows`; none where the input cannot be read again."""
    folder, most = RunFolder(config.output.path), config.output.show_rows
    manifest = folder.manifest()
    if not most or not rows or manifest is None:
        return []
    found = spread_rows(folder, ["id", "output"], most, rows)
    asked = [(place, str(row["id"])) for place, row in found.items()]
    texts, _ = source_texts(config, manifest, folder.address, asked)
    return [(texts[place], str(row["output"])) for place, row in found.items() if place in texts]
