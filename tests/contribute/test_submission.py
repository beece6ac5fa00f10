"""A contribution is taken in where its form, its records and its numbers hold, and each lack is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.contribute.reproduce import request_of, selected
from benchmarks.contribute.submission import Judgement, judge, main
from benchmarks.run.cells import Request, expand
from benchmarks.run.runner import run
from results.store.folder import RunFolder
from results.store.records import Record, TaskResult
from results.store.submission import FORM
from tests.fixtures.records import make_cell
from tests.fixtures.tiny_suite import TinySuite

REQUEST = Request(["task-arithmetic"], ["rtn", "gptq"], ["merged"], [4], ["experts"], samples=[8])
GOOD = {
    "description": "Two ways of rounding.",
    "authors": ["A. Author"],
    "methods": ["rtn", "gptq"],
    "reference": "arXiv:2210.17323",
    "code": "baselines/roundings/gptq.py",
}


@pytest.fixture(scope="module")
def contributed(tiny: TinySuite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good contribution; tests change copies of it."""
    path = tmp_path_factory.mktemp("community") / "ours"
    run(tiny.suite, REQUEST, path, {})
    (path / FORM).write_text(json.dumps(GOOD))
    return path


@pytest.fixture
def copy(contributed: Path, tmp_path: Path) -> Path:
    shutil.copytree(contributed, tmp_path / "ours")
    return tmp_path / "ours"


def failed(judgement: Judgement) -> dict[str, str]:
    """The first complaint of each point that failed."""
    return {point.name: point.complaints[0] for point in judgement.points if point.status == "failed"}


def rewritten(path: Path, edit: Callable[[Record], Record], **manifest: Any) -> None:
    """Make the folder anew from edited records, with the hashes of what they now say."""
    old = path.with_name("before")
    path.rename(old)
    source = RunFolder.open(old)
    target = RunFolder.open(path, source.manifest.model_copy(update=manifest), create=True)
    for record in source.records():
        target.append(edit(record), *source.samples(record.key))
    shutil.copy(old / FORM, path / FORM)


def test_a_good_contribution_is_accepted(tiny: TinySuite, contributed: Path) -> None:
    before = {file: file.read_bytes() for file in contributed.rglob("*") if file.is_file()}
    judgement = judge(contributed, tiny.suite, cells=1)
    assert judgement.accepted, judgement.render()
    assert [cell.split()[0] for cell in judgement.computed_again] in (["rtn", "gptq"], ["gptq", "rtn"])
    assert judgement.render().endswith("accepted, 11 of 11 points passed\n")
    assert json.loads(json.dumps(judgement.as_json()))["accepted"] is True
    assert {file: file.read_bytes() for file in contributed.rglob("*") if file.is_file()} == before


# -- numbers that do not come out again


def test_a_better_accuracy_than_comes_out_is_not_reproducible(tiny: TinySuite, copy: Path) -> None:
    source = RunFolder.open(copy)
    rtn = next(record for record in source.records() if record.method == "rtn")
    stored = source.samples(rtn.key)
    correct = {task: np.ones_like(right) for task, right in stored.correct.items()}
    classes = {task: stored.predictions[f"{task}@reference"] for task in correct}
    right = {f"{task}@{kind}": x for task, x in classes.items() for kind in ("prediction", "reference")}
    tasks = {
        task: TaskResult(value=1.0, samples=old.samples, balanced=1.0, majority=old.majority)
        for task, old in rtn.tasks.items()
    }
    experts = next(record for record in source.records() if record.method == "experts")
    normalised = float(np.mean([1 / result.value for result in experts.tasks.values()]))
    claim = {"tasks": tasks, "average": 1.0, "normalised": normalised}
    lines = (copy / "records.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "records.jsonl").write_bytes(b"".join(x for x in lines if rtn.key.encode() not in x))
    source.append(rtn.model_copy(update=claim), correct, right)
    judgement = judge(copy, tiny.suite, cells=1)
    assert list(failed(judgement)) == ["computed again"]
    assert f"({rtn.key}): accuracy, all samples is " in judgement.points[-1].complaints[0]
    assert ", was 100.00 (-" in judgement.points[-1].complaints[0]


def test_a_worse_objective_than_comes_out_is_not_reproducible(tiny: TinySuite, copy: Path) -> None:
    def worse(record: Record) -> Record:
        layers = [layer.model_copy(update={"objective": 2 * layer.objective}) for layer in record.layers]
        return record.model_copy(update={"layers": tuple(layers)})

    rewritten(copy, worse)
    # Inputs of these layers depend on earlier roundings, so that the mean over layers is judged.
    assert "objective, mean of 8 layers" in failed(judge(copy, tiny.suite, cells=1))["computed again"]


def test_a_cell_with_other_axes_than_its_key_says_is_another_cell(tiny: TinySuite, copy: Path) -> None:
    def symmetric(record: Record) -> Record:
        axes = {**record.axes, "symmetric": True}
        return record.model_copy(update={"axes": axes} if record.kind == "method" else {})

    rewritten(copy, symmetric)
    assert "is another cell here" in failed(judge(copy, tiny.suite, cells=1))["computed again"]


@pytest.mark.parametrize("axes", [{}, {"samples": "many"}, {"anchor": "x" * 50}, {"samples": 10**9}], ids=str)
def test_axes_of_no_cell_are_a_complaint(tiny: TinySuite, copy: Path, axes: dict[str, Any]) -> None:
    rewritten(copy, lambda r: r.model_copy(update={"axes": {**r.axes, **axes} if axes else {}}))
    assert "cannot be computed here" in failed(judge(copy, tiny.suite, cells=1))["computed again"]


# -- what is asked of the form and the records; nothing is computed where that fails


@pytest.mark.usefixtures("nothing_is_computed")
@pytest.mark.parametrize(
    ("form", "complaint"),
    [
        (None, "No such file"),
        ("[]", "Input should be an object"),
        ({**GOOD, "authors": []}, "authors: Tuple should have at least 1 item"),
        ({**GOOD, "reference": ""}, "reference: String should have at least 1 char"),
        ({**GOOD, "colour": "blue"}, "colour: Extra inputs are not permitted"),
        ({**GOOD, "code": "a\nb"}, "code: must hold printable characters only"),
    ],
    ids=["missing", "list", "authors", "reference", "unknown", "lines"],
)
def test_a_bad_form_is_named(tiny: TinySuite, copy: Path, form: object, complaint: str) -> None:
    (copy / FORM).unlink()
    if form is not None:
        (copy / FORM).write_text(form if isinstance(form, str) else json.dumps(form))
    judgement = judge(copy, tiny.suite)
    assert complaint in failed(judgement)[f"{FORM} is complete"]
    assert judgement.points[-1].status == "not checked"


def edit_manifest(path: Path, **changes: object) -> None:
    stored = json.loads((path / "manifest.json").read_bytes())
    (path / "manifest.json").write_text(json.dumps({**stored, **changes}))


def drop_gptq(path: Path) -> None:
    lines = (path / "records.jsonl").read_bytes().splitlines(keepends=True)
    (path / "records.jsonl").write_bytes(b"".join(x for x in lines if b'"method":"gptq"' not in x))


def unpinned(path: Path) -> None:
    rewritten(path, lambda record: record.model_copy(update={"pinned": False}))


def unregistered(path: Path) -> None:
    rewritten(path, lambda record: record.model_copy(update={"rounding": "theirs"} if record.bits else {}))


def on_a_gpu(path: Path) -> None:
    rewritten(path, lambda record: record.model_copy(update={"device": "cuda"}))


@pytest.mark.usefixtures("nothing_is_computed")
@pytest.mark.parametrize(
    ("edit", "point", "complaint"),
    [
        (drop_gptq, "methods are in the results", "names 'gptq', no record is of that method; there are rtn"),
        (drop_gptq, "every cell is there", "task-arithmetic gptq merged 4 "),
        (lambda x: (x / "records.jsonl").write_bytes(b"{}\n"), "every cell is there", "records.jsonl:1: "),
        (
            lambda x: edit_manifest(x, suite_version=2),
            "the suite's present version",
            "is of local/tiny version 2",
        ),
        (
            lambda x: edit_manifest(x, revisions={"suite": "0"}),
            "the suite's present version",
            "other prompts",
        ),
        (unpinned, "pinned", "3 of 3 records are not pinned"),
        (lambda x: edit_manifest(x, revisions={"base": "unpinned"}), "pinned", "the manifest names"),
        (lambda x: edit_manifest(x, rehearsal=True), "no rehearsal", "is a rehearsal"),
        (lambda x: (x / "table.md").write_text("99.9"), "verified", "saved tables: table.md"),
        (
            unregistered,
            "methods can be imported",
            "rounding 'theirs' of 'gptq' is not registered here; add its",
        ),
        (on_a_gpu, "methods on local/tiny", "2 cells are not of the CPU in float32"),
    ],
    ids=[
        "method",
        "cell",
        "damaged line",
        "version",
        "prompts",
        "unpinned",
        "unpinned revision",
        "rehearsal",
        "table",
        "unregistered",
        "gpu",
    ],
)
def test_what_is_lacking_is_named_with_its_point(
    tiny: TinySuite, copy: Path, edit: Callable[[Path], object], point: str, complaint: str
) -> None:
    edit(copy)
    judgement = judge(copy, tiny.suite)
    assert not judgement.accepted
    assert complaint in failed(judgement)[point]
    assert judgement.points[-1].status == "not checked"


@pytest.mark.usefixtures("nothing_is_computed")
def test_an_older_schema_and_a_foreign_suite_need_another_run(tiny: TinySuite, copy: Path) -> None:
    edit_manifest(copy, suite="toy")
    found = failed(judge(copy, tiny.suite))
    assert f"{copy.name}-tiny: cannot read manifest.json: No such file" in found["folders can be read"]
    edit_manifest(copy, schema=2)
    assert "schema: must be 3, not '2'" in failed(judge(copy, tiny.suite))["folders can be read"]


def test_a_folder_of_another_suite_is_judged_by_the_embedded_one_beside_it(
    tiny: TinySuite, copy: Path
) -> None:
    """It needs every rounding there, and that folder is what is computed again."""
    shutil.copytree(copy, copy.with_name("ours-tiny"))
    drop_gptq(copy.with_name("ours-tiny"))
    edit_manifest(copy, suite="another")
    lines = (copy / "records.jsonl").read_bytes()
    (copy / "records.jsonl").write_bytes(lines.replace(b'"suite":"local/tiny"', b'"suite":"another"'))
    found = failed(judge(copy, tiny.suite))
    assert found["methods on local/tiny"] == "ours-tiny: has no cell of 'gptq'; run it there too"
    assert found["the suite's present version"] == "ours: is of another, which is no suite of epmq here"
    assert found["every cell is there"].startswith("ours-tiny: task-arithmetic gptq merged 4 ")


# -- which cells are computed again


def test_the_selection_has_every_method_and_does_not_depend_on_the_order() -> None:
    records = [
        make_cell(f"{method}{bits}", method=method, bits=bits)[0] for method in "abc" for bits in (2, 3, 4, 8)
    ]
    assert {record.method for record in selected(records, 1)} == {"a", "b", "c"}
    assert len(selected(records, 1)) == 3
    assert len(selected(records, 7)) == 7
    assert len(selected(records, 99)) == 12
    assert selected(records[::-1], 5) == selected(records, 5)
    assert selected(records, 5) == selected(records, 7)[:5]


def test_controls_are_not_computed_again() -> None:
    assert selected([make_cell("a", kind="control")[0]], 3) == []


@pytest.mark.parametrize("options", [{}, {"keep": 0.5}], ids=str)
def test_a_record_asks_for_its_own_cell(options: dict[str, Any]) -> None:
    request = Request(
        merge=["ties"],
        method=["epmq-features", "gptq"],
        target=["merged"],
        bits=[3],
        controls=[],
        samples=[8],
        seeds=[5],
        merge_options=[options],
        calibration={"task_weight": "frobenius"},
        spec={"group_size": 4, "symmetric": True},
    )
    for cell in expand(request):
        changes = {
            name: getattr(cell, name) for name in ("merge", "method", "target", "bits", "axes", "seed")
        }
        record = make_cell("a", **changes, merge_options=dict(cell.merge_options))[0]
        read = Record.from_json(record.to_json().encode())
        assert [again.key({}) for again in expand(request_of(read))] == [cell.key({})]


# -- the command


def test_the_command_says_what_is_wrong_by_its_exit_status(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(copy / "missing")]) == 2
    assert capsys.readouterr().err.endswith("missing: is no folder; give a contributed results folder\n")
    assert main([str(copy)]) == 1
    assert "NOT ACCEPTED" in capsys.readouterr().out
    assert main([str(copy), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["accepted"] is False
