"""Links and paths on the pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.fixtures.pages import COMMENT, INLINE, LINK, PAGES, ROOT, prose

OTHERS = [  # written by hand, too
    *(ROOT / "benchmarks").glob("**/README.md"),
    *(ROOT / "results").glob("committed/**/*.md"),
]
ALL = [*PAGES, *sorted(path for path in OTHERS if path.name != "table.md" and "data" not in path.parts)]
TOP = ("epmq/", "baselines/", "benchmarks/", "results/", "tests/", "docs/", ".github/", ".ci/")
MADE = {"results/community/NAME"}  # what a reader is told to make
MAX_README_LINES = 150


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(page: str) -> set[str]:
    """Where a page's headings can be linked to."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def broken(path: Path, link: str) -> bool:
    """Whether a link of a page leads nowhere; of the world's, only the form is looked at."""
    parts = urlsplit(link)
    if parts.scheme:
        return parts.scheme not in ("https", "http") or "." not in parts.netloc
    there = path.parent / parts.path if parts.path else path
    if not there.resolve().is_relative_to(ROOT) or not there.exists():
        return True
    return bool(parts.fragment) and parts.fragment not in anchors(there.read_text("utf-8"))


def lost(text: str) -> list[str]:
    """Paths in backticks that look like the repository's and are not there."""
    words = [word for found in INLINE.findall(text) for word in found.split()]
    paths = [word for word in words if word.startswith(TOP) and not re.search(r"[A-Z*]{4}|\*", word)]
    return [path for path in paths if path not in MADE and not (ROOT / path).exists()]


@pytest.mark.parametrize("path", ALL, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    links = LINK.findall(COMMENT.sub("", prose(path.read_text("utf-8"))))
    assert not [link for link in links if broken(path, link)]


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_paths_exist(path: Path) -> None:
    assert not lost(prose(path.read_text("utf-8")))


@pytest.mark.parametrize("link", ["nowhere.md", "../../outside.md", "docs/limits.md#nothing", "https://host"])
def test_a_broken_link_is_found(link: str) -> None:
    assert broken(ROOT / "README.md", link)


def test_a_lost_path_is_found() -> None:
    assert lost("It is in `benchmarks/nothing.py`.") == ["benchmarks/nothing.py"]


def test_every_page_is_in_the_navigation_and_in_the_readme() -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    named = set(re.findall(r"^  - .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE))
    assert named == pages
    readme = (ROOT / "README.md").read_text("utf-8")
    assert not [page for page in pages - {"index.md"} if f"docs/{page}" not in readme]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= MAX_README_LINES


def test_the_site_fetches_nothing() -> None:
    """The theme's fonts are the only thing that it would take from elsewhere on these pages."""
    settings = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert "  font: false" in settings
    assert "http" not in settings
