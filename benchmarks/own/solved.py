"""What a rounding solved, layer by layer, kept until the model is written: a killed run goes on from it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.sources import cache
from epmq.checkpoints.kept import keep, kept
from epmq.checkpoints.lazy import LazyCheckpoint
from epmq.errors import UserError
from epmq.layer.problem import LayerProblem
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight
from epmq.walk import Solver

PACKED = "packed"


class Solved:
    """Solutions in a folder of the cache, by their number in the walk, which is the same every time.

    Args:
        folder: named by everything that the solutions depend on.
        spec: the grid that was asked for.
    """

    def __init__(self, folder: Path, spec: QuantSpec) -> None:
        self.folder, self.spec = folder, spec
        self.read = 0  # how many were there already

    def __call__(self, solve: Solver) -> Solver:
        """``solve``, but for what is kept."""
        self.read, number = 0, 0

        def solution(problem: LayerProblem) -> QuantizedWeight | Tensor:
            nonlocal number
            file = self.folder / f"{number}.safetensors"
            number += 1
            found = self._kept(file, problem)
            if found is not None:
                self.read += 1
                return found
            new = solve(problem)
            if isinstance(new, QuantizedWeight):
                with cache.errors(file):
                    self.folder.mkdir(parents=True, exist_ok=True)
                    packed = torch.frombuffer(bytearray(new.to_bytes()), dtype=torch.uint8)
                    keep({PACKED: packed}, file, self._told)
            return new

        return solution

    @property
    def _told(self) -> dict[str, str]:
        return {"of": self.folder.name}

    def _kept(self, file: Path, problem: LayerProblem) -> QuantizedWeight | None:
        if not kept(file, self._told):
            return None
        try:
            found = QuantizedWeight.from_bytes(LazyCheckpoint(file)[PACKED].numpy().tobytes())
        except UserError:
            return None
        if found.codes.shape != problem.centre.shape:
            return None
        names = ("bits", "group_size", "symmetric", "scale_dtype", "grid")
        own = {name: getattr(found.spec, name) for name in names}
        return replace(found, spec=replace(self.spec, **own))

    def forget(self) -> None:
        """Delete what is kept."""
        shutil.rmtree(self.folder, ignore_errors=True)
