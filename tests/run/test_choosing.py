"""``epmq-auto``: what a row chooses on held-out calibration samples, and that it is what it says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from baselines.recipes import AUTO
from benchmarks.run import choosing
from benchmarks.run.cells import Request, expand
from benchmarks.run.executors import open_workbench
from benchmarks.run.outcome import Outcome
from benchmarks.run.runner import run
from benchmarks.sources import cache
from epmq.errors import UserError
from epmq.refinement.descent import held_out_loss
from results.store.folder import RunFolder
from results.store.records import Record
from tests.fixtures.tiny_runs import snapshot
from tests.fixtures.tiny_suite import TinySuite
from tests.fixtures.tiny_text import TinyText

SHORT: dict[str, Any] = {"mixing": 0.75, "task_weight": "uniform"}  # leaves the merge's factor and the anchor


def asked(**changes: Any) -> Request:
    given: dict[str, Any] = {
        "merge": ["task-arithmetic"],
        "method": ["epmq-auto"],
        "target": ["merged"],
        "bits": [3],
        "controls": [],
        "samples": [10],
        "calibration": SHORT,
    }
    return Request(**(given | changes))


def row(folder: RunFolder, method: str = "epmq-auto") -> Record:
    return next(record for record in folder.records() if record.method == method)


def test_every_choice_is_the_nearest_of_what_was_tried(tiny: TinySuite, tmp_path: Path) -> None:
    found = row(run(tiny.suite, asked(calibration={"mixing": 0.75}), tmp_path, {})).search
    assert found is not None
    tried = [(trial.held_out, trial.setting) for trial in found.trials if trial.held_out is not None]
    assert len(tried) == len(found.trials) == 7 + 4 + 1
    merged = [(distance, setting) for distance, setting in tried if len(setting) == 1]
    assert min(merged, key=lambda each: each[0])[1]["scale"] == found.setting["scale"]
    assert {setting["scale"] for _, setting in merged} == set(AUTO.merge["scale"])
    walked = [each for each in tried if each not in merged]
    assert min(walked, key=lambda each: each[0])[1] == found.setting


def test_the_row_is_the_one_that_the_chosen_axes_make(tiny: TinySuite, tmp_path: Path) -> None:
    auto = run(tiny.suite, asked(), tmp_path / "auto", {})
    choice = row(auto).search
    assert choice is not None
    plain = asked(
        method=["epmq-features"],
        merge_options=[{"scale": choice.setting["scale"]}],
        calibration={**SHORT, "anchor": choice.setting["anchor"]},
    )
    same = run(tiny.suite, plain, tmp_path / "plain", {})
    assert row(same, "epmq-features").layers == row(auto).layers
    assert row(same, "epmq-features").samples_sha256 == row(auto).samples_sha256 is not None


def test_what_is_given_is_not_searched() -> None:
    (cell,) = expand(asked(merge_options=[{"scale": 0.7}]))
    assert cell.search is not None
    assert (cell.search.merge, list(cell.search.axes)) == ({}, ["anchor"])
    assert cell.merge_options == {"scale": 0.7}
    assert cell.axes["search.anchor"] == "0.0001 0.001 0.01 0.1"
    assert cell.axes["search.held_out"] == AUTO.held_out


def test_a_merge_without_a_factor_searches_axes_alone(tiny: TinySuite, tmp_path: Path) -> None:
    found = row(run(tiny.suite, asked(merge=["simple-average"]), tmp_path, {})).search
    assert found is not None
    assert {frozenset(trial.setting) for trial in found.trials} == {frozenset({"anchor"})}


def test_a_merge_alone_chooses_its_factor(tiny: TinySuite, tmp_path: Path) -> None:
    """``merged-auto`` is ``merged`` at the factor nearest to the experts, and GPTQ of it begins there."""
    controls = ["merged-auto", "merged-auto-gptq"]
    auto = run(tiny.suite, asked(method=[], controls=controls, calibration={}), tmp_path / "auto", {})
    found = [row(auto, name).search for name in controls]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].setting == found[1].setting
    assert [trial.setting for trial in found[0].trials] == [
        {"scale": scale} for scale in (0.3, *(x for x in AUTO.merge["scale"] if x != 0.3))
    ]
    least = min(found[0].trials, key=lambda trial: math.inf if trial.held_out is None else trial.held_out)
    assert found[0].setting == least.setting
    plain = asked(
        method=["gptq"], controls=["merged"], merge_options=[least.setting], calibration={}, samples=[10]
    )
    same = run(tiny.suite, plain, tmp_path / "plain", {})
    assert row(same, "merged").tasks == row(auto, "merged-auto").tasks
    assert row(same, "gptq").layers == row(auto, "merged-auto-gptq").layers


def test_a_collapsed_merge_is_not_started_from(tiny: TinySuite) -> None:
    """The factor that stands is given up for any whose merge is nearer to the experts."""
    bench = open_workbench(tiny.suite)
    (cell,) = expand(asked())
    collapsed = replace(cell, merge_options={"scale": 40.0})
    chosen = choosing.chosen(bench, collapsed, outcome := Outcome())
    assert chosen.merge_options["scale"] in AUTO.merge["scale"]
    assert outcome.choice is not None
    first = outcome.choice.trials[0]
    assert (first.setting, first.held_out is None or first.held_out > 0) == ({"scale": 40.0}, True)


def test_where_no_distance_is_a_number_one_line_says_so(
    tiny: TinySuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EPMQ_CACHE", str(tmp_path))
    monkeypatch.setattr(choosing, "held_out_loss", lambda *_: math.nan)
    (cell,) = expand(asked())
    with pytest.raises(UserError, match="no setting of the search"):
        choosing.chosen(open_workbench(tiny.suite), cell, Outcome())


def test_killed_in_the_middle_it_goes_on(
    tiny: TinySuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = row(run(tiny.suite, asked(), tmp_path / "one", {}))
    measured, counts = held_out_loss, {"left": 9, "made": 0}

    def stops(*given: Any) -> float:
        if counts["left"] == 0:
            raise KeyboardInterrupt
        counts["left"] -= 1
        counts["made"] += 1
        return measured(*given)

    monkeypatch.setattr(choosing, "held_out_loss", stops)
    with pytest.raises(KeyboardInterrupt):
        run(tiny.suite, asked(), tmp_path / "two", {})
    assert len(list(cache.folder("chosen").iterdir())) == 1
    counts["left"] = -1
    again = row(run(tiny.suite, asked(), tmp_path / "two", {}))
    assert counts["made"] == len(again.search.trials if again.search else ()) == 7 + 4
    assert not list(cache.folder("chosen").iterdir())
    assert _told(again) == _told(undisturbed)


def _told(record: Record) -> Any:
    """A record without its times."""
    told = record.model_dump(exclude={"seconds", "peak_memory_bytes", "record_sha256"})
    for trial in told["search"]["trials"]:
        del trial["seconds"]
    return told


@pytest.mark.parametrize("content", [b"", b"[{}]", b"{", b"3"])
def test_a_damaged_state_costs_nothing_but_time(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.json").write_bytes(content)
    assert choosing._read(tmp_path / "state.json") == []


def test_one_sample_cannot_be_held_out(tiny: TinySuite, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="give 2 or more"):
        run(tiny.suite, asked(samples=[1]), tmp_path / "out", {})
    assert snapshot(tmp_path) == before


def test_a_language_model_chooses_too(tiny_text: TinyText, tmp_path: Path) -> None:
    found = row(run(tiny_text.suite, asked(samples=[8], merge_options=[{"scale": 0.3}]), tmp_path, {}))
    assert found.search is not None
    assert found.seconds["search"] >= sum(trial.seconds for trial in found.search.trials) * 0.99
    assert found.search.setting["anchor"] in AUTO.axes["anchor"]


def test_nothing_is_chosen_where_there_is_nothing_to_choose() -> None:
    asked: dict[str, Any] = {
        "merge": ["simple-average", "ties"],
        "method": [],
        "target": [],
        "bits": [4],
        "samples": [8],
    }
    assert [(c.method, c.merge) for c in expand(Request(**asked, controls=["merged", "merged-auto"]))] == [
        ("merged", "simple-average"),
        *(("merged", "ties"), ("merged-auto", "ties")),
    ]
    with pytest.raises(UserError, match="nothing is asked for"):
        expand(Request(**asked, controls=["merged-auto"], merge_options=[{"scale": 0.2}]))
