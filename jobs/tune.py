"""`cmasd tune CONFIG`: settings of CM-ASD for a corpus: speed against quality, and a configuration that runs.

Prints progress on stderr; on stdout what was tried, what was measured, what follows, and one line of JSON for programs.
"""

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.arguments import add_config, add_json, read_config
from jobs.measuring import about_line, busy_lines, describe, tell, threads_of_actor, watch, with_drafter
from jobs.pareto_tables import pareto_table
from jobs.records import check_files, command, finish
from jobs.tune_tables import knob_table, searched, sentence

if TYPE_CHECKING:
    from cmasd.config import Config
    from cmasd.engine import Pair
    from cmasd.evaluation.compare.sample import Sample
    from cmasd.evaluation.quality.pareto import ParetoPoint
    from cmasd.evaluation.speed.machine_load import Load
    from cmasd.evaluation.tuning.candidates import Candidate
    from cmasd.evaluation.tuning.search import Search

OPTIONS = (
    *("quick", "seconds", "trials", "rows", "max-draft-tokens", "max-gap", "references"),
    *("seed", "threads", "storage", "plot", "record", "write"),
)
DEFAULTS = {"max-draft-tokens": 8}
SECONDS, QUICK_SECONDS = 1800.0, 200.0
"""Of all, loading included."""
ROWS, QUICK_ROWS = 256, 48
MEASURED_SHARE = 0.35
"""Of the time, for measuring the front."""
MOST_ENGINES = 9
"""In memory at once, when the front is measured."""


def register(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_config(parser)
    add_json(parser)
    parser.add_argument("--quick", action="store_true", help="under four minutes, and fewer rows")
    parser.add_argument("--seconds", type=_positive(float), default=0, metavar="S", help=f"default {SECONDS:.0f}")
    parser.add_argument("--trials", type=_positive(int), default=0, metavar="N", help="lossy settings at most")
    parser.add_argument("--rows", type=_positive(int), default=0, metavar="N", help=f"of the search; default {ROWS}")
    parser.add_argument("--max-draft-tokens", type=_positive(int), default=8, metavar="K", help="default 8")
    parser.add_argument(
        "--max-gap",
        type=float,
        default=0.0,
        metavar="NATS",
        help="per output token, of the choice; default 0: lossless",
    )
    parser.add_argument("--references", metavar="COLUMN", help="also BLEU against this column")
    parser.add_argument("--seed", type=int, default=0, help="of rows and proposals; default 0")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default: those of an actor")
    parser.add_argument("--storage", type=Path, metavar="FILE", help="keep the trials, to go on from there later")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the front (.png, .svg)")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the JSON to a file as well")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the chosen configuration, to be run")


def _positive(kind: type[Any]) -> Any:
    def number(text: str) -> Any:
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"must be greater than 0, got {text}")
        return value

    return number


def main(args: argparse.Namespace) -> int:
    """Search, measure, choose, write."""
    started = time.perf_counter()
    config = read_config(args)
    check_files(args, "storage", "plot", "record", "write")
    check_longest(args, config)
    import torch

    from cmasd.engine import load_pair
    from cmasd.evaluation.compare.sample import read_sample
    from cmasd.evaluation.tuning.search import check_optuna, check_tunable
    from cmasd.models.allocator import keep_freed_memory

    check_optuna()
    keep_freed_memory()
    torch.set_num_threads(args.threads or threads_of_actor(config))
    config = with_drafter(config)
    pair = load_pair(config)
    tell(pair)
    check_tunable(pair, config)
    sample = read_sample(config, pair.codec, args.references)
    about = describe(command(args, "tune", OPTIONS, DEFAULTS), pair.device.type == "cuda")
    tuned = tune(args, config, pair, sample, started, about)
    best = tuned.best
    said = sentence(best, tuned.rows, args.max_gap)
    tables = [searched(tuned.search), knob_table(tuned.rows), pareto_table(tuned.rows)]
    print("\n\n".join([*tables, *busy_lines(tuned.load), said]), flush=True)
    report = {"results": tuned.rows, "chosen": best.engine, "said": said, "search": counts(tuned.search)}
    report |= {"signatures": tuned.signatures, "load": tuned.load.to_dict(), **about}
    save(args, tuned, report)
    finish(args, report)
    return 0


@dataclass(frozen=True)
class Tuned:
    """What came of it."""

    search: "Search"
    rows: list[dict[str, Any]]
    """Measured points with their knobs, for JSON."""
    signatures: dict[str, str]
    """Of the scores, to quote."""
    best: "ParetoPoint"
    config: "Config"
    """Of the best."""
    load: "Load"
    """What else the machine did meanwhile."""


def tune(
    args: argparse.Namespace, config: "Config", pair: "Pair", sample: "Sample", started: float, about: dict[str, Any]
) -> Tuned:
    """Search on some rows, measure on others."""
    from cmasd.engine.capacity import resolve
    from cmasd.evaluation.quality.pareto import measure
    from cmasd.evaluation.tuning.candidates import candidates, choose
    from cmasd.evaluation.tuning.search import divide, search

    places, others = divide(sample, args.rows or (QUICK_ROWS if args.quick else ROWS), args.seed)
    print(
        f"{len(places)} rows to search on, {len(others)} others to measure on; {about['machine']}, "
        f"{about['threads']} threads; {about['command']}",
        flush=True,
    )
    sized, watcher = resolve(pair, config, engines=MOST_ENGINES), watch()
    slots, limit = sized.engine.slots or 1, args.seconds or (QUICK_SECONDS if args.quick else SECONDS)

    def share() -> float:
        return min(1.0, (time.perf_counter() - started) / limit)

    found = search(
        pair,
        sized,
        [sample.sources[place] for place in places],
        most=min(args.max_draft_tokens, pair.parallel.shape.queries if pair.parallel else args.max_draft_tokens),
        seconds=(1 - MEASURED_SHARE - share()) * limit,
        trials=args.trials or None,
        seed=args.seed,
        storage=args.storage,
        on_turn=lambda name: watcher.progress(slots, name, (1 - MEASURED_SHARE) * share()),
    )
    chosen = candidates(sized, found)
    points, signatures = measure(
        pair,
        [one.setting for one in chosen],
        [sample.sources[place] for place in others],
        None if sample.references is None else [sample.references[place] for place in others],
        slots,
        (1 - share()) * limit,
        lambda name, done: watcher.progress(slots, name, share()),
    )
    watcher.close()
    best = choose(points, args.max_gap)
    setting = next(one.setting for one in chosen if one.setting.name == best.engine)
    # The user's own number of slots, which may be `auto`, is kept.
    final = replace(setting.config, engine=replace(setting.config.engine, slots=config.engine.slots))
    rows = [row(point, one) for point, one in zip(points, chosen, strict=True)]
    return Tuned(found, rows, signatures, best, final, watcher.load)


def save(args: argparse.Namespace, tuned: Tuned, report: dict[str, Any]) -> None:
    """Configuration and plot, where asked."""
    from cmasd.evaluation.plots import plot_pareto
    from cmasd.evaluation.tuning.candidates import configuration_file

    if args.write:
        origin = f"Written by {report['command']} on {report['date'][:10]}, {about_line(report)}."
        config = elsewhere(tuned.config)
        args.write.write_text(configuration_file(config, [origin, report["said"]]), encoding="utf-8")
        print(f"\nconfiguration  {args.write}, whose run goes to {config.output.path}", flush=True)
    if args.plot:
        plot_pareto(tuned.rows, args.plot, about_line(report))


def elsewhere(config: "Config") -> "Config":
    """With a run folder of its own: the one it was tuned from may hold a run, which other settings cannot resume."""
    path = f"{config.output.path.rstrip('/')}-tuned"
    return replace(config, output=replace(config.output, path=path))


def check_longest(args: argparse.Namespace, config: "Config") -> None:
    """Raise `ConfigError` where the longest draft would be under the shortest."""
    from cmasd.errors import ConfigError

    if args.max_draft_tokens < config.drafter.min_draft_tokens:
        raise ConfigError(
            f"--max-draft-tokens: must be at least drafter.min_draft_tokens ({config.drafter.min_draft_tokens}), "
            f"got {args.max_draft_tokens}."
        )


def row(point: "ParetoPoint", candidate: "Candidate") -> dict[str, Any]:
    """A measured point with its knobs and what the search thought of it; null where it was not searched for."""
    tried = candidate.tried
    return {**point.to_dict(), "tried": None if tried is None else tried.to_dict()}


def counts(found: "Search") -> dict[str, Any]:
    """Of a search, for JSON."""
    levels = {"plain_level": found.times.plain_level, "drafting_level": found.times.drafting_level}
    numbers = {name: getattr(found, name) for name in ("rows", "replayed", "decoded", "pruned")}
    return {**numbers, **levels, "lossy_front": [one.to_dict() for one in found.lossy]}
