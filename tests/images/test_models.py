"""A suite's models opened through either library: experts in every layout, zero-shot heads."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTextModelWithProjection

from benchmarks.suites import load as suites
from epmq.errors import UserError
from tests.fixtures import tiny_clip
from tests.fixtures.clip_models import TASKS, TEMPLATES, Written, opened, write
from tests.fixtures.tiny_clip import State

LIBRARIES = ("transformers", "open_clip")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(tmp_path_factory.mktemp("models"))


def with_position_ids(state: State) -> State:
    """As transformers before 4.31 stored it."""
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in state) else ""
    return {**state, f"{prefix}embeddings.position_ids": torch.arange(5)[None]}


def in_image_encoder(state: State) -> State:
    """As task_vectors and TALL-masks publish experts: a module around the whole open_clip model."""
    return {f"model.{name}": x for name, x in tiny_clip.as_open_clip(state).items()}


def visual(state: State) -> State:
    found = tiny_clip.as_open_clip(state)
    return {name.removeprefix("visual."): x for name, x in found.items() if name.startswith("visual.")}


LAYOUTS: dict[str, tuple[str, Callable[[State], State], str]] = {
    "bare": ("transformers", tiny_clip.bare, "model.safetensors"),
    "bare, before 5": (
        "transformers",
        lambda x: tiny_clip.bare(x, "vision_model."),
        "model.safetensors",
    ),
    "bare, position ids": (
        "transformers",
        lambda x: with_position_ids(tiny_clip.bare(x)),
        "model.safetensors",
    ),
    "whole CLIPModel": ("transformers", dict, "model.safetensors"),
    "whole CLIPModel, position ids": ("transformers", with_position_ids, "model.safetensors"),
    "pickle": ("transformers", tiny_clip.bare, "pytorch_model.bin"),
    "float16": ("transformers", lambda x: halved(tiny_clip.bare(x)), "model.safetensors"),
    "visual": ("open_clip", visual, "model.safetensors"),
    "open_clip": ("open_clip", tiny_clip.as_open_clip, "model.safetensors"),
    "ImageEncoder": ("open_clip", in_image_encoder, "model.safetensors"),
    "ImageEncoder, pickle": ("open_clip", in_image_encoder, "nonlinear_finetuned.pt"),
}


def halved(state: State) -> State:
    return {name: x.half() for name, x in state.items()}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPMQ_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_experts_are_found_in_every_layout(layout: str, written: Written, tmp_path: Path) -> None:
    """The tower that loads the expert computes what transformers computes with the expert's weights."""
    library, arranged, name = LAYOUTS[layout]
    models = opened(written.suite(library, written.write_experts(tmp_path, arranged, name)))
    side = tiny_clip.IMAGE
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(9))
    theirs = CLIPModel(written.model.config).eval()
    for task, state in written.experts.items():
        assert models.experts[task].keys() - {"embeddings.position_ids"} == models.base.keys()
        theirs.load_state_dict(state)
        with torch.no_grad():
            expected = theirs.get_image_features(pixel_values=images).pooler_output
            found = models.tower.load_all(models.experts[task])(images)
        tolerance = 2e-2 if layout == "float16" else 1e-5
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_the_bases_own_position_ids_are_no_weights(written: Written, tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_clip.write_transformers(written.model, base)
    save_file(with_position_ids(load_file(base / "model.safetensors")), base / "model.safetensors")
    experts = written.write_experts(tmp_path / "experts", tiny_clip.bare, "model.safetensors")
    models = opened(written.suite("transformers", experts, base=str(base)))
    assert "embeddings.position_ids" not in models.tower.merged_parameters()


def test_a_pickled_base_serves(written: Written, tmp_path: Path) -> None:
    """OpenAI's ViT-B/32 has long been published as ``pytorch_model.bin`` alone."""
    base = tmp_path / "base"
    tiny_clip.write_transformers(written.model, base)
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    experts = written.write_experts(tmp_path / "experts", tiny_clip.bare, "model.safetensors")
    pickled = opened(written.suite("transformers", experts, base=str(base)))
    plain = opened(written.suite("transformers", experts))
    for name, parameter in plain.tower.named_parameters():
        assert torch.equal(parameter, dict(pickled.tower.named_parameters())[name])


@pytest.fixture(scope="module")
def experts(written: Written, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Experts in each library's own layout."""
    folder = tmp_path_factory.mktemp("experts")
    return {
        "transformers": written.write_experts(folder / "t", tiny_clip.bare, "model.safetensors"),
        "open_clip": written.write_experts(folder / "o", visual, "model.safetensors"),
    }


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_tower_holds_the_base(library: str, written: Written, experts: dict[str, Path]) -> None:
    models = opened(written.suite(library, experts[library]))
    for name, parameter in models.tower.merged_parameters().items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, models.base[name])
    projection = {"transformers": written.model.visual_projection.weight}.get(library)
    expected = written.model.visual_projection.weight.T if projection is None else projection
    shared = [p for n, p in models.tower.named_parameters() if models.tower.keys[n] in models.tower.shared]
    assert len(shared) == 1
    assert torch.equal(shared[0], expected)


@torch.no_grad()
def by_clip_model(model: Any, tokenizer: Any, names: list[str]) -> Tensor:
    """Heads by transformers' documented route."""
    rows = []
    for name in names:
        tokens = tokenizer([t.replace("{c}", name) for t in TEMPLATES], padding=True, return_tensors="pt")
        text = model.get_text_features(**tokens)
        rows.append(F.normalize(getattr(text, "pooler_output", text), dim=-1).mean(0))
    return F.normalize(torch.stack(rows), dim=-1)


def test_heads_are_clip_models_and_agree_between_libraries(
    written: Written, experts: dict[str, Path], tmp_path: Path
) -> None:
    words = tiny_clip.tokenizer()
    tiny_clip.write_transformers(written.model, tmp_path / "base", words)
    both = [
        opened(written.suite("transformers", experts["transformers"], base=str(tmp_path / "base"))),
        opened(written.suite("open_clip", experts["open_clip"])),
    ]
    for task in written.suite("transformers", experts["transformers"]).tasks:
        expected = by_clip_model(written.model, words, task.class_names)
        for models in both:
            found = models.head(task)
            assert found.shape == (len(task.class_names), tiny_clip.DIM)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert float((expected[0] - expected[1]).abs().max()) > 1e-2


def test_every_published_prompt_has_the_same_tokens_in_both_libraries() -> None:
    """So that heads can agree; the names hold brackets, apostrophes, digits and underscores."""
    theirs = open_clip.get_tokenizer("ViT-B-32")
    end, prompts = 49407, set()
    for task in suites.load_clip("clip-vit-b32-20").tasks:
        prompts |= {t.replace("{c}", name) for name in task.class_names for t in task.templates[:1]}
    asked = sorted(prompts)
    ours = torch.tensor(tiny_clip.tokenizer()(asked, padding="max_length", max_length=77)["input_ids"])
    padded = theirs(asked)
    after_end = padded.eq(0)
    assert len(asked) > 1000
    assert torch.equal(ours.masked_fill(after_end, end), padded.masked_fill(after_end, end))
    assert torch.equal(ours[after_end], torch.full_like(ours[after_end], end))


def test_the_text_tower_is_let_go_after_the_heads(
    written: Written, experts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Any]] = []
    build = CLIPTextModelWithProjection.__init__

    def watched(self: Any, *args: Any, **options: Any) -> None:
        build(self, *args, **options)
        made.append(weakref.ref(self))

    monkeypatch.setattr(CLIPTextModelWithProjection, "__init__", watched)
    suite = written.suite("transformers", experts["transformers"])
    models = opened(suite)
    counted = len(made)
    first = models.head(suite.tasks[0])
    gc.collect()
    assert len(made) == counted + 1
    assert [text() for text in made if text() is not None] == []
    assert models.head(suite.tasks[0]) is first
    assert models.head(suite.tasks[1]).shape == (2, tiny_clip.DIM)
    assert len(made) == counted + 1


def test_prompts_that_are_too_long_are_named(written: Written, experts: dict[str, Path]) -> None:
    suite = written.suite("transformers", experts["transformers"])
    wordy = suite.tasks[0].model_copy(update={"class_names": ["w" * 90]})
    models = opened(suite.model_copy(update={"tasks": [wordy, suite.tasks[1]]}))
    with pytest.raises(
        UserError, match=r"prompts such as 'a .* are longer than the model's 77 tokens; shorten"
    ):
        models.head(wordy)


@pytest.mark.keeps_rng
@pytest.mark.parametrize("library", LIBRARIES)
def test_opening_draws_no_random_number(library: str, written: Written, experts: dict[str, Path]) -> None:
    suite = written.suite(library, experts[library])
    opened(suite).head(suite.tasks[0])


@pytest.mark.parametrize("library", LIBRARIES)
def test_revisions_name_what_was_read(library: str, written: Written, experts: dict[str, Path]) -> None:
    found = opened(written.suite(library, experts[library])).revisions
    assert list(found["experts"]) == list(TASKS)
    every = [found["base"], *found["experts"].values()]
    assert len(set(every)) == 3
    assert all(revision.startswith("local:") for revision in every)
