"""What is measured after a search: candidates, the choice among them, and its configuration as a file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cmasd.config.running import NotifyConfig
from cmasd.config.tree import Config
from cmasd.evaluation.quality.pareto import DecodingSetting, ParetoPoint, keeps
from cmasd.evaluation.speed.engines import LOSSLESS
from cmasd.evaluation.speed.request_decoder import plain_config
from cmasd.evaluation.tuning.lab import Tried, spread
from cmasd.evaluation.tuning.search import Search

PLAIN, CONFIGURED, EXACT, LOSSY = "plain", "as configured", "tuned, exact", "tuned, lossy"
MOST_LOSSY = 6
"""Lossy settings of the front that are measured."""


@dataclass(frozen=True)
class Candidate:
    """A setting that is measured."""

    setting: DecodingSetting
    tried: Tried | None = None
    """What the search thought of it; None of what it did not try."""


def candidates(config: Config, found: Search, most_lossy: int = MOST_LOSSY) -> list[Candidate]:
    """Plain, what the user has, the fastest lossless setting, and lossy ones from all over the front.

    Where plain or lossless settings dominate every lossy one, the fastest of these is measured all the same.
    """
    exact = replace(config, verification=replace(config.verification, kind="exact"))
    chosen = [Candidate(DecodingSetting(PLAIN, None, plain_config(exact)))]
    if config.policy.kind not in ("plain", "stitch"):  # of what the small model says nobody knows the gap
        chosen.append(Candidate(DecodingSetting(CONFIGURED, None, config)))
    chosen.append(Candidate(DecodingSetting(EXACT, None, found.lossless.knobs.configured(config)), found.lossless))
    lossy = found.lossy or [one for one in [found.best_lossy] if one is not None]
    for number, one in enumerate(spread(lossy, most_lossy), start=1):
        chosen.append(Candidate(DecodingSetting(LOSSY, None, one.knobs.configured(config), number), one))
    return chosen


def choose(points: Sequence[ParetoPoint], max_gap_nats: float) -> ParetoPoint:
    """The fastest within the gap that is faster than plain beyond doubt, by its 95 % interval; else plain.

    With a gap of 0, the fastest lossless one.
    """
    fit = [one for one in points if one.drafted_tokens and (one.lossless in LOSSLESS or max_gap_nats > 0)]
    fit = [one for one in fit if keeps(one.mean_gap_nats_per_token, max_gap_nats) and one.ratio_low > 1]
    return max(fit, key=lambda one: one.ratio_to_plain, default=points[0])


def configuration_file(config: Config, about: Sequence[str]) -> str:
    """YAML that `cmasd run` takes, `about` as comments above; who is notified is left out, for it may be secret."""
    from cmasd.config import to_yaml  # needs omegaconf, which measuring does without

    lines = [*about, "Keys of `notify` are not copied here."]
    return "".join(f"# {line}\n" for line in lines) + to_yaml(replace(config, notify=NotifyConfig()))
