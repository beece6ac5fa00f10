"""The claims' verdicts follow from the cells, and say so when the cells are not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from results.analysis.analysis import Analysis
from results.analysis.groups import outcomes, ranked_outcomes
from results.analysis.stats import Ranked
from results.paper.findings import Finding, Outcome, combined
from results.paper.gains import headline
from results.store.records import Record
from results.store.samples import Samples
from tests.fixtures.claims import (
    EPMQ,
    FEATURES,
    GRID,
    Cell,
    both,
    epmq,
    gptq,
    judged,
    layers,
    only,
    sized,
    verdicts,
)
from tests.fixtures.records import make_cell, make_correct, make_folder, make_record, read_by


def test_an_empty_run_has_no_verdict(tmp_path: Path) -> None:
    found = verdicts(make_folder(tmp_path))
    assert {verdict.overall for verdict in found.values()} == {"not run"}
    assert set(found) == {"C1", "C2", "C3", "C4", "C5"}
    assert all(verdict.rule.startswith(claim) for claim, verdict in found.items())


# -- C1


def test_c1_is_the_paired_difference_to_gptq(tmp_path: Path) -> None:
    verdict = judged(tmp_path, "C1", gptq("g", both(0.6, 0.6)), epmq("e", both(0.7, 0.65)))
    finding = only(verdict)
    assert finding.value == pytest.approx(7.5)
    assert finding.low is not None
    assert 0 < finding.low < 7.5
    assert (verdict.readings["epmq"], verdict.readings["epmq-features"]) == ("supported", "not run")
    assert verdict.overall == "supported"


@pytest.mark.parametrize(
    ("gain", "expected"), [(0.005, "cannot tell"), (0.0, "not supported"), (-0.1, "not supported")]
)
def test_c1_needs_an_interval_above_zero(tmp_path: Path, gain: float, expected: str) -> None:
    verdict = judged(tmp_path, "C1", gptq("g", both(0.6, 0.6)), epmq("e", both(0.6 + gain, 0.6)))
    assert verdict.overall == expected


def test_c1_compares_like_with_like_only(tmp_path: Path) -> None:
    strangers = [
        gptq("bits", both(0.5, 0.5), bits=3),
        gptq("merge", both(0.5, 0.5), merge="task-arithmetic"),
        gptq("options", both(0.5, 0.5), merge_options={"scale": 0.5}),
        gptq("grid", both(0.5, 0.5), axes={**GRID, "group_size": 64}),
        gptq("seed", both(0.5, 0.5), seed=1),
        gptq("device", both(0.5, 0.5), device="cuda"),
        gptq("control", both(0.5, 0.5), kind="control"),
    ]
    verdict = judged(tmp_path, "C1", *strangers, epmq("e", both(0.7, 0.7)))
    assert verdict.overall == "not run"


def test_readings_that_differ_make_a_claim_mixed(tmp_path: Path) -> None:
    cells = [
        gptq("g", both(0.6, 0.6)),
        epmq("a", both(0.6, 0.6)),
        epmq("b", both(0.8, 0.8), method="epmq-features", axes=FEATURES),
    ]
    verdict = judged(tmp_path, "C1", *cells)
    assert verdict.readings == {"epmq": "not supported", "epmq-features": "supported"}
    assert verdict.overall == "mixed"


def test_a_reading_is_mixed_where_some_of_its_cells_pass(tmp_path: Path) -> None:
    cells = [gptq("g4", both(0.6, 0.6)), gptq("g3", both(0.6, 0.6), bits=3)]
    cells += [epmq("e4", both(0.7, 0.7)), epmq("e3", both(0.6, 0.6), bits=3)]
    assert judged(tmp_path, "C1", *cells).overall == "mixed"


def test_several_seeds_are_one_finding(tmp_path: Path) -> None:
    cells = [gptq(f"g{seed}", both(0.6, 0.6), seed=seed) for seed in range(3)]
    cells += [epmq(f"e{seed}", both(0.7 + 0.01 * seed, 0.7), seed=seed) for seed in range(3)]
    assert only(judged(tmp_path, "C1", *cells)).value == pytest.approx(10.5)


def test_on_the_papers_suite_the_size_counts_too(tmp_path: Path) -> None:
    suite = {"suite": "clip-vit-b32-8", "suite_sha256": read_by("clip-vit-b32-8")}
    named: dict[str, Any] = {**suite, "merge": "task-arithmetic"}
    entry = headline(make_cell("x", **named)[0])
    assert entry is not None
    assert entry.gain == pytest.approx(73.6 - 65.0)
    assert headline(make_cell("x", **named, bits=3)[0]) is None
    cells = [gptq("g", both(0.65, 0.65), **named), epmq("e", both(0.68, 0.68), **named)]
    finding = only(judged(tmp_path / "small", "C1", *cells, **suite))
    assert finding.low is not None
    assert finding.low > 0
    assert finding.outcome == "fails"
    assert finding.note == "the paper's gain: +8.6; one draw"
    cells[1] = epmq("e", both(0.74, 0.74), **named)
    assert only(judged(tmp_path / "large", "C1", *cells, **suite)).outcome == "passes"


def test_c1_needs_one_merge_where_the_abstract_names_none(tmp_path: Path) -> None:
    suite = {"suite": "clip-vit-l14-20", "suite_sha256": read_by("clip-vit-l14-20")}
    cells = []
    for merge, plain, ours in (("task-arithmetic", 0.35, 0.77), ("ties", 0.7, 0.75)):
        named: dict[str, Any] = {**suite, "merge": merge}
        cells += [
            gptq(f"g{merge}", both(plain, plain), **named),
            epmq(f"e{merge}", both(ours, ours), **named),
        ]
    verdict = judged(tmp_path / "both", "C1", *cells, **suite)
    assert sorted(finding.outcome for finding in verdict.findings) == ["fails", "passes"]
    assert verdict.overall == "supported"
    assert judged(tmp_path / "ties", "C1", *cells[2:], **suite).overall == "not supported"


# -- C2


def test_c2_needs_both_ablations(tmp_path: Path) -> None:
    cells = [gptq("g", both(0.6, 0.6)), epmq("e", both(0.7, 0.7))]
    assert judged(tmp_path / "one", "C2", *cells).overall == "not run"
    free = epmq("f", both(0.1, 0.1), method="epmq-no-anchor", axes={**EPMQ, "anchor": 0.0})
    verdict = judged(tmp_path / "two", "C2", *cells, free)
    assert verdict.overall == "supported"
    assert [(finding.method, round(finding.value)) for finding in verdict.findings] == [
        ("epmq", 10),
        ("epmq", 60),
    ]
    assert verdict.findings[1].note == "one draw"


def test_c2_is_mixed_where_the_anchor_does_nothing(tmp_path: Path) -> None:
    free = epmq("f", both(0.7, 0.7), method="epmq-no-anchor", axes={**EPMQ, "anchor": 0.0})
    cells = [gptq("g", both(0.6, 0.6)), epmq("e", both(0.7, 0.7)), free]
    assert judged(tmp_path, "C2", *cells).overall == "mixed"


def test_c2_compares_rows_of_the_same_damping_alone(tmp_path: Path) -> None:
    damped = {**EPMQ, "damping": 0.01}
    cells = [
        gptq("g", both(0.6, 0.6), axes={**GRID, "damping": 0.01}),
        epmq("e", both(0.7, 0.7), axes=damped),
    ]
    bare = epmq("f", both(0.1, 0.1), axes={**damped, "anchor": 0.0, "damping": 0.0})
    like = epmq("l", both(0.66, 0.66), axes={**damped, "anchor": 0.0})
    assert judged(tmp_path / "bare", "C2", *cells, bare).overall == "not run"
    verdict = judged(tmp_path / "both", "C2", *cells, bare, like)
    assert [round(finding.value) for finding in verdict.findings] == [10, 4]


def test_c2_says_when_the_verdict_depends_on_the_draw(tmp_path: Path) -> None:
    cells = []
    for seed, unanchored in enumerate((0.35, 0.72, 0.5)):
        named: dict[str, Any] = {"seed": seed}
        cells += [
            gptq(f"g{seed}", both(0.6, 0.6), **named),
            epmq(f"e{seed}", both(0.7, 0.7), **named),
            epmq(f"f{seed}", both(unanchored, unanchored), axes={**EPMQ, "anchor": 0.0}, **named),
        ]
    experts, anchor = judged(tmp_path, "C2", *cells).findings
    assert experts.note == "3 draws, alike"
    assert anchor.outcome == "cannot tell"
    assert anchor.note == "3 draws; depends on the draw: alone, fails under 1, passes under 2"


def test_an_ablation_is_not_e_pmq_itself(tmp_path: Path) -> None:
    free = epmq("f", both(0.1, 0.1), method="epmq-no-anchor", axes={**EPMQ, "anchor": 0.0})
    cells = [gptq("g", both(0.6, 0.6)), epmq("e", both(0.7, 0.7)), free]
    assert {finding.method for finding in judged(tmp_path, "C1", *cells).findings} == {"epmq"}


# -- C5


@pytest.mark.parametrize(("two_step", "expected"), [(0.66, "supported"), (0.72, "not supported")])
def test_c5_is_joint_calibration_against_two_steps(tmp_path: Path, two_step: float, expected: str) -> None:
    other: dict[str, Any] = {"kind": "control", "target": None}
    axes = {"epmq": EPMQ, "epmq-features": FEATURES}
    cells = [
        epmq("b", both(0.7, 0.7), method="epmq-features", axes=FEATURES),
        epmq("a", both(0.7, 0.7)),
    ]
    for reading, control in (("epmq-features", "two-step"), ("epmq", "two-step-weights")):
        verdict = judged(tmp_path / reading, "C5", *cells)
        assert set(verdict.readings.values()) == {"not run"}
        two = {**other, "method": control, "axes": {**axes[reading], "then.anchor": 0.1}}
        verdict = judged(tmp_path / control, "C5", *cells, gptq("s", both(two_step, two_step), **two))
        assert verdict.readings == {**dict.fromkeys(axes, "not run"), reading: expected}
        assert "The claim is ours" in verdict.rule


# -- all of them


def reproduction(samples: int) -> list[Cell]:
    """A run as the paper tells it, on another suite: both readings, three draws each."""
    cells = []
    for seed in range(3):
        rows: dict[str, tuple[float, dict[str, Any]]] = {
            "gptq": (0.6, {"axes": GRID, "layers": layers(E=11, R=1, M=10, C=10)}),
        }
        for name, axes in (("epmq", EPMQ), ("epmq-features", FEATURES)):
            guided: dict[str, Any] = {"target": "expert", "layers": layers(E=7, R=2, M=10)}
            rows[name] = (0.7, {**guided, "axes": axes})
            rows[f"{name}-no-anchor"] = (0.5, {**guided, "axes": {**axes, "anchor": 0.0}})
            rows[f"two-step {name}"] = (0.66, {"kind": "control", "target": None, "axes": axes})
        for name, (accuracy, changes) in rows.items():
            method = name.split()[0]
            cells.append(
                sized(f"{name}{seed}", both(accuracy, accuracy), samples, method=method, seed=seed, **changes)
            )
    return cells


def test_a_perfect_reproduction_supports_every_claim(tmp_path: Path) -> None:
    found = verdicts(make_folder(tmp_path, *reproduction(1000)))
    assert {claim: verdict.overall for claim, verdict in found.items()} == dict.fromkeys(found, "supported")
    assert all("3 draws, alike" in finding.note for v in found.values() for finding in v.findings)


def test_an_underpowered_run_supports_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cells = []
    for record, _ in reproduction(12):
        correct = {task: rng.random(12) < result.value for task, result in record.tasks.items()}
        cells.append((make_record(correct, **_kept(record)), correct))
    found = verdicts(make_folder(tmp_path, *cells))
    assert "supported" not in {found[claim].overall for claim in ("C1", "C2", "C4", "C5")}


def _kept(record: Record) -> dict[str, Any]:
    names = ("key", "method", "kind", "target", "axes", "seed", "layers")
    return {name: getattr(record, name) for name in names}


# -- two scores


def test_claims_are_judged_on_both_scores_where_a_run_has_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [gptq("g", both(0.3, 0.3)), epmq("e", both(0.5, 0.5))]
    ranked = {record.key: make_correct(both(0.6, 0.6)) for record, _ in cells}  # E-PMQ mends the format alone
    own = Analysis.outcomes

    def scored(self: Analysis, record: Record, score: str = "generated") -> Any:
        return ranked[record.key] if score == "ranked" else own(self, record)

    monkeypatch.setattr(Analysis, "scores", lambda self, *groups: ["generated", "ranked"])
    monkeypatch.setattr(Analysis, "outcomes", scored)
    verdict = judged(tmp_path, "C1", *cells)
    assert [(f.score, f.quantity, f.outcome) for f in verdict.findings] == [
        ("generated", "minus gptq, points", "passes"),
        ("ranked", "minus gptq, points (ranked)", "fails"),
    ]
    assert verdict.overall == "mixed"


def test_ranked_outcomes_are_of_the_tasks_with_ranked_answers() -> None:
    classes = {"a@ranked": np.array([0, 1, 1]), "a@reference": np.array([0, 1, 2])}
    numbers = {"s@prediction": np.array([0.1, 0.2]), "s@reference": np.array([1.0, 2.0])}
    samples = Samples({"a": np.array([True, False, False])}, {**classes, **numbers})
    assert {task: list(right) for task, right in ranked_outcomes(samples).items()} == {  # type: ignore[arg-type]
        "a": [True, True, False]
    }
    assert {task for task, got in outcomes(samples).items() if isinstance(got, Ranked)} == {"s"}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], "not run"),
        (["passes", "passes"], "supported"),
        (["passes", "fails"], "mixed"),
        (["cannot tell", "passes"], "cannot tell"),
        (["cannot tell", "fails"], "not supported"),
        (["not measured"], "not measured"),
        (["not measured", "passes"], "supported"),
    ],
)
def test_a_verdict_follows_from_its_tests(found: list[Outcome], expected: str) -> None:
    findings = [Finding("epmq", "epmq", None, 4, "x", 0.0, outcome) for outcome in found]
    assert combined(findings) == expected
