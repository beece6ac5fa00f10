"""A folder takes no cells of other data, another suite or other code."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmarks.run import runner
from benchmarks.run.runner import run
from benchmarks.suites import load as suites
from benchmarks.workbench import code
from epmq.errors import UserError
from results.store.folder import RunFolder
from tests.fixtures.tiny_runs import few, snapshot
from tests.fixtures.tiny_suite import TinySuite

Edit = Callable[[dict[str, Any]], object]


def reworded(suite: dict[str, Any]) -> None:
    suite["tasks"][0]["templates"] = ["one {c}."]


def other_column(suite: dict[str, Any]) -> None:
    spec = suite["tasks"][0]["dataset"]
    spec |= {"train_split": "test", "eval_split": "train"}
    spec |= {"train_size": spec["eval_size"], "eval_size": spec["train_size"]}


@pytest.mark.parametrize("edit", [reworded, other_column])
def test_a_suite_that_asks_something_else_has_other_keys_and_no_place_in_the_folder(
    tiny: TinySuite, tmp_path: Path, edit: Edit, computed: list[str]
) -> None:
    run(tiny.suite, few(), tmp_path / "out", {})
    changed = suites.load(str(tiny.variant(tmp_path / "changed.json", edit)))
    with pytest.raises(UserError, match="come from another revision of the suite"):
        run(changed, few(), tmp_path / "out", {})
    elsewhere = run(changed, few(), tmp_path / "elsewhere", {})
    own = {r.key for r in RunFolder.open(tmp_path / "out").records()}
    assert own.isdisjoint({r.key for r in elsewhere.records()})
    assert computed == ["zero-shot", "rtn"] * 2


def copied_data(tiny: TinySuite, folder: Path) -> Edit:
    """Put the first task's data elsewhere, with its test samples in another order."""
    source = tiny.folder / "data" / "fruit"
    shutil.copytree(source, folder)
    (file,) = (folder / "data").glob("test-*.parquet")
    table = pq.read_table(file)
    pq.write_table(table.take(list(reversed(range(len(table))))), file)

    def edit(suite: dict[str, Any]) -> None:
        suite["tasks"][0]["dataset"]["path"] = str(folder)

    return edit


def test_other_data_have_no_place_in_the_folder(tiny: TinySuite, tmp_path: Path) -> None:
    run(tiny.suite, few(), tmp_path / "out", {})
    edit = copied_data(tiny, tmp_path / "fruit")
    changed = suites.load(str(tiny.variant(tmp_path / "changed.json", edit)))
    with pytest.raises(UserError, match="come from another revision of the datasets"):
        run(changed, few(), tmp_path / "out", {})


def test_moved_data_are_the_same_data(tiny: TinySuite, tmp_path: Path, computed: list[str]) -> None:
    run(tiny.suite, few(), tmp_path / "out", {})
    shutil.copytree(tiny.folder / "data" / "fruit", tmp_path / "fruit")

    def edit(suite: dict[str, Any]) -> None:
        suite["tasks"][0]["dataset"]["path"] = str(tmp_path / "fruit")

    run(suites.load(str(tiny.variant(tmp_path / "moved.json", edit))), few(), tmp_path / "out", {})
    assert computed == ["zero-shot", "rtn"]


def test_a_folder_of_another_suite_version_is_refused_before_models_are_opened(
    tiny: TinySuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny.suite, few(), tmp_path / "out", {})
    before = snapshot(tmp_path / "out")
    monkeypatch.setattr(runner, "open_workbench", lambda *_: pytest.fail("models were opened"))
    newer = tiny.suite.model_copy(update={"version": 2})
    with pytest.raises(
        UserError, match="holds results of local/tiny version 1, asked for local/tiny version 2"
    ):
        run(newer, few(), tmp_path / "out", {})
    assert snapshot(tmp_path / "out") == before


def test_cells_made_by_other_code_are_not_trusted(
    tiny: TinySuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computed: list[str]
) -> None:
    run(tiny.suite, few(), tmp_path, {})
    before = snapshot(tmp_path)
    digest = code.code_digest

    def other(modules: tuple[Path, ...], when: str | None) -> str:
        changed = when in [module.stem for module in modules] if modules else when is None
        return digest(*modules) + ("x" if changed else "")

    monkeypatch.setattr(code, "code_digest", lambda *modules: other(modules, None))
    with pytest.raises(UserError, match="its zero-shot cell was made by other code"):
        run(tiny.suite, few(), tmp_path, {})
    assert snapshot(tmp_path) == before
    monkeypatch.setattr(code, "code_digest", lambda *modules: other(modules, "rtn"))
    with pytest.raises(UserError, match="its rtn cell was made by other code"):
        run(tiny.suite, few(), tmp_path, {})
    monkeypatch.setattr(code, "code_digest", lambda *modules: other(modules, "awq"))
    run(tiny.suite, few(method=["awq"]), tmp_path, {})
    assert computed == ["zero-shot", "rtn", "awq"], "another method's code does not matter"
