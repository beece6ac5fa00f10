"""The contract, run over whatever is registered, and shown to catch methods that break it."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

import baselines
from baselines import Baseline
from baselines.contract import CHECKS, SPECS, realistic_problem
from baselines.contract import check as check_all
from epmq.layer.problem import LayerProblem
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight
from epmq.methods import Rounding

problems = cache(realistic_problem)
OF_THE_ANSWER = ("output", "not-worse-than-rtn", "bits", "round-trip")  # checks that one call serves


@cache
def answered(name: str) -> Baseline:
    """A method that computes each of the problems above once."""
    method = baselines.get(name)
    return replace(method, rounding=cache(method.rounding))


@pytest.mark.keeps_rng
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("name", baselines.names())
def test_a_registered_method_keeps_the_contract(check: str, name: str, spec: QuantSpec) -> None:
    method = answered(name) if check in OF_THE_ANSWER else baselines.get(name)
    for target in ("merged", "expert"):
        CHECKS[check](method, problems(target), spec)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("name", baselines.names())
def test_every_number_of_bits_packs_and_unpacks(name: str, bits: int) -> None:
    for symmetric in (False, True):
        CHECKS["round-trip"](baselines.get(name), problems(), QuantSpec(bits, symmetric=symmetric))


@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("name", baselines.names())
def test_no_method_is_worse_than_rounding_to_nearest_on_other_layers(name: str, seed: int) -> None:
    for target in ("merged", "expert"):
        CHECKS["not-worse-than-rtn"](baselines.get(name), problems(target, 48, 32, seed), QuantSpec(3))


rtn, gptq = baselines.get("rtn"), baselines.get("gptq")


def finer(problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight:
    return gptq(problem, replace(spec, bits=min(8, spec.bits + 1)))


def noisy(problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight:
    shifted = problem.centre + 0.01 * torch.randn_like(problem.centre)
    return rtn(replace(problem, centre=shifted), spec)


def seeding(problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight:
    np.random.seed(0)  # noqa: NPY002, the offence that the contract must find
    return rtn(problem, spec)


def shuffling(problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight:
    random.random()
    return rtn(problem, spec)


def in_place(problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight:
    problem.centre.mul_(0.999)
    return rtn(problem, spec)


def coarse(problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight:
    return rtn(replace(problem, centre=0.5 * problem.centre), spec)


def mixed_rows(problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight:
    return rtn(replace(problem, centre=problem.centre - 1e-3 * problem.centre[0]), spec)


def dense(problem: LayerProblem, spec: QuantSpec) -> torch.Tensor:
    return problem.centre


@pytest.mark.parametrize(
    ("method", "broken", "message"),
    [
        (dense, "output", "returned Tensor, not a QuantizedWeight"),
        (finer, "output", "returned the grid"),
        (noisy, "deterministic", "two calls differ in their codes"),
        (coarse, "not-worse-than-rtn", "worse than round-to-nearest"),
        (mixed_rows, "rows", "rows changes their"),
        (in_place, "leaves-inputs-alone", "wrote to problem.centre"),
        (seeding, "leaves-global-state-alone", "changed the global state of numpy.random"),
        (shuffling, "leaves-global-state-alone", "changed the global state of random"),
        (noisy, "leaves-global-state-alone", "changed the global state of torch's generator"),
    ],
)
def test_a_method_that_breaks_the_contract_is_found(method: Rounding, broken: str, message: str) -> None:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        with pytest.raises(AssertionError, match=message):
            CHECKS[broken](method, realistic_problem(), QuantSpec(3))
        with pytest.raises(AssertionError, match=r".* \((merged|expert) target, .*\): "):
            check_all(method)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
