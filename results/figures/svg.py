"""A figure's SVG for a page that may be dark: its colours become variables with a dark value each."""

from __future__ import annotations

import re
from typing import Final

from results.figures.style import COLOURS, GRID, INK, MUTED, NEUTRAL, PAPER

_DARK: Final = {
    INK: "#e6e9ed",
    MUTED: "#a2abb8",
    GRID: "#353c45",
    PAPER: "#15181c",
    NEUTRAL: "#7d8794",
    **dict(
        zip(
            COLOURS,
            (
                *("#4da6e8", "#ff8a4a", "#2fc295", "#e58bc0", "#d9b63a", "#93a0ff", "#e06c9f", "#9cc46e"),
                "#5cc0d3",
            ),
            strict=True,
        )
    ),
}


def adaptive(svg: str) -> str:
    """Return the SVG with its colours following the reader's preference for light or dark."""
    names = {colour: f"--c{index}" for index, colour in enumerate(_DARK)}
    light = "".join(f"{name}:{colour};" for colour, name in names.items())
    dark = "".join(f"{name}:{_DARK[colour]};" for colour, name in names.items())
    style = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    coloured = re.sub(
        "|".join(names), lambda match: f"var({names[match.group().lower()]})", svg, flags=re.IGNORECASE
    )
    return re.sub(r"(<svg [^>]*>)", lambda match: match.group() + style, coloured, count=1)
