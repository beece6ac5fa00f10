"""A walk's passes: each stream once a block, with the same results whatever is kept between passes."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import baselines
from epmq.calibration import Calibration
from epmq.gather import kept
from epmq.gather.kept import Kept, remembering
from epmq.layer.problem import LayerProblem
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight
from epmq.models.tower import Tower
from epmq.walk import LayerReport, walk
from tests.fixtures.tiny_suite import TinyVisual

AXES: dict[str, dict[str, Any]] = {
    "plain": {"target": "merged"},
    "GPTAQ": {"target": "merged", "asymmetry": 0.25},
    "reading A": {"target": "expert"},
    "reading B": {"target": "expert", "mixing": 1.0},
    "mixed": {"target": "expert", "mixing": 0.4},
    "merged inputs": {"target": "expert", "mixing": 1.0, "source": "merged"},
    "block": {"target": "expert", "mixing": 1.0, "sequential": "block"},
    "norms": {"target": "expert", "mixing": 1.0, "norms": "closed-form", "biases": "closed-form"},
    "queries": {"target": "expert", "mixing": 1.0, "patch_weight": 0.1, "patch_scope": "queries"},
}


def gptq(problem: LayerProblem) -> QuantizedWeight:
    return baselines.get("gptq")(problem, QuantSpec(bits=3))


def walked(made: TinyVisual, axes: dict[str, Any], **options: Any) -> tuple[Tower, list[LayerReport]]:
    tower = copy.deepcopy(made.tower)
    inputs = {task: x[:6] for task, x in made.inputs.items()}
    return tower, list(walk(tower, made.experts, inputs, Calibration(**axes), gptq, **options))


@pytest.mark.parametrize("name", AXES)
def test_results_do_not_depend_on_what_is_kept(
    tiny_visual: TinyVisual, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower, reports = walked(tiny_visual, AXES[name], batch_size=4)
    for budget in (0, 5000):
        monkeypatch.setattr(kept, "BUDGET", budget)
        other, again = walked(tiny_visual, AXES[name], batch_size=4)
        for key, parameter in other.named_parameters():
            assert torch.equal(parameter, tower.get_parameter(key)), key
        assert [r.objective for r in again] == [r.objective for r in reports]
        assert [r.deviations for r in again] == [r.deviations for r in reports]


def tokens_through(made: TinyVisual, axes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often linear layers multiply a batch, by their number of outputs."""
    seen: Counter[int] = Counter()
    forward = nn.Linear.forward

    def counted(self: nn.Linear, x: Tensor) -> Tensor:
        seen[self.out_features] += 1
        return forward(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(nn.Linear, "forward", counted)
        walked(made, axes)
    return seen


@pytest.mark.parametrize(
    ("name", "streams"), [("plain", 1), ("reading A", 1), ("reading B", 2), ("GPTAQ", 2), ("norms", 2)]
)
def test_a_layer_multiplies_each_streams_batch_once(
    tiny_visual: TinyVisual, name: str, streams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tokens_through(tiny_visual, AXES[name], monkeypatch)
    # Two tasks, two blocks. In the last block nothing goes on; a teacher whose own outputs are the targets
    # ends at the last layer's output, others at its input. 16 rows: output projections and last layers.
    assert found[48] == found[64] == 2 * 2 * streams
    through = 2 * 2 * streams
    last = 2 * streams + (2 if streams == 2 and name != "GPTAQ" else 0)
    assert found[16] == through + last


def test_what_does_not_fit_is_not_kept() -> None:
    store, x = Kept(100), torch.zeros(5)
    for key in range(10):
        store.put(key, x.clone())
    assert [key for key in range(10) if store.get(key) is not None] == [0, 1, 2, 3, 4]
    assert store.pop(3) is not None
    assert store.pop(3) is None
    store.put(7, x)
    assert store.get(7) is x
    store.put(7, x)  # in place of itself
    store.put(8, x.clone())
    assert store.get(8) is None


def test_a_tensor_that_was_changed_in_place_is_not_given() -> None:
    store, x = Kept(100), torch.zeros(5)
    store.put("x", x)
    x += 1
    assert store.get("x") is None


def test_remembered_layers_compute_once_and_are_themselves_again() -> None:
    block, store, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)), Kept(1000), torch.randn(2, 3)
    expected = block(x)
    with torch.no_grad(), remembering(block, ["0"], store, "batch", last=False):
        assert torch.equal(block(x), expected)
        assert torch.equal(block(x), expected), "the block changed in place what was kept"
    assert "forward" not in block[0].__dict__
    with torch.no_grad(), remembering(block, ["0"], store, "other", last=False):
        assert not torch.equal(block(2 * x), expected)
