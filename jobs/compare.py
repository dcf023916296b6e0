"""`cmasd compare CONFIG`: ways of decoding on a sample of the corpus, side by side: speed, quality, cost.

Prints progress on stderr; on stdout tables, a recommendation, and one line of JSON for programs.
"""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmasd.errors import ConfigError
from jobs.arguments import add_config, add_json, read_config
from jobs.compare_tables import answer_table, score_table, sentence, speed_table, worth_table
from jobs.measuring import about_line, busy_lines, describe, tell, threads_of_actor, watch, with_drafter
from jobs.records import check_files, command, finish

if TYPE_CHECKING:
    from cmasd.config import Config
    from cmasd.evaluation.compare.comparison import Comparison

OPTIONS = ("quick", "references", "threads", "plot", "record")
QUICK_SECONDS = 270.0
"""Of --quick, loading included; scores against references come on top."""


def register(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_config(parser)
    add_json(parser)
    parser.add_argument("--quick", action="store_true", help="less time than compare.max_seconds: under six minutes")
    parser.add_argument(
        "--references",
        metavar="COLUMN",
        help="also BLEU, chrF and ROUGE (of recordings: word error rates) against this column",
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default: those of an actor")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw right answers against seconds (.png, .svg)")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the JSON to a file as well")


def main(args: argparse.Namespace) -> int:
    """Measure, then print."""
    started = time.perf_counter()
    config = read_config(args)
    if args.plot and config.compare.answer == "none":
        raise ConfigError("--plot: draws right answers, got compare.answer none. Set compare.answer=gsm8k, or another.")
    check_files(args, "plot", "record")
    import torch

    from cmasd.engine import load_pair
    from cmasd.evaluation.compare.comparison import compare
    from cmasd.evaluation.compare.sample import read_sample
    from cmasd.models.allocator import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(args.threads or threads_of_actor(config))
    config = with_drafter(config)
    pair = load_pair(config)
    tell(pair)
    sample = read_sample(config, pair.codec, args.references)
    about = describe(command(args, "compare", OPTIONS), pair.device.type == "cuda")
    print(
        f"{len(sample.sources):,} texts for a corpus of {sample.corpus_rows:,.0f}; {about['machine']}, "
        f"{about['threads']} threads; {about['command']}",
        flush=True,
    )
    limit = config.compare.max_seconds
    seconds = min(limit, QUICK_SECONDS - (time.perf_counter() - started)) if args.quick else limit
    watcher = watch()
    comparison = compare(pair, config, sample, seconds, watcher)
    watcher.close()
    say(args, config, comparison, {"skipped": skipped(watcher.left_out), "load": watcher.load.to_dict(), **about})
    return 0


def skipped(left_out: list[dict[str, str]]) -> list[dict[str, str]]:
    """Who took no part, and why."""
    return [{"name": one["engine"], "reason": one["reason"]} for one in left_out]


def say(args: argparse.Namespace, config: "Config", comparison: "Comparison", about: dict[str, Any]) -> None:
    """Tables, recommendation, record, and the JSON line."""
    from cmasd.evaluation.compare.recommend import recommend
    from cmasd.evaluation.speed.machine_load import Load

    advice = recommend(comparison.results)
    plain, rows = comparison.results[0], [one.to_dict() for one in comparison.results]
    tables = [speed_table(rows), worth_table(rows)]
    tables += [score_table(rows)] if plain.scores else []
    tables += [answer_table(rows)] if plain.accuracy is not None else []
    said = sentence(advice, plain)
    remarks = [*reasons(about["skipped"]), *busy_lines(Load(**about["load"])), basis(config, comparison)]
    print("\n\n".join(tables), *remarks, said, sep="\n\n", flush=True)
    report = {
        "results": rows,
        "recommended": advice.choice.name,
        "recommendation": said,
        "corpus_rows": comparison.corpus_rows,
        "relative_ci": comparison.relative_ci,
        "accelerator_per_hour": config.cost.accelerator_per_hour,
        "signatures": comparison.signatures,
        **about,
    }
    if args.plot:
        from cmasd.evaluation.plots import plot_answers

        plot_answers(rows, args.plot, about_line(report))
    finish(args, report)


def reasons(left_out: list[dict[str, str]]) -> list[str]:
    """One paragraph, where anyone was left out."""
    return ["\n".join(f"{one['name']}: skipped, {one['reason']}" for one in left_out)] if left_out else []


def basis(config: "Config", comparison: "Comparison") -> str:
    """What the figures rest on."""
    one, asked = comparison.results[0], config.compare.max_relative_ci
    reached = "as asked" if comparison.relative_ci <= asked else f"{asked:.0%} was asked, but the time was up"
    return (
        f"{one.rows:,} rows each, {one.chunks} rounds at batch size {one.batch_size}; costs are known to "
        f"{comparison.relative_ci:.1%} or better ({reached})."
    )
