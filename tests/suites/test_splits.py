"""Which splits can share samples, against the rows that ``datasets`` itself reads."""

from __future__ import annotations

from itertools import product

import pytest
from datasets import ReadInstruction

from benchmarks.suites.splits import share

SPLITS = [
    *("train", "test", "train[:50]", "train[50:]", "train[20:60]", "train[:80%]", "train[80%:]"),
    *("train[10%:20%]", "train[:50]+test", "train[60:70]+train[90:]", "train[70:90]"),
]


def rows(split: str) -> set[tuple[str, int]]:
    """The rows of a split, where ``train`` and ``test`` have 100 each."""
    parts = ReadInstruction.from_spec(split).to_absolute({"train": 100, "test": 100})
    return {(part.splitname, row) for part in parts for row in range(part.from_ or 0, part.to or 100)}


@pytest.mark.parametrize(("one", "other"), list(product(SPLITS, repeat=2)))
def test_splits_share_samples_where_their_rows_do(one: str, other: str) -> None:
    shared = bool(rows(one) & rows(other))
    other_unit = "[" in one and "[" in other and ("%" in one) != ("%" in other)
    assert share(one, other) == (shared or (other_unit and "train" in one and "train" in other))


@pytest.mark.parametrize(
    ("one", "other"),
    [("train[:80%]", "train[900:]"), ("train[-10:]", "train[:50]"), ("train[a:b]", "train[:5]")],
)
def test_slices_that_cannot_be_compared_are_taken_to_share_some(one: str, other: str) -> None:
    assert share(one, other)
