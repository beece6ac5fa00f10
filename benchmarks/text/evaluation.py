"""Evaluation of text tasks by lm-eval, on a model in memory."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from benchmarks.suites.prompt import TaskFile
from epmq.errors import UserError

RANKED = "@ranked"  # after a task's name: lm-eval's multiple choice of the same rows


def require() -> None:
    """Refuse to start without what evaluation needs; raises UserError."""
    for package in ("lm_eval", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"text tasks need lm-eval (no package {package}); pip install 'epmq[lm]'")


@dataclass(frozen=True)
class Ranked:
    """The answers of a task, ranked by their likelihood as in lm-eval's multiple choice.

    Attributes:
        likelihoods: float64 ``(n, choices)``, the sum of the log-probabilities of an answer's tokens.
        best: the number of the likeliest answer, row by row; the first of equals.
        best_norm: the same with every sum divided by the number of the answer's characters.
        value, value_norm: lm-eval's ``acc`` and ``acc_norm``, in 0..1.
    """

    likelihoods: NDArray[np.float64] = field(compare=False)
    best: list[int]
    best_norm: list[int]
    value: float
    value_norm: float


@dataclass(frozen=True)
class TextAnswers:
    """What a model answers to one task.

    Attributes:
        said: the generated texts, in the order of the data set's rows.
        wanted: the texts that are right, in the same order.
        value: lm-eval's value of the task's metric: accuracy in 0..1, or Spearman's rho in -1..1.
        ranked: of a task with choices.
    """

    said: list[str]
    wanted: list[str]
    value: float
    ranked: Ranked | None = None


def answers(
    model: Any,
    tokenizer: Any,
    tasks: Mapping[str, tuple[TaskFile, Dataset]],
    *,
    batch_size: int,
    max_length: int = 512,
) -> dict[str, TextAnswers]:
    """What ``model`` answers to every row of every task, evaluated by ``lm_eval.evaluator``.

    Answers are generated greedily; where a task has choices they are ranked by likelihood as well. Rows of
    all tasks are batched together by length. No global random state is touched, nothing is read from a
    network and nothing is printed.

    Args:
        model: a ``transformers`` encoder-decoder or causal language model, in evaluation mode afterwards.
        tokenizer: its tokenizer; one without a padding token gets one from lm-eval.
        tasks: task file and data by name; columns and labels are checked before anything is generated.
        batch_size: rows in a batch.
        max_length: tokens of a prompt; an encoder-decoder reads the beginning of a longer one, with EOS, a
            causal model its end, with room for the answer.

    Raises:
        UserError: lm-eval is missing, or data have no rows, lack a field of the prompt or have a label that
            is none of the task's.
    """
    for name, (task, data) in tasks.items():
        if not len(data):
            raise UserError(f"{name} has no rows; take another split")
        task.require(data.column_names, name)
        task.check(data[task.label][:], name)
    with _quietly():
        evaluator, harness = _lm_eval()
        lm = harness.InPlaceModel(model, tokenizer, batch_size, max_length)
        asked = {name: harness.InPlaceTask(*task) for name, task in tasks.items()}
        for name, (task, data) in tasks.items():
            if task.choices is not None:
                asked[name + RANKED] = harness.RankedTask(task, data, _delimiter(model, task))
        found = evaluator.evaluate(lm, {"tasks": asked, "groups": {}}, bootstrap_iters=0, log_samples=True)
    return {
        name: _answers(found, name, next(iter(asked[name].aggregation())), task.choices)
        for name, (task, _) in tasks.items()
    }


def generated(
    model: Any, tokenizer: Any, task: TaskFile, rows: Dataset, *, batch_size: int, max_length: int
) -> list[list[int]]:
    """Token ids of what ``answers`` generates for the rows of a task, in order, with the end token.

    No label is read. Raises UserError where lm-eval is missing.
    """
    with _quietly():
        _, harness = _lm_eval()
        lm = harness.InPlaceModel(model, tokenizer, batch_size, max_length)
        found: list[list[int]] = lm.generated(
            [task.prompt(row) for row in rows], task.config["generation_kwargs"]
        )
    return found


def _delimiter(model: Any, task: TaskFile) -> str:
    return "" if model.config.is_encoder_decoder else str(task.config.get("target_delimiter", " "))


def _answers(found: Mapping[str, Any], name: str, metric: str, choices: Sequence[str] | None) -> TextAnswers:
    """One task of lm-eval's results; a sample's metric is its pair of reference and prediction."""
    wanted, said = zip(*(sample[metric] for sample in _samples(found, name)), strict=True)
    value = float(found["results"][name][f"{metric},none"])
    ranked = None if choices is None else _ranked(found, name + RANKED, choices)
    return TextAnswers(list(said), list(wanted), value, ranked)


def _ranked(found: Mapping[str, Any], name: str, choices: Sequence[str]) -> Ranked:
    """One task of lm-eval's results; a sample's responses are the likelihoods of the answers."""
    likelihoods = np.array([[x for x, _ in s["filtered_resps"]] for s in _samples(found, name)], np.float64)
    best = likelihoods.argmax(1)
    best_norm = (likelihoods / [len(choice) for choice in choices]).argmax(1)
    values = [float(found["results"][name][f"{metric},none"]) for metric in ("acc", "acc_norm")]
    return Ranked(likelihoods, best.tolist(), best_norm.tolist(), *values)


def _samples(found: Mapping[str, Any], name: str) -> list[Any]:
    return sorted(found["samples"][name], key=lambda sample: sample["doc_id"])


def _lm_eval() -> tuple[Any, Any]:
    try:
        from lm_eval import evaluator

        from benchmarks.text import harness
    except ImportError as error:
        raise UserError(f"text tasks need lm-eval ({error}); pip install 'epmq[lm]'") from error
    return evaluator, harness


@contextmanager
def _quietly() -> Iterator[None]:
    """Without lm-eval's notes on models and data that are in memory already."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
