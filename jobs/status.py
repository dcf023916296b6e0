"""`cmasd status`: how far a run is, from its folder alone; the process that runs it is not asked."""

import argparse

from jobs.arguments import print_json


def register(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("run", metavar="RUN", help="run folder, local or s3://")
    parser.add_argument("--json", action="store_true", help="print one JSON line")


def main(args: argparse.Namespace) -> int:
    """Print the state."""
    from cmasd.io.status import status
    from jobs.tables import status_table

    state = status(args.run)
    if args.json:
        print_json(state)
    else:
        print(status_table(state))
    return 0
