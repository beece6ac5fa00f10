"""Every registered refinement keeps the contract, and the contract notices those that do not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

import baselines
from baselines import refinements
from baselines.refinements import registry
from baselines.refinements.contract import CHECKS, Case, check
from baselines.refinements.registry import Refined, Refinement
from epmq.calibration import Calibration
from epmq.errors import UserError
from epmq.layer.spec import QuantSpec
from epmq.models.tower import Tower
from epmq.refinement.budget import Budget
from epmq.refinement.descent import Curve, Lessons, Point, teach
from epmq.refinement.objective import FeatureDistance
from epmq.refinement.samples import TensorRows
from epmq.walk import walk
from tests.fixtures.tiny_suite import TinyVisual

pytestmark = pytest.mark.keeps_rng


@pytest.fixture(params=["3 bits", "groups, act-order", "AWQ", "full precision"])
def case(request: pytest.FixtureRequest, tiny_visual: TinyVisual) -> Case:
    """A tower of each kind of grid."""
    return made(tiny_visual, request.param)


def made(source: TinyVisual, kind: str) -> Case:
    spec = QuantSpec(3, group_size=8, act_order=True) if kind.startswith("groups") else QuantSpec(3)
    method = baselines.get("awq" if kind == "AWQ" else "gptq")
    tower, rows = copy.deepcopy(source.tower), {task: TensorRows(x) for task, x in source.inputs.items()}
    objective = FeatureDistance(1.0)
    lessons = Lessons(rows, teach(tower, source.experts, rows, objective), objective)
    quantised = {}
    if kind != "full precision":
        steps = walk(tower, source.experts, source.inputs, Calibration(), lambda p: method(p, spec))
        quantised = {step.name: step.solution for step in steps if step.solution is not None}
    return Case(tower, quantised, lessons, Budget(steps=3, batch=4, learning_rate=3e-3, warmup=1))


@pytest.mark.parametrize("name", refinements.names())
def test_every_refinement_keeps_the_contract(name: str, case: Case) -> None:
    check(refinements.get(name), case)


def _moved(tower: Tower, *_: Any) -> Refined:
    for parameter in tower.parameters():
        parameter.add_(0.01)
    return Refined({}, Curve([Point(0, None, 1.0), Point(1, 1.0, 0.5)]))


def _random(tower: Tower, *_: Any) -> Refined:
    next(iter(tower.parameters())).add_(torch.rand(()))
    return Refined({}, Curve([Point(0, None, 1.0)]))


def _asking(tower: Tower, *_: Any) -> Refined:
    tower.requires_grad_(True)
    return Refined({}, Curve([Point(0, None, 1.0)]))


@pytest.mark.parametrize(
    ("broken", "failing"),
    [
        (_moved, {"no-step", "declared", "held-out"}),
        (_random, {"no-step", "deterministic", "leaves-global-state-alone"}),
        (_asking, {"leaves-global-state-alone"}),
    ],
)
def test_the_contract_notices(
    tiny_visual: TinyVisual, broken: Callable[..., Refined], failing: set[str]
) -> None:
    method = Refinement("broken", broken, "continuous", "", "", "")
    given = made(tiny_visual, "full precision")
    state = torch.get_rng_state()
    for name, one in CHECKS.items():
        if name in failing:
            with pytest.raises(AssertionError):
                one(method, given)
        elif not (broken is _random and name == "declared"):
            one(method, given)
    torch.set_rng_state(state)


def test_quantised_weights_may_not_vanish(tiny_visual: TinyVisual) -> None:
    method = Refinement("broken", _asking, "continuous", "", "", "")
    with pytest.raises(AssertionError, match="output: groups of quantised layers came or went"):
        check(method, made(tiny_visual, "3 bits"))


def test_names_are_unique_and_unknown_ones_get_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    with pytest.raises(UserError, match=r"refinement 'tuned' .* is already registered"):
        refinements.refinement("tuned", changes="all", reference="", summary="")(_moved)
    with pytest.raises(UserError, match="refinement 'tund' is unknown; did you mean 'tuned'"):
        refinements.get("tund")
    with pytest.raises(UserError, match="changes 'some'"):
        refinements.refinement("mine", changes="some", reference="", summary="")  # type: ignore[arg-type]
