"""The controls ``regmean`` and ``regmean++`` are fusion-bench's methods on a CLIP of transformers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from fusion_bench.constants import DEFAULT_CONFIG_PATH
from fusion_bench.method import RegMeanAlgorithmForCLIP, RegMeanAlgorithmForCLIPPlusPlus
from fusion_bench.method.regmean_plusplus import RegMeanAlgorithmPlusPlus
from fusion_bench.modelpool import BaseModelPool
from hydra import compose, initialize_config_dir
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from baselines.controls import CONTROLS
from epmq.calibration import Calibration, Source
from epmq.merging import merge
from epmq.models.transformers_vision import tower
from epmq.walk import centre, walk
from tests.fixtures import tiny_clip

SAMPLES = 40


class Pool(BaseModelPool):  # type: ignore[misc]
    """Models and their calibration samples."""

    samples: dict[str, Tensor]

    def load_train_dataset(self, name: str, *_: Any, **__: Any) -> list[tuple[Tensor, int]]:
        return [(image, 0) for image in self.samples[name]]


class RegMean(RegMeanAlgorithmForCLIP):  # type: ignore[misc]
    """Fusion-bench's, on tensors and without a zero-shot head, which its Grams do not need."""

    _clip_processor = staticmethod(lambda image: image)

    def on_regmean_start(self) -> None:
        pass

    def compute_logits(self, module: Any, batch: Any, task: str) -> Tensor:
        found: Tensor = module(batch[0])[0]
        return found


class RegMeanPlusPlus(RegMeanAlgorithmForCLIPPlusPlus):  # type: ignore[misc]
    """As :class:`RegMean`; in release 0.2.33 it cannot be made, for its mapping of options has no inverse."""

    _config_mapping = RegMeanAlgorithmPlusPlus._config_mapping
    _clip_processor = staticmethod(lambda image: image)

    def on_regmean_start(self) -> None:
        pass

    def get_layers(self, model: Any) -> Any:
        """Layers that answer with a tuple, as in transformers 4; fusion-bench takes its first item."""
        layers = super().get_layers(model)
        for layer in layers:
            layer.register_forward_hook(lambda _, __, found: found if isinstance(found, tuple) else (found,))
        return layers


METHODS: dict[str, tuple[Any, str]] = {
    "regmean": (RegMean, "regmean/clip_regmean"),
    "regmean++": (RegMeanPlusPlus, "regmean_plusplus/clip_regmean_plusplus"),
}
# The one deliberate difference: what comes behind the last block stays the base's in their RegMean++. Ours is
# the experts' mean, as all else that is no linear layer.
NOT_MERGED: dict[str, set[str]] = {
    "regmean": set(),
    "regmean++": {"post_layernorm.weight", "post_layernorm.bias"},
}


@pytest.fixture(scope="module")
def configured() -> Iterator[Any]:
    """The options of a method of fusion-bench, by the file that sets them."""
    with initialize_config_dir(str(DEFAULT_CONFIG_PATH), version_base=None):
        yield lambda file: compose("fabric_model_fusion", overrides=[f"method={file}"]).method


def models(tasks: int) -> tuple[Any, dict[str, Any], dict[str, Tensor]]:
    """A CLIP image tower with its projection, experts around it, and images of each task."""
    base = CLIPVisionModelWithProjection(tiny_clip.config(projection_dim=tiny_clip.DIM).vision_config).eval()
    whole = tiny_clip.tensors(tiny_clip.model())
    state = {key: whole[key] for key in base.state_dict()}
    base.load_state_dict(state)
    vision = {k: v for k, v in state.items() if k.startswith("vision_model.")}
    experts = {f"task{t}": copy.deepcopy(base) for t in range(tasks)}
    for seed, expert in enumerate(experts.values(), start=1):
        expert.load_state_dict({**state, **tiny_clip.expert(vision, seed)})
    side = tiny_clip.IMAGE
    g = torch.Generator().manual_seed(tasks)
    return base, experts, {t: torch.randn(SAMPLES, 3, side, side, generator=g) for t in experts}


def bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An image tower's tensors by the names of our checkpoints."""
    prefix = "vision_model."
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def walked(
    base: Any, experts: dict[str, Any], images: dict[str, Tensor], axes: Calibration
) -> dict[str, Tensor]:
    """Our walk's result, from the experts' mean."""
    states = {task: bare(dict(expert.state_dict())) for task, expert in experts.items()}
    ours = tower(base)
    ours.load_all(merge("simple-average", bare(dict(base.state_dict())), list(states.values())))
    assert not any(report.warnings for report in walk(ours, states, images, axes, centre))
    return {ours.keys[name]: parameter.detach() for name, parameter in ours.named_parameters()}


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """The tensors of ``other`` that differ, and how far; theirs are solved in float32."""
    far = {key: float((one[key] - tensor).abs().max()) for key, tensor in other.items()}
    return {key: x for key, x in far.items() if x > 1e-4}


@pytest.mark.filterwarnings("ignore:In .*Defaults list is missing:UserWarning")
@pytest.mark.parametrize("tasks", [2, 5])
@pytest.mark.parametrize("name", METHODS)
def test_the_control_is_fusion_benchs_by_its_own_options(name: str, tasks: int, configured: Any) -> None:
    algorithm, file = METHODS[name]
    options = {key: value for key, value in configured(file).items() if key != "_target_"}
    # One batch holds all samples, for theirs come in a random order.
    options |= {"num_regmean_examples": SAMPLES, "dataloader_kwargs": {"batch_size": SAMPLES}}
    base, experts, images = models(tasks)
    pool = Pool({"_pretrained_": copy.deepcopy(base), **copy.deepcopy(experts)})
    pool.samples = images
    theirs = bare({k: v.detach() for k, v in algorithm(**options).run(pool).state_dict().items()})

    (only,) = CONTROLS[name].passes
    axes = only.calibration({}, rounded=False)
    assert apart(walked(base, experts, images, axes), theirs).keys() == NOT_MERGED[name]
    for key in NOT_MERGED[name]:
        assert torch.equal(theirs[key], base.state_dict()[f"vision_model.{key}"])
    for source in set(get_args(Source)) - {axes.source}:
        other = walked(base, experts, images, replace(axes, source=source))
        assert apart(other, theirs).keys() > NOT_MERGED[name], source
