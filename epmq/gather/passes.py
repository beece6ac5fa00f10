"""Passes of tasks' batches through one block of the model and of its teachers.

A teacher's stream does not depend on the model: one pass a block gives what all its problems want of it, and
the states behind. In the model's stream, layers that no later problem changes are not multiplied again. What
later passes need is kept within the budget of :mod:`epmq.gather.kept`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from epmq.gather.kept import Kept, remembering
from epmq.gather.rows import Counts, Rows, has_bias
from epmq.layer.sums import inner
from epmq.merging import Checkpoint
from epmq.models.tower import State

Batches = Tensor | Sequence[Any]  # model inputs: (n, ...), cut into batches by the walk, or batches
Stream = list[State]  # one task's states, a batch each
Weighed = tuple[Tensor, Tensor | None]  # tokens (tokens, width), and what each counts for; None: all 1


class _Reached(Exception):
    """The forward pass has come to the last layer that is looked at."""


@dataclass(frozen=True)
class Taught:
    """What the teacher makes of one batch before or behind one problem's layers.

    Attributes:
        values: its inputs x~ ``(tokens, columns)``, or its outputs W_t x~ ``(tokens, rows)``, no bias.
        outputs: which of the two.
        energy: sum over tokens of ||W_t x~||^2, weighed; ``None`` where outputs were not looked at.
    """

    values: Tensor
    outputs: bool
    energy: float | None


@dataclass
class _Seen:
    """What one pass of one batch has shown; ``behind`` is ``None`` where it ended early."""

    inputs: dict[Rows, Weighed] = field(default_factory=dict)
    outputs: dict[Rows, Tensor] = field(default_factory=dict)
    behind: State = None


@dataclass
class Passes:
    """All passes through one block.

    Attributes:
        path: the block's path in the tower.
        source: the model's block, as the inputs come from it.
        teacher: a block that experts are read into.
        experts: a checkpoint per task.
        streams: the model's states before the block, per task; ``taught``: the teachers'. :meth:`advance`
            replaces both.
        problems: all that the block poses, in whatever stages.
        onward: whether states behind the block are wanted.
    """

    counts: Counts
    path: str
    source: nn.Module
    teacher: nn.Module
    experts: Mapping[str, Checkpoint]
    streams: dict[str, Stream]
    taught: dict[str, Stream]
    problems: Sequence[Rows]
    onward: bool
    _kept: Kept = field(default_factory=Kept)
    _notes: dict[tuple[str, int, Rows], tuple[bool, float | None]] = field(default_factory=dict)
    _begun: set[tuple[str, int]] = field(default_factory=set)
    _advanced: set[tuple[str, int]] = field(default_factory=set)
    _teacher_advanced: set[tuple[str, int]] = field(default_factory=set)

    def batches(
        self, task: str, problems: Sequence[Rows], norms: Sequence[Rows]
    ) -> Iterator[tuple[dict[Rows, Weighed], dict[Rows, Taught]]]:
        """Of each batch of a task: inputs of problems and norms, and what the teacher makes for problems.

        The teacher then holds the task's expert, at least in the layers and norms that are asked for.
        """
        axes, wanted = self.counts.calibration, [*problems, *norms]
        follows = axes.follows_experts and axes.source != "expert" and bool(problems)
        self._load(task, problems, norms, follows)
        for number, state in enumerate(self.streams[task]):
            taught = self._from_teacher(task, number, problems) if follows else {}
            if axes.source == "expert":
                seen = self._look(self.teacher, self.taught[task][number], wanted, onward=self.onward)
                self._replace_taught(task, number, seen.behind)
            elif axes.source == "merged":
                seen = self._look(self.source, state, wanted, onward=self.onward)
                if self.onward:  # all problems are gathered at once: no later pass starts from here
                    self.streams[task][number] = seen.behind
                    self._advanced.add((task, number))
            elif axes.source == "expert-block":
                seen = self._look(self.teacher, state, wanted)
            else:
                with self._remembering(task, number):
                    seen = self._look(self.source, state, wanted)
            yield seen.inputs, taught

    def advance(self, task: str) -> None:
        """Bring a task's states behind the block, those that are not there yet."""
        axes, numbers = self.counts.calibration, range(len(self.streams[task]))
        for number in numbers if axes.source != "expert" else ():
            if (task, number) not in self._advanced:
                with self._remembering(task, number, last=True):
                    self.streams[task][number] = self.source(self.streams[task][number])
        if not axes.follows_experts:
            return
        if left := [n for n in numbers if (task, n) not in self._teacher_advanced]:
            self.counts.tower.load(self.teacher, self.path, self.experts[task])
        for number in left:
            self.taught[task][number] = self.teacher(self.taught[task][number])

    def _replace_taught(self, task: str, number: int, behind: State) -> None:
        if self.onward:
            self.taught[task][number] = behind
            self._teacher_advanced.add((task, number))

    def _load(self, task: str, problems: Sequence[Rows], norms: Sequence[Rows], follows: bool) -> None:
        """Read the task's expert into the teacher: whole where states pass through it, else in parts."""
        tower, own = self.counts.tower, self.counts.calibration.source in ("expert", "expert-block")
        if own or (follows and not self._has_all(task, problems)):
            tower.load(self.teacher, self.path, self.experts[task])
            return
        for part in dict.fromkeys(path for rows in (*problems, *norms) for path in rows.group):
            tower.load(self.teacher.get_submodule(part), f"{self.path}.{part}", self.experts[task])

    def _has_all(self, task: str, problems: Sequence[Rows]) -> bool:
        numbers = range(len(self.streams[task]))
        return all(self._kept.get((task, n, rows)) is not None for n in numbers for rows in problems)

    def _remembering(self, task: str, number: int, *, last: bool = False) -> AbstractContextManager[None]:
        """Layers whose inputs do not change: those before a group that is solved after them."""
        axes, index = self.counts.calibration, self.counts.block
        groups = self.counts.tower.groups[index : index + 1]  # none of the head
        if axes.source != "quantised" or axes.sequential != "group" or not self.problems or not groups:
            return nullcontext()
        paths = [path for group in groups[0] for path in group]
        return remembering(self.source, paths, self._kept, (task, number), last=last)

    def _from_teacher(self, task: str, number: int, problems: Sequence[Rows]) -> dict[Rows, Taught]:
        """What the teacher makes of a batch for some problems; its first pass is for all of the block."""
        found = {}
        for rows in problems:
            key = task, number, rows
            if (values := self._kept.pop(key)) is not None:
                found[rows] = Taught(values, *self._notes.pop(key))
        if missing := [rows for rows in problems if rows not in found]:
            first = (task, number) not in self._begun
            self._begun.add((task, number))
            taught, behind = self._teach(task, number, self.problems if first else missing, onward=first)
            found |= {rows: taught[rows] for rows in missing}
            later = {rows: each for rows, each in taught.items() if rows not in missing}
            for rows, each in later.items():
                self._kept.put((task, number, rows), each.values)
                self._notes[task, number, rows] = each.outputs, each.energy
            if first and all(self._kept.get((task, number, rows)) is not None for rows in later):
                self._replace_taught(task, number, behind)
        return found

    def _teach(
        self, task: str, number: int, problems: Sequence[Rows], *, onward: bool
    ) -> tuple[dict[Rows, Taught], State]:
        axes, state = self.counts.calibration, self.taught[task][number]
        # Targets on mixed inputs are no teacher's own outputs, and the merged target has none.
        own = problems if axes.target == "expert" and axes.mixing == 1 else ()
        seen = self._look(self.teacher, state, problems, own, onward=onward and self.onward)
        found = {}
        for rows, (x, counted) in seen.inputs.items():
            if not own:
                found[rows] = Taught(x, False, None)
                continue
            y = seen.outputs[rows]
            outputs = by_outputs(y.shape[1], x.shape[1], axes.off_diagonal)
            found[rows] = Taught(y if outputs else x, outputs, energy_of(y, counted))
        return found, seen.behind

    def _look(
        self,
        block: nn.Module,
        state: State,
        inputs: Sequence[Rows],
        outputs: Sequence[Rows] = (),
        *,
        onward: bool = False,
    ) -> _Seen:
        """Run a block on a batch; unless it is to go ``onward``, to the last that is looked at."""
        seen, layers = _Seen(), {path: rows for rows in outputs for path in rows.group}
        parts: dict[str, Tensor] = {}

        def reached() -> None:
            if not onward and len(seen.inputs) == len(inputs) and len(parts) == len(layers):
                raise _Reached

        def before(rows: Rows) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                seen.inputs[rows] = _counted(args[0], self.counts.of(rows, state, args[0].shape[:-1]))
                reached()

            return hook

        def behind(path: str) -> Callable[[nn.Linear, tuple[Tensor, ...], Tensor], None]:
            def hook(layer: nn.Linear, _: tuple[Tensor, ...], output: Tensor) -> None:
                parts[path] = output - layer.bias if has_bias(layer) else output
                reached()

            return hook

        with ExitStack() as stack:
            for rows in inputs:
                handle = block.get_submodule(rows.group[0]).register_forward_pre_hook(before(rows))
                stack.callback(handle.remove)
            for path in layers:
                handle = block.get_submodule(path).register_forward_hook(behind(path))
                stack.callback(handle.remove)
            with suppress(_Reached):
                seen.behind = block(state)
        for rows in outputs:
            y = torch.cat([parts[path] for path in rows.group], -1)[..., rows.slice]
            seen.outputs[rows], _ = _counted(y, self.counts.of(rows, state, y.shape[:-1]))
        return seen


def by_outputs(rows: int, columns: int, off_diagonal: float) -> bool:
    """Whether sums over outputs y, E[y x^T], are the smaller ones; shrinking needs E[x~ x^T]."""
    return off_diagonal == 1 and rows < columns


def energy_of(y: Tensor, counted: Tensor | None) -> float:
    """Sum over tokens of ||y||^2, ``(tokens, rows)``, times their weights."""
    return inner(y, y if counted is None else y * counted[:, None])


def _counted(values: Tensor, weights: Tensor | None) -> Weighed:
    """Tokens ``(tokens, width)`` with their weights; those of weight 0 are left out."""
    tokens = values.flatten(0, -2)
    if weights is None:
        return tokens, None
    flat = weights.flatten().to(tokens.device)
    kept = flat > 0
    tokens, flat = tokens[kept], flat[kept]
    return tokens, None if bool((flat == 1).all()) else flat
