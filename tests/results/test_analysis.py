"""What is shown in many places is computed once: records, samples, and the resampling of every pair."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from results.analysis import analysis as analysed
from results.analysis import stats
from results.analysis.analysis import Analysis
from results.figures import files
from results.report import page
from results.store import folder as stored
from results.store import samples
from results.store.folder import RunFolder
from results.tables.comparison import FORMATS, save
from tests.fixtures.records import make_cell, make_folder

FULL: dict[str, Any] = {"kind": "control", "rounding": None, "target": None, "bits": None, "axes": {}}


def study(path: Path) -> RunFolder:
    expert: dict[str, Any] = {"method": "epmq", "target": "expert"}
    axes = {"group_size": None, "symmetric": False, "anchor": 0.1, "mixing": 0.0}
    return make_folder(
        path,
        make_cell("x", {"digits": 0.9}, **{**FULL, "method": "experts", "merge": None}),
        make_cell("m", {"digits": 0.5}, **{**FULL, "method": "merged"}),
        *(make_cell(f"g{seed}", {"digits": 0.6}, seed=seed) for seed in (0, 1)),
        *(make_cell(f"e{seed}", {"digits": 0.7}, seed=seed, axes=axes, **expert) for seed in (0, 1)),
        make_cell(
            "f", {"digits": 0.2}, **{**expert, "method": "epmq-no-anchor"}, axes={**axes, "anchor": 0.0}
        ),
        make_cell("r", {"digits": 0.4}, method="rtn"),
    )


class Counts:
    """How often each pair of cells was resampled, each file of samples decoded, and the records read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pairs: Counter[tuple[tuple[int, ...], ...]] = Counter()
        self.files: Counter[str] = Counter()
        self.reads = 0
        self._kept: list[object] = []
        bootstrap, decode, read = stats.hierarchical_bootstrap, samples.decode, RunFolder.read

        def counted_bootstrap(a: Any, b: Any, **options: Any) -> Any:
            self._kept += [*a, *b]  # so that no other object gets the same id
            self.pairs[tuple(map(id, a)), tuple(map(id, b))] += 1
            return bootstrap(a, b, **options)

        def counted_decode(data: bytes, record: Any) -> Any:
            self.files[record.key] += 1
            return decode(data, record)

        def counted_read(folder: RunFolder) -> Any:
            self.reads += 1
            return read(folder)

        monkeypatch.setattr(analysed, "hierarchical_bootstrap", counted_bootstrap)
        monkeypatch.setattr(stored, "decode", counted_decode)
        monkeypatch.setattr(RunFolder, "read", counted_read)


def test_tables_in_every_format_resample_each_pair_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study(tmp_path)
    counts = Counts(monkeypatch)
    assert len(save(Analysis.open(tmp_path))) == len(FORMATS)
    assert list(counts.pairs.values()) == [1] * 3  # epmq, epmq-no-anchor and rtn beside gptq
    assert list(counts.files.values()) == [1] * 6  # two seeds of gptq and epmq, two cells of one seed
    assert counts.reads == 1


def test_a_report_with_its_figures_and_tables_resamples_each_pair_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study(tmp_path)
    counts = Counts(monkeypatch)
    analysis = Analysis.open(tmp_path)
    figures = files.drawings(analysis)
    page.save(analysis, figures, tmp_path / "report.html")
    files.save(tmp_path, figures)
    save(analysis)
    # the three beside gptq, the four methods beside the merged model, epmq beside epmq-no-anchor, and the two
    # draws of epmq beside gptq alone
    assert list(counts.pairs.values()) == [1] * 10
    assert set(counts.files.values()) == {1}
    assert counts.reads == 1
