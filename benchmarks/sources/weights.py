"""What every model folder of the hub's layout holds: weights, configuration, tokenizer."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic_core import from_json
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
        UserError: a file is missing or damaged, or names code of its own.
    """
    refuse_code(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a folder that does not hold together fails in any of many places
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"{folder}: cannot be loaded by transformers ({reason}); is the folder complete?"
        ) from error
    return config, tokenizer


def refuse_code(folder: Path) -> None:
    """Refuse a model folder whose configuration names code of its own, which transformers would offer to run.

    Raises:
        UserError: naming the file.
    """
    for file in sorted(folder.glob("*config.json")):
        try:
            content = from_json(file.read_bytes())
        except (OSError, ValueError):
            continue  # whoever reads it says so
        if isinstance(content, dict) and "auto_map" in content:
            raise UserError(
                f"{file}: 'auto_map' names code of the model's own, which is never run; give a model that "
                "transformers knows, or a copy without the entry where it knows this one"
            )
