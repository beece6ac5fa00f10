"""The claims' verdicts follow from the cells, and say so when the cells are not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from results.analysis.analysis import Analysis
from results.paper.claims import Finding, Verdict, judge, paper_gain
from results.store.folder import RunFolder
from results.store.records import LayerResult, Record, TaskResult
from tests.fixtures.records import Correct, make_cell, make_folder, make_record

GRID = {"group_size": None, "symmetric": False, "samples": 256}
EPMQ = {**GRID, "anchor": 0.1, "mixing": 0.0}
FEATURES = {**EPMQ, "mixing": 0.75}
Cell = tuple[Record, Correct]


def epmq(name: str, accuracies: dict[str, float], **changes: Any) -> Cell:
    return make_cell(name, accuracies, **{"method": "epmq", "target": "expert", "axes": EPMQ, **changes})


def gptq(name: str, accuracies: dict[str, float], **changes: Any) -> Cell:
    return make_cell(name, accuracies, **changes)


def both(first: float, second: float) -> dict[str, float]:
    return {"digits": first, "shapes": second}


def verdicts(folder: RunFolder) -> dict[str, Verdict]:
    return {verdict.claim.id: verdict for verdict in judge(Analysis(folder))}


def judged(path: Path, claim: str, *cells: Cell, **manifest: Any) -> Verdict:
    return verdicts(make_folder(path, *cells, **manifest))[claim]


def only(verdict: Verdict) -> Finding:
    (finding,) = verdict.findings
    return finding


def test_an_empty_run_has_no_verdict(tmp_path: Path) -> None:
    found = verdicts(make_folder(tmp_path))
    assert {verdict.overall for verdict in found.values()} == {"not run"}
    assert set(found) == {"C1", "C2", "C3", "C4"}
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


@pytest.mark.parametrize(("gain", "expected"), [(0.005, "not supported"), (-0.1, "not supported")])
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
    suite = {"suite": "clip-vit-b32-8"}
    named: dict[str, Any] = {**suite, "merge": "task-arithmetic"}
    assert paper_gain(make_cell("x", **named)[0]) == pytest.approx(73.6 - 65.0)
    assert paper_gain(make_cell("x", **named, bits=3)[0]) is None
    assert paper_gain(make_cell("x", suite="clip-vit-l14-20", merge="ties")[0]) == pytest.approx(76.7 - 34.8)
    cells = [gptq("g", both(0.65, 0.65), **named), epmq("e", both(0.68, 0.68), **named)]
    finding = only(judged(tmp_path / "small", "C1", *cells, **suite))
    assert finding.low is not None
    assert finding.low > 0
    assert not finding.passed
    assert finding.note == "the paper's gain: +8.6"
    cells[1] = epmq("e", both(0.74, 0.74), **named)
    assert only(judged(tmp_path / "large", "C1", *cells, **suite)).passed


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
    assert verdict.findings[1].note == "70.0 against 10.0"


def test_c2_is_mixed_where_the_anchor_does_nothing(tmp_path: Path) -> None:
    free = epmq("f", both(0.7, 0.7), method="epmq-no-anchor", axes={**EPMQ, "anchor": 0.0})
    cells = [gptq("g", both(0.6, 0.6)), epmq("e", both(0.7, 0.7)), free]
    assert judged(tmp_path, "C2", *cells).overall == "mixed"


def test_an_ablation_is_not_e_pmq_itself(tmp_path: Path) -> None:
    free = epmq("f", both(0.1, 0.1), method="epmq-no-anchor", axes={**EPMQ, "anchor": 0.0})
    cells = [gptq("g", both(0.6, 0.6)), epmq("e", both(0.7, 0.7)), free]
    assert {finding.method for finding in judged(tmp_path, "C1", *cells).findings} == {"epmq"}


# -- C3


def layers(E: float, Q: float, M: float, count: int = 10) -> list[LayerResult]:
    return [
        LayerResult(
            name=f"block.{index}",
            rows=8,
            columns=4,
            objective=0.25,
            quantisation_deviation=Q,
            expert_deviation=E,
            merging_deviation=M,
        )
        for index in range(count)
    ]


def test_c3_is_supported_where_the_deviations_trade_off(tmp_path: Path) -> None:
    plain = gptq("g", both(0.6, 0.6), layers=layers(E=11, Q=1, M=10))
    guided = epmq("e", both(0.6, 0.6), layers=layers(E=6, Q=4, M=10))
    finding = only(judged(tmp_path, "C3", plain, guided))
    assert finding.passed
    assert (finding.value, len(finding.details)) == (10, 10)
    assert finding.details[0]["cos"] == pytest.approx((6 - 10 - 4) / (2 * (4 * 10) ** 0.5))
    assert finding.details[0]["gptq cos"] == 0.0
    assert finding.note == "E/M 0.60, gptq 1.10; Q/M 0.40, gptq 0.10; cos -0.63, gptq 0.00"


@pytest.mark.parametrize(
    "guided",
    [layers(E=12, Q=4, M=10), layers(E=6, Q=0.5, M=10), layers(E=6, Q=4, M=10, count=4)],
    ids=["experts farther", "both lower", "too few layers"],
)
def test_c3_is_not_supported_elsewhere(tmp_path: Path, guided: list[LayerResult]) -> None:
    plain = gptq("g", both(0.6, 0.6), layers=layers(E=11, Q=1, M=10))
    assert not only(judged(tmp_path, "C3", plain, epmq("e", both(0.6, 0.6), layers=guided))).passed


def test_c3_leaves_out_layers_without_deviations(tmp_path: Path) -> None:
    bare = [LayerResult(name="bare", rows=8, columns=4, objective=0.25)]
    untouched = layers(E=3, Q=3, M=1e-11, count=1)  # a layer that no LoRA adapter changes, and its noise
    none = [*layers(E=11, Q=0, M=0, count=1), *untouched, *bare]
    cells = [gptq("g", both(0.6, 0.6), layers=none), epmq("e", both(0.6, 0.6), layers=none)]
    assert judged(tmp_path, "C3", *cells).overall == "not run"


# -- C4


def test_c4_finds_the_task_that_an_average_hides(tmp_path: Path) -> None:
    verdict = judged(tmp_path, "C4", gptq("g", both(0.6, 0.6)), epmq("e", both(0.9, 0.5)))
    finding = only(verdict)
    assert (finding.value, finding.note, verdict.overall) == (1, "shapes -10.0", "not supported")
    assert [(detail["task"], detail["loses"]) for detail in finding.details] == [
        ("digits", False),
        ("shapes", True),
    ]


def test_c4_allows_noise(tmp_path: Path) -> None:
    finding = only(judged(tmp_path, "C4", gptq("g", both(0.6, 0.6)), epmq("e", both(0.7, 0.58))))
    assert finding.passed
    assert finding.note == "smallest change: shapes -2.0"


def test_c4_corrects_for_the_number_of_tasks(tmp_path: Path) -> None:
    accuracies = {f"task-{index}": 0.5 for index in range(8)}
    lost = {**accuracies, "task-3": 0.47}  # 6 of 200: p = 2^-6 on its own
    finding = only(judged(tmp_path / "8", "C4", gptq("g", accuracies), epmq("e", lost)))
    assert finding.passed
    alone = judged(tmp_path / "1", "C4", gptq("g", {"x": 0.5}), epmq("e", {"x": 0.47}))
    assert not only(alone).passed


def test_c4_compares_every_rounding_with_itself(tmp_path: Path) -> None:
    cells = [gptq("g", both(0.6, 0.6)), gptq("w", both(0.5, 0.5), method="awq", rounding="awq")]
    cells += [epmq("e", both(0.7, 0.7), method="epmq-awq", rounding="awq")]
    finding = only(judged(tmp_path, "C4", *cells))
    assert (finding.method, finding.quantity) == ("epmq-awq", "tasks that lose to awq")


def test_c4_looks_at_every_seed_and_at_spearman_tasks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=500)
    folder = make_folder(tmp_path)
    plain: dict[str, Any] = {"axes": GRID}
    guided: dict[str, Any] = {"method": "epmq", "target": "expert", "axes": EPMQ}
    for name, seed, noise, changes in (
        ("g0", 0, 0.5, plain),
        ("g1", 1, 0.5, plain),
        ("e0", 0, 0.4, guided),
        ("e1", 1, 2.0, guided),
    ):
        predicted = reference + noise * rng.normal(size=500)
        value = float(np.corrcoef(np.argsort(np.argsort(predicted)), np.argsort(np.argsort(reference)))[0, 1])
        tasks = {"stsb": TaskResult(metric="spearman", value=value, samples=500)}
        record = make_record({"x": np.ones(1, bool)}, name, seed=seed, tasks=tasks, average=value, **changes)
        folder.append(record, {}, {"stsb@prediction": predicted, "stsb@reference": reference})
    finding = only(verdicts(folder)["C4"])
    assert [(detail["seed"], detail["loses"]) for detail in finding.details] == [(0, False), (1, True)]
    assert not finding.passed
