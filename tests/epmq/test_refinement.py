"""The descent on the experts' outputs: its gradients, what it leaves alone, what it survives."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import baselines
from baselines import refinements
from epmq.calibration import Calibration
from epmq.errors import UserError
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight
from epmq.merging import Checkpoint
from epmq.models.layers import layer_groups
from epmq.models.tower import Tower
from epmq.refinement.budget import Budget
from epmq.refinement.descent import Curve, Lessons, descend, pace, teach
from epmq.refinement.grids import FixedCodes, ThroughRounding, learnt_grids
from epmq.refinement.objective import AnswerDivergence, FeatureDistance, outputs
from epmq.refinement.parts import merged, offsets
from epmq.refinement.samples import BatchRows, TensorRows, collated
from epmq.walk import walk
from tests.fixtures.tiny_suite import TinyVisual

pytestmark = pytest.mark.keeps_rng
BUDGET = Budget(steps=40, batch=4, learning_rate=3e-3, warmup=4)


def lessons(made: TinyVisual, experts: Mapping[str, Checkpoint] | None = None) -> Lessons:
    rows = {task: TensorRows(x) for task, x in made.inputs.items()}
    objective = FeatureDistance(1.0)
    tower = copy.deepcopy(made.tower)
    return Lessons(
        rows, teach(tower, made.experts if experts is None else experts, rows, objective), objective
    )


def rounded(
    made: TinyVisual, bits: int = 3, method: str = "gptq"
) -> tuple[Tower, dict[str, QuantizedWeight]]:
    """A quantised copy of the tower, and its quantised weights by group."""
    tower, spec = copy.deepcopy(made.tower), QuantSpec(bits)
    steps = walk(tower, made.experts, made.inputs, Calibration(), lambda p: baselines.get(method)(p, spec))
    return tower, {report.name: report.solution for report in steps if report.solution is not None}


def weights(tower: Tower) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in tower.named_parameters()}


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in one.items())


def test_gradients_are_those_of_finite_differences(tiny_visual: TinyVisual) -> None:
    """In float64, of features and of what is between blocks, for every kind of parameter."""
    tower = copy.deepcopy(tiny_visual.tower).double()
    task, images = next(iter(tiny_visual.inputs.items()))
    images, objective = images[:3].double(), FeatureDistance(0.7)
    expert = copy.deepcopy(tower).load_all(tiny_visual.experts[task])

    with torch.no_grad():
        output, states = outputs(expert, images, states=True)
    unit = torch.nn.functional.normalize(output, dim=-1)
    kept = torch.stack(states, 1)

    def loss() -> Tensor:
        output, states = outputs(tower, images, states=True)
        apart = (torch.nn.functional.normalize(output, dim=-1) - unit).square().sum(-1)
        between = (torch.stack(states, 1) - kept).square().sum(-1) / kept.square().sum(-1).mean(0)
        return (apart + 0.7 * between.mean(1)).mean()

    output, states = outputs(tower, images, states=True)
    taught = objective.teach(*outputs(expert, images, states=True), images)
    ours = objective.distance(output, taught, images) + 0.7 * objective.between(states, taught)
    assert float(ours.mean()) == pytest.approx(float(loss()), rel=1e-5)
    for parameter in merged(tower)[:: max(1, len(merged(tower)) // 12)]:
        parameter.requires_grad_(True)
        (found,) = torch.autograd.grad(loss(), parameter)
        parameter.requires_grad_(False)
        at = tuple(int(i) for i in torch.unravel_index(found.abs().argmax(), found.shape))
        sides = []
        for step in (1e-6, -1e-6):
            parameter[at] += step
            sides.append(float(loss()))
            parameter[at] -= step
        assert float(found[at]) == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-4, abs=1e-9)


def test_the_gradient_of_a_scale_is_what_its_codes_say() -> None:
    """Of fixed codes: d(dense)/d(log factor) = (codes - zero) scale, whatever the stored dtype rounds."""
    g = torch.Generator().manual_seed(0)
    weight, spec = torch.randn(6, 16, generator=g), QuantSpec(3, group_size=8)
    found = QuantizedWeight.nearest(weight, torch.full((6, 2), 0.4), torch.full((6, 2), 3.0), spec)
    grid, upstream = FixedCodes(found, torch.device("cpu")), torch.randn(6, 16, generator=g)
    (grid(weight) * upstream).sum().backward()
    assert grid.factor.grad is not None
    wanted = (found.dequantize() * upstream).reshape(6, 2, 8).sum(-1)
    torch.testing.assert_close(grid.factor.grad, wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(grid(weight), found.dequantize())


def test_the_gradient_passes_the_rounding_inside_the_range_alone() -> None:
    """Element by element: learned step size's formula (Esser et al. 2020, equations 3 and 5)."""
    spec, scale, zero = QuantSpec(2), 0.5, 1.0
    weight = torch.tensor([[-2.0, -0.6, -0.2, 0.3, 0.9, 3.0]], requires_grad=True)
    start = QuantizedWeight.nearest(weight.detach(), torch.tensor([[scale]]), torch.tensor([[zero]]), spec)
    grid = ThroughRounding(start, torch.device("cpu"))
    upstream = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    (grid(weight) * upstream).sum().backward()
    place = weight.detach() / scale + zero
    inside = (place >= 0) & (place <= 3)
    assert weight.grad is not None
    assert grid.factor.grad is not None
    assert torch.equal(weight.grad, upstream * inside)
    of_scale = torch.where(inside, place.round() - place, place.clamp(0, 3) - zero)
    torch.testing.assert_close(grid.factor.grad, ((of_scale * upstream).sum() * scale).reshape(1, 1))


@pytest.mark.parametrize("name", refinements.names())
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_no_step_changes_nothing(tiny_visual: TinyVisual, name: str, method: str) -> None:
    tower, quantised = rounded(tiny_visual, method=method)
    before = weights(tower)
    found = refinements.get(name)(tower, quantised, lessons(tiny_visual), replace(BUDGET, steps=0))
    assert equal(weights(tower), before)
    for group, weight in quantised.items():
        assert torch.equal(found.quantised[group].codes, weight.codes)
        assert torch.equal(found.quantised[group].scale, weight.scale)
    assert [p.step for p in found.curve.points] == [0]


def test_tuning_leaves_codes_and_bits_and_lowers_the_held_out_loss(tiny_visual: TinyVisual) -> None:
    tower, quantised = rounded(tiny_visual)
    steady = {id(p) for p in offsets(tower)}
    before = weights(tower)
    found = refinements.get("tuned")(tower, quantised, lessons(tiny_visual), BUDGET)
    inside = {f"{part}.weight" for part in _layers(tower, quantised)}
    for name, parameter in tower.named_parameters():
        if name not in inside and id(parameter) not in steady:
            assert torch.equal(parameter, before[name]), f"{name} is neither scale, bias nor norm"
    for group, weight in quantised.items():
        ours = found.quantised[group]
        assert torch.equal(ours.codes, weight.codes)
        assert torch.equal(ours.zero, weight.zero)
        assert ours.scale.dtype == weight.scale.dtype
        assert not torch.equal(ours.scale, weight.scale)
        assert ours.packed_bits == weight.packed_bits
        assert len(ours.to_bytes()) == len(weight.to_bytes())
    assert holds(tower, found.quantised)
    assert lowest(found.curve) < found.curve.points[0].held_out


def _layers(tower: Tower, quantised: Mapping[str, QuantizedWeight]) -> list[str]:
    """Paths of the quantised layers."""
    groups = layer_groups(tower, ",".join(quantised)).values()
    return [f"{part}.{path}" for part, paths in groups for path in paths]


def holds(tower: Tower, quantised: Mapping[str, QuantizedWeight]) -> bool:
    """Whether the tower's layers hold what the quantised weights dequantise to, bit for bit."""
    for group, weight in quantised.items():
        dense = torch.cat(
            [tower.get_parameter(f"{layer}.weight") for layer in _layers(tower, {group: weight})]
        )
        if not torch.equal(dense, weight.dequantize()):
            return False
    return True


def lowest(curve: Curve) -> float:
    return min(p.held_out for p in curve.points)


def test_training_through_the_rounding_stays_on_the_grid(tiny_visual: TinyVisual) -> None:
    tower, quantised = rounded(tiny_visual, bits=2)
    budget = replace(BUDGET, learning_rate=0.01)
    found = refinements.get("trained")(tower, quantised, lessons(tiny_visual), budget)
    assert holds(tower, found.quantised)
    changed = [not torch.equal(found.quantised[g].codes, w.codes) for g, w in quantised.items()]
    assert any(changed), "codes are derived anew"
    assert all(found.quantised[g].packed_bits == w.packed_bits for g, w in quantised.items())
    assert lowest(found.curve) < found.curve.points[0].held_out


def test_what_is_shared_with_the_base_is_not_trained(tiny_visual: TinyVisual) -> None:
    tower = copy.deepcopy(tiny_visual.tower)
    before = weights(tower)
    refinements.get("trained")(tower, {}, lessons(tiny_visual), BUDGET)
    for name, parameter in tower.named_parameters():
        assert torch.equal(parameter, before[name]) == (tower.keys[name] in tower.shared), name
    assert not any(p.requires_grad or p.grad is not None for p in tower.parameters())


@pytest.mark.parametrize("name", refinements.names())
def test_a_model_that_equals_its_experts_stays(tiny_visual: TinyVisual, name: str) -> None:
    """Whatever the last bits of its outputs do to Adam, no state is better than the first."""
    tower = copy.deepcopy(tiny_visual.tower)
    own = {key: p.detach().clone() for key, p in tower.merged_parameters().items()}
    before = weights(tower)
    same = lessons(tiny_visual, dict.fromkeys(tiny_visual.experts, own))
    found = refinements.get(name)(tower, {}, same, BUDGET)
    assert equal(weights(tower), before)
    assert found.curve.best == 0
    assert found.curve.points[0].held_out < 1e-10


class _Killed(BaseException):
    pass


class _KilledAt(FeatureDistance):
    """Dies after so many passes."""

    left = 10**9

    def distance(self, *arguments: Any) -> Tensor:
        _KilledAt.left -= 1
        if _KilledAt.left < 0:
            raise _Killed
        return super().distance(*arguments)


@pytest.mark.parametrize("passes", [1, 30, 100])
@pytest.mark.parametrize("name", refinements.names())
def test_killed_in_the_middle_it_ends_as_if_undisturbed(
    tiny_visual: TinyVisual, tmp_path: Path, name: str, passes: int
) -> None:
    whole, quantised = rounded(tiny_visual)
    cut, again = copy.deepcopy(whole), copy.deepcopy(whole)
    given = lessons(tiny_visual)
    wanted = refinements.get(name)(whole, quantised, given, BUDGET)
    file = tmp_path / "state.pt"
    _KilledAt.left = passes
    with pytest.raises(_Killed):
        refinements.get(name)(cut, quantised, replace(given, objective=_KilledAt(1.0)), BUDGET, file)
    assert file.exists() == (passes > 1)
    found = refinements.get(name)(again, quantised, given, BUDGET, file)
    assert equal(weights(again), weights(whole))
    assert found.curve.points == wanted.curve.points
    assert found.curve.best == wanted.curve.best
    third = copy.deepcopy(again)
    finished = refinements.get(name)(third, quantised, given, BUDGET, file)
    assert finished.curve == found.curve, "a finished state is read, with the seconds it took"
    assert equal(weights(third), weights(whole))


@pytest.mark.parametrize("content", [b"", b"nonsense"])
def test_a_damaged_state_costs_nothing_but_time(
    tiny_visual: TinyVisual, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "state.pt").write_bytes(content)
    towers = [copy.deepcopy(tiny_visual.tower) for _ in range(2)]
    given = lessons(tiny_visual)
    refinements.get("trained")(towers[0], {}, given, BUDGET)
    refinements.get("trained")(towers[1], {}, given, BUDGET, tmp_path / "state.pt")
    assert equal(weights(towers[0]), weights(towers[1]))


def test_memory_saved_changes_no_number(tiny_visual: TinyVisual) -> None:
    given, plain = lessons(tiny_visual), copy.deepcopy(tiny_visual.tower)
    one = refinements.get("trained")(plain, {}, given, replace(BUDGET, steps=5)).curve
    for change in ({"checkpointing": True}, {"accumulate": 2}):
        tower = copy.deepcopy(tiny_visual.tower)
        other = refinements.get("trained")(tower, {}, given, replace(BUDGET, steps=5, **change)).curve
        for here, there in zip(one.points, other.points, strict=True):
            assert here.held_out == pytest.approx(there.held_out, rel=1e-3)


def test_bfloat16_products_learn_too(tiny_visual: TinyVisual) -> None:
    tower = copy.deepcopy(tiny_visual.tower)
    curve = refinements.get("trained")(
        tower, {}, lessons(tiny_visual), replace(BUDGET, autocast="bfloat16")
    ).curve
    assert lowest(curve) < curve.points[0].held_out
    assert all(p.dtype == torch.float32 for p in tower.parameters())


def test_seeds_draw_other_orders_and_other_held_out_samples(tiny_visual: TinyVisual) -> None:
    one = lessons(tiny_visual)
    parts = [replace(one, seed=seed).parts(BUDGET) for seed in (0, 0, 1)]
    for task, (learnt, held) in parts[0].items():
        assert torch.equal(learnt, parts[1][task][0])
        assert not torch.equal(held, parts[2][task][1])
        assert sorted([*learnt.tolist(), *held.tolist()]) == list(range(len(one.rows[task])))


def test_the_pace_rises_and_falls() -> None:
    found = [pace(step, BUDGET) for step in range(BUDGET.steps)]
    assert found.index(max(found)) in (BUDGET.warmup, BUDGET.warmup - 1)
    assert 0 < found[-1] < 0.01
    assert found[BUDGET.warmup :] == sorted(found[BUDGET.warmup :], reverse=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": -1}, "steps -1 is out of range"),
        ({"batch": 0}, "batch 0 is out of range"),
        ({"held_out": 1.0}, "held_out 1.0 is out of range"),
        ({"learning_rate": float("inf")}, "learning_rate inf is out of range"),
        ({"accumulate": 3}, "accumulate 3 does not divide a batch of 8"),
        ({"autocast": "float16"}, "autocast 'float16'"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Budget(**change)


def test_one_sample_cannot_be_held_out(tiny_visual: TinyVisual) -> None:
    made = replace(tiny_visual, inputs={task: x[:1] for task, x in tiny_visual.inputs.items()})
    with pytest.raises(UserError, match="has 1 calibration sample, and a refinement holds one out"):
        descend(copy.deepcopy(made.tower), [], lessons(made), BUDGET)


def test_a_loss_that_is_no_number_ends_in_one_line(tiny_visual: TinyVisual) -> None:
    tower = copy.deepcopy(tiny_visual.tower)
    with pytest.raises(UserError, match=r"loss is nan at step .*; give a lower learning rate"):
        refinements.get("trained")(tower, {}, lessons(tiny_visual), replace(BUDGET, learning_rate=1e30))


def test_memory_for_one_sample_ends_in_one_line(tiny_visual: TinyVisual) -> None:
    class Full(FeatureDistance):
        def distance(self, *_: Any) -> Tensor:
            raise torch.OutOfMemoryError

    given = replace(lessons(tiny_visual), objective=Full(1.0))
    tower = copy.deepcopy(tiny_visual.tower)
    with pytest.raises(
        UserError, match=r"memory does not take .* samples at a time; give --refine-accumulate"
    ):
        refinements.get("trained")(tower, {}, given, BUDGET)


def test_a_layer_that_shares_its_weight_is_refused(tiny_visual: TinyVisual) -> None:
    tower, quantised = rounded(tiny_visual)
    first, second = _layers(tower, quantised)[3], _layers(tower, quantised)[-3]
    same = tower.get_submodule(first)
    tower.get_submodule(second).weight = same.weight
    with pytest.raises(UserError, match="shares its weight"), learnt_grids(tower, quantised, FixedCodes):
        pass


def test_divergence_is_that_of_the_whole_distributions_where_all_is_kept() -> None:
    g = torch.Generator().manual_seed(0)
    expert, model = torch.randn(2, 5, 3, 11, generator=g).unbind(0)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1]])
    batch = {"decoder_attention_mask": mask}
    p, q = expert.log_softmax(-1), model.log_softmax(-1)
    whole = ((p.exp() * (p - q)).sum(-1) * mask).sum(1) / mask.sum(1)
    found = {
        top: AnswerDivergence(top).distance(model, AnswerDivergence(top).teach(expert, [], batch), batch)
        for top in (1, 4, 11, 64)
    }
    torch.testing.assert_close(found[11], whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[64], whole, rtol=1e-4, atol=1e-5)
    assert bool((found[1] <= found[4] + 1e-6).all() and (found[4] <= whole + 1e-6).all())
    same = AnswerDivergence(4).distance(expert, AnswerDivergence(4).teach(expert, [], batch), batch)
    torch.testing.assert_close(same, torch.zeros(5), atol=1e-6, rtol=0)


def test_divergence_does_not_depend_on_how_far_a_sample_was_padded() -> None:
    generator = torch.Generator().manual_seed(0)
    expert, model = (torch.randn(2, 5, 7, generator=generator) for _ in range(2))
    counts = torch.tensor([[True, True, False, False, False], [True, True, True, True, True]])
    objective = AnswerDivergence(3)
    taught = objective.teach(expert, [], {"answer_mask": counts})
    padded = objective.distance(model, taught, {})
    short = objective.distance(model[:1, :2], {name: x[:1] for name, x in taught.items()}, {})
    torch.testing.assert_close(short, padded[:1])


def test_rows_of_padded_batches_come_back_as_they_were() -> None:
    one = {
        "input_ids": torch.tensor([[5, 6, 1, 0], [7, 1, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]),
        "decoder_input_ids": torch.tensor([[0, 9], [0, 0]]),
        "decoder_attention_mask": torch.tensor([[1, 1], [1, 0]]),
    }
    rows = BatchRows([one, one])
    assert len(rows) == 4
    taken = rows.take(torch.tensor([2, 1]))
    assert taken["input_ids"].tolist() == [[5, 6, 1], [7, 1, 0]]
    assert taken["decoder_attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert rows.take(torch.tensor([3]))["decoder_input_ids"].tolist() == [[0]]
    assert collated([{"x": torch.tensor(1.0)[None]}])["x"].shape == (1, 1)
