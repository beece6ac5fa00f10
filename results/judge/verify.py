"""``epmq verify``: everything that a results folder says about itself, computed again from its samples."""

from __future__ import annotations

import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tabulate import tabulate

from epmq.errors import UserError
from results.analysis.analysis import Analysis
from results.figures.data import data_csv, figure_data
from results.store import exports, origin, samples
from results.store.files import os_errors, read_bounded, refuse_link
from results.store.folder import RunFolder
from results.store.records import SCHEMA, Record, agree, mean_ranked
from results.tables.comparison import FORMATS, render, table_file

_TOLERANCE = 1e-9
_MAX_MADE = 1 << 26  # bytes of a table or of a figure's data
_SHOWN = 20  # failures of one point that the text lists; JSON has them all

Failures = Iterable[str]


@dataclass(frozen=True)
class Checked:
    """One thing that was looked at: how many times, and what is wrong, each on one line."""

    what: str
    checked: int
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What was found in a folder; ``notes`` are worth knowing and no failures."""

    folder: str
    schema: int
    points: tuple[Checked, ...]
    notes: tuple[str, ...]

    @property
    def failed(self) -> bool:
        """Whether anything is wrong."""
        return any(point.failures for point in self.points)

    def as_json(self) -> dict[str, Any]:
        """The report as JSON types."""
        return {"failed": self.failed, **asdict(self)}

    def render(self) -> str:
        """The points as a table, the failures and notes, and the outcome; ends in a line break."""
        rows = [(point.what, point.checked, len(point.failures) or "") for point in self.points]
        lines = [tabulate(rows, ("checked", "number", "failed"), "simple"), ""]
        for point in self.points:
            lines += [f"failed: {point.what}: {failure}" for failure in point.failures[:_SHOWN]]
            if len(point.failures) > _SHOWN:
                lines.append(f"failed: {point.what}: and {len(point.failures) - _SHOWN} more, see --json")
        lines += [f"note: {note}" for note in self.notes]
        failures = sum(len(point.failures) for point in self.points)
        lines.append(f"{self.folder}: " + (f"FAILED, {failures} failures" if failures else "verified"))
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Cell:
    """A record with what its samples say: values and ranked scores by task, and hashes of files."""

    record: Record
    values: dict[str, float]
    ranked: dict[str, float | None]
    references: dict[str, str]
    sha256: str | None
    unreadable: str | None


def verify(analysis: Analysis) -> Report:
    """Compute a folder's aggregates, hashes and tables again and compare.

    Raises:
        UserError: the folder cannot be read at all; everything less is a failure in the report.
    """
    folder, problems = analysis.folder, analysis.problems
    cells = [_read(folder, record) for record in analysis.records]
    impostor = origin.complaint(folder.manifest)
    points = [
        Checked("lines of records.jsonl", len(cells) + len(problems), tuple(problems)),
        Checked("the suite is what its name says", 1, (impostor,) if impostor else ()),
        _point("cells that were asked for", cells, lambda cell: _not_asked(folder, cell.record)),
        _point("hashes of records", cells, lambda cell: _record_hash(cell.record)),
        _point("hashes of samples", cells, _samples_hash),
        _point(
            "tasks' values from samples", cells, lambda cell: [cell.unreadable] if cell.unreadable else []
        ),
        _point("averages", [cell for cell in cells if cell.values], _average),
        _point(
            "averages normalised by the experts",
            [cell for cell in cells if cell.values and cell.record.normalised is not None],
            lambda cell: _normalised(cell, cells),
        ),
        _point("packed sizes and bits per weight", cells, lambda cell: _sizes(cell.record)),
        _alike(cells),
        _tables(analysis),
        _figures(analysis),
        _exports(analysis),
    ]
    return Report(str(folder.path), SCHEMA, tuple(points), tuple(_notes(folder, cells)))


def _point(what: str, cells: Sequence[_Cell], failures: Callable[[_Cell], Failures]) -> Checked:
    found = [f"{cell.record.key}: {failure}" for cell in cells for failure in failures(cell)]
    return Checked(what, len(cells), tuple(found))


def _read(folder: RunFolder, record: Record) -> _Cell:
    """Read the samples once, from the bytes that are hashed."""
    sha256 = None
    try:
        data = folder.samples_bytes(record.key)
        sha256 = hashlib.sha256(data).hexdigest()
        correct, predictions = samples.decode(data, record)
    except UserError as error:
        return _Cell(record, {}, {}, {}, sha256, str(error))
    references = {
        name.removesuffix(samples.REFERENCE): hashlib.sha256(array.tobytes()).hexdigest()
        for name, array in predictions.items()
        if name.endswith(samples.REFERENCE)
    }
    arrays = {**correct, **predictions}
    values = {task: samples.score(arrays, task, result) for task, result in record.tasks.items()}
    ranked = {
        task: samples.scores(arrays, task, result.metric)["ranked"] for task, result in record.tasks.items()
    }
    return _Cell(record, values, ranked, references, sha256, None)


def _not_asked(folder: RunFolder, record: Record) -> Iterator[str]:
    asked = [cell for cell in folder.manifest.cells if cell.key == record.key]
    if len(asked) != 1:
        yield f"the manifest asks for it {len(asked)} times, expected once"
    for cell in asked:
        for name in ("kind", "merge", "method", "target", "bits"):
            asked_for, recorded = getattr(cell, name), getattr(record, name)
            if asked_for != recorded:
                yield f"{name} is {recorded!r}, asked for {asked_for!r}"


def _record_hash(record: Record) -> Iterator[str]:
    if record.record_sha256 != (now := record.digest()):
        yield f"SHA-256 is {now}, recorded {record.record_sha256}"


def _samples_hash(cell: _Cell) -> Iterator[str]:
    if cell.sha256 != cell.record.samples_sha256:
        yield f"SHA-256 is {cell.sha256}, recorded {cell.record.samples_sha256}"


def _average(cell: _Cell) -> Iterator[str]:
    mean = math.fsum(cell.values.values()) / len(cell.values)
    if abs(mean - cell.record.average) > _TOLERANCE:
        yield f"average is {mean!r}, recorded {cell.record.average!r}"
    ranked = mean_ranked(cell.ranked.values())
    if not agree(ranked, cell.record.average_ranked):
        yield f"average_ranked is {ranked!r}, recorded {cell.record.average_ranked!r}"


def _normalised(cell: _Cell, cells: Sequence[_Cell]) -> Iterator[str]:
    """It must be the mean of the values divided by those of one of the folder's experts cells."""
    found = [
        math.fsum(cell.values[task] / value for task, value in experts.values.items()) / len(cell.values)
        for experts in cells
        if experts.record.method == "experts" and _comparable(cell.values, experts.values)
    ]
    recorded = cell.record.normalised
    if not any(abs(value - (recorded or 0.0)) <= _TOLERANCE for value in found):
        now = " or ".join(map(repr, found)) or "without experts to divide by"
        yield f"normalised is {now}, recorded {recorded!r}"


def _comparable(values: Mapping[str, float], experts: Mapping[str, float]) -> bool:
    return values.keys() == experts.keys() and all(experts.values())


def _sizes(record: Record) -> Iterator[str]:
    """Bits per weight and packed bytes must be the same number of bits, over the layers' weights."""
    packed, bits = record.packed_bytes, record.bits_per_weight
    if record.bits is None:
        if packed is not None or bits is not None:
            yield "is in full precision and has a packed size"
        return
    if packed is None or bits is None:
        yield f"is quantised to {record.bits} bits and has no packed size"
        return
    weights = sum(layer.rows * layer.columns for layer in record.layers)
    if packed != math.ceil(round(bits * weights) / 8):
        yield f"{bits!r} bits for each of {weights} weights are not {packed} packed bytes"
    if bits < record.bits:
        yield f"{bits!r} bits per weight are fewer than the {record.bits} bits of its codes"


def _alike(cells: Sequence[_Cell]) -> Checked:
    """Two cells can be compared sample by sample only where a task has the same samples in both."""
    seen: dict[str, set[tuple[int, str, str]]] = defaultdict(set)
    for cell in cells:
        for task, result in cell.record.tasks.items():
            seen[task].add((result.samples, result.metric, cell.references.get(task, "")))
    failures = [
        f"{task}: cells differ in samples, metric or references: "
        + ", ".join(sorted(f"{number} {metric} {digest[:8]}".strip() for number, metric, digest in found))
        for task, found in sorted(seen.items())
        if len(found) > 1
    ]
    return Checked("tasks alike in every cell", len(seen), tuple(failures))


def _tables(analysis: Analysis) -> Checked:
    files = {table_file(analysis.folder.path, fmt): fmt for fmt in FORMATS}
    saved = {file: fmt for file, fmt in files.items() if os.path.lexists(file)}
    failures = [_difference(file, partial(render, analysis, fmt)) for file, fmt in saved.items()]
    return Checked("saved tables", len(saved), tuple(filter(None, failures)))


def _figures(analysis: Analysis) -> Checked:
    figures = analysis.folder.path / "figures"
    saved = sorted(figures.glob("*.csv"))
    if not saved:
        return Checked("data of saved figures", 0, ())
    try:
        with os_errors(figures, "read the figures"):
            refuse_link(figures)
        texts = {data.name: data_csv(data) for data in figure_data(analysis)}
    except UserError as error:
        return Checked("data of saved figures", len(saved), (str(error),))
    failures = [_difference(file, partial(texts.get, file.stem)) for file in saved]
    return Checked("data of saved figures", len(saved), tuple(filter(None, failures)))


def _exports(analysis: Analysis) -> Checked:
    what = "exported checkpoints name their record"
    try:
        number, failures = exports.problems(analysis.folder.path, analysis.records)
    except UserError as error:
        return Checked(what, 1, (str(error),))
    return Checked(what, number, tuple(failures))


def _difference(file: Path, made: Callable[[], str | None]) -> str | None:
    """What is wrong with a file that was made from the records."""
    try:
        with os_errors(file, "read what was made from the records"):
            stored = read_bounded(file, _MAX_MADE)
        text = made()
    except UserError as error:
        return str(error)
    if text is None or text.encode() != stored:
        return f"{file.name} is not what the records give here; make it again"
    return None


def _notes(folder: RunFolder, cells: Sequence[_Cell]) -> Iterator[str]:
    keys = {cell.record.key for cell in cells}
    if folder.manifest.rehearsal:
        yield "a rehearsal: made-up data or checkpoints, no number is a result"
    if folder.manifest.suite_sha256 is None and folder.manifest.suite in origin.known():
        yield f"what its suite reads is not told, so it is {folder.manifest.suite} by name alone"
    if missing := [cell for cell in folder.manifest.cells if cell.key not in keys]:
        yield f"{len(missing)} of {len(folder.manifest.cells)} cells that were asked for are not run"
    if loose := sum(not cell.record.pinned for cell in cells):
        yield f"{loose} of {len(cells)} records are not pinned"
    with os_errors(folder.path / "samples", "list the samples"):
        refuse_link(folder.path / "samples")
        names = {path.name for path in (folder.path / "samples").iterdir()}
    if stray := sorted(names - {f"{key}.npz" for key in keys}):
        yield f"{len(stray)} files in samples/ belong to no record"
