"""What ``epmq quantise`` refuses: one line that says what is wrong, and nothing is written or computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset
from safetensors.torch import load_file, save_file

from benchmarks.cli.main import main
from benchmarks.run import compute, plan
from tests.fixtures.own import Own, write_clip, write_images, write_lm

Make = Callable[[Own, Path], list[str]]


@pytest.fixture(scope="module")
def owns(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Own]:
    return {
        "clip": write_clip(tmp_path_factory.mktemp("own-clip")),
        "lm": write_lm(tmp_path_factory.mktemp("own-lm")),
    }


@pytest.fixture(autouse=True)
def _nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PROBE_SECONDS", 0.001)
    monkeypatch.setattr(compute, "model", lambda *_: pytest.fail("a model was computed"))


def given(*more: str, **changes: object) -> Make:
    """The whole command with further options, and with changes that do not depend on the place."""
    return lambda own, _: [*own.words(**changes), *more]


def changed(name: str, make: Callable[[Own, Path], object]) -> Make:
    """With one of the command's parts made for the test."""
    return lambda own, place: own.words(**{name: make(own, place)})


def images(edit: Callable[[Path], object]) -> Callable[[Own, Path], Path]:
    """A folder of images, edited."""

    def make(_: Own, place: Path) -> Path:
        folder = write_images(place / "images", 0)
        edit(folder)
        return folder

    return make


def file(name: str, content: str | bytes) -> Callable[[Own, Path], Path]:
    def make(_: Own, place: Path) -> Path:
        (place / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return place / name

    return make


def copied(part: str, edit: Callable[[Path], object]) -> Callable[[Own, Path], Path]:
    """A copy of the base or of the first expert, edited."""

    def make(own: Own, place: Path) -> Path:
        shutil.copytree(own.base if part == "base" else own.experts["cars"], place / "copy")
        edit(place / "copy")
        return place / "copy"

    return make


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def narrower(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v[..., :-1].contiguous() for k, v in weights.items() if v.dim()}, folder / "model.safetensors"
    )


def table(columns: dict[str, list[object]]) -> Callable[[Own, Path], Path]:
    def make(_: Own, place: Path) -> Path:
        Dataset.from_dict(columns).to_parquet(place / "rows.parquet")
        return place / "rows.parquet"

    return make


def as_config(**fields: object) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        found = json.loads((folder / "config.json").read_bytes())
        (folder / "config.json").write_text(json.dumps({**found, **fields}))

    return edit


def without_tokenizer(folder: Path) -> None:
    for found in [*folder.glob("tokenizer*"), *folder.glob("special*"), *folder.glob("vocab*")]:
        found.unlink()
    for found in folder.glob("merges*"):
        found.unlink()


def empty(_: Own, place: Path) -> Path:
    (place / "nothing").mkdir()
    return place / "nothing"


CASES: dict[str, tuple[str, Make, str]] = {
    "an expert without a task": ("clip", given("--expert", "models/x"), "is not TASK=WHERE"),
    "an expert twice": ("clip", given("--expert", "cars=x"), "--expert cars is given twice"),
    "an unknown task of samples": ("clip", given("--samples", "carz=x"), "did you mean 'cars'?"),
    "an expert without samples": ("clip", given("--expert", "birds=a/b"), "expert of 'birds' has no samples"),
    "an expert that is nowhere": (
        "clip",
        given(cars_expert="no/such/folder"),
        "neither there nor a hub id",
    ),
    "a base that is nowhere": ("clip", given(base="nothing"), "base: 'nothing' is neither there"),
    "a base that is a file": ("clip", changed("base", file("x.bin", b"")), "is a file; give the folder"),
    "a base that is empty": ("clip", changed("base", empty), "holds neither config.json nor"),
    "a base of another kind": (
        "clip",
        changed("base", copied("base", as_config(model_type="bert"))),
        "describes a model of type 'bert', expected one of clip, t5, llama",
    ),
    "a base with code of its own": (
        "lm",
        changed("base", copied("base", as_config(auto_map={"AutoConfig": "x.Y"}))),
        "'auto_map' names code",
    ),
    "a base without tokenizer": (
        "lm",
        changed("base", copied("base", without_tokenizer)),
        "is the folder complete?",
    ),
    "a CLIP without processor": (
        "clip",
        changed("base", copied("base", without("preprocessor_config.json"))),
        "preprocessor_config.json: cannot be used",
    ),
    "a base without weights": (
        "clip",
        changed("base", copied("base", without("model.safetensors"))),
        "holds no weights",
    ),
    "an expert of another width": (
        "clip",
        changed("cars_expert", copied("expert", narrower)),
        "give an expert fine-tuned from this base",
    ),
    "an expert that is the base": (
        "lm",
        changed("cars_expert", lambda own, _: own.base),
        "equals the base",
    ),
    "an empty folder of samples": ("clip", changed("cars_samples", empty), "holds neither images nor a data"),
    "samples that are nowhere": (
        "clip",
        given(cars_samples="nowhere"),
        "'nowhere' is neither",
    ),
    "too few images": (
        "clip",
        given("--count", "17"),
        "holds 16, 17 are asked for",
    ),
    "no image at all": ("clip", given("--count", "0"), "--count 0 is out of range"),
    "an image that is cut off": (
        "clip",
        changed("cars_samples", images(lambda f: [x.write_bytes(x.read_bytes()[:200]) for x in f.iterdir()])),
        "is not an image",
    ),
    "an image that is text": (
        "clip",
        changed("cars_samples", images(lambda f: [x.write_text("no") for x in f.iterdir()])),
        "is not an image",
    ),
    "text for images": (
        "clip",
        changed("cars_samples", file("a.txt", "x\n" * 20)),
        "text; give images",
    ),
    "a table of text for images": (
        "clip",
        changed("cars_samples", table({"text": ["a"] * 20})),
        "text; give images",
    ),
    "images for text": ("lm", changed("cars_samples", images(lambda _: None)), "images; give text"),
    "a table of numbers": (
        "lm",
        changed("cars_samples", table({"n": [1] * 20})),
        "columns n; give text",
    ),
    "text that is no text": ("lm", changed("cars_samples", file("a.txt", b"\xff\xfe" * 9)), "give UTF-8"),
    "JSON that is none": (
        "lm",
        changed("cars_samples", file("a.jsonl", "{}\n{")),
        "line 1: has no text",
    ),
    "JSON with many texts": (
        "lm",
        changed("cars_samples", file("a.jsonl", '{"a": "x", "b": "y"}')),
        "line 1: has several columns to choose from (a, b); give --column",
    ),
    "a column that is not there": (
        "lm",
        lambda own, place: [
            *own.words(cars_samples=table({"text": ["a"] * 20})(own, place)),
            *("--column", "prompt"),
        ],
        "has no such column 'prompt', only text",
    ),
    "a split that is not there": (
        "lm",
        lambda own, place: [
            *own.words(cars_samples=_folder(table({"text": ["a"] * 20})(own, place))),
            *("--split", "test"),
        ],
        "cannot be loaded",
    ),
    "an unknown method": ("clip", given("--method", "gptqq"), "did you mean 'gptq'"),
    "several methods": ("clip", given("--method", "epmq*"), "name one"),
    "a method that does not round": ("clip", given("--method", "merged"), "leaves full precision"),
    "experts as they are": ("clip", given("--method", "experts"), "leaves full precision"),
    "an unknown merge": ("clip", given("--merge", "tis"), "merge 'tis' is unknown"),
    "an option of another merge": ("clip", given("--keep", "0.2"), "keep 0.2 changes no cell"),
    "nine bits": ("clip", given("--bits", "9"), "bits"),
    "a group that does not fit": ("clip", given("--group-size", "7"), "7"),
    "an unknown format": ("clip", given("--format", "gguf"), "format 'gguf' is unknown"),
    "a layer that the format cannot hold": ("lm", given("--layers", "stem.*"), "give --format epmq"),
    "labels for the decoder": ("lm", given("--decoder", "targets"), "needs labels"),
    "a decoder of images": ("clip", given("--decoder", "start"), "changes nothing in a CLIP model"),
    "answers longer than a prompt": ("lm", given("--max-length", "8"), "leaves a prompt no room"),
    "too few for a refinement": (
        "clip",
        given("--method", "epmq-features-tuned", "--count", "1"),
        "task 'cars' has 1 calibration sample",
    ),
}


def _folder(path: Path) -> Path:
    (path.parent / "set").mkdir()
    shutil.move(path, path.parent / "set" / "train.parquet")
    return path.parent / "set"


def refused(words: list[str], to: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line, beside which nothing is at ``to``."""
    before = sorted(to.parent.iterdir())
    assert main([*words, "--to", str(to)]) == 2
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("epmq: error: ")]
    assert len(lines) == 1, said
    assert said.endswith(f"{lines[0]}\n")
    assert "Traceback" not in said
    assert sorted(to.parent.iterdir()) == before
    return lines[0]


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_nothing_is_written(
    case: str, owns: dict[str, Own], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, make, says = CASES[case]
    (tmp_path / "place").mkdir()
    (tmp_path / "out").mkdir()
    words = make(owns[kind], tmp_path / "place")
    assert says in refused(words, tmp_path / "out" / "model", capsys)


def test_a_folder_that_is_there_is_left_alone(
    owns: dict[str, Own], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    assert "is there already" in refused(owns["clip"].words(), tmp_path / "out", capsys)
    assert (tmp_path / "out" / "mine").read_text() == "mine"


def test_a_disk_that_is_too_small_is_found_before_the_work(
    owns: dict[str, Own], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    free = type(shutil.disk_usage(tmp_path))(100, 99, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    line = refused(owns["clip"].words(), tmp_path / "out", capsys)
    assert "free some space" in line
