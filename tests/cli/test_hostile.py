"""Hostile and mistaken inputs of every kind: one line with status 2, nothing written, nothing executed."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.cli.main import main
from tests.fixtures.complaints import Output
from tests.fixtures.hostile import commands, suite_files, task_files
from tests.fixtures.hostile.case import Case, Place

CASES: list[Case] = [*commands.CASES, *suite_files.CASES, *task_files.CASES]
LONGEST = 1000  # letters of a line


def tree(folder: Path) -> dict[str, bytes | str | None]:
    """What is below a folder, but for the cache of data sets; pipes are not read."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.partition("/")[0] == "cache":
            continue
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


@pytest.fixture
def place(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, nothing_is_computed: None
) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, request, monkeypatch)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_an_input_is_refused_in_one_line(place: Place, capsys: Output, case: Case) -> None:
    words = [str(word) for word in case.make(place)]
    for name, value in case.environment.items():
        if value is None:
            place.monkeypatch.delenv(name, raising=False)
        else:
            place.monkeypatch.setenv(name, value)
    before = tree(place.path)
    capsys.readouterr()
    status = main(words)
    said = capsys.readouterr()
    assert (status, said.out) == (case.status, ""), said
    assert re.fullmatch(r"epmq: error: [^\n]+\n", said.err), said.err
    assert said.err[:-1].isprintable(), said.err
    assert len(said.err) < LONGEST
    assert [word for word in case.says if word not in said.err] == [], said.err
    assert tree(place.path) == before
    assert not place.canary.exists()
