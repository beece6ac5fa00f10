"""The figures of a results folder as SVG and PNG, each beside the CSV file of what it shows."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from results.analysis.analysis import Analysis
from results.figures import averages, bars, efforts, lines
from results.figures.captions import Kind
from results.figures.data import FigureData, data_csv, figure_data
from results.figures.style import RC
from results.store.files import os_errors, refuse_link, write_atomically

_DPI: Final = 160
DRAW: Final[dict[Kind, Callable[[FigureData], Figure]]] = {
    "bits": averages.accuracy,
    "recovery": averages.recovery,
    "pareto": efforts.pareto,
    "curves": efforts.curves,
    "tasks": bars.tasks,
    "deviations": lines.deviations,
    "anchor": lines.anchor,
    "search": lines.search,
    "frontier": efforts.frontier,
}


def drawn(data: FigureData, fmt: Literal["svg", "png"]) -> bytes:
    """A figure as a file. The same data gives the same bytes wherever matplotlib is the same."""
    metadata: dict[str, Any] = {"Date": None, "Creator": None} if fmt == "svg" else {"Software": None}
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever a matplotlibrc says
        mpl.rcParams.update(RC)
        figure = DRAW[data.kind](data)
        FigureCanvasAgg(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=fmt, dpi=_DPI, metadata=metadata)
    return buffer.getvalue()


@dataclass(frozen=True)
class Drawing:
    """A figure's data with its picture as SVG, which files and pages share."""

    data: FigureData
    svg: bytes


def drawings(analysis: Analysis) -> list[Drawing]:
    """Every figure of a folder, drawn; raises as ``figure_data`` does."""
    return [Drawing(data, drawn(data, "svg")) for data in figure_data(analysis)]


def save(folder: Path, figures: Sequence[Drawing]) -> list[Path]:
    """Write figures into the folder's ``figures``, as SVG, PNG and CSV; returns the paths.

    Raises:
        UserError: the folder cannot be written.
    """
    where = folder / "figures"
    paths = []
    with os_errors(where, "write figures there"):
        refuse_link(where)
        where.mkdir(exist_ok=True)
        for figure in figures:
            png, csv = drawn(figure.data, "png"), data_csv(figure.data).encode()
            for ending, content in {"svg": figure.svg, "png": png, "csv": csv}.items():
                paths.append(where / f"{figure.data.name}.{ending}")
                write_atomically(paths[-1], content)
    return paths
