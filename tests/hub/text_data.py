"""GLUE in miniature: made-up sentences under the columns, splits and labels of ``nyu-mll/glue``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Features, Value

from tests.hub.images import generator
from tests.hub.layouts import add_tables

REPOSITORY = "nyu-mll/glue"
TRAIN, EVAL, OTHER = 40, 24, 8  # rows of a training split, of one that is evaluated, of any other
PLAIN = {"train": TRAIN, "validation": EVAL, "test": OTHER}
MNLI = {
    "train": TRAIN,
    "validation_matched": EVAL,
    "validation_mismatched": EVAL,
    "test_matched": OTHER,
    "test_mismatched": OTHER,
}
UNLABELLED = -1  # the label of test rows, which GLUE keeps to itself (but for MRPC's)

WHO = ("cat", "dog", "child", "teacher", "farmer", "singer", "doctor", "pilot")
WHAT = ("ball", "book", "river", "train", "garden", "letter", "house", "song")
DOES = ("sees", "finds", "likes", "draws", "leaves", "paints")
SEEING = ("seeing", "finding", "liking", "drawing", "leaving", "painting")
WHERE = ("at noon", "in spring", "near town", "by night")
GOOD = ("lovely", "bright", "moving", "funny", "superb")
BAD = ("dull", "awful", "boring", "clumsy", "lifeless")
SMALL = ("the", "a", "and", "is", "was", "not", "never", "who", "what", "does", "film", "nobody", "indeed")
WORDS = {*WHO, *WHAT, *DOES, *SEEING, *" ".join(WHERE).split(), *GOOD, *BAD, *SMALL}
ODD = 'it costs 5 % of {this} or {{that}}, "as they say" - isn\'t it? café'  # what templates must not read

Draw = np.random.Generator
Columns = dict[str, str]


@dataclass(frozen=True)
class Table:
    """A configuration: its columns in the hub's order, how a row of a label is made up, and its classes.

    Attributes:
        classes: the names of the hub's ClassLabel; none: labels are floats from 0 to 5.
        splits: number of rows by split, in the hub's names.
        public_test: test rows have their labels.
    """

    columns: tuple[str, ...]
    make: Callable[[Draw, float], tuple[str, ...]]
    classes: tuple[str, ...]
    splits: dict[str, int] = field(default_factory=lambda: PLAIN)
    public_test: bool = False

    @property
    def features(self) -> Features:
        label = ClassLabel(names=list(self.classes)) if self.classes else Value("float32")
        text = {name: Value("string") for name in self.columns}
        return Features(**text, label=label, idx=Value("int32"))


def one(draw: Draw, words: tuple[str, ...]) -> str:
    return words[draw.integers(len(words))]


def scene(draw: Draw, verbs: tuple[str, ...] = DOES) -> str:
    return f"the {one(draw, WHO)} {one(draw, verbs)} the {one(draw, WHAT)}"


def review(draw: Draw, label: float) -> tuple[str, ...]:
    words = GOOD if label else BAD
    said = [one(draw, words) for _ in range(3)]
    return (f"the film was {said[0]} and {said[1]} , a {said[2]} {one(draw, WHAT)}",)


def grammar(draw: Draw, label: float) -> tuple[str, ...]:
    if label:
        return (f"{scene(draw)} {one(draw, WHERE)} .",)
    return (f"{scene(draw, SEEING)} the {one(draw, SEEING)} {one(draw, WHERE)} .",)


def inference(draw: Draw, label: float) -> tuple[str, ...]:
    """Premise and hypothesis: 0 follows, 1 is about something else, 2 is denied."""
    premise = scene(draw)
    follows = f"{premise} indeed"
    return premise, (follows, f"a film was {one(draw, GOOD)}", f"nobody {premise} , never")[int(label)]


def entailed(draw: Draw, label: float) -> tuple[str, ...]:
    """0 follows, 1 does not."""
    return inference(draw, 2 * label)


def answered(draw: Draw, label: float) -> tuple[str, ...]:
    """Question and sentence: 0 if the sentence answers it."""
    answer = f"{scene(draw)} indeed" if label == 0 else f"a {one(draw, WHAT)} was {one(draw, BAD)}"
    return f"who {one(draw, DOES)} the {one(draw, WHAT)} ?", answer


def paraphrase(draw: Draw, label: float) -> tuple[str, ...]:
    """1 if both say the same."""
    return tuple(reversed(inference(draw, 0 if label else 2)))


def questions(draw: Draw, label: float) -> tuple[str, ...]:
    first, second = paraphrase(draw, label)
    return f"is it that {first} ?", f"is it that {second} ?"


def similar(draw: Draw, label: float) -> tuple[str, ...]:
    """The more alike, the more words that say so."""
    same = round(label)
    return scene(draw), " ".join([scene(draw), *["indeed"] * same, *["never"] * (5 - same)])


TABLES = {
    "cola": Table(("sentence",), grammar, ("unacceptable", "acceptable")),
    "mnli": Table(
        ("premise", "hypothesis"), inference, ("entailment", "neutral", "contradiction"), splits=MNLI
    ),
    "mrpc": Table(("sentence1", "sentence2"), paraphrase, ("not_equivalent", "equivalent"), public_test=True),
    "qnli": Table(("question", "sentence"), answered, ("entailment", "not_entailment")),
    "qqp": Table(("question1", "question2"), questions, ("not_duplicate", "duplicate")),
    "rte": Table(("sentence1", "sentence2"), entailed, ("entailment", "not_entailment")),
    "sst2": Table(("sentence",), review, ("negative", "positive")),
    "stsb": Table(("sentence1", "sentence2"), similar, ()),
}


def rows(config: str, split: str) -> list[dict[str, Any]]:
    """A split's rows, which follow from the names alone; the first one's text has odd characters in it."""
    table, draw = TABLES[config], generator("glue", config, split)
    count = table.splits[split]
    hidden = split.startswith("test") and not table.public_test
    made = []
    for i, label in enumerate(_labels(table, draw, count)):
        texts = table.make(draw, label)
        if i == 0:
            texts = (f"{texts[0]} {ODD}", *texts[1:])
        shown = UNLABELLED if hidden else label
        made.append({**dict(zip(table.columns, texts, strict=True)), "label": shown, "idx": i})
    return made


def _labels(table: Table, draw: Draw, count: int) -> list[float]:
    """Every class equally often, or means of ratings from 0 to 5; in random order."""
    spread: np.ndarray = np.linspace(0, 5, count).round(3)
    if table.classes:
        spread = np.arange(count) % len(table.classes)
    return list(draw.permutation(spread).tolist())


def write(home: Path) -> None:
    """The repository of all configurations."""
    home.mkdir(parents=True)
    for config, table in TABLES.items():
        add_tables(home, config, table.features, {split: rows(config, split) for split in table.splits})
