"""Whether a contributed results folder can be taken in: ``python -m benchmarks.contribute.submission DIR``.

A contribution is a results folder, ``results/community/NAME``, with a ``submission.json`` of the form of
:class:`results.store.submission.Submission`. Where it is not of the embedded suite, a folder of that suite
with the same methods stands beside it, ``results/community/NAME-micro-clip-8``, because that is what anybody
can compute again.

Computing cells again runs the contributed method's code, as testing any pull request does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from tabulate import tabulate

from benchmarks.suites import load as suites
from benchmarks.suites.forms import Suite
from epmq.errors import UserError
from results.analysis.analysis import Analysis
from results.judge.verify import verify
from results.store.records import Manifest, Record
from results.store.submission import FORM, Submission, read_form

EMBEDDED = "micro-clip-8"
_SHOWN = 5  # complaints of one point that the text lists; JSON has them all
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Requirement:
    """One thing that is asked of a contribution, and what is wrong with it."""

    name: str
    status: Literal["passed", "failed", "not checked"]
    complaints: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """What was found, point by point; only a folder that passes every point is accepted."""

    folder: str
    points: tuple[Requirement, ...]
    computed_again: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        return all(point.status == "passed" for point in self.points)

    def as_json(self) -> dict[str, Any]:
        return {"accepted": self.accepted, **asdict(self)}

    def render(self) -> str:
        """The points as a table, the complaints and the outcome, ending in a line break."""
        lines = [tabulate([(p.name, p.status) for p in self.points], ("point", "outcome"), "simple"), ""]
        for point in self.points:
            lines += [f"{point.name}: {text}" for text in point.complaints[:_SHOWN]]
            if len(point.complaints) > _SHOWN:
                lines.append(f"{point.name}: and {len(point.complaints) - _SHOWN} more, see --json")
        passed = sum(point.status == "passed" for point in self.points)
        outcome = "accepted" if self.accepted else "NOT ACCEPTED"
        return "\n".join(
            [*lines, f"{self.folder}: {outcome}, {passed} of {len(self.points)} points passed\n"]
        )


@dataclass(frozen=True)
class _Part:
    """One results folder of a contribution, opened."""

    analysis: Analysis
    records: list[Record]

    @classmethod
    def open(cls, path: Path) -> _Part:
        analysis = Analysis.open(path)
        return cls(analysis, analysis.records)

    @property
    def name(self) -> str:
        return self.analysis.folder.path.name

    @property
    def manifest(self) -> Manifest:
        return self.analysis.manifest

    @property
    def methods(self) -> list[Record]:
        return [record for record in self.records if record.kind == "method"]

    @property
    def roundings(self) -> set[str]:
        return {str(record.rounding) for record in self.methods}


def judge(path: Path, embedded: Suite, cells: int = 3) -> Judgement:
    """Every point of the contribution at ``path``; at least ``cells`` cells are computed again.

    A point that needs an earlier one which failed is not checked; computing again, which takes minutes, needs
    them all.
    """
    form, of_form = _attempt(read_form, path)
    opened, of_folders = _attempt(_opened, path, embedded)
    parts = opened or []
    points = [
        _point(f"{FORM} is complete", of_form),
        _point("folders can be read", of_folders),
        _point("methods are in the results", _absent(form, parts[0]) if form and parts else None),
    ]
    for name, complaints in _questions(parts, embedded).items():
        points.append(_point(name, complaints if parts else None))
    ready = all(point.status == "passed" for point in points)
    again = _chosen(parts[-1], cells) if ready else []
    points.append(_point("computed again", _not_reproduced(parts[-1], embedded, again) if ready else None))
    return Judgement(str(path), tuple(points), tuple(f"{x.method} ({x.key})" for x in again))


def _attempt(make: Callable[P, T], *args: P.args, **options: P.kwargs) -> tuple[T | None, tuple[str, ...]]:
    """What ``make`` gives, or why it gives nothing."""
    try:
        return make(*args, **options), ()
    except UserError as error:
        return None, (str(error),)


def _point(name: str, complaints: Iterable[str] | None) -> Requirement:
    """A point; ``None`` where an earlier one, which it needs, has failed."""
    if complaints is None:
        return Requirement(name, "not checked")
    try:
        found = tuple(" ".join(text.split()) for text in complaints)
    except UserError as error:
        found = (" ".join(str(error).split()),)
    return Requirement(name, "failed" if found else "passed", found)


def _questions(parts: Sequence[_Part], embedded: Suite) -> dict[str, Iterable[str]]:
    """What is asked of folders that can be read; a question is answered when its complaints are read."""
    return {
        "every cell is there": _each(parts, _incomplete),
        "the suite's present version": _each(parts, partial(_suite, embedded=embedded)),
        "pinned": _each(parts, _unpinned),
        "no rehearsal": _each(parts, _rehearsal),
        "verified": _each(parts, _unverified),
        "methods can be imported": _not_importable(parts),
        f"methods on {embedded.name}": _not_embedded(parts),
    }


def _each(parts: Sequence[_Part], complaints: Callable[[_Part], Iterable[str]]) -> Iterator[str]:
    for part in parts:
        yield from (f"{part.name}: {text}" for text in complaints(part))


def _opened(path: Path, embedded: Suite) -> list[_Part]:
    """The contributed folder, then the embedded suite's one beside it unless it is that itself."""
    parts = [_Part.open(path)]
    if parts[0].manifest.suite != embedded.name:
        parts.append(_Part.open(path.with_name(f"{path.name}-{embedded.name.rpartition('/')[2]}")))
    return parts


def _absent(form: Submission, part: _Part) -> Iterator[str]:
    names = part.roundings | {record.method for record in part.methods}
    for name in form.methods:
        if name not in names:
            yield f"{FORM} names {name!r}, no record is of that method; there are {', '.join(sorted(names))}"


def _incomplete(part: _Part) -> Iterator[str]:
    yield from part.analysis.problems
    if not part.methods:
        yield "holds no cell of a method"
    done = {record.key for record in part.records}
    for cell in part.manifest.cells:
        if cell.key not in done:
            of = " ".join(str(x) for x in (cell.merge, cell.method, cell.target, cell.bits) if x is not None)
            yield f"{of} ({cell.key}) was asked for and is not run; run the same command again"


def _suite(part: _Part, embedded: Suite) -> Iterator[str]:
    stored = part.manifest
    if stored.suite not in (embedded.name, *suites.names()):
        yield f"is of {stored.suite}, which is no suite of epmq here"
        return
    suite = embedded if stored.suite == embedded.name else suites.load(stored.suite)
    if stored.suite_version != suite.version:
        yield f"is of {suite.name} version {stored.suite_version}, the present one is {suite.version}"
    elif stored.revisions.get("suite") != suites.fingerprint(suite):
        yield f"is of {suite.name} with other prompts, classes, splits or preprocessing than the suite's here"
    elif stored.suite_sha256 != suites.identity(suite, stored.revisions):
        told = stored.suite_sha256 and "reads other tasks, data, models or prompts"
        yield (
            f"is called {suite.name} and {told or 'does not tell what it reads'}; run the suite of epmq, or "
            "contribute under a name of your own"
        )


def _unpinned(part: _Part) -> Iterator[str]:
    if loose := [record for record in part.records if not record.pinned]:
        yield f"{len(loose)} of {len(part.records)} records are not pinned; run without --unpinned"
    if "unpinned" in json.dumps(part.manifest.revisions):
        yield "the manifest names a revision that is not pinned; pin the suite and run again"


def _rehearsal(part: _Part) -> Iterator[str]:
    if part.manifest.rehearsal:
        yield "is a rehearsal on made-up data or checkpoints"


def _unverified(part: _Part) -> Iterator[str]:
    for point in verify(part.analysis).points:
        yield from (f"{point.what}: {failure}" for failure in point.failures)


def _not_importable(parts: Sequence[_Part]) -> Iterator[str]:
    try:
        from benchmarks.contribute.reproduce import unknown_methods

        found = {text for part in parts for text in unknown_methods(part.records)}
    except UserError:
        raise
    except Exception as error:  # a contributed module may raise anything when it is imported
        found = {f"importing the methods raises {type(error).__name__}: {error}"}
    yield from sorted(found)


def _not_embedded(parts: Sequence[_Part]) -> Iterator[str]:
    """What the folder of the embedded suite lacks to be computed again by anybody."""
    embedded = parts[-1]
    for rounding in sorted(parts[0].roundings - embedded.roundings):
        yield f"{embedded.name}: has no cell of {rounding!r}; run it there too"
    if elsewhere := [x for x in embedded.methods if (x.device, x.dtype) != ("cpu", "float32")]:
        yield f"{embedded.name}: {len(elsewhere)} cells are not of the CPU in float32; use --device cpu"


def _chosen(part: _Part, cells: int) -> list[Record]:
    from benchmarks.contribute.reproduce import selected

    return selected(part.records, cells)


def _not_reproduced(part: _Part, embedded: Suite, again: Sequence[Record]) -> Iterator[str]:
    from benchmarks.contribute.reproduce import reproduce

    yield from reproduce(part.analysis.folder, again, embedded)


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge a contribution; returns 0 where it is accepted, 1 where it is not, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contribute.submission", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--cells", type=int, default=3, help="cells to compute again, at least (default 3)")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    options = parser.parse_args(arguments)
    try:
        if not options.folder.is_dir():
            raise UserError(f"{options.folder}: is no folder; give a contributed results folder")
        judgement = judge(options.folder.resolve(), suites.load(EMBEDDED), options.cells)
    except UserError as error:
        print("error:", *str(error).split(), file=sys.stderr)
        return 2
    print(json.dumps(judgement.as_json(), indent=2) if options.json else judgement.render(), end="")
    return int(not judgement.accepted)


if __name__ == "__main__":
    sys.exit(main())
