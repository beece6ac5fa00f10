"""Moments: what is summed over tasks, and the deviations that follow from it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from epmq.errors import UserError
from epmq.layer.moments import Moments
from epmq.layer.problem import LayerProblem
from tests.fixtures.layers import layer

pytestmark = pytest.mark.keeps_rng


def test_an_expert_target_needs_every_tasks_expert() -> None:
    at = layer(4, 6)
    moments = Moments.empty(at.merged)
    moments.add(at.grams[0], at.experts[0])
    moments.add(at.grams[1])
    assert moments.deviations(at.merged, at.merged, at.merged).expert is None
    with pytest.raises(UserError, match="2 Gram matrices but 1 expert weights"):
        LayerProblem.from_moments(at.merged, moments, target="expert", anchor=0.01)


def test_a_refused_task_leaves_the_moments_as_they_were() -> None:
    at = layer(4, 6)
    moments = Moments.empty(at.merged)
    with pytest.raises(UserError):
        moments.add(at.grams[0], at.experts[0][:3])
    assert moments.tasks == 0
    assert float(moments.gram.abs().sum()) == 0


@pytest.mark.parametrize("reading", ["A", "B"])
def test_deviations_are_those_of_the_samples(reading: str) -> None:
    at, generator = layer(5, 8), torch.Generator().manual_seed(0)
    q, centre = (torch.randn(5, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    moments = Moments.empty(at.merged)
    outputs = [
        w @ (x if reading == "A" else own)
        for w, x, own in zip(at.experts, at.inputs, at.own_inputs, strict=True)
    ]
    for gram, expert, cross, y in zip(at.grams, at.experts, at.cross, outputs, strict=True):
        if reading == "A":
            moments.add(gram, expert)
        else:
            moments.add(gram, expert, cross, float((y**2).sum()) / y.shape[1])

    def to_targets(weight: Tensor) -> float:
        pairs = zip(outputs, at.inputs, strict=True)
        return sum(float(((y - weight @ x) ** 2).sum()) / x.shape[1] for y, x in pairs)

    def between(one: Tensor, other: Tensor) -> float:
        return sum(float((((one - other) @ x) ** 2).sum()) / x.shape[1] for x in at.inputs)

    found = moments.deviations(q, centre, at.merged)
    assert found.quantisation == pytest.approx(between(q, at.merged))
    assert found.rounding == pytest.approx(between(q, centre))
    assert found.move == pytest.approx(between(centre, at.merged))
    assert found.expert == pytest.approx(to_targets(q))
    assert found.centre == pytest.approx(to_targets(centre))
    assert found.merging == pytest.approx(to_targets(at.merged))


def test_a_cross_moment_without_its_energy_leaves_deviations_unknown() -> None:
    at = layer(4, 6)
    moments = Moments.empty(at.merged)
    moments.add(at.grams[0], at.experts[0], at.cross[0])
    found = moments.deviations(at.merged, at.merged, at.merged)
    assert (found.quantisation, found.expert, found.merging) == (0.0, None, None)


def test_a_task_that_reaches_a_layer_only_with_zeros_has_no_weight() -> None:
    at = layer(4, 6)
    with_silent, without = Moments.empty(at.merged, "frobenius"), Moments.empty(at.merged, "frobenius")
    assert with_silent.add(0 * at.grams[0], at.experts[0]) == 0
    for moments in (with_silent, without):
        moments.add(at.grams[1], at.experts[1])
    assert torch.equal(with_silent.gram, without.gram)
    assert with_silent.weight_total == without.weight_total
