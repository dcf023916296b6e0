"""Speed against quality: policy `goodput` under quality budgets, next to relaxed verification, plain as the zero.

All settings decode the same rows in turns, as in a bench. SetScores is measured twice: as the mean log-probability gap
per output token, which is what a budget bounds, and as BLEU and chrF against plain's output (and BLEU against
references). A point is on a front when no other is at least as fast and as good, and better in one. Rows that come up
again because there are too few are timed, and scored once. Intervals are of the ratio; scores have none.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cmasd.config.tree import Config
from cmasd.engine import Pair
from cmasd.errors import ConfigError
from cmasd.evaluation.quality.sets import SetScores, output_texts, score
from cmasd.evaluation.speed.bench import Timed, take_turns
from cmasd.evaluation.speed.engines import as_measured
from cmasd.evaluation.speed.lineup import can_draft, our_contender
from cmasd.evaluation.speed.request_decoder import plain_config
from cmasd.evaluation.speed.timing import exact_match, paired_ratio

BUDGETS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Nats per output token; 0 is lossless."""
TAUS = (0.25, 0.5, 1.0, 2.0, 3.0)
"""Nats, of relaxed verification."""
BUDGETED = "goodput, budget"
ROUNDING = 1e-3
"""Share of a budget by which sums of float32 may miss it."""


@dataclass(frozen=True)
class DecodingSetting:
    """One way of decoding."""

    kind: str
    """What it has in common with others: `plain`, `BUDGETED`, `fixed, relaxed`, a candidate of a tuning."""
    nats: float | None
    """The budget, or tau; None where the kind has neither."""
    config: Config
    number: int | None = None
    """Tells settings of one kind apart that have no nats to do so."""

    @property
    def name(self) -> str:
        """Unique among the settings."""
        told = self.number if self.nats is None else f"{self.nats:g}"
        return self.kind if told is None else f"{self.kind} {told}"


@dataclass(frozen=True)
class ParetoPoint:
    """One setting, measured."""

    engine: str
    kind: str
    """As of the setting."""
    nats: float | None
    """The budget in nats per output token, or tau in nats; None of plain."""
    batch_size: int
    dtype: str
    rows: int
    """Timed."""
    scored_rows: int
    """Of those, each row of the input once."""
    chunks: int
    tokens_per_second: float
    """Median over chunks."""
    ratio_to_plain: float
    ratio_low: float
    """Lower end of the 95 % interval over chunks."""
    ratio_high: float
    mean_gap_nats_per_token: float
    """Over the tokens of the timed rows."""
    life_gap_nats_per_token: float
    """Over all tokens since the engine was built, which is what it keeps the budget over."""
    within_budget: bool | None
    """Whether that is at most the budget; None without one."""
    exact_match_to_plain: float
    """Share of scored rows with the same tokens as plain."""
    bleu_to_plain: float
    """Corpus BLEU with plain's output as reference, to two decimals."""
    chrf_to_plain: float
    bleu_to_references: float | None
    """None without references."""
    drafted_tokens: int
    """Of a setting that drafted nothing the ratio to plain is noise: both decode alike."""
    tokens_per_iteration: float
    acceptance_rate: float | None
    """None where nothing was drafted."""
    lossless: str
    """`exact`, `exact but for ties` or `lossy`."""
    on_gap_front: bool = False
    """No other point dominates it in speed and mean gap."""
    on_bleu_front: bool = False
    """No other point dominates it in speed and BLEU against plain."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def settings(config: Config) -> list[DecodingSetting]:
    """Plain, then every budget and every tolerance; `config` gives everything else."""
    exact, relaxed = (replace(config.verification, kind=kind) for kind in ("exact", "relaxed"))
    found = [DecodingSetting("plain", None, plain_config(replace(config, verification=exact)))]
    for budget in BUDGETS:
        policy = replace(config.policy, kind="goodput")
        # Without anything to spend it is exact verification, and promises as much.
        spending = replace(exact, kind="budget", budget_nats_per_token=budget) if budget else exact
        found.append(DecodingSetting(BUDGETED, budget, replace(config, policy=policy, verification=spending)))
    for kind in ("fixed", "goodput"):
        policy = replace(config.policy, kind=kind)
        for tau in TAUS:
            one = replace(config, policy=policy, verification=replace(relaxed, tau=tau))
            found.append(DecodingSetting(f"{kind}, relaxed", tau, one))
    return found


def pareto(
    pair: Pair,
    config: Config,
    sources: list[list[int]],
    references: list[str] | None,
    batch_size: int,
    seconds: float | None = None,
    on_turn: Callable[[str, float], None] = lambda name, share: None,
) -> tuple[list[ParetoPoint], dict[str, str]]:
    """The points, plain first, and the signatures of their scores; `seconds` as in a bench.

    `references` belong to the sources one by one. Raises `ConfigError` for a pair that cannot speculate.
    """
    if not can_draft(pair, config):
        raise ConfigError("models.drafter: must be set for --pareto, got null. Name a model, or set drafter.kind=copy.")
    return measure(pair, settings(config), sources, references, batch_size, seconds, on_turn)


def measure(
    pair: Pair,
    every: Sequence[DecodingSetting],
    sources: list[list[int]],
    references: list[str] | None,
    batch_size: int,
    seconds: float | None = None,
    on_turn: Callable[[str, float], None] = lambda name, share: None,
) -> tuple[list[ParetoPoint], dict[str, str]]:
    """The same for any settings, the first of which is plain."""
    until = None if seconds is None else time.perf_counter() + seconds
    pair = pair.sized_for(sources)
    contenders = [our_contender(one.name, pair, one.config, batch_size) for one in every]
    timed = take_turns(pair, sources, contenders, batch_size, until, on_turn)
    keys = sorted(key for key in timed[0].measured.outputs if key < len(sources))
    texts = [output_texts(pair, one.measured, keys) for one in timed]
    kept = None if references is None else [references[key] for key in keys]
    points, to_plain = [], None
    for setting, one, text in zip(every, timed, texts, strict=True):
        to_plain = score(setting.name, text, texts[0])
        to_references = None if kept is None else score(setting.name, text, kept)
        points.append(_point(setting, one, timed[0], batch_size, keys, to_plain, to_references))
    assert to_plain is not None, "plain is always there"
    return with_fronts(points), {"bleu": to_plain.bleu_signature, "chrf": to_plain.chrf_signature}


def _point(
    setting: DecodingSetting,
    timed: Timed,
    plain: Timed,
    batch_size: int,
    keys: Sequence[int],
    to_plain: SetScores,
    to_references: SetScores | None,
) -> ParetoPoint:
    one, measured, stats = timed.contender, timed.measured, timed.stats
    assert stats is not None, "every setting is an engine of ours"
    assert one.stats is not None, "every setting is an engine of ours"
    speed, life = paired_ratio(measured, plain.measured), one.gap_nats / one.stats.output_tokens
    outputs, expected = ({key: two.measured.outputs[key] for key in keys} for two in (timed, plain))
    match = exact_match(outputs, expected)
    has_budget = setting.kind == BUDGETED and setting.nats is not None
    return ParetoPoint(
        engine=setting.name,
        kind=setting.kind,
        nats=setting.nats,
        batch_size=batch_size,
        dtype=one.dtype,
        rows=len(measured.outputs),
        scored_rows=len(keys),
        chunks=len(measured.seconds),
        tokens_per_second=float(np.median(measured.rates)),
        ratio_to_plain=speed.value,
        ratio_low=speed.low,
        ratio_high=speed.high,
        mean_gap_nats_per_token=timed.gap_nats / sum(measured.tokens),
        life_gap_nats_per_token=life,
        within_budget=keeps(life, setting.nats or 0.0) if has_budget else None,
        exact_match_to_plain=match,
        bleu_to_plain=round(to_plain.bleu, 2),
        chrf_to_plain=round(to_plain.chrf, 2),
        bleu_to_references=None if to_references is None else round(to_references.bleu, 2),
        drafted_tokens=stats.drafted_tokens,
        tokens_per_iteration=stats.tokens_per_iteration,
        acceptance_rate=stats.acceptance_rate if stats.drafted_tokens else None,
        lossless=as_measured(one.lossless, match),
    )


def keeps(gap: float, budget: float) -> bool:
    """Whether a mean gap keeps a budget, both in nats per token."""
    return gap <= budget * (1 + ROUNDING)


def with_fronts(points: Sequence[ParetoPoint]) -> list[ParetoPoint]:
    """The same points, marked where no other dominates them; one that drafted nothing is as fast as plain."""
    speeds = [one.ratio_to_plain if one.drafted_tokens else 1.0 for one in points]
    gap = front([(speed, -one.mean_gap_nats_per_token) for speed, one in zip(speeds, points, strict=True)])
    bleu = front([(speed, one.bleu_to_plain) for speed, one in zip(speeds, points, strict=True)])
    return [
        replace(one, on_gap_front=is_gap, on_bleu_front=is_bleu)
        for one, is_gap, is_bleu in zip(points, gap, bleu, strict=True)
    ]


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of (speed, quality), larger is better: whether no other point is as large in both and larger in one."""
    return [not any(two[0] >= one[0] and two[1] >= one[1] and two != one for two in points) for one in points]
