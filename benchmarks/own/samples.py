"""Calibration samples of one task: a folder of images, a text file, a data set. No label is read.

What is drawn is looked at once, so that an image that cannot be decoded is found before any work.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
from datasets import Dataset, load_dataset, load_dataset_builder
from PIL import Image

from benchmarks.own.models import Place
from benchmarks.sources import data, hub, resolve
from benchmarks.sources.lock import FORMATS
from epmq.errors import UserError

Kind = Literal["clip", "text"]
TEXTS = frozenset({".txt", ".jsonl"})
COLUMN = {"clip": "image", "text": "text"}  # what samples are called from here on
USUAL = {"clip": ("image", "img"), "text": ("text", "prompt")}  # preferred where a set has several columns
NEEDS = {"clip": "images, for the base is a CLIP model", "text": "text, for the base is a language model"}
LABEL = "label"  # which what reads samples expects beside them; it is 0 and means nothing


@dataclass(frozen=True)
class Asked:
    """Where a task's samples are: a folder, a file or a hub id, and what to read of a data set there."""

    task: str
    where: str
    split: str = "train"
    column: str | None = None


@dataclass(frozen=True)
class Samples:
    """The samples of a task that were drawn.

    Attributes:
        rows: their column ``image`` or ``text``, and a ``label`` that is always 0.
        revision: the data set's commit on the hub, or ``local:`` and a SHA-256 over the samples.
        available: how many there were to draw from.
    """

    task: str
    where: str
    rows: Dataset
    revision: str
    available: int


def drawn(asked: Asked, kind: Kind, count: int, seed: int) -> Samples:
    """So many samples of a task, by a seeded draw.

    Raises:
        UserError: there are no such samples, too few, of another kind, or one cannot be read.
    """
    rows, commit = _opened(asked, kind)
    if not len(rows):
        raise UserError(f"samples of {asked.task!r}: {asked.where} holds none; give {NEEDS[kind]}")
    if len(rows) < count:
        raise UserError(
            f"samples of {asked.task!r}: {asked.where} holds {len(rows)}, {count} are asked for; give more, "
            f"or --count {len(rows)}"
        )
    chosen = rows.select(data.draw(asked.task, len(rows), count, seed))
    content = _digest(asked, chosen, kind)
    with data.quietly():
        labelled = chosen.add_column(LABEL, [0] * count)
    return Samples(asked.task, asked.where, labelled, commit or f"local:{content}", len(rows))


def _opened(asked: Asked, kind: Kind) -> tuple[Dataset, str | None]:
    """All samples, and the commit of a data set of the hub."""
    path = Path(asked.where)
    if path.is_dir():
        return _folder(asked, path, kind), None
    if path.is_file():
        return _file(asked, path, kind), None
    place = Place.of(asked.where, f"samples of {asked.task!r}")
    return _on_hub(asked, place, kind)


def _folder(asked: Asked, folder: Path, kind: Kind) -> Dataset:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    pictures = [str(file) for file in files if file.suffix.lower() in data.PICTURES]
    tables = [file for file in files if data.DATA_FILES & set(file.suffixes)]
    if pictures and not (kind == "text" and tables):
        if kind == "text":
            raise _wrong_kind(asked, "images", kind)
        return Dataset.from_dict({"image": pictures}).cast_column("image", datasets.Image())
    if not tables:
        raise UserError(
            f"samples of {asked.task!r}: {folder} holds neither images nor a data set (parquet, json, csv); "
            f"give {NEEDS[kind]}"
        )
    return _column(asked, _loaded(asked, {"path": str(folder)}), kind)


def _file(asked: Asked, file: Path, kind: Kind) -> Dataset:
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        found = _loaded(asked, {"path": "parquet", "data_files": {asked.split: str(file)}})
        return _column(asked, found, kind)
    if suffix not in TEXTS:
        raise UserError(
            f"samples of {asked.task!r}: {file} is none of .txt (a prompt a line), .jsonl, .parquet; give "
            "one, or a folder"
        )
    if kind == "clip":
        raise _wrong_kind(asked, "text", kind)
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as text ({error}); give UTF-8") from error
    read = _field(asked.column) if suffix == ".jsonl" else str
    texts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                texts.append(read(line))
            except ValueError as error:
                raise UserError(f"{file}, line {number}: {error}") from error
    return Dataset.from_dict({"text": texts}, datasets.Features(text=datasets.Value("string")))


def _field(asked: str | None) -> Callable[[str], str]:
    """What reads the prompt of a line of JSON; it raises ValueError."""

    def read(line: str) -> str:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is no JSON ({error}); correct it") from error
        if isinstance(row, str):
            return row
        texts = {k: v for k, v in row.items() if isinstance(v, str)} if isinstance(row, dict) else {}
        return texts[_chosen(list(texts), asked, USUAL["text"])]

    return read


def _chosen(names: Sequence[str], asked: str | None, usual: Sequence[str]) -> str:
    """The column that is asked for, the only one, or the first of the usual ones; raises ValueError."""
    if asked is not None:
        if asked not in names:
            there = ", ".join(names) or "none"
            raise ValueError(f"has no such column {asked!r}, only {there}; correct --column")
        return asked
    if len(names) == 1:
        return names[0]
    if found := [name for name in usual if name in names]:
        return found[0]
    if not names:
        raise ValueError("has no text; give an object with one, or a text in quotation marks")
    raise ValueError(f"has several columns to choose from ({', '.join(names)}); give --column")


def _loaded(asked: Asked, arguments: dict[str, Any]) -> Dataset:
    where = f"samples of {asked.task!r} ({asked.where}, {asked.split})"
    try:
        builder = load_dataset_builder(**arguments).name
        if builder not in FORMATS:
            known = ", ".join(FORMATS)
            raise UserError(f"{where} are read by {builder!r}, expected one of {known}; convert them")
        with data.quietly():
            return load_dataset(**arguments, split=asked.split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = ": ".join(str(part).rstrip(".") for part in (error, error.__cause__) if part)
        raise UserError(f"{where} cannot be loaded: {reason}; check the path and --split") from error


def _on_hub(asked: Asked, place: Place, kind: Kind) -> tuple[Dataset, str]:
    found = resolve.split_files(place.repo, None, place.revision, [asked.split])
    folder = hub.fetch(found.repo, "dataset")
    files = [str(folder / name) for name in found.splits[asked.split]]
    features = datasets.Features.from_dict(found.features) if found.features else None
    arguments = {"path": found.format, "data_files": {asked.split: files}, "features": features}
    return _column(asked, _loaded(asked, arguments), kind), found.repo.revision


def _column(asked: Asked, rows: Dataset, kind: Kind) -> Dataset:
    """The one column of samples under the name that it has from here on."""
    images = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    texts = [n for n, f in rows.features.items() if getattr(f, "dtype", None) in ("string", "large_string")]
    mine, others = (images, texts) if kind == "clip" else (texts, images)
    if not mine and others:
        raise _wrong_kind(asked, "text" if kind == "clip" else "images", kind)
    if not mine:
        raise _wrong_kind(asked, f"columns {', '.join(rows.features)}", kind)
    try:
        name = _chosen(mine, asked.column, USUAL[kind])
    except ValueError as error:
        raise UserError(f"samples of {asked.task!r}: {asked.where} {error}") from error
    return rows.select_columns([name]).rename_columns({name: COLUMN[kind]} if name != COLUMN[kind] else {})


def _wrong_kind(asked: Asked, found: str, kind: Kind) -> UserError:
    return UserError(f"samples of {asked.task!r}: {asked.where} holds {found}; give {NEEDS[kind]}")


def _digest(asked: Asked, rows: Dataset, kind: Kind) -> str:
    """SHA-256 over the samples, each of which is looked at."""
    digest = hashlib.sha256()
    if kind == "text":
        for text in rows["text"][:]:
            if not text.strip():
                raise UserError(f"samples of {asked.task!r}: {asked.where} has an empty text; leave it out")
            digest.update(f"{len(text)}:{text}".encode())
        return digest.hexdigest()
    for number, sample in enumerate(rows.cast_column("image", datasets.Image(decode=False))["image"][:]):
        where = sample["path"] or f"{asked.where}, sample {number}"
        try:
            content = sample["bytes"] or Path(sample["path"]).read_bytes()
            with Image.open(io.BytesIO(content)) as image:
                image.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(
                f"samples of {asked.task!r}: {where} is not an image ({error}); remove it or get it again"
            ) from error
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
