"""`cmasd bench [CONFIG]`: tokens/s of every way of decoding, side by side in one run."""

import argparse
import json
import sys
from dataclasses import replace
from importlib.metadata import version
from itertools import groupby
from typing import TYPE_CHECKING, Any

from jobs.arguments import add_config, read_config
from jobs.machine import machine
from jobs.tables import table

if TYPE_CHECKING:
    from cmasd.config import Config

QUICK, FULL = [1, 8, 32], [1, 2, 4, 8, 16, 32, 64, 128]


def register(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_config(parser)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--batch-sizes", type=_sizes, help=f"comma-separated; default {','.join(map(str, FULL))}")
    sizes.add_argument("--quick", action="store_true", help=f"batch sizes {','.join(map(str, QUICK))}")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default: all")


def _sizes(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise argparse.ArgumentTypeError(f"must be whole numbers of at least 1, with commas between, got {text}")
    return [int(part) for part in parts]


def main(args: argparse.Namespace) -> int:
    """Print a table per batch size as it is measured; last, one JSON line."""
    config = read_config(args)
    import torch

    from cmasd.core import RowError
    from cmasd.engine import load_pair
    from cmasd.errors import InputError
    from cmasd.evaluation.bench import bench, rows_for
    from cmasd.io.plan import make_plan
    from cmasd.io.samples import first_texts

    torch.set_num_threads(args.threads or torch.get_num_threads())
    sizes = args.batch_sizes or (QUICK if args.quick else FULL)
    pair = load_pair(with_drafter(config))
    texts = first_texts(config, make_plan(config), rows_for(max(sizes)))
    sources = [ids for ids in pair.codec.encode(list(texts)) if not isinstance(ids, RowError)]
    if not sources:
        raise InputError(f"input.path: none of the first {len(texts)} rows can be encoded, got {config.input.path}.")
    about = f"{machine(pair.device.type == 'cuda')}, {torch.get_num_threads()} threads, {versions()}"
    print(f"{len(sources)} rows; {about}", flush=True)
    results: list[dict[str, Any]] = []
    for _, rows in groupby(bench(pair, config, sources, sizes, progress), key=lambda row: row.batch_size):
        measured = [row.to_dict() for row in rows]
        print(table([_cells(row) for row in measured], HEADER), flush=True)
        results += measured
    print(json.dumps({"results": results, "machine": about}))
    return 0


def with_drafter(config: "Config") -> "Config":
    """Under policy `plain` no drafter would be loaded, yet the other engines are measured as well."""
    if config.policy.kind != "plain" or config.models.drafter is None:
        return config
    return replace(config, policy=replace(config.policy, kind="fixed"))


def progress(batch_size: int, name: str, chunk: int) -> None:
    """One line that is overwritten, on a terminal alone."""
    if sys.stderr.isatty():
        print(f"\rbatch {batch_size}: {name}, chunk {chunk + 1}    ", end="\r", file=sys.stderr, flush=True)


def versions() -> str:
    """Of what decides the speed."""
    return f"torch {version('torch')}, transformers {version('transformers')}"


HEADER = (
    "engine",
    "batch",
    "tokens/s",
    "quartiles of chunks",
    "x plain (95 %)",
    "tok/iter",
    "accepted",
    "= plain",
    "lossless",
)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    per_iteration, acceptance = row["tokens_per_iteration"], row["acceptance_rate"]
    return (
        row["engine"],
        str(row["batch_size"]),
        f"{row['tokens_per_second']:.0f}",
        f"{row['chunk_low']:.0f}-{row['chunk_high']:.0f}",
        f"{row['ratio_to_plain']:.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})",
        "-" if per_iteration is None else f"{per_iteration:.2f}",
        "-" if acceptance is None else f"{acceptance:.0%}",
        f"{row['exact_match_to_plain']:.1%}",
        row["lossless"],
    )
