"""What every rounding method must do, as plain functions that anyone can run over their own.

    from baselines.contract import check
    check(my_method)

Each ``check_*`` takes a method, a layer problem and a spec, and raises AssertionError saying what is wrong.
Nothing here knows how a method works. Where a method promises nothing on adversarial inputs (no method but
exhaustive search does), the problems are realistic: correlated Gaussian inputs of unequal variance.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from baselines.registry import Baseline, get
from epmq.layer.exceptions import Exceptions
from epmq.layer.grid import by_group, decode
from epmq.layer.problem import LayerProblem
from epmq.layer.spec import SCALE_BITS, QuantSpec
from epmq.layer.weight import QuantizedWeight
from epmq.methods import Rounding

Check = Callable[[Rounding, LayerProblem, QuantSpec], None]
CONTAINER_BYTES = 512  # the safetensors header of a packed weight
SPECS = {
    "4-bit": QuantSpec(4),
    "2-bit": QuantSpec(2),
    "8-bit": QuantSpec(8),
    "3-bit symmetric": QuantSpec(3, symmetric=True),
    "4-bit groups": QuantSpec(4, group_size=16),
    "4-bit groups act-order": QuantSpec(4, group_size=16, act_order=True),
    "5-bit on merged": QuantSpec(5, group_size=8, fit_scales_on="merged"),
    "6-bit float32 scales": QuantSpec(6, scale_dtype="float32", block_size=20),
    "NF4": QuantSpec(4, grid="nf4"),
    "FP4 groups act-order": QuantSpec(4, grid="fp4", group_size=16, act_order=True),
    "MXFP4": QuantSpec(4, grid="mxfp4"),
    "NVFP4": QuantSpec(4, grid="nvfp4"),
}


def realistic_problem(
    target: str = "expert", rows: int = 24, columns: int = 96, seed: int = 0
) -> LayerProblem:
    """A made-up layer of three tasks; ``target`` is ``"merged"`` or ``"expert"``."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    spread = torch.exp(normal(columns, 1))
    mix = torch.eye(columns, dtype=torch.float64) + normal(columns, columns) / columns**0.5
    inputs = [spread * (mix @ normal(columns, 8 * columns)) for _ in range(3)]
    grams = [x @ x.T / x.shape[1] for x in inputs]
    weight = 0.05 * normal(rows, columns)
    if target == "merged":
        return LayerProblem.merged(weight, grams)
    return LayerProblem.expert_guided(weight, [weight + 0.02 * normal(rows, columns) for _ in inputs], grams)


def check_output(method: Rounding, problem: LayerProblem, spec: QuantSpec) -> None:
    """A :class:`QuantizedWeight` of the layer's shape on the asked grid; the dense weight is on it."""
    found = method(problem, spec)
    _must(isinstance(found, QuantizedWeight), f"returned {type(found).__name__}, not a QuantizedWeight")
    _must(found.spec == spec, f"returned the grid {found.spec}, asked was {spec}")
    shape = tuple(problem.centre.shape)
    _must(tuple(found.codes.shape) == shape, f"codes are {tuple(found.codes.shape)}, the layer is {shape}")
    _must(found.codes.device == problem.centre.device, f"codes are on {found.codes.device}")
    dense = found.dequantize()
    _must(dense.dtype == torch.float32, f"the dense weight is {dense.dtype}, not float32")
    _must(bool(torch.isfinite(dense).all()), "the dense weight holds NaN or Inf")
    grid = found.scale.double()[..., None], found.zero.double()[..., None]
    on_grid = found.restored(decode(by_group(found.codes.double(), spec), *grid, spec).flatten(1))
    near = 0.0 if found.rotation is None else 1e-6 * float(on_grid.abs().max())
    _must(torch.allclose(dense.double(), on_grid, rtol=1e-6, atol=near), "the dense weight is off the grid")


def check_deterministic(method: Rounding, problem: LayerProblem, spec: QuantSpec) -> None:
    """Two calls give the same tensors, bit for bit."""
    _must_equal(method(problem, spec), method(problem, spec), "two calls differ in their")


def check_not_worse_than_rtn(method: Rounding, problem: LayerProblem, spec: QuantSpec) -> None:
    """The objective is at most that of rounding to nearest (expected of realistic problems only).

    A method that reads nothing but the weights is held to their mean absolute error instead.
    """
    mine, rtn = (f(problem, spec).dequantize().double() for f in (method, get("rtn")))
    errors, what = [problem.objective(dense) for dense in (mine, rtn)], "objective"
    if isinstance(method, Baseline) and method.needs == "none":
        errors, what = [float((w - problem.centre).abs().mean()) for w in (mine, rtn)], "mean absolute error"
    message = f"{what} {errors[0]:.6g} is worse than round-to-nearest's {errors[1]:.6g}"
    _must(errors[0] <= errors[1] * (1 + 1e-6), message)


def check_rows(method: Rounding, problem: LayerProblem, spec: QuantSpec) -> None:
    """Rows are rounded independently: permuted or alone, they get the same codes.

    A method with an input scale shares that choice among the rows, so only permuting is asked of it.
    """
    rows = len(problem.centre)
    found = method(problem, spec)
    order = torch.arange(rows - 1, -1, -1)
    subsets = [order] if found.input_scale is not None else [order, torch.arange(0, rows, 3)]
    for subset in subsets:
        part = LayerProblem(
            problem.centre[subset], problem.hessian, problem.reference[subset], problem.warnings
        )
        _must_equal(method(part, spec), found[subset], f"taking {len(subset)} of {rows} rows changes their")


def check_leaves_inputs_alone(method: Rounding, problem: LayerProblem, spec: QuantSpec) -> None:
    """The problem's tensors are not written to."""
    before = {name: getattr(problem, name).clone() for name in ("centre", "hessian", "reference")}
    method(problem, spec)
    for name, kept in before.items():
        _must(torch.equal(getattr(problem, name), kept), f"wrote to problem.{name}")


def check_leaves_global_state_alone(method: Rounding, problem: LayerProblem, spec: QuantSpec) -> None:
    """Global random states and torch's global settings are the same afterwards."""
    random_states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        # Go on to states that no fixed seed leads to, or a method that seeds would pass the second time.
        random.random(), np.random.random(), torch.rand(1)  # noqa: NPY002
        before = _global_state()
        method(problem, spec)
        after = _global_state()
    finally:
        random.setstate(random_states[0])
        np.random.set_state(random_states[1])  # noqa: NPY002
        torch.set_rng_state(random_states[2])
    for name, value in after.items():
        _must(value == before[name], f"changed the global {name}")


def check_bits(method: Rounding, problem: LayerProblem, spec: QuantSpec) -> None:
    """Bits per weight count all that is stored, and the packed bytes agree with them."""
    found = method(problem, spec)
    zero = 16 if found.zero.is_floating_point() else spec.bits
    a_group = SCALE_BITS[spec.scale_dtype] + (0 if spec.symmetric else zero)
    stored = found.codes.numel() * spec.bits + found.scale.numel() * a_group
    stored += 32 * ((spec.scale_dtype == "e4m3") + (found.rotation is not None))
    if found.input_scale is not None:
        stored += 16 * found.input_scale.numel()
    if found.exceptions is not None:
        stored += 32 * found.exceptions.columns.numel()
    told = found.bits_per_weight * found.codes.numel()
    _must(abs(told - stored) < 0.5, f"{told:.0f} bits are told of, {stored} are stored")
    excess = len(found.to_bytes()) - stored / 8
    _must(0 <= excess <= CONTAINER_BYTES, f"the packed bytes are {excess:.0f} more than the bits told of")


def check_round_trip(method: Rounding, problem: LayerProblem, spec: QuantSpec) -> None:
    """Packed bytes give the same weight back."""
    found = method(problem, spec)
    _must_equal(QuantizedWeight.from_bytes(found.to_bytes()), found, "packing changes the")


CHECKS: dict[str, Check] = {
    "output": check_output,
    "deterministic": check_deterministic,
    "not-worse-than-rtn": check_not_worse_than_rtn,
    "rows": check_rows,
    "leaves-inputs-alone": check_leaves_inputs_alone,
    "leaves-global-state-alone": check_leaves_global_state_alone,
    "bits": check_bits,
    "round-trip": check_round_trip,
}


def cases() -> Iterator[tuple[str, LayerProblem, QuantSpec]]:
    """Every realistic problem with every spec, with a label for messages."""
    for target in ("merged", "expert"):
        problem = realistic_problem(target)
        for name, spec in SPECS.items():
            yield f"{target} target, {name}", problem, spec


def check(method: Rounding) -> None:
    """Run every check on every case; AssertionError names the first check and case that fail."""
    for label, problem, spec in cases():
        for name, one in CHECKS.items():
            try:
                one(method, problem, spec)
            except AssertionError as error:
                raise AssertionError(f"{name} ({label}): {error}") from error


def _must(held: bool, message: str) -> None:
    if not held:
        raise AssertionError(message)


def _must_equal(found: QuantizedWeight, wanted: QuantizedWeight, message: str) -> None:
    for name in (f.name for f in fields(QuantizedWeight) if f.name != "spec"):
        ours, theirs = getattr(found, name), getattr(wanted, name)
        if isinstance(ours, Exceptions) and isinstance(theirs, Exceptions):
            same = torch.equal(ours.columns, theirs.columns) and torch.equal(ours.values, theirs.values)
        elif isinstance(ours, Tensor) and isinstance(theirs, Tensor):
            same = torch.equal(ours, theirs)
        else:
            same = ours == theirs
        _must(same, f"{message} {name}")


def _global_state() -> dict[str, object]:
    return {
        "state of random": random.getstate(),
        "state of numpy.random": pickle.dumps(np.random.get_state()),  # noqa: NPY002
        "state of torch's generator": torch.get_rng_state().numpy().tobytes(),
        "default dtype": torch.get_default_dtype(),
        "number of threads": torch.get_num_threads(),
        "gradient mode": torch.is_grad_enabled(),
        "deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "float32 matrix product precision": torch.get_float32_matmul_precision(),
    }
