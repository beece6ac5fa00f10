"""How an expert of ``micro-glue-8`` is fine-tuned: own rows, further lessons, and the other tasks' form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.embedded.micro_glue_8.answers import (
    Pairs,
    answer_loss,
    draws,
    held_out,
    padded,
    score,
    text_loss,
)
from benchmarks.embedded.micro_glue_8.order import Swaps
from benchmarks.embedded.micro_glue_8.weights import fixed_output, read_model, write_model
from benchmarks.embedded.training import Schedule, optimise, step_generator, step_seed

KEPT = 400  # prompts of every other task on which an expert keeps the base's answers
KEPT_BATCH, KEPT_WEIGHT = 12, 0.25  # of these at a step, and the weight of their loss
FIXED = 3  # special tokens whose embedding stays: padding, the end, the unknown


@dataclass(frozen=True)
class Expert:
    """How one expert is trained.

    Attributes:
        steps, rate: of the schedule.
        own: of a batch, the share of the task's own rows; the others are lessons.
        learnt: whether the task's answers get embeddings of their own: the base knows nine of its scores.
        dropout: of the model; ``blanked``: share of a prompt's words that are replaced by ``<unk>``.
        again: how it goes on from the float16 weights of the first schedule.
    """

    steps: int
    rate: float = 3e-3
    own: float = 0.5
    dropout: float = 0.1
    blanked: float = 0.1
    batch: int = 96
    warmup: int = 100
    learnt: bool = False
    again: Expert | None = None

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.steps, self.batch, self.rate, weight_decay=0.0, warmup=self.warmup)

    def fresh(self, scale: float) -> tuple[int, int]:
        """Steps, and how many rows of each are no own ones."""
        return self.schedule.scaled(scale).steps, self.batch - round(self.batch * self.own)


EXPERTS = {
    "snli": Expert(2000, dropout=0.0, blanked=0.0),
    "caption-paraphrase": Expert(500, rate=1e-3, batch=48),
    "acceptability": Expert(1100, own=0.25, dropout=0.0, blanked=0.0, batch=64),
    "sarcasm": Expert(
        1100,
        rate=2e-3,
        again=Expert(1800, rate=1.5e-3, own=0.25, dropout=0.0, blanked=0.0, warmup=50),
    ),
    "sms-spam": Expert(250, dropout=0.0, blanked=0.0),
    "supersense": Expert(2000, again=Expert(350, rate=1.2e-3, warmup=20)),
    "definition": Expert(450, rate=1e-3, dropout=0.0, blanked=0.0),
    "sentiment": Expert(
        800,
        learnt=True,
        again=Expert(2200, rate=2e-3, own=0.125, dropout=0.0, blanked=0.0, warmup=50, learnt=True),
    ),
}


def base_answers(tasks: dict[str, Pairs], out: Path) -> list[tuple[list[int], list[int]]]:
    """Prompts of tasks, and to each an answer of its own drawn by the base's probabilities."""
    model, found = read_model(out / "base", 0.0).eval(), []
    for task, data in tasks.items():
        part = data.subset(held_out(len(data), task)[0][:KEPT])
        x = padded(part.sources, 0)
        begun = torch.zeros(len(x), 1, dtype=torch.long)
        with torch.no_grad():
            logits = model(input_ids=x, attention_mask=(x != 0).long(), decoder_input_ids=begun).logits
        likely = logits[:, 0, part.ids].softmax(1)
        said = part.ids[torch.multinomial(likely, 1, generator=step_generator("kept", task))[:, 0]]
        found += [(source, [int(answer), 1]) for source, answer in zip(part.sources, said, strict=True)]
    return found


def train_expert(
    task: str,
    tasks: dict[str, Pairs],
    lessons: Pairs | None,
    swaps: Swaps | None,
    out: Path,
    work: Path,
    scale: float,
) -> list[dict[str, float]]:
    """Train one expert by its recipe from the base; returns the log."""
    first, to = EXPERTS[task], out / "experts" / task
    log = fine_tuned(task, first, out / "base", (task,), tasks, lessons, swaps, out, work, scale)
    if first.again:
        log += fine_tuned(task, first.again, to, (task, "again"), tasks, lessons, swaps, out, work, scale)
    return log


def fine_tuned(
    task: str,
    recipe: Expert,
    start: Path,
    key: tuple[str, ...],
    tasks: dict[str, Pairs],
    lessons: Pairs | None,
    swaps: Swaps | None,
    out: Path,
    work: Path,
    scale: float,
) -> list[dict[str, float]]:
    """Train the weights of the folder ``start`` by one schedule and write the expert; returns the log."""
    data = tasks[task]
    kept = base_answers({name: other for name, other in tasks.items() if name != task}, out)
    others = [other.ids for name, other in tasks.items() if name != task or not recipe.learnt]
    answers = torch.cat([torch.arange(FIXED), *others]).unique()
    learnt = data.ids if recipe.learnt else data.ids[:0]
    model = fixed_output(read_model(start, recipe.dropout), answers, learnt)
    train, held = (data.subset(index) for index in held_out(len(data), task))
    own = recipe.batch if lessons is None and swaps is None else round(recipe.batch * recipe.own)
    parts = [train] if lessons is None else [train, lessons]
    pools = [part.sources for part in parts] + [[source for source, _ in kept]]
    sizes = [own, recipe.batch - own, KEPT_BATCH] if lessons is not None else [own, KEPT_BATCH]
    schedule = recipe.schedule.scaled(scale)
    drawn = draws(pools, sizes, schedule.steps, *key)

    def loss_at(step: int) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(step_seed(*key, "dropout", step))
            *asked, other = drawn[step]
            losses = [
                len(index) / recipe.batch * answer_loss(model, part.subset(index), recipe.blanked)
                for part, index in zip(parts, asked, strict=True)
            ]
            if swaps is not None:
                losses.append((1 - recipe.own) * swaps.loss(model, step))
            form = text_loss(model, [kept[int(i)] for i in other])
            return torch.stack([*losses, KEPT_WEIGHT * form]).sum()

    checkpoint = work / f"{'-'.join(key)}.pt"
    log = optimise(
        task, model, list(model.parameters()), schedule, loss_at, checkpoint, lambda: score(model, held)
    )
    write_model(model, out / "experts" / task)
    return log
