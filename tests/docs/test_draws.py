"""Numbers of records that no table has: over draws, and one row beside another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from docs.tools import draws, fill, records
from epmq.errors import UserError
from results.analysis.stats import hierarchical_bootstrap
from tests.fixtures.records import make_cell, make_correct, make_folder

SCORES = {"epmq": (0.75, 0.85, 0.8), "gptq": (0.7, 0.75, 0.65)}  # a task's accuracy by draw


def cell(method: str, seed: int, **changes: Any) -> Any:
    return make_cell(f"{method}{seed}", {"digits": SCORES[method][seed]}, method=method, seed=seed, **changes)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Committed runs: a folder ``toy`` with two methods, of three draws and of two."""
    made = [cell("epmq", seed, target="expert") for seed in range(3)] + [cell("gptq", n) for n in range(2)]
    make_folder(tmp_path / "toy", *made)
    (tmp_path / "toy" / "table.json").write_text("[]")
    monkeypatch.setattr(records, "RUNS", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("draws toy ties/epmq/4 average mean", "80.0"),
        ("draws toy ties/epmq/4 average min", "75.0"),
        ("draws toy ties/epmq/4 average max", "85.0"),
        ("draws toy ties/epmq/4 tasks.digits.value mean", "80.0"),
        ("draws toy ties/ep*/4 tasks.digits.value max", "85.0"),
        ("paired toy ties/epmq/4 - ties/gptq/4 value", "+7.5"),
        ("paired toy ties/gptq/4 - ties/epmq/4 value", "-7.5"),
        ("paired toy ties/epmq/4 - ties/gptq/4 value unsigned", "7.5"),
    ],
)
def test_a_query_is_answered_from_the_records(runs: Path, query: str, text: str) -> None:
    assert records.text(query) == text


def test_an_interval_is_that_of_the_common_draws(runs: Path) -> None:
    ours, others = ([make_correct({"digits": x}) for x in SCORES[m][:2]] for m in ("epmq", "gptq"))
    expected = hierarchical_bootstrap(ours, others)
    for end in ("low", "high"):
        found = draws.paired(runs / "toy", "ties/epmq/4", "ties/gptq/4", end)
        assert found == pytest.approx(getattr(expected, end))


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("draws toy ties/zzz/4 average mean", "0 rows"),
        ("draws toy ties/*/4 average mean", "2 rows"),
        ("draws toy ties/epmq/4 tasks.digits.ranked mean", "no number at tasks.digits.ranked"),
        ("draws toy ties/epmq/4 tasks.letters.value mean", "no number at tasks.letters.value"),
        ("draws toy ties/epmq/4 average median", "none of mean, min, max"),
        ("draws none ties/epmq/4 average mean", "no committed run"),
        ("paired toy ties/epmq/4 - ties/gptq/4 middle", "none of value, low, high"),
        ("paired toy ties/epmq/4 ties/gptq/4 value", "no query"),
    ],
)
def test_a_query_without_an_answer_is_refused(runs: Path, query: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        records.text(query)


def test_a_page_without_an_answer_does_not_keep_others_from_being_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = [tmp_path / "first.md", tmp_path / "second.md"]
    pages[0].write_text("It is <!--= nothing here average-->1.0<!--/-->.\n")
    pages[1].write_text("There are <!--= bounds count-->0<!--/-->.\n")
    monkeypatch.setattr(fill, "pages", lambda: pages)
    monkeypatch.setattr(fill, "ROOT", tmp_path)
    assert fill.main([]) == 2
    assert "first.md: no committed run is called 'nothing'" in capsys.readouterr().err
    assert f"<!--= bounds count-->{records.text('bounds count')}<!--/-->" in pages[1].read_text()
