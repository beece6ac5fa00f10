"""Scores of the shipped weights and of their plain merges: the table of this folder's README.

``python -m benchmarks.embedded.micro_glue_8.measured`` reads the test splits; with ``--held-out`` it
reads instead the training rows that no model was trained on, by which the recipe's choices were made.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from datasets import load_dataset
from safetensors.torch import load_file
from tabulate import tabulate
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from benchmarks.embedded.micro_glue_8.answers import Pairs, encoded, held_out, score
from benchmarks.embedded.micro_glue_8.train import HERE
from benchmarks.embedded.micro_glue_8.weights import read_model
from benchmarks.suites import load as suites
from benchmarks.suites import prompt
from benchmarks.suites.forms import TextSuite
from epmq.merging import merge

EMBEDDING_COUNTS = {"shared.weight": 4}  # in T5's state dict: shared, both stacks' and the output layer


def questions(tokenizer: Any, held: bool) -> dict[str, Pairs]:
    """Of every task, its test rows or the held-out ones of its training rows."""
    found, suite = {}, suites.load("micro-glue-8")
    assert isinstance(suite, TextSuite)
    for task in suite.tasks:
        data = load_dataset(str(HERE / "data" / task.task), split="train" if held else "test").to_list()
        if held:
            data = [data[int(i)] for i in held_out(len(data), task.task)[1]]
        found[task.task] = encoded(tokenizer, prompt.read(task.prompt), data)
    return found


def filled(models: Path, weights: dict[str, Tensor]) -> Any:
    """The base with other weights."""
    model = read_model(models / "base", 0.0).eval()
    model.load_state_dict(weights, strict=False)
    return model


def measured(models: Path, held: bool) -> dict[str, dict[str, dict[str, float]]]:
    """Scores by model, task and kind of score, in percent; ``expert`` is each task's own."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(models / "base")
    asked = questions(tokenizer, held)
    base = load_file(models / "base" / "model.safetensors")
    experts = {task: load_file(models / "experts" / task / "model.safetensors") for task in asked}
    merges = {
        "base": base,
        "task arithmetic": merge("task-arithmetic", base, list(experts.values())),
        "TIES": merge("ties", base, list(experts.values()), multiplicity=EMBEDDING_COUNTS),
    }
    found = {}
    for name, weights in merges.items():
        model = filled(models, weights)
        found[name] = {task: score(model, pairs) for task, pairs in asked.items()}
    found["expert"] = {t: score(filled(models, experts[t]), pairs) for t, pairs in asked.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=HERE / "models", help="base and experts")
    parser.add_argument("--held-out", action="store_true", help="held-out training rows, not the test split")
    options = parser.parse_args()
    found = measured(options.models, options.held_out)
    for kind in ("generated", "ranked", "valid"):
        rows = [[task, *(scores[task][kind] for scores in found.values())] for task in found["base"]]
        graded = [row[1:] for row in rows if kind != "ranked" or row[0] != "sentiment"]
        rows.append(["average", *(sum(x) / len(graded) for x in zip(*graded, strict=True))])
        print(kind, tabulate(rows, ["task", *found], "pipe", floatfmt=".1f"), sep="\n\n", end="\n\n")


if __name__ == "__main__":
    main()
