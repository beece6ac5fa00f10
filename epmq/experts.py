"""Experts as checkpoints: read lazily from where they are stored, or seen in a state dict or a model."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from epmq.checkpoints.lazy import (
    PICKLES,
    LazyCheckpoint,
    check_expert,
    check_finite,
    prefix_of,
    shape_of,
    weights_file,
)
from epmq.checkpoints.lora import CONFIG, lora_merged
from epmq.checkpoints.pickled import converted
from epmq.errors import UserError
from epmq.models import adapters
from epmq.models.tower import Tower


def load_experts(
    base: Tower | nn.Module, experts: Mapping[str, str | os.PathLike[str]]
) -> dict[str, Mapping[str, Tensor]]:
    """The experts of a base model as checkpoints; every one is read once and checked against the base.

    Tensors are read when they are asked for, so that many experts take no more memory than one. Pickled
    weights are loaded without running code and are the exception: they are held in memory.

    Args:
        base: the model that the experts were fine-tuned from, with its own weights: a tower or any model that
            :func:`epmq.quantise` takes.
        experts: a file (safetensors, an index of shards, a pickle) or a folder of each task; the folder of a
            model, or of a LoRA adapter, which is merged into the base tensor by tensor.

    Returns:
        A checkpoint per task, under the names of the tower's tensors, in the order of ``experts``.

    Raises:
        UserError: a file is missing, damaged or needs code to run, an expert does not fit the base, or it
            equals the base.
    """
    with adapters.opened(base) as tower:
        weights = {name: p.detach().cpu() for name, p in tower.merged_parameters().items()}
        if any((Path(where) / CONFIG).is_file() for where in experts.values()):
            # adapters are added to the base whenever a tensor is asked for, also when the model has changed
            weights = {name: weight.clone() for name, weight in weights.items()}
        opened = {task: _opened(Path(where), weights, tower) for task, where in experts.items()}
        for task, expert in opened.items():
            check_expert(weights, expert, str(experts[task]))
        return opened


def _opened(where: Path, base: Mapping[str, Tensor], tower: Tower) -> Mapping[str, Tensor]:
    if not where.exists():
        raise UserError(f"{where}: does not exist; give the file or the folder of an expert")
    if (where / CONFIG).is_file():
        return lora_merged(base, where)
    file = weights_file(where) if where.is_dir() else where
    if file.suffix not in PICKLES:
        return merged_tensors(file, tower, str(where))
    with tempfile.TemporaryDirectory() as copies:
        return dict(merged_tensors(converted(file, Path(copies)), tower, str(where)))


def merged_tensors(weights: Path, tower: Tower, where: str) -> LazyCheckpoint:
    """The tensors of ``tower`` that are merged, wherever in a checkpoint they are.

    Copies of tied tensors, which older files hold, are left out.

    Raises:
        UserError: the checkpoint is damaged or holds no such tower.
    """
    wanted = tower.merged_parameters()
    prefix = prefix_of(LazyCheckpoint(weights), wanted, where)
    copies = (name for names in tower.tied.values() for name in names)
    return LazyCheckpoint(weights, prefix, without={*tower.shared, *copies})


class _Renamed(Mapping[str, Tensor]):
    """Some tensors of a checkpoint, seen under other names."""

    def __init__(self, checkpoint: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._checkpoint, self._names = checkpoint, names

    def __getitem__(self, name: str) -> Tensor:
        return self._checkpoint[self._names[name]].detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading the tensor where the checkpoint knows it."""
        return shape_of(self._checkpoint, self._names[name])


def fitting(expert: Any, tower: Tower, where: str) -> Mapping[str, Tensor]:
    """An expert as a checkpoint of the tensors of ``tower``; every tensor is read once and checked.

    Args:
        expert: a model like the tower's, its state dict, or a checkpoint of :func:`load_experts`.
        where: what complaints call it.

    Raises:
        UserError: it is something else, lacks a tensor, or a tensor has another shape or is not finite.
    """
    if isinstance(expert, nn.Module):
        expert = expert.state_dict()
    if not isinstance(expert, Mapping):
        raise UserError(
            f"{where} is a {type(expert).__name__}, expected a state dict or a model; "
            "read files with load_experts"
        )
    wanted = tower.merged_parameters()
    prefix = prefix_of(expert, wanted, where)
    found = _Renamed(expert, {name: prefix + name for name in wanted})
    for name, parameter in wanted.items():
        if prefix + name not in expert:
            raise UserError(f"{where} has no tensor {prefix + name!r}; give an expert of this model")
        if (shape := shape_of(found, name)) != tuple(parameter.shape):
            ours = tuple(parameter.shape)
            raise UserError(f"{where}: tensor {prefix + name!r} is {shape}, the model's is {ours}")
    check_finite(found, where)
    return found
