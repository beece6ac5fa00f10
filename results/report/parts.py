"""What every page here is made of: its own style and script, their policy, pictures that fetch nothing."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from urllib.parse import quote

from results.figures.data import FigureData, data_csv
from results.figures.files import Drawing
from results.figures.style import adaptive


@dataclass(frozen=True)
class Picture:
    """A figure as the page holds it: its words, and the image and its data as URLs that fetch nothing."""

    data: FigureData
    image: str
    csv: str


def resource(name: str, wing: str = "results.report") -> str:
    """The text of a file in a wing's ``templates``."""
    return (files(wing) / "templates" / name).read_text("utf-8")


def policy(style: str, script: str) -> str:
    """The content security policy: these very styles and scripts, images in the page, nothing else."""

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; style-src 'sha256-{digest(style)}'; script-src 'sha256-{digest(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def picture(figure: Drawing) -> Picture:
    """A figure for a page, in the reader's light or dark."""
    image = base64.b64encode(adaptive(figure.svg.decode()).encode()).decode()
    return Picture(
        figure.data,
        f"data:image/svg+xml;base64,{image}",
        f"data:text/csv;charset=utf-8,{quote(data_csv(figure.data))}",
    )
