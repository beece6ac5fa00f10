"""Per-sample outcomes as a file: an npz archive of arrays (samples,) in data set order.

A task of accuracy has the array ``TASK`` (uint8, 1 where the sample is right), and may have, as classes
(int32), ``TASK@prediction``, ``TASK@reference`` and, of generated answers, ``TASK@ranked`` and
``TASK@ranked_norm``: the class whose answer is the likeliest, plainly and by the answer's length. A predicted
class is -1 where the text is none of the task's answers. A task of Spearman's rho has ``TASK@prediction`` and
``TASK@reference`` (float64) instead.

The archive is written entry by entry, because ``numpy.savez`` takes names as keyword arguments and so cannot
store a task called ``file``. ``numpy.load(path, allow_pickle=False)`` reads it. Reading it here takes no more
memory than the record's sample counts ask for, whatever the archive declares.
"""

from __future__ import annotations

import io
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import ArrayLike, NDArray

from epmq.errors import UserError
from results.store.records import Record, TaskResult, agree

Arrays = dict[str, NDArray[np.generic]]
PREDICTION, REFERENCE, RANKED, RANKED_NORM = "@prediction", "@reference", "@ranked", "@ranked_norm"
KINDS = (PREDICTION, REFERENCE, RANKED, RANKED_NORM)
SCORES = ("ranked", "ranked_norm", "invalid", "balanced", "majority")  # of a task besides its value


class Samples(NamedTuple):
    """What a cell did on every test sample, arrays (samples,).

    ``correct``: by task of accuracy, which samples are right, boolean. ``predictions``: by
    ``TASK@prediction`` and the like as far as they are stored, float64 for Spearman's rho, int32 classes for
    accuracy.
    """

    correct: dict[str, NDArray[np.bool_]]
    predictions: Arrays

    @property
    def ranked(self) -> dict[str, NDArray[np.bool_]]:
        """By task where the right answer is the likeliest of the task's; tasks without a ranked score not."""
        tasks = [name.removesuffix(RANKED) for name in self.predictions if name.endswith(RANKED)]
        return {task: self.predictions[task + RANKED] == self.predictions[task + REFERENCE] for task in tasks}


_MAX_HEADER = 256  # bytes; numpy writes 118 before one row of numbers
_TOLERANCE = 1e-9
_UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def encode(arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    """The archive of the arrays (samples,), the same bytes for the same arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            array = arrays[name]
            stored = array.astype(np.uint8) if array.dtype == np.bool_ else array
            # an entry made from a name alone is dated 1980, not now
            with archive.open(f"{name}.npy", "w") as entry:
                npy.write_array(entry, stored, allow_pickle=False)
    return buffer.getvalue()


def largest(record: Record) -> int:
    """The size in bytes that no archive of the record exceeds, however badly it is compressed."""
    per_sample = 1 + 8 * len(KINDS)  # a boolean, and numbers of 64 bits
    return sum(per_sample * task.samples + 20_000 for task in record.tasks.values())


def decode(data: bytes, record: Record) -> Samples:
    """The arrays of an archive, checked against ``record``.

    Raises:
        UserError: the archive is damaged, holds a pickle, or does not agree with the record.
    """
    tasks = {name: task for task in record.tasks for name in _names(task)}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [entry.filename for entry in archive.infolist()]
            found = [name.removesuffix(".npy") for name in names]
            if len(set(found)) != len(found) or not set(found) <= set(tasks):
                raise UserError(
                    f"holds arrays {_listed(found)}, its record has tasks {_listed(record.tasks)}"
                )
            arrays = {
                name: _entry(archive, file, record.tasks[tasks[name]].samples)
                for name, file in zip(found, names, strict=True)
            }
    except UserError:
        raise
    # RuntimeError: an entry that asks for a password; the others: a header that is no Python literal
    except (*_UNREADABLE, SyntaxError, UserWarning, tokenize.TokenError) as error:
        reason = "".join(x if x.isprintable() else "?" for x in " ".join(str(error).split()))[:200]
        raise UserError(f"cannot be read as per-sample correctness ({reason}); run again") from error
    correct = {name: array for name, array in arrays.items() if "@" not in name}
    predictions = {name: array for name, array in arrays.items() if "@" in name}
    arrays = checked(record, correct, predictions)
    return Samples(
        {name: array.astype(np.bool_) for name, array in arrays.items() if "@" not in name},
        {name: array for name, array in arrays.items() if "@" in name},
    )


def _names(task: str) -> tuple[str, ...]:
    return task, *(task + kind for kind in KINDS)


def _listed(names: object) -> str:
    text = str(sorted(str(name) for name in names))  # type: ignore[attr-defined]
    return text if len(text) <= 300 else text[:300] + "..."


def _entry(archive: zipfile.ZipFile, name: str, samples: int) -> NDArray[np.generic]:
    """One array, after its declared shape and type are seen to be the expected ones."""
    task = name.removesuffix(".npy")
    if archive.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{task} is compressed by another method than deflate")
    with archive.open(name) as entry:
        if npy.read_magic(entry) != (1, 0):
            raise ValueError(f"{task} is no array in format 1.0 of numpy")
        with warnings.catch_warnings(action="error"):  # of a header as Python 2 wrote it
            shape, _, dtype = npy.read_array_header_1_0(entry, max_header_size=_MAX_HEADER)
        if dtype.kind not in "biuf":  # pickles among them
            raise ValueError(f"{task} is not declared as numbers")
        if shape != (samples,):
            raise UserError(f"{task} has shape {shape}, expected ({samples},)")
        array: NDArray[np.generic] = np.frombuffer(entry.read(samples * dtype.itemsize), dtype)
        if array.size != samples:
            raise ValueError(f"{task} ends after {array.size} of {samples} samples")
        if entry.read(1):  # the end is also where the archive's checksum is compared
            raise ValueError(f"{task} goes on after its {samples} samples")
        return array


def checked(record: Record, correct: Mapping[str, ArrayLike], predictions: Mapping[str, ArrayLike]) -> Arrays:
    """All arrays (samples,) in the types that are stored, after comparing them with ``record``.

    ``correct`` holds one array per task of accuracy; ``predictions`` holds the arrays named with an @.

    Raises:
        UserError: tasks, sample counts, types or values are not the record's.
    """
    numbers = {task for task, result in record.tasks.items() if result.metric == "spearman"}
    needed = {task + kind for task in numbers for kind in (PREDICTION, REFERENCE)}
    optional = {task + kind for task in set(record.tasks) - numbers for kind in KINDS}
    if set(correct) != set(record.tasks) - numbers:
        expected = sorted(set(record.tasks) - numbers)
        raise UserError(f"holds tasks {_listed(correct)}, its record {expected}")
    if not needed <= set(predictions) <= needed | optional:
        raise UserError(
            f"holds predictions {_listed(predictions)}, its record asks for {sorted(needed)} "
            f"and allows {', '.join(f'TASK{kind}' for kind in KINDS)} of its tasks of accuracy"
        )
    arrays: Arrays = {}
    for name, values in {**correct, **predictions}.items():
        task, _, kind = name.partition("@")
        result = record.tasks[task]
        arrays[name] = _typed(name, np.asarray(values), result, is_correctness=not kind)
    for task, result in record.tasks.items():
        value = score(arrays, task, result)
        if abs(value - result.value) > _TOLERANCE:
            raise UserError(f"{task} has {result.metric} {value!r}, its record {result.value!r}")
        for name, further in scores(arrays, task, result.metric).items():
            if not agree(further, stored := getattr(result, name)):
                raise UserError(f"{task} has {name} {further!r}, its record {stored!r}")
    return arrays


def _typed(
    name: str, array: NDArray[np.generic], result: TaskResult, *, is_correctness: bool
) -> NDArray[np.generic]:
    if array.shape != (result.samples,):
        raise UserError(f"{name} has shape {array.shape}, expected ({result.samples},)")
    if is_correctness:
        if array.dtype.kind not in "bui" or not np.isin(array, (0, 1)).all():
            raise UserError(f"{name} holds values other than 0 and 1")
        return array.astype(np.bool_)
    if result.metric == "spearman":
        if array.dtype.kind not in "uif" or not np.isfinite(array.astype(np.float64)).all():
            raise UserError(f"{name} holds values other than finite numbers")
        return array.astype(np.float64)
    if array.dtype.kind not in "ui" or not (np.abs(array.astype(np.float64)) < 2**31).all():
        raise UserError(f"{name} holds values other than classes, which are whole numbers of 32 bits")
    return array.astype(np.int32)


def score(arrays: Mapping[str, NDArray[np.generic]], task: str, result: TaskResult) -> float:
    """A task's value from its per-sample arrays: the share of right samples, or Spearman's rho."""
    if result.metric == "accuracy":
        return float(arrays[task].astype(np.bool_).mean())
    return spearman(arrays[task + PREDICTION], arrays[task + REFERENCE])


def scores(arrays: Mapping[str, NDArray[np.generic]], task: str, metric: str) -> dict[str, float | None]:
    """A task's further scores from its per-sample arrays, by the names of ``TaskResult``'s fields.

    None where they do not apply, or where an array that they take is not there.

    Raises:
        UserError: the arrays contradict each other, or an array is there without those that it belongs to.
    """
    found: dict[str, float | None] = dict.fromkeys(SCORES)
    kinds = {kind for kind in KINDS if task + kind in arrays}
    if metric != "accuracy" or REFERENCE not in kinds:
        if kinds & {RANKED, RANKED_NORM}:
            raise UserError(f"{task} has ranked answers without {task}{REFERENCE}")
        return found
    reference, correct = arrays[task + REFERENCE], arrays[task].astype(np.bool_)
    classes, sizes = np.unique(reference, return_counts=True)
    found["majority"] = float(sizes.max() / sizes.sum())
    found["balanced"] = float(np.mean([correct[reference == one].mean() for one in classes]))
    if PREDICTION in kinds and not np.array_equal(correct, arrays[task + PREDICTION] == reference):
        raise UserError(f"{task} is not where {task}{PREDICTION} is {task}{REFERENCE}")
    if kinds & {RANKED, RANKED_NORM}:
        if kinds != set(KINDS):
            raise UserError(f"{task} has ranked answers and lacks {sorted(set(KINDS) - kinds)}")
        found["ranked"] = float((arrays[task + RANKED] == reference).mean())
        found["ranked_norm"] = float((arrays[task + RANKED_NORM] == reference).mean())
        found["invalid"] = float((arrays[task + PREDICTION].astype(np.int64) == -1).mean())
    return found


def spearman(prediction: NDArray[np.generic], reference: NDArray[np.generic]) -> float:
    """Spearman's rank correlation (ties share their mean rank) of arrays (samples,).

    Where one of them is constant it is undefined; 0 stands for that, as a prediction that says nothing.
    """
    from scipy.stats import (
        spearmanr,
    )  # a second to import, which a suite without such tasks need not wait for

    if np.ptp(prediction.astype(np.float64)) == 0 or np.ptp(reference.astype(np.float64)) == 0:
        return 0.0
    return float(spearmanr(prediction, reference).statistic)
