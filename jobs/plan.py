"""`cmasd plan`: what a run would do, would stumble over, and would take. Starts nothing, imports neither torch nor ray.

What would end the run is told as the run would, and the exit code is the run's.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from jobs.arguments import add_config, read_config

if TYPE_CHECKING:
    from cmasd.config import Config
    from cmasd.io.runs import Run
    from cmasd.pipeline.foresight import Outlook

FAULT = 2
"""Exit code where the configuration is at fault."""


def register(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_config(parser)


def main(args: argparse.Namespace) -> int:
    """Print the plan."""
    from cmasd.io.runs import look_at
    from cmasd.pipeline.chosen_place import decided
    from cmasd.pipeline.foresight import look_ahead
    from cmasd.pipeline.resuming import as_started
    from jobs.tables import pairs, plan_table

    config = read_config(args)
    known, changes = as_started(config)
    state = look_at(known)
    config = decided(config, state)
    print(plan_table(config, state))
    problems: list[str] = []
    notices: list[str] = []
    if state.todo:
        outlook = look_ahead(config)
        problems = outlook.problems
        notices = [*changes, *outlook.remarks]
        print("\n" + pairs(forecast(config, state, outlook)))
    for notice in notices:
        print(f"notice: {notice}")
    sys.stdout.flush()
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return FAULT if problems else 0


def earlier_outputs(config: "Config", state: "Run") -> list[tuple[str, str]]:
    """Rows for which `drafter.previous` has a draft; nothing where that is not there, which is told as a problem."""
    from cmasd.errors import ConfigError
    from cmasd.io.earlier import count_known, earlier_run

    try:
        earlier = earlier_run(config)
    except ConfigError:
        return []
    if earlier is None:
        return []
    known, looked_at = count_known(config, state.plan, state.todo, earlier)
    return [("previous outputs", f"of {known:,} of {looked_at:,} rows looked up, in {config.drafter.previous}")]


def audio_hours(seconds: float | None, sample: int) -> list[tuple[str, str]]:
    """Of all recordings; nothing where rows are texts."""
    if seconds is None:
        return []
    from jobs.tables import length

    return [("audio", f"about {length(seconds)}, by the headers of {sample:,} recordings")]


def forecast(config: "Config", state: "Run", outlook: "Outlook") -> list[tuple[str, str]]:
    """Tokens, time and cost of the rows that are left."""
    from cmasd.io.samples import first_texts
    from cmasd.pipeline.estimate import SAMPLE_ROWS, estimate
    from cmasd.pipeline.foresight import new_tokens
    from jobs.progress import clock

    texts = first_texts(config, state.plan, SAMPLE_ROWS)
    rows, verifier = sum(shard.rows for shard in state.todo), outlook.verifier
    actors = min(config.actors.count or config.actors.max, len(state.todo))
    most = new_tokens(config, verifier)
    about = estimate(config, texts, rows, actors, verifier.folder, most)
    usual = "taking as many as go in" if about.audio_seconds is None else "taking 3.5 for a second"
    ratio = usual if about.ratio is None else f"{about.ratio:.2f} for each that goes in, as before"
    lines = [
        *earlier_outputs(config, state),
        *audio_hours(about.audio_seconds, len(texts)),
        ("input tokens", f"about {about.input_tokens:,.0f}, by the first {len(texts):,} rows"),
        ("output tokens", f"about {about.output_tokens:,.0f}, {ratio}; at most {rows * most:,}"),
    ]
    if about.seconds is None:
        why = (
            "no step table of this verifier and these slots is cached on this machine; a run with goodput measures one"
        )
        return [*lines, ("time", f"unknown: {why}")]
    how = "by the step table and the last run" if about.has_table else "by the last run"
    how = "at least, by the step table alone" if about.is_least else how
    start_up = "" if about.start_up_seconds is None else f"; {clock(about.start_up_seconds)} of start-up, as before"
    lines.append(("time", f"about {clock(about.seconds)} of decoding with {actors} actor(s), {how}{start_up}"))
    if about.cost is not None:
        lines.append(("cost", f"about {about.cost:,.4f} for the whole job"))
    return lines
