"""The page of all that is registered holds every name, and of each the number of its committed row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from baselines.controls import CONTROLS
from docs.tools import registry
from docs.tools.records import value
from docs.tools.tables import table
from epmq.errors import UserError
from epmq.merging import known


def cells(kind: str) -> dict[str, list[str]]:
    """The columns behind each name."""
    lines = [line for line in table(["registry", kind]).splitlines() if line.startswith("| `")]
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name.strip("`"): rest for name, *rest in split}


@pytest.mark.parametrize("kind", list(registry.KINDS))
def test_every_name_has_a_row_and_words(kind: str) -> None:
    page = table(["registry", kind])
    names = [entry.name for entry in registry.KINDS[kind]()]
    assert list(cells(kind)) == names
    assert re.findall(r"^- \*\*`([^`]+)`\*\*: \S", page, re.MULTILINE) == names
    assert "``" not in page
    assert ":func:" not in page


def test_measured_rows_are_those_of_the_tables() -> None:
    found = cells("roundings")["rtn"]
    average = value("micro-clip-8 task-arithmetic/rtn/4 average")
    gap = value("micro-clip-8 task-arithmetic/rtn/4 vs_gptq")
    assert found[3] == f"[{average:.1f}](../results/committed/runs/micro-clip-8/table.md) ({gap:+.1f})"
    merged = value("micro-glue-8 ties/merged/full average")
    assert cells("merges")["ties"][4] == f"[{merged:.1f}](../results/committed/runs/micro-glue-8/table.md)"
    assert cells("controls").keys() == CONTROLS.keys()


def test_what_no_record_holds_was_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_folders", lambda suite: [])
    assert {tuple(row[3:]) for row in cells("merges").values()} == {("not run", "not run")}
    assert cells("merges").keys() == known().keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["registry", "nothing"], "nothing is registered as 'nothing'; known: merges"),
        (["registry"], "takes one word, not 0"),
        (["objectives", "nowhere"], "run benchmarks.studies.objectives on nowhere"),
    ],
)
def test_a_table_that_there_is_not_is_named(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        table(words)


def test_committed_objectives_are_of_every_rounding() -> None:
    """What was registered since the study was run is missing there: run it again, it goes on."""
    for file in sorted(Path(registry.MEASURED).glob("objectives-*.json")):
        suite = file.stem.removeprefix("objectives-")
        found = re.findall(r"^\| `([^`]+)`", table(["objectives", suite]), re.MULTILINE)
        assert set(found) == {entry.name for entry in registry.KINDS["roundings"]()}
