"""Streamed merging against straightforward stacked implementations."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from epmq.errors import UserError
from epmq.merging import known, merge

pytestmark = pytest.mark.keeps_rng
State = dict[str, Tensor]
SHAPES = {"embed": (7, 4), "block.weight": (6, 5), "block.bias": (6,), "scale": ()}


def models(tasks: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[State, list[State]]:
    """A base and its experts; names are not in sorted order, and one entry is not floating point."""
    generator = torch.Generator().manual_seed(seed)

    def draw(unit: float) -> State:
        return {name: unit * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}

    base = draw(1.0)
    experts = [{name: base[name] + tau for name, tau in draw(0.1).items()} for _ in range(tasks)]
    states = [{name: value.to(dtype) for name, value in state.items()} for state in (base, *experts)]
    for state in states:
        state["position_ids"] = torch.arange(5)
    return states[0], states[1:]


def flat(state: Mapping[str, Tensor], repeats: Mapping[str, int]) -> Tensor:
    """Floating-point tensors in the order of their names, a tied one as often as it is listed."""
    names = [name for name in sorted(state) if state[name].is_floating_point()]
    return torch.cat([state[name].double().flatten() for name in names for _ in range(repeats.get(name, 1))])


def stacked_ties(
    base: State, experts: list[State], scale: float, keep: float, repeats: Mapping[str, int]
) -> Tensor:
    """The whole of TIES on ``(tasks, entries)``, step by step."""
    origin = flat(base, repeats)
    vectors = torch.stack([flat(e, repeats) - origin for e in experts])
    entries = vectors.shape[1]
    k = max(1, entries - int(keep * entries))
    cut = vectors.abs().sort(dim=1).values[:, k - 1 : k]
    trimmed = vectors * (vectors.abs() >= cut)
    sign = trimmed.sum(0).sign()
    sign[sign == 0] = sign.sum().sign()
    agree = torch.where(sign > 0, trimmed > 0, trimmed < 0)
    return origin + scale * (trimmed * agree).sum(0)


def assert_merged(found: State, wanted: Tensor, repeats: Mapping[str, int] | None = None) -> None:
    assert found["position_ids"].tolist() == [0, 1, 2, 3, 4]
    assert all(value.dtype == torch.float32 for name, value in found.items() if name != "position_ids")
    torch.testing.assert_close(flat(found, repeats or {}), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("keep", [0.05, 0.2, 0.5, 1.0])
@given(seed=st.integers(0, 1000), tasks=st.integers(1, 5), scale=st.floats(-1, 1))
def test_ties_is_the_stacked_ties(
    dtype: torch.dtype, keep: float, seed: int, tasks: int, scale: float
) -> None:
    base, experts = models(tasks, seed, dtype)
    found = merge("ties", base, experts, scale=scale, keep=keep)
    assert_merged(found, stacked_ties(base, experts, scale, keep, {}))
    assert list(found) == list(base)


def test_a_tied_tensor_counts_as_often_as_a_state_dict_lists_it() -> None:
    base, experts = models()
    repeats = {"embed": 3}
    found = merge("ties", base, experts, keep=0.3, multiplicity=repeats)
    assert_merged(found, stacked_ties(base, experts, 0.3, 0.3, repeats), repeats)
    once = merge("ties", base, experts, keep=0.3)
    assert not torch.equal(flat(found, {}), flat(once, {}))


@pytest.mark.parametrize(("majority", "wanted"), [(1.0, 0.5), (-1.0, -0.5)])
def test_a_sum_of_exactly_zero_takes_the_majority_sign(majority: float, wanted: float) -> None:
    """+0.5 and -0.5 cancel in the first coordinate; the others decide which of them is kept."""
    base = {"w": torch.zeros(4)}
    experts = [{"w": torch.tensor([half, *[majority] * 3])} for half in (0.5, -0.5)]
    assert merge("ties", base, experts, scale=1.0, keep=1.0)["w"].tolist() == [wanted, *[2 * majority] * 3]


def test_without_a_majority_negative_entries_are_kept() -> None:
    """As the reference does: an undecided sign is not above zero."""
    base = {"w": torch.zeros(1)}
    experts = [{"w": torch.tensor([half])} for half in (0.5, -0.5)]
    assert merge("ties", base, experts, scale=1.0, keep=1.0)["w"].tolist() == [-0.5]


def test_entries_tied_at_the_cut_all_survive() -> None:
    base = {"w": torch.zeros(5)}
    experts = [{"w": torch.tensor([1.0, -1.0, 1.0, 0.5, 0.25])}]
    assert merge("ties", base, experts, scale=1.0, keep=0.2)["w"].tolist() == [1.0, -1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@given(seed=st.integers(0, 1000), tasks=st.integers(1, 5), scale=st.floats(-1, 1))
def test_task_arithmetic_adds_the_scaled_task_vectors(
    dtype: torch.dtype, seed: int, tasks: int, scale: float
) -> None:
    base, experts = models(tasks, seed, dtype)
    origin = flat(base, {})
    wanted = origin + scale * torch.stack([flat(e, {}) - origin for e in experts]).sum(0)
    assert_merged(merge("task-arithmetic", base, experts, scale=scale), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_simple_average_is_task_arithmetic_at_one_over_the_number_of_tasks(dtype: torch.dtype) -> None:
    base, experts = models(4, dtype=dtype)
    average = merge("simple-average", base, experts)
    assert_merged(average, torch.stack([flat(e, {}) for e in experts]).mean(0))
    assert_merged(merge("task-arithmetic", base, experts, scale=1 / 4), flat(average, {}))


@pytest.mark.parametrize("name", sorted(known()))
def test_inputs_are_not_modified(name: str) -> None:
    base, experts = models()
    kept = [{key: value.clone() for key, value in state.items()} for state in (base, *experts)]
    for value in merge(name, base, experts).values():
        if value.is_floating_point():
            value.add_(1)
    for before, after in zip(kept, (base, *experts), strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=0)


class Watched(Mapping[str, Tensor]):
    """A checkpoint that reads a tensor when asked for it and knows how many of its tensors are alive."""

    def __init__(self, state: State) -> None:
        self._state, self.alive, self.most_alive = state, 0, 0

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._state[name].clone()
        self.alive += 1
        self.most_alive = max(self.most_alive, self.alive)
        weakref.finalize(tensor, self._release)
        return tensor

    def _release(self) -> None:
        self.alive -= 1

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


@pytest.mark.parametrize("name", sorted(known()))
def test_experts_are_read_tensor_by_tensor(name: str) -> None:
    """Memory does not grow with the number of tensors: one of each expert is alive at a time."""
    base, experts = models()
    watched = [Watched(expert) for expert in experts]
    found = merge(name, base, watched)
    torch.testing.assert_close(found, merge(name, base, experts), rtol=0, atol=0)
    assert [expert.most_alive for expert in watched] == [1] * len(watched)


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.1, 20])
def test_a_share_out_of_range_is_named(keep: float) -> None:
    with pytest.raises(UserError, match=r"keep .* out of range; give a share in \(0, 1\]"):
        merge("ties", *models(), keep=keep)


def test_an_unknown_merge_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="merge 'tie' is unknown; did you mean 'ties'"):
        merge("tie", *models())


def test_a_merge_needs_an_expert() -> None:
    with pytest.raises(UserError, match="at least one expert"):
        merge("ties", models()[0], [])
