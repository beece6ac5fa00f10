"""Hooks of mkdocs: what pages link to outside docs is carried along, so that the site's links work.

On GitHub a page's ``../results/...`` leads to the repository. Here every such file is copied into the site,
Markdown as a page of its own; links to folders, and links of carried pages to what is not carried, become
plain text. A link to what does not exist is left as it is, and fails the build.

Where ``EPMQ_BOARD`` names the folder of a leaderboard, the site has it as ``board``, and pages have a link to
it where they say ``<!--board-->``.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[2]
CARRIED = "repository/"
BOARD = "board/"
BOARD_LINK = "<!--board-->"
LINK = re.compile(r"\[(?P<text>[^\]\n]*)\]\((?P<to>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add every file outside docs that a page links to, and the leaderboard if there is one."""
    linked = {
        _path(page.src_uri, found["to"])
        for page in files.documentation_pages()
        for found in LINK.finditer(page.content_string)
    }
    for path in sorted(path for path in linked if not path.startswith("docs/") and (ROOT / path).is_file()):
        source = str(ROOT / path)
        level = InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, CARRIED + path, abs_src_path=source, inclusion=level))
    for file in _board():
        name, level = BOARD + file.relative_to(os.environ["EPMQ_BOARD"]).as_posix(), InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, name, abs_src_path=str(file.resolve()), inclusion=level))
    return files


def _board() -> list[Path]:
    """The files of the leaderboard that the site is to have."""
    folder = os.environ.get("EPMQ_BOARD")
    return sorted(path for path in Path(folder).rglob("*") if path.is_file()) if folder else []


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Point links at what the site carries."""
    here = page.file.src_uri

    def pointed(found: re.Match[str]) -> str:
        path = _path(here, found["to"])
        there = path.removeprefix("docs/") if path.startswith("docs/") else CARRIED + path
        if files.get_file_from_path(there):
            link = posixpath.relpath(there, posixpath.dirname(here) or ".")
            return f"[{found['text']}]({link}{found['anchor'] or ''})"
        return found["text"] if (ROOT / path).exists() else found[0]

    here_to_board = posixpath.relpath(f"{BOARD}index.html", posixpath.dirname(here) or ".")
    link = (
        f"[Open the leaderboard]({here_to_board})" if files.get_file_from_path(f"{BOARD}index.html") else ""
    )
    return LINK.sub(pointed, markdown).replace(BOARD_LINK, link)


def _path(page: str, link: str) -> str:
    """Where in the repository a link of a page leads, by the page's place in the site."""
    real = page.removeprefix(CARRIED) if page.startswith(CARRIED) else f"docs/{page}"
    return posixpath.normpath(posixpath.join(posixpath.dirname(real), link))
