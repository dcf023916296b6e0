"""The settings of CM-ASD that suit a corpus, a pair and a machine: speed against quality, and a choice between them.

Lossless settings are replayed from one recording (`replay.py`), exactly, in milliseconds. Lossy ones change the output,
so they are decoded, on growing samples of rows: of each cohort the half that is less dominated goes on. Both are judged
by the same table of iteration times, over plain decoding of the same rows, so that a noisy machine favours nobody; the
gap in nats per token is the verifier's own. Optuna proposes (TPE, seeded).

A table is no stopwatch, and the best of many are lucky: what is on the front is decoded at the end (`candidates.py`),
in turns with plain, on rows that the search has not seen. Only those figures are results.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from cmasd.config import fingerprint
from cmasd.config.tree import Config
from cmasd.core import Request
from cmasd.engine import Pair
from cmasd.engine.capacity import resolve
from cmasd.errors import ConfigError
from cmasd.evaluation.compare.sample import Sample
from cmasd.evaluation.speed.lineup import can_draft
from cmasd.evaluation.tuning.iteration_times import IterationTimes, measure_times
from cmasd.evaluation.tuning.knobs import starts, suggest
from cmasd.evaluation.tuning.lab import Lab, Trial, Tried, best_first
from cmasd.evaluation.tuning.replay import record
from cmasd.policies.costs import StepTable

RUNGS = (0.25, 0.5, 1.0)
"""Shares of the rows that lossy settings are decoded on, one after the other."""
COHORT = 8
"""Lossy settings that begin together; half of them reach the next rung."""
FEWEST_REPLAYS, MOST_REPLAYS = 20, 200
"""Lossless settings tried."""
LOSSLESS_SHARE = 0.15
"""Of the time that is left after recording; the rest is for lossy settings."""
OnTurn = Callable[[str], None]


@dataclass(frozen=True)
class Search:
    """What was tried, and what came of it."""

    replayed: int
    """Lossless settings."""
    decoded: int
    """Lossy ones that were decoded on all rows, those of an earlier search in the same storage included."""
    pruned: int
    """Lossy ones that were given up before."""
    rows: int
    lossless: Tried
    """The fastest lossless setting."""
    lossy: list[Tried]
    """The lossy ones that none dominates, lossless and plain included; by gap."""
    best_lossy: Tried | None
    """The fastest lossy one, whether dominated or not; None where the time was up before any."""
    times: IterationTimes


def check_optuna() -> None:
    """Raise `ConfigError` where it is not installed."""
    if find_spec("optuna") is None:
        raise ConfigError("tune: needs optuna, which is not installed. Install it: pip install 'cmasd[tune]'.")


def check_tunable(pair: Pair, config: Config) -> None:
    """Raise `ConfigError` where there is nothing to tune."""
    if config.drafter.model is None or config.drafter.free or not can_draft(pair, config):
        raise ConfigError(
            "drafter.kind: must be model, parallel, self or quantised with a drafter to load, got "
            f"{config.drafter.name} and {config.models.drafter}. Tuning is of confidence, which a drafting model alone "
            "has."
        )
    if config.confidence.calibration is not None:
        raise ConfigError(
            "confidence.calibration: must be null for tuning, which tries other weights than the maps were fitted "
            f"with, got {config.confidence.calibration}. Leave it out, and calibrate a run of the tuned configuration."
        )


def divide(sample: Sample, rows: int, seed: int) -> tuple[list[int], list[int]]:
    """Places for the search, in random order, and others to measure on; the same where there is one row only."""
    known = len(sample.sources)
    count = min(rows, max(1, known // 2))
    chunks = sample.chunks(count, max(2, known // count), seed)
    searched = chunks[0]
    rest = list(dict.fromkeys(place for chunk in chunks[1:] for place in chunk if place not in set(searched)))
    np.random.default_rng(seed).shuffle(searched)
    return searched, rest or searched


def search(
    pair: Pair,
    config: Config,
    sources: Sequence[list[int]],
    *,
    most: int,
    seconds: float,
    trials: int | None = None,
    seed: int = 0,
    storage: Path | None = None,
    on_turn: OnTurn = lambda name: None,
) -> Search:
    """Try settings with drafts of up to `most` tokens for about so long; the least is a cohort of lossy ones.

    `trials` limits the lossy ones. `storage` keeps them: a later search of the same configuration, rows and seed goes
    on from there.
    """
    check_optuna()
    check_tunable(pair, config)
    deadline = time.perf_counter() + seconds
    pair = pair.sized_for(sources)
    widest = replace(config.drafter, max_draft_tokens=most)
    sized = resolve(pair, replace(config, drafter=widest), engines=2)
    requests = [Request(key, source, pair.max_new_tokens) for key, source in enumerate(sources)]
    study = _study(f"{fingerprint(config)}-{len(sources)}-{most}-{seed}", storage, seed)
    on_turn("recording")
    lab = Lab(pair, sized, requests, _times(study, pair, sized, requests), record(pair, sized, requests))
    now = time.perf_counter()
    lossless, replayed = _replay(lab, config, most, seed, now + LOSSLESS_SHARE * (deadline - now), on_turn)
    _decode(lab, config, most, study, trials, deadline, on_turn)
    states = [trial.state.name for trial in study.trials]
    whole = [Tried.from_dict(trial.user_attrs["tried"]) for trial in study.trials if trial.state.name == "COMPLETE"]
    kept = [one for one in best_first([*whole, *lab.zeros(len(requests)), lossless], None) if one in whole]
    return Search(
        replayed,
        len(whole),
        states.count("PRUNED"),
        len(requests),
        lossless,
        sorted(kept, key=lambda one: one.gap_nats),
        max(whole, key=lambda one: one.speedup, default=None),
        lab.times,
    )


# ------------------------------------------------------------------------------- trying


def _replay(lab: Lab, config: Config, most: int, seed: int, until: float, on_turn: OnTurn) -> tuple[Tried, int]:
    """The fastest lossless setting, and how many were tried."""
    study, rows = _study("lossless", None, seed, directions=("maximize",)), len(lab.requests)
    for given in starts(config, most, is_lossless=True):
        study.enqueue_trial(given)
    found: list[Tried] = []
    while len(found) < FEWEST_REPLAYS or (len(found) < MOST_REPLAYS and time.perf_counter() < until):
        asked = study.ask()
        found.append(lab.replay(suggest(asked, most, is_lossless=True), rows))
        study.tell(asked, found[-1].speedup)
        on_turn(f"lossless {len(found)}")
    return max(found, key=lambda one: one.speedup), len(found)


def _decode(
    lab: Lab, config: Config, most: int, study: Any, trials: int | None, deadline: float, on_turn: OnTurn
) -> None:
    """Cohorts of lossy settings, one at least, as long as another is likely to end in time."""
    if not study.trials:
        for given in starts(config, most, is_lossless=False):
            study.enqueue_trial(given)
    done = 0
    while trials is None or done < trials:
        begun = time.perf_counter()
        size = COHORT if trials is None else min(COHORT, trials - done)
        _cohort(lab, most, study, size, on_turn)
        done += size
        now = time.perf_counter()
        if now + (now - begun) > deadline:
            return


def _cohort(lab: Lab, most: int, study: Any, size: int, on_turn: OnTurn) -> None:
    """From `size` settings on a few rows to a quarter of them on all."""
    alive = [Trial(asked := study.ask(), suggest(asked, most, is_lossless=False)) for _ in range(size)]
    for share in RUNGS:
        rows = max(1, round(share * len(lab.requests)))
        tried = []
        for trial in alive:
            on_turn(f"lossy {trial.asked.number + 1}, {rows} rows")
            tried.append(lab.decode(trial, rows))
        kept = tried
        if share < 1:
            some = best_first([*tried, *lab.zeros(rows)], -(-len(alive) // 2) + 1)
            kept = [one for one in some if one in tried][: -(-len(alive) // 2)]
        for trial, one in zip(alive, tried, strict=True):
            if share == 1:
                trial.asked.set_user_attr("tried", one.to_dict())
                study.tell(trial.asked, (one.speedup, one.gap_nats))
            elif one not in kept:
                study.tell(trial.asked, state=_optuna().trial.TrialState.PRUNED)
        alive = [trial for trial, one in zip(alive, tried, strict=True) if one in kept]


# ------------------------------------------------------------------------------- optuna


def _optuna() -> Any:
    """An extra, and slow to import."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _study(name: str, storage: Path | None, seed: int, directions: tuple[str, ...] = ("maximize", "minimize")) -> Any:
    """New, or as far as the storage knows it."""
    optuna = _optuna()
    kept = None
    if storage is not None:
        kept = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(storage)))
    study = optuna.create_study(study_name=name, storage=kept, directions=directions, load_if_exists=True)
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    return study


def _times(study: Any, pair: Pair, config: Config, requests: list[Request]) -> IterationTimes:
    """Of the study, whose trials were judged by them; else measured."""
    known = study.user_attrs.get("times")
    if known:
        return IterationTimes(**{**known, "table": StepTable.of(known["table"])})
    slots = config.engine.slots or 1
    found = measure_times(pair, config, requests[:slots])
    study.set_user_attr("times", asdict(found))
    return found
