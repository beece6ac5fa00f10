"""Oddities of the public checkpoints and data sets that must stay: "fixing" any of them changes the numbers.

Every value was read from github.com/tanganke/fusion_bench at commit 54c9e8c9 (class names, templates and data
sets as its configuration files and ``tasks/clip_classification`` have them); counts are those for which every
published accuracy is a whole number of samples.
"""

from __future__ import annotations

import hashlib
import json

import pytest

from benchmarks.suites import load as suites
from benchmarks.suites.forms import ImageTask

# classes, templates, test samples, data set, SHA-256 of names and templates (first 12 digits)
FACTS = {
    "sun397": (397, 2, 19850, "tanganke/sun397", "5f75049a5540"),
    "stanford-cars": (196, 8, 8041, "tanganke/stanford_cars", "fcfa48260410"),
    "resisc45": (45, 18, 6300, "tanganke/resisc45", "8c2867c4ff85"),
    "eurosat": (10, 3, 2700, "tanganke/eurosat", "83b8f8db7e04"),
    "svhn": (10, 1, 26032, "ufldl-stanford/svhn", "9ae9b789f3b7"),
    "gtsrb": (43, 3, 12630, "tanganke/gtsrb", "2370c479c88f"),
    "mnist": (10, 1, 10000, "ylecun/mnist", "9ae9b789f3b7"),
    "dtd": (47, 8, 1880, "tanganke/dtd", "67a22e0cff59"),
    "oxford_flowers102": (102, 1, 6149, "dpdl-benchmark/oxford_flowers102", "9265f964b234"),
    "pcam": (2, 1, 32768, "1aurent/PatchCamelyon", "e06b9cf1b1f9"),
    "fer2013": (7, 6, 7178, "clip-benchmark/wds_fer2013", "8038f640b5a9"),
    "oxford-iiit-pet": (37, 1, 3669, "timm/oxford-iiit-pet", "b3fe344db89d"),
    "stl10": (10, 2, 8000, "tanganke/stl10", "63d6f6cf7abd"),
    "cifar100": (100, 18, 10000, "tanganke/cifar100", "405510756aa0"),
    "cifar10": (10, 18, 10000, "tanganke/cifar10", "ea2d1ef77c42"),
    "food101": (101, 1, 25250, "ethz/food101", "b7459e4ce5eb"),
    "fashion_mnist": (10, 2, 10000, "zalando-datasets/fashion_mnist", "acc6a064718a"),
    "emnist_letters": (26, 1, 20800, "tanganke/emnist_letters", "07667c1c724f"),
    "kmnist": (10, 1, 10000, "tanganke/kmnist", "3337ee7a09a5"),
    "rendered-sst2": (2, 1, 1821, "nateraw/rendered-sst2", "a4c8802fd9ca"),
}
ODD_NAMES = {
    "cifar100": ["cra", "aquarium_fish", "sweet_pepper", "plain", "sea"],
    "fashion_mnist": ["T - shirt / top"],
    "oxford-iiit-pet": ["american_pit_bull_terrier", "german_shorthaired"],
    "kmnist": ["お", "を"],
    "gtsrb": ["end / de-restriction of 80 kph speed limit"],
    "eurosat": ["brushland or shrubland", "residential buildings or homes or apartments"],
    "oxford_flowers102": ["colt's foot"],
    "stanford-cars": ["Acura Integra Type R 2001", "smart fortwo Convertible 2012"],
}
ODD_TEMPLATES = {
    "pcam": ["this is a photo of {c}"],
    "emnist_letters": ['a photo of the digit character: "{c}".'],
    "svhn": ['a photo of the number: "{c}".'],
    "mnist": ['a photo of the number: "{c}".'],
    "stanford-cars": ["i love my {c}!"],
}


@pytest.fixture(scope="module")
def tasks() -> dict[str, ImageTask]:
    return {task.task: task for task in suites.load_clip("clip-vit-l14-20").tasks}


@pytest.mark.parametrize("name", FACTS)
def test_names_templates_counts_and_data_sets_are_the_published_ones(
    tasks: dict[str, ImageTask], name: str
) -> None:
    """Pitfalls 10 and 14: names and templates verbatim, the sizes of the splits that were evaluated."""
    task = tasks[name]
    words = json.dumps([task.class_names, task.templates], ensure_ascii=False).encode()
    found = (len(task.class_names), len(task.templates), task.dataset.eval_size, task.dataset.path)
    assert (*found, hashlib.sha256(words).hexdigest()[:12]) == FACTS[name]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_class_names_stay(tasks: dict[str, ImageTask], name: str) -> None:
    """Pitfall 10."""
    assert set(ODD_NAMES[name]) <= set(tasks[name].class_names)


@pytest.mark.parametrize("name", ODD_TEMPLATES)
def test_odd_templates_stay(tasks: dict[str, ImageTask], name: str) -> None:
    """Pitfall 10."""
    assert set(ODD_TEMPLATES[name]) <= set(tasks[name].templates)


def test_emotions_are_in_the_order_of_the_copy_that_is_used(tasks: dict[str, ImageTask]) -> None:
    """Kaggle's order, with surprise before sadness and neutral last, would swap classes."""
    order = ["angry", "disgusted", "fearful", "happy", "neutral", "sad", "surprised"]
    assert tasks["fer2013"].class_names == order


def test_emnist_letters_are_taken_as_they_are_stored(tasks: dict[str, ImageTask]) -> None:
    """Pitfall 8: labels 0 to 25 without a shift; a task has no field that could turn its images."""
    task = tasks["emnist_letters"]
    assert task.class_names == [chr(ord("A") + i) for i in range(26)]
    assert any("transposed" in note for note in task.notes)
    assert not [field for field in type(task.dataset).model_fields if "orient" in field or "trans" in field]


@pytest.mark.parametrize(
    ("name", "config", "evaluated", "columns"),
    [
        ("svhn", "cropped_digits", "test", ("image", "label")),
        ("fer2013", None, "test", ("jpg", "cls")),
        ("food101", None, "validation", ("image", "label")),
        ("cifar10", None, "test", ("image", "label")),
        ("cifar100", None, "test", ("image", "label")),
        ("pcam", None, "test", ("image", "label")),
        ("emnist_letters", None, "test", ("image", "label")),
        ("fashion_mnist", None, "test", ("image", "label")),
    ],
)
def test_configurations_splits_and_columns(
    tasks: dict[str, ImageTask], name: str, config: str | None, evaluated: str, columns: tuple[str, str]
) -> None:
    """Pitfall 9."""
    spec = tasks[name].dataset
    assert (spec.config, spec.train_split, spec.eval_split) == (config, "train", evaluated)
    assert (spec.image_column, spec.label_column) == columns


def test_pcam_names_are_in_the_order_of_false_and_true(tasks: dict[str, ImageTask]) -> None:
    """Pitfall 9: labels are booleans."""
    assert tasks["pcam"].class_names == ["lymph node", "lymph node containing metastatic tumor tissue"]


def test_hyphens_and_underscores_are_spelled_as_published(tasks: dict[str, ImageTask]) -> None:
    """Pitfall 11."""
    hyphens = {name for name in tasks if "-" in name}
    underscores = {name for name in tasks if "_" in name}
    assert hyphens == {"stanford-cars", "oxford-iiit-pet", "rendered-sst2"}
    assert underscores == {"oxford_flowers102", "fashion_mnist", "emnist_letters"}
    assert tasks["stanford-cars"].expert == "tanganke/clip-vit-large-patch14_stanford-cars"
    assert tasks["stanford-cars"].dataset.path == "tanganke/stanford_cars"


@pytest.mark.parametrize("name", [n for n in suites.names() if n.startswith("clip-vit-")])
def test_no_suite_mixes_the_bases_of_two_sizes(name: str) -> None:
    """Pitfall 12: the published 20-task configuration names the ViT-B/32 base for ViT-L/14 experts."""
    suite = suites.load_clip(name)
    size, patch = ("base", 32) if "b32" in name else ("large", 14)
    assert suite.base == f"openai/clip-vit-{size}-patch{patch}"
    assert all(f"clip-vit-{size}-patch{patch}_" in task.expert for task in suite.tasks)


def test_data_sets_that_were_renamed_have_their_new_ids(tasks: dict[str, ImageTask]) -> None:
    """Pitfall 13: ids without an owner needed loading scripts, which ``datasets`` no longer runs."""
    assert all(suites.on_hub(task.dataset.path) for task in tasks.values())


def test_one_image_processor_is_chosen_and_numbers_depend_on_it(tasks: dict[str, ImageTask]) -> None:
    """Pitfall 6."""
    suite = suites.load_clip("clip-vit-b32-8")
    assert suite.image_processor == "slow"
    fast = suite.model_copy(update={"image_processor": "fast"})
    assert suites.fingerprint(fast) != suites.fingerprint(suite)


def test_nothing_is_tuned_on_what_is_evaluated(tasks: dict[str, ImageTask]) -> None:
    """Pitfall 16: calibration reads the train split, never the one that gives the accuracy."""
    assert all(task.dataset.train_split != task.dataset.eval_split for task in tasks.values())


def test_sizes_that_no_source_states_are_left_to_the_lock(tasks: dict[str, ImageTask]) -> None:
    known = {name: t.dataset.train_size for name, t in tasks.items() if t.dataset.train_size is not None}
    assert known == {"oxford_flowers102": 1020, "pcam": 262144}
