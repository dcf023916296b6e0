"""Going on with a run under settings that it was not started with, where they cannot change what comes out.

The manifest refuses whatever may change results. Exact output equals greedy AR decoding, however many rows are decoded
at once and however many tokens are drafted: as long as both configurations promise that, those keys are free. Who
drafts and what confidence means stay fixed: the telemetry of a run is of one drafter, and is calibrated as such.
Imports neither torch nor ray.
"""

from dataclasses import replace

from cmasd.config import Config, flatten, from_dict
from cmasd.errors import ConfigError
from cmasd.io.run_folder import RunFolder

FREE_WHERE_EXACT = (
    "engine.slots",
    "engine.graphs",
    "drafter.max_draft_tokens",
    "drafter.min_draft_tokens",
    "drafter.memory",
    "drafter.memory_tokens",
)
FREE_SECTIONS_WHERE_EXACT = ("policy",)


def as_started(config: Config) -> tuple[Config, list[str]]:
    """The configuration with free keys as the run was started with, by which its folder knows it; and a notice for
    each that differs now.
    """
    folder = RunFolder(config.output.path)
    manifest = folder.manifest()
    if manifest is None or not folder.output_files():
        return config, []
    try:
        before = from_dict(manifest["config"])
    except ConfigError:  # of another version: the folder itself says what is wrong
        return config, []
    if {before.lossless, config.lossless} != {"exact"}:
        return config, []
    old, new = dict(flatten(before)), dict(flatten(config))
    changed = [key for key in new if is_free(key) and old[key] != new[key]]
    known = config
    for key in changed:
        section, name = key.split(".")
        known = replace(known, **{section: replace(getattr(known, section), **{name: old[key]})})
    return known, [
        f"{key}: {_shown(old[key])} -> {_shown(new[key])} since the run began; exact output does not depend on it."
        for key in changed
    ]


def is_free(key: str) -> bool:
    """Whether exact output does not depend on a key, nor the meaning of its telemetry."""
    return key in FREE_WHERE_EXACT or key.split(".")[0] in FREE_SECTIONS_WHERE_EXACT


def _shown(value: object) -> str:
    return "null" if value is None else str(value)
