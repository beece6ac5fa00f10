"""A row is a cell's mean over its seeds, beside the bounds and the GPTQ cell that it may be compared with."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from results.analysis.analysis import Analysis
from results.analysis.groups import outcomes
from results.analysis.rows import Row, recovered
from results.analysis.stats import hierarchical_bootstrap, holm, paired_bootstrap
from results.store.folder import RunFolder
from results.store.records import Record, TaskResult
from tests.fixtures.records import Correct, make_cell, make_folder, make_key, make_record

FULL: dict[str, Any] = {"kind": "control", "rounding": None, "target": None, "bits": None, "axes": {}}


def bound(method: str, accuracies: dict[str, float], **changes: Any) -> tuple[Record, Correct]:
    return make_cell(method, accuracies, **{"method": method, **FULL, **changes})


def only(folder: RunFolder, **fields: Any) -> Row:
    (row,) = [row for row in Analysis(folder).rows if all(getattr(row, k) == v for k, v in fields.items())]
    return row


def epmq(name: str, digits: float, seed: int) -> tuple[Record, Correct]:
    return make_cell(name, {"digits": digits}, seed=seed, method="epmq", target="expert")


def test_records_that_differ_in_the_seed_only_are_one_row(tmp_path: Path) -> None:
    cells = [make_cell(f"s{seed}", {"digits": 0.5 + seed / 10}, seed=seed) for seed in (2, 0, 1)]
    (row,) = Analysis(make_folder(tmp_path, *cells)).rows
    assert [record.seed for record in row.records] == [0, 1, 2]
    assert row.average == pytest.approx(0.6)
    assert row.spread == pytest.approx(statistics.stdev([0.5, 0.6, 0.7]))
    assert row.tasks["digits"].value == pytest.approx(0.6)
    assert row.settings == ""


@pytest.mark.parametrize(
    "changes",
    [{"axes": {"samples": 16}}, {"merge_options": {"scale": 0.5}}, {"dtype": "bfloat16"}, {"device": "cuda"}],
    ids=str,
)
def test_records_that_differ_in_more_are_rows_of_their_own(tmp_path: Path, changes: dict[str, Any]) -> None:
    rows = Analysis(make_folder(tmp_path, make_cell("a"), make_cell("b", seed=1, **changes))).rows
    assert [len(row.records) for row in rows] == [1, 1]
    assert all(row.settings for row in rows)


def test_records_made_by_other_code_are_not_averaged(tmp_path: Path) -> None:
    named = {"merge": "ties", "method": "gptq", "target": "merged", "bits": 4}
    cells = [{"key": make_key(name), "code": name * 64, **named} for name in ("a", "b")]
    folder = make_folder(tmp_path, make_cell("a"), make_cell("b", seed=1), asked={"cells": cells})
    analysis = Analysis(folder)
    assert len(analysis.groups) == 2
    assert [row.settings for row in analysis.rows] == [
        "code=aaaaaaaa, seed=0",
        "code=bbbbbbbb, seed=1",
    ]


def test_the_same_seed_twice_is_two_rows(tmp_path: Path) -> None:
    assert len(Analysis(make_folder(tmp_path, make_cell("a"), make_cell("b"))).rows) == 2


# -- recovery


def test_recovery_is_the_share_of_the_gap_between_merged_and_experts() -> None:
    assert recovered(0.7, merged=0.6, experts=0.8) == pytest.approx(0.5)
    assert recovered(0.6, merged=0.6, experts=0.8) == 0
    assert recovered(0.5, merged=0.6, experts=0.8) == pytest.approx(-0.5)


def test_without_a_gap_there_is_no_recovery() -> None:
    assert recovered(0.7, merged=0.8, experts=0.8) is None
    assert recovered(0.7, merged=0.9, experts=0.8) is None


def test_recovery_is_against_the_merged_model_of_the_same_merge_and_options(tmp_path: Path) -> None:
    folder = make_folder(
        tmp_path,
        bound("experts", {"digits": 0.9}, merge=None),
        bound("merged", {"digits": 0.5}, merge_options={"scale": 0.3}),
        make_cell("a", {"digits": 0.6}, merge_options={"scale": 0.3}),
        make_cell("b", {"digits": 0.6}, merge_options={"scale": 1.0}, method="rtn"),
        make_cell("c", {"digits": 0.6}, merge="other", method="awq"),
    )
    assert only(folder, method="gptq").recovery == pytest.approx(0.25)
    assert only(folder, method="rtn").recovery is None
    assert only(folder, method="awq").recovery is None
    assert only(folder, method="experts").recovery is None


def test_recovery_needs_the_same_tasks(tmp_path: Path) -> None:
    folder = make_folder(
        tmp_path,
        bound("experts", {"digits": 0.9, "shapes": 0.9}, merge=None),
        bound("merged", {"digits": 0.5, "shapes": 0.5}),
        make_cell("a", {"digits": 0.6}),
    )
    assert only(folder, method="gptq").recovery is None


# -- against plain GPTQ


def test_seeds_are_paired_with_the_same_seeds(tmp_path: Path) -> None:
    cells = [make_cell(f"g{seed}", {"digits": 0.5 + seed / 10}, seed=seed) for seed in (0, 1, 2)]
    cells += [epmq("e1", 0.65, 1), epmq("e2", 0.8, 2)]
    folder = make_folder(tmp_path, *cells)
    a, b = ([outcomes(folder.samples(make_key(f"{name}{seed}"))) for seed in (1, 2)] for name in "eg")
    row = only(folder, method="epmq")
    assert row.vs_gptq == hierarchical_bootstrap(a, b)
    assert row.vs_gptq is not None
    assert row.vs_gptq.value == pytest.approx(0.075)


def test_without_a_common_seed_nothing_is_compared(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, make_cell("g", seed=0), epmq("e", 0.7, seed=1))
    assert only(folder, method="epmq").vs_gptq is None
    assert only(folder, method="epmq").p_value is None


def test_p_values_are_adjusted_for_all_rows_that_are_compared(tmp_path: Path) -> None:
    names = {"rtn": 0.47, "awq": 0.53, "other": 0.55}
    cells = [make_cell(name, {"digits": value}, method=name) for name, value in names.items()]
    folder = make_folder(tmp_path, make_cell("gptq", {"digits": 0.5}), *cells)
    gptq = outcomes(folder.samples(make_key("gptq")))
    alone = {name: outcomes(folder.samples(make_key(name))) for name in names}
    single = [paired_bootstrap(alone[name], gptq).p_value for name in names]
    adjusted = dict(zip(names, holm(single).tolist(), strict=True))
    assert {row.method: row.p_value for row in Analysis(folder).rows if row.p_value is not None} == adjusted


def test_a_task_of_rank_correlation_has_an_interval_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=300)
    folder = make_folder(tmp_path)
    for method, noise in (("gptq", 2.0), ("epmq", 0.5)):
        predicted = reference + noise * rng.normal(size=300)
        value = float(spearmanr(predicted, reference).statistic)
        task = TaskResult(metric="spearman", value=value, samples=300)
        record = make_record(
            {"sts": np.ones(1, bool)}, method, method=method, tasks={"sts": task}, average=value
        )
        folder.append(record, {}, {"sts@prediction": predicted, "sts@reference": reference})
    row = only(folder, method="epmq")
    assert row.vs_gptq is not None
    assert 0 < row.vs_gptq.low < row.vs_gptq.value < row.vs_gptq.high
    assert row.p_value is not None
    assert row.p_value < 0.001
