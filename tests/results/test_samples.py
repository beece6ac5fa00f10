"""What a cell did on every sample is stored beside its record, agrees with it, and is never a pickle."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epmq.errors import UserError
from results.store.folder import RunFolder
from results.store.records import Record, TaskResult
from tests.fixtures.records import Correct, make_cell, make_correct, make_folder, make_key, make_record


def keys(folder: RunFolder) -> list[str]:
    return [record.key for record in folder.records()]


# -- predictions


def test_predictions_are_kept_beside_what_is_right(tmp_path: Path) -> None:
    record, correct = make_cell("a")
    folder = make_folder(tmp_path)
    classes = np.arange(200) % 7
    folder.append(record, correct, {"digits@prediction": classes})
    assert {name: list(array) for name, array in folder.samples(record.key).predictions.items()} == {
        "digits@prediction": list(classes)
    }
    assert folder.samples(record.key).predictions["digits@prediction"].dtype == np.int32
    assert set(folder.samples(record.key).correct) == {"digits", "shapes"}


def ranked(changes: dict[str, Any] | None = None) -> tuple[Record, Correct, dict[str, Any]]:
    """A cell of an accuracy task and of one where two neighbours of four change places: rho = 0.8."""
    correct = make_correct({"digits": 0.5})
    sts = TaskResult(metric="spearman", value=0.8, samples=4)
    tasks = {**make_record(correct).tasks, "sts": sts}
    record = make_record(correct, "a", tasks=tasks, average=(0.5 + 0.8) / 2)
    arrays = {"sts@prediction": [0.1, 0.3, 0.2, 9.0], "sts@reference": [1.0, 2.0, 3.0, 4.0]}
    return record, correct, {**arrays, **(changes or {})}


def test_a_correlation_is_recomputed_from_predictions_and_references(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    folder.append(*ranked())
    stored = RunFolder.open(tmp_path).samples(make_key("a")).predictions
    assert {name: (array.dtype.name, array.tolist()) for name, array in stored.items()} == {
        "sts@prediction": ("float64", [0.1, 0.3, 0.2, 9.0]),
        "sts@reference": ("float64", [1.0, 2.0, 3.0, 4.0]),
    }
    assert set(folder.samples(make_key("a")).correct) == {"digits"}


def test_a_constant_prediction_has_no_correlation(tmp_path: Path) -> None:
    task = TaskResult(metric="spearman", value=0.0, samples=3)
    record = make_record(make_correct(), "a", tasks={"sts": task}, average=0.0)
    make_folder(tmp_path).append(record, {}, {"sts@prediction": [2, 2, 2], "sts@reference": [1, 2, 3]})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sts@prediction": [1.0, 2.0, 3.0, 4.0]}, "sts has spearman 1.0, its record 0.8"),
        ({"sts@prediction": [0.1, float("nan"), 0.2, 9.0]}, "sts@prediction holds values other than finite"),
        ({"sts@reference": [1.0, 2.0, 3.0]}, r"sts@reference has shape \(3,\), expected \(4,\)"),
        ({"sts@guess": [1.0]}, "holds predictions"),
        ({"other@prediction": [1.0]}, "holds predictions"),
        ({"digits@prediction": np.full(200, 0.5)}, "digits@prediction holds values other than classes"),
        ({"digits@prediction": np.full(200, 2**31)}, "digits@prediction holds values other than classes"),
        ({"digits@reference": np.zeros(200)}, "digits@reference holds values other than classes"),
        ({"sts@ranked": [1, 2, 3, 4]}, "holds predictions"),
        ({"digits@ranked": np.zeros(200, int)}, "digits has ranked answers without digits@reference"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_predictions_that_are_not_the_records_are_refused(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    folder = make_folder(tmp_path)
    with pytest.raises(UserError, match=complaint):
        folder.append(*ranked(changes))
    record, correct, arrays = ranked()
    del arrays["sts@reference"]
    with pytest.raises(UserError, match="its record asks for"):
        folder.append(record, correct, arrays)
    assert keys(folder) == []


# -- further scores of classes


def generated(changes: dict[str, Any] | None = None, **scores: Any) -> tuple[Record, Correct, dict[str, Any]]:
    """Eight answers to a task of three classes, one of which is none of the task's."""
    arrays: dict[str, Any] = {
        "digits@reference": np.array([0, 0, 0, 0, 1, 1, 2, 2]),
        "digits@prediction": np.array([0, 0, 0, 1, 1, -1, 0, 0]),
        "digits@ranked": np.array([0, 0, 0, 0, 1, 1, 0, 0]),
        "digits@ranked_norm": np.array([0, 0, 0, 0, 1, 1, 0, 2]),
        **(changes or {}),
    }
    kept = {name: array for name, array in arrays.items() if array is not None}
    found = {"ranked": 6 / 8, "ranked_norm": 7 / 8, "invalid": 1 / 8, "balanced": 1.25 / 3, "majority": 0.5}
    task = TaskResult(value=0.5, samples=8, **{**found, **scores})
    right = {"digits": np.array([1, 1, 1, 0, 1, 0, 0, 0], bool)}
    return make_record(right, "a", tasks={"digits": task}, average_ranked=task.ranked), right, kept


def test_further_scores_are_those_of_the_samples(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    folder.append(*generated())
    found = RunFolder.open(tmp_path).samples(make_key("a")).ranked
    assert {task: array.tolist() for task, array in found.items()} == {"digits": [True] * 6 + [False] * 2}


def test_classes_that_are_not_generated_have_no_ranked_score(tmp_path: Path) -> None:
    none = dict.fromkeys(("ranked", "ranked_norm", "invalid"))
    record, right, arrays = generated({"digits@ranked": None, "digits@ranked_norm": None}, **none)
    folder = make_folder(tmp_path)
    folder.append(record, right, arrays)
    assert folder.samples(record.key).ranked == {}


@pytest.mark.parametrize(
    ("changes", "scores", "complaint"),
    [
        ({}, {"ranked": 0.5}, "digits has ranked 0.75, its record 0.5"),
        ({}, {"ranked_norm": None}, "digits has ranked_norm 0.875, its record None"),
        ({}, {"invalid": 0.0}, "digits has invalid 0.125, its record 0.0"),
        ({}, {"balanced": 0.5}, "digits has balanced 0.41666"),
        ({}, {"majority": 0.25}, "digits has majority 0.5, its record 0.25"),
        ({"digits@ranked": None}, {}, r"has ranked answers and lacks \['@ranked'\]"),
        ({"digits@prediction": None}, {}, r"has ranked answers and lacks \['@prediction'\]"),
        ({"digits@prediction": np.zeros(8, int)}, {}, "digits is not where digits@prediction is digits@ref"),
        ({"digits@reference": None}, {}, "digits has ranked answers without digits@reference"),
    ],
    ids=str,
)
def test_further_scores_that_are_not_the_samples_are_refused(
    tmp_path: Path, changes: dict[str, Any], scores: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        make_folder(tmp_path).append(*generated(changes, **scores))


# -- correctness


@pytest.mark.parametrize(
    ("correct", "complaint"),
    [
        ({"digits": np.ones(200, bool)}, "holds tasks"),
        ({**make_correct(), "shapes": np.ones(7, bool)}, "shapes has shape"),
        ({**make_correct(), "shapes": np.zeros(200, bool)}, "shapes has accuracy 0.0, its record 0.6"),
        ({**make_correct(), "shapes": np.full(200, 2)}, "other than 0 and 1"),
    ],
    ids=["tasks", "length", "accuracy", "values"],
)
def test_correctness_that_is_not_the_records_is_refused(
    tmp_path: Path, correct: Correct, complaint: str
) -> None:
    folder = make_folder(tmp_path)
    with pytest.raises(UserError, match=complaint):
        folder.append(make_record(make_correct(), "a"), correct)
    assert keys(folder) == []

    folder.append(*make_cell("a"))
    np.savez_compressed(tmp_path / "samples" / f"{make_key('a')}.npz", allow_pickle=False, **correct)
    with pytest.raises(UserError, match=complaint):
        folder.samples(make_key("a"))


def _pickled() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, archive.open("digits.npy", "w") as entry:
        np.lib.format.write_array(entry, np.array([{}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def _truncated() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, digits=np.zeros(1000, np.uint8))
    return buffer.getvalue()[:-30]


@pytest.mark.parametrize(
    "content",
    [_pickled(), pickle.dumps([1]), _truncated(), b"", b"\x93NUMPY"],
    ids=["pickle inside", "pickle", "truncated", "empty", "npy"],
)
def test_a_file_of_samples_that_is_damaged_or_pickled_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = make_folder(tmp_path, make_cell("a"))
    (tmp_path / "samples" / f"{make_key('a')}.npz").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as per-sample correctness") as caught:
        folder.samples(make_key("a"))
    assert "\n" not in str(caught.value)


def test_samples_that_are_missing_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, make_cell("a"))
    (tmp_path / "samples" / f"{make_key('a')}.npz").unlink()
    with pytest.raises(UserError, match="No such file"):
        folder.samples(make_key("a"))
