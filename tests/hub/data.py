"""The CLIP suites' 20 data sets in miniature: made-up images under the hub's columns, splits and quirks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.suites.forms import ImageTask
from tests.hub import layouts
from tests.hub.images import ROTATED_EXIF, TRUNCATED_EXIF, Format, Mode, draw, encode, generator
from tests.hub.layouts import Content, Layout, Sample

TRAIN, EVAL, OTHER = 48, 40, 8  # samples of a training split, of one that suites evaluate, of any other
CLASSES = 16  # at most so many of a data set's classes have samples
PAIR = {"train": TRAIN, "test": EVAL}
NOISY = {
    **PAIR,
    **dict.fromkeys(["contrast", "gaussian_noise", "jpeg_compression", "motion_blur", "pixelate"], OTHER),
}
WEB: tuple[Mode, ...] = ("RGB", "RGB", "RGB", "L", "P", "RGB", "CMYK", "RGBA")  # as found on the web
PHOTOS = ((48, 40), (40, 56), (64, 48))


@dataclass(frozen=True)
class Made:
    """How a data set is stored.

    Attributes:
        splits: number of samples by split, in the hub's names.
        config: the configuration that suites read, whose files lie in a folder of that name unless default.
        modes: pixel modes of one sample after another; sizes (width, height) likewise.
        exif: metadata of the first training image.
        by_class: training samples are sorted by class.
        transposed: images are stored with rows as columns.
        shards: files of the training split.
    """

    splits: dict[str, int] = field(default_factory=lambda: PAIR)
    layout: Layout = layouts.parquet
    config: str = "default"
    modes: tuple[Mode, ...] = ("RGB",)
    sizes: tuple[tuple[int, int], ...] = ((40, 40),)
    form: Format = "PNG"
    exif: bytes = b""
    by_class: bool = False
    transposed: bool = False
    shards: int = 1


def _digits(config: str, *, transposed: bool = False) -> Made:
    return Made(config=config, modes=("L",), sizes=((28, 28),), transposed=transposed)


DATA: dict[str, Made] = {
    "sun397": Made(modes=WEB, sizes=PHOTOS, form="JPEG", exif=TRUNCATED_EXIF, by_class=True, shards=2),
    "stanford-cars": Made(NOISY, modes=("RGB", "RGB", "RGB", "L"), sizes=PHOTOS, form="JPEG"),
    "resisc45": Made(NOISY, sizes=((64, 64),), form="JPEG"),
    "eurosat": Made(NOISY, sizes=((64, 64),), form="JPEG"),
    "svhn": Made({**PAIR, "extra": OTHER}, layouts.house_numbers, "cropped_digits", sizes=((32, 32),)),
    "gtsrb": Made(NOISY, sizes=((30, 29), (53, 54))),
    "mnist": _digits("mnist"),
    "dtd": Made(sizes=PHOTOS, form="JPEG", by_class=True),
    "oxford_flowers102": Made({"train": TRAIN, "validation": OTHER, "test": EVAL}, sizes=PHOTOS, form="JPEG"),
    "pcam": Made({"train": TRAIN, "valid": OTHER, "test": EVAL}, layouts.booleans, sizes=((48, 48),)),
    "fer2013": Made(layout=layouts.web_dataset, modes=("L",), sizes=((48, 48),), form="JPEG"),
    "oxford-iiit-pet": Made(layout=layouts.pets, modes=WEB, sizes=PHOTOS, form="JPEG", exif=ROTATED_EXIF),
    "stl10": Made({**PAIR, "unlabeled": OTHER}, layouts.unlabelled, sizes=((48, 48),)),
    "cifar100": Made(sizes=((32, 32),)),
    "cifar10": Made(sizes=((32, 32),)),
    "food101": Made(
        {"train": TRAIN, "validation": EVAL}, modes=WEB[:6], sizes=PHOTOS, form="JPEG", by_class=True
    ),
    "fashion_mnist": _digits("fashion_mnist"),
    "emnist_letters": _digits("emnist-letters", transposed=True),
    "kmnist": _digits("kmnist"),
    "rendered-sst2": Made({"train": TRAIN, "validation": OTHER, "test": EVAL}, layouts.image_folder),
}


def samples(task: str, classes: int) -> dict[str, list[Sample]]:
    """Every split's samples, which follow from the task's name and number of classes."""
    return {split: [_sample(task, split, i, label) for i, label in enumerate(_labels(task, split, classes))]
            for split in DATA[task].splits}  # fmt: skip


def _labels(task: str, split: str, classes: int) -> list[int]:
    """Labels from 0 to classes - 1, both included: of all classes, or of some of many."""
    made = DATA[task]
    present = np.rint(np.linspace(0, classes - 1, min(CLASSES, classes))).astype(int)
    spread = [int(present[i % len(present)]) for i in range(made.splits[split])]
    if made.by_class and split == "train":
        return sorted(spread)
    return [spread[i] for i in generator(task, split).permutation(len(spread))]


def _sample(task: str, split: str, i: int, label: int) -> Sample:
    made = DATA[task]
    picture = draw(task, label, f"{split} {i}", made.sizes[i % len(made.sizes)])
    if made.transposed:
        picture = picture.transpose(Image.Transpose.TRANSPOSE)
    exif = made.exif if (split, i) == ("train", 0) else b""
    return Sample(encode(picture, made.modes[i % len(made.modes)], made.form, exif), label)


def write(home: Path, spec: ImageTask, drawn: dict[str, list[Sample]]) -> None:
    """The repository of a data set's samples, as it is on the hub."""
    made = DATA[spec.task]
    home.mkdir(parents=True)
    made.layout(home, Content(drawn, made.config, spec.class_names, made.shards))
