"""Pictures: throughput against batch size, one line per engine; speed against quality, by kind; reliability curves.

Lines and points differ by marker and dash as well as by colour, so the picture is read in print too; bars are the
quartiles over chunks, or the interval of a ratio. Drawn by matplotlib without a display. It is an extra: `check_plot`
says so before anything is measured.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmasd.errors import ConfigError

if TYPE_CHECKING:
    from cmasd.evaluation.calibration.fit import Fitted
    from cmasd.evaluation.calibration.reliability import Reliability

ENDINGS = (".png", ".svg")
LEAST_GAP = 1e-3
"""Nats per token, under which the axis of gaps is linear: exact decoding is at 0."""
MARKERS, DASHES = "osD^vP*Xh<>", ("-", "--", "-.", ":")


def check_plot(path: Path) -> None:
    """Raise `ConfigError` where a plot could not be drawn."""
    if path.suffix not in ENDINGS:
        raise ConfigError(f"--plot: must end in .png or .svg, got {path}.")
    if find_spec("matplotlib") is None:
        raise ConfigError("--plot: needs matplotlib, which is not installed. Install it: pip install 'cmasd[bench]'.")


def plot_throughput(results: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw the rows of a bench, as in its JSON, into a PNG or SVG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in results:
        lines.setdefault(label(row), []).append(row)
    for (name, rows), marker, dash in zip(lines.items(), cycle(MARKERS), cycle(DASHES), strict=False):
        rates = [row["tokens_per_second"] for row in rows]
        below = [row["tokens_per_second"] - row["chunk_low"] for row in rows]
        above = [row["chunk_high"] - row["tokens_per_second"] for row in rows]
        sizes = [row["batch_size"] for row in rows]
        axes.errorbar(sizes, rates, yerr=[below, above], label=name, marker=marker, linestyle=dash, capsize=2)
    ticks = sorted({row["batch_size"] for row in results})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(ticks, [str(size) for size in ticks])
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("batch size (rows)")
    axes.set_ylabel("throughput (output tokens/s, median of chunks)")
    axes.set_title(title, fontsize="small", wrap=True)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def plot_pareto(results: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw the points of `--pareto`, as in its JSON: speed against BLEU to plain, and against the gap."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained", facecolor="white")
    panels = zip(
        figure.subplots(1, 2),
        (
            ("bleu_to_plain", "BLEU against plain's output", "on_bleu_front"),
            ("mean_gap_nats_per_token", "mean gap (nats per output token)", "on_gap_front"),
        ),
        strict=True,
    )
    for axes, (quality, says, front) in panels:
        _draw_panel(axes, results, quality, front)
        axes.set_xlabel(says)
        axes.set_ylabel("speed (x plain, 95 % interval)")
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="small")
        if quality == "bleu_to_plain":
            axes.invert_xaxis()
        else:
            axes.set_xscale("symlog", linthresh=LEAST_GAP)
            axes.set_xlim(left=-LEAST_GAP / 4)
    figure.suptitle(f"{title} (full marker: no other point dominates)", fontsize="small")
    figure.savefig(path, dpi=150)


def plot_answers(results: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw the rows of a comparison with checked answers: share of right ones against seconds per row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    kinds = list(dict.fromkeys(row["name"].split()[0] for row in results))
    points = [(row["seconds"] / row["rows"], row["accuracy"]) for row in results]
    for row, (seconds, share) in zip(results, points, strict=True):
        kind, _, setting = row["name"].partition(" ")
        number = kinds.index(kind)
        is_front = not any(other[0] <= seconds and other[1] >= share and other != (seconds, share) for other in points)
        bars = [[share - row["accuracy_low"]], [row["accuracy_high"] - share]]
        marker, color = MARKERS[number % len(MARKERS)], f"C{number}"
        label = kind if row is next(one for one in results if one["name"].split()[0] == kind) else None
        fill = color if is_front else "none"
        axes.errorbar(seconds, share, yerr=bars, fmt=marker, color=color, mfc=fill, label=label, capsize=2, alpha=0.8)
        axes.annotate(setting, (seconds, share), (4, 3), textcoords="offset points", fontsize="x-small")
    axes.set_xlabel("seconds per row")
    axes.set_ylabel("share of right answers (95 % interval)")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    figure.suptitle(f"{title} (full marker: no other is as fast and as right)", fontsize="small")
    figure.savefig(path, dpi=150)


def _draw_panel(axes: Any, results: Sequence[Mapping[str, Any]], quality: str, front: str) -> None:
    """One marker per kind, each point with its setting in nats."""
    kinds = list(dict.fromkeys(row["kind"] for row in results))
    for number, (kind, marker) in enumerate(zip(kinds, cycle(MARKERS), strict=False)):
        of_kind = [row for row in results if row["kind"] == kind]
        for i, row in enumerate(of_kind):
            at, speed, color = row[quality], row["ratio_to_plain"], f"C{number}"
            bars = [[max(0.0, speed - row["ratio_low"])], [max(0.0, row["ratio_high"] - speed)]]
            fill = color if row[front] else "none"
            name = kind if i == 0 else None
            axes.errorbar(at, speed, yerr=bars, fmt=marker, color=color, mfc=fill, label=name, capsize=2, alpha=0.8)
            if row["nats"] is not None:
                axes.annotate(f"{row['nats']:g}", (at, speed), (4, 3), textcoords="offset points", fontsize="x-small")


def label(row: Mapping[str, Any]) -> str:
    """An engine's name, with its dtype where that is not plain float32."""
    return row["engine"] if row["dtype"] == "float32" else f"{row['engine']} {row['dtype']}"


def plot_reliability(fitted: "Sequence[Fitted]", path: Path, title: str) -> None:
    """Draw the share of accepted drafts against confidence, before and after calibration: every score, the best first,
    and the best one by draft position.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 10), layout="constrained", facecolor="white")
    best, ((top_left, top_right), (low_left, low_right)) = fitted[0], figure.subplots(2, 2, sharey=True)
    positions = zip(best.positions_before, best.positions_after, strict=True)
    by_position = [(f"position {k}", *pair) for k, pair in enumerate(positions, start=1)]
    _draw_curves(top_left, [(one.score, one.before) for one in fitted], "every score as it is")
    _draw_curves(top_right, [(f"{one.score}, {one.method}", one.after) for one in fitted], "every score, calibrated")
    _draw_curves(low_left, [(name, before) for name, before, _ in by_position], f"{best.score} as it is")
    _draw_curves(low_right, [(name, after) for name, _, after in by_position], f"{best.score} after {best.method}")
    figure.suptitle(title, fontsize="small")
    figure.savefig(path, dpi=150)


def _draw_curves(axes: Any, lines: "Sequence[tuple[str, Reliability]]", title: str) -> None:
    """One reliability curve for each name, with its figures."""
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, label="calibrated")
    for (name, quality), marker, dash in zip(lines, cycle(MARKERS), cycle(DASHES), strict=False):
        means = [group.mean_confidence for group in quality.curve]
        shares = [group.accepted_share for group in quality.curve]
        said = f"{name}: ECE {quality.ece:.3f}, AUC {quality.auc:.3f}"
        axes.plot(means, shares, marker=marker, linestyle=dash, alpha=0.8, label=said)
    axes.set_title(title, fontsize="small")
    axes.set_xlabel("mean confidence of a group")
    axes.set_ylabel("share of draft tokens accepted")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="x-small")
