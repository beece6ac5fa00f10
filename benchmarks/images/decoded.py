"""Decoded images on disk: cropped and resized once, as uint8, and read by every later evaluation.

A set is a folder of the cache, named by the hash of all that its pixels depend on. ``images.u8`` holds the
samples one after the other; ``chunks.jsonl`` gains a line with a checksum for every finished chunk, so a set
that was interrupted goes on where it stopped, and damage is found on reading.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from benchmarks.images.preprocess import Preprocess
from epmq.errors import UserError
from results.store.files import locked

CHUNK = 256  # samples
SINGLE = 4 * CHUNK  # up to so many samples, starting workers would take longer than decoding
_READABLE_ERRORS = (OSError, SyntaxError, ValueError, AttributeError)  # what Pillow raises, and None


class Images:
    """Samples ``(n, 3, h, w)`` uint8 and labels ``(n,)`` int64, read from disk chunk by chunk."""

    def __init__(self, folder: Path, labels: NDArray[np.int64], shape: tuple[int, ...]) -> None:
        self.folder, self.labels, self._shape = folder, labels, shape
        self._checksums = [json.loads(line) for line in (folder / "chunks.jsonl").read_text().splitlines()]
        self._checked: set[int] = set()

    def __len__(self) -> int:
        return len(self.labels)

    def chunks(self) -> Iterator[Tensor]:
        """All samples in order, up to ``CHUNK`` at a time; each chunk is checked when it is first read.

        Raises:
            UserError: the pixels are not those that were written.
        """
        size = int(np.prod(self._shape))
        with (self.folder / "images.u8").open("rb") as file:
            for number, checksum in enumerate(self._checksums):
                count = min(CHUNK, len(self) - number * CHUNK)
                data = bytearray(file.read(count * size))
                whole = number in self._checked or zlib.crc32(data) == checksum
                if len(data) != count * size or not whole:
                    raise UserError(
                        f"{self.folder}: decoded images are damaged (chunk {number}); delete the folder and "
                        "run the command again"
                    )
                self._checked.add(number)
                yield torch.frombuffer(data, dtype=torch.uint8).view(count, *self._shape)

    def all(self) -> Tensor:
        """Every sample, ``(n, 3, h, w)`` uint8."""
        return torch.cat(list(self.chunks()))


def decoded(
    data: Dataset,
    columns: tuple[str, str],
    preprocess: Preprocess,
    root: Path,
    *,
    identity: Mapping[str, Any],
    what: str,
    workers: int = 0,
) -> Images:
    """The decoded samples of ``data``, from the cache or made now, with a bar.

    Args:
        columns: names of the image and the label column.
        root: the cache's folder of images.
        identity: what the pixels depend on besides the preprocessing: data set, revision, split, rows.
        what: the set in words, for the bar and for errors.
        workers: processes that decode; 0 decodes in this one.

    Raises:
        UserError: a sample is not an image.
        TypeError: ``identity`` or the preprocessing's description holds what is no JSON, so has no key.
    """
    labels = np.array([int(label) for label in data[columns[1]][:]], dtype=np.int64)
    described = json.dumps({**identity, "preprocess": preprocess.description}, sort_keys=True)
    folder = root / hashlib.sha256(described.encode()).hexdigest()[:24]
    folder.mkdir(exist_ok=True)
    shape = preprocess.geometry(_image(data, columns[0], 0, what)).shape
    with locked(folder / "lock", "ab+"):  # two runs do not write the same set at once
        _decode_missing(data, columns[0], preprocess, folder, shape, what, workers)
    return Images(folder, labels, shape)


def _image(data: Dataset, column: str, index: int, what: str) -> Any:
    try:
        return data[index][column]
    except _READABLE_ERRORS as error:
        raise _not_an_image(what, index, error) from error


def _not_an_image(what: str, index: int, error: object) -> UserError:
    return UserError(f"data set {what}: sample {index} is not an image: {error}; get the data again")


class _Rows(torch.utils.data.Dataset[Any]):
    """Samples as uint8 arrays, or the reason why one is not an image (errors do not cross processes well)."""

    def __init__(self, data: Dataset, column: str, preprocess: Preprocess, start: int) -> None:
        self.data, self.column, self.geometry, self.start = data, column, preprocess.geometry, start

    def __len__(self) -> int:
        return len(self.data) - self.start

    def __getitem__(self, index: int) -> NDArray[np.uint8] | str:
        try:
            return self.geometry(self.data[self.start + index][self.column])
        except _READABLE_ERRORS as error:
            return f"{error}"


def _as_list(batch: list[Any]) -> list[Any]:
    return batch


def _decode_missing(
    data: Dataset,
    column: str,
    preprocess: Preprocess,
    folder: Path,
    shape: tuple[int, ...],
    what: str,
    workers: int,
) -> None:
    done = _finished_chunks(folder)
    if done * CHUNK >= len(data):
        return
    rows = _Rows(data, column, preprocess, done * CHUNK)
    loader = DataLoader(
        rows, CHUNK, collate_fn=_as_list, num_workers=workers if len(rows) > SINGLE else 0, shuffle=False
    )
    size = int(np.prod(shape))
    bar = tqdm(
        total=len(data), initial=done * CHUNK, desc=f"decoding {what}", unit="img", leave=False, delay=1
    )
    with (folder / "images.u8").open("ab") as pixels, (folder / "chunks.jsonl").open("a") as checksums, bar:
        pixels.truncate(done * CHUNK * size)  # what a kill left of an unfinished chunk
        for number, batch in enumerate(loader, start=done):
            for offset, sample in enumerate(batch):
                if isinstance(sample, str):
                    raise _not_an_image(what, number * CHUNK + offset, sample)
            chunk = np.stack(batch).tobytes()
            _write(pixels, chunk)
            _write(checksums, f"{zlib.crc32(chunk)}\n")
            bar.update(len(batch))


def _finished_chunks(folder: Path) -> int:
    """Chunks whose line is whole; a line that a kill cut short is removed."""
    file = folder / "chunks.jsonl"
    text = file.read_text() if file.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole)
    return whole.count("\n")


def _write(file: Any, data: Any) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
