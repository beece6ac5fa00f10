"""The descent: Adam on the experts' outputs, with a held-out share that says which state is kept."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from tqdm.auto import tqdm

from epmq.errors import UserError
from epmq.files import replacing
from epmq.merging import Checkpoint
from epmq.models.tower import Tower
from epmq.refinement.budget import Budget
from epmq.refinement.objective import Objective, outputs
from epmq.refinement.samples import Rows, Sample, collated

MEASURED = 20  # times that the held-out loss is measured, besides before the first step
EVALUATED = 64  # held-out samples that pass through the model together
BETAS = (0.9, 0.99)  # of Adam


@dataclass(frozen=True)
class Lessons:
    """Calibration samples and what each task's expert makes of them.

    Attributes:
        rows: samples by task.
        taught: by task, sample by sample what the objective keeps of the expert.
        objective: the distance to the expert.
        seed: of the order of samples and of which are held out.
    """

    rows: Mapping[str, Rows]
    taught: Mapping[str, Sequence[Sample]]
    objective: Objective
    seed: int = 0

    def parts(self, budget: Budget) -> dict[str, tuple[Tensor, Tensor]]:
        """Of every task, the samples to learn from and those held out.

        Raises:
            UserError: a task has fewer than two samples.
        """
        found = {}
        for number, (task, rows) in enumerate(self.rows.items()):
            learnt, held = budget.split(task, len(rows))
            order = torch.randperm(len(rows), generator=_generator(self.seed, number, 0))
            found[task] = order[:learnt], order[learnt : learnt + held]
        return found


@dataclass(frozen=True)
class Point:
    """One measurement: after so many steps, the mean loss of the steps since the last one, and held out."""

    step: int
    learnt: float | None
    held_out: float


@dataclass
class Curve:
    """How a refinement went.

    Attributes:
        points: measurements, the first before any step.
        best: the step whose state was kept.
        seconds: spent in all, also before an interruption.
    """

    points: list[Point] = field(default_factory=list)
    best: int = 0
    seconds: float = 0.0


@torch.no_grad()
def teach(
    tower: Tower, experts: Mapping[str, Checkpoint], rows: Mapping[str, Rows], objective: Objective
) -> dict[str, list[Sample]]:
    """Every task's expert on its own samples; the tower holds afterwards what it held before.

    Experts take the tower one after the other, so that there are never two models in memory.
    """
    held = {name: p.detach().clone() for name, p in tower.merged_parameters().items()}
    found: dict[str, list[Sample]] = {}
    for task, samples in tqdm(rows.items(), desc="  experts' outputs", leave=False, delay=2):
        tower.load_all(experts[task])
        found[task] = []
        for index in torch.arange(len(samples)).split(EVALUATED):
            batch = samples.take(index)
            output, states = outputs(tower, batch, states=objective.intermediate > 0)
            taught = objective.teach(output, states, batch)
            found[task] += [{name: x[i] for name, x in taught.items()} for i in range(len(index))]
    tower.load_all(held)
    return found


def descend(
    tower: Tower,
    rates: Sequence[tuple[Sequence[nn.Parameter], float]],
    lessons: Lessons,
    budget: Budget,
    state: Path | None = None,
) -> Curve:
    """Bring the tower's outputs nearer to the experts', in place.

    The parameters are left as they were at the lowest held-out loss. The order of samples depends on the
    seed alone, and no global random state is read or changed.

    Args:
        rates: parameters to change, with their learning rates.
        state: a file to go on from after an interruption; it holds the final state at the end.

    Raises:
        UserError: a task has fewer than two samples, or the device's memory does not take the batch.
    """
    parameters = [p for group, _ in rates for p in group]
    run = _Run(tower, parameters, lessons, budget)
    optimiser = torch.optim.Adam([{"params": list(g), "lr": lr} for g, lr in rates], betas=BETAS, fused=True)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        _loop(run, optimiser, [rate for _, rate in rates], state)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
    with torch.no_grad():
        for parameter, kept in zip(parameters, run.kept, strict=True):
            parameter.copy_(kept)
    return run.curve


def _loop(run: _Run, optimiser: torch.optim.Optimizer, rates: Sequence[float], state: Path | None) -> None:
    steps, start = run.budget.steps, time.perf_counter()
    done = run.resume(optimiser, state)
    spent = run.curve.seconds
    if not run.curve.points:
        run.measure(0, None)
    every, losses = max(1, math.ceil(steps / MEASURED)), []
    bar = tqdm(total=steps, initial=done, desc="  refining", leave=False, delay=2)
    for step in range(done, steps):
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * pace(step, run.budget)
        optimiser.zero_grad()
        losses.append(run.loss(step))
        optimiser.step()
        bar.update()
        if (step + 1) % every == 0 or step + 1 == steps:
            run.measure(step + 1, sum(losses) / len(losses))
            losses = []
            bar.set_postfix_str(f"held out {run.curve.points[-1].held_out:.4f}")
            run.curve.seconds = spent + time.perf_counter() - start
            if step + 1 < steps:
                run.save(step + 1, optimiser, state)
    bar.close()
    if done < steps:
        run.curve.seconds = spent + time.perf_counter() - start
        run.save(steps, optimiser, state)


def held_out_loss(tower: Tower, lessons: Lessons, budget: Budget) -> float:
    """The mean over tasks of a model's mean distance to the expert, on the samples that are held out.

    Raises:
        UserError: a task has fewer than two samples, or the device's memory does not take the batch.
    """
    return _Run(tower, [], lessons, budget).held_out()


def pace(step: int, budget: Budget) -> float:
    """The learning rate relative to its peak: a linear rise, then half a cosine."""
    rise = min(1.0, (step + 1) / (budget.warmup + 1))
    return rise * 0.5 * (1 + math.cos(math.pi * step / budget.steps))


class _Run:
    """A descent's tower, samples, and what is kept."""

    def __init__(
        self, tower: Tower, parameters: Sequence[nn.Parameter], lessons: Lessons, budget: Budget
    ) -> None:
        self.tower, self.parameters, self.lessons, self.budget = tower, parameters, lessons, budget
        self.parts = lessons.parts(budget)
        self.curve = Curve()
        self.kept: list[Tensor] = []
        self._orders: dict[tuple[str, int], Tensor] = {}

    def loss(self, step: int) -> float:
        """The loss of one step's batch; its gradient is added to the parameters."""
        total = 0.0
        for number, task in enumerate(self.parts):
            index = self._drawn(task, number, step)
            for part in index.chunk(self.budget.accumulate):
                weight = len(part) / len(index) / len(self.parts)
                loss = self._terms(task, part, learning=True).mean() * weight
                loss.backward()
                total += float(loss.detach())
        if not math.isfinite(total):
            raise UserError(f"the refinement's loss is {total} at step {step}; give a lower learning rate")
        return total

    def _drawn(self, task: str, number: int, step: int) -> Tensor:
        """A task's samples of a step: epochs of whole batches, each in an order of its own."""
        learnt = self.parts[task][0]
        size = min(self.budget.batch, len(learnt))
        epoch, at = divmod(step, len(learnt) // size)
        key = task, epoch
        if key not in self._orders:
            self._orders = {k: v for k, v in self._orders.items() if k[0] != task}
            generator = _generator(self.lessons.seed, number, epoch + 1)
            self._orders[key] = torch.randperm(len(learnt), generator=generator)
        return learnt[self._orders[key][at * size : (at + 1) * size]]

    def _terms(self, task: str, index: Tensor, *, learning: bool) -> Tensor:
        objective = self.lessons.objective
        between = learning and objective.intermediate > 0
        batch = self.lessons.rows[task].take(index)
        try:
            device = next(self.tower.parameters()).device
            with parametrize.cached(), self._precision(device):
                output, states = outputs(
                    self.tower, batch, states=between, recompute=learning and self.budget.checkpointing
                )
            taught = collated([self.lessons.taught[task][i] for i in index.tolist()])
            found = objective.distance(output, taught, batch)
            return found + objective.intermediate * objective.between(states, taught) if between else found
        except torch.OutOfMemoryError as error:
            raise UserError(_too_large(len(index), self.budget)) from error

    def _precision(self, device: torch.device) -> Any:
        enabled = self.budget.autocast == "bfloat16"
        return torch.autocast(device.type, torch.bfloat16, enabled=enabled)

    @torch.no_grad()
    def held_out(self) -> float:
        """The mean over tasks of the mean distance on the samples held out."""
        means = []
        for task, (_, held) in self.parts.items():
            found = [self._terms(task, part, learning=False) for part in held.split(EVALUATED)]
            means.append(float(torch.cat(found).mean()))
        return sum(means) / len(means)

    @torch.no_grad()
    def measure(self, step: int, learnt: float | None) -> None:
        """Measure the held-out loss; keep the state where it is the lowest so far."""
        now = self.held_out()
        if not self.curve.points or now < min(p.held_out for p in self.curve.points):
            self.curve.best = step
            self.kept = [p.detach().clone() for p in self.parameters]
        self.curve.points.append(Point(step, learnt, now))

    def save(self, done: int, optimiser: torch.optim.Optimizer, file: Path | None) -> None:
        """Write what is needed to go on."""
        if file is None:
            return
        content = {
            "done": done,
            "parameters": [p.detach() for p in self.parameters],
            "optimiser": optimiser.state_dict(),
            "kept": self.kept,
            "points": [(p.step, p.learnt, p.held_out) for p in self.curve.points],
            "best": self.curve.best,
            "seconds": self.curve.seconds,
        }
        with replacing(file) as temporary:
            torch.save(content, temporary)

    @torch.no_grad()
    def resume(self, optimiser: torch.optim.Optimizer, file: Path | None) -> int:
        """Go on from a file, if there is one that can be read; returns the steps done."""
        if file is None or not file.exists():
            return 0
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
            kept = [x.to(p.device) for x, p in zip(content["kept"], self.parameters, strict=True)]
            pairs = list(zip(self.parameters, content["parameters"], strict=True))
            if any(p.shape != x.shape for p, x in pairs):
                return 0
            optimiser.load_state_dict(content["optimiser"])
        except (
            OSError,
            EOFError,
            RuntimeError,
            UnpicklingError,
            KeyError,
            TypeError,
            ValueError,
        ):  # damaged in whatever way: nothing but time is lost
            return 0
        for parameter, x in pairs:
            parameter.copy_(x)
        points = [Point(*point) for point in content["points"]]
        self.kept, self.curve = kept, Curve(points, content["best"], content["seconds"])
        return int(content["done"])


def _too_large(samples: int, budget: Budget) -> str:
    if samples == 1:
        return "the device's memory does not take one sample's refinement; free some, or use --device cpu"
    remedy = "" if budget.checkpointing else ", or --refine-checkpointing"
    return (
        f"the device's memory does not take {samples} samples at a time; give --refine-accumulate 2{remedy}"
    )


def _generator(*key: int) -> torch.Generator:
    """A generator of its own for a seed, a task's number and an epoch."""
    seed = 0
    for part in key:
        seed = (seed * 1_000_003 + part) % 2**63
    return torch.Generator().manual_seed(seed)
