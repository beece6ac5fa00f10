"""How the hub keeps data sets of images: parquet files with a card, tar archives, folders of files."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, DatasetInfo, Features, SplitDict, SplitInfo, Value
from datasets import Image as ImageFeature
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from tests.hub.images import Picture


@dataclass(frozen=True)
class Sample:
    """An image file and its label; -1 is no label."""

    picture: Picture
    label: int


@dataclass(frozen=True)
class Content:
    """Samples by split and what names them: the configuration and, in the order of labels, the classes."""

    splits: dict[str, list[Sample]]
    config: str
    class_names: list[str]
    shards: int = 1  # files of the training split


Row = Callable[[str, Sample], dict[str, Any]]
Layout = Callable[[Path, Content], None]


def classes(content: Content) -> Any:
    """A label column with names as they are on the hub, which are not those that the prompts need."""
    return ClassLabel(names=["_".join(re.findall(r"\w+", name.upper())) for name in content.class_names])


def image(name: str, sample: Sample) -> dict[str, Any]:
    return {"bytes": sample.picture.data, "path": f"{name}.{sample.picture.suffix}"}


def labelled(name: str, sample: Sample) -> dict[str, Any]:
    return {"image": image(name, sample), "label": sample.label}


def parquet(home: Path, content: Content) -> None:
    """Columns image and label."""
    add_config(home, content, Features(image=ImageFeature(), label=classes(content)), labelled)


def booleans(home: Path, content: Content) -> None:
    """PatchCamelyon: labels are false and true."""

    def row(name: str, sample: Sample) -> dict[str, Any]:
        return {"image": image(name, sample), "label": sample.label == 1}

    add_config(home, content, Features(image=ImageFeature(), label=Value("bool")), row)


def pets(home: Path, content: Content) -> None:
    """Oxford-IIIT Pet: two columns beside image and label."""
    more = {"image_id": Value("string"), "label_cat_dog": ClassLabel(names=["cat", "dog"])}

    def row(name: str, sample: Sample) -> dict[str, Any]:
        return {**labelled(name, sample), "image_id": name, "label_cat_dog": sample.label % 2}

    add_config(home, content, Features(image=ImageFeature(), label=classes(content), **more), row)


def house_numbers(home: Path, content: Content) -> None:
    """SVHN: beside cropped_digits stands full_numbers, which has no label column."""
    parquet(home, content)
    digits = [{"bbox": [Value("int32")], "label": classes(content)}]

    def row(name: str, sample: Sample) -> dict[str, Any]:
        return {"image": image(name, sample), "digits": [{"bbox": [0, 0, 9, 9], "label": sample.label}]}

    whole = Content({split: drawn[:8] for split, drawn in content.splits.items()}, "full_numbers", [])
    add_config(home, whole, Features(image=ImageFeature(), digits=digits), row)


def unlabelled(home: Path, content: Content) -> None:
    """STL10: the split unlabeled has label -1."""
    bare = [Sample(sample.picture, -1) for sample in content.splits["unlabeled"]]
    parquet(home, Content({**content.splits, "unlabeled": bare}, content.config, content.class_names))


def web_dataset(home: Path, content: Content) -> None:
    """FER2013: tar archives of KEY.jpg and KEY.cls; no card, and names of classes in a text file."""
    for split, drawn in content.splits.items():
        file = home / split / "0.tar"
        file.parent.mkdir(parents=True)
        with tarfile.open(file, "w") as tar:
            for i, sample in enumerate(drawn):
                add_member(tar, f"s{i:07}.cls", str(sample.label).encode())
                add_member(tar, f"s{i:07}.{sample.picture.suffix}", sample.picture.data)
    (home / "classnames.txt").write_text("\n".join(content.class_names) + "\n", encoding="utf-8")


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def image_folder(home: Path, content: Content) -> None:
    """Rendered SST-2: files SPLIT/CLASS/NAME, from which ``datasets`` makes the labels."""
    for split, drawn in content.splits.items():
        for i, sample in enumerate(drawn):
            file = home / split / content.class_names[sample.label] / f"{i}.{sample.picture.suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(sample.picture.data)
    (home / "README.md").write_text("---\npretty_name: Rendered SST-2\n---\n", encoding="utf-8")


def add_config(home: Path, content: Content, features: Features, row: Row) -> None:
    """A configuration's parquet files, and its description in the card."""
    tables = {
        split: [row(f"{split}_{i}", sample) for i, sample in enumerate(drawn)]
        for split, drawn in content.splits.items()
    }
    add_tables(home, content.config, features, tables, content.shards)


def add_tables(
    home: Path, config: str, features: Features, tables: dict[str, list[dict[str, Any]]], shards: int = 1
) -> None:
    """A configuration's splits as parquet files, that of training in ``shards``, and the card's entry."""
    folder = "data" if config == "default" else config
    (home / folder).mkdir(parents=True, exist_ok=True)
    info = DatasetInfo(features=features, splits=SplitDict())
    for split, rows in tables.items():
        parts, size = (shards if split == "train" else 1), 0
        for part in range(parts):
            chosen = rows[part * len(rows) // parts : (part + 1) * len(rows) // parts]
            table = pa.Table.from_pylist(chosen, schema=features.arrow_schema)
            pq.write_table(table, home / folder / f"{split}-{part:05}-of-{parts:05}.parquet")
            size += table.nbytes
        info.splits.add(SplitInfo(split, size, len(rows)))
    files = [{"split": split, "path": f"{folder}/{split}-*"} for split in tables]
    file = home / "README.md"
    card = DatasetCard.load(file).data if file.exists() else DatasetCardData()
    DatasetInfosDict({config: info}).to_dataset_card_data(card)
    MetadataConfigs({config: {"data_files": files}}).to_dataset_card_data(card)
    file.write_text(f"---\n{card.to_yaml()}\n---\n", encoding="utf-8")
