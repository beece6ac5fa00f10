"""Further lessons of some tasks, made from training rows: a linear teacher's answers, fresh swaps of words.

``Linear`` is the reference learner of ``ceiling`` too: TF-IDF of words and pairs of words, logistic
regression, or ridge regression for scores. Needs scikit-learn (``pip install 'epmq[train]'``).
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from benchmarks.embedded.micro_glue_8.answers import Pairs, Row, encoded, held_out
from benchmarks.embedded.training import step_generator
from benchmarks.suites.forms import TextTask
from benchmarks.suites.prompt import TaskFile

TAUGHT = (
    "snli",
    "sarcasm",
    "sms-spam",
    "supersense",
    "sentiment",
)  # whose experts learn from the linear model, too
MARKS = r"(?u)\b\w+\b|[!?.,;:]"  # what words are for the teacher: with single letters, and marks
LESSONS = 40_000  # rows that the linear model answers, of each such task


class Linear:
    """A linear model on the TF-IDF of words and pairs of words of every column, or of parts of words, too."""

    def __init__(self, columns: tuple[str, ...], scores: bool, parts: bool = False) -> None:
        self.columns, self.scores = columns, scores
        words: dict[str, Any] = {"ngram_range": (1, 2), "min_df": 2}
        letters: dict[str, Any] = {"ngram_range": (2, 5), "min_df": 3, "analyzer": "char_wb"}
        kinds = [words | {"token_pattern": MARKS}, letters] if parts else [words]
        self.seen = [(c, TfidfVectorizer(sublinear_tf=True, **kind)) for c in columns for kind in kinds]
        self.model: Any = Ridge(1.0) if scores else LogisticRegression(C=4, max_iter=300)

    def fit(self, rows: list[Row]) -> Self:
        x = hstack([words.fit_transform([row[c] for row in rows]) for c, words in self.seen])
        self.model.fit(x, [row["label"] for row in rows])
        return self

    def _features(self, rows: list[Row]) -> csr_matrix:
        return csr_matrix(hstack([words.transform([row[c] for row in rows]) for c, words in self.seen]))

    def predict(self, rows: list[Row]) -> NDArray[np.float64]:
        """Labels, or scores: ``(n,)``."""
        found: NDArray[np.float64] = self.model.predict(self._features(rows))
        return found

    def teach(self, rows: list[Row]) -> NDArray[np.float64]:
        """Probabilities of the labels in ascending order ``(n, k)``, or scores ``(n,)``."""
        x = self._features(rows)
        found: NDArray[np.float64] = self.model.predict(x) if self.scores else self.model.predict_proba(x)
        return found


def crossed(rows: list[Row], columns: tuple[str, ...], count: int, g: torch.Generator) -> list[Row]:
    """Rows whose texts begin as one row's and end as another's, cut at words; without labels."""

    def draw(n: int) -> int:
        return int(torch.randint(n, (), generator=g))

    def cross(one: str, other: str) -> str:
        begin, end = one.split(), other.split()
        return " ".join([*begin[: draw(len(begin) + 1)], *end[draw(len(end)) :]])

    found = []
    for _ in range(count):
        one, other = (rows[draw(len(rows))] for _ in range(2))
        found.append({c: cross(one[c], other[c]) for c in columns})
    return found


def lessons_of(task: TextTask, read: TaskFile, data: dict[str, list[Row]], tokenizer: Any) -> Pairs | None:
    """Further lessons of a task, from training rows that are not held out; ``None`` if it has none."""
    train = [data[task.task][int(i)] for i in held_out(len(data[task.task]), task.task)[0]]
    g = step_generator("lessons", task.task)
    if task.task in TAUGHT:
        others = of_known_kind(data["definition"], read) if task.task == "supersense" else []
        teacher = Linear(read.columns, read.metric == "spearman", parts=True).fit(train + others)
        crossings = crossed(train + others, read.columns, LESSONS, g)
        taught = torch.as_tensor(teacher.teach(crossings)).float()
        if others:
            taught = torch.cat([taught, torch.eye(taught.shape[1])[[row["label"] for row in others]]])
        return encoded(tokenizer, read, crossings + others, taught)
    if task.task == "definition":
        return encoded(tokenizer, read, of_a_kind(train, data["supersense"], g))
    return None


def of_known_kind(rows: list[Row], read: TaskFile) -> list[Row]:
    """Glosses of ``definition`` whose kind is known, as rows of ``supersense``."""
    kinds, train = read.choices or [], held_out(len(rows), "definition")[0].tolist()
    known = [rows[i] for i in train if rows[i]["label"] == 1]
    return [{"gloss": row["gloss"], "label": kinds.index(row["category"])} for row in known]


def of_a_kind(rows: list[Row], defined: list[Row], g: torch.Generator) -> list[Row]:
    """Glosses of ``definition`` and ``supersense``, once with their own kind and once with another."""
    kinds = sorted({row["category"] for row in rows})
    known = [(row["gloss"], row["category"]) for row in rows if row["label"] == 1]
    learnt = held_out(len(defined), "supersense")[0].tolist()
    known += [(defined[i]["gloss"], kinds[defined[i]["label"]]) for i in learnt]
    found = []
    for gloss, kind in known:
        others = [other for other in kinds if other != kind]
        other = others[int(torch.randint(len(others), (), generator=g))]
        found += [{"gloss": gloss, "category": c, "label": int(c == kind)} for c in (kind, other)]
    return found
