"""Layer objectives of roundings: on the same problems, relative to GPTQ's, and gone on with."""

from __future__ import annotations

from pathlib import Path

import pytest

import baselines
from benchmarks.run.executors import open_workbench
from benchmarks.studies import objectives
from benchmarks.studies.objectives import Measured, search, table
from epmq.errors import UserError
from epmq.layer.spec import QuantSpec
from tests.fixtures.tiny_suite import TinySuite


def test_ratios_are_relative_layer_by_layer() -> None:
    ours, theirs = Measured([2.0, 8.0], [1.0, 3.0]), Measured([1.0, 16.0], [0.0, 0.0])
    assert ours.row(theirs) == {"ratio": pytest.approx(1.0), "worst": pytest.approx(2.0), "seconds": 2.0}
    assert theirs.row(theirs) == {"ratio": 1.0, "worst": 1.0, "seconds": 0.0}


def test_a_study_of_a_tiny_suite(tiny: TinySuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives, "SPECS", (QuantSpec(3), QuantSpec(2)))
    monkeypatch.setattr(baselines, "names", lambda: ["gptq", "gptq-descent", "rtn"])
    bench, file = open_workbench(tiny.suite), tmp_path / "found.json"
    found = search(bench, file, samples=8)
    rows = {(row["target"], row["bits"], row["rounding"]): row["ratio"] for row in found["rows"]}
    assert len(rows) == len(found["rows"]) == 2 * 2 * 3
    assert found["layers"] == 8
    for target in objectives.TARGETS:
        for bits in (3, 2):
            gptq, descent, rtn = (rows[target, bits, n] for n in ("gptq", "gptq-descent", "rtn"))
            assert descent <= gptq == 1 < rtn
    assert "not run" not in table(found)

    made = [0]
    monkeypatch.setattr(objectives, "measure", lambda *_: made.append(1))
    assert search(bench, file, samples=8) == found
    assert made == [0], "nothing was missing"
    with pytest.raises(UserError, match=r"is not of \{.*'samples': 9\}; give another --out"):
        search(bench, file, samples=9)
    file.write_text("[]")
    with pytest.raises(UserError, match="is not a file of this study; give another --out"):
        search(bench, file, samples=8)
