"""The real transformers against the replica: base models and experts load, in every form, and make sense."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from benchmarks.suites import load as suites
from tests.hub import data, models
from tests.hub.checkpoints import form_of
from tests.hub.client import Client
from tests.hub.content import SUITE, build, shared
from tests.hub.models import BASES, Size
from tests.hub.server import Hub

TASKS = {task.task: task for task in suites.load_clip(SUITE).tasks}
LOADS = """
import transformers
model, info = getattr(transformers, kind).from_pretrained(repo, output_loading_info=True)
answer = [sorted(map(str, keys)) for keys in info.values()] + [str(next(model.parameters()).dtype)]
"""


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(shared(tmp_path_factory))


@pytest.fixture(scope="module")
def hub(content: Path) -> Iterator[Hub]:
    with Hub(content) as hub:
        yield hub


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(hub.env(tmp_path_factory.mktemp("home"))) as client:
        yield client


@pytest.fixture(scope="module")
def towers(content: Path) -> dict[str, Any]:
    """Both base models."""
    from transformers import CLIPModel

    return {size.id: CLIPModel.from_pretrained(content / "models" / size.id).eval() for size in BASES}


def weights(content: Path, repo: str) -> dict[str, Tensor]:
    """A repository's tensors by key, of one file or several."""
    found = {}
    for file in sorted((content / "models" / repo).glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found.update({key: opened.get_tensor(key) for key in opened.keys()})  # noqa: SIM118
    return found


def bare(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the old layout's prefix and buffer, in float32."""
    named = {key.removeprefix("vision_model."): weight for key, weight in stored.items()}
    return {key: weight.float() for key, weight in named.items() if weight.is_floating_point()}


@pytest.mark.parametrize("size", BASES, ids=lambda size: size.id.split("/")[1])
def test_a_base_model_loads_from_the_file_that_it_has(size: Size, hub: Hub, client: Client) -> None:
    hub.forget()
    *problems, dtype = client.run(LOADS, kind="CLIPModel", repo=size.id)
    assert not any(problems)
    assert dtype == "torch.float32"
    weights = {name.rsplit("/", 1)[1] for name in hub.downloaded() if "json" not in name}
    assert weights == {"pytorch_model.bin" if size.legacy else "model.safetensors"}


@pytest.mark.parametrize("task", ["sun397", "stanford-cars", "resisc45", "eurosat", "gtsrb"])
def test_an_expert_loads_whatever_its_form(task: str, client: Client) -> None:
    *problems, dtype = client.run(LOADS, kind="CLIPVisionModel", repo=f"{BASES[0].stem}{task}")
    assert not any(problems)
    assert dtype == str(form_of(task, list(TASKS).index(task)).dtype)


def test_the_processor_and_the_tokenizer_load(client: Client) -> None:
    code = (
        "from transformers import CLIPProcessor\n"
        "from PIL import Image\n"
        "processor = CLIPProcessor.from_pretrained(repo)\n"
        "both = processor(text=texts, images=Image.new('RGB', (60, 40)), return_tensors='pt', padding=True)\n"
        "end = processor.tokenizer.eos_token_id\n"
        "answer = [list(both['pixel_values'].shape), both['input_ids'].tolist(), end]"
    )
    pixels, (short, long), end = client.run(code, repo=BASES[1].id, texts=["a photo", "a photo of a お ☃."])
    assert pixels == [1, 3, 28, 28]
    assert short[-1] == long[-1] == end == max(long)  # the text tower finds a prompt's end by its highest id
    assert short.count(end) == len(long) - 3


def test_every_prompt_fits_into_the_text_tower(content: Path) -> None:
    from transformers import CLIPTokenizer

    tokens = CLIPTokenizer.from_pretrained(content / "models" / BASES[0].id)
    names = [
        (t, name)
        for task in suites.load_clip(SUITE).tasks
        for t in task.templates
        for name in task.class_names
    ]
    assert (
        max(map(len, tokens([template.replace("{c}", name) for template, name in names])["input_ids"])) <= 77
    )


@pytest.mark.parametrize("size", BASES, ids=lambda size: size.id.split("/")[1])
def test_experts_have_the_forms_found_on_the_hub(size: Size, content: Path) -> None:
    seen = set()
    for position, task in enumerate(TASKS):
        form = form_of(task, position)
        stored = weights(content, f"{size.stem}{task}")
        assert {key.startswith("vision_model.") for key in stored} == {form.prefixed}
        assert ("vision_model.embeddings.position_ids" in stored) == form.prefixed
        assert {w.dtype for w in stored.values()} - {torch.int64} == {form.dtype}
        seen.add((form.prefixed, form.dtype, form.files))
    assert len(seen) == 5


@pytest.mark.parametrize("size", BASES, ids=lambda size: size.id.split("/")[1])
def test_experts_differ_from_the_base_in_every_matrix(size: Size, content: Path) -> None:
    base = torch.load(content / "models" / size.id / "pytorch_model.bin", weights_only=True)
    for task in TASKS:
        for key, weight in weights(content, f"{size.stem}{task}").items():
            own = base[key if key.startswith("vision_model.") else f"vision_model.{key}"]
            assert weight.isfinite().all()
            if weight.ndim == 2 and weight.is_floating_point():
                assert (weight.float() - own).norm() > 0.01 * own.norm(), (task, key)


@torch.no_grad()
def accuracy(content: Path, model: Any, size: Size, name: str) -> float:
    """Zero-shot accuracy on a task's evaluated split, in [0, 1]; the first prompt alone."""
    from transformers import CLIPTokenizer

    task = TASKS[name]
    shown = data.samples(name, len(task.class_names))[task.dataset.eval_split]
    images = [Image.open(io.BytesIO(sample.picture.data)) for sample in shown]
    tokens = CLIPTokenizer.from_pretrained(content / "models" / size.id)
    prompts = [task.templates[0].replace("{c}", c) for c in task.class_names]
    text = model.text_model(**tokens(prompts, padding=True, return_tensors="pt")).pooler_output
    head = torch.nn.functional.normalize(model.text_projection(text), dim=1)
    seen = model.visual_projection(
        model.vision_model(models.pixels(images, size.image).float()).pooler_output
    )
    assert seen.isfinite().all()
    labels = torch.tensor([sample.label for sample in shown])
    return float(((seen @ head.T).argmax(1) == labels).float().mean())


@pytest.mark.parametrize("size", BASES, ids=lambda size: size.id.split("/")[1])
@pytest.mark.parametrize("task", ["eurosat", "svhn", "pcam", "fer2013", "oxford_flowers102"])
def test_an_expert_is_better_at_its_task_than_the_base(
    task: str, size: Size, content: Path, towers: dict[str, Any]
) -> None:
    model = towers[size.id]
    expert = copy.deepcopy(model)
    expert.vision_model.load_state_dict(bare(weights(content, f"{size.stem}{task}")))
    before, after = (accuracy(content, tower, size, task) for tower in (model, expert))
    assert after > before + 0.2


@pytest.mark.parametrize("size", BASES, ids=lambda size: size.id.split("/")[1])
def test_merged_experts_are_better_than_the_base(size: Size, content: Path, towers: dict[str, Any]) -> None:
    model, tasks = towers[size.id], ["eurosat", "svhn", "pcam", "fer2013"]
    merged = copy.deepcopy(model)
    state = {key: weight.clone() for key, weight in model.vision_model.state_dict().items()}
    for task in tasks:
        for key, weight in bare(weights(content, f"{size.stem}{task}")).items():
            state[key] += 0.3 * (weight - model.vision_model.state_dict()[key])
    merged.vision_model.load_state_dict(state)
    before, after = (sum(accuracy(content, tower, size, t) for t in tasks) for tower in (model, merged))
    assert after > before + 0.2


def test_the_content_follows_from_names_alone() -> None:
    assert data.samples("gtsrb", 43) == data.samples("gtsrb", 43)
    one, other = (models.base_model(BASES[0], 600).state_dict() for _ in range(2))
    assert all(torch.equal(one[key], other[key]) for key in one)
