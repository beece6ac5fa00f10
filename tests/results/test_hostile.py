"""A damaged or hostile results folder gives a clear error or a reported skip; nothing of it is executed,
nothing outside it is read or written, and memory and time stay bounded.
"""

from __future__ import annotations

import contextlib
import re
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from epmq.errors import UserError
from results.analysis.analysis import Analysis
from results.judge.verify import verify
from results.store.folder import RunFolder
from results.tables.comparison import FORMATS, render, save
from tests.fixtures.hostile_folders import ALL, FOLDERS, KEY, NAMES, RECORDS, Hostile, make_whole
from tests.fixtures.records import asking, make_cell, make_correct, make_folder, make_key, make_record

SECRET = "the content of a file outside"


def complaints(path: Path) -> Iterator[str]:
    """What reading, printing and verifying a folder say is wrong with it."""
    try:
        folder = RunFolder.open(path)
        yield from folder.read().problems
    except UserError as error:
        yield str(error)
        return
    for fmt in FORMATS:
        try:
            assert SECRET not in render(Analysis(folder), fmt)
        except UserError as error:
            yield str(error)
    try:
        report = verify(Analysis(folder))
        yield from (failure for point in report.points for failure in point.failures)
        assert SECRET not in report.render()
    except UserError as error:
        yield str(error)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder around a results folder, which nothing may change."""
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "run").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path
    assert (tmp_path / "secret").read_text() == SECRET
    assert list((tmp_path / "here").iterdir()) == []  # where a pickle would have made its folder
    assert {path.name for path in tmp_path.iterdir()} <= {"secret", "run", "here", "elsewhere"}


def test_there_are_forty_of_them_and_more() -> None:
    assert len({hostile.name for hostile in ALL}) == len(ALL) >= 40


def test_the_folder_that_is_damaged_was_whole(outside: Path) -> None:
    make_whole(outside / "run")
    assert list(complaints(outside / "run")) == []


@pytest.mark.parametrize("hostile", ALL, ids=lambda hostile: hostile.name)
def test_a_damaged_folder_is_explained(outside: Path, hostile: Hostile) -> None:
    make_whole(outside / "run")
    hostile.edit(outside / "run")
    files = sorted(outside.rglob("*"))
    start = time.process_time()
    tracemalloc.start()
    found = list(complaints(outside / "run"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20
    assert time.process_time() - start < 10  # of work, however busy the machine is
    assert sorted(outside.rglob("*")) == files
    assert bool(found) == (hostile.complaint is not None), found
    assert hostile.complaint is None or any(re.search(hostile.complaint, text) for text in found), found
    for text in found:
        assert text.isprintable()  # one line, nothing that a terminal obeys
        assert len(text) < 1000


@pytest.mark.parametrize(
    "hostile",
    [x for x in RECORDS if "1000 damaged" not in str(x.complaint)],
    ids=lambda hostile: hostile.name,
)
def test_the_other_lines_stay_usable(outside: Path, hostile: Hostile) -> None:
    make_whole(outside / "run")
    hostile.edit(outside / "run")
    folder = RunFolder.open(outside / "run")
    found = {record.key for record in folder.records()} & {make_key(name) for name in NAMES}
    assert len(found) >= 2
    for key in found - {KEY}:
        assert folder.samples(key).correct


def contents(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("hostile", FOLDERS, ids=lambda hostile: hostile.name)
def test_nothing_is_written_through_a_hostile_folder(outside: Path, hostile: Hostile) -> None:
    """Adding to it and saving what is made from it works inside the folder or not at all."""
    make_whole(outside / "run")
    hostile.edit(outside / "run")
    elsewhere = contents(outside / "elsewhere")
    with contextlib.suppress(UserError):
        make_folder(outside / "run", make_cell("new"))
    with contextlib.suppress(UserError):
        save(Analysis.open(outside / "run"))
    assert contents(outside / "elsewhere") == elsewhere


MARKUP = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a|b",
    "**bold** [link](javascript:alert(1))",
    r"\input{/etc/passwd}",
    "50% & $x_1^2$ #~",
    "'\"><svg/onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "]]></style><b>",
]


@pytest.mark.parametrize("name", MARKUP)
def test_markup_in_names_is_text_in_every_table(outside: Path, name: str) -> None:
    correct = make_correct({name: 0.5, "other": 0.25})
    sizes = {"bits_per_weight": 4.25, "packed_bytes": 17}
    names = {"merge": name, "method": name, "target": name, "axes": {name: name}}
    cell = (make_record(correct, "a", **names, **sizes), correct)
    folder = make_folder(outside / "run", cell, asked=asking(cell))
    save(Analysis(folder))
    assert not verify(Analysis(folder)).failed
    html = render(Analysis(folder), "html")
    assert "<script>alert" not in html
    assert not re.search(r"<(img|svg|b)\b", html)
    markdown = render(Analysis(folder), "md")
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines() if "|" in line}) == 1
    assert not re.search(r"(?<!\\)<(script|img|svg|b)\b", markdown)
    assert not re.search(r"(?<!textbackslash)\\input\b", render(Analysis(folder), "latex"))
