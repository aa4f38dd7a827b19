"""The report in a real browser, without a network: no error, sorting, hovering, pictures.

Needs Debian's chromium (`apt-get install chromium`) and `pip install playwright`; run with
`pytest -m browser`, and with `--shots FOLDER` to look at what it saw.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ablation_study import ARMS, finished_study
from yolo_attn.ablation.report import PAGE, write_report

pytestmark = pytest.mark.browser
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page of a finished study, opened from its file; `page.said` is what went wrong."""
    api = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium here")
    folder = finished_study(tmp_path_factory.mktemp("runs"))
    write_report(folder)
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
        page = context.new_page()
        page.said = []
        page.on("console", lambda m: m.type in ("error", "warning") and page.said.append(m.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("requestfailed", lambda request: page.said.append(request.url[:200]))
        page.goto((folder / PAGE).as_uri())
        page.wait_for_selector("#figure-latency .main-svg")
        yield page
        browser.close()


@pytest.fixture(autouse=True)
def shot(request: pytest.FixtureRequest, page: Any) -> Iterator[None]:
    yield
    folder = request.config.getoption("--shots")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{request.node.name}.png")


def column(page: Any, table: str, number: int) -> list[str]:
    return page.locator(f"#{table} tbody tr td:nth-child({number})").all_inner_texts()


def test_opens_without_an_error(page: Any) -> None:
    assert page.said == []
    assert page.title() == "demo: ablation"


def test_the_table_sorts_on_click(page: Any) -> None:
    before = column(page, "verdicts", 5)
    title = page.locator("#verdicts th", has_text="mean")
    title.scroll_into_view_if_needed()
    title.click()
    up = column(page, "verdicts", 5)
    assert sorted(up, key=float) == up != before and title.get_attribute("aria-sort") == "ascending"
    title.click()
    assert column(page, "verdicts", 5) == sorted(up, key=float, reverse=True)
    page.locator("#trials th", has_text="arm").click()
    arms = column(page, "trials", 1)
    assert arms == sorted(arms) and len(set(arms)) == len(ARMS)


@pytest.mark.parametrize("number", range(len(ARMS)))
def test_hovering_a_point_shows_its_arm(page: Any, number: int) -> None:
    figure = page.locator("#figure-latency")
    figure.scroll_into_view_if_needed()
    trace = figure.locator(".scatterlayer .trace").nth(number)
    box = trace.locator(".point").first.bounding_box()
    page.mouse.move(0, 0)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
    label = figure.locator(".hoverlayer .hovertext")
    label.first.wait_for()
    arm = [name.replace("<b>odd&", "odd_arm") for name in ARMS][number]
    # The arms' latencies are 5, 6 and 7 ms: the point stands at its own.
    axis = f"f => {{ const a = f._fullLayout.xaxis; return a._offset + a.d2p({5 + number}) }}"
    place = page.locator("#figure-latency").evaluate(axis)
    left = page.locator("#figure-latency").bounding_box()["x"]
    assert abs(box["x"] + box["width"] / 2 - left - place) < 1
    assert arm in label.first.text_content()


def test_every_picture_loads(page: Any) -> None:
    images = page.locator("figure img")
    assert images.count() >= 3 * (1 + len(ARMS))
    images.first.scroll_into_view_if_needed()
    widths = images.evaluate_all("all => all.map(i => i.complete ? i.naturalWidth : 0)")
    assert min(widths) > 100
    assert page.said == []
