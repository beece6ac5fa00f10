"""Prompts and answers of ``micro-glue-8`` as its recipe trains and scores them: an answer is one piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.embedded.training import batches_alike, step_generator
from benchmarks.suites.prompt import TaskFile

Row = dict[str, Any]
HELD_OUT = 0.10  # of each task's training split, to measure convergence and to choose by
MEASURED = 512  # held-out rows of each task that are answered at a time
SPREAD = 0.6  # standard deviation of the answers taught for one score


@dataclass
class Pairs:
    """Prompts of one task as token ids that end in ``</s>``, and what to answer.

    Attributes:
        sources: token ids of the prompts.
        taught: probabilities of the answers ``(n, k)``, float32; one 1 in a row where the answer is known.
        answers: the ``k`` answers, each of one piece, and ``ids``, those pieces.
        labels: the numbers to compare with, for scores.
    """

    sources: list[list[int]]
    taught: Tensor
    answers: list[str]
    ids: Tensor
    labels: list[float] | None

    def __len__(self) -> int:
        return len(self.sources)

    def subset(self, index: Tensor) -> Pairs:
        at = index.tolist()
        labels = None if self.labels is None else [self.labels[i] for i in at]
        return Pairs([self.sources[i] for i in at], self.taught[index], self.answers, self.ids, labels)


def task_answers(task: TaskFile) -> list[str]:
    """Every answer of a task in its labels' order; for scores, those of its scale in steps of a tenth."""
    if task.choices is not None:
        return list(task.choices)
    low, high = task.metadata.label_range
    return [f"{x / 10:.1f}" for x in range(round(10 * low), round(10 * high) + 1)]


def hoped_for(answers: list[str], scores: Any) -> Tensor:
    """Probabilities of the answers round each score: a normal density of width ``SPREAD``, float32."""
    distance = torch.tensor([float(a) for a in answers]) - torch.as_tensor(scores).float()[:, None]
    return (-0.5 * (distance / SPREAD) ** 2).softmax(1)


def encoded(tokenizer: Any, task: TaskFile, data: list[Row], taught: Any = None) -> Pairs:
    """Rows as the model reads them; ``taught``: probabilities, or scores, instead of the rows' labels."""
    answers, graded = task_answers(task), task.metric == "spearman"
    pieces = tokenizer(answers, add_special_tokens=False).input_ids
    assert all(len(p) == 1 for p in pieces), "every answer is one piece"
    labels: list[Any] = [row.get("label") for row in data]
    if taught is None:
        taught = labels if graded else torch.eye(len(answers))[labels]
    taught = hoped_for(answers, taught) if graded else torch.as_tensor(taught).float()
    sources = tokenizer([task.prompt(row) for row in data]).input_ids
    return Pairs(sources, taught, answers, torch.tensor(pieces)[:, 0], labels if graded else None)


def held_out(n: int, task: str) -> tuple[Tensor, Tensor]:
    """Indices of the rows to train on and of those held out."""
    order = torch.randperm(n, generator=step_generator("held-out", task))
    cut = int(n * HELD_OUT)
    return order[cut:], order[:cut]


def draws(pools: list[list[list[int]]], sizes: list[int], steps: int, *key: object) -> list[list[Tensor]]:
    """At every step, the indices of a batch of its size from each pool of token ids."""
    orders = [
        batches_alike(list(map(len, pool)), size, *key, k)
        for k, (pool, size) in enumerate(zip(pools, sizes, strict=True))
    ]
    return [indices for _, *indices in zip(range(steps), *orders, strict=False)]


def padded(ids: list[list[int]], value: int) -> Tensor:
    """Integer matrix ``(n, longest)``, filled up with ``value``."""
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(i) for i in ids], batch_first=True, padding_value=value
    )


def text_loss(model: Any, pairs: list[tuple[list[int], list[int]]]) -> Tensor:
    """Mean cross-entropy of the targets' tokens, for pairs of source and target."""
    x, labels = padded([pair[0] for pair in pairs], 0), padded([pair[1] for pair in pairs], -100)
    loss: Tensor = model(input_ids=x, attention_mask=(x != 0).long(), labels=labels).loss
    return loss


def answer_loss(model: Any, data: Pairs, blanked: float = 0.0, states: Tensor | None = None) -> Tensor:
    """Cross-entropy of the answers' pieces against ``taught``, and of the ``</s>`` after them.

    ``blanked``: the share of a prompt's pieces that are replaced by ``<unk>``; ``states``: the encoder's, if
    it has read the prompts already.
    """
    x = padded(data.sources, 0)
    if blanked:
        x = x.where((torch.rand(x.shape) >= blanked) | (x <= 1), 2)
    said = data.ids[data.taught.argmax(1)]
    begun = torch.stack([torch.zeros_like(said), said], 1)
    read = {"input_ids": x} if states is None else {"encoder_outputs": (states,)}
    logits = model(**read, attention_mask=(x != 0).long(), decoder_input_ids=begun).logits
    likely = logits[:, 0].log_softmax(1)[:, data.ids]
    stop = torch.nn.functional.cross_entropy(logits[:, 1], torch.ones_like(said))
    loss: Tensor = stop - (data.taught * likely).sum(1).mean()
    return loss


@torch.no_grad()
def score(model: Any, data: Pairs) -> dict[str, float]:
    """In percent: the answers generated, the likeliest of the task's, and how many of the first are valid.

    The score is accuracy, an invalid answer being wrong; or Spearman's rho, an invalid answer being 0.0.
    """
    part = data.subset(torch.arange(min(MEASURED, len(data))))
    found = [spoken(model, part.subset(index)) for index in torch.split(torch.arange(len(part)), 64)]
    among, ranked = torch.cat([x[0] for x in found]), torch.cat([x[1] for x in found])
    valid = among.any(1)
    if part.labels is None:
        wanted = part.taught.argmax(1)
        right = {"generated": among[torch.arange(len(part)), wanted], "ranked": ranked == wanted}
        scores = {name: 100 * float(r.float().mean()) for name, r in right.items()}
    else:
        scale = torch.tensor([float(a) for a in part.answers])
        guesses = {"generated": scale[among.int().argmax(1)] * valid, "ranked": scale[ranked]}
        scores = {name: 100 * rho(guess.tolist(), part.labels) for name, guess in guesses.items()}
    return {**scores, "valid": 100 * float(valid.float().mean())}


def spoken(model: Any, data: Pairs) -> tuple[Tensor, Tensor]:
    """Which answer greedy generation gives, as a boolean row ``(n, k)``, and the index of the likeliest."""
    x = padded(data.sources, 0)
    asked: dict[str, Any] = {"attention_mask": (x != 0).long()}
    read = model(input_ids=x, **asked, decoder_input_ids=torch.zeros(len(x), 1, dtype=torch.long))
    first = read.logits[:, 0]
    said = first.argmax(1)
    asked["encoder_outputs"] = (read.encoder_last_hidden_state,)
    begun = torch.stack([torch.zeros_like(said), said], 1)
    then = model(**asked, decoder_input_ids=begun).logits[:, 1].argmax(1)
    return (said[:, None] == data.ids) & (then == 1)[:, None], first[:, data.ids].argmax(1)


def rho(said: list[float], wanted: list[float]) -> float:
    """Spearman's rho, 0.0 where it is undefined."""
    if len(set(said)) == 1:
        return 0.0
    return float(spearmanr(said, wanted).statistic)
