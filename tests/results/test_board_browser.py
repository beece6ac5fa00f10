"""The board in a browser: its filters work by mouse and keyboard, say what they did, and can be done without.

Needs Chromium and its driver (Debian: chromium, chromium-driver) and the extra ``browser``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from results.board.board import board
from results.board.figures import frontiers
from results.board.page import page
from results.figures.files import Drawing, drawn
from tests.fixtures import browser
from tests.fixtures.boards import REGISTERED, ours, theirs
from tests.fixtures.browser import By, Keys, complaints, show

pytestmark = browser.needed
Driver = browser.Driver


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    ours(folder / "ours")
    theirs(folder / "theirs")
    made = board([folder / "ours", folder / "theirs"], REGISTERED)
    figures = [Drawing(data, drawn(data, "svg")) for data in frontiers(made.standings)]
    (folder / "index.html").write_text(page(made, figures), "utf-8")
    return folder / "index.html"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    yield from browser.started(tmp_path_factory.mktemp("profile"))


@pytest.fixture
def opened(driver: Driver, site: Path) -> Driver:
    show(driver, width=1280)
    driver.get(site.as_uri())
    return driver


def rows(driver: Driver) -> list[str]:
    """The methods that are shown, from top to bottom."""
    found = driver.find_elements(By.CSS_SELECTOR, "#board tbody th[scope='row']")
    return [cell.text.partition("\n")[0] for cell in found if cell.is_displayed()]


def choose(driver: Driver, name: str, text: str) -> None:
    driver.find_element(By.XPATH, f"//select[@name='{name}']/option[.='{text}']").click()


def tick(driver: Driver, name: str) -> None:
    driver.find_element(By.NAME, name).click()


def said(driver: Driver) -> str:
    return driver.find_element(By.ID, "shown").text


def test_it_opens_without_a_complaint_at_the_setting_of_most_ranked_rows(opened: Driver) -> None:
    assert opened.get_log("browser") == []  # type: ignore[no-untyped-call]
    assert rows(opened) == ["mine", "epmq", "gptq", "awq"]
    assert said(opened) == "4 of 8 rows shown, at 1 of 3 settings."
    image = opened.find_element(By.TAG_NAME, "img")
    assert int(image.get_attribute("naturalWidth") or 0) > 100


def test_filters_choose_rows_and_say_how_many(opened: Driver) -> None:
    choose(opened, "bits", "2 bits")
    assert rows(opened) == ["epmq", "gptq", "awq"]
    tick(opened, "run")
    assert rows(opened) == ["epmq", "gptq"]
    assert said(opened) == "2 of 8 rows shown, at 1 of 3 settings."
    choose(opened, "family", "rounding")
    assert rows(opened) == ["gptq"]
    tick(opened, "ahead")
    assert rows(opened) == []
    assert said(opened) == "0 of 8 rows shown, at 0 of 3 settings."


def test_variants_are_shown_when_they_are_asked_for(opened: Driver) -> None:
    tick(opened, "variants")
    assert rows(opened) == ["mine", "epmq", "gptq", "epmq (anchor=0.5)", "awq"]


def test_a_suite_has_the_table_for_itself(opened: Driver) -> None:
    choose(opened, "suite", "micro-glue-8")
    heads = opened.find_elements(By.CSS_SELECTOR, "#board thead th")
    assert [head.text.partition("\n")[0] for head in heads if head.is_displayed()] == [
        "method",
        "micro-glue-8",
    ]
    tick(opened, "run")
    assert rows(opened) == []
    choose(opened, "suite", "all")
    assert rows(opened) == ["mine", "epmq", "gptq"]


def test_the_keyboard_is_enough(opened: Driver) -> None:
    search = opened.find_element(By.NAME, "method")
    search.send_keys("EPM")
    assert rows(opened) == ["epmq"]
    search.send_keys(Keys.ENTER)  # sends nothing anywhere
    assert rows(opened) == ["epmq"]
    search.send_keys(Keys.TAB, Keys.TAB)
    opened.switch_to.active_element.send_keys(Keys.SPACE)
    opened.find_element(By.ID, "all").send_keys(Keys.ENTER)
    assert said(opened) == "8 of 8 rows shown, at 3 of 3 settings."
    assert opened.find_element(By.NAME, "method").get_attribute("value") == ""


def test_without_scripts_all_rows_are_there_and_no_filter(opened: Driver, site: Path) -> None:
    opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    opened.get(site.as_uri())
    try:
        assert len(rows(opened)) == 8
        assert not opened.find_element(By.ID, "filters").is_displayed()
    finally:
        opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_axe_finds_no_violation(opened: Driver, scheme: str, width: int) -> None:
    show(opened, width, scheme)
    opened.find_element(By.ID, "all").click()
    assert complaints(opened) == []


@pytest.mark.parametrize("width", [320, 400, 1280])
def test_the_page_itself_never_scrolls_sideways(opened: Driver, width: int) -> None:
    show(opened, width)
    opened.find_element(By.ID, "all").click()
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width


def test_methods_stay_in_sight_where_the_table_scrolls(opened: Driver) -> None:
    show(opened, 400)
    script = """
        const box = document.querySelector("#board .box");
        box.scrollLeft = 300;
        const [heading] = box.querySelectorAll("tbody th[scope='row']");
        return [box.scrollWidth > box.clientWidth, heading.getBoundingClientRect().left >= 0];
    """
    assert opened.execute_script(script) == [True, True]


def test_it_prints_without_filters(opened: Driver) -> None:
    show(opened, 1280, scheme="dark", media="print")
    assert not opened.find_element(By.ID, "filters").is_displayed()
    show(opened, 1280)


def test_no_script_but_its_own_runs(opened: Driver) -> None:
    opened.execute_script(
        "const script = document.createElement('script'); script.textContent = 'window.ran = true';"
        "document.body.append(script);"
    )
    assert opened.execute_script("return window.ran") is None
    assert opened.get_log("browser")  # type: ignore[no-untyped-call]
