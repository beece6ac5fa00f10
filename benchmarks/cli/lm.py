"""The arguments of ``epmq run lm``, which names models and tasks where other runs name a suite."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.cli.paths import home
from benchmarks.sources.lock import lock_path, models_of
from benchmarks.suites import any_lm
from benchmarks.suites import load as suites
from benchmarks.suites.forms import Suite
from epmq.errors import UserError

OPTIONS = ("base", "expert", "tasks", "max_length")


def add_to(run: Any) -> None:
    """Add the arguments to the parser of ``epmq run``."""
    group = run.add_argument_group("epmq run lm: any Llama-, Mistral- or Qwen-like model, through lm-eval")
    group.add_argument(
        "--base", type=home, metavar="ID", help="the model that experts come from: a hub id or a folder"
    )
    group.add_argument(
        "--expert",
        type=home,
        nargs="+",
        action="extend",
        metavar="ID",
        help="its experts, whole models or LoRA adapters",
    )
    group.add_argument(
        "--tasks",
        type=home,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="task file of each expert, in their order",
    )
    group.add_argument(
        "--max-length", type=int, metavar="N", help=f"tokens of a prompt ({any_lm.MAX_LENGTH})"
    )


def suite(options: argparse.Namespace) -> Suite:
    """The suite that a command asks for; for ``lm``, ``options`` get its lock's place, if it needs one.

    Raises:
        UserError: the suite is unknown or bad, or arguments of ``lm`` are missing or given to another suite.
    """
    given = [name for name in OPTIONS if getattr(options, name) is not None]
    if options.suite != any_lm.NAME:
        if given:
            raise UserError(f"{_flag(given[0])} belongs to 'epmq run lm'; leave it out of {options.suite}")
        return suites.load(options.suite)
    if missing := [name for name in OPTIONS[:3] if name not in given]:
        raise UserError(f"'epmq run lm' needs {', '.join(map(_flag, missing))}; see 'epmq run --help'")
    length = any_lm.MAX_LENGTH if options.max_length is None else options.max_length
    if length < 1:
        raise UserError(f"--max-length {length} is out of range; give 1 or more")
    made = any_lm.suite(options.base, options.expert, options.tasks, length)
    if options.lock is None and (models_of(made) or any(suites.on_hub(t.dataset.path) for t in made.tasks)):
        options.lock = lock_path(made)
    return made


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
