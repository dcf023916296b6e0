"""`cmasd calibrate RUN`: maps from confidence to the probability of acceptance, fitted to the telemetry of a run.

Prints how good each score is before and after, on rows that the fit has not seen; the last line is JSON with every
figure. The maps go to a file that `confidence.calibration` names.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmasd.evaluation.calibration import Fitted
    from cmasd.evaluation.judged import Judged
    from cmasd.io.run_folder import RunFolder

FILE_NAME = "calibration.json"


def register(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("run", metavar="RUN", help="run folder, local or s3://, finished or not")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"where the maps go; default RUN/{FILE_NAME}")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw reliability curves (.png, .svg)")
    parser.add_argument("--seed", type=int, default=0, help="of the split of the rows; default 0")


def main(args: argparse.Namespace) -> int:
    """Fit, write, print."""
    from cmasd.evaluation.calibration import count_judged, fit
    from cmasd.io.run_folder import RunFolder
    from jobs.calibrate_tables import report

    folder = RunFolder(args.run)
    target = check_files(args, folder)
    judged = count_judged(folder, args.seed)
    fitted = fit(judged, folder.address)
    target.write_text(json.dumps(content(folder, judged, fitted), indent=1) + "\n", encoding="utf-8")
    if args.plot:
        from cmasd.evaluation.plots import plot_reliability

        plot_reliability(fitted[0], args.plot, f"{folder.address}: {fitted[0].score}, held-out rows")
    print(report(folder.address, judged, fitted))
    print(f"\nTo use it: confidence.kind={fitted[0].score} confidence.calibration={target}")
    figures = {"run": folder.address, "rows": judged.rows, "tokens": judged.tokens, "seed": judged.seed}
    scores = [one.to_dict() for one in fitted]
    print(json.dumps({**figures, "best": fitted[0].score, "file": str(target), "scores": scores}), flush=True)
    return 0


def content(folder: "RunFolder", judged: "Judged", fitted: "list[Fitted]") -> dict[str, Any]:
    """The file: the maps, and what they were fitted to."""
    from cmasd.confidence import calibration_file

    config = judged.config
    about = {
        "run": folder.address,
        "verifier": config.models.verifier,
        "drafter": config.models.drafter,
        "drafter_kind": config.drafter.kind,
        "verification": config.verification.kind,
        "rows": judged.rows,
        "tokens": judged.tokens,
        "seed": judged.seed,
        "held_out": {one.score: {"ece": one.after.ece, "auc": one.after.auc} for one in fitted},
    }
    return calibration_file({one.score: one.calibration for one in fitted}, config.confidence, about)


def check_files(args: argparse.Namespace, folder: "RunFolder") -> Path:
    """Where the maps go; raises `ConfigError` where something could not be written later."""
    from cmasd.errors import ConfigError
    from cmasd.evaluation.plots import check_plot

    if args.plot:
        check_plot(args.plot)
    if args.output is None and not folder.storage.is_local:
        raise ConfigError(f"--output: must be given for a run that is not on this machine, got {args.run}.")
    target: Path = args.output or Path(folder.storage.root) / FILE_NAME
    for option, path in (("--output", args.output), ("--plot", args.plot)):
        if path and not path.parent.is_dir():
            raise ConfigError(f"{option}: no such folder, got {path.parent}. Create it first.")
    return target
