"""``epmq quantise``: models and samples of one's own to a checkpoint folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    CLIPModel,
    CLIPVisionModelWithProjection,
)

import epmq
from benchmarks.cli.main import main
from benchmarks.images.preprocess import of_transformers
from benchmarks.own import solved
from benchmarks.own.samples import Asked, drawn
from benchmarks.run import plan
from epmq.checkpoints import kept
from tests.fixtures.own import COUNT, Own, write_clip, write_images, write_lm
from tests.fixtures.tiny_lm import FAMILIES
from tests.fixtures.tiny_suite import TinySuite
from tests.fixtures.tiny_text import TinyText

Output = pytest.CaptureFixture[str]
DENSE = ("--format", "dense")


@pytest.fixture(autouse=True)
def _no_long_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan measures the machine for a second."""
    monkeypatch.setattr(plan, "PROBE_SECONDS", 0.001)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Own:
    return write_clip(tmp_path_factory.mktemp("own-clip"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Own:
    return write_lm(tmp_path_factory.mktemp("own-lm"))


def made(words: list[str], to: Path, *more: object) -> dict[str, Tensor]:
    """The tensors of the checkpoint that a command writes."""
    assert main([*words, "--to", str(to), *map(str, more)]) == 0
    return load_file(next(to.glob("*model.safetensors")))


def inputs(own: Own, task: str) -> Tensor:
    """What the command calibrates with."""
    rows = drawn(Asked(task, str(own.samples[task])), "clip", COUNT, 0).rows
    preprocess = of_transformers(own.base, "fast")
    return torch.stack([preprocess(image) for image in rows["image"]])


def test_a_clip_is_what_the_library_makes_of_it(clip: Own, tmp_path: Path) -> None:
    found = made(clip.words(), tmp_path / "out", *DENSE)
    model = CLIPModel.from_pretrained(clip.base)
    experts = epmq.load_experts(model, clip.experts)
    images = {task: inputs(clip, task) for task in clip.experts}
    epmq.quantise(
        model, experts, images, "epmq-features", merge="task-arithmetic", merge_options={"scale": 0.3}
    )
    expected = model.state_dict()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.float(), expected[name], rtol=0, atol=1e-5)
    loaded = CLIPModel.from_pretrained(tmp_path / "out")
    image = images["cars"][:3]
    ours, theirs = (m.get_image_features(pixel_values=image) for m in (model, loaded))
    torch.testing.assert_close(_features(ours), _features(theirs), rtol=0, atol=1e-4)


def _features(found: Any) -> Tensor:
    features: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return features


def test_an_open_clip_tower_is_written_for_transformers(tiny: TinySuite, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 0)
    words = ["quantise", "--base", str(tiny.folder / "base"), "--count", "8"]
    for task in ("fruit", "birds"):
        words += ["--expert", f"{task}={tiny.folder / 'experts' / task}"]
    words += ["--samples", f"fruit={images}", "--samples", f"birds={tiny.folder / 'data' / 'birds'}"]
    made(words, tmp_path / "out", *DENSE)
    assert CLIPVisionModelWithProjection.from_pretrained(tmp_path / "out").config.hidden_size == 16


def test_a_t5_reads_what_its_experts_answer(tiny_text: TinyText, tmp_path: Path) -> None:
    (tmp_path / "warm.txt").write_text("\n".join(f"Is the red {'blue ' * i} warm?" for i in range(12)))
    words = ["quantise", "--base", str(tiny_text.folder / "base"), "--count", "8", "--answer-tokens", "4"]
    for task in ("warm", "kind"):
        words += ["--expert", f"{task}={tiny_text.folder / 'experts' / task}"]
    words += ["--samples", f"warm={tmp_path / 'warm.txt'}"]
    words += ["--samples", f"kind={tiny_text.folder / 'data' / 'kind'}"]
    answered = made(words, tmp_path / "out", *DENSE)
    alone = made(words, tmp_path / "alone", *DENSE, "--decoder", "start")
    assert any(not torch.equal(tensor, alone[name]) for name, tensor in answered.items())
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").config.model_type == "t5"


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_causal_models_of_every_family(family: str, tmp_path: Path) -> None:
    assert family in FAMILIES
    own = write_lm(tmp_path, family)
    made(own.words(), tmp_path / "out", *DENSE, "--answer-tokens", 3, "--bits", 3, "--group-size", 4)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.model_type == family


@pytest.mark.parametrize(
    "method",
    [
        ["rtn", "--target", "expert", "--symmetric"],
        ["epmq", "--merge", "ties", "--scale", "0.5", "--keep", "0.3"],
        ["epmq-features-tuned", "--refine-steps", "2", "--refine-batch", "2"],
        ["distilled-qat", "--refine-steps", "2", "--refine-batch", "2"],
        ["two-step"],
        ["epmq-auto"],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("form", ["compressed-tensors", "epmq"])
def test_any_method_that_rounds(method: list[str], form: str, clip: Own, tmp_path: Path) -> None:
    found = made(clip.words(), tmp_path / "out", "--method", *method, "--format", form)
    assert any("packed" in name or "codes" in name for name in found), list(found)[:5]


def test_samples_are_the_same_however_they_are_stored(llama: Own, tmp_path: Path) -> None:
    """As lines, JSON, a parquet file and a folder of a data set."""
    texts = [line for line in llama.samples["cars"].read_text().splitlines() if line.strip()]
    rows = Dataset.from_dict({"text": texts, "label": [0] * len(texts)})
    rows.to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "set").mkdir()
    rows.to_parquet(tmp_path / "set" / "train.parquet")
    places = [llama.samples["cars"], llama.samples["digits"], tmp_path / "rows.parquet", tmp_path / "set"]
    columns = {llama.samples["digits"]: "prompt"}
    found = [drawn(Asked("cars", str(p), column=columns.get(p)), "text", COUNT, 3) for p in places]
    assert {tuple(each.rows["text"]) for each in found} == {tuple(found[0].rows["text"])}
    assert {each.revision for each in found} == {found[0].revision}
    assert {each.available for each in found} == {len(texts)}
    assert drawn(Asked("cars", str(places[0])), "text", COUNT, 4).revision != found[0].revision


def test_what_was_rounded_before_a_kill_is_read(
    clip: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setenv("EPMQ_CACHE", str(tmp_path / "cache"))
    written: list[Any] = []
    original = kept.keep

    def killed(*given: Any) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        original(*given)
        written.append(given)

    monkeypatch.setattr(solved, "keep", killed)
    words = [*clip.words(), *DENSE, "--to", str(tmp_path / "out")]
    assert main(words) == 130
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(solved, "keep", original)
    capsys.readouterr()
    assert main(words) == 0
    assert "3 layers were rounded before" in capsys.readouterr().err
    assert not list((tmp_path / "cache" / "solved").rglob("*.safetensors"))
    again = made(clip.words(), tmp_path / "again", *DENSE)
    resumed = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in again.items())


def test_the_plan_says_what_will_be_done_and_does_nothing(clip: Own, tmp_path: Path, capsys: Output) -> None:
    assert main([*clip.words(), "--plan", "--bits", "3", "--group-size", "8"]) == 0
    said = capsys.readouterr().out
    for words in ("a CLIP image tower (transformers)", "task-arithmetic, scale 0.3", "rounded by gptq"):
        assert words in said
    assert "3 bits, asymmetric, a scale per 8 inputs; about 5.38 bits a weight" in said
    assert f"{COUNT}         16" in said
    assert "memory" in said


@pytest.mark.keeps_rng
def test_the_folder_says_where_it_comes_from(clip: Own, tmp_path: Path) -> None:
    made(clip.words(), tmp_path / "out", "--seed", "5")
    note = json.loads((tmp_path / "out" / "epmq.json").read_bytes())
    assert note["experts"] == {task: "/".join(where.parts[-2:]) for task, where in clip.experts.items()}
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(word in card for word in ("epmq-features", "12 of 16", "from_pretrained", "their terms hold"))
    assert str(tmp_path) not in card
    assert note["axes"]["samples"] == COUNT
    assert note["revisions"]["datasets"]["cars"].startswith("local:")
