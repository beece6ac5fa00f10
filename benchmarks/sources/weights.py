"""What every model folder of the hub's layout holds: weights, configuration, tokenizer."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from benchmarks.sources import cache
from epmq.checkpoints.lazy import PICKLES, weights_file
from epmq.checkpoints.pickled import converted
from epmq.errors import UserError


def readable(folder: Path, names: Collection[str]) -> Path:
    """The weights among the files ``names`` of a model folder; of a pickle the safetensors copy.

    Raises:
        UserError: there are none, or a pickle is damaged or needs code to run.
    """
    path = weights_file(folder, names)
    if path.suffix not in PICKLES:
        return path
    with cache.errors(copies := cache.folder("converted")):
        return converted(path, copies)


def configured(folder: Path) -> tuple[Any, Any]:
    """The configuration and the tokenizer of a model folder, by transformers.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a folder that does not hold together fails in any of many places
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"{folder}: cannot be loaded by transformers ({reason}); is the folder complete?"
        ) from error
    return config, tokenizer
