"""The plot is a picture of what it is given, or one line that says what is missing."""

import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from cmasd.confidence import CalibrationMap
from cmasd.errors import ConfigError
from cmasd.evaluation.calibration.fit import fit
from cmasd.evaluation.plots import check_plot, label, plot_pareto, plot_reliability, plot_throughput
from tests.unit.evaluation.calibration.drawn import judged_from


def row(engine: str, batch_size: int, rate: float, dtype: str = "float32") -> dict[str, Any]:
    sizes = {"engine": engine, "dtype": dtype, "batch_size": batch_size}
    return {**sizes, "tokens_per_second": rate, "chunk_low": 0.9 * rate, "chunk_high": 1.2 * rate}


RESULTS = [
    *(row("plain", size, 90.0 * size) for size in (1, 8, 32)),
    *(row("goodput", size, 120.0 * size) for size in (1, 8, 32)),
    *(row("ctranslate2", size, 110.0 * size, "int8") for size in (1, 8)),
]


def test_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `bench`)")
    plot_throughput(RESULTS, tmp_path / "speed.png", "a machine")
    content = (tmp_path / "speed.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", content[16:24])
    assert min(width, height) >= 600


def test_an_svg_says_what_it_shows(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `bench`)")
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot_throughput(RESULTS, tmp_path / "speed.svg", "a machine")
    root = ElementTree.parse(tmp_path / "speed.svg").getroot()
    texts = {"".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"plain", "goodput", "ctranslate2 int8", "a machine", "batch size (rows)", "1", "8", "32"} <= texts
    assert "throughput (output tokens/s, median of chunks)" in texts


def point(kind: str, nats: float | None, speed: float, bleu: float, gap: float) -> dict[str, Any]:
    speeds = {"ratio_to_plain": speed, "ratio_low": 0.9 * speed, "ratio_high": 1.1 * speed}
    quality = {"bleu_to_plain": bleu, "mean_gap_nats_per_token": gap}
    return {"kind": kind, "nats": nats, **speeds, **quality, "on_bleu_front": speed > 1, "on_gap_front": True}


def test_a_front_has_two_panels(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `bench`)")
    points = [point("plain", None, 1.0, 100.0, 0.0), point("goodput, budget", 0.05, 1.4, 91.0, 0.04)]
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot_pareto([*points, point("goodput, budget", 0.2, 1.6, 80.0, 0.17)], tmp_path / "front.svg", "a machine")
    root = ElementTree.parse(tmp_path / "front.svg").getroot()
    texts = ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for said in ("plain", "goodput, budget", "0.05", "0.2", "speed (x plain, 95 % interval)"):
        assert texts.count(said) >= 2, "once in each panel"
    assert {"BLEU against plain's output", "mean gap (nats per output token)"} <= set(texts)


def test_a_label_names_an_unusual_precision() -> None:
    assert [label(row("plain", 1, 1.0, dtype)) for dtype in ("float32", "bfloat16")] == ["plain", "plain bfloat16"]


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmasd.evaluation.plots.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs matplotlib, which is not installed.*pip install 'cmasd\[bench\]'"):
        check_plot(Path("speed.png"))


def test_the_ending_decides_the_format() -> None:
    with pytest.raises(ConfigError, match=r"must end in \.png or \.svg, got speed\.jpg"):
        check_plot(Path("speed.jpg"))


def test_reliability_before_and_after_by_position(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `bench`)")
    truth = {"max_prob": CalibrationMap("platt", a=0.3, b=-1.0), "entropy": CalibrationMap("platt", a=0.0, b=-1.0)}
    fitted = fit(judged_from(truth), "run")
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot_reliability(fitted, tmp_path / "curve.svg", "a run")
    root = ElementTree.parse(tmp_path / "curve.svg").getroot()
    texts = {"".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")}
    best = fitted[0]
    titles = {"every score as it is", "every score, calibrated", f"{best.score} as it is"}
    assert {"calibrated", *titles, f"{best.score} after {best.method}", "a run"} <= texts
    for begins in ("max_prob: ECE", "entropy: ECE", f"{best.score}, {best.method}: ECE 0.0", "position 2: ECE"):
        assert any(text.startswith(begins) for text in texts), begins
