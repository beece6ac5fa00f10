"""What the figures of a results folder show, as rows of numbers: a figure draws these and nothing else."""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from results.analysis.analysis import Analysis
from results.analysis.rows import Row
from results.analysis.stats import NORMAL_95
from results.figures import spent
from results.figures.captions import WORDS, Kind
from results.store.folder import RunFolder
from results.store.records import Record
from results.store.tuning import trials
from results.tables.comparison import REHEARSAL
from results.tables.formats import csv_text

BOUNDS: Final = ("experts", "merged", "zero-shot")  # in full precision: lines to compare with, no series
Point = dict[str, str | int | float | None]


@dataclass(frozen=True)
class FigureData:
    """One figure: a file name without an ending, what is to be read in it, and its points.

    ``alt`` says in words what is shown, for those who cannot see it. ``places`` has by label the place of
    its method among all of the folder, which gives its colour and marker.
    """

    name: str
    kind: Kind
    title: str
    caption: str
    alt: str
    points: tuple[Point, ...]
    places: Mapping[str, int] = field(default_factory=dict)


def figure_data(analysis: Analysis) -> list[FigureData]:
    """The figures that the records can fill, in the order in which they are to be read.

    Raises:
        UserError: per-sample outcomes or the folder's ``tuning.json`` cannot be used.
    """
    rows = [row for row in analysis.rows if row.records]
    label = _labels(rows)
    figures = [*_accuracy(rows, label), *_recovery(analysis, rows, label), *_efforts(rows, label)]
    figures += _tasks(rows, label)
    figures = [replace(data, places=_places(rows, label)) for data in [*figures, *_deviations(rows, label)]]
    figures += [*_anchors(rows, label), *_search(analysis.folder)]
    ending = f" {REHEARSAL.capitalize()}." if analysis.manifest.rehearsal else ""
    return [replace(data, caption=data.caption + ending) for data in _named_apart(figures)]


def _places(rows: Sequence[Row], label: Callable[[Row], str]) -> dict[str, int]:
    """By label its place: methods by name, then the controls that are drawn as series."""
    drawn = [row for row in rows if row.method not in BOUNDS or row.bits is not None]
    labels = sorted({(row.kind != "method", label(row)) for row in drawn})
    return {name: place for place, (_, name) in enumerate(labels)}


def _figure(
    kind: Kind, name: str, points: Sequence[Point], rows: Sequence[Row], **words: object
) -> FigureData:
    if rows:
        count = len({point["label"] for point in points})
        words = {"score": _score(rows), "samples": _samples(rows), "count": count, **words}
    title, caption, alt = (text.format(**words) for text in WORDS[kind])
    return FigureData(name, kind, title, caption, alt, tuple(points))


def _named_apart(figures: Sequence[FigureData]) -> Iterator[FigureData]:
    seen: dict[str, int] = defaultdict(int)
    for data in figures:
        seen[data.name] += 1
        number = seen[data.name]
        yield data if number == 1 else replace(data, name=f"{data.name}-{number}")


def _slug(*parts: object) -> str:
    """A file name without an ending: nothing of a stranger's name but letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(str(part) for part in parts).lower()).strip("-")[:80]


def _labels(rows: Sequence[Row]) -> Callable[[Row], str]:
    targets: dict[str, set[str | None]] = defaultdict(set)
    for row in rows:
        targets[row.method].add(row.target)

    def label(row: Row) -> str:
        return f"{row.name} → {row.target}" if len(targets[row.method]) > 1 and row.target else row.name

    return label


def _role(row: Row) -> str:
    """What a series is drawn as: a control, or a method on the merged or the expert target."""
    if row.kind == "control":
        return "control"
    return "expert" if row.target == "expert" else "merged"


def _samples(rows: Sequence[Row]) -> str:
    counts = {sum(task.samples for task in row.tasks.values()) for row in rows}
    tasks = {len(row.tasks) for row in rows}
    return f"n = {' or '.join(f'{n:,}' for n in sorted(counts))} test samples over {max(tasks)} tasks"


def _score(rows: Sequence[Row]) -> str:
    metrics = {task.metric for row in rows for task in row.tasks.values()}
    return "accuracy" if metrics == {"accuracy"} else "score (accuracy, or 100 × Spearman's rho)"


def _accuracy(rows: Sequence[Row], label: Callable[[Row], str]) -> Iterator[FigureData]:
    merges = _merges(rows)
    points: list[Point] = []
    for row in rows:
        if row.average is None or row.standard_error is None or row.merge not in (*merges, None):
            continue
        points.append(
            {
                "merge": row.merge,
                "label": label(row),
                "role": _role(row),
                "bits": row.bits,
                "bits_per_weight": row.records[0].bits_per_weight,
                "average": row.average,
                "low": row.average - NORMAL_95 * row.standard_error,
                "high": row.average + NORMAL_95 * row.standard_error,
            }
        )
    if merges:
        yield _figure("bits", "accuracy-bits", points, rows)


def _merges(rows: Sequence[Row]) -> list[str]:
    """The merges that a method was applied to: a merge with controls alone has nothing to compare."""
    return sorted({row.merge for row in rows if row.merge is not None and row.kind == "method"})


def _recovery(analysis: Analysis, rows: Sequence[Row], label: Callable[[Row], str]) -> Iterator[FigureData]:
    points: list[Point] = []
    for row in rows:
        if row.method == "merged" or (interval := analysis.recovery_interval(row.records)) is None:
            continue
        points.append(
            {
                "merge": row.merge,
                "label": label(row),
                "role": _role(row),
                "bits": row.bits,
                "recovery": row.recovery,
                "low": interval[0],
                "high": interval[1],
            }
        )
    if points:
        yield _figure("recovery", "recovery", points, rows)


def _efforts(rows: Sequence[Row], label: Callable[[Row], str]) -> Iterator[FigureData]:
    """Where a row was refined: what accuracy costs, bits by bits, and how the refinements went."""
    refined = [row for row in rows if row.records[0].refinements]
    for bits in sorted({row.bits for row in refined if row.bits is not None}, reverse=True):
        shown = [row for row in rows if row.bits == bits or (row.bits is None and row in refined)]
        points = spent.costs(shown, label, _role)
        yield _figure("pareto", f"pareto-{bits}-bit", points, shown, bits=bits)
    if refined:
        yield _figure("curves", "curves", spent.curves(refined, label, _role), refined)


def _tasks(rows: Sequence[Row], label: Callable[[Row], str]) -> Iterator[FigureData]:
    merges = _merges(rows)
    quantised = [row for row in rows if row.bits is not None and row.merge in merges]
    quantised.sort(key=lambda row: (row.merge or "", -(row.bits or 0)))
    for (merge, bits), group in itertools.groupby(quantised, key=lambda row: (row.merge, row.bits)):
        cells = list(group)
        bounds = [
            row
            for row in rows
            if row.bits is None and (row.method, row.merge) in {("experts", None), ("merged", merge)}
        ]
        points: list[Point] = [
            {
                "task": task,
                "label": label(row),
                "role": _role(row),
                "value": result.value,
                "n": result.samples,
            }
            for row in [*bounds, *cells]
            for task, result in sorted(row.tasks.items())
        ]
        yield _figure("tasks", _slug("tasks", merge, bits, "bit"), points, cells, merge=merge, bits=bits)


def _deviations(rows: Sequence[Row], label: Callable[[Row], str]) -> Iterator[FigureData]:
    quantised = [row for row in rows if row.kind == "method" and row.bits is not None]
    quantised.sort(key=lambda row: (row.merge or "", -(row.bits or 0)))
    for (merge, bits), group in itertools.groupby(quantised, key=lambda row: (row.merge, row.bits)):
        cells = list(group)
        points = [point for row in cells for point in _layers(row, label(row))]
        if not points:
            continue
        layers = len({point["layer"] for point in points})
        words = {"merge": merge, "bits": bits, "layers": layers}
        yield _figure("deviations", _slug("deviations", merge, bits, "bit"), points, cells, **words)


def _layers(row: Row, label: str) -> Iterator[Point]:
    for index, layer in enumerate(row.records[0].layers):
        merging, expert = layer.merging_deviation, layer.expert_deviation
        if merging is None or expert is None or layer.quantisation_deviation is None:
            continue
        if not layer.experts_differ:
            continue
        yield {
            "label": label,
            "role": _role(row),
            "layer": layer.name,
            "index": index,
            "quantisation": layer.quantisation_deviation / merging,
            "expert_relative": expert / merging,
            "merging_deviation": merging,
        }


def _anchors(rows: Sequence[Row], label: Callable[[Row], str]) -> Iterator[FigureData]:
    """Cells that differ in the anchor alone; a method whose name is its anchor joins the method it is of."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.bits is not None and isinstance(row.records[0].axes.get("anchor"), int | float):
            groups[_but_anchor(row.records[0])].append(row)
    points: list[Point] = []
    known, places = _places(rows, label), {}
    for group in groups.values():
        if len({row.records[0].axes["anchor"] for row in group}) < 2:
            continue
        namesake = min(group, key=lambda row: len(row.method))
        series = f"{namesake.method}, {namesake.bits} bits"
        places[series] = known[label(namesake)]
        for row in sorted(group, key=lambda row: float(row.records[0].axes["anchor"] or 0)):
            if row.average is None or row.standard_error is None:
                continue
            points.append(
                {
                    "merge": row.merge,
                    "label": series,
                    "role": _role(row),
                    "anchor": float(row.records[0].axes["anchor"] or 0),
                    "average": row.average,
                    "low": row.average - NORMAL_95 * row.standard_error,
                    "high": row.average + NORMAL_95 * row.standard_error,
                }
            )
    if points:
        yield replace(_figure("anchor", "anchor", points, rows), places=places)


def _but_anchor(record: Record) -> str:
    axes = {name: value for name, value in record.axes.items() if name != "anchor"}
    made = [record.kind, record.merge, record.merge_options, record.rounding, record.target, record.bits]
    return json.dumps([*made, axes, record.device, record.dtype], sort_keys=True)


def _search(folder: RunFolder) -> Iterator[FigureData]:
    points: list[Point] = [
        {
            "merge": trial.merge,
            "label": f"mixing {trial.mixing:g}",
            "role": trial.target,
            "bits": trial.bits,
            "anchor": trial.anchor,
            "distance": trial.distance,
        }
        for trial in trials(folder)
        if (trial.target, trial.patch_weight) == ("expert", 1)
    ]
    if points:
        bits = " or ".join(str(bits) for bits in sorted({trial.bits for trial in trials(folder)}))
        yield _figure("search", "anchor-search", points, [], bits=bits)


def data_csv(data: FigureData) -> str:
    """The points of a figure as CSV."""
    return csv_text(list(data.points[0]), data.points)


def by(points: Sequence[Point], name: str) -> dict[str, list[Point]]:
    """The points by the field ``name``, groups and points in the order in which they come."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(str(point[name]), []).append(point)
    return groups


def number(point: Point, name: str, scale: float = 1) -> float:
    """A field that holds a number, times ``scale``."""
    value = point[name]
    if not isinstance(value, int | float):
        raise TypeError(f"{name} of {point} is no number")
    return scale * value


def numbers(points: Sequence[Point], name: str, scale: float = 1) -> list[float]:
    """A field of every point, times ``scale``."""
    return [number(point, name, scale) for point in points]


def errors(points: Sequence[Point], name: str, scale: float = 100) -> list[list[float]]:
    """The lengths of error bars (2, points) from the fields ``low`` and ``high``."""
    middle, low, high = (numbers(points, field, scale) for field in (name, "low", "high"))
    return [
        [m - end for m, end in zip(middle, low, strict=True)],
        [end - m for m, end in zip(middle, high, strict=True)],
    ]


def bit_widths(points: Sequence[Point]) -> list[int | None]:
    """The bits of the points, full precision (None) first, then descending."""
    found = {int(number(point, "bits")) for point in points if point["bits"] is not None}
    full: list[int | None] = [None] if any(point["bits"] is None for point in points) else []
    return [*full, *sorted(found, reverse=True)]
