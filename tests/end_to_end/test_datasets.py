"""The real ``datasets`` against the replica: every data set has the schema and the quirks of its original."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from benchmarks.suites import load as suites
from tests.hub.client import ROOT, Client
from tests.hub.content import SUITE, build, shared
from tests.hub.data import DATA, EVAL, TRAIN, samples
from tests.hub.images import draw
from tests.hub.server import Hub
from tests.hub.suites import NAMES, write_suites

TASKS = {task.task: task for task in suites.load_clip(SUITE).tasks}
GRAY = {"mnist", "fashion_mnist", "kmnist", "emnist_letters", "fer2013"}
LOAD = """
import warnings
from datasets import disable_progress_bars, get_dataset_config_names, load_dataset
disable_progress_bars()
warnings.simplefilter("ignore")
splits = load_dataset(path, config, revision=revision)
data = splits[split]
labels = [int(label) for label in data[label_column]]
names = getattr(data.features[label_column], "names", None)
answer = {
    "rows": {name: rows.num_rows for name, rows in splits.items()},
    "columns": data.column_names,
    "label": str(data.features[label_column]) if names is None else names,
    "first": str(data[0][label_column]),
    "labels": labels,
    "train": [int(label) for label in splits["train"][label_column]],
    "modes": sorted({image.mode for rows in splits.values() for image in rows[image_column]}),
    "size": data[0][image_column].size,
    "configs": get_dataset_config_names(path, revision=revision),
}
"""
Loaded = dict[str, Any]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Loaded]]:
    """What ``load_dataset`` made of each task's data set, at its pinned commit."""
    content = build(shared(tmp_path_factory))
    with Hub(content) as hub, Client(hub.env(tmp_path_factory.mktemp("home"))) as client:
        found = {}
        for name, task in TASKS.items():
            spec = task.dataset
            found[name] = client.run(
                LOAD,
                path=spec.path,
                config=spec.config,
                revision=hub.head(f"datasets/{spec.path}"),
                split=spec.eval_split,
                image_column=spec.image_column,
                label_column=spec.label_column,
            )
        yield found


@pytest.mark.parametrize("task", TASKS)
def test_a_data_set_loads_with_its_splits_columns_and_classes(task: str, loaded: dict[str, Loaded]) -> None:
    spec, data, classes = TASKS[task].dataset, loaded[task], len(TASKS[task].class_names)
    assert data["rows"] == DATA[task].splits
    assert (data["rows"][spec.train_split], data["rows"][spec.eval_split]) == (TRAIN, EVAL)
    assert {spec.image_column, spec.label_column} <= set(data["columns"])
    assert {min(data["labels"]), max(data["labels"])} == {0, classes - 1}
    assert {min(data["train"]), max(data["train"])} == {0, classes - 1}
    if isinstance(data["label"], list):
        assert len(data["label"]) == classes
    assert (data["modes"] == ["L"]) == (task in GRAY)


def test_names_of_classes_on_the_hub_are_not_those_of_the_prompts(loaded: dict[str, Loaded]) -> None:
    for task in ("eurosat", "fashion_mnist", "oxford-iiit-pet", "cifar100"):
        assert loaded[task]["label"] != TASKS[task].class_names


def test_labels_have_the_original_types(loaded: dict[str, Loaded]) -> None:
    assert loaded["pcam"]["label"] == "Value('bool')"
    assert loaded["pcam"]["first"] in ("True", "False")
    assert loaded["fer2013"]["label"] == "Value('int64')"


def test_repositories_have_the_original_columns_splits_and_configurations(loaded: dict[str, Loaded]) -> None:
    assert set(loaded["fer2013"]["columns"]) == {"jpg", "cls", "__key__", "__url__"}
    assert loaded["oxford-iiit-pet"]["columns"] == ["image", "label", "image_id", "label_cat_dog"]
    assert loaded["svhn"]["configs"] == ["cropped_digits", "full_numbers"]
    assert loaded["emnist_letters"]["configs"] == ["emnist-letters"]
    assert set(loaded["pcam"]["rows"]) == {"train", "valid", "test"}
    assert set(loaded["food101"]["rows"]) == {"train", "validation"}
    assert "unlabeled" in loaded["stl10"]["rows"]
    assert "motion_blur" in loaded["stanford-cars"]["rows"]


def test_images_have_the_pixel_modes_of_the_web(loaded: dict[str, Loaded]) -> None:
    assert loaded["sun397"]["modes"] == ["CMYK", "L", "P", "RGB", "RGBA"]
    assert loaded["cifar10"]["modes"] == ["RGB"]


def test_some_training_splits_are_sorted_by_class(loaded: dict[str, Loaded]) -> None:
    assert loaded["dtd"]["train"] == sorted(loaded["dtd"]["train"])
    assert loaded["cifar10"]["train"] != sorted(loaded["cifar10"]["train"])


def test_the_content_is_built_once_and_is_small(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = shared(tmp_path_factory)
    home = build(folder)
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    assert build(folder) == home
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before
    assert sum(path.stat().st_size for path in before if path.is_file()) < 30_000_000


def test_rehearsal_suites_differ_from_the_bundled_in_counts_alone(tmp_path: Path) -> None:
    for name, file in zip(NAMES, write_suites(tmp_path), strict=True):
        made, bundled = suites.load_clip(str(file)), suites.load(name)
        assert (made.rehearsal, bundled.rehearsal) == (True, False)
        counts = {"train_size", "eval_size"}
        for mine, theirs in zip(made.tasks, bundled.tasks, strict=True):
            assert (mine.dataset.train_size, mine.dataset.eval_size) == (TRAIN, EVAL)
            assert mine.dataset.model_dump(exclude=counts) == theirs.dataset.model_dump(exclude=counts)
        changed: Any = {"rehearsal": True, "comparisons": True, "tasks": {"__all__": {"dataset": counts}}}
        assert made.model_dump(exclude=changed) == bundled.model_dump(exclude=changed)
        assert all(comparison.samples == [TRAIN] for comparison in made.comparisons.values())


def test_the_command_serves_until_it_is_stopped(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = shared(tmp_path_factory)
    build(folder)
    command = [sys.executable, "-m", "tests.hub", "--folder", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        content, files, settings = (served.stdout.readline().split(maxsplit=1)[1] for _ in range(3))
        endpoint = settings.split()[0].removeprefix("HF_ENDPOINT=")
        with urllib.request.urlopen(f"{endpoint}/api/datasets/ylecun/mnist") as answer:
            assert json.load(answer)["id"] == "ylecun/mnist"
        served.send_signal(signal.SIGINT)
        assert served.wait(20) == 0
    assert Path(content.strip()).is_dir()
    assert [suites.load_clip(file).rehearsal for file in files.split()] == [True, True]


def test_letters_are_stored_with_rows_as_columns() -> None:
    first = samples("emnist_letters", 26)["test"][0]
    upright = draw("emnist_letters", first.label, "test 0", (28, 28)).convert("L")
    stored = np.asarray(Image.open(io.BytesIO(first.picture.data)))
    assert (stored == np.asarray(upright).T).all()


def test_some_images_have_odd_metadata() -> None:
    warned, turned = (samples(task, 37)["train"][0].picture.data for task in ("sun397", "oxford-iiit-pet"))
    with pytest.warns(UserWarning, match="Corrupt EXIF data"):
        Image.open(io.BytesIO(warned)).load()
    assert Image.open(io.BytesIO(turned)).getexif()[ExifTags.Base.Orientation] == 6


def test_the_unlabelled_split_has_no_labels(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = build(shared(tmp_path_factory)) / "datasets" / TASKS["stl10"].dataset.path
    (file,) = home.glob("data/unlabeled-*")
    assert set(pq.read_table(file)["label"].to_pylist()) == {-1}
