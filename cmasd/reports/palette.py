"""The colours of a report, light and dark; every text has a contrast of at least 4.5 to what is under it.

Confidence is shown in five tints of one hue under the text; who wrote a token is shown by lines, and a small model that
nobody checked also by a hue of its own.
"""

LEVELS = 5
LIGHT = {
    "page": "#ffffff",
    "card": "#f3f5f8",
    "text": "#1a1f26",
    "quiet": "#505a66",
    "link": "#0a58a6",
    "mark": "#0a58a6",
    "second": "#9a4300",
    "warn": "#8f1d1d",
    "good": "#1c6434",
    "rule": "#c3cad3",
    "tint0": "#f1f6fb",
    "tint1": "#d8e8f8",
    "tint2": "#b9d7f3",
    "tint3": "#96c3ed",
    "tint4": "#70ace4",
    "small": "#fbe6c8",
}
DARK = {
    "page": "#12161b",
    "card": "#1d232b",
    "text": "#e9edf2",
    "quiet": "#adb7c2",
    "link": "#86bff7",
    "mark": "#6fb1f3",
    "second": "#f0a661",
    "warn": "#ff9d94",
    "good": "#7fd39a",
    "rule": "#434d59",
    "tint0": "#1d2935",
    "tint1": "#1d374f",
    "tint2": "#1c466b",
    "tint3": "#1a5588",
    "tint4": "#1763a5",
    "small": "#4a3414",
}
TEXT_ON = [
    *((ink, paper) for ink in ("text", "quiet", "link", "warn", "good") for paper in ("page", "card")),
    *(("text", paper) for paper in ("small", *(f"tint{level}" for level in range(LEVELS)))),
]
"""Colours of text and of what is under it, as the template pairs them."""
SHAPES_ON = [(shape, paper) for shape in ("mark", "second", "quiet") for paper in ("page", "card")]
"""Lines and bars need a contrast of 3."""


def level_of(confidence: float) -> int:
    """Which tint."""
    return min(int(confidence * LEVELS), LEVELS - 1)
