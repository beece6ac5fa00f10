"""What every refinement must do, as plain functions that anyone can run over their own.

    from baselines.refinements.contract import Case, check
    check(my_refinement, case)

A :class:`Case` is a tower, its quantised weights and lessons; each ``check_*`` works on copies of the tower
and raises AssertionError saying what is wrong. Nothing here knows how a refinement works.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from baselines.refinements.registry import Refined, Refinement
from epmq.layer.weight import QuantizedWeight
from epmq.models.layers import layer_groups
from epmq.models.tower import Tower
from epmq.refinement.budget import Budget
from epmq.refinement.descent import Lessons
from epmq.refinement.parts import offsets


@dataclass(frozen=True)
class Case:
    """What a refinement is tried on.

    Attributes:
        tower: holds what ``quantised`` dequantises to.
        quantised: by group, none for a tower in full precision.
        budget: of a few steps.
    """

    tower: Tower
    quantised: Mapping[str, QuantizedWeight]
    lessons: Lessons
    budget: Budget


Check = Callable[[Refinement, Case], None]


def _run(method: Refinement, case: Case, steps: int | None = None) -> tuple[Tower, Refined]:
    tower = copy.deepcopy(case.tower)
    budget = case.budget if steps is None else replace(case.budget, steps=steps)
    return tower, method(tower, case.quantised, case.lessons, budget)


def _weights(tower: Tower) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in tower.named_parameters()}


def _layers(tower: Tower, name: str) -> list[str]:
    """The parameters that a group's quantised weight stands for."""
    ((part, paths),) = layer_groups(tower, name).values()
    return [f"{part}.{path}.weight" for path in paths]


def check_output(method: Refinement, case: Case) -> None:
    """Every group keeps a quantised weight of its grid, which the tower's layers hold bit for bit."""
    tower, found = _run(method, case)
    _must(found.quantised.keys() == case.quantised.keys(), "groups of quantised layers came or went")
    for name, weight in found.quantised.items():
        _must(weight.spec == case.quantised[name].spec, f"{name}: the grid became {weight.spec}")
        _must(weight.packed_bits == case.quantised[name].packed_bits, f"{name}: other bits are stored")
        dense = torch.cat([tower.get_parameter(layer) for layer in _layers(tower, name)])
        _must(torch.equal(dense, weight.dequantize()), f"{name}: the layer is not what is stored")


def check_no_step(method: Refinement, case: Case) -> None:
    """Without a step nothing changes."""
    tower, _ = _run(method, case, 0)
    before = _weights(case.tower)
    for name, weight in _weights(tower).items():
        _must(torch.equal(weight, before[name]), f"no step changes {name}")


def check_deterministic(method: Refinement, case: Case) -> None:
    """Two calls give the same weights, bit for bit."""
    (one, _), (other, _) = _run(method, case), _run(method, case)
    for name, weight in _weights(one).items():
        _must(torch.equal(weight, _weights(other)[name]), f"two calls differ in {name}")


def check_declared(method: Refinement, case: Case) -> None:
    """It changes what it declares and nothing else; what is shared with the base stays."""
    tower, found = _run(method, case)
    before, quantised = _weights(case.tower), {n for g in case.quantised for n in _layers(tower, g)}
    continuous = {id(p) for p in offsets(tower)}
    for name, parameter in tower.named_parameters():
        same = torch.equal(parameter, before[name])
        if tower.keys[name] in tower.shared:
            _must(same, f"changed {name}, which is shared with the base")
        if method.changes == "continuous" and name not in quantised and id(parameter) not in continuous:
            _must(same, f"changed {name}, which is neither scale, bias nor norm")
    for name, weight in found.quantised.items() if method.changes == "continuous" else ():
        kept = case.quantised[name]
        _must(torch.equal(weight.codes, kept.codes), f"{name}: codes changed")
        _must(torch.equal(weight.zero, kept.zero), f"{name}: zero points changed")


def check_held_out(method: Refinement, case: Case) -> None:
    """The state that is kept is none with a higher held-out loss than the start's."""
    _, found = _run(method, case)
    losses = {point.step: point.held_out for point in found.curve.points}
    _must(losses[found.curve.best] == min(losses.values()), "another state than the best is kept")


def check_leaves_global_state_alone(method: Refinement, case: Case) -> None:
    """The global random state and gradient flags are as before."""
    before = torch.get_rng_state()
    tower, _ = _run(method, case)
    _must(torch.equal(before, torch.get_rng_state()), "changed the state of torch's generator")
    _must(not any(p.requires_grad for p in tower.parameters()), "leaves parameters that ask for gradients")


CHECKS: dict[str, Check] = {
    "output": check_output,
    "no-step": check_no_step,
    "deterministic": check_deterministic,
    "declared": check_declared,
    "held-out": check_held_out,
    "leaves-global-state-alone": check_leaves_global_state_alone,
}


def check(method: Refinement, case: Case) -> None:
    """Run every check; AssertionError names the first that fails."""
    for name, one in CHECKS.items():
        try:
            one(method, case)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def _must(held: bool, message: str) -> None:
    if not held:
        raise AssertionError(message)
