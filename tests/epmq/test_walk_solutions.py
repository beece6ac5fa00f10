"""What a whole walk leaves behind: identities with known methods, and nothing touched that it was lent."""

from __future__ import annotations

import copy
import gc
import re
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import baselines
from epmq.calibration import Calibration
from epmq.errors import UserError
from epmq.layer.problem import LayerProblem
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight
from epmq.merging import merge
from epmq.models.tower import Tower
from epmq.walk import LayerReport, Solver, centre, walk
from tests.fixtures.tiny_suite import TinyVisual

SPEC = QuantSpec(bits=3)


def gptq(problem: LayerProblem) -> QuantizedWeight:
    return baselines.get("gptq")(problem, SPEC)


def walked(
    made: TinyVisual, calibration: Calibration, solve: Solver = gptq, **options: Any
) -> tuple[Tower, list[LayerReport]]:
    """A walked copy of the tower and its reports."""
    tower = copy.deepcopy(made.tower)
    experts = options.pop("experts", made.experts)
    return tower, list(walk(tower, experts, made.inputs, calibration, solve, **options))


def weights(tower: Tower) -> dict[str, Tensor]:
    return dict(tower.named_parameters())


def equal(one: Tower, other: Tower) -> bool:
    return all(torch.equal(x, weights(other)[name]) for name, x in weights(one).items())


def farthest(one: Tower, other: Tower) -> float:
    return max(float((x - weights(other)[name]).abs().max()) for name, x in weights(one).items())


@pytest.mark.parametrize("source", ["merged", "quantised", "expert-block", "expert"])
def test_not_rounding_the_merged_target_changes_nothing(tiny_visual: TinyVisual, source: Any) -> None:
    tower, reports = walked(tiny_visual, Calibration("merged", source=source), centre)
    assert equal(tower, tiny_visual.tower)
    assert [r.objective for r in reports] == [0.0] * 8
    assert [r.deviations.quantisation for r in reports] == [0.0] * 8
    assert all(r.packed_bits is None for r in reports)
    images = tiny_visual.inputs["fruit"]
    with torch.no_grad():
        assert torch.equal(tower(images), tiny_visual.tower(images))


def test_not_rounding_but_recalibrating_the_merged_target_changes_next_to_nothing(
    tiny_visual: TinyVisual,
) -> None:
    tower, _ = walked(tiny_visual, Calibration("merged", recalibrate="bias"), centre)
    assert farthest(tower, tiny_visual.tower) < 1e-6


@pytest.mark.parametrize("strength", [0.01, 0.3])
@pytest.mark.parametrize(("source", "mixing"), [("quantised", 0.0), ("merged", 0.0), ("merged", 1.0)])
def test_experts_that_equal_the_merged_model_make_epmq_gptq(
    tiny_visual: TinyVisual, strength: float, source: Any, mixing: float
) -> None:
    same = dict.fromkeys(tiny_visual.experts, tiny_visual.checkpoint())
    ours = Calibration("expert", source=source, mixing=mixing, anchor=strength / 2, damping=strength / 2)
    epmq, reports = walked(tiny_visual, ours, experts=same)
    plain, expected = walked(tiny_visual, Calibration("merged", source=source, damping=strength))
    assert equal(epmq, plain)
    assert not equal(epmq, tiny_visual.tower)
    for one, other in zip(reports, expected, strict=True):
        assert one.objective == pytest.approx(other.objective, rel=1e-6)
        # In reading B the energy is summed from outputs, the rest from the Gram matrix: float32 sums, whose
        # last digit is 1e-7 of an energy of 72 here. In reading A all of it is of the experts' moves.
        assert one.deviations.merging == pytest.approx(0.0, abs=1e-5 if mixing else 1e-15)


def test_an_enormous_anchor_makes_epmq_the_merged_model_rounded(tiny_visual: TinyVisual) -> None:
    tower, _ = walked(tiny_visual, Calibration("expert", anchor=1e12))
    nearest, _ = walked(tiny_visual, Calibration("merged"), lambda p: baselines.get("rtn")(p, SPEC))
    assert equal(tower, nearest)


def averaged(made: TinyVisual) -> Tower:
    """The experts' mean, in all that is no linear layer RegMean's and RegMean++'s result."""
    tower = copy.deepcopy(made.tower)
    return tower.load_all(merge("simple-average", made.checkpoint(), list(made.experts.values())))


def linears(tower: Tower) -> dict[str, torch.nn.Linear]:
    return {n: m for n, m in tower.named_modules() if isinstance(m, torch.nn.Linear)}


def naive_grams(tower: Tower, names: list[str], images: Tensor, off_diagonal: float) -> dict[str, Tensor]:
    """Mean over tokens of x x^T of each layer, off-diagonal entries times ``off_diagonal``."""
    grams: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(_: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].flatten(0, 1).double()
            gram = x.T @ x / len(x)
            grams[name] = off_diagonal * gram + (1 - off_diagonal) * torch.diag(gram.diagonal())

        return hook

    handles = [tower.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    tower(images)
    for handle in handles:
        handle.remove()
    return grams


def naive_regression(tower: Tower, found: list[tuple[dict[str, Tensor], Tower]]) -> None:
    """W^T = (sum_t G_t)^-1 sum_t G_t W_t^T for every layer of the Grams, each with its expert."""
    for name in found[0][0]:
        left = torch.stack([grams[name] for grams, _ in found]).sum(0)
        right = torch.stack([grams[name] @ linears(w)[name].weight.double().T for grams, w in found]).sum(0)
        linears(tower)[name].weight.copy_(torch.linalg.solve(left, right).T)


@torch.no_grad()
def naive_regmean(made: TinyVisual, off_diagonal: float) -> Tower:
    """RegMean as FusionBench computes it on CLIP: all Grams from whole experts, then one solve a layer."""
    tower = averaged(made)
    experts = {task: copy.deepcopy(tower).load_all(expert) for task, expert in made.experts.items()}
    names = list(linears(tower))
    naive_regression(
        tower,
        [(naive_grams(expert, names, made.inputs[t], off_diagonal), expert) for t, expert in experts.items()],
    )
    return tower


@torch.no_grad()
def naive_regmean_pp(made: TinyVisual, off_diagonal: float, own_block: bool) -> Tower:
    """RegMean++: inputs from the model as merged so far, every pass a whole one from the images.

    With ``own_block`` as FusionBench computes it: the states before a block are the merged blocks', those
    within are the expert's own block's, so that a block's layers are solved at once; without, one layer after
    the other.
    """
    tower = averaged(made)
    experts = {task: copy.deepcopy(tower).load_all(expert) for task, expert in made.experts.items()}
    for index in range(len(tower.blocks)):
        names = [name for name in linears(tower) if name.startswith(f"blocks.{index}.")]
        for stage in [names] if own_block else [[name] for name in names]:
            found = []
            for task, expert in experts.items():
                seen = copy.deepcopy(tower)
                if own_block:
                    seen.blocks[index] = expert.blocks[index]
                found.append((naive_grams(seen, stage, made.inputs[task], off_diagonal), expert))
            naive_regression(tower, found)
    return tower


@pytest.mark.parametrize("off_diagonal", [0.95, 0.5])
@pytest.mark.parametrize("source", ["expert", "quantised", "expert-block"])
def test_regmean_and_its_successor_through_the_walk_are_the_naive_ones(
    tiny_visual: TinyVisual, source: Any, off_diagonal: float
) -> None:
    tower = averaged(tiny_visual)
    regmean = Calibration("expert", source=source, anchor=0.0, off_diagonal=off_diagonal)
    reports = list(walk(tower, tiny_visual.experts, tiny_visual.inputs, regmean, centre))
    assert not any(r.warnings for r in reports)
    naive = {
        "expert": naive_regmean(tiny_visual, off_diagonal),
        "quantised": naive_regmean_pp(tiny_visual, off_diagonal, own_block=False),
        "expert-block": naive_regmean_pp(tiny_visual, off_diagonal, own_block=True),
    }
    assert farthest(tower, naive.pop(source)) < 1e-4
    assert all(farthest(tower, other) > 1e-2 for other in naive.values())


@pytest.mark.parametrize(
    "axes", [{"mixing": 0.5}, {"source": "expert"}, {"source": "expert-block"}, {"source": "merged"}], ids=str
)
def test_batch_size_changes_nothing_beyond_float32(tiny_visual: TinyVisual, axes: dict[str, Any]) -> None:
    calibration = Calibration("expert", recalibrate="bias", **axes)
    whole, _ = walked(tiny_visual, calibration, centre, batch_size=1000)
    for size in (1, 7):
        tower, _ = walked(tiny_visual, calibration, centre, batch_size=size)
        assert farthest(tower, tiny_visual.tower) > 0
        assert farthest(tower, whole) < 1e-4


def test_two_walks_are_identical(tiny_visual: TinyVisual) -> None:
    calibration = Calibration("expert", mixing=0.5, recalibrate="bias")
    (one, first), (other, second) = (walked(tiny_visual, calibration) for _ in range(2))
    assert equal(one, other)
    assert [(r.name, r.objective) for r in first] == [(r.name, r.objective) for r in second]


class Counting(Mapping[str, Tensor]):
    """A checkpoint that hands out fresh tensors and knows which are alive, and what was asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], log: list[str], alive: weakref.WeakSet[Tensor]) -> None:
        self.tensors, self.log, self.alive = tensors, log, alive

    def __getitem__(self, name: str) -> Tensor:
        assert not self.alive, "a tensor was asked for while another one was still held"
        self.log.append(name)
        tensor = self.tensors[name].clone()
        self.alive.add(tensor)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


@pytest.mark.parametrize(
    "axes", [{}, {"mixing": 1.0}, {"source": "expert"}, {"source": "merged", "mixing": 0.5}], ids=str
)
def test_experts_are_read_block_by_block(tiny_visual: TinyVisual, axes: dict[str, Any]) -> None:
    log: list[str] = []
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    experts = {task: Counting(e, log, alive) for task, e in tiny_visual.experts.items()}
    blocks = []
    gc.disable()
    try:
        for report in walk(
            tiny_visual.tower, experts, tiny_visual.inputs, Calibration("expert", **axes), gptq
        ):
            block = report.name.split(".")[1]
            asked = {m[1] if (m := re.search(r"resblocks\.(\d+)", name)) else "stem" for name in log}
            allowed = {block, str(int(block) - 1)} if block != "0" else {"0", "stem"}
            assert asked <= allowed, "the walk reads ahead"
            blocks.append(block)
            log.clear()
    finally:
        gc.enable()
    assert blocks == ["0"] * 4 + ["1"] * 4
    assert not log, "nothing is left to do after the last layer"


def test_experts_and_inputs_are_not_changed(tiny_visual: TinyVisual) -> None:
    before = copy.deepcopy((tiny_visual.experts, tiny_visual.inputs))
    walked(tiny_visual, Calibration("expert", mixing=0.5, recalibrate="bias"))
    for old, new in zip(before, (tiny_visual.experts, tiny_visual.inputs), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0)


@pytest.mark.keeps_rng
def test_no_global_state_is_changed(tiny_visual: TinyVisual) -> None:
    def state() -> tuple[object, ...]:
        default, threads = torch.get_default_dtype(), torch.get_num_threads()
        return default, threads, torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()

    before = state()
    for _ in walk(tiny_visual.tower, tiny_visual.experts, tiny_visual.inputs, Calibration("expert"), gptq):
        assert state() == before, "between two layers the caller's state is its own"
    assert state() == before
    assert not any(p.requires_grad for p in tiny_visual.tower.parameters())


def test_every_layer_is_reported_once_in_forward_order(tiny_visual: TinyVisual) -> None:
    tower, reports = walked(tiny_visual, Calibration("expert"))
    shapes = [
        (f"blocks.{i}.{path}", *weights(tower)[f"blocks.{i}.{path}.weight"].shape)
        for i in range(2)
        for path in ("attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    assert [(r.name, r.rows, r.columns) for r in reports] == shapes
    for report in reports:
        stored = report.rows * report.columns * 3 + report.rows * (16 + 3)
        assert report.packed_bits == stored
        assert report.calibrate_seconds > 0
        assert report.solve_seconds > 0


def test_dead_inputs_are_reported_and_keep_the_merged_weight(tiny_visual: TinyVisual) -> None:
    tower = tiny_visual.tower
    with torch.no_grad():
        norms = [n for n, _ in tower.named_parameters() if n.startswith("blocks.0.ln_1")]
        for name in norms:
            tower.get_parameter(name)[3] = 0.0
    before = weights(tower)["blocks.0.attn.in_proj.weight"].clone()
    experts = dict.fromkeys(tiny_visual.experts, tiny_visual.experts["fruit"])
    no_anchor = Calibration("expert", source="merged", anchor=0.0)
    tower, reports = walked(tiny_visual, no_anchor, centre, experts=experts)
    assert "1 dead input columns" in reports[0].warnings
    torch.testing.assert_close(weights(tower)["blocks.0.attn.in_proj.weight"][:, 3], before[:, 3])


def test_all_zero_inputs_leave_weights_and_biases_finite(tiny_visual: TinyVisual) -> None:
    with torch.no_grad():
        for name, parameter in tiny_visual.tower.named_parameters():
            if name.startswith("blocks.0.ln_1"):
                parameter.zero_()
    calibration = Calibration("expert", task_weight="frobenius", recalibrate="bias")
    tower, reports = walked(tiny_visual, calibration)
    assert "16 dead input columns" in reports[0].warnings
    assert all(bool(torch.isfinite(x).all()) for x in weights(tower).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": ["fruit"]}, r"experts are of tasks \['fruit'\], calibration inputs of"),
        ({"experts": ["birds", "fruit"]}, "they must agree"),
        ({"empty": "birds"}, "task 'birds' has no calibration sample"),
        (
            {"layers": "blocks.9.*"},
            r"layers 'blocks.9.\*' matches no layer; the first is 'blocks.0.attn.in_proj'",
        ),
    ],
)
def test_bad_input_is_refused_before_the_model_is_touched(
    tiny_visual: TinyVisual, change: dict[str, Any], message: str
) -> None:
    experts = {task: tiny_visual.experts[task] for task in change.get("experts", tiny_visual.experts)}
    inputs = {t: x[:0] if t == change.get("empty") else x for t, x in tiny_visual.inputs.items()}
    calibration = Calibration("expert", layers=change.get("layers", "*"))
    before = copy.deepcopy(tiny_visual.tower)
    with pytest.raises(UserError, match=message):
        next(walk(tiny_visual.tower, experts, inputs, calibration, gptq))
    assert equal(tiny_visual.tower, before)


@pytest.mark.parametrize(
    "axes",
    [
        {"target": "experts"},
        {"source": "merge"},
        {"mixing": 1.5},
        {"mixing": float("nan")},
        {"off_diagonal": -0.1},
        {"anchor": -1.0},
        {"anchor": float("inf")},
        {"damping": float("nan")},
        {"anchor_scale": "mean"},
        {"task_weight": "norm"},
        {"recalibrate": "all"},
    ],
    ids=str,
)
def test_axes_out_of_range_are_refused(axes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(axes))}.*(out of range|unknown)"):
        Calibration(**axes)
