"""Evaluation of text tasks by lm-eval, on a model in memory."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from benchmarks.suites.prompt import LmTask
from epmq.errors import UserError


def require() -> None:
    """Refuse to start without what evaluation needs; raises UserError."""
    for package in ("lm_eval", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"text tasks need lm-eval (no package {package}); pip install 'epmq[lm]'")


@dataclass(frozen=True)
class Answers:
    """What a model answers to one task.

    Attributes:
        said: the generated texts, in the order of the data set's rows.
        wanted: the texts that are right, in the same order.
        value: lm-eval's value of the task's metric: accuracy in 0..1, or Spearman's rho in -1..1.
    """

    said: list[str]
    wanted: list[str]
    value: float


def answers(
    model: Any,
    tokenizer: Any,
    tasks: Mapping[str, tuple[LmTask, Dataset]],
    *,
    batch_size: int,
    max_length: int = 512,
) -> dict[str, Answers]:
    """What ``model`` answers greedily to every row of every task, evaluated by ``lm_eval.evaluator``.

    Rows of all tasks are batched together by length. No global random state is touched, nothing is read from
    a network and nothing is printed.

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
        found = evaluator.evaluate(lm, {"tasks": asked, "groups": {}}, bootstrap_iters=0, log_samples=True)
    return {name: _answers(found, name, next(iter(asked[name].aggregation()))) for name in tasks}


def _answers(found: Mapping[str, Any], name: str, metric: str) -> Answers:
    """One task of lm-eval's results; a sample's metric is its pair of reference and prediction."""
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    wanted, said = zip(*(sample[metric] for sample in samples), strict=True)
    return Answers(list(said), list(wanted), float(found["results"][name][f"{metric},none"]))


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
