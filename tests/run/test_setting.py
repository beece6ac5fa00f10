"""How a run computes, and how often it draws its samples: several models at once, seeds, dtypes."""

from __future__ import annotations

from pathlib import Path

from benchmarks.run.runner import run
from benchmarks.workbench.base import Setting
from benchmarks.workbench.machine import Machine
from tests.fixtures.tiny_runs import few, request
from tests.fixtures.tiny_suite import TinySuite
from tests.run.test_runner import untimed


def test_cells_evaluated_together_have_the_records_of_cells_alone(tiny: TinySuite, tmp_path: Path) -> None:
    alone = run(tiny.suite, request(), tmp_path / "alone", {})
    together = run(tiny.suite, request(), tmp_path / "together", {}, Setting(together=4))
    one, other = ({r.key: untimed(r) for r in folder.records()} for folder in (alone, together))
    assert one == other


def test_several_seeds_redraw_what_is_calibrated_and_nothing_else(tiny: TinySuite, tmp_path: Path) -> None:
    asked = few(method=["gptq"], controls=["zero-shot", "merged"], seeds=range(3))
    folder = run(tiny.suite, asked, tmp_path, {})
    assert sorted((r.method, r.seed) for r in folder.records()) == [
        *(("gptq", seed) for seed in range(3)),
        ("merged", 0),
        ("zero-shot", 0),
    ]
    assert {name.rpartition(" ")[2] for name in folder.manifest.calibration if " seed " in name} == {"1", "2"}


def test_bfloat16_is_another_cell_and_leaves_float32_cells_alone(tiny: TinySuite, tmp_path: Path) -> None:
    asked = few(controls=["experts", "merged"])
    fine = run(tiny.suite, asked, tmp_path / "fine", {})
    coarse = run(tiny.suite, asked, tmp_path / "coarse", {}, Setting(Machine.choose("cpu", "bfloat16")))
    assert {r.dtype for r in coarse.records()} == {"bfloat16"}
    assert {r.key for r in coarse.records()}.isdisjoint({r.key for r in fine.records()})
    objectives = [[layer.objective for r in f.records() for layer in r.layers] for f in (fine, coarse)]
    assert objectives[0] == objectives[1], "calibration is in float32 either way"
