"""What an unrelated learner reaches on the experts' training rows: a reference for the experts.

``python -m benchmarks.embedded.micro_glue_8.ceiling`` fits a linear model on words and pairs of words
(``lessons.Linear``) and scores it on the held-out training rows and on the test split. Needs scikit-learn
(``pip install 'epmq[train]'``).
"""

from __future__ import annotations

import numpy as np
from datasets import load_dataset
from scipy.stats import spearmanr
from tabulate import tabulate

from benchmarks.embedded.micro_glue_8.answers import Row, held_out
from benchmarks.embedded.micro_glue_8.lessons import Linear
from benchmarks.suites import load as suites
from benchmarks.suites import prompt
from benchmarks.suites.forms import TextTask
from benchmarks.suites.load import locate


def reached(task: TextTask) -> tuple[float, float]:
    """Accuracy, or Spearman's rho, in percent: on the held-out training rows and on the test split."""
    data = load_dataset(str(locate(task.dataset.path)))
    read, rows = prompt.read(task.prompt), data["train"].to_list()
    kept, held = ([rows[int(i)] for i in index] for index in held_out(len(rows), task.task))
    model = Linear(read.columns, read.metric == "spearman").fit(kept)

    def score(asked: list[Row]) -> float:
        said, labels = model.predict(asked), [row["label"] for row in asked]
        return 100 * float(spearmanr(said, labels).statistic if model.scores else np.mean(said == labels))

    return score(held), score(data["test"].to_list())


def main() -> None:
    tasks = [task for task in suites.load("micro-glue-8").tasks if isinstance(task, TextTask)]
    print(
        tabulate(
            [[task.task, *reached(task)] for task in tasks],
            ["task", "held out", "test"],
            "pipe",
            floatfmt=".1f",
        )
    )


if __name__ == "__main__":
    main()
