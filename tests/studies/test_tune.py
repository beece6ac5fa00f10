"""Axes chosen without labels: a suite's own are those that its committed search speaks for."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import pytest

from benchmarks.studies import tune
from benchmarks.studies.tune import MERGES, Trials, choose, finer, page, settings
from benchmarks.suites import load as suites
from epmq.calibration import Calibration
from epmq.errors import UserError

RUNS = Path(__file__).parents[2] / "results" / "committed" / "runs"
COMMITTED = sorted(path.parent.name for path in RUNS.glob("*/tuning.json"))


def trials(best: Calibration, patch_weight: float) -> Trials:
    """Made-up trials in which the distance grows from ``best`` on."""
    tried = [Calibration(), *settings("weights"), *settings("features")]
    tried += [replace(best, patch_weight=weight) for weight in tune.PATCH_WEIGHTS]

    def distance(at: Calibration) -> float:
        apart = abs(at.mixing - best.mixing) + abs(at.anchor - best.anchor)
        return apart + 0.1 * abs(at.patch_weight - patch_weight) + (at.target == "merged")

    rows = [
        {"merge": merge, "bits": 4, **asdict(at), "distance": distance(at)}
        for merge, at in product(MERGES, tried)
    ]
    return Trials(rows)


@pytest.mark.parametrize("patch_weight", [1.0, 0.01, 0.0])
def test_the_least_distance_is_chosen(patch_weight: float) -> None:
    best = Calibration("expert", mixing=0.5, anchor=0.01)
    chosen = choose(trials(best, patch_weight))["features"]
    expected = {"mixing": 0.5, "anchor": 0.01, "patch_weight": patch_weight}
    assert chosen == {
        name: value for name, value in expected.items() if (name, value) != ("patch_weight", 1.0)
    }


def test_what_was_not_tried_is_not_chosen() -> None:
    best = Calibration("expert", mixing=0.5, anchor=0.01)
    found = trials(best, 0.0)
    found.rows[:] = [row for row in found.rows if row["patch_weight"] == 1]
    assert choose(found)["features"] == {"mixing": 0.5, "anchor": 0.01}
    assert found.mean(finer(found, "features")[1]) == float("inf")


def test_a_search_of_another_grid_is_refused() -> None:
    found = trials(Calibration("expert", mixing=0.5, anchor=0.01), 0.0)
    found.rows[:] = [{**row, "damping": 0.5} for row in found.rows]
    with pytest.raises(UserError, match="holds no setting of the grid"):
        choose(found)


def test_a_choice_at_the_edge_of_the_grid_says_so() -> None:
    assert "anchor 1, at the edge of the grid" in page(
        "toy", trials(Calibration("expert", mixing=1, anchor=1), 1)
    )


@pytest.mark.parametrize("name", COMMITTED)
def test_a_suites_own_axes_are_those_of_its_committed_search(name: str) -> None:
    found = Trials(json.loads((RUNS / name / "tuning.json").read_bytes()))
    assert suites.load(name).chosen == {reading: axes for reading, axes in choose(found).items() if axes}
    assert (RUNS / name / "tuning.md").read_text() == page(name, found)
