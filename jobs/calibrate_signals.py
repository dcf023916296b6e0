"""`cmasd calibrate RUN --signals`: what each signal says of acceptance, and what estimators make of them online."""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jobs.tables import table

if TYPE_CHECKING:
    from cmasd.evaluation.calibration.online import Online
    from cmasd.evaluation.calibration.signal_table import Discrimination, Figure, Shift


def show_signals(args: argparse.Namespace) -> dict[str, Any]:
    """Print the tables; gives their figures. No map is written."""
    from cmasd.evaluation.calibration.fit import without_nan
    from cmasd.evaluation.calibration.judged_tokens import read_evidence
    from cmasd.evaluation.calibration.online import run_online
    from cmasd.evaluation.calibration.signal_table import judge, shifts
    from cmasd.io.run_folder import RunFolder

    runs = [RunFolder(address) for address in (args.run, *args.against)]
    all_evidence, told = [read_evidence(run) for run in runs], []
    for run, evidence in zip(runs, all_evidence, strict=True):
        signals, online = judge(evidence, args.seed), run_online(evidence)
        print(
            f"{run.address}: {len(evidence.row_N):,} judged draft tokens of {evidence.rows:,} rows; half is reported."
        )
        print(f"\n{signals_table(signals)}\n\n{online_table(online)}\n")
        told.append(
            {
                "run": run.address,
                "score": evidence.config.score,
                "tokens": len(evidence.row_N),
                "signals": [one.to_dict() for one in signals],
                "estimators": [without_nan(asdict(one)) for one in online],
            }
        )
    drift = {}
    for run, evidence in zip(runs[1:], all_evidence[1:], strict=True):
        found = shifts(all_evidence[0], evidence, args.seed)
        print(f"{run.address}, by maps of {runs[0].address} and by its own:\n\n{shift_table(found)}\n")
        drift[run.address] = [without_nan(asdict(one)) for one in found]
    return {"runs": told, "drift": drift, "seed": args.seed}


def signals_table(signals: "list[Discrimination]") -> str:
    """A line for each signal and position."""
    header = ("signal", "position", "tokens", "accepted", "AUC (95 %)", "ECE (95 %)", "mapped", "Brier", "nats")
    return table(
        [
            (
                one.name,
                "all" if one.position is None else str(one.position),
                f"{one.tokens:,}",
                f"{one.accepted_share:.1%}",
                _with_interval(one.auc),
                _with_interval(one.ece),
                *(f"{part.value:.3f}" for part in (one.ece_mapped, one.brier, one.log_loss_nats)),
            )
            for one in signals
        ],
        header,
    )


def online_table(online: "list[Online]") -> str:
    """A line for each estimator, and the bound."""
    header = ("estimator", "tokens", "AUC", "ECE", "nats", *(f"times plain, {cost}" for cost in online[0].speed))
    return table(
        [
            (
                one.name,
                f"{one.tokens:,}",
                *("-" if part != part else f"{part:.3f}" for part in (one.auc, one.ece, one.log_loss_nats)),
                *(f"{speed:.3f}" for speed in one.speed.values()),
            )
            for one in online
        ],
        header,
    )


def shift_table(found: "list[Shift]") -> str:
    """A line for each signal."""
    header = ("signal", "AUC", "KS distance", "ECE, maps moved", "own maps")
    numbers = [(one.name, one.auc, one.distance, one.ece_moved, one.ece_own) for one in found]
    return table([(name, *(f"{number:.3f}" for number in rest)) for name, *rest in numbers], header)


def _with_interval(figure: "Figure") -> str:
    return f"{figure.value:.3f} ({figure.low:.3f}-{figure.high:.3f})"
