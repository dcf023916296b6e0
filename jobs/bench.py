"""`cmasd bench CONFIG`: tokens/s of every way of decoding, side by side in one run; or speed against quality.

Prints progress on stderr; on stdout a table, what it says in words, and one line of JSON for programs.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmasd.evaluation.speed.engines import ENGINES, OPTIONAL, Lineup
from jobs.arguments import add_config, add_json, read_config
from jobs.bench_tables import conclusions, result_table, step_table
from jobs.measuring import about_line, busy_lines, describe, tell, watch, with_drafter
from jobs.pareto_tables import pareto_table, promises
from jobs.records import check_files, command, finish

if TYPE_CHECKING:
    from cmasd.config import Config
    from cmasd.engine import Pair

QUICK, FULL = [1, 8, 32], [1, 2, 4, 8, 16, 32, 64, 128]
QUICK_SECONDS, STEP_SECONDS = 205.0, 15.0
"""Of --quick, loading and --steps included; and of --steps."""
OPTIONS = (
    "quick",
    "steps",
    "pareto",
    "batch-sizes",
    "chunks",
    "rows",
    "engines",
    "fixed",
    "threads",
    "references",
    "plot",
    "record",
)


def register(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_config(parser)
    add_json(parser)
    quick, full = (",".join(map(str, sizes)) for sizes in (QUICK, FULL))
    names = ",".join(ENGINES)
    parser.add_argument("--quick", action="store_true", help=f"batch sizes {quick}, fewer rows: under four minutes")
    parser.add_argument("--batch-sizes", type=_numbers, metavar="N,..", help=f"default {full}")
    parser.add_argument("--chunks", type=_number, default=0, metavar="N", help="of rows, each timed; default 5")
    parser.add_argument("--rows", type=_number, default=0, metavar="N", help="of a chunk; default 64, three batches")
    parser.add_argument(
        "--engines",
        type=_engines,
        default=ENGINES,
        metavar="NAME,..",
        help=f"default {names}; also {','.join(OPTIONAL)}",
    )
    parser.add_argument("--fixed", type=_numbers, default=[], metavar="K,..", help="more draft lengths of fixed")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default: all")
    parser.add_argument("--steps", action="store_true", help="also the cost of one forward by rows and query tokens")
    parser.add_argument(
        "--pareto", action="store_true", help="speed against quality, of quality budgets and relaxed verification"
    )
    parser.add_argument("--references", metavar="COLUMN", help="with --pareto: also BLEU against this column")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw what is measured (.png, .svg)")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the JSON to a file as well")


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise argparse.ArgumentTypeError(f"must be whole numbers of at least 1, with commas between, got {text}")
    return list(dict.fromkeys(map(int, parts)))


def _number(text: str) -> int:
    [number, *others] = _numbers(text)
    if others:
        raise argparse.ArgumentTypeError(f"must be one number, got {text}")
    return number


def _engines(text: str) -> tuple[str, ...]:
    names, known = tuple(text.split(",")), (*ENGINES, *OPTIONAL)
    if strange := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"no engine {strange[0]!r}; expected some of {', '.join(known)}")
    return names


def main(args: argparse.Namespace) -> int:
    """Measure, then print."""
    started = time.perf_counter()
    config = read_config(args)
    check_options(args)
    check_files(args, "plot", "record")
    import torch

    from cmasd.engine import load_pair
    from cmasd.models.allocator import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    pair = load_pair(with_drafter(config))
    tell(pair)
    measure = speed_against_quality if args.pareto else speeds
    report = measure(args, config, pair, started)
    if args.plot:
        draw(args, report)
    finish(args, report)
    return 0


def speeds(args: argparse.Namespace, config: "Config", pair: "Pair", started: float) -> dict[str, Any]:
    """Every engine at every batch size."""
    from cmasd.evaluation.speed.bench import bench
    from cmasd.evaluation.speed.steps import step_costs
    from cmasd.evaluation.speed.timing import CHUNKS

    sizes = args.batch_sizes or (QUICK if args.quick else FULL)
    sources = [source for source, _ in encoded(config, pair, max(sizes), chunks=args.chunks, chunk_rows=args.rows)]
    about = introduce(args, pair, len(sources))
    seconds = _seconds_left(args, started)
    watcher = watch()
    lineup = Lineup(tuple(args.engines), tuple(args.fixed))
    chunks = args.chunks or CHUNKS
    measured = bench(pair, config, sources, sizes, lineup, seconds, watcher, chunks, args.rows)
    results = [row.to_dict() for row in measured]
    watcher.close()
    print(result_table(results), flush=True)
    costs = step_costs(pair, config, sources, sizes, STEP_SECONDS) if args.steps else []
    steps = [cost.to_dict() for cost in costs]
    if steps:
        print(f"\n{step_table(steps)}")
    print("", *busy_lines(watcher.load), *conclusions(results), sep="\n", flush=True)
    found = {"results": results, "steps": steps, "skipped": watcher.left_out}
    return {**found, "load": watcher.load.to_dict(), **about}


def speed_against_quality(args: argparse.Namespace, config: "Config", pair: "Pair", started: float) -> dict[str, Any]:
    """Every setting at one batch size."""
    from cmasd.engine.capacity import resolve
    from cmasd.evaluation.quality.pareto import pareto, settings

    sized = resolve(pair, config, engines=len(settings(config))) if config.engine.slots is None else config
    [size] = args.batch_sizes or [sized.engine.slots]
    rows = encoded(config, pair, size, args.references)
    about = introduce(args, pair, len(rows))
    references = [reference for _, reference in rows] if args.references else None
    watcher = watch()
    seconds = _seconds_left(args, started)
    points, signatures = pareto(
        pair, config, [source for source, _ in rows], references, size, seconds, partial(watcher.progress, size)
    )
    watcher.close()
    results = [point.to_dict() for point in points]
    print(pareto_table(results), "", *busy_lines(watcher.load), *promises(results), sep="\n", flush=True)
    return {"results": results, "signatures": signatures, "load": watcher.load.to_dict(), **about}


def _seconds_left(args: argparse.Namespace, started: float) -> float | None:
    """For measuring, with --quick."""
    return QUICK_SECONDS - (time.perf_counter() - started) - STEP_SECONDS * args.steps if args.quick else None


def introduce(args: argparse.Namespace, pair: "Pair", texts: int) -> dict[str, Any]:
    """Say what is measured where, in one line; returns it for the record."""
    from cmasd.evaluation.speed.lineup import dtype_name

    about = describe(command(args, "bench", OPTIONS, {"engines": ENGINES}), pair.device.type == "cuda")
    about["drafter_dtype"] = f"int{pair.drafter_bits}" if pair.drafter_bits else dtype_name(pair.verifier.dtype)
    print(f"{texts} texts; {about['machine']}, {about['threads']} threads; {about['command']}", flush=True)
    return about


def check_options(args: argparse.Namespace) -> None:
    """Options that go together; raises `ConfigError`."""
    from cmasd.errors import ConfigError

    if args.references and not args.pareto:
        raise ConfigError("--references: is an option of --pareto. Add --pareto, or leave it out.")
    for name in ("chunks", "rows"):
        if getattr(args, name) and args.quick:
            raise ConfigError(f"--{name}: does not go together with --quick, which takes what fits. Leave one out.")
    if not args.pareto:
        return
    if len(args.batch_sizes or [1]) > 1:
        raise ConfigError(f"--batch-sizes: --pareto takes one, got {len(args.batch_sizes)}. Run it once for each.")
    asked = {
        "--engines": tuple(args.engines) != ENGINES,
        "--fixed": bool(args.fixed),
        "--steps": args.steps,
        "--chunks": bool(args.chunks),
        "--rows": bool(args.rows),
    }
    if others := [name for name, is_asked in asked.items() if is_asked]:
        raise ConfigError(f"{others[0]}: does not go together with --pareto, which has its own settings. Leave it out.")


def draw(args: argparse.Namespace, report: dict[str, Any]) -> None:
    """The plot."""
    from cmasd.evaluation.plots import plot_pareto, plot_throughput

    plot = plot_pareto if args.pareto else plot_throughput
    plot(report["results"], args.plot, about_line(report))


def encoded(
    config: "Config", pair: "Pair", largest_batch: int, column: str | None = None, chunks: int = 0, chunk_rows: int = 0
) -> list[tuple[list[int], str]]:
    """Token ids of as many texts as the largest batch size can use, each with its reference (empty without a column).

    Raises `InputError` when there are none.
    """
    from cmasd.core import RowError
    from cmasd.errors import InputError
    from cmasd.evaluation.quality.references import first_pairs
    from cmasd.evaluation.speed.timing import CHUNKS, MOST_CHUNKS, full_rounds
    from cmasd.io.plan import make_plan
    from cmasd.io.samples import first_texts

    most = max(chunks, MOST_CHUNKS) if not chunk_rows else chunks or CHUNKS
    count = most * full_rounds(largest_batch, rows=chunk_rows).rows
    if column is None:
        rows = [(text, "") for text in first_texts(config, make_plan(config), count)]
    else:
        rows = first_pairs(config, column, count)
    encodings = pair.codec.encode([text for text, _ in rows])
    found = [(ids, ref) for ids, (_, ref) in zip(encodings, rows, strict=True) if not isinstance(ids, RowError)]
    if not found:
        raise InputError(f"input.path: none of the first {len(rows)} rows can be encoded, got {config.input.path}.")
    return found
