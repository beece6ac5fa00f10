"""Decoded images on disk: cropped and resized once, as uint8, and read by every later evaluation.

A set is a folder of the cache, named by the hash of all that its pixels depend on. ``images.u8`` holds the
samples one after the other; ``chunks.sha256`` gains a line with the hash of every finished chunk, so a set
that was interrupted goes on where it stopped, and what is damaged is found on reading and decoded again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from benchmarks.images.preprocess import Preprocess
from benchmarks.sources import cache
from epmq.errors import UserError
from results.store.files import locked, write_atomically

CHUNK = 256  # samples
PIXELS, HASHES = "images.u8", "chunks.sha256"
_LINE = re.compile(rb"[0-9a-f]{64}")
SINGLE = 4 * CHUNK  # up to so many samples, starting workers would take longer than decoding
_READABLE_ERRORS = (OSError, SyntaxError, ValueError, AttributeError)  # what Pillow raises, and None


class Images:
    """Samples ``(n, 3, h, w)`` uint8 and labels ``(n,)`` int64, read from disk chunk by chunk.

    ``decode`` gives a chunk's samples anew, ``(count, 3, h, w)``.
    """

    def __init__(
        self,
        folder: Path,
        labels: NDArray[np.int64],
        shape: tuple[int, ...],
        decode: Callable[[int], NDArray[np.uint8]],
    ) -> None:
        self.folder, self.labels, self._shape, self._decode = folder, labels, shape, decode
        self._hashes = (folder / HASHES).read_text("ascii").split()
        self._checked: set[int] = set()

    def __len__(self) -> int:
        return len(self.labels)

    def chunks(self) -> Iterator[Tensor]:
        """All samples in order, up to ``CHUNK`` at a time; each chunk is checked when it is first read.

        Pixels that are not those that were written are decoded again, and written where they belong.

        Raises:
            UserError: the cache cannot be read or written.
        """
        size = int(np.prod(self._shape))
        for number, expected in enumerate(self._hashes):
            count = min(CHUNK, len(self) - number * CHUNK)
            with cache.errors(self.folder):
                data = self._read(number * CHUNK * size, count * size)
                whole = number in self._checked or hashlib.sha256(data).hexdigest() == expected
                if len(data) != count * size or not whole:
                    data = self._again(number, number * CHUNK * size)
            self._checked.add(number)
            yield torch.frombuffer(data, dtype=torch.uint8).view(count, *self._shape)

    def all(self) -> Tensor:
        """Every sample, ``(n, 3, h, w)`` uint8."""
        return torch.cat(list(self.chunks()))

    def _read(self, start: int, size: int) -> bytearray:
        with _opened(self.folder / PIXELS) as file:
            file.seek(start)
            return bytearray(file.read(size))

    def _again(self, number: int, start: int) -> bytearray:
        data = self._decode(number).tobytes()
        with locked(self.folder / "lock", "ab+"), _opened(self.folder / PIXELS) as file:
            file.seek(start)
            _write(file, data)
            self._hashes[number] = hashlib.sha256(data).hexdigest()
            write_atomically(self.folder / HASHES, "".join(f"{x}\n" for x in self._hashes).encode())
        return bytearray(data)


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
        UserError: a sample is not an image, or the cache cannot be written.
        TypeError: ``identity`` or the preprocessing's description holds what is no JSON, so has no key.
    """
    labels = np.array([int(label) for label in data[columns[1]][:]], dtype=np.int64)
    described = json.dumps({**identity, "preprocess": preprocess.description}, sort_keys=True)
    folder = root / hashlib.sha256(described.encode()).hexdigest()[:24]
    shape = preprocess.geometry(_image(data, columns[0], 0, what)).shape

    def decode(number: int) -> NDArray[np.uint8]:
        start, rows = number * CHUNK, _Rows(data, columns[0], preprocess, number * CHUNK)
        return np.stack(_samples([rows[i] for i in range(min(CHUNK, len(rows)))], what, start))

    with cache.errors(folder):
        if folder.is_symlink():
            folder.unlink()
        folder.mkdir(exist_ok=True)
        with locked(folder / "lock", "ab+"):  # two runs do not write the same set at once
            _decode_missing(data, columns[0], preprocess, folder, shape, what, workers)
        return Images(folder, labels, shape, decode)


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
    size = int(np.prod(shape))
    done = _finished_chunks(folder, -(-len(data) // CHUNK), CHUNK * size)
    if done * CHUNK >= len(data):
        return
    rows = _Rows(data, column, preprocess, done * CHUNK)
    workers = workers if len(rows) > SINGLE else 0
    own = torch.Generator()  # the global one would be drawn from, for nothing
    loader = DataLoader(rows, CHUNK, collate_fn=_as_list, num_workers=workers, shuffle=False, generator=own)
    bar = tqdm(
        total=len(data), initial=done * CHUNK, desc=f"decoding {what}", unit="img", leave=False, delay=1
    )
    with _opened(folder / PIXELS) as pixels, _opened(folder / HASHES) as hashes, bar:
        pixels.truncate(done * CHUNK * size)  # what a kill left of an unfinished chunk
        pixels.seek(0, os.SEEK_END)
        hashes.seek(0, os.SEEK_END)
        for number, batch in enumerate(loader, start=done):
            chunk = np.stack(_samples(batch, what, number * CHUNK)).tobytes()
            _write(pixels, chunk)
            _write(hashes, f"{hashlib.sha256(chunk).hexdigest()}\n".encode())
            bar.update(len(batch))


def _samples(batch: list[NDArray[np.uint8] | str], what: str, start: int) -> list[NDArray[np.uint8]]:
    """The samples of a batch that begins at ``start``; raises UserError where one is not an image."""
    found = []
    for offset, sample in enumerate(batch):
        if isinstance(sample, str):
            raise _not_an_image(what, start + offset, sample)
        found.append(sample)
    return found


def _finished_chunks(folder: Path, chunks: int, size: int) -> int:
    """Chunks whose line is a hash and whose pixels are there; lines after them, and links, are removed."""
    for name in (PIXELS, HASHES):
        if (folder / name).is_symlink() or ((folder / name).exists() and not (folder / name).is_file()):
            (folder / name).unlink()
    file, pixels = folder / HASHES, folder / PIXELS
    content = file.read_bytes() if file.exists() else b""
    lines = content.split(b"\n")[:-1]
    there = pixels.stat().st_size if pixels.exists() else 0
    done = 0
    while done < min(len(lines), chunks) and _LINE.fullmatch(lines[done]) and there > done * size:
        done += 1
    if content != (sound := b"".join(line + b"\n" for line in lines[:done])):
        write_atomically(file, sound)
    return done


def _opened(path: Path) -> BinaryIO:
    """A regular file to read and write, made if missing; an ``OSError`` for a link."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "r+b")


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
