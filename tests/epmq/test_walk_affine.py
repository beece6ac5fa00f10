"""Identities of the closed forms: the anchor's point, biases and norms, blocks that are solved at once."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import baselines
from baselines.controls import CONTROLS
from epmq.calibration import Calibration
from epmq.errors import UserError
from epmq.layer.problem import LayerProblem
from epmq.layer.spec import QuantSpec
from epmq.models.tower import Tower
from epmq.walk import centre, walk
from tests.fixtures import tiny_lm
from tests.fixtures.tiny_suite import TinyVisual, make_visual
from tests.fixtures.tiny_t5 import TinyT5, tiny_t5_setting

__all__ = ["tiny_t5_setting"]

KINDS = ("visual", "t5", "lm", "lm with biases")


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest, tiny_t5_setting: TinyT5) -> Any:
    """A tower with experts and inputs: norms with and without a shift, layers with and without a bias."""
    if request.param == "visual":
        return make_visual()
    if request.param == "t5":
        return tiny_t5_setting
    return tiny_lm.setting("llama with biases" if "biases" in request.param else "llama")


def featcal(tower: Tower, **changes: Any) -> Calibration:
    """The control's axes."""
    axes = CONTROLS["featcal"].passes[0].calibration({}, rounded=False, pooled=tower.pooled)
    return replace(axes, **changes)


def merged(tower: Tower) -> dict[str, Tensor]:
    """A copy of the weights by checkpoint name."""
    return {name: parameter.detach().clone() for name, parameter in tower.merged_parameters().items()}


def affine_names(tower: Tower) -> set[str]:
    """Checkpoint names of all that the closed forms solve: layers and norms of the blocks."""
    found = set()
    for i, (groups, norms) in enumerate(zip(tower.groups, tower.norms, strict=True)):
        paths = {f"blocks.{i}.{path}" for group in [*groups, *((n,) for n in norms)] for path in group}
        found |= {key for name, key in tower.keys.items() if name.rpartition(".")[0] in paths}
    return found


def run(made: Any, axes: Calibration, **options: Any) -> dict[str, Tensor]:
    """The weights after a walk in full precision."""
    experts = options.pop("experts", made.experts)
    list(walk(made.tower, experts, made.inputs, axes, centre, **options))
    return merged(made.tower)


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    far = {name: float((x - other[name]).abs().max()) for name, x in one.items()}
    return {name: x for name, x in far.items() if x > 0}


@pytest.mark.parametrize("sequential", ["group", "block"])
def test_experts_that_equal_the_merged_model_change_nothing(made: Any, sequential: Any) -> None:
    before = merged(made.tower)
    axes = featcal(made.tower, anchor_point=1.0, sequential=sequential)
    after = run(made, axes, experts=dict.fromkeys(made.experts, before))
    assert max(apart(after, before).values(), default=0.0) < 1e-5
    assert max(apart(run(made, axes), before).values()) > 1e-2


def test_a_base_that_equals_the_merged_model_is_no_other_point(made: Any) -> None:
    before = merged(made.tower)
    plain = run(made, featcal(made.tower, anchor_point=1.0))
    made.tower.load_all(before)
    same = run(made, featcal(made.tower), base=before)
    assert max(apart(plain, same).values(), default=0.0) < 1e-5


def test_an_enormous_anchor_leaves_its_point(made: Any) -> None:
    """Of layers, biases and norms of the blocks; all else stays as it was merged."""
    before, base = merged(made.tower), dict(next(iter(made.experts.values())))
    after = run(made, featcal(made.tower, anchor=1e12), base=base)
    for name, x in before.items():
        point = 2.2 * x + (1 - 2.2) * base[name] if name in affine_names(made.tower) else x
        torch.testing.assert_close(after[name], point, rtol=1e-5, atol=1e-5, msg=name)


def test_only_what_is_asked_for_is_solved(made: Any) -> None:
    before = merged(made.tower)
    tower, changed = made.tower, list[set[str]]()
    for axes in ({"norms": "kept"}, {"biases": "kept"}, {"norms": "kept", "biases": "kept"}):
        after = run(made, featcal(tower, anchor_point=1.0, **axes))
        changed.append(set(apart(after, before)))
        tower.load_all(before)
    names = affine_names(tower)
    norms = {
        tower.keys[f"blocks.{i}.{norm}.{part}"]
        for i, each in enumerate(tower.norms)
        for norm in each
        for part in dict(tower.get_submodule(f"blocks.{i}.{norm}").named_parameters())
    }
    weights = {name for name in names - norms if before[name].dim() == 2}
    assert changed == [names - norms, norms | weights, weights]


def test_the_merged_target_solves_no_bias_and_no_norm(made: Any) -> None:
    before = merged(made.tower)
    axes = Calibration("merged", biases="closed-form", norms="closed-form", anchor_point=2.2)
    assert not apart(run(made, axes), before)
    assert {"biases", "norms", "anchor_point"} <= set(axes.idle)


def first_inputs(tower: Tower, norm: str, batches: Any) -> tuple[Tensor, Tensor]:
    """Tokens ``(tokens, width)`` that a norm of the first block reads, and which count."""
    seen: list[tuple[Tensor, Tensor]] = []
    module = tower.get_submodule(f"blocks.0.{norm}")
    for batch in batches:
        mask = batch["attention_mask"].bool()
        hook = module.register_forward_pre_hook(
            lambda _, args, mask=mask: seen.append((args[0].flatten(0, 1), mask.flatten()))
        )
        tower(batch)
        hook.remove()
    tokens, counts = zip(*seen, strict=True)
    return torch.cat(tokens), torch.cat(counts)


def test_an_rms_norm_gets_the_least_squares_scale_over_all_but_padding(tiny_t5_setting: TinyT5) -> None:
    made, norm = tiny_t5_setting, "block.layer.0.layer_norm"
    module: Any = made.tower.get_submodule(f"blocks.0.{norm}")
    before, key = merged(made.tower), made.tower.keys[f"blocks.0.{norm}.weight"]
    design, wanted = [], []
    for task, batches in made.inputs.items():
        tokens, counts = first_inputs(made.tower, norm, batches)
        x = tokens[counts].double()
        assert not bool(counts.all())
        z = x / (x.square().mean(1, keepdim=True) + module.variance_epsilon).sqrt()
        design.append(z / len(z) ** 0.5)
        wanted.append(design[-1] * made.experts[task][key].double())
    axes = featcal(made.tower, anchor_point=1.0, anchor=0.3)
    after = run(made, axes)[key]
    for j, point in enumerate(before[key].double()):
        left = torch.cat([*(z[:, j] for z in design), torch.tensor([0.3**0.5])])
        right = torch.cat([*(y[:, j] for y in wanted), 0.3**0.5 * point[None]])
        assert float(after[j]) == pytest.approx(float(left @ right / (left @ left)), rel=1e-5)


def posed(made: Any, axes: Calibration) -> list[tuple[str, LayerProblem]]:
    """Problems by name, rounded to 3 bits on the way."""
    problems: list[LayerProblem] = []

    def solve(problem: LayerProblem) -> Any:
        problems.append(problem)
        return baselines.get("rtn")(problem, QuantSpec(bits=3))

    names = [report.name for report in walk(made.tower, made.experts, made.inputs, axes, solve)]
    return list(zip(names, problems, strict=True))


@pytest.mark.parametrize("target", ["merged", "expert"])
def test_a_block_solved_at_once_sees_inputs_of_the_block_as_it_was(made: Any, target: Any) -> None:
    before = merged(made.tower)
    axes = Calibration(target, sequential="block", mixing=0.0)
    found = posed(made, axes)
    for i in range(len(made.tower.blocks)):
        # what the blocks before it, rounded, and the rest untouched give: nothing of this block is rounded
        rounded, tower = merged(made.tower), made.tower
        tower.load_all(before)
        for k in range(i):
            tower.load(tower.blocks[k], f"blocks.{k}", rounded)
        here = replace(axes, source="merged", layers=f"blocks.{i}.*")
        untouched = posed(made, here)
        assert [name for name, _ in untouched] == [n for n, _ in found if n.startswith(f"blocks.{i}.")]
        for name, problem in untouched:
            assert torch.equal(problem.hessian, dict(found)[name].hessian)
            assert torch.equal(problem.centre, dict(found)[name].centre)
        tower.load_all(rounded)
    made.tower.load_all(before)
    one_by_one = posed(made, replace(axes, sequential="group"))
    pairs = zip(found, one_by_one, strict=True)
    assert not all(torch.equal(a.hessian, b.hessian) for (_, a), (_, b) in pairs)


def test_a_norm_is_solved_only_where_its_layers_are(tiny_visual: TinyVisual) -> None:
    before = merged(tiny_visual.tower)
    axes = featcal(tiny_visual.tower, anchor_point=1.0, layers="blocks.1.mlp.c_fc")
    solved = {n.partition("resblocks.")[2] for n in apart(run(tiny_visual, axes), before)}
    assert solved == {f"1.{name}.{part}" for name in ("ln_2", "mlp.c_fc") for part in ("weight", "bias")}


def unnamed(tower: Tower) -> Tower:
    """The same modules without names of norms."""
    other = copy.deepcopy(tower)
    return Tower(other.stem, list(other.blocks), other.head, other.groups, other.keys, other.shared)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"anchor_point": 2.2}, r"anchor_point 2\.2 needs the base model's weights; give them as base"),
        ({"norms": "closed-form"}, "norms 'closed-form' needs a tower that names its norms"),
        ({"patch_weight": 0.5}, r"patch_weight 0\.5 needs a head that reads a class token alone"),
    ],
    ids=str,
)
def test_what_is_missing_is_named_before_the_model_is_touched(
    tiny_visual: TinyVisual, axes: dict[str, Any], message: str
) -> None:
    tower: nn.Module = unnamed(tiny_visual.tower)
    before = copy.deepcopy(tower.state_dict())
    with pytest.raises(UserError, match=message):
        next(walk(tower, tiny_visual.experts, tiny_visual.inputs, Calibration("expert", **axes), centre))  # type: ignore[arg-type]
    assert all(torch.equal(x, before[name]) for name, x in tower.state_dict().items())


@pytest.mark.parametrize(
    "axes",
    [
        {"sequential": "layer"},
        {"anchor_point": float("nan")},
        {"anchor_point": -1.0},
        {"patch_scope": "all"},
        {"biases": "none"},
        {"norms": "none"},
    ],
    ids=str,
)
def test_axes_out_of_range_are_refused(axes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(axes))}.*(out of range|unknown)"):
        Calibration("expert", **axes)


@pytest.mark.parametrize(
    ("axes", "idle"),
    [
        ({"target": "expert"}, {"patch_scope"}),
        ({"target": "expert", "patch_weight": 0.5}, set()),
        ({"target": "expert", "patch_weight": 0.5, "source": "merged"}, {"sequential"}),
        ({"target": "expert", "patch_weight": 0.5, "biases": "closed-form"}, {"recalibrate"}),
    ],
    ids=str,
)
def test_axes_that_change_nothing_are_known(axes: dict[str, Any], idle: set[str]) -> None:
    assert set(Calibration(**axes).idle) == idle | {"asymmetry"}, "that is of the merged target"
