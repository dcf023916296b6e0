"""The page is well-formed, needs nothing from outside, escapes the data, and says everything in words too."""

import itertools
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from cmasd.config import from_dict
from cmasd.reports import figures, page, palette
from cmasd.reports.evidence import gather
from cmasd.reports.picks import RANDOM_ROWS, WORST_ROWS
from cmasd.reports.tokens import Splitter
from cmasd.telemetry.acceptance import Acceptance
from cmasd.telemetry.totals import Totals
from tests.unit.reports.synthetic import BASELINE, HOSTILE, drawn, make_run

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
    assert "while decoding; 1 start(s)" in shown
    assert "90.0% of all iterations" in shown
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
    assert "of the whole job" in shown
    hours, cost = (gather(str(tmp_path / "run")).summary[name] for name in ("actor_hours", "cost"))
    assert cost["total"] == pytest.approx(2.5 * hours["decoding"], abs=1e-4)
    assert cost["whole_job"] == pytest.approx(2.5 * hours["whole_job"], abs=1e-4)
    assert f"the whole job {cost['whole_job']:,.4f} per million" in shown
    assert "No price is set" in says(rendered(tmp_path, address=str(tmp_path / "free"))[1])


def test_who_wrote_a_token_shows_without_colour(tmp_path: Path) -> None:
    _text, root = rendered(tmp_path)
    styles = "".join(next(root.iter("style")).itertext())
    assert re.search(r"\.draft \{ border: \d+px solid", styles), "a frame around what was drafted"
    assert not re.search(r"\.own \{[^}]*(border|outline|background)", styles), "and around nothing else"
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


def test_the_source_stands_beside_each_sample(tmp_path: Path) -> None:
    """Read again from the input, by identity; from the output where it was kept there, and then once."""
    for telemetry in ({"level": "token"}, {"level": "none"}):
        _, root = rendered(tmp_path, telemetry=telemetry)
        articles = [says(article) for article in root.iter("article")]
        assert len(articles) >= 7
        for article in articles:
            number = re.match(r"<b>(\d+)</b>", article)
            assert number is not None
            assert f"Source: row {number[1]} " in article
    address = make_run(tmp_path, address=str(tmp_path / "kept"), input={"text_column": "note"})
    evidence = gather(address)
    (tmp_path / "in.jsonl").unlink()
    chosen, notes = page._sample_rows(evidence)
    assert notes == []
    assert {(row.source, len(row.kept)) for row in chosen} == {(HOSTILE, 0)}, "the column of the run"


def test_sources_that_were_kept_need_no_input(tmp_path: Path) -> None:
    """The rows that a report shows, rejected drafts and chance, are among those that each shard keeps."""
    evidence = gather(make_run(tmp_path, telemetry={"keep_source": "samples"}))
    (tmp_path / "in.jsonl").unlink()
    chosen, notes = page._sample_rows(evidence)
    assert notes == []
    assert len(chosen) == RANDOM_ROWS + WORST_ROWS
    for row in chosen:
        assert row.source == f"kept {row.identity} {HOSTILE}"
        assert "source_text" not in dict(row.kept)


def test_who_proposed_what_is_shown_where_several_did(tmp_path: Path) -> None:
    evidence = gather(make_run(tmp_path))
    assert "by-source" not in [chart.key for chart in figures.drafting(evidence)]
    acceptance = Acceptance(by_source=((0, 0), (9, 6), (3, 1)))
    evidence.shards[0] = replace(evidence.shards[0], totals=Totals(acceptance=acceptance))
    judged, accepted = (sum(shard.totals.acceptance.by_source[1][n] for shard in evidence.shards) for n in (0, 1))
    chart = next(chart for chart in figures.drafting(evidence) if chart.key == "by-source")
    assert chart.rows == [
        ["model", f"{judged:,}", f"{accepted:,}", f"{accepted / judged:.1%}"],
        ["copy", "3", "1", "33.3%"],
    ]


def test_a_source_that_cannot_be_had_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = make_run(tmp_path)
    source = tmp_path / "in.jsonl"
    source.write_text(source.read_text().replace("row 7", "row 8"))
    shown = says(ElementTree.fromstring(page.render(gather(address))))
    assert "Source texts are not shown, since the input cannot be read again" in shown
    assert "in.jsonl has changed since the run was started" in shown
    assert "input.keep_columns" in shown
    assert "Source:" not in shown
    make_run(tmp_path)
    monkeypatch.setattr("cmasd.reports.sources.MOST_READ_BYTES", 10)
    assert "GB of input would have to be read" in says(ElementTree.fromstring(page.render(gather(address))))


def test_nothing_is_said_twice(tmp_path: Path) -> None:
    """Notices that are the summary's own words for what header and findings say are left to these."""
    slow = {"baseline": BASELINE, "verification": {"kind": "relaxed"}, "telemetry": {"level": "iteration"}}
    shown = says(rendered(tmp_path, **slow)[1])
    assert shown.count("Outputs may differ") == 1
    assert "is lossy: outputs" not in shown
    assert shown.count("0.80 times AR") == 1
    assert "No speed-up here" not in shown
    assert shown.count("telemetry.level is iteration") == 1
    assert "notice <script>" in shown, "the others are there"


def test_wide_tables_scroll_by_themselves(tmp_path: Path) -> None:
    _text, root = rendered(tmp_path, baseline=BASELINE)
    scrolling = [div for div in root.iter("div") if "scroll" in div.get("class", "").split()]
    assert all(div.get("tabindex") == "0" and div.get("role") == "region" for div in scrolling), "by keyboard as well"
    assert sum(len(list(div.iter("table"))) for div in scrolling) == len(list(root.iter("table"))) > 0
    assert ".scroll { overflow-x: auto; max-width: 100%;" in "".join(next(root.iter("style")).itertext())


def test_shares_of_nothing_are_dashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that drafted nothing accepted and rolled back nothing, which is not 0 %."""
    plain = drawn(np.random.default_rng(0), lambda confidence: 1.0, 5, most_drafted=0)
    monkeypatch.setattr("tests.unit.reports.synthetic.drawn", lambda *_: plain)
    shown = says(rendered(tmp_path, errors=False, drafting=0.0)[1])
    assert "Acceptance rate - of drafted tokens" in shown
    assert "Rollback rate - 0.0% of iterations drafted" in shown
    assert "nothing drafted." in shown
    assert "part-00000-000009 11.0 12 60 60 - 0" in shown, "of a shard, too"
    assert "No failure signature was found." in shown
