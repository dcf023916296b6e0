"""`cmasd audit RUN`: decodes rows of a run again plainly, and tells near-ties of rounding from faults of the decoding.

Exit code 1 where a difference cannot be rounding. For programs the last line is JSON.
"""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.arguments import add_json, print_json, wants_json

if TYPE_CHECKING:
    from cmasd.reports.audit import Audited

DEFAULT_ROWS = 256
MOST_SHOWN = 20


def register(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_json(parser)
    parser.add_argument("run", metavar="RUN", help="run folder, local or s3://, finished or not")
    parser.add_argument(
        "--rows", type=int, default=DEFAULT_ROWS, help=f"rows to decode again, evenly spread; default {DEFAULT_ROWS}"
    )


def main(args: argparse.Namespace) -> int:
    """Decode, compare, tell."""
    from cmasd.errors import ConfigError
    from cmasd.reports.audit import audit

    if args.rows < 1:
        raise ConfigError(f"--rows: must be at least 1, got {args.rows}.")
    audited = audit(args.run, args.rows)
    if audited.found:
        print(f"{table_of(audited)}\n")
    how = "tokens" if audited.by_tokens else "texts, as the run kept no tokens (telemetry.level=token keeps them)"
    print(f"{audited.sentence}; compared by {how}")
    if wants_json(args):
        found = [{"id": name, **asdict(one)} for name, one, _, _ in audited.found]
        counts = {"algorithmic": audited.algorithmic, "near_ties": audited.near_ties}
        print_json({"run": args.run, "rows": audited.rows, "by_tokens": audited.by_tokens, **counts, "found": found})
    return 1 if audited.algorithmic else 0


def table_of(audited: "Audited") -> str:
    """The first of what was found."""
    from jobs.tables import table

    header = ("row", "token", "plain", "run", "gap in nats", "in last places", "cause")
    lines = [
        (
            name,
            str(one.position),
            "(end)" if plain is None else repr(plain),
            "(end)" if said is None else repr(said),
            f"{one.gap_nats:.2g}",
            f"{one.gap_units:.3g}",
            one.cause,
        )
        for name, one, plain, said in audited.found[:MOST_SHOWN]
    ]
    more = len(audited.found) - MOST_SHOWN
    return table(lines, header) + (f"\n... and {more} more" if more > 0 else "")
