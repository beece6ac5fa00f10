"""The report in a browser: it reads, sorts and prints, and axe-core finds nothing serious to complain about.

Needs Chromium and its driver (Debian: chromium, chromium-driver) and the extra ``browser``.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from results.analysis.analysis import Analysis
from results.figures.files import drawings
from results.report.page import save
from tests.fixtures import browser
from tests.fixtures.browser import By, Keys, complaints, show
from tests.results.test_figures import study

pytestmark = browser.needed
Driver = browser.Driver


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    analysis = Analysis(study(folder / "run", environment={"cpus": 2}))
    save(analysis, drawings(analysis), folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    yield from browser.started(tmp_path_factory.mktemp("profile"))


@pytest.fixture
def opened(driver: Driver, report: Path) -> Driver:
    show(driver, width=1280)
    driver.get(report.as_uri())
    return driver


def quality(driver: Driver, heading: str) -> list[str]:
    """The column of the first large table under a heading, from top to bottom."""
    script = """
        const table = document.querySelector("#results table");
        const column = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === arguments[0]);
        return [...table.tBodies[0].rows].map((row) => row.cells[column].textContent);
    """
    column: list[str] = driver.execute_script(script, heading)
    return column


def button(driver: Driver, heading: str) -> Any:
    return driver.find_element(By.XPATH, f"//section[@id='results']//table[1]//th/button[.='{heading}']")


def aria_sort(driver: Driver) -> dict[str, str]:
    cells = driver.find_elements(By.CSS_SELECTOR, "#results div:first-of-type th[aria-sort]")
    return {cell.text: cell.get_attribute("aria-sort") or "" for cell in cells}


def test_the_page_opens_without_a_complaint(opened: Driver) -> None:
    assert opened.get_log("browser") == []  # type: ignore[no-untyped-call]
    assert opened.title == "toy · post-merge quantisation report"
    images = opened.find_elements(By.TAG_NAME, "img")
    assert len(images) == 7
    assert all(int(image.get_attribute("naturalWidth") or 0) > 100 for image in images)


def test_a_click_sorts_numbers_best_first_then_the_other_way(opened: Driver) -> None:
    before = quality(opened, "recovery")
    button(opened, "recovery").click()
    assert quality(opened, "recovery") == ["50.0", "25.0", "0.0", "0.0", "−25.0", "−75.0", "", ""]
    assert list(aria_sort(opened).values()) == ["descending"]
    button(opened, "recovery").click()
    assert quality(opened, "recovery") == ["−75.0", "−25.0", "0.0", "0.0", "25.0", "50.0", "", ""]
    assert list(aria_sort(opened).values()) == ["ascending"]
    assert sorted(before) == sorted(quality(opened, "recovery"))


def test_the_keyboard_sorts_and_the_change_is_announced(opened: Driver) -> None:
    button(opened, "method").send_keys(Keys.ENTER)
    methods = quality(opened, "method")
    assert methods == sorted(methods)
    assert opened.find_element(By.ID, "said").get_attribute("textContent") == "Sorted by method, ascending"
    button(opened, "method").send_keys(Keys.SPACE)
    assert quality(opened, "method") == sorted(methods, reverse=True)
    assert opened.execute_script("return document.activeElement.textContent") == "method"


def test_sorting_one_column_forgets_the_other(opened: Driver) -> None:
    button(opened, "recovery").click()
    button(opened, "method").click()
    assert len(aria_sort(opened)) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_axe_finds_no_violation(opened: Driver, scheme: str, width: int) -> None:
    show(opened, width, scheme)
    opened.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert complaints(opened) == []


@pytest.mark.parametrize("width", [320, 375, 1280])
def test_the_page_itself_never_scrolls_sideways(opened: Driver, width: int) -> None:
    show(opened, width)
    opened.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width


def test_tables_scroll_in_their_box_on_a_phone(opened: Driver) -> None:
    show(opened, 375)
    script = "const box = document.querySelector('#results .box'); return box.scrollWidth > box.clientWidth"
    assert opened.execute_script(script)
    assert opened.execute_script("return document.querySelector('#results .box').tabIndex") == 0


def test_the_page_prints(opened: Driver) -> None:
    show(opened, 1280, scheme="dark", media="print")
    ink, paper = opened.execute_script(
        "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
    )
    assert (ink, paper) == ("rgb(27, 31, 36)", "rgb(255, 255, 255)")
    assert not opened.find_element(By.TAG_NAME, "nav").is_displayed()
    show(opened, 1280)
    printed = opened.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    document = base64.b64decode(printed["data"])
    assert document.startswith(b"%PDF")
    assert len(document) > 20_000


def test_figures_follow_the_colour_scheme(opened: Driver) -> None:
    shots = []
    for scheme in ("light", "dark"):
        show(opened, 1280, scheme)
        shots.append(opened.find_element(By.TAG_NAME, "img").screenshot_as_png)
    assert shots[0] != shots[1]


def test_a_record_can_not_run_a_script(opened: Driver) -> None:
    """Even if a name got through the escaping, the page's policy would stop it."""
    opened.execute_script(
        "const script = document.createElement('script'); script.textContent = 'window.ran = true';"
        "document.body.append(script);"
        "const image = document.createElement('img'); image.src = 'https://example.org/x.png';"
        "document.body.append(image);"
    )
    assert opened.execute_script("return window.ran") is None
    said = [entry["message"] for entry in opened.get_log("browser")]  # type: ignore[no-untyped-call]
    assert sum("Content Security Policy" in message for message in said) >= 2
