"""Hostile and mistaken inputs of every kind: one line with status 2, nothing written, nothing executed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.cli.main import main
from tests.fixtures.complaints import Output
from tests.fixtures.hostile import (
    commands,
    data_sets,
    folders,
    models,
    stored,
    suite_files,
    surroundings,
    task_files,
)
from tests.fixtures.hostile.case import Case, Place
from tests.fixtures.hostile_folders import make_whole

CASES: list[Case] = [
    case
    for module in (commands, suite_files, task_files, models, data_sets, folders, stored, surroundings)
    for case in module.CASES
]
SECURITY = Path(__file__).parents[2] / "SECURITY.md"
LONGEST = 1000  # letters of a line


def tree(folder: Path) -> dict[str, bytes | str | None]:
    """What is below a folder, but for the cache of data sets; pipes are not read."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.partition("/")[0] == "cache":
            continue
        if path.is_symlink():
            found[name] = str(path.readlink())
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


@pytest.mark.parametrize("process", surroundings.PROCESSES, ids=lambda process: process.name)
def test_odd_surroundings_are_no_traceback(tmp_path: Path, process: surroundings.Process) -> None:
    make_whole(tmp_path / "run")
    before = tree(tmp_path)
    changed = {**os.environ, **process.environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment = {name: value for name, value in changed.items() if value is not None}
    command = [sys.executable, "-m", "benchmarks.cli.main", *process.words]
    if process.screen == "closed":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    reader, screen = os.pipe()
    if process.screen == "full":
        os.close(screen)
        screen = os.open("/dev/full", os.O_WRONLY)
    if process.screen == "left":
        os.close(reader)
    done = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=screen, stderr=subprocess.PIPE)
    os.close(screen)
    if process.screen != "left":
        with os.fdopen(reader, "rb") as read:
            out = read.read()
        assert bool(out) == (process.screen == "read")
    said = done.communicate()[1].decode()
    assert done.returncode == process.status, said
    assert said.count("\n") == (process.status == 2), said
    assert process.says in said
    assert tree(tmp_path) == before


def test_the_count_of_every_kind_is_on_the_page() -> None:
    counts = Counter(case.kind for case in CASES)
    counts[surroundings.KIND] += len(surroundings.PROCESSES)
    rows = [f"| {kind} | {count} |" for kind, count in [*counts.items(), ("all", counts.total())]]
    assert "\n".join(rows) in SECURITY.read_text("utf-8"), "\n" + "\n".join(rows)


def test_cases_are_many_and_apart() -> None:
    assert len({case.id for case in CASES}) == len(CASES) >= 150
