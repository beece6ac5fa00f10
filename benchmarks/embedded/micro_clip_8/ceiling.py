"""What each task's training data is worth to an unrelated learner, to judge the experts by.

``python -m benchmarks.embedded.micro_clip_8.ceiling`` (needs scikit-learn, the ``train`` extra) fits a
support vector machine with an RBF kernel on the raw pixels of the training samples that an expert sees, and
prints its test accuracy. An expert well below it would be undertrained. Nothing else reads these numbers.
"""

from __future__ import annotations

from sklearn.svm import SVC
from tabulate import tabulate
from torch import Tensor

from benchmarks.embedded.micro_clip_8.train import Labelled, load_split, split_held_out
from benchmarks.suites import load as suites


def accuracy(train: Labelled, images: Tensor, labels: Tensor) -> float:
    """Test accuracy of an RBF support vector machine on flattened pixels."""
    machine = SVC(C=10.0, gamma="scale").fit(train.images.flatten(1).numpy(), train.labels.numpy())
    return float(machine.score(images.flatten(1).numpy(), labels.numpy()))


def main() -> None:
    suite = suites.load_clip("micro-clip-8")
    rows = []
    for task in suite.tasks:
        folder = suites.locate(task.dataset.path)
        train, _ = split_held_out(load_split(folder, task.class_names, task.templates), task.task)
        test = load_split(folder, task.class_names, task.templates, split="test")
        rows.append([task.task, len(train.labels), 100 * accuracy(train, test.images, test.labels)])
    print(
        tabulate(rows, ["task", "training samples", "SVM on pixels, test accuracy"], "pipe", floatfmt=".1f")
    )


if __name__ == "__main__":
    main()
