"""A cell's model leaves its results folder and gives the same answers again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cli.main import main
from benchmarks.run import compute
from benchmarks.run.cells import Cell
from benchmarks.run.outcome import Outcome
from benchmarks.workbench.base import Workbench
from epmq.packed.reading import Checkpoint
from results.store.folder import RunFolder
from results.store.records import Record
from tests.fixtures.complaints import complaint
from tests.fixtures.tiny_suite import TinySuite
from tests.fixtures.tiny_text import TinyText

ASKED = ["--method", "gptq", "awq", "gptq-tuned", "--bits", "4", "--samples", "8", "--refine-steps", "3"]
CONTROLS = ["--controls", "zero-shot", "experts", "merged", "--target", "merged"]


@pytest.fixture(scope="module")
def images(tiny: TinySuite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder of the tiny suite of images."""
    out = tmp_path_factory.mktemp("images") / "run"
    assert main(["run", str(tiny.file), "--out", str(out), *ASKED, "--refine-batch", "2", *CONTROLS]) == 0
    return out


def record(run: Path, method: str) -> Record:
    return next(r for r in RunFolder.open(run).records() if r.method == method)


@pytest.mark.parametrize(
    ("method", "form"),
    [
        ("gptq", "compressed-tensors"),
        ("gptq", "dense"),
        ("gptq", "epmq"),
        ("gptq-tuned", "compressed-tensors"),
        ("awq", "epmq"),
        ("awq", "compressed-tensors"),
        ("merged", "dense"),
        ("zero-shot", "dense"),
    ],
)
def test_an_export_answers_as_its_record(
    tiny: TinySuite, images: Path, tmp_path: Path, method: str, form: str, capsys: Any
) -> None:
    to = tmp_path / "model"
    assert main(["export", str(images), "--cell", method, "--to", str(to), "--format", form]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tiny.file), "--model", str(to)]) == 0
    assert "the same answers on every sample as its record" in capsys.readouterr().out
    assert main(["evaluate", str(tiny.file), "--model", str(to), "--record", str(images)]) == 0
    said = capsys.readouterr().out
    assert f"the same answers on every sample as cell {record(images, method).key}" in said
    note = json.loads((to / "epmq.json").read_bytes())
    assert note["record_sha256"] == record(images, method).record_sha256
    lines = [json.loads(line) for line in (images / "exports.jsonl").read_text().splitlines()]
    assert note["weights_sha256"] in {line["weights_sha256"] for line in lines}
    assert main(["verify", str(images)]) == 0


def test_what_has_no_single_model_or_no_packed_form_is_refused(
    images: Path, tmp_path: Path, capsys: Any
) -> None:
    command: list[str | Path] = ["export", images, "--to", tmp_path / "model", "--cell"]
    assert "is a model for each task" in complaint(capsys, *command, "experts")
    said = complaint(capsys, *command, "merged", "--format", "compressed-tensors")
    assert "quantises nothing, so it has no compressed-tensors form" in said
    assert "is not in the folder; did you mean 'gptq'" in complaint(capsys, *command, "gptqq")
    assert "did you mean 'epmq'" in complaint(capsys, *command, "gptq", "--format", "epmqq")
    assert not (tmp_path / "model").exists()


def test_an_ambiguous_name_lists_the_keys(tiny: TinySuite, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    asked = ["--method", "rtn", "--bits", "3", "4", "--target", "merged", "--controls", "--samples", "8"]
    assert main(["run", str(tiny.file), "--out", str(run), *asked]) == 0
    capsys.readouterr()
    said = complaint(capsys, "export", run, "--cell", "rtn", "--to", tmp_path / "model")
    for each in RunFolder.open(run).records():
        assert each.key in said
    assert main(["export", str(run), "--cell", "rtn/3", "--to", str(tmp_path / "model")]) == 0


def test_a_folder_that_is_there_is_left_alone(
    images: Path, tmp_path: Path, capsys: Any, nothing_is_computed: None
) -> None:
    (tmp_path / "model").mkdir()
    said = complaint(capsys, "export", images, "--cell", "gptq", "--to", tmp_path / "model")
    assert "is there already" in said
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_a_kept_model_is_read_and_a_damaged_one_is_computed_again(
    tiny: TinySuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("EPMQ_CACHE", str(tmp_path / "cache"))
    run, asked = (
        tmp_path / "run",
        ["--method", "gptq-tuned", "--bits", "3", "--samples", "8", "--keep-models"],
    )
    steps = ["--refine-steps", "3", "--refine-batch", "2", "--controls"]
    assert main(["run", str(tiny.file), "--out", str(run), *asked, *steps]) == 0
    (kept,) = (tmp_path / "cache" / "models").iterdir()
    calls: list[str] = []
    original = compute.model

    def counted(workbench: Workbench, cell: Cell, outcome: Outcome) -> Any:
        calls.append("computed")
        return original(workbench, cell, outcome)

    monkeypatch.setattr(compute, "model", counted)
    command = ["export", str(run), "--cell", "gptq-tuned", "--to"]
    assert main([*command, str(tmp_path / "from-cache")]) == 0
    assert not calls
    data = bytearray(kept.read_bytes())
    data[-1] ^= 1
    kept.write_bytes(data)
    assert main([*command, str(tmp_path / "again")]) == 0
    assert calls == ["computed"]
    one, other = (Checkpoint(tmp_path / name) for name in ("from-cache", "again"))
    assert all((one[name] == other[name]).all() for name in one)
    assert set(one) == set(other)


def test_other_answers_and_other_models_are_told(
    tiny: TinySuite, tiny_text: TinyText, images: Path, tmp_path: Path, capsys: Any
) -> None:
    to = tmp_path / "model"
    assert main(["export", str(images), "--cell", "gptq", "--to", str(to)]) == 0
    capsys.readouterr()
    command = ["evaluate", str(tiny.file), "--model", str(to), "--record", str(images)]
    assert main([*command, "--cell", "zero-shot"]) == 1
    assert "other answers than" in capsys.readouterr().out
    assert "is it the right model?" in complaint(capsys, "evaluate", tiny_text.file, "--model", to)
    said = complaint(capsys, "evaluate", tiny_text.file, "--model", to, "--record", images, "--cell", "gptq")
    assert "is of local/tiny, not of local/tiny-text" in said
    weights = to / "model.safetensors"
    data = bytearray(weights.read_bytes())
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "is not the file that epmq.json names" in complaint(capsys, *command)
    weights.write_bytes(data[:100])
    assert "corrupt" in complaint(capsys, *command)
    weights.unlink()
    assert "holds no weights" in complaint(capsys, *command)
    assert "no such folder" in complaint(capsys, "evaluate", tiny.file, "--model", tmp_path / "none")


def test_the_card_says_what_it_is(images: Path, tmp_path: Path) -> None:
    assert main(["export", str(images), "--cell", "awq", "--to", str(tmp_path / "model")]) == 0
    card = (tmp_path / "model" / "README.md").read_text("utf-8")
    kept = record(images, "awq")
    for told in (
        "task-arithmetic (scale",
        "8 samples a task",
        kept.key,
        f"{kept.bits_per_weight:.3f}",
        "CC0-1.0",
    ):
        assert told in card
    assert f"{100 * kept.average:.2f}" in card
    assert "cannot be folded" in card
    assert str(tmp_path) not in card
