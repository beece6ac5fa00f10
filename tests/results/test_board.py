"""What a board gathers from many folders, whom it ranks, and what it refuses."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epmq.errors import UserError
from results.analysis.ranks import Ranks
from results.board.board import Board, board
from results.board.cells import Cell, Setting
from results.board.standings import Standing, frontier
from results.board.words import grid_words
from results.store.folder import RunFolder
from tests.fixtures.boards import REGISTERED, SAMPLES, blurred, cell, of, ours, theirs
from tests.fixtures.records import make_cell, make_folder, make_record

CLIP: dict[str, Any] = {"suite": "micro-clip-8"}


def made(*folders: Path) -> Board:
    return board(folders, REGISTERED)


def at(found: Board, method: str, bits: int | None = 4, suite: str = "micro-clip-8") -> Standing:
    (standing,) = [
        each
        for each in found.standings
        if (each.cell.method.label, each.cell.setting.bits, each.cell.suite) == (method, bits, suite)
    ]
    return standing


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Board:
    path = tmp_path_factory.mktemp("folders")
    ours(path / "ours")
    theirs(path / "theirs")
    return made(path / "ours", path / "theirs")


def test_draws_are_one_row_and_runs_share_their_cells(both: Board) -> None:
    gptq = at(both, "gptq").cell
    assert list(gptq.draws) == [0, 1, 2]
    assert [run.name for run in gptq.runs] == ["ours", "theirs"]
    assert [len(draw) for draw in gptq.draws.values()] == [1, 1, 1]  # of seed 0 both say the same
    averages = [np.mean([right.mean() for right in blurred(0.5, seed).values()]) for seed in range(3)]
    assert gptq.average == pytest.approx(np.mean(averages))
    assert gptq.spread == pytest.approx(np.std(averages, ddof=1))


def test_ranks_are_intervals_within_a_setting(both: Board) -> None:
    assert at(both, "mine").ranks == Ranks(1, 1, 3)
    assert at(both, "epmq").ranks == Ranks(2, 2, 3)
    assert at(both, "gptq").ranks == Ranks(3, 3, 3)
    assert at(both, "epmq", 2).ranks == Ranks(1, 1, 2)
    assert at(both, "merged", None).ranks is None  # alone


def test_variants_are_shown_and_not_ranked(both: Board) -> None:
    variant = at(both, "epmq (anchor=0.5)")
    assert (variant.ranks, variant.frontier) == (None, False)
    assert variant.cell.average == pytest.approx(0.7, abs=0.1)


def test_no_flood_of_contributed_draws_changes_what_is_usual(tmp_path: Path) -> None:
    ours(tmp_path / "ours")
    flood = [cell("gptq", 0.3, seed, axes={"anchor": 9.0}) for seed in range(9)]
    theirs(tmp_path / "theirs", more=flood)
    found = made(tmp_path / "ours", tmp_path / "theirs")
    assert at(found, "gptq").ranks == Ranks(3, 3, 3)
    assert at(found, "gptq (anchor=9.0)").ranks is None


def test_a_contributed_methods_usual_form_is_that_of_most_of_its_draws(tmp_path: Path) -> None:
    more = [cell("mine", 0.9, seed, axes={"anchor": 9.0}) for seed in range(2)]
    theirs(tmp_path / "theirs", more=more)
    found = made(tmp_path / "theirs")
    assert len(at(found, "mine").cell.draws) == 2
    assert at(found, "mine (anchor=None)").ranks is None


def test_identical_rows_share_their_rank(tmp_path: Path) -> None:
    same, other = blurred(0.6, 1), blurred(0.6, 2)
    make_folder(tmp_path, of("a", same), of("b", same), of("c", other), of("d", blurred(0.1, 3)), **CLIP)
    found = made(tmp_path)
    assert at(found, "a").ranks == at(found, "b").ranks != at(found, "d").ranks
    assert at(found, "d").ranks == Ranks(4, 4, 4)


def test_the_order_of_folders_does_not_matter(tmp_path: Path) -> None:
    ours(tmp_path / "ours")
    theirs(tmp_path / "theirs")
    make_folder(tmp_path / "third", of("epmq", blurred(0.8, 99), 1, target="expert"), **CLIP)
    folders = [tmp_path / name for name in ("ours", "theirs", "third")]
    boards = [made(*order, order[0]) for order in itertools.permutations(folders)]
    for each in boards[1:]:
        assert [run.name for run in each.runs] == [run.name for run in boards[0].runs]
        assert [(s.cell.setting, s.cell.method, s.cell.average, s.ranks) for s in each.standings] == [
            (s.cell.setting, s.cell.method, s.cell.average, s.ranks) for s in boards[0].standings
        ]


def test_a_draw_that_was_computed_again_counts_once(tmp_path: Path) -> None:
    """On another machine the last bits differ, and so do some answers: no draw of its own, and no error."""
    make_folder(tmp_path / "one", cell("a", 0.5), cell("a", 0.9, seed=1), cell("b", 0.4), **CLIP)
    record, _ = cell("a", 0.5)
    correct = cell("a", 0.6)[1]
    again = make_record(correct, method="a", seed=0, axes=record.axes, key=record.key, **CLIP)
    make_folder(tmp_path / "two", (again, correct), **CLIP)
    found = at(made(tmp_path / "one", tmp_path / "two"), "a").cell
    assert [len(draw) for draw in found.draws.values()] == [2, 1]
    assert found.averages == pytest.approx([0.5, 0.85])
    assert found.average == pytest.approx(0.675)
    assert found.tasks["digits"].value == pytest.approx(0.725)


def code(name: str, *cells: Any) -> dict[str, Any]:
    """What a manifest says where cells were asked from this code."""
    fields = ("key", "kind", "merge", "method", "target", "bits")
    return {"cells": [{**{f: getattr(r, f) for f in fields}, "code": name} for r, _ in cells]}


def test_of_several_versions_of_the_code_the_one_of_most_rows_is_ranked(tmp_path: Path) -> None:
    old = cell("a", 0.5), cell("b", 0.6), cell("c", 0.4)
    new = (cell("a", 0.7),)
    same = (cell("b", 0.6),)
    make_folder(tmp_path / "new", *new, asked=code("f" * 64, *new), **CLIP)
    make_folder(tmp_path / "old", *old, asked=code("1" * 64, *old), **CLIP)
    make_folder(tmp_path / "same", *same, asked=code("f" * 64, *same), **CLIP)
    found = made(tmp_path / "new", tmp_path / "old", tmp_path / "same")
    assert at(found, "a").cell.average == pytest.approx(0.45)
    assert at(found, "a").ranks is not None
    assert at(found, "a (code=ffffffff)").ranks is None
    assert [run.name for run in at(found, "b").cell.runs] == ["old", "same"]  # which agree


def test_what_needs_no_calibration_is_at_every_setting(tmp_path: Path) -> None:
    full: dict[str, Any] = {"kind": "control", "bits": None}
    make_folder(
        tmp_path,
        cell("merged", 0.5, axes={"samples": None}, **full),
        cell("epmq-fp", 0.7, axes={"samples": 16}, **full),
        cell("epmq-fp", 0.8, axes={"samples": 128}, **full),
        **CLIP,
    )
    merged = [each for each in made(tmp_path).standings if each.cell.method.name == "merged"]
    assert [(each.cell.setting.samples, each.ranks) for each in merged] == [
        (128, Ranks(2, 2, 2)),
        (16, Ranks(2, 2, 2)),
    ]


def test_the_frontier_is_what_nothing_beats(both: Board) -> None:
    ahead = {(s.cell.method.label, s.cell.setting.bits) for s in both.standings if s.frontier}
    assert ahead == {("mine", 4), ("epmq", 2)}


def test_the_frontier_by_trying_all_pairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    points = [
        (f"m{i}", round(float(rng.choice([0.2, 0.4, 0.5, 0.6, 0.8])), 2), float(rng.choice([2.0, 3.0, 4.0])))
        for i in range(14)
    ]
    make_folder(tmp_path, *(cell(name, v, bits_per_weight=b) for name, v, b in points), **CLIP)
    found = {each.method.name for each in frontier(each.cell for each in made(tmp_path).standings)}
    assert found == {
        name for name, v, b in points if not any(w >= v and c <= b and (w > v or c < b) for _, w, c in points)
    }


def test_suites_and_methods_that_nobody_ran_are_there(both: Board) -> None:
    assert both.suites[0] == "micro-clip-8"
    assert "flan-t5-base-glue8" in both.suites
    assert [about.name for about in both.never] == ["awq"]
    assert both.merges_never == ["dare"]
    assert all(set(by_suite) == {"micro-clip-8"} for s in both.settings for _, by_suite in both.rows(s))


def test_a_contribution_says_what_its_method_is(both: Board) -> None:
    about = both.about("mine")
    assert (about.family, about.reference) == ("contributed", "arXiv:2401.00001")
    assert both.about("gptq").family == "rounding"


def test_rows_come_by_rank_interval_then_name(both: Board) -> None:
    names = [method.label for method, _ in both.rows(both.settings[0])]
    assert names == ["mine", "epmq", "gptq", "epmq (anchor=0.5)"]
    assert both.settings[0].bits == 4


# -- what is refused


def refused(path: Path, *folders: Path) -> str:
    with pytest.raises(UserError) as error:
        made(*folders)
    text = str(error.value)
    assert "\n" not in text
    assert not folders or any(str(folder) in text for folder in folders)
    return text.replace(str(path), "")


def test_no_folder(tmp_path: Path) -> None:
    assert "give at least one DIR" in refused(tmp_path)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no manifest.json; check the path" in refused(tmp_path, tmp_path / "empty")


def test_a_folder_without_a_result(tmp_path: Path) -> None:
    make_folder(tmp_path, **CLIP)
    assert refused(tmp_path, tmp_path).endswith("holds no result; run its cells, or leave it out")


def test_a_rehearsal(tmp_path: Path) -> None:
    make_folder(tmp_path, make_cell("a", **CLIP), rehearsal=True, **CLIP)
    assert "is a rehearsal on made-up stand-ins" in refused(tmp_path, tmp_path)


def test_a_damaged_line(tmp_path: Path) -> None:
    ours(tmp_path)
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write("{}\n")
    assert "/records.jsonl:11: schema: Field required" in refused(tmp_path, tmp_path)


def test_a_record_that_was_changed(tmp_path: Path) -> None:
    ours(tmp_path)
    file = tmp_path / "records.jsonl"
    file.write_text(file.read_text().replace('"peak_memory_bytes":1000', '"peak_memory_bytes":1001', 1))
    assert "is not what its hash says; restore the file" in refused(tmp_path, tmp_path)


def test_samples_that_were_changed(tmp_path: Path) -> None:
    folder = ours(tmp_path)
    first, second = (tmp_path / "samples" / f"{record.key}.npz" for record in folder.records()[:2])
    first.write_bytes(second.read_bytes())
    assert "is not the file that its record names; restore it" in refused(tmp_path, tmp_path)


def test_two_versions_of_a_suite(tmp_path: Path) -> None:
    make_folder(tmp_path / "one", make_cell("a"))
    make_folder(tmp_path / "two", make_cell("b", suite_version=2), suite_version=2)
    text = refused(tmp_path, tmp_path / "one", tmp_path / "two")
    assert text == "/two: is of toy version 2, /one of version 1; leave out the older one"


def test_two_suites_of_one_name(tmp_path: Path) -> None:
    make_folder(tmp_path / "one", make_cell("a"), suite_sha256="1" * 64)
    make_folder(tmp_path / "two", make_cell("b"), suite_sha256="2" * 64)
    assert "reads other tasks, data" in refused(tmp_path, tmp_path / "one", tmp_path / "two")


def test_another_suite_of_a_bundled_name(tmp_path: Path) -> None:
    make_folder(tmp_path, make_cell("a", **CLIP), suite_sha256="1" * 64, **CLIP)
    assert "is of another suite" in refused(tmp_path, tmp_path)


def test_two_folders_of_one_name(tmp_path: Path) -> None:
    for part in ("a", "b"):
        make_folder(tmp_path / part / "run", make_cell(part))
    assert "rename one" in refused(tmp_path, tmp_path / "a" / "run", tmp_path / "b" / "run")


def test_one_key_of_two_cells(tmp_path: Path) -> None:
    make_folder(tmp_path / "one", make_cell("a"))
    make_folder(tmp_path / "two", make_cell("a", method="other"))
    text = refused(tmp_path, tmp_path / "one", tmp_path / "two")
    assert "was made otherwise than that of" in text


def test_other_test_samples(tmp_path: Path) -> None:
    make_folder(tmp_path / "one", make_cell("a"))
    correct = {"digits": np.ones(SAMPLES, bool), "shapes": np.ones(SAMPLES, bool)}
    make_folder(tmp_path / "two", (make_record(correct, "b", method="other"), correct))
    assert "cannot pair 200 samples of digits with 120" in refused(
        tmp_path, tmp_path / "one", tmp_path / "two"
    )


def test_a_form_that_is_wrong(tmp_path: Path) -> None:
    theirs(tmp_path, authors=[])
    assert "submission.json: authors" in refused(tmp_path, tmp_path)


def test_a_cell_is_what_its_folder_says(tmp_path: Path) -> None:
    folder = ours(tmp_path)
    cells: list[Cell] = [each.cell for each in made(tmp_path).standings]
    assert len(cells) == len({(record.method, record.bits, str(record.axes)) for record in folder.records()})
    assert isinstance(folder, RunFolder)


def test_a_grid_is_told_in_words() -> None:
    uniform = (None, False, False, 128, "centre", "float16", None)
    levels = (32, True, False, 128, "centre", "e8m0", "mxfp4")
    settings = [Setting("ties", (), 4, grid, 8, "cpu", "float32") for grid in (uniform, levels)]
    assert [grid_words(each, settings) for each in settings] == [
        "a scale for each row, asymmetric, scale_dtype float16, uniform",
        "groups of 32, symmetric, scale_dtype e8m0, levels of mxfp4",
    ]
    assert grid_words(settings[0], settings[:1]) == "a scale for each row"
