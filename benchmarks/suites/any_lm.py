"""``epmq run lm``: a suite made from the command's arguments, of any Llama-like model and its experts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.suites import load as suites
from benchmarks.suites import prompt as prompts
from benchmarks.suites.forms import Comparison, TextData, TextSuite, TextTask
from benchmarks.suites.prompt import TaskFile
from epmq.errors import UserError

NAME = "lm"
MAX_LENGTH = 512  # tokens of a prompt
DEFAULT = Comparison(
    merge=["task-arithmetic"],
    method=["rtn", "gptq", "epmq", "epmq-features"],
    target=["merged"],
    bits=[4],
    samples=[128],  # GPTQ's own number
    controls=["zero-shot", "experts", "merged", "epmq-fp"],
)


def suite(base: str, experts: Sequence[str], tasks: Sequence[str], max_length: int = MAX_LENGTH) -> TextSuite:
    """A base, its experts (hub ids or folders, full or LoRA), and the task of each expert, in one order.

    A task is a file of ``benchmarks/suites/prompts`` by name (``glue8/rte.yaml``), whose data are those of
    the suite that uses it, or any such file by path that names its data in lm-eval's fields: ``dataset_path``
    (a hub id, or a folder, which may be relative to the file), ``dataset_name``, ``training_split``, and
    ``test_split`` or ``validation_split``. The training split calibrates the expert, the other is evaluated.

    Raises:
        UserError: numbers of experts and tasks differ, a model is neither a folder nor a hub id, or a task
            is there twice or is no such file.
    """
    if not experts or len(experts) != len(tasks):
        raise UserError(
            f"{len(experts)} experts and {len(tasks)} tasks are given; give every expert the task that it "
            "was fine-tuned on, in the same order: its training split calibrates it"
        )
    for name in (base, *experts):
        if not (Path(name).is_dir() or suites.on_hub(name)):
            raise UserError(f"model {name!r} is neither a folder nor a hub id such as owner/name; correct it")
    chosen = [_task(name, expert) for name, expert in zip(tasks, experts, strict=True)]
    names = [task.task for task in chosen]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"task {twice[0]!r} is given twice; give every expert a task of its own")
    return TextSuite(
        name=NAME,
        version=1,
        kind="text",
        description=f"{len(experts)} experts of {base}",
        library="transformers",
        architecture="causal",
        max_length=max_length,
        base=base,
        metric="accuracy, or Spearman's rho of numbers",
        comparisons={"default": DEFAULT},
        checkpoints={},
        tasks=chosen,
    )


def _task(name: str, expert: str) -> TextTask:
    file = prompts.PROMPTS / name
    bundled, file = file.is_file(), file if file.is_file() else Path(name).absolute()
    read = prompts.read(name)
    if not re.fullmatch(r"\w[\w.-]*", read.name):
        raise UserError(f"{file}: task {read.name!r} has other signs than letters, digits and ._-; rename it")
    prompt = name if bundled else str(file)
    found = _data_of_suites(name) if bundled and not read.data else _data(file, read)
    return TextTask(task=read.name, dataset=found, expert=expert, prompt=prompt)


def _data_of_suites(name: str) -> TextData:
    """The data of a bundled suite's task that has this prompt."""
    for each in map(suites.load, suites.names()):
        for task in each.tasks:
            if isinstance(task, TextTask) and task.prompt == name:
                return task.dataset
    raise UserError(f"{name}: no suite says which data it is for; copy the file and add dataset_path")


def _data(file: Path, read: TaskFile) -> TextData:
    path, train = _stated(file, read, "dataset_path"), _stated(file, read, "training_split")
    test = _stated(file, read, "test_split" if "test_split" in read.data else "validation_split")
    if train == test:
        raise UserError(f"{file}: {train!r} is both training and test split; calibrate on other samples")
    folder = file.parent / path
    if not (folder.is_dir() or suites.on_hub(path)):
        raise UserError(f"{file}: dataset_path {path!r} is neither a folder nor a hub id such as owner/name")
    return TextData(
        path=str(folder.resolve()) if folder.is_dir() else path,
        config=_stated(file, read, "dataset_name") if "dataset_name" in read.data else None,
        revision=None,
        train_split=train,
        eval_split=test,
        label_column=read.label,
        columns=list(read.columns),
        train_size=None,
        eval_size=None,
        licence="see the data set's card",
    )


def _stated(file: Path, read: TaskFile, field: str) -> str:
    """A text among the fields that name the data."""
    value = read.data.get(field)
    if not isinstance(value, str) or not value:
        raise UserError(f"{file}: field {field!r} is {value!r}, expected a name; it says which data to use")
    return value
