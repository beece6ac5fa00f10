"""C4 needs every task to be shown within the margin, and says what the samples could have shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from results.paper.losses import MARGIN
from results.store.records import TaskResult
from tests.fixtures.claims import (
    GRID,
    GUIDED,
    both,
    epmq,
    gptq,
    judged,
    only,
    sized,
    verdicts,
)
from tests.fixtures.records import make_folder, make_record


def test_c4_finds_the_task_that_an_average_hides(tmp_path: Path) -> None:
    verdict = judged(tmp_path, "C4", gptq("g", both(0.6, 0.6)), epmq("e", both(0.9, 0.5)))
    finding = only(verdict)
    assert (finding.value, verdict.overall) == (1, "not supported")
    assert finding.note.startswith("shapes -10.0; smallest loss that could have been ruled out: ")
    assert [(detail["name"], detail["outcome"]) for detail in finding.details] == [
        ("digits", "passes"),
        ("shapes", "fails"),
    ]


def test_c4_needs_samples_to_support_anything(tmp_path: Path) -> None:
    few = [sized("g", both(0.6, 0.6), 20), sized("e", both(0.65, 0.6), 20, **GUIDED)]
    finding = only(judged(tmp_path / "few", "C4", *few))
    assert (finding.outcome, "underpowered" in finding.note) == ("cannot tell", True)
    many = [sized("g", both(0.6, 0.6), 2000), sized("e", both(0.65, 0.6), 2000, **GUIDED)]
    finding = only(judged(tmp_path / "many", "C4", *many))
    assert (finding.outcome, "underpowered" in finding.note) == ("passes", False)


def test_c4_allows_a_loss_within_the_margin_and_no_other(tmp_path: Path) -> None:
    for loss, expected in ((0.01, "passes"), (0.03, "cannot tell"), (0.06, "fails")):
        cells = [sized("g", both(0.6, 0.6), 2000), sized("e", both(0.6, 0.6 - loss), 2000, **GUIDED)]
        assert only(judged(tmp_path / str(loss), "C4", *cells)).outcome == expected
    assert MARGIN == 3.0


def test_c4_needs_no_adjustment_for_the_number_of_tasks(tmp_path: Path) -> None:
    accuracies = {f"task-{index}": 0.5 for index in range(8)}
    cells = [sized("g", accuracies, 2000), sized("e", {**accuracies, "task-3": 0.44}, 2000, **GUIDED)]
    assert only(judged(tmp_path, "C4", *cells)).value == 1


def test_c4_compares_every_rounding_with_itself(tmp_path: Path) -> None:
    cells = [gptq("g", both(0.6, 0.6)), gptq("w", both(0.5, 0.5), method="awq", rounding="awq")]
    cells += [epmq("e", both(0.7, 0.7), method="epmq-awq", rounding="awq")]
    finding = only(judged(tmp_path, "C4", *cells))
    assert (finding.method, finding.quantity) == ("epmq-awq", "tasks not shown to keep up with awq")


def test_c4_looks_at_every_draw_and_at_spearman_tasks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=500)
    folder = make_folder(tmp_path)
    plain: dict[str, Any] = {"axes": GRID}
    for name, seed, noise, changes in (
        ("g0", 0, 0.5, plain),
        ("g1", 1, 0.5, plain),
        ("e0", 0, 0.4, GUIDED),
        ("e1", 1, 2.0, GUIDED),
    ):
        predicted = reference + noise * rng.normal(size=500)
        value = float(np.corrcoef(np.argsort(np.argsort(predicted)), np.argsort(np.argsort(reference)))[0, 1])
        tasks = {"stsb": TaskResult(metric="spearman", value=value, samples=500)}
        record = make_record({"x": np.ones(1, bool)}, name, seed=seed, tasks=tasks, average=value, **changes)
        folder.append(record, {}, {"stsb@prediction": predicted, "stsb@reference": reference})
    finding = only(verdicts(folder)["C4"])
    assert finding.outcome == "cannot tell"
    assert "alone, fails under 1, passes under 1" in finding.note
