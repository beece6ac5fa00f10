"""Per-sample correctness as a file: an npz archive with one uint8 array of 0 and 1 per task.

The archive is written entry by entry, because `numpy.savez` takes task names as keyword arguments and
so can't store a task called `file`. `numpy.load(path, allow_pickle=False)` reads it.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from results.errors import ResultError
from results.records import Record

Correct = dict[str, NDArray[np.bool_]]


def encode(correct: Mapping[str, NDArray[np.bool_]]) -> bytes:
    """Return the archive of boolean arrays (samples,), the same bytes for the same arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for task in sorted(correct):
            # an entry made from a name alone is dated 1980, not now
            with archive.open(f"{task}.npy", "w") as entry:
                np.lib.format.write_array(entry, correct[task].astype(np.uint8), allow_pickle=False)
    return buffer.getvalue()


def read(path: Path, record: Record) -> Correct:
    """Return the correctness of each task of `record` from the archive `path`, in data set order.

    Raises
    ------
    ResultError
        where the file is missing, damaged or holds a pickle, or does not agree with the record.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {name.removesuffix(".npy"): _entry(archive, name) for name in archive.namelist()}
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise ResultError(
            f"{path}: cannot be read as per-sample correctness ({reason}); run again"
        ) from error
    return checked(record, arrays, path)


def _entry(archive: zipfile.ZipFile, name: str) -> NDArray[np.generic]:
    with archive.open(name) as entry:
        array: NDArray[np.generic] = np.lib.format.read_array(entry, allow_pickle=False)
        return array


def checked(record: Record, correct: Mapping[str, ArrayLike], source: object) -> Correct:
    """Return `correct` as boolean arrays (samples,), after comparing it with `record`.

    Raises
    ------
    ResultError
        where tasks, sample counts or accuracies are not the record's; `source` is named in the message.
    """
    if set(correct) != set(record.tasks):
        raise ResultError(f"{source}: holds tasks {sorted(correct)}, its record {sorted(record.tasks)}")
    arrays = {}
    for task, expected in record.tasks.items():
        array = np.asarray(correct[task])
        if array.shape != (expected.samples,):
            raise ResultError(f"{source}: {task} has shape {array.shape}, expected ({expected.samples},)")
        if not np.isin(array, (0, 1)).all():
            raise ResultError(f"{source}: {task} holds values other than 0 and 1")
        arrays[task] = array.astype(np.bool_)
        accuracy = float(arrays[task].mean())
        if abs(accuracy - expected.value) > 1e-9:
            raise ResultError(f"{source}: {task} has accuracy {accuracy!r}, its record {expected.value!r}")
    return arrays
