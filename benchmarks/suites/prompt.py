"""A text task: an lm-eval task file with a prompt, the answers and a metric of ours.

The files are ``benchmarks/suites/prompts/SET/TASK.yaml``; the suite says which data set the rows come from.
Prompts are rendered by lm-eval's own template environment, for calibration as for evaluation; what a template
may hold is in ``benchmarks.suites.templates``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import jinja2
import yaml
from jinja2 import meta, nodes
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from benchmarks.suites import templates
from benchmarks.suites.strict import Count, Strict, first_complaint
from epmq.errors import UserError
from results.store.files import read_followed

PROMPTS = Path(__file__).parent / "prompts"
MAX_BYTES = 1 << 20  # of a task file
FUNCTIONS = "benchmarks.lm_metrics."
METRICS: dict[str, Literal["accuracy", "spearman"]] = {"exact_label": "accuracy", "spearman_text": "spearman"}
DATA = {"dataset_path", "dataset_name", "training_split", "validation_split", "test_split"}

Row = Mapping[str, Any]


@cache
def _columns(field: str, template: str) -> tuple[str, ...]:
    """The data's columns in the template of a field, in order; raises ValueError for none or no template."""
    try:
        parsed = templates.parsed(template)
    except ValueError as error:
        raise ValueError(f"field {field!r} {error}") from error
    columns = meta.find_undeclared_variables(parsed)
    found = tuple(dict.fromkeys(name.name for name in parsed.find_all(nodes.Name) if name.name in columns))
    if not found:
        raise ValueError(f"field {field!r} names no column such as {{{{sentence}}}}")
    return found


def _different(choices: list[str]) -> list[str]:
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise ValueError(f"{choices} needs two or more different texts")
    return choices


def _one_of_ours(entries: list[Any]) -> list[Any]:
    if entries in [_entries(name) for name in METRICS]:
        return entries
    named = [entry.get("metric") if isinstance(entry, dict) else entry for entry in entries]
    raise ValueError(
        f"{named} is none of ours, expected one of {', '.join(METRICS)} with the two functions of "
        "benchmarks.lm_metrics, as in the files of benchmarks/suites/prompts"
    )


def _entries(name: str) -> list[dict[str, Any]]:
    """What ``metric_list`` is for a metric."""
    function = f"{FUNCTIONS}{name}"
    return [{"metric": function, "aggregation": f"{function}_value", "higher_is_better": True}]


class Generation(Strict):
    """How answers end: at EOS, at a text of ``until`` or after ``max_gen_toks`` tokens; all are greedy."""

    do_sample: Literal[False]
    until: list[str]
    max_gen_toks: Count


class Metadata(BaseModel):
    """What lm-eval keeps and does not read.

    Attributes:
        version: of the file; a change that can move a number takes a new one.
        label_range: of a task without ``doc_to_choice``, its smallest and its largest label.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    version: Count
    label_range: Any = None


class TaskFile(Strict):
    """One task file: lm-eval's fields, as far as a task of ours has them.

    Attributes:
        doc_to_text: the prompt's template, over the columns of the data.
        doc_to_target: the column of the label, or without ``doc_to_choice`` a template over it.
        metric_list: the functions of one of ``METRICS``.
    """

    task: str
    output_type: Literal["generate_until"] = "generate_until"
    doc_to_text: str
    doc_to_choice: Annotated[list[str], AfterValidator(_different)] | None = None
    doc_to_target: str
    target_delimiter: str = " "
    generation_kwargs: Generation
    metric_list: Annotated[list[Any], AfterValidator(_one_of_ours)]
    metadata: Metadata
    # Where the rows are; a suite does not need it.
    dataset_path: str | None = None
    dataset_name: str | None = None
    training_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None

    @model_validator(mode="after")
    def _columns_and_labels_are_known(self) -> TaskFile:
        _columns("doc_to_text", self.doc_to_text)
        target, bounds = self.doc_to_target, self.metadata.label_range
        if self.doc_to_choice is not None:
            if not target.isidentifier():
                raise ValueError(f"doc_to_target {target!r} is no column name, which doc_to_choice needs")
            return self
        if len(names := _columns("doc_to_target", target)) > 1:
            raise ValueError(f"doc_to_target names {', '.join(names)}, expected one column")
        if not _is_range(bounds):
            raise ValueError(
                f"metadata label_range is {bounds!r}, expected [low, high] for a task without doc_to_choice"
            )
        return self

    @property
    def name(self) -> str:
        """The task's name in lm-eval."""
        return self.task

    @property
    def choices(self) -> list[str] | None:
        """The answer's text by label; ``None`` where labels are numbers."""
        return self.doc_to_choice

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the prompt, in the order in which it names them."""
        return _columns("doc_to_text", self.doc_to_text)

    @property
    def label(self) -> str:
        """The column of the answer."""
        return self.doc_to_target if self.choices else _columns("doc_to_target", self.doc_to_target)[0]

    @property
    def metric(self) -> Literal["accuracy", "spearman"]:
        """What ``Answers.value`` is."""
        return METRICS[self.metric_list[0]["metric"].removeprefix(FUNCTIONS)]

    @property
    def data(self) -> dict[str, str]:
        """lm-eval's fields of where the rows are, those that the file has."""
        return self.model_dump(include=DATA, exclude_none=True)

    @property
    def config(self) -> dict[str, Any]:
        """The rest of the file as it is, functions by name; a suite's fingerprint covers it."""
        return self.model_dump(exclude=DATA, exclude_unset=True)

    def prompt(self, row: Row) -> str:
        """The text that the model reads for a row of the data set."""
        return _rendered(self.doc_to_text, row)

    def target(self, row: Row) -> str:
        """The text that the model should answer.

        Raises:
            UserError: the row's label is none of the task's, as the -1 of GLUE's test splits.
        """
        label = row[self.label]
        if not self._knows(label):
            raise UserError(self._refusal(label, "a row"))
        return self.choices[label] if self.choices else _rendered(self.doc_to_target, row)

    def require(self, columns: Iterable[str], where: str) -> None:
        """Check that the data at ``where`` have the prompt's fields and the label.

        Raises:
            UserError: a column is missing.
        """
        there = list(columns)
        for column in (*self.columns, self.label):
            if column not in there:
                raise UserError(
                    f"{where} has no column {column!r}, which the task {self.name} needs, only "
                    f"{', '.join(there)}; correct the suite or the task file"
                )

    def check(self, labels: Iterable[object], where: str) -> None:
        """Check every label of the data at ``where``.

        Raises:
            UserError: a label is none of the task's.
        """
        for label in labels:
            if not self._knows(label):
                raise UserError(self._refusal(label, where))

    def _knows(self, label: object) -> bool:
        if self.choices:
            return type(label) is int and 0 <= label < len(self.choices)
        low, high = self.metadata.label_range
        return type(label) in (int, float) and low <= label <= high

    def _refusal(self, label: object, where: str) -> str:
        numbers = "{:g} to {:g}"
        expected = (
            f"0..{len(self.choices) - 1}" if self.choices else numbers.format(*self.metadata.label_range)
        )
        return (
            f"{where}: label {label!r} is none of the task {self.name}, {expected}; "
            "take a split with labels (GLUE's test splits have none)"
        )


def _is_range(given: object) -> bool:
    bounds = [b for b in given if type(b) in (int, float)] if isinstance(given, list) else []
    return len(bounds) == 2 and bounds[0] < bounds[1]


def read(name: str) -> TaskFile:
    """The task file ``SET/TASK.yaml`` below ``benchmarks/suites/prompts``, or any task file by path.

    Raises:
        UserError: there is no such file, or it is no task file with a metric and a version of ours.
    """
    file = PROMPTS / name if (PROMPTS / name).is_file() else Path(name)
    try:
        return TaskFile.model_validate(_content(file), strict=True)
    except ValidationError as error:
        raise UserError(f"{file}: {first_complaint(error)}; correct the task file") from error


class _Loader(yaml.SafeLoader):
    """YAML with lm-eval's ``!function``, which is kept as a name: a file runs no code of its own.

    Other tags are refused, and aliases too: a few lines of them can stand for gigabytes.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name); write out what it stands for")
        return super().compose_node(parent, index)


_Loader.add_constructor("!function", lambda _, node: str(node.value))


def _content(file: Path) -> dict[str, Any]:
    try:
        found = yaml.load(read_followed(file, MAX_BYTES), Loader=_Loader)
    except OSError as error:
        raise UserError(f"{file}: cannot read the task file: {error.strerror}; check the path") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # of a tag, a number, lists in lists
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: is no YAML: {reason}; correct the task file") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: expected the fields of a task, found {type(found).__name__}; correct it")
    return found


def _rendered(template: str, row: Row) -> str:
    """``lm_eval.utils.apply_template``, which would compile the template for every row."""
    try:
        return str(_compiled(template).render(row))
    except jinja2.UndefinedError as error:
        raise UserError(f"the prompt {template!r}: the data lack a field: {error}") from error


@cache
def _compiled(template: str) -> jinja2.Template:
    try:
        from lm_eval.utils import env
    except ImportError as error:
        raise UserError(f"text tasks need lm-eval ({error}); pip install 'epmq[lm]'") from error
    found: jinja2.Template = env.from_string(template)
    return found
