"""Charts as numbers ready to be drawn: bars or lines with their scales, and the same data as a table.

The template draws them as SVG. Each chart has words that say what it shows, since not everyone sees it.
Series differ by dash or filling as well as by colour.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 28, 40
MOST_LABELS = 8
"""Along the x axis."""


@dataclass(frozen=True)
class Bar:
    """One bar, maybe with an outlined part on top."""

    label: str
    value: float
    extra: float = 0.0


@dataclass(frozen=True)
class Line:
    """One series; its place in the chart decides its dash and colour."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """A figure with its data."""

    key: str
    """Identity in the page."""
    title: str
    says: str
    """What is to be seen, in words."""
    x_label: str
    y_label: str
    header: Sequence[str]
    """Of the table."""
    rows: Sequence[Sequence[str]]
    bars: Sequence[Bar] = ()
    bar_names: tuple[str, str] | None = None
    """Names of the filled and the outlined part."""
    lines: Sequence[Line] = ()
    top: float | None = None
    """Upper end of the y axis; null: what the data needs."""
    shares: bool = False
    """Whether y is written in percent."""
    scale: "Scale" = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", Scale(self))


@dataclass(frozen=True)
class Tick:
    """A place on an axis, in pixels, and what stands there."""

    at: float
    text: str


class Scale:
    """From data to pixels."""

    def __init__(self, chart: Chart) -> None:
        points = [point for line in chart.lines for point in line.points]
        values = [bar.value + bar.extra for bar in chart.bars] + [y for _, y in points]
        self.steps = _steps(chart.top or max(values, default=0.0))
        xs = [x for x, _ in points]
        self._low, self._high = (min(xs), max(xs)) if xs else (0.0, 1.0)
        self._counts = all(x == round(x) for x in xs) and self._high > 1
        self._chart = chart

    def x(self, value: float) -> float:
        """Of a line's point."""
        spread = self._high - self._low
        share = (value - self._low) / spread if spread else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """Measured from the top."""
        return round(HEIGHT - BOTTOM - value / self.steps[-1] * (HEIGHT - TOP - BOTTOM), 1)

    def y_ticks(self) -> list[Tick]:
        """From zero up."""
        return [Tick(self.y(step), f"{step:.0%}" if self._chart.shares else _plain(step)) for step in self.steps]

    def x_ticks(self) -> list[Tick]:
        """Under bars their labels, as many as there is room for; under lines numbers."""
        if self._chart.bars:
            every = math.ceil(len(self._chart.bars) / MOST_LABELS)
            return [Tick(box.middle, box.label) for box in self.boxes()[::every]]
        steps = [step for step in _steps(self._high) if self._low <= step <= self._high]
        if self._counts:
            steps = [step for step in steps if step == round(step)]
        return [Tick(self.x(step), _plain(step)) for step in steps]

    def boxes(self) -> "list[Box]":
        """Bars as rectangles."""
        room = (WIDTH - LEFT - RIGHT) / max(1, len(self._chart.bars))
        width = min(56.0, room * 0.72)
        return [
            Box(bar.label, round(LEFT + room * (i + 0.5) - width / 2, 1), round(width, 1), self.y(bar.value),
                self.y(bar.value + bar.extra), self.y(0.0))
            for i, bar in enumerate(self._chart.bars)
        ]  # fmt: skip

    def path(self, line: Line) -> str:
        """Of an SVG polyline."""
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y in line.points)


@dataclass(frozen=True)
class Box:
    """A bar in pixels; `y` values are measured from the top."""

    label: str
    left: float
    width: float
    y: float
    extra_y: float
    bottom: float

    @property
    def middle(self) -> float:
        """Along x."""
        return round(self.left + self.width / 2, 1)


def _steps(top: float) -> list[float]:
    """Three to six round numbers from 0 to at least `top`."""
    if not top > 1e-9 or math.isinf(top):
        return [0.0, 1.0]
    size = 10.0 ** math.floor(math.log10(top))
    step = next(size * factor for factor in (0.2, 0.25, 0.5, 1.0, 2.0, 5.0) if top / (size * factor) <= 5)
    return [round(step * i, 12) for i in range(math.ceil(round(top / step, 9)) + 1)]


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,.4g}"
