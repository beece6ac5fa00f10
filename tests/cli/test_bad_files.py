"""Bad checkpoints and data sets end in one line that names the file, with status 2, before any work."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.cli.main import main
from benchmarks.images.models import BASE_FILE, EXPERT_FILE
from tests.fixtures.complaints import Output, refused
from tests.fixtures.tiny_suite import Described, TinySuite, first_task

pytestmark = pytest.mark.usefixtures("nothing_is_computed")


def with_model(tiny: TinySuite, path: Path, expert: Path | None = None, base: Path | None = None) -> Path:
    """The suite with another expert of its first task, or another base, in place of the pinned one."""

    def edit(suite: Described) -> None:
        suite["checkpoints"] = {}
        if expert:
            first_task(suite)["expert"] = str(expert)
        if base:
            suite["base"] = str(base)

    return tiny.variant(path, edit)


Change = Callable[[dict[str, Tensor]], object]
WEIGHT = "transformer.resblocks.0.mlp.c_fc.weight"


def spoil(value: float) -> Change:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[WEIGHT][3, 5] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(WEIGHT), [f"tensor '{WEIGHT}' is missing (1 in all)"]),
        (lambda t: t.update(more=torch.zeros(2)), ["tensor 'more' is not in the base (1 in all)"]),
        (lambda t: t.update({WEIGHT: t[WEIGHT].T.contiguous()}), ["is (16, 64), the base's is (64, 16)"]),
        (spoil(float("nan")), [f"tensor '{WEIGHT}' holds NaN or Inf"]),
        (spoil(float("inf")), [f"tensor '{WEIGHT}' holds NaN or Inf"]),
        (spoil(float("-inf")), [f"tensor '{WEIGHT}' holds NaN or Inf"]),
    ],
    ids=["missing", "extra", "shape", "nan", "inf", "-inf"],
)
def test_experts_that_do_not_fit(
    tiny: TinySuite, tmp_path: Path, capsys: Output, change: Change, words: list[str]
) -> None:
    tensors = load_file(tiny.expert("fruit"))
    change(tensors)
    save_file(tensors, tmp_path / EXPERT_FILE)
    said = refused(capsys, with_model(tiny, tmp_path / "bad.json", expert=tmp_path), tmp_path / "out")
    assert said.startswith(f"{tmp_path}: ")
    assert [word for word in words if word not in said] == [], said
    assert said.count("; ") >= 1, "it says what to do"


def test_an_expert_that_is_the_base(tiny: TinySuite, tmp_path: Path, capsys: Output) -> None:
    whole = load_file(tiny.folder / "base" / BASE_FILE)
    names = [name for name in whole if name.startswith("visual.")]
    save_file({name.removeprefix("visual."): whole[name] for name in names}, tmp_path / EXPERT_FILE)
    said = refused(capsys, with_model(tiny, tmp_path / "bad.json", expert=tmp_path), tmp_path / "out")
    assert f"{tmp_path}: every tensor equals the base's; give an expert" in said


def truncated(source: Path, file: Path) -> None:
    file.write_bytes(source.read_bytes()[:-100])


def cut_in_its_header(source: Path, file: Path) -> None:
    file.write_bytes(source.read_bytes()[:50])


def empty(_: Path, file: Path) -> None:
    file.touch()


def noise(_: Path, file: Path) -> None:
    file.write_bytes(b"\x00\x01" * 500)


def pickled(source: Path, file: Path) -> None:
    torch.save(load_file(source), file)


def old_pickle(source: Path, file: Path) -> None:
    torch.save(load_file(source), file, _use_new_zipfile_serialization=False)


def no_file(_: Path, file: Path) -> None:
    assert not file.exists()


def a_folder(_: Path, file: Path) -> None:
    file.mkdir()


DAMAGES: dict[Callable[[Path, Path], None], str] = {
    truncated: "is corrupt, truncated or not safetensors",
    cut_in_its_header: "is corrupt, truncated or not safetensors",
    empty: "is corrupt, truncated or not safetensors",
    noise: "is corrupt, truncated or not safetensors",
    pickled: "is a pickled checkpoint, which can run code; convert it to safetensors first",
    old_pickle: "is a pickled checkpoint",
    no_file: "holds no weights; expected one of model.safetensors",
    a_folder: "holds no weights; expected one of model.safetensors",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("part", ["expert", "base"])
def test_damaged_checkpoints(
    tiny: TinySuite, tmp_path: Path, capsys: Output, damage: Callable[[Path, Path], None], part: str
) -> None:
    folder = tmp_path / part
    if part == "base":
        shutil.copytree(tiny.folder / "base", folder, ignore=shutil.ignore_patterns(BASE_FILE))
        source, file = tiny.folder / "base" / BASE_FILE, folder / BASE_FILE
        suite = with_model(tiny, tmp_path / "bad.json", base=folder)
    else:
        folder.mkdir()
        source, file = tiny.expert("fruit"), folder / EXPERT_FILE
        suite = with_model(tiny, tmp_path / "bad.json", expert=folder)
    damage(source, file)
    said = refused(capsys, suite, tmp_path / "out")
    where = folder if damage in (no_file, a_folder) else file
    assert said.startswith(f"{where}: {DAMAGES[damage]}"), said


def test_a_base_with_nan_is_named_as_the_base(tiny: TinySuite, tmp_path: Path, capsys: Output) -> None:
    shutil.copytree(tiny.folder / "base", tmp_path / "base")
    tensors = load_file(tmp_path / "base" / BASE_FILE)
    tensors[f"visual.{WEIGHT}"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "base" / BASE_FILE)
    said = refused(capsys, with_model(tiny, tmp_path / "bad.json", base=tmp_path / "base"), tmp_path / "out")
    assert "base" in said.split(":")[0]
    assert "holds NaN or Inf" in said


@pytest.mark.parametrize("lost", ["open_clip_config.json", "tokenizer.json"])
def test_an_incomplete_base_folder(tiny: TinySuite, tmp_path: Path, capsys: Output, lost: str) -> None:
    shutil.copytree(tiny.folder / "base", tmp_path / "base")
    (tmp_path / "base" / lost).unlink()
    said = refused(capsys, with_model(tiny, tmp_path / "bad.json", base=tmp_path / "base"), tmp_path / "out")
    assert f"{tmp_path / 'base'}: cannot be loaded by open_clip" in said
    assert said.endswith("is the folder complete?")


def test_a_checkpoint_that_is_not_the_pinned_one(tiny: TinySuite, tmp_path: Path, capsys: Output) -> None:
    tensors = load_file(tiny.expert("fruit"))
    tensors[WEIGHT] += 1
    file = tmp_path / EXPERT_FILE
    save_file(tensors, file)

    def edit(suite: Described) -> None:
        first_task(suite)["expert"] = str(tmp_path)
        suite["checkpoints"][str(file)] = suite["checkpoints"][str(tiny.expert("fruit"))]

    said = refused(capsys, tiny.variant(tmp_path / "bad.json", edit), tmp_path / "out")
    assert said.startswith(f"{file}: SHA-256 is ")
    assert said.endswith("get the file again")


def with_data(tiny: TinySuite, file: Path, **changes: Any) -> Path:
    """The suite with other entries of its first task's data set."""
    return tiny.variant(file, lambda suite: first_task(suite)["dataset"].update(changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_column": "img"}, ["has no column 'img', only ['image', 'label']"]),
        ({"label_column": "class"}, ["has no column 'class', only ['image', 'label']"]),
        ({"image_column": "label"}, ["column 'label' holds no images"]),
        ({"train_size": 25}, ["train) has 24 samples, the suite says 25"]),
        ({"eval_size": 41}, ["test) has 40 samples, the suite says 41"]),
        ({"eval_split": "validation"}, ["cannot be loaded", "validation"]),
        ({"path": "/no/such/data"}, ["data set fruit (/no/such/data, train) cannot be loaded"]),
    ],
    ids=str,
)
def test_data_sets_that_are_not_as_the_suite_says(
    tiny: TinySuite, tmp_path: Path, capsys: Output, changes: dict[str, Any], words: list[str]
) -> None:
    said = refused(capsys, with_data(tiny, tmp_path / "bad.json", **changes), tmp_path / "out")
    assert said.startswith("data set fruit (")
    assert [word for word in words if word not in said] == [], said


def test_labels_without_a_class_name(tiny: TinySuite, tmp_path: Path, capsys: Output) -> None:
    file = tiny.variant(tmp_path / "bad.json", lambda suite: first_task(suite)["class_names"].pop())
    said = refused(capsys, file, tmp_path / "out")
    assert "has label 2, outside 0..1; correct the class names" in said


@pytest.mark.parametrize("label", [None, "unicorn", -1])
def test_labels_that_are_no_labels(tiny: TinySuite, tmp_path: Path, capsys: Output, label: object) -> None:
    source = tiny.folder / "data" / "fruit"
    rows = datasets.Dataset.from_parquet(str(source / "data" / "test-00000-of-00001.parquet"))
    kind = "string" if isinstance(label, str) else "int64"
    labels = [label, *([label if isinstance(label, str) else 0] * (len(rows) - 1))]
    rows = rows.remove_columns("label").add_column("label", labels, feature=datasets.Value(kind))
    shutil.copytree(source, tmp_path / "fruit")
    rows.to_parquet(str(tmp_path / "fruit" / "data" / "test-00000-of-00001.parquet"))
    capsys.readouterr()
    said = refused(
        capsys, with_data(tiny, tmp_path / "bad.json", path=str(tmp_path / "fruit")), tmp_path / "out"
    )
    assert said.startswith(f"data set fruit ({tmp_path / 'fruit'}, ")


def test_damaged_parquet(tiny: TinySuite, tmp_path: Path, capsys: Output) -> None:
    shutil.copytree(tiny.folder / "data" / "fruit", tmp_path / "fruit")
    for file in (tmp_path / "fruit" / "data").glob("*.parquet"):
        file.write_bytes(file.read_bytes()[:-200])
    said = refused(
        capsys, with_data(tiny, tmp_path / "bad.json", path=str(tmp_path / "fruit")), tmp_path / "out"
    )
    assert said.startswith("data set fruit (")
    assert "cannot be loaded" in said


def test_images_that_are_none_end_in_one_line_too(
    tiny: TinySuite, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    source = tiny.folder / "data" / "fruit"
    shutil.copytree(source, tmp_path / "fruit")
    file = str(tmp_path / "fruit" / "data" / "test-00000-of-00001.parquet")
    rows = datasets.Dataset.from_parquet(file).cast_column("image", datasets.Image(decode=False))
    images = [{"bytes": b"no image", "path": None}, *rows["image"]][: len(rows)]
    rows = rows.remove_columns("image").add_column("image", images).cast_column("image", datasets.Image())
    rows.to_parquet(file)
    suite = with_data(tiny, tmp_path / "bad.json", path=str(tmp_path / "fruit"))
    assert main(["run", str(suite), "--out", str(tmp_path / "out")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(
        f"epmq: error: data set fruit ({tmp_path / 'fruit'}, test): sample 0 is not an image: "
    )
