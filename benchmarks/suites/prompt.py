"""A text task: an lm-eval task file with a prompt, the answers and a metric of ours.

The files are ``benchmarks/suites/prompts/SET/TASK.yaml``; the suite says which data set the rows come from.
Prompts are rendered by lm-eval's own template environment, for calibration as for evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jinja2
import yaml
from jinja2 import meta, nodes

from epmq.errors import UserError

PROMPTS = Path(__file__).parent / "prompts"
METRICS: dict[str, Literal["accuracy", "spearman"]] = {"exact_label": "accuracy", "spearman_text": "spearman"}
NEEDED = ("task", "doc_to_text", "doc_to_target", "generation_kwargs", "metric_list", "metadata")
FIELDS = ("output_type", "doc_to_choice", "target_delimiter", *NEEDED)
DATA = ("dataset_path", "dataset_name", "training_split", "validation_split", "test_split")
FUNCTIONS = "benchmarks.lm_metrics."

Row = Mapping[str, Any]


@dataclass(frozen=True)
class LmTask:
    """One task file.

    Attributes:
        name: the task's name in lm-eval.
        version: of the file; a change that can move a number takes a new one.
        columns: the fields of the prompt, in the order in which it names them.
        label: the column of the answer.
        choices: the answer's text by label; ``None`` where labels are numbers.
        low, high: of a numeric label, the range.
        metric: what ``Answers.value`` is.
        data: lm-eval's fields of where the rows are, those that the file has; a suite does not need them.
        config: the rest of the file, functions by name.
    """

    name: str
    version: int
    columns: tuple[str, ...]
    label: str
    choices: tuple[str, ...] | None
    low: float
    high: float
    metric: Literal["accuracy", "spearman"]
    data: dict[str, Any]
    config: dict[str, Any]

    def prompt(self, row: Row) -> str:
        """The text that the model reads for a row of the data set."""
        return _rendered(self.config["doc_to_text"], row)

    def target(self, row: Row) -> str:
        """The text that the model should answer.

        Raises:
            UserError: the row's label is none of the task's, as the -1 of GLUE's test splits.
        """
        label = row[self.label]
        if not self._knows(label):
            raise UserError(self._refusal(label, "a row"))
        return self.choices[label] if self.choices else _rendered(self.config["doc_to_target"], row)

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
        if self.choices is not None:
            return type(label) is int and 0 <= label < len(self.choices)
        return type(label) in (int, float) and self.low <= label <= self.high  # type: ignore[operator]

    def _refusal(self, label: object, where: str) -> str:
        last = len(self.choices) - 1 if self.choices else None
        expected = f"0..{last}" if self.choices else f"{self.low:g} to {self.high:g}"
        return (
            f"{where}: label {label!r} is none of the task {self.name}, {expected}; "
            "take a split with labels (GLUE's test splits have none)"
        )


def read(name: str) -> LmTask:
    """The task file ``SET/TASK.yaml`` below ``benchmarks/suites/prompts``, or any task file by path.

    Raises:
        UserError: there is no such file, or it is no task file with a metric and a version of ours.
    """
    file = PROMPTS / name if (PROMPTS / name).is_file() else Path(name)
    config = _content(file)
    for field in NEEDED:
        if field not in config:
            raise UserError(f"{file}: field {field!r} is missing; add it to the task file")
    for field in config:
        if field not in (*FIELDS, *DATA):
            known = ", ".join((*FIELDS, *DATA))
            raise UserError(f"{file}: field {field!r} is not one of {known}; take it out")
    data = {field: config.pop(field) for field in DATA if field in config}
    choices = _choices(file, config)
    low, high = _range(file, config, choices)
    return LmTask(
        name=_typed(file, config, "task", str),
        version=_version(file, config),
        columns=_fields(file, "doc_to_text", _typed(file, config, "doc_to_text", str)),
        label=_label(file, config, choices),
        choices=choices,
        low=low,
        high=high,
        metric=_metric(file, config),
        data=data,
        config={**config, "generation_kwargs": _generation(file, config)},
    )


class _Loader(yaml.SafeLoader):
    """YAML with lm-eval's ``!function``, which is kept as a name: a file runs no code of its own."""


_Loader.add_constructor("!function", lambda _, node: str(node.value))


def _content(file: Path) -> dict[str, Any]:
    try:
        found = yaml.load(file.read_bytes(), Loader=_Loader)
    except OSError as error:
        raise UserError(f"{file}: cannot read the task file: {error.strerror}; check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: is no YAML: {reason}; correct the task file") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: expected the fields of a task, found {type(found).__name__}; correct it")
    return found


def _typed(file: Path, config: dict[str, Any], field: str, kind: type) -> Any:
    if not isinstance(config[field], kind):
        raise UserError(
            f"{file}: field {field!r} is {config[field]!r}, expected {kind.__name__}; correct the task file"
        )
    return config[field]


def _fields(file: Path, field: str, template: str) -> tuple[str, ...]:
    """The data's fields in a template, in order."""
    try:
        parsed = jinja2.Environment().parse(template)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{file}: field {field!r} is no template: {error}; correct the task file") from error
    data = meta.find_undeclared_variables(parsed)
    found = tuple(dict.fromkeys(name.name for name in parsed.find_all(nodes.Name) if name.name in data))
    if not found:
        raise UserError(f"{file}: field {field!r} names no column such as {{{{sentence}}}}; correct it")
    return found


def _choices(file: Path, config: dict[str, Any]) -> tuple[str, ...] | None:
    if "doc_to_choice" not in config:
        return None
    choices = _typed(file, config, "doc_to_choice", list)
    for choice in choices:
        if not isinstance(choice, str):
            raise UserError(f"{file}: choice {choice!r} is no text; write it in quotation marks")
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise UserError(f"{file}: doc_to_choice {choices} needs two or more different texts; correct it")
    return tuple(choices)


def _label(file: Path, config: dict[str, Any], choices: tuple[str, ...] | None) -> str:
    target = _typed(file, config, "doc_to_target", str)
    if choices is not None:
        if not target.isidentifier():
            raise UserError(
                f"{file}: doc_to_target {target!r} is no column name, which doc_to_choice needs; correct it"
            )
        return str(target)
    fields = _fields(file, "doc_to_target", target)
    if len(fields) > 1:
        raise UserError(f"{file}: doc_to_target names {', '.join(fields)}, expected one column; correct it")
    return fields[0]


def _range(file: Path, config: dict[str, Any], choices: tuple[str, ...] | None) -> tuple[float, float]:
    """The smallest and the largest label."""
    if choices is not None:
        return 0, len(choices) - 1
    given = _typed(file, config, "metadata", dict).get("label_range")
    bounds = [b for b in given if type(b) in (int, float)] if isinstance(given, list) else []
    if not (len(bounds) == 2 and bounds[0] < bounds[1]):
        raise UserError(
            f"{file}: metadata label_range is {given!r}, expected [low, high] for a task without "
            "doc_to_choice; add it to the task file"
        )
    return float(bounds[0]), float(bounds[1])


def _version(file: Path, config: dict[str, Any]) -> int:
    version = _typed(file, config, "metadata", dict).get("version")
    if type(version) is not int or version < 1:
        raise UserError(f"{file}: metadata version is {version!r}, expected 1 or more; add it")
    return version


def _generation(file: Path, config: dict[str, Any]) -> dict[str, Any]:
    """How answers end: at EOS, at a text of ``until`` or after ``max_gen_toks`` tokens; all are greedy."""
    if config.get("output_type", "generate_until") != "generate_until":
        raise UserError(f"{file}: output_type is {config['output_type']!r}, expected generate_until")
    given = _typed(file, config, "generation_kwargs", dict)
    limit = given.get("max_gen_toks")
    if type(limit) is not int or limit < 1:
        raise UserError(f"{file}: max_gen_toks is {limit!r}, expected 1 or more; correct the task file")
    greedy = {"do_sample": False, "until": given.get("until"), "max_gen_toks": limit}
    stops = greedy["until"]
    if given != greedy or not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise UserError(
            f"{file}: generation_kwargs is {given}, expected do_sample: false, until: [] or a list of texts, "
            "and max_gen_toks; correct the task file"
        )
    return greedy


def _metric(file: Path, config: dict[str, Any]) -> Literal["accuracy", "spearman"]:
    entries = _typed(file, config, "metric_list", list)
    for name, kind in METRICS.items():
        functions = {"metric": FUNCTIONS + name, "aggregation": f"{FUNCTIONS}{name}_value"}
        if entries == [{**functions, "higher_is_better": True}]:
            return kind
    named = [entry.get("metric") if isinstance(entry, dict) else entry for entry in entries]
    raise UserError(
        f"{file}: metric_list names {named}, expected one of {', '.join(METRICS)} with the two functions of "
        "benchmarks.lm_metrics, as in the files of benchmarks/suites/prompts; correct the task file"
    )


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
