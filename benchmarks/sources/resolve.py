"""What a run reads of the repositories that a suite names: which files, at which commit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import datasets
from datasets import load_dataset_builder

from benchmarks.sources import hub
from benchmarks.sources.lock import FORMATS, DatasetLock, RepoLock
from benchmarks.suites.forms import DatasetSpec, Suite
from epmq.errors import UserError

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model.bin", "*.pt")
PICKLED = (".bin", ".pt")  # the second as task_vectors and TALL-masks publish their experts
BASE_FILES = {
    "transformers": ("config.json", "preprocessor_config.json", *TOKENIZER, *WEIGHTS),
    "open_clip": ("open_clip_config.json", "open_clip_model.safetensors", *TOKENIZER),
}
TEXT_FILES = ("config.json", "generation_config.json", *TOKENIZER, *WEIGHTS)
ADAPTER = "adapter_config.json"
EXPERT_FILES = ("config.json", ADAPTER, *WEIGHTS, "adapter_model.bin")


@dataclass(frozen=True)
class DataFiles:
    """A data set's files at a commit: all with hashes, those of each used split, and how they are read."""

    repo: RepoLock
    format: str
    features: dict[str, Any] | None
    splits: dict[str, list[str]]

    @classmethod
    def of(cls, lock: DatasetLock) -> DataFiles:
        splits = {name: split.files for name, split in lock.splits.items()}
        return cls(lock, lock.format, lock.features, splits)


def model_files(suite: Suite, where: str) -> tuple[str, ...]:
    """Patterns of the files that a run reads of a suite's model."""
    files = TEXT_FILES if suite.kind == "text" else BASE_FILES[suite.library]
    return files if where == suite.base else EXPERT_FILES


def chosen(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The names of a repository's top folder that match; no pickled weights where there are safetensors."""
    found = [n for n in sorted(names) if "/" not in n and any(fnmatchcase(n, p) for p in patterns)]
    safe = any(name.endswith(".safetensors") for name in found)
    return [n for n in found if not (safe and n.endswith(PICKLED))]


def model(where: str, patterns: Sequence[str], revision: str | None = None) -> RepoLock:
    """A model at its newest commit (or ``revision``), and the files that match.

    Raises:
        UserError: the hub cannot be reached, lacks the repository, or holds no weights in it.
    """
    return of_listing(hub.listing(where, "model", revision), patterns)


def of_listing(found: hub.Listing, patterns: Sequence[str]) -> RepoLock:
    """The files that match of a model whose repository was listed; raises UserError as :func:`model`."""
    names = chosen(found.sizes, patterns)
    if not any(name.endswith((".safetensors", *PICKLED)) for name in names):
        raise UserError(
            f"model {found.id} holds no weights at commit {found.revision[:12]}; correct its name"
        )
    return hub.described(found, "model", names)


def data(spec: DatasetSpec) -> DataFiles:
    """A data set at its newest commit, or at the one that the suite names.

    Raises:
        UserError: the hub cannot be reached, or lacks the data set, its configuration or a split.
    """
    return split_files(spec.path, spec.config, spec.revision, [spec.train_split, spec.eval_split])


def split_files(path: str, config: str | None, revision: str | None, names: Sequence[str]) -> DataFiles:
    """The files of some splits of a data set, as :func:`data`."""
    found = hub.listing(path, "dataset", revision)
    try:
        builder = hub.patiently(
            lambda: load_dataset_builder(path, config, revision=found.revision), f"dataset {path}"
        )
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"data set {path}: {error}; correct its name") from error
    if builder.name not in FORMATS:
        raise UserError(
            f"data set {path} is read by {builder.name!r}, expected one of {', '.join(FORMATS)}; give a "
            "copy in such a format"
        )
    prefix = f"hf://datasets/{path}@{found.revision}/"
    there = {str(name): files for name, files in (builder.config.data_files or {}).items()}
    splits = {}
    for split in names:
        if split not in there:
            raise UserError(
                f"data set {path} has no split {split!r} at commit {found.revision[:12]}, only "
                f"{', '.join(there) or 'none'}; correct the name"
            )
        splits[split] = [url.removeprefix(prefix) for url in there[split]]
    used = sorted({name for files in splits.values() for name in files})
    declared = builder.info.features
    return DataFiles(
        hub.described(found, "dataset", used), builder.name, declared.to_dict() if declared else None, splits
    )
