"""Bad input ends in one line that says what, where and what to do, with status 2, before any work."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.cli import main
from benchmarks.clip import BASE_FILE, EXPERT_FILE
from benchmarks.runner import Computation
from tests.tiny_suite import TinySuite

Output = pytest.CaptureFixture[str]
Described = dict[str, Any]


@pytest.fixture(autouse=True)
def _nothing_is_computed(tiny: TinySuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Computation, "run", lambda _: pytest.fail("a cell was computed"))
    # no data that were loaded before may answer for a file that a test has damaged
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def complaint(capsys: Output, *command: str | Path) -> str:
    """The one line that a failing command prints."""
    status = main([str(word) for word in command])
    said = capsys.readouterr()
    assert status == 2, said
    assert said.out == ""
    assert said.err.startswith("epmq: error: ")
    assert said.err.count("\n") == 1
    assert said.err.endswith("\n")
    assert "Traceback" not in said.err
    assert len(said.err) < 700, "a line that nobody reads to its end"
    return said.err.removeprefix("epmq: error: ").strip()


def refused(capsys: Output, suite: Path, out: Path, *options: str) -> str:
    """What `epmq run` says, having written nothing."""
    text = complaint(capsys, "run", suite, "--out", out, *options)
    assert not out.exists()
    return text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "gptqq"], ["method 'gptqq' is unknown", "did you mean 'gptq'"]),
        (["--method", "epmq-feature"], ["did you mean 'epmq-features'"]),
        (["--merge", "task-arithmetics"], ["merge 'task-arithmetics' is unknown", "'task-arithmetic'"]),
        (["--target", "expertt"], ["target 'expertt' is unknown", "did you mean 'expert'"]),
        (["--controls", "zeroshot"], ["control 'zeroshot' is unknown", "did you mean 'zero-shot'"]),
        (["--comparison", "defualt"], ["comparison 'defualt' is unknown in tiny", "did you mean 'default'"]),
        (["--bits", "1"], ["bits 1 is out of range; give 2 to 8"]),
        (["--bits", "4", "9"], ["bits 9 is out of range; give 2 to 8"]),
        (["--bits", "four"], ["--bits: invalid int value: 'four'", "epmq run --help"]),
        (["--group-size", "7"], ["group size 7 does not divide a layer's 16 input columns"]),
        (["--group-size", "32"], ["group size 32 does not divide a layer's 16 input columns"]),
        (["--group-size", "-1"], ["group size -1 is not positive"]),
        (
            ["--samples", "25"],
            ["25 calibration samples asked for", "task 'fruit' has 24 to draw from; give 1 to 24"],
        ),
        (["--samples", "0"], ["0 calibration samples asked for"]),
        (["--seed", "-1"], ["seed -1 is negative; give 0 or more"]),
        (["--anchor", "-1"], ["anchor -1.0 is out of range; give a finite number, 0 or more"]),
        (["--anchor", "nan"], ["anchor nan is out of range"]),
        (["--mixing", "2"], ["mixing 2.0 is out of range; give a number from 0 to 1"]),
        (["--mixing", "0.5"], ["mixing 0.5 changes no cell that is asked for; leave it out"]),
        (["--keep", "0.5"], ["keep 0.5 changes no cell that is asked for"]),
        (["--merge", "ties", "--keep", "1.5"], ["keep 1.5 is out of range; give a share in (0, 1]"]),
        (["--scale", "inf"], ["task-arithmetic: scale inf is not a finite number"]),
        (["--source", "quantized"], ["source 'quantized' is unknown; did you mean 'quantised'"]),
        (
            ["--layers", "*.q_proj"],
            ["layers '*.q_proj' matches no layer; the first is 'blocks.0.attn.in_proj"],
        ),
        (["--block-size", "0"], ["block size 0 is not positive"]),
        (["--frobnicate"], ["unrecognized arguments: --frobnicate; see 'epmq"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_options(
    tiny: TinySuite, tmp_path: Path, capsys: Output, options: list[str], words: list[str]
) -> None:
    said = refused(capsys, tiny.file, tmp_path / "out", *options)
    assert [word for word in words if word not in said] == [], said


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["run", "micro-clip-9", "--out", "x"], ["suite 'micro-clip-9' is unknown", "'micro-clip-8'"]),
        (
            ["run", "no/such.json", "--out", "x"],
            ["no/such.json: cannot read the suite file", "check the path"],
        ),
        (["run", "micro-clip-8"], ["arguments are required: --out", "epmq run --help"]),
        (["rnu"], ["invalid choice: 'rnu'", "epmq --help"]),
        ([], ["required: COMMAND"]),
        (["list", "nothing-like-it"], ["no method matches 'nothing-like-it'", "epmq list"]),
        (["table", "no/such/folder"], ["no/such/folder: ", "check the path"]),
        (["check", "no/such/folder", "--golden", "no/such/folder"], ["no/such/folder: ", "check the path"]),
    ],
    ids=lambda value: " ".join(value)[:24],
)
def test_commands(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch, command: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = complaint(capsys, *command)
    assert [word for word in words if word not in said] == [], said
    assert not (tmp_path / "x").exists()


def first_task(suite: Described) -> Described:
    found: Described = suite["tasks"][0]
    return found


def lacks(*path: str) -> Callable[[Described], object]:
    def edit(suite: Described) -> object:
        for name in path[:-1]:
            suite = suite[name]
        return suite.pop(path[-1])

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lacks("tasks"), ["field tasks: Field required", "correct the suite file"]),
        (lacks("version"), ["field version: Field required"]),
        (lambda s: s.update(version=0), ["field version: ", "greater than or equal to 1"]),
        (lambda s: s.update(extra=1), ["field extra: ", "not permitted"]),
        (lambda s: s.update(kind="t5"), ["field kind: ", "'clip'"]),
        (lambda s: s.update(tasks=[]), ["field tasks: ", "at least 1"]),
        (lambda s: s["tasks"].append(s["tasks"][0]), ["field tasks: ", "task 'fruit' is there twice"]),
        (lambda s: first_task(s).update(class_names=[]), ["field tasks.0.class_names: ", "at least 1"]),
        (lambda s: first_task(s).update(templates=["a photo"]), ["field tasks.0.templates: ", "lacks {c}"]),
        (
            lambda s: first_task(s)["dataset"].update(train_size="many"),
            ["field tasks.0.dataset.train_size: "],
        ),
        (lambda s: s["comparisons"]["default"].update(bits="4"), ["field comparisons.default.bits: "]),
    ],
)
def test_malformed_suite_files(
    tiny: TinySuite, tmp_path: Path, capsys: Output, edit: Callable[[Described], object], words: list[str]
) -> None:
    file = tiny.variant(tmp_path / "bad.json", edit)
    said = refused(capsys, file, tmp_path / "out")
    assert [word for word in [f"{file}: ", *words] if word not in said] == [], said


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null"])
def test_suite_files_that_are_no_suite(tmp_path: Path, capsys: Output, content: bytes) -> None:
    file = tmp_path / "bad.json"
    file.write_bytes(content)
    said = refused(capsys, file, tmp_path / "out")
    assert said.startswith(f"{file}: ")
    assert said.endswith("correct the suite file")


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
    assert said.startswith(f"{tmp_path / EXPERT_FILE}: ")
    assert [word for word in words if word not in said] == [], said
    assert said.count("; ") >= 1, "it says what to do"


def test_an_expert_that_is_the_base(tiny: TinySuite, tmp_path: Path, capsys: Output) -> None:
    whole = load_file(tiny.folder / "base" / BASE_FILE)
    names = [name for name in whole if name.startswith("visual.")]
    save_file({name.removeprefix("visual."): whole[name] for name in names}, tmp_path / EXPERT_FILE)
    said = refused(capsys, with_model(tiny, tmp_path / "bad.json", expert=tmp_path), tmp_path / "out")
    assert f"{tmp_path / EXPERT_FILE}: every tensor equals the base's; give an expert" in said


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
    no_file: "no such checkpoint file",
    a_folder: "is a folder",
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
    assert said.startswith(f"{file}: {DAMAGES[damage]}"), said


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


def manifest(folder: Path, **changes: Any) -> None:
    """A started results folder of the tiny suite."""
    described = {"schema": 1, "suite": "tiny", "suite_version": 1, "created": "2026-01-01"}
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(described | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"suite": "other"}, ["holds results of other version 1, asked for tiny version 1"]),
        ({"suite_version": 2}, ["holds results of tiny version 2, asked for tiny version 1"]),
        ({"schema": 2}, ["manifest.json: schema: "]),
        ({"revisions": {}}, ["its results come from another revision of the suite"]),
    ],
    ids=str,
)
def test_output_folders_of_something_else(
    tiny: TinySuite, tmp_path: Path, capsys: Output, changes: dict[str, Any], words: list[str]
) -> None:
    manifest(tmp_path / "out", **changes)
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    said = complaint(capsys, "run", tiny.file, "--out", tmp_path / "out")
    assert [word for word in [*words, "choose another --out"] if word not in said] == [], said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.json"]
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[1]"])
def test_damaged_manifests(tiny: TinySuite, tmp_path: Path, capsys: Output, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    said = complaint(capsys, "run", tiny.file, "--out", tmp_path)
    assert said.startswith(f"{tmp_path / 'manifest.json'}: ")


def test_an_output_path_that_is_a_file_or_below_one(tiny: TinySuite, tmp_path: Path, capsys: Output) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "below" / "it"):
        said = complaint(capsys, "run", tiny.file, "--out", out)
        assert said.startswith(f"{out}: cannot write results there: {file} is a file; "), said
    assert file.read_text() == "mine"


def test_an_output_path_that_root_cannot_make_either(tiny: TinySuite, capsys: Output) -> None:
    if not Path("/proc").is_dir():
        pytest.skip("needs /proc")
    said = complaint(capsys, "run", tiny.file, "--out", "/proc/epmq/out")
    assert said.startswith("/proc/epmq/out: cannot write results there: ")
    assert "choose another folder" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_path_without_permission(tiny: TinySuite, tmp_path: Path, capsys: Output) -> None:
    tmp_path.chmod(0o500)
    try:
        said = refused(capsys, tiny.file, tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)
    assert "Permission denied; change its permissions or choose another folder" in said


def test_no_permission_as_the_system_reports_it(
    tiny: TinySuite, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    said = refused(capsys, tiny.file, tmp_path / "out")
    assert said.startswith(f"{tmp_path / 'out'}: cannot write results there: Permission denied; change its")


def test_no_space_for_the_folder(
    tiny: TinySuite, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    said = complaint(capsys, "run", tiny.file, "--out", tmp_path / "out")
    assert said.endswith(
        "cannot write results there: No space left on device; free some space or choose another folder"
    )
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_no_space_in_the_middle_of_a_run(
    tiny: TinySuite, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # cells are computed here
    out, fsync = tmp_path / "out", os.fsync
    synced: list[int] = []

    def soon_full(file: int) -> None:
        synced.append(file)
        if len(synced) > 8:  # the manifest and two records
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", soon_full)
        assert main(["run", str(tiny.file), "--out", str(out)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"epmq: error: {out}: cannot write results there: No space left on device; free")
    assert main(["run", str(tiny.file), "--out", str(out)]) == 0
    assert main(["table", str(out)]) == 0
    assert "not run" not in capsys.readouterr().out


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
    assert last.startswith(f"epmq: error: data set {tmp_path / 'fruit'}: sample 0 is not an image: ")


def test_an_unknown_table_format(tmp_path: Path, capsys: Output) -> None:
    manifest(tmp_path / "run")
    (tmp_path / "run" / "records.jsonl").touch()
    said = complaint(capsys, "table", tmp_path / "run", "--format", "markdwon")
    assert "unknown table format 'markdwon'" in said
