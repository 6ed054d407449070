"""The page in headless Chromium: it opens without complaint, and answers to hovering and dragging."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.pictures import LARGE, made_up_picture

webdriver = pytest.importorskip("selenium.webdriver")
waiting = pytest.importorskip("selenium.webdriver.support.wait")

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
)
FIGURES = 6
FIRST_LANE = 52
"""Pixels from the top of the timeline to the middle of its first lane: below the bar of tools."""
IDLE = """
const done = arguments[0]
const look = () => Bokeh.documents.filter((shown) => shown.is_idle).length >= %d
    ? done(performance.now()) : setTimeout(look, 20)
look()
"""
# All text on the page, with that of the shadow roots in which Bokeh draws.
TEXT = """
const read = (node) => {
    if (["SCRIPT", "STYLE"].includes(node.nodeName)) return ""
    if (node.nodeType === 3) return node.data
    return (node.shadowRoot ? read(node.shadowRoot) : "") + [...node.childNodes].map(read).join(" ")
}
return read(document.body)
"""
RANGE = """
const shown = Bokeh.documents.map((each) => each.get_model_by_name("timeline")).find((plot) => plot)
return [shown.x_range.start, shown.x_range.end]
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    pytest.importorskip("bokeh")
    from autopar.report.page import report_page

    path.write_text(report_page(made_up_picture(*LARGE)), encoding="utf-8")
    return path


def opened(page: Path, profile: Path, **emulated: Any) -> Any:
    """The page in a browser of its own, when all figures are drawn."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("needs chromium and chromedriver on the path (Debian: chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    if emulated:
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": emulated})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.set_script_timeout(60)
    browser.get(page.as_uri())
    browser.execute_async_script(IDLE % FIGURES)
    return browser


@pytest.fixture(scope="module")
def browser(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    found = opened(page, tmp_path_factory.mktemp("profile"))
    yield found
    found.quit()


def complaints(browser: Any) -> list[str]:
    """What the console says beyond information."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] != "INFO"]


def test_opens_without_a_complaint_and_without_a_network(browser: Any) -> None:
    assert complaints(browser) == []
    fetched = browser.execute_script("return performance.getEntriesByType('resource').map((x) => x.name)")
    assert [name for name in fetched if not name.startswith("data:")] == []
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].map((x) => x.getBoundingClientRect().height)"
    )
    assert len(sizes) == FIGURES and min(sizes) > 100


def test_hovering_says_what_is_under_the_pointer(browser: Any) -> None:
    plot = browser.find_element("id", "timeline")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    assert "stage, micro-batch" not in browser.execute_script(TEXT)
    # The first forward of the first rank, at the left of the first lane.
    width, height = plot.size["width"], plot.size["height"]
    for offset in range(60, 110, 4):
        pointer = webdriver.ActionChains(browser)
        pointer.move_to_element_with_offset(plot, offset - width // 2, FIRST_LANE - height // 2).perform()
        if "stage, micro-batch" in browser.execute_script(TEXT):
            break
    # One of the first forwards of rank 0.
    assert re.search(r"what: +forward.* stage, micro-batch: +0, \d .* rank: +0", browser.execute_script(TEXT))


def test_dragging_zooms_and_the_table_opens(browser: Any) -> None:
    plot = browser.find_element("id", "timeline")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    before = browser.execute_script(RANGE)
    drag = webdriver.ActionChains(browser).move_to_element_with_offset(plot, -100, -20).click_and_hold()
    for _ in range(10):  # who waits before he moves does not drag
        drag.move_by_offset(15, 6)
    drag.release().perform()
    waiting.WebDriverWait(browser, 20).until(lambda _: browser.execute_script(RANGE) != before)
    after = browser.execute_script(RANGE)
    assert before[0] < after[0] < after[1] < before[1]
    summary = browser.find_element("css selector", "#timeline-section summary")
    browser.execute_script("arguments[0].click()", summary)
    cell = browser.find_element("css selector", "#timeline-section tbody td")
    assert cell.is_displayed() and cell.text
    assert complaints(browser) == []


def test_fits_a_phone(page: Path, tmp_path: Path) -> None:
    browser = opened(page, tmp_path, width=390, height=844, pixelRatio=2.0)
    try:
        assert complaints(browser) == []
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        active = browser.execute_script(
            "return Bokeh.documents[0].roots()[0].toolbar.tools.filter((x) => x.active).map((x) => x.type)"
        )
        assert "BoxZoomTool" not in active  # a finger scrolls the page
    finally:
        browser.quit()
