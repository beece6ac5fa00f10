"""The workbench of a text suite: language models that read prompts and generate answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from benchmarks.sources import data
from benchmarks.suites import prompt
from benchmarks.suites.forms import TaskSpec, TextSuite, TextTask
from benchmarks.suites.prompt import TaskFile
from benchmarks.text import evaluation
from benchmarks.text.inputs import Encoder
from benchmarks.text.metrics import number
from benchmarks.text.models import TextModels, open_models
from benchmarks.workbench.base import Answers, Workbench
from epmq.errors import UserError
from epmq.gather.passes import Batches
from epmq.models.tower import Tower
from epmq.refinement.budget import Budget
from epmq.refinement.objective import AnswerDivergence, Objective
from epmq.refinement.samples import BatchRows, Rows

EVALUATED = 64  # prompts generated from at a time


class TextWorkbench(Workbench):
    """A text suite's models and data."""

    suite: TextSuite
    models: TextModels

    def _open_models(self) -> None:
        evaluation.require()
        self._tasks: dict[str, TaskFile] = {t.task: self._task_file(t.prompt) for t in self.suite.tasks}
        if self.setting.machine.dtype == "float16" and self.suite.architecture == "encoder-decoder":
            raise UserError("--dtype float16 overflows in T5; give float32 or bfloat16")
        self.models = open_models(self.suite, self.sources)
        self._said: dict[str, dict[str, list[list[int]]]] = {}

    def _task_file(self, name: str) -> TaskFile:
        return prompt.read(name)

    def _open_split(self, task: TextTask, split: str) -> Dataset:
        return data.open_texts(task, self._tasks[task.task], split, self.sources.arguments(task, split))

    @property
    def preprocess(self) -> dict[str, Any]:
        return {
            "library": "transformers",
            "class": type(self.models.tokenizer).__name__,
            "max_length": self.suite.max_length,
            "padding": "longest of a batch, on the right",
        }

    def inputs(self, ids: Mapping[str, list[int]], decoder: str | None) -> Mapping[str, Batches]:
        """Prompts with what each task's own expert answers, or as another of ``cells.DECODERS`` says.

        Only ``targets`` reads labels.
        """
        encoder = Encoder(self.models.tokenizer, self.tower.model.config, self.suite.max_length)
        device = self.setting.machine.device
        rows = {t.task: self.rows(t, t.dataset.train_split).select(ids[t.task]) for t in self.suite.tasks}
        if decoder == "targets":
            return {name: encoder.targets(self._tasks[name], each, device) for name, each in rows.items()}
        if decoder == "start":
            said: dict[str, list[list[int]]] = {name: [[]] * len(each) for name, each in rows.items()}
        else:
            said = self._expert_answers(ids, rows)
        return {
            name: encoder.generated(self._tasks[name], each, device, said[name])
            for name, each in rows.items()
        }

    def _expert_answers(
        self, ids: Mapping[str, list[int]], rows: Mapping[str, Dataset]
    ) -> dict[str, list[list[int]]]:
        """What each task's expert generates for its own rows; kept for later cells of the same draw.

        The experts take the tower one after the other, which afterwards holds what it held before.
        """
        draw = json.dumps(ids)
        if draw not in self._said:
            held = {name: p.detach().clone() for name, p in self.tower.merged_parameters().items()}
            self._said[draw] = {
                name: evaluation.generated(
                    self.tower.load_all(self.models.experts[name]).model,
                    self.models.tokenizer,
                    self._tasks[name],
                    each,
                    batch_size=EVALUATED,
                    max_length=self.suite.max_length,
                )
                for name, each in tqdm(rows.items(), desc="  experts' answers", leave=False, delay=2)
            }
            self.tower.load_all(held)
        return self._said[draw]

    def calibration_rows(self, samples: int, seed: int, decoder: str | None) -> Mapping[str, Rows]:
        inputs = self.calibration_inputs(samples, seed, decoder)
        return {task: BatchRows(list(batches)) for task, batches in inputs.items()}

    def objective(self, budget: Budget) -> Objective:
        """Divergence of the distributions over the answer's tokens."""
        return AnswerDivergence(budget.top)

    def features(self, tower: Tower, batch: Any) -> Tensor:
        """Square roots of the probabilities of the answer's first token, whose norm is 1."""
        logits = tower(batch)
        last = batch["attention_mask"].sum(1) - 1 if self.suite.architecture == "causal" else 0
        return torch.softmax(logits[torch.arange(len(logits)), last].float(), dim=-1).sqrt()

    def answers(self, towers: Sequence[Tower], task: TaskSpec) -> list[Answers]:
        """Each model's answers, generated greedily and ranked by likelihood, through lm-eval."""
        read, rows = self._tasks[task.task], self.rows(task, task.dataset.eval_split)
        found = []
        for tower in towers:
            said = evaluation.answers(
                self.setting.machine.ready(tower.model),
                self.models.tokenizer,
                {task.task: (read, rows)},
                batch_size=EVALUATED,
                max_length=self.suite.max_length,
            )[task.task]
            found.append(scored(read, said))
        return found


def scored(task: TaskFile, said: evaluation.TextAnswers) -> Answers:
    """Texts as classes or scores; raises AssertionError where lm-eval's metric says otherwise."""
    if task.choices is None:
        found = Answers(_numbers(said.said), _numbers(said.wanted), "spearman")
    else:
        classes = {text: i for i, text in enumerate(task.choices)}
        predicted = np.array([classes.get(text, -1) for text in said.said], dtype=np.int32)
        actual = np.array([classes[text] for text in said.wanted], dtype=np.int64)
        found = Answers(predicted, actual, ranked=_ranked(task, said.ranked, actual))
    _alike(task, found.value, said.value)
    return found


def _ranked(
    task: TaskFile, ranked: evaluation.Ranked | None, actual: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    assert ranked is not None, f"{task.name} has choices that lm-eval did not rank"
    best, best_norm = (np.array(classes, dtype=np.int32) for classes in (ranked.best, ranked.best_norm))
    _alike(task, float((best == actual).mean()), ranked.value)
    _alike(task, float((best_norm == actual).mean()), ranked.value_norm)
    return best, best_norm


def _alike(task: TaskFile, here: float, there: float) -> None:
    assert abs(here - there) < 1e-9, f"{task.name}: {here} here, {there} by lm-eval"


def _numbers(texts: Sequence[str]) -> NDArray[np.float64]:
    return np.array([number(text) for text in texts], dtype=np.float64)
