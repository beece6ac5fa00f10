"""What an unrelated learner reaches on the experts' training rows: a reference for the experts.

``python -m benchmarks.embedded.micro_glue_8.ceiling`` fits a linear model on words and pairs of words
(TF-IDF): logistic regression, or ridge regression for scores. Needs scikit-learn (``pip install
'epmq[train]'``).
"""

from __future__ import annotations

from typing import Any

import torch
from datasets import load_dataset
from scipy.sparse import hstack
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from tabulate import tabulate

from benchmarks.embedded.micro_glue_8.train import HELD_OUT
from benchmarks.embedded.training import step_generator
from benchmarks.suites import load as suites
from benchmarks.suites import prompt
from benchmarks.suites.forms import TextTask
from benchmarks.suites.load import locate


def reached(task: TextTask) -> float:
    """Test accuracy, or Spearman's rho, in percent."""
    data = load_dataset(str(locate(task.dataset.path)))
    order = torch.randperm(len(data["train"]), generator=step_generator("held-out", task.task))
    train = data["train"].select(order[int(len(order) * HELD_OUT) :].tolist())
    parts: list[Any] = [[], []]
    for column in task.dataset.columns:
        words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        parts[0].append(words.fit_transform(train[column]))
        parts[1].append(words.transform(data["test"][column]))
    x, x_test = (hstack(part) for part in parts)
    if prompt.read(task.prompt).metric == "spearman":
        fitted = Ridge(1.0).fit(x, train["label"])
        return 100 * float(spearmanr(fitted.predict(x_test), data["test"]["label"]).statistic)
    return 100 * float(
        LogisticRegression(C=4, max_iter=300).fit(x, train["label"]).score(x_test, data["test"]["label"])
    )


def main() -> None:
    tasks = [task for task in suites.load("micro-glue-8").tasks if isinstance(task, TextTask)]
    print(
        tabulate(
            [[task.task, reached(task)] for task in tasks],
            ["task", "linear on words"],
            "pipe",
            floatfmt=".1f",
        )
    )


if __name__ == "__main__":
    main()
