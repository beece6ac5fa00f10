"""The further scores of classes that no text model generates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.run.cells import Request
from benchmarks.run.runner import run
from tests.fixtures.tiny_suite import TEST, TinySuite


def test_classes_of_images_have_balanced_accuracy_and_a_baseline_and_are_not_ranked(
    tiny: TinySuite, tmp_path: Path
) -> None:
    asked = Request(["task-arithmetic"], [], ["merged"], [4], ["zero-shot", "merged"], samples=[6])
    folder = run(tiny.suite, asked, tmp_path / "out", {})
    assert len(folder.records()) == 2
    for record in folder.records():
        stored = folder.samples(record.key).predictions
        assert record.average_ranked is None
        for task, result in record.tasks.items():
            said, right = stored[f"{task}@prediction"], stored[f"{task}@reference"]
            recall = [(said[right == c] == c).mean() for c in sorted(set(right))]
            assert result.balanced == pytest.approx(np.mean(recall))
            assert result.majority == np.bincount(right).max() / TEST
            assert result.ranked is result.ranked_norm is result.invalid is None
