"""What a model answers on every test sample, as hashes of arrays, and how two models' answers differ."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from results.store.samples import Arrays, Samples


def arrays_of(samples: Samples) -> Arrays:
    """All arrays of a record's samples by name."""
    return {**samples.correct, **samples.predictions}


def digests(arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, str]:
    """SHA-256 of every array by name, in the types that are stored."""
    return {
        name: hashlib.sha256(_stored(name, array).tobytes()).hexdigest() for name, array in arrays.items()
    }


def _stored(name: str, array: NDArray[np.generic]) -> NDArray[np.generic]:
    if "@" not in name:
        return array.astype(np.uint8)
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int32)


@dataclass(frozen=True)
class Comparison:
    """Answers beside a record's, of the tasks that both have.

    Attributes:
        where: the record, in words.
        differing: tasks whose answers differ, with the number of samples that do; ``None`` where only hashes
            are known.
    """

    where: str
    differing: dict[str, int | None]

    def __str__(self) -> str:
        if not self.differing:
            return f"the same answers on every sample as {self.where}"
        told = ", ".join(t if n is None else f"{t} ({n} samples)" for t, n in self.differing.items())
        return f"other answers than {self.where}: {told}"


def by_hash(arrays: Mapping[str, NDArray[np.generic]], known: Mapping[str, str], where: str) -> Comparison:
    """Compare with hashes, of what is known."""
    found = digests({name: arrays[name] for name in known if name in arrays})
    wrong = {name.partition("@")[0] for name, digest in known.items() if found.get(name) != digest}
    return Comparison(where, dict.fromkeys(sorted(wrong)))


def by_sample(arrays: Mapping[str, NDArray[np.generic]], samples: Samples, where: str) -> Comparison:
    """Compare with a record's samples, of what is stored."""
    differing: dict[str, int | None] = {}
    for name, stored in sorted(arrays_of(samples).items()):
        task = name.partition("@")[0]
        array = arrays.get(name)
        same_length = array is not None and array.shape == stored.shape
        number = int(np.count_nonzero(array != stored)) if same_length else len(stored)
        if number:
            differing[task] = max(number, differing.get(task) or 0)
    return Comparison(where, differing)
