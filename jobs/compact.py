"""`cmasd compact`: merge the many small output files of a run into few large ones."""

import argparse

DEFAULT_MEGABYTES = 128


def register(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("run", metavar="RUN", help="run folder, local or s3://")
    parser.add_argument(
        "--megabytes",
        type=float,
        default=DEFAULT_MEGABYTES,
        help=f"size that a merged file may reach (default {DEFAULT_MEGABYTES})",
    )


def main(args: argparse.Namespace) -> int:
    """Merge, and say what became of the files."""
    from cmasd.io.compaction import compact

    done = compact(args.run, round(args.megabytes * 1e6))
    print(f"{done.files_before:,} files -> {done.files_after:,}; {done.rows:,} rows in new merged files")
    return 0
