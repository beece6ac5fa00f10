"""The weights of a model folder as something that is read tensor by tensor."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from benchmarks import cache
from epmq.checkpoint import PICKLES, weights_file
from epmq.pickled import converted


def readable(folder: Path, names: Collection[str]) -> Path:
    """The weights among the files ``names`` of a model folder; of a pickle the safetensors copy.

    Raises:
        UserError: there are none, or a pickle is damaged or needs code to run.
    """
    path = weights_file(folder, names)
    return converted(path, cache.folder("converted")) if path.suffix in PICKLES else path
