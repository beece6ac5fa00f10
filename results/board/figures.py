"""The pictures of a board: accuracy against bits per weight with its frontier, one for each suite."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from results.analysis.stats import NORMAL_95
from results.board.cells import Setting
from results.board.standings import Standing, plane
from results.board.words import merge_words
from results.figures.captions import WORDS
from results.figures.data import FigureData, Point


def frontiers(standings: Sequence[Standing]) -> list[FigureData]:
    """A picture for each suite and number of calibration samples at which several sizes were run."""
    ranked = [each for each in standings if each.cell.ranked and each.cell.bits_per_weight is not None]
    names = sorted({each.cell.method.name for each in ranked})
    places = {name: place for place, name in enumerate(names)}
    planes: dict[tuple[str, Setting], list[Standing]] = defaultdict(list)
    for each in ranked:
        planes[each.cell.suite, plane(each.cell.setting)].append(each)
    pictures: dict[tuple[str, Setting], list[Point]] = defaultdict(list)
    for (suite, setting), group in planes.items():
        if len({each.cell.bits_per_weight for each in group}) > 1:
            points = sorted(
                map(_point, group), key=lambda point: (point["bits_per_weight"], point["average"])
            )
            pictures[suite, setting._replace(merge=None, options=())] += points
    return [
        _figure(number, suite, setting, points, places)
        for number, ((suite, setting), points) in enumerate(pictures.items(), 1)
    ]


def _point(standing: Standing) -> Point:
    cell = standing.cell
    return {
        "merge": merge_words(cell.setting),
        "label": cell.method.name,
        "bits": cell.setting.bits,
        "bits_per_weight": cell.bits_per_weight,
        "average": cell.average,
        "low": cell.average - NORMAL_95 * cell.standard_error,
        "high": cell.average + NORMAL_95 * cell.standard_error,
        "frontier": int(standing.frontier),
    }


def _figure(
    number: int, suite: str, setting: Setting, points: Sequence[Point], places: dict[str, int]
) -> FigureData:
    ahead = dict.fromkeys(str(point["label"]) for point in points if point["frontier"])
    words = {
        "suite": suite,
        "samples": setting.samples,
        "machine": f"{setting.device}, {setting.dtype}",
        "count": len({point["label"] for point in points}),
        "ahead": ", ".join(ahead),
    }
    title, caption, alt = (text.format(**words) for text in WORDS["frontier"])
    return FigureData(f"frontier-{number}", "frontier", title, caption, alt, tuple(points), places)
