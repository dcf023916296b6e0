"""The report in a real browser: no sideways scrolling on a phone, no script run, usable by keyboard.

Needs playwright and a Chromium, named by CMASD_TEST_BROWSER or on the PATH; neither is a dependency of the project.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cmasd.reports import page
from cmasd.reports.evidence import gather
from tests.unit.reports.synthetic import BASELINE, make_run

pytestmark = pytest.mark.slow

BROWSER = os.environ.get("CMASD_TEST_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
START_TIMEOUT_MS = 180_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no Chromium: set CMASD_TEST_BROWSER to one")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"], timeout=START_TIMEOUT_MS)
        yield chromium
        chromium.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_in_a_browser(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, scheme: str) -> None:
    monkeypatch.setattr(page, "splitter", lambda config: lambda ids: ["<script>alert(1)</script> " for _ in ids])
    file = tmp_path / "report.html"
    file.write_text(page.render(gather(make_run(tmp_path, baseline=BASELINE))))
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    shown = context.new_page()
    said: list[str] = []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("dialog", lambda dialog: said.append(dialog.message))
    requests: list[str] = []
    shown.on("request", lambda request: requests.append(request.url))
    shown.goto(f"file://{file}", timeout=START_TIMEOUT_MS)
    assert requests == [f"file://{file}"]
    paper = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(18, 22, 27)")
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.textContent") == "Skip to content"
    shown.evaluate("document.querySelector('figure summary').focus()")
    shown.keyboard.press("Enter")
    assert shown.evaluate("document.querySelector('figure details').open")
    shown.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert said == []
    context.close()
