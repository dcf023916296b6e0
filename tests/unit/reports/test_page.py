"""The page is well-formed, needs nothing from outside, escapes the data, and says everything in words too."""

import itertools
import re
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from cmasd.config import from_dict
from cmasd.reports import page, palette
from cmasd.reports.evidence import gather
from cmasd.reports.tokens import Splitter
from tests.unit.reports.synthetic import BASELINE, make_run

Element = ElementTree.Element


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer whose tokens are markup."""

    def fake(config: object) -> Splitter | str:
        return lambda ids: [f"<i>{number}</i> " for number in ids]

    monkeypatch.setattr(page, "splitter", fake)


def rendered(tmp_path: Path, **run: Any) -> tuple[str, Element]:
    text = page.render(gather(make_run(tmp_path, **run)))
    assert text.startswith("<!DOCTYPE html>\n")
    return text, ElementTree.fromstring(text)


def says(root: Element) -> str:
    return " ".join(" ".join(root.itertext()).split())


LEVELS = ["none", "iteration", "token"]
CASES: dict[str, dict[str, Any]] = {
    **{level: {"telemetry": {"level": level}} for level in LEVELS},
    "half": {"unfinished_shards": 4},
    "empty": {"unfinished_shards": 10},
    "old": {"timed": False},
    "one shard": {"rows": 20},
    "priced": {"cost": {"accelerator_per_hour": 2.5}, "baseline": BASELINE},
}


@pytest.mark.parametrize("case", CASES)
def test_structure(tmp_path: Path, case: str) -> None:
    """Strict XML; unique identities; links that lead somewhere; landmarks, headings without gaps, names for all."""
    _text, root = rendered(tmp_path, **CASES[case])
    identities = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert [name for name, count in Counter(identities).items() if count > 1] == []
    targets = [a.attrib["href"] for a in root.iter("a")]
    assert all(target.startswith("#") and target[1:] in identities for target in targets)
    for name in ("header", "nav", "main", "footer", "h1"):
        assert len(list(root.iter(name))) == 1, name
    levels = [int(element.tag[1]) for element in root.iter() if re.fullmatch("h[1-6]", element.tag)]
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))
    for labelled in root.iter():
        if "aria-labelledby" in labelled.attrib:
            assert labelled.attrib["aria-labelledby"] in identities
    for svg in root.iter("svg"):
        assert svg.attrib.get("aria-hidden") == "true" or (svg.attrib["role"] == "img" and svg.attrib["aria-label"])
    for figure in root.iter("figure"):
        assert figure.find("h3") is not None
        assert figure.find("details/summary") is not None
        assert len(list(figure.iter("tr"))) >= 2, "each chart has its data as a table"
    for table in root.iter("table"):
        assert all(cell.attrib["scope"] in ("col", "row") for cell in table.iter("th"))
        width = len(next(iter(table.iter("thead"))).findall("tr/th"))
        assert all(len(list(row)) == width for row in next(iter(table.iter("tbody"))))
    assert "NaN" not in says(root).replace("NaN-", "")
    assert re.search(r"\bnan\b|\bNone\b(?!\.)|\binf\b", says(root).split("Origin Fingerprint")[0]) is None


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    text, root = rendered(tmp_path, baseline=BASELINE)
    assert not re.search(r"(?:\ssrc=|url\(|@import|https?:)", text)
    names = {element.tag for element in root.iter()}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "form"}
    assert not [name for element in root.iter() for name in element.attrib if name.startswith("on")]


def test_data_is_escaped_wherever_it_is_shown(tmp_path: Path) -> None:
    """Identities, outputs, kept columns, errors, notices and tokens hold markup and control characters."""
    text, root = rendered(tmp_path)
    assert "<script" not in text
    assert "<b>7</b>" not in text
    assert "\x00" not in text
    shown = says(root)
    for place in ("output ", "note: ", "notice ", "read: line #: "):
        assert f"{place}" in shown
    assert shown.count('<script>alert(1)</script> & "quoted"') >= 10
    assert "<b>7</b>" in shown
    assert re.search(r"<i>\d+</i>", shown)


def test_where_nothing_was_drafted_no_ratio_is_shown(tmp_path: Path) -> None:
    _, root = rendered(tmp_path, baseline={**BASELINE, "drafted_tokens": 0, "acceptance_rate": None})
    shown = says(root)
    assert "nothing was drafted: the same decoding" in shown
    assert not [ratio for ratio in ("0.80 x", "0.80 (0.70") if ratio in shown]
    earlier = {key: value for key, value in BASELINE.items() if key != "drafted_tokens"}
    _, root = rendered(tmp_path, address=str(tmp_path / "earlier"), baseline=earlier)
    assert "0.80 x" in says(root)


def test_the_headline_names_a_rounded_verifier() -> None:
    head, text = page._claim(from_dict({"models": {"dtype": "int8"}}))
    assert head == "Lossless."
    assert text.endswith("two logits. This is said against the verifier rounded to int8.")
    assert page._claim(from_dict({})) == page.LOSSLESS["exact"]


def test_the_headline_and_every_chart(tmp_path: Path) -> None:
    _, root = rendered(tmp_path, baseline=BASELINE)
    shown = says(root)
    for text in ("Complete. 300 of 300 rows", "Lossless.", "0.80 x", "0.70 to 0.90 (95 %)", "6 failed", "90.0%"):
        assert text in shown
    keys = {figure.attrib["id"] for figure in root.iter("figure")}
    drafting = {"chart-by-position", "chart-over-iterations", "chart-by-length", "chart-over-shards"}
    assert keys == drafting | {"chart-by-confidence", "chart-reliability", "chart-actors"}
    found = {element.attrib["id"] for element in root.iter("div") if "finding" in element.get("class", "")}
    assert found == {"finding-rollback", "finding-no-speed-up", "finding-failed-rows"}


def test_what_a_level_lacks_is_said(tmp_path: Path) -> None:
    for level, charts in (("none", {"chart-over-shards", "chart-actors"}), ("iteration", None)):
        _, root = rendered(tmp_path, address=str(tmp_path / level), telemetry={"level": level})
        assert f"telemetry.level is {level}" in says(root)
        keys = {figure.attrib["id"] for figure in root.iter("figure")}
        assert keys == charts if charts else "chart-by-position" in keys and "chart-reliability" not in keys


def test_an_unfinished_and_an_empty_run_say_so(tmp_path: Path) -> None:
    half = says(rendered(tmp_path, unfinished_shards=4)[1])
    assert "Not finished (interrupted). Figures are of 192 of 300 rows, 6 of 10 shards." in half
    empty = says(rendered(tmp_path, address=str(tmp_path / "empty"), unfinished_shards=10)[1])
    assert "Nothing was drafted." in empty
    assert "No finished row yet." in empty


def test_lossy_is_said_plainly(tmp_path: Path) -> None:
    shown = says(rendered(tmp_path, verification={"kind": "relaxed"})[1])
    assert "Lossy. Outputs may differ from AR decoding." in shown
    assert "Lossless" not in shown.split("Origin Fingerprint")[0]


def test_money_is_shown_where_a_price_is_set(tmp_path: Path) -> None:
    shown = says(rendered(tmp_path, cost={"accelerator_per_hour": 2.5})[1])
    assert "price of an actor-hour 2.5" in shown
    assert "per million output tokens" in shown
    assert "No price is set" in says(rendered(tmp_path, address=str(tmp_path / "free"))[1])


def test_who_wrote_a_token_shows_without_colour(tmp_path: Path) -> None:
    _text, root = rendered(tmp_path)
    styles = "".join(next(root.iter("style")).itertext())
    assert re.search(r"\.draft \{ border-bottom: \d+px solid", styles)
    assert re.search(r"\.own \{ border: \d+px dashed", styles)
    classes = [span.get("class", "") for p in root.iter("p") if p.get("class") == "tokens" for span in p]
    assert {name.split()[0] for name in classes} == {"draft", "own"}
    assert all(("tint" in name) == name.startswith("draft") for name in classes)


def test_without_a_tokenizer_rows_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "splitter", lambda config: "models.verifier: <gone>")
    shown = says(rendered(tmp_path)[1])
    assert "cannot be loaded here, so rows are not split into tokens: models.verifier: <gone>" in shown
    assert "Output: output" in shown


def luminance(colour: str) -> float:
    """Relative, as WCAG 2 defines it."""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colours", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
def test_contrast(colours: dict[str, str]) -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    for pairs, least in ((palette.TEXT_ON, 4.5), (palette.SHAPES_ON, 3.0)):
        low = {pair: round(contrast(*(colours[name] for name in pair)), 2) for pair in pairs}
        assert {pair: value for pair, value in low.items() if value < least} == {}
    tints = [luminance(colours[f"tint{level}"]) for level in range(palette.LEVELS)]
    assert tints in (sorted(tints), sorted(tints, reverse=True)), "confidence goes one way"
