"""Merges by singular values and by dropping, against plain formulas in float64 and what must hold of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from epmq.errors import UserError
from epmq.merging import merge, options_of

State = dict[str, Tensor]
Matrix = NDArray[np.float64]
SHAPES = {"tall": (12, 7), "wide": (5, 11), "bias": (6,), "scale": (), "patches": (3, 2, 2, 2)}
SPECTRAL = ("iso-c", "iso-cts", "tsv-m", "wudi")


def models(tasks: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[State, list[State]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(unit: float) -> State:
        return {name: unit * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}

    base = draw(1.0)
    experts = [{name: base[name] + tau for name, tau in draw(0.1).items()} for _ in range(tasks)]
    states = [{name: value.to(dtype) for name, value in state.items()} for state in (base, *experts)]
    for state in states:
        state["position_ids"] = torch.arange(5)
    return states[0], states[1:]


def differences(base: State, experts: list[State], name: str) -> list[Matrix]:
    return [(expert[name].double() - base[name].double()).numpy() for expert in experts]


def tau(found: Mapping[str, Tensor], base: State, name: str) -> Matrix:
    moved: Matrix = (found[name].double() - base[name].double()).numpy()
    return moved


def plain_iso_c(parts: list[Matrix]) -> Matrix:
    total = np.sum(parts, axis=0)
    orthogonal, _ = scipy.linalg.polar(total)
    wanted: Matrix = np.linalg.norm(total, "nuc") / min(total.shape) * orthogonal
    return wanted


def plain_tsv_m(parts: list[Matrix]) -> Matrix:
    kept = min(parts[0].shape) // len(parts)
    triples = [np.linalg.svd(part, full_matrices=False) for part in parts]
    left, _ = scipy.linalg.polar(np.hstack([u[:, :kept] for u, _, _ in triples]))
    right, _ = scipy.linalg.polar(np.vstack([vt[:kept] for _, _, vt in triples]))
    wanted: Matrix = left @ np.diag(np.hstack([s[:kept] for _, s, _ in triples])) @ right
    return wanted


def plain_iso_cts(parts: list[Matrix], common: float = 0.8) -> Matrix:
    rank, tasks = min(parts[0].shape), len(parts)
    own = round((rank - int(rank * common)) / tasks)
    u, s, vt = np.linalg.svd(np.sum(parts, axis=0), full_matrices=False)
    shared = rank - own * tasks
    outside = np.eye(len(u)) - u[:, :shared] @ u[:, :shared].T
    triples = [np.linalg.svd(outside @ part, full_matrices=False) for part in parts]
    left, _ = scipy.linalg.polar(np.hstack([*(t[0][:, :own] for t in triples), u[:, :shared]]))
    right, _ = scipy.linalg.polar(np.vstack([*(t[2][:own] for t in triples), vt[:shared]]))
    values = np.hstack([*(t[1][:own] for t in triples), s[:shared]])
    wanted: Matrix = values.mean() * left @ right
    return wanted


def plain_wudi(parts: list[Matrix]) -> Matrix:
    """The least-squares problem as it stands: tau D_t^T / |D_t| = D_t D_t^T / |D_t| for all tasks at once."""
    a = np.vstack([part / np.linalg.norm(part) for part in parts])
    b = np.vstack([part @ part.T / np.linalg.norm(part) for part in parts])
    found, *_ = np.linalg.lstsq(a, b, rcond=None)
    wanted: Matrix = found.T
    return wanted


PLAIN: dict[str, Callable[[list[Matrix]], Matrix]] = {
    "iso-c": plain_iso_c,
    "iso-cts": plain_iso_cts,
    "tsv-m": plain_tsv_m,
    "wudi": plain_wudi,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", SPECTRAL)
@settings(max_examples=20)
@given(seed=st.integers(0, 1000), tasks=st.integers(1, 3), scale=st.floats(0.1, 2))
def test_matrices_are_those_of_the_formula(
    name: str, dtype: torch.dtype, seed: int, tasks: int, scale: float
) -> None:
    base, experts = models(tasks, seed, dtype)
    found = merge(name, base, experts, scale=scale)
    assert list(found) == list(base)
    for matrix in ("tall", "wide"):
        wanted = scale * PLAIN[name](differences(base, experts, matrix))
        np.testing.assert_allclose(tau(found, base, matrix), wanted, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", SPECTRAL)
def test_what_is_no_matrix_is_averaged(name: str) -> None:
    base, experts = models(3)
    found = merge(name, base, experts, scale=0.7)
    for other in ("bias", "scale", "patches"):
        mean = np.mean(differences(base, experts, other), axis=0)
        np.testing.assert_allclose(tau(found, base, other), 0.7 * mean, rtol=1e-4, atol=1e-6)
    assert found["position_ids"].tolist() == [0, 1, 2, 3, 4]


def test_one_task_alone_is_its_expert() -> None:
    base, (expert,) = models(1)
    for name in ("tsv-m", "wudi"):
        for key, value in merge(name, base, [expert]).items():
            torch.testing.assert_close(value, expert[key], rtol=1e-4, atol=1e-5)


def test_all_of_the_common_subspace_is_iso_c() -> None:
    base, experts = models(3)
    one, other = merge("iso-cts", base, experts, common=1.0), merge("iso-c", base, experts)
    for key in base:
        torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-5)


def test_isotropic_merges_have_one_singular_value() -> None:
    base, experts = models(3)
    for name in ("iso-c", "iso-cts"):
        values = np.linalg.svd(tau(merge(name, base, experts), base, "tall"), compute_uv=False)
        np.testing.assert_allclose(values, values.mean(), rtol=1e-4)


def test_the_minimum_of_wudi_is_one() -> None:
    """The gradient of the objective that its authors descend on is zero there."""
    base, experts = models(3)
    point = torch.tensor(tau(merge("wudi", base, experts), base, "wide"), requires_grad=True)
    loss = torch.zeros((), dtype=torch.float64)
    for part in map(torch.tensor, differences(base, experts, "wide")):
        loss = loss + ((point - part) @ part.T).square().sum() / part.square().sum()
    (gradient,) = torch.autograd.grad(loss, point)
    scale = max(np.linalg.norm(part) for part in differences(base, experts, "wide"))
    assert float(gradient.norm()) < 1e-4 * scale


def test_an_adapters_missing_rank_turns_nothing() -> None:
    """Two orthogonal differences of rank one are both kept whole by tsv-m."""
    base = {"w": torch.zeros(6, 6)}
    experts = [{"w": torch.zeros(6, 6)} for _ in range(2)]
    experts[0]["w"][0, 1] = 2.0
    experts[1]["w"][3, 4] = 1.0
    found = merge("tsv-m", base, experts)["w"]
    torch.testing.assert_close(found, experts[0]["w"] + experts[1]["w"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "name", [*SPECTRAL, "dare", "dare-ties", "consensus", "task-arithmetic-svc", "ties-svc"]
)
def test_experts_that_are_the_base_change_nothing(name: str) -> None:
    base, _ = models(1)
    for key, value in merge(name, base, [dict(base), dict(base)]).items():
        torch.testing.assert_close(value, base[key].to(value.dtype), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", SPECTRAL)
def test_one_expert_at_a_time_is_in_memory(name: str) -> None:
    base, experts = models(4)
    asked: list[tuple[int, str]] = []

    class Watched(Mapping[str, Tensor]):
        def __init__(self, number: int) -> None:
            self.number = number

        def __getitem__(self, key: str) -> Tensor:
            asked.append((self.number, key))
            return experts[self.number][key]

        def __iter__(self) -> Iterator[str]:
            return iter(experts[self.number])

        def __len__(self) -> int:
            return len(experts[self.number])

    merge(name, base, [Watched(number) for number in range(4)])
    order = [key for _, key in asked]
    assert [key for i, key in enumerate(order) if i == 0 or order[i - 1] != key] == [
        key for key in base if base[key].is_floating_point()
    ], "tensor by tensor"


def test_dropping_nothing_is_the_merge_itself() -> None:
    base, experts = models(3)
    for dropped, plain in (("dare", "task-arithmetic"), ("dare-ties", "ties")):
        one, other = merge(dropped, base, experts, drop=0.0), merge(plain, base, experts)
        for key in base:
            torch.testing.assert_close(one[key], other[key], rtol=1e-5, atol=1e-6)


def test_every_entry_is_dropped_or_rescaled_and_the_seed_says_which() -> None:
    base = {"w": torch.zeros(200, 200), "v": torch.zeros(200, 200)}
    expert = {name: torch.ones(200, 200) for name in base}
    found = merge("dare", base, [expert], scale=1.0, drop=0.75)
    assert set(found["w"].unique().tolist()) == {0.0, 4.0}
    assert float(found["w"].mean()) == pytest.approx(1.0, abs=5 * (3 / 40_000) ** 0.5)
    assert not torch.equal(found["w"], found["v"]), "tensors lose other entries"
    again = merge("dare", dict(reversed(base.items())), [expert], scale=1.0, drop=0.75)
    assert torch.equal(found["w"], again["w"]), "whatever came before"
    other = merge("dare", base, [expert], scale=1.0, drop=0.75, drop_seed=1)
    assert not torch.equal(found["w"], other["w"])
    pair = merge("dare", base, [expert, expert], scale=1.0, drop=0.75)
    assert len(pair["w"].unique()) == 3, "tasks lose other entries"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("iso-cts", {"common": 1.5}, "common 1.5 is out of range"),
        ("dare", {"drop": 1.0}, "drop 1.0 is out of range"),
        ("dare-ties", {"drop": -0.1}, "drop -0.1 is out of range"),
        ("dare", {"drop_seed": -1}, "drop_seed -1 is negative"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        options_of(name, options)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    merge("dare", *models(2))
    assert torch.equal(before, torch.get_rng_state())
