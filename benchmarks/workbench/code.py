"""The hash of the code that computes numbers: of what it does, not of how it reads.

Comments, docstrings and layout do not count, nor does a module that only talks about numbers (the command
line, tables, reports, the runner's bookkeeping): a change there neither refuses a results folder nor drops a
cache.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
MERGING = (
    "epmq/merging.py",
    "epmq/merges",
    "epmq/checkpoints",
    "epmq/experts.py",
    "epmq/models",
)  # what merged weights depend on
COMPUTING = (  # what a cell depends on besides its rounding: files, and folders with all that is in them
    *MERGING,
    "epmq/calibration.py",
    "epmq/gather",
    "epmq/layer",
    "epmq/refinement",
    "epmq/walk.py",
    "benchmarks/suites/prompt.py",
    "benchmarks/suites/metrics",
    "benchmarks/sources/data.py",
    "benchmarks/sources/weights.py",
    "benchmarks/images",
    "benchmarks/text",
    "benchmarks/workbench/base.py",
    "benchmarks/workbench/machine.py",
    "benchmarks/workbench/merged.py",
    "benchmarks/run/compute.py",
    "benchmarks/run/choosing.py",
    "benchmarks/run/refining.py",
    "benchmarks/run/solvers.py",
    "results/store/samples.py",  # Spearman's rho
)


def code_digest(*methods: Path) -> str:
    """SHA-256 of the code that computes a cell; ``methods`` are modules of its rounding and refinements."""
    return _digest(ROOT, COMPUTING, methods)


def merging_digest(method: Path) -> str:
    """SHA-256 of the code that merges; ``method`` is the merge's own module."""
    return _digest(ROOT, MERGING, (method,))


@cache
def _digest(root: Path, parts: tuple[str, ...], methods: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for file in _modules(root / part):
            digest.update(f"{file.relative_to(root).as_posix()}\0{meaning(file)}\0".encode())
    for method in methods:
        digest.update(f"{method.name}\0{meaning(method)}\0".encode())
    return digest.hexdigest()


def _modules(part: Path) -> Iterator[Path]:
    yield from sorted(part.rglob("*.py")) if part.is_dir() else [part]


def meaning(file: Path) -> str:
    """A module's text without comments, docstrings and layout."""
    return _meaning(file.read_text("utf-8"))


@cache  # most modules count for every method's digest
def _meaning(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
