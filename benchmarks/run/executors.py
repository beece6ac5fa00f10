"""Who computes the groups of cells: this process, or the workers of a Ray cluster, one GPU (or CPU) each.

Workers send back outcomes; only the process that was started writes to the results folder. Cells do not
depend on each other, so after a kill or the loss of a worker the same command goes on with what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.run.cells import Cell
from benchmarks.run.compute import compute
from benchmarks.run.outcome import Outcome
from benchmarks.suites.forms import Suite
from benchmarks.workbench.base import Setting, Workbench
from epmq.errors import UserError, choose

Finished = tuple[list[Cell], list[Outcome]]
Executor = Callable[[Workbench, Sequence[list[Cell]]], Iterable[Finished]]


def executor(name: str) -> Executor:
    """``local`` or ``ray``; raises UserError for another name, or where Ray is not installed."""
    choose("executor", name, ("local", "ray"))
    if name == "ray":
        _ray()
    return on_ray if name == "ray" else one_by_one


def one_by_one(workbench: Workbench, groups: Sequence[list[Cell]]) -> Iterator[Finished]:
    """Compute every group in this process."""
    for group in groups:
        yield group, compute(workbench, group)


def on_ray(workbench: Workbench, groups: Sequence[list[Cell]]) -> Iterator[Finished]:
    """Compute groups on the workers of the Ray cluster (``RAY_ADDRESS``), or of one started on this machine.

    Raises:
        UserError: a worker died.
    """
    ray = _ray()
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(include_dashboard=False, log_to_driver=False)
    try:
        workers = _workers(ray, workbench, len(groups))
        alone = 1 if groups and groups[0][0].own == "all" else 0  # the other records need them
        for part in (groups[:alone], groups[alone:]):
            pool = ray.util.ActorPool(workers)
            yield from pool.map_unordered(lambda worker, group: worker.compute.remote(group), part)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayActorError as error:
        raise UserError(
            f"a Ray worker died ({str(error).splitlines()[0]}); finished cells are kept, run this again"
        ) from error
    finally:
        if started_here:
            ray.shutdown()


class Worker:
    """One process's models and data; on a GPU machine it sees the one GPU that Ray gave it."""

    def __init__(self, suite: Suite, setting: Setting) -> None:
        self.workbench = open_workbench(suite, setting)

    def compute(self, group: list[Cell]) -> Finished:
        """The group and what computing it gave."""
        return group, compute(self.workbench, group)


def _workers(ray: Any, workbench: Workbench, groups: int) -> list[Any]:
    machine = workbench.setting.machine
    kind = "GPU" if machine.device.type == "cuda" else "CPU"
    count = min(groups, int(ray.cluster_resources().get(kind, 0)))
    if groups and not count:
        raise UserError(f"the Ray cluster has no {kind}; start one that has, or use --executor local")
    needs = {"num_gpus": 1} if kind == "GPU" else {"num_cpus": 1}
    visible = replace(machine, device=torch.device(machine.device.type))
    setting = replace(workbench.setting, machine=visible)
    remote = ray.remote(**needs)(Worker)
    return [remote.remote(workbench.suite, setting) for _ in range(count)]


def _ray() -> Any:
    try:
        import ray
        import ray.util
    except ImportError as error:
        raise UserError("--executor ray needs Ray; install it with: pip install 'epmq[ray]'") from error
    return ray


def open_workbench(suite: Suite, setting: Setting | None = None) -> Workbench:
    """The suite's models and data, opened and checked.

    Raises:
        UserError: a model or a data set is missing, damaged or not what the suite says.
    """
    if suite.kind == "text":
        from benchmarks.text.workbench import TextWorkbench  # only these suites need what it imports

        return TextWorkbench(suite, setting)
    from benchmarks.images.workbench import ImageWorkbench

    return ImageWorkbench(suite, setting)
