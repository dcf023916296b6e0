"""`cmasd plan`: what a run would do. Starts nothing, writes nothing, imports neither torch nor ray."""

import argparse

from jobs.arguments import add_config, read_config


def register(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_config(parser)


def main(args: argparse.Namespace) -> int:
    """Print the plan."""
    from cmasd.io.runs import look_at
    from cmasd.pipeline.resuming import as_started
    from jobs.tables import plan_table

    config = read_config(args)
    known, changes = as_started(config)
    print(plan_table(config, look_at(known)))
    for change in changes:
        print(f"notice: {change}")
    return 0
