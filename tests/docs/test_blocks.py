"""Python on the pages compiles, and runs where it says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from baselines import contract, registry
from tests.fixtures.pages import PAGES, ROOT, Block, blocks

PYTHON = [(path, b) for path in PAGES for b in blocks(path.read_text("utf-8")) if b.language == "python"]
LABELS = [f"{path.name}-{n}" for n, (path, _) in enumerate(PYTHON)]


def test_there_are_examples() -> None:
    assert any(block.marked == "run" for _, block in PYTHON)


@pytest.mark.parametrize(("path", "block"), PYTHON, ids=LABELS)
def test_python_compiles(path: Path, block: Block) -> None:
    compile(block.code, path.name, "exec")


@pytest.mark.parametrize(
    "block",
    [block for _, block in PYTHON if block.marked == "run"],
    ids=[label for label, (_, block) in zip(LABELS, PYTHON, strict=True) if block.marked == "run"],
)
def test_runnable_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block.code, "page", "exec"), {"__name__": "page"})


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "docs" / "extending.md"], ids=lambda p: p.name)
def test_the_example_of_a_method_keeps_the_contract(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the first block of Python on its page."""
    registry.names()  # so that what is discovered later does not end up in the copy alone
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    code = next(block.code for page, block in PYTHON if page == path)
    exec(compile(code, path.name, "exec"), {"__name__": "my_method"})
    method, problem = registry.get("my-method"), contract.realistic_problem()
    for name, check in contract.CHECKS.items():
        if name != "not-worse-than-rtn":  # a smaller range is the example's point, not its merit
            check(method, problem, contract.SPECS["4-bit groups"])
