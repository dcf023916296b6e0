"""`cmasd calibrate RUN`: maps from confidence to the probability of acceptance, fitted to the telemetry of a run.

Prints how good each score is before and after, on rows that the fit has not seen, and for programs a line of JSON with
every figure. The maps go to a file that `confidence.calibration` names; `--against` says how far they carry.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.arguments import add_json
from jobs.records import check_files, command, finish

if TYPE_CHECKING:
    from cmasd.evaluation.calibration.fit import Fitted
    from cmasd.evaluation.calibration.judged import Judged
    from cmasd.io.run_folder import RunFolder

FILE_NAME = "calibration.json"
OPTIONS = ("signals", "output", "against", "plot", "record", "seed")


def register(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_json(parser)
    parser.add_argument("run", metavar="RUN", help="run folder, local or s3://, finished or not")
    parser.add_argument(
        "--signals", action="store_true", help="compare all signals and estimators instead; writes no maps"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"where the maps go; default RUN/{FILE_NAME}")
    parser.add_argument(
        "--against", metavar="RUN", action="append", default=[], help="also judge the maps on this run; may come again"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw reliability curves (.png, .svg)")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the JSON to a file as well")
    parser.add_argument("--seed", type=int, default=0, help="of the split of the rows; default 0")


def main(args: argparse.Namespace) -> int:
    """Fit, write, print."""
    if args.signals:
        from jobs.calibrate_signals import show_signals

        check_files(args, "record")
        finish(args, {**show_signals(args), **made_on(command(args, "calibrate", OPTIONS))})
        return 0
    from cmasd.evaluation.calibration.drift import drift
    from cmasd.evaluation.calibration.fit import count_judged, fit
    from cmasd.io.run_folder import RunFolder
    from jobs.calibrate_tables import advice, drift_table, report

    folder = RunFolder(args.run)
    target = target_of(args, folder)
    judged = count_judged(folder, args.seed)
    fitted = fit(judged, folder.address)
    target.write_text(json.dumps(content(folder, judged, fitted), indent=1) + "\n", encoding="utf-8")
    if args.plot:
        from cmasd.evaluation.plots import plot_reliability

        plot_reliability(fitted, args.plot, f"{folder.address}: held-out rows")
    print(report(folder.address, judged, fitted))
    drifts = {}
    for other in map(RunFolder, args.against):
        theirs = count_judged(other, args.seed)
        drifts[other.address] = drift(fitted, theirs, other.address)
        print(f"\n{drift_table(folder.address, other.address, theirs, drifts[other.address])}")
    told = advice(fitted[0], str(target), f"{folder.address}-calibrated")
    print(f"\n{told}")
    figures = {"run": folder.address, "rows": judged.rows, "tokens": judged.tokens, "seed": judged.seed}
    scores = [one.to_dict() for one in fitted]
    against = {address: [one.to_dict() for one in found] for address, found in drifts.items()}
    figures |= {"best": fitted[0].score, "file": str(target), "scores": scores, "against": against}
    finish(args, {**figures, **made_on(command(args, "calibrate", OPTIONS))})
    return 0


def made_on(line: str) -> dict[str, Any]:
    """When, and with which code; `line` is the command line."""
    from datetime import UTC, datetime

    from cmasd.io.provenance import provenance

    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"git_commit": provenance()["git_commit"], "date": date, "command": line}


def content(folder: "RunFolder", judged: "Judged", fitted: "list[Fitted]") -> dict[str, Any]:
    """The file: the maps, and what they were fitted to."""
    from cmasd.confidence import calibration_file

    config = judged.config
    about = {
        "run": folder.address,
        "verifier": config.models.verifier,
        "drafter": config.models.drafter,
        "drafter_kind": config.drafter.name,
        "verification": config.verification.kind,
        "rows": judged.rows,
        "tokens": judged.tokens,
        "seed": judged.seed,
        "held_out": {one.score: {"ece": one.after.ece, "auc": one.after.auc} for one in fitted},
    }
    return calibration_file({one.score: one.calibration for one in fitted}, config.confidence, about)


def target_of(args: argparse.Namespace, folder: "RunFolder") -> Path:
    """Where the maps go; raises `ConfigError` where something could not be written later."""
    from cmasd.errors import ConfigError

    check_files(args, "output", "plot", "record")
    if args.output is None and not folder.storage.is_local:
        raise ConfigError(f"--output: must be given for a run that is not on this machine, got {args.run}.")
    root, here = Path(folder.storage.root), Path.cwd()
    return args.output or (root.relative_to(here) if root.is_relative_to(here) else root) / FILE_NAME
