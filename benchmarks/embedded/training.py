"""What the training recipes of the embedded suites share: schedules, seeded steps, resuming."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from epmq.files import replacing

SEED = 20261123


@dataclass(frozen=True)
class Schedule:
    """Optimisation of one training run: AdamW, linear warm-up, cosine decay to zero."""

    steps: int
    batch: int
    lr: float
    weight_decay: float
    warmup: int

    def scaled(self, scale: float) -> Schedule:
        """The same schedule with ``scale`` times the steps."""
        return Schedule(max(1, int(self.steps * scale)), self.batch, self.lr, self.weight_decay, self.warmup)


def step_seed(*key: object) -> int:
    """A seed for one step of one run, so that a resumed run draws what the whole one would."""
    return int.from_bytes(hashlib.sha256(repr((SEED, *key)).encode()).digest()[:7], "little")


def step_generator(*key: object) -> torch.Generator:
    """A generator of the seed of ``step_seed``."""
    return torch.Generator().manual_seed(step_seed(*key))


def batches(n: int, size: int, *key: object) -> Iterator[Tensor]:
    """Endless shuffled batches of the indices of ``n`` samples."""
    epoch = 0
    while True:
        yield from torch.randperm(n, generator=step_generator(*key, epoch)).split(size)
        epoch += 1


def batches_alike(lengths: list[int], size: int, *key: object) -> Iterator[Tensor]:
    """Endless shuffled batches of indices in which samples of a like length go together, to spare padding."""
    epoch = 0
    while True:
        g = step_generator(*key, epoch)
        for pool in torch.randperm(len(lengths), generator=g).split(16 * size):
            alike = torch.tensor([lengths[int(i)] for i in pool]).argsort(stable=True)
            parts = pool[alike].split(size)
            yield from (parts[int(i)] for i in torch.randperm(len(parts), generator=g))
        epoch += 1


def cosine_with_warmup(schedule: Schedule) -> Callable[[int], float]:
    def factor(step: int) -> float:
        if step < schedule.warmup:
            return (step + 1) / schedule.warmup
        done = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return factor


def atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        write(temporary)


def optimise(
    name: str,
    model: nn.Module,
    trained: list[nn.Parameter],
    schedule: Schedule,
    loss_at: Callable[[int], Tensor],
    checkpoint: Path,
    measure: Callable[[], dict[str, float]],
) -> list[dict[str, float]]:
    """Train to the end of the schedule, from the last checkpoint if there is one; returns the log."""
    optimiser = torch.optim.AdamW(
        trained, lr=schedule.lr, weight_decay=schedule.weight_decay, betas=(0.9, 0.98)
    )
    warm = torch.optim.lr_scheduler.LambdaLR(optimiser, cosine_with_warmup(schedule))
    start, log = 0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        warm.load_state_dict(state["schedule"])
        start, log = state["step"], state["log"]
    every = max(1, schedule.steps // 10)
    for step in tqdm(range(start, schedule.steps), desc=name, initial=start, total=schedule.steps):
        model.train()
        loss = loss_at(step)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        warm.step()
        if (step + 1) % every == 0 or step + 1 == schedule.steps:
            model.eval()
            with torch.no_grad():
                log.append({"step": step + 1, "loss": loss.item(), **measure()})
            tqdm.write(f"{name}: {log[-1]}")
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
            state |= {"schedule": warm.state_dict(), "step": step + 1, "log": log}
            atomically(checkpoint, partial(torch.save, state))
    return log


@dataclass(frozen=True)
class Options:
    """What the command of a recipe asks for.

    Attributes:
        out: where the weights go; ``work``: checkpoints for resuming.
        only: ``base`` and/or task names; ``None`` for all.
        scale: factor on every number of steps, for a trial.
    """

    out: Path
    work: Path
    only: list[str] | None
    scale: float

    @classmethod
    def parse(cls, description: str | None, out: Path, work: Path) -> Options:
        """Those of the command line, with the defaults of ``out`` and ``work``."""
        parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--out", type=Path, default=out, help="where the weights go")
        parser.add_argument("--work", type=Path, default=work, help="checkpoints for resuming")
        parser.add_argument("--only", nargs="*", default=None, help="'base' and/or task names")
        parser.add_argument("--scale", type=float, default=1.0, help="factor on all steps (for a trial)")
        return cls(**vars(parser.parse_args()))

    def wants(self, name: str) -> bool:
        """Whether a model is to be trained."""
        return self.only is None or name in self.only

    def note(self, name: str, entries: list[dict[str, float]]) -> None:
        """Write the log of one model."""
        text = json.dumps(entries, indent=1) + "\n"
        atomically(self.out / "logs" / f"{name}.json", lambda path: path.write_text(text))
