"""A cell's code hash: of what computes numbers, shown by editing a copy of the tree."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from benchmarks.run.cells import Request
from benchmarks.run.runner import run
from benchmarks.workbench import code
from epmq.errors import UserError
from tests.fixtures.tiny_suite import TinySuite

PACKAGES = ("epmq", "baselines", "benchmarks", "results")
TALK = {  # what the closure of a computed cell imports that does not compute its numbers
    "epmq/errors.py": "messages",
    "epmq/files.py": "writes files",
    "epmq/plugins.py": "finds packages",
    "epmq/__init__.py": "names",
    "epmq/methods.py": "finds methods",
    "epmq/quantising.py": "the library's own way in",
    "baselines/registry.py": "finds roundings, each hashed with the cells that use it",
    "baselines/recipes.py": "axes, which are in the key",
    "baselines/controls.py": "passes, which are in the key",
    "baselines/refinements": "found by name, each hashed with the cells that use it",
    "benchmarks/run/outcome.py": "what a cell gave, as it is handed on",
    "benchmarks/run/cells.py": "the key itself",
    "benchmarks/run/models.py": "keeps what was computed",
    "epmq/packed": "how computed models are written",
    "benchmarks/run/unfinished.py": "where work is kept that a kill cuts off",
    "benchmarks/sources": "where files come from; their bytes are in the revisions",
    "benchmarks/suites": "the suite, whose fingerprint is in the revisions",
    "benchmarks/workbench/code.py": "this hash",
    "results/store": "how results are written",
}


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources, which the hash is taken of."""
    for package in PACKAGES:
        for file in (code.ROOT / package).rglob("*.py"):
            target = tmp_path / "copy" / file.relative_to(code.ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    monkeypatch.setattr(code, "ROOT", tmp_path / "copy")
    code._digest.cache_clear()
    return tmp_path / "copy"


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text("utf-8")
    assert old in text, f"{file.name} no longer says {old!r}"
    file.write_text(text.replace(old, new, 1))
    code._digest.cache_clear()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("benchmarks/cli/run.py", "calibration samples per task", "samples of calibration"),
        ("benchmarks/run/plan.py", "PROBE_SECONDS = 1.0", "PROBE_SECONDS = 2.0"),
        ("results/tables/formats.py", '"""', '"""Of tables: '),
        ("results/report/page.py", '"""', '"""Of the report: '),
        ("epmq/walk.py", '"""The calibration walk: ', '"""How calibration walks: '),
        ("epmq/errors.py", "did you mean", "perhaps you mean"),
        ("epmq/layer/gptq.py", "# rows", "# rows of a strip"),
    ],
)
def test_what_only_talks_does_not_count(copy: Path, name: str, old: str, new: str) -> None:
    before = code.code_digest(), code.merging_digest(copy / "epmq/merging.py")
    edit(copy / name, old, new)
    assert (code.code_digest(), code.merging_digest(copy / "epmq/merging.py")) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("epmq/layer/grid.py", "torch.round(weight / scale", "torch.floor(weight / scale"),
        ("epmq/models/t5.py", "return", "return  # noqa\n    return"),
        ("benchmarks/images/predict.py", "argmax", "argmin"),
        ("benchmarks/text/metrics.py", "return 0.0", "return 1.0"),
        ("benchmarks/suites/metrics/exact_label/exact_label.py", "said == wanted", "said in wanted"),
        ("benchmarks/suites/metrics/spearman_text/spearman_text.py", "0.0 if constant", "1.0 if constant"),
        ("results/store/samples.py", ".statistic", ".pvalue"),
    ],
)
def test_what_computes_counts(copy: Path, name: str, old: str, new: str) -> None:
    before = code.code_digest()
    edit(copy / name, old, new)
    assert code.code_digest() != before


def test_a_rounding_counts_for_its_own_cells_alone(copy: Path) -> None:
    awq, rtn = copy / "baselines/roundings/awq.py", copy / "baselines/roundings/rtn.py"
    before = [code.code_digest(awq), code.code_digest(rtn), code.code_digest()]
    edit(awq, "return", "return  None or")
    after = [code.code_digest(awq), code.code_digest(rtn), code.code_digest()]
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, True, True]


def test_merged_weights_do_not_depend_on_roundings(copy: Path) -> None:
    merge = copy / "epmq/merging.py"
    before = code.merging_digest(merge)
    edit(copy / "epmq/layer/grid.py", "torch.round(weight / scale", "torch.floor(weight / scale")
    assert code.merging_digest(merge) == before
    edit(copy / "epmq/merging.py", "origin.float() + scale * total", "origin.float() - scale * total")
    assert code.merging_digest(merge) != before


def closure(*modules: str) -> set[str]:
    """The files of this project that the modules import, and those that they import in turn."""
    todo, found = [code.ROOT / module for module in modules], set()
    while todo:
        file = todo.pop()
        name = file.relative_to(code.ROOT).as_posix()
        if name in found:
            continue
        found.add(name)
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in PACKAGES:
                names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
                paths = [code.ROOT / dotted.replace(".", "/") for dotted in names]
                todo += [p.with_suffix(".py") for p in paths if p.with_suffix(".py").is_file()]
                todo += [p / "__init__.py" for p in paths if (p / "__init__.py").is_file()]
    return found


def test_nothing_that_a_cell_is_computed_with_is_forgotten() -> None:
    reached = closure(
        "benchmarks/run/compute.py",
        "benchmarks/images/workbench.py",
        "benchmarks/text/workbench.py",
        "epmq/merging.py",
    )
    under = (*code.COMPUTING, *TALK)
    left = {n for n in reached if not any(n == part or n.startswith(f"{part}/") for part in under)}
    assert {name for name in left if not name.endswith("__init__.py")} == set()


def test_a_folder_goes_on_under_new_words_and_is_refused_under_new_numbers(
    tiny: TinySuite, tmp_path: Path, copy: Path, computed: list[str]
) -> None:
    asked = Request(["task-arithmetic"], ["rtn"], ["merged"], [4], ["zero-shot"], [8])
    run(tiny.suite, asked, tmp_path / "out", {})
    edit(copy / "benchmarks/cli/run.py", "calibration samples per task", "samples of calibration")
    run(tiny.suite, asked, tmp_path / "out", {})
    assert computed == ["zero-shot", "rtn"]
    edit(copy / "benchmarks/images/predict.py", "argmax", "argmin")
    with pytest.raises(UserError, match="its zero-shot cell was made by other code"):
        run(tiny.suite, asked, tmp_path / "out", {})
