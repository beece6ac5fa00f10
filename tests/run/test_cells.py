"""A request becomes exactly the cells it names; a cell's key is a hash of all that can change its numbers."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, fields, replace
from itertools import product
from typing import Any

import pytest

import baselines
from baselines import registry
from baselines.controls import CONTROLS
from baselines.recipes import FAMILIAR, Pass, Recipe, familiar
from baselines.registry import Baseline
from benchmarks.run.cells import Cell, Request, expand
from epmq.calibration import LATER, Calibration
from epmq.errors import UserError
from epmq.layer import spec
from epmq.layer.spec import QuantSpec

CONTEXT = {"suite": "tiny", "version": 1, "revisions": {"base": "abc"}, "device": "cpu", "dtype": "float32"}
OTHER_AXES: dict[str, Any] = {
    "source": "merged",
    "sequential": "block",
    "mixing": 0.123,
    "anchor": 0.123,
    "anchor_scale": "absolute",
    "anchor_point": 0.123,
    "anchor_in": "centre",
    "asymmetry": 0.123,
    "task_weight": "frobenius",
    "damping": 0.123,
    "teacher": "merged",
    "patch_weight": 0.123,
    "patch_scope": "queries",
    "off_diagonal": 0.123,
    "recalibrate": "bias",
    "biases": "closed-form",
    "norms": "closed-form",
    "layers": "*.mlp.*",
}
OTHER_SPECS: dict[str, Any] = {
    "group_size": 16,
    "symmetric": True,
    "act_order": True,
    "block_size": 64,
    "fit_scales_on": "merged",
    "scale_dtype": "float32",
    "grid": "nf4",
}


def request(**changes: Any) -> Request:
    asked: dict[str, Any] = {
        "merge": ["ties"],
        "method": ["gptq"],
        "target": ["merged"],
        "bits": [4],
        "controls": [],
        "samples": [8],
    }
    return Request(**asked | changes)


def names(cells: list[Cell]) -> list[str]:
    return [cell.method for cell in cells]


def key(cell: Cell) -> str:
    return cell.key(CONTEXT)


def test_the_cross_product_and_its_controls() -> None:
    cells = expand(
        request(
            merge=["task-arithmetic", "ties"],
            method=["rtn", "gptq", "awq"],
            target=["merged", "expert"],
            bits=[4, 3],
            controls=list(CONTROLS),
        )
    )
    methods = Counter((c.merge, c.method, c.target, c.bits) for c in cells if c.kind == "method")
    roundings = {"rtn": "epmq-rtn", "gptq": "epmq", "awq": "epmq-awq"}
    assert methods == Counter(
        (merge, name, target, bits)
        for merge in ("task-arithmetic", "ties")
        for bits in (4, 3)
        for rounding, guided in roundings.items()
        for name, target in ((rounding, "merged"), (guided, "expert"))
    )
    controls = Counter((c.merge, c.method, c.bits) for c in cells if c.kind == "control")
    full = ["merged", "expert-linears", "epmq-fp", "epmq-features-fp"]
    full += ["epmq-no-anchor-fp", "epmq-features-no-anchor-fp", "featcal", "distilled", "merged-auto"]
    rounded = ["two-step", "two-step-weights", "featcal-gptq", "gptq-compensated", "qep", "gptaq"]
    rounded += ["merged-auto-gptq", "distilled-gptq", "distilled-epmq", "distilled-qat"]
    per_merge: list[tuple[str, int | None]] = [(name, None) for name in full]
    per_merge += [(name, bits) for name in rounded for bits in (4, 3)]
    assert controls == Counter(
        [(None, "zero-shot", None), (None, "experts", None)]
        + [("simple-average", name, None) for name in ("regmean", "regmean++")]
        + [("simple-average", "regmean-gptq", bits) for bits in (4, 3)]
        + [(merge, name, bits) for merge in ("task-arithmetic", "ties") for name, bits in per_merge]
    )
    assert len({key(cell) for cell in cells}) == len(cells)


def test_controls_come_first_in_a_fixed_order() -> None:
    asked = ["merged", "experts", "zero-shot"]
    assert names(expand(request(controls=asked))) == ["zero-shot", "experts", "merged", "gptq"]


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        (["gptq"], ["expert"], ["epmq"]),
        (["gptq", "epmq"], ["expert"], ["epmq"]),
        (["epmq"], ["merged"], ["epmq"]),
        (["rtn"], ["expert", "merged"], ["epmq-rtn", "rtn"]),
        (["epmq-rtn", "rtn", "rtn"], ["expert"], ["epmq-rtn"]),
        (["gptq", "gptq"], ["merged", "merged"], ["gptq"]),
    ],
)
def test_a_cell_has_one_name(method: list[str], target: Any, expected: list[str]) -> None:
    assert sorted(names(expand(request(method=method, target=target)))) == sorted(expected)


def test_no_cell_is_there_twice() -> None:
    everything = request(
        merge=["ties", "ties"],
        method=["*", "epmq*", "gptq"],
        target=["merged", "expert"],
        bits=[4, 4],
        controls=[*CONTROLS, "merged"],
    )
    keyed = {key(cell): cell for cell in expand(everything)}
    described = [str({**asdict(cell), "method": ""}) for cell in keyed.values() if cell.passes]
    assert len(described) == len(set(described)), "two cells differ in nothing but their name"


def test_patterns_find_roundings_and_familiar_names() -> None:
    guided = {name for name in familiar() if name.startswith("epmq")}
    assert set(names(expand(request(method=["epmq*"])))) == guided
    assert names(expand(request(method=["g?tq"]))) == ["gptq"]


def third_party(name: str) -> Baseline:
    return Baseline(name, baselines.get("rtn").rounding, "none", "somebody's", "elsewhere")


def test_a_new_rounding_has_a_guided_name_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._REGISTRY, "mine", third_party("mine"))
    (cell,) = expand(request(method=["epmq-mine"]))
    assert (cell.method, cell.rounding, cell.target) == ("epmq-mine", "mine", "expert")
    assert expand(request(method=["mine"], target=["expert"])) == [cell]


def test_a_rounding_cannot_take_a_familiar_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._REGISTRY, "features", third_party("features"))
    with pytest.raises(UserError, match="would be 'epmq-features', which is taken; rename it"):
        expand(request(method=["features"], target=["expert"]))


def test_every_axis_is_in_the_record() -> None:
    later = {*LATER, *spec.LATER}
    every = {f.name for part in (Calibration, QuantSpec) for f in fields(part)} - later | {"samples"}
    (cell,) = expand(request(method=["epmq-features"]))
    assert cell.axes.keys() == every
    assert FAMILIAR["epmq-features"].passes[0].defaults.items() <= cell.axes.items()
    two_step = expand(request(controls=["two-step"]))[0]
    then = {f.name for f in fields(Calibration)} - set(LATER)
    assert two_step.axes.keys() == every | {f"then.{name}" for name in then}
    featcal = expand(request(controls=["featcal-gptq"]))[0]
    others = set(LATER) - {"anchor_in", "asymmetry"}  # which QEP and GPTAQ set
    assert featcal.axes.keys() == every | others | {f"then.{name}" for name in then}
    for name, own in (("qep", "anchor_in"), ("gptaq", "asymmetry")):
        assert expand(request(controls=[name]))[0].axes.keys() == every | {own}


def test_axes_that_joined_later_leave_the_keys_of_older_cells_alone() -> None:
    (cell,) = expand(request(method=["epmq-features"]))
    passes = [{n: v for n, v in asdict(each).items() if n not in LATER} for each in cell.passes]
    older = {name: part for name, part in asdict(cell).items() if name not in ("before", "after", "search")}
    grid = {n: v for n, v in older["spec"].items() if n not in spec.LATER}
    described = json.dumps({**older, "spec": grid, "passes": passes, "context": CONTEXT}, sort_keys=True)
    assert key(cell) == hashlib.sha256(described.encode()).hexdigest()[:16]
    given = {name: getattr(Calibration(), name) for name in LATER}
    asked = request(method=["epmq-features"], calibration={"patch_weight": 0.5, **given})
    weighed = replace(cell, passes=(replace(cell.passes[0], patch_weight=0.5),))
    assert [key(c) for c in expand(asked)] == [key(weighed)]


@pytest.mark.parametrize("name", [f.name for f in fields(Calibration) if f.name != "target"])
def test_the_key_changes_with_every_axis_of_calibration(name: str) -> None:
    changed = {name: OTHER_AXES[name]}
    method = "gptq" if name in ("damping", "asymmetry") else "epmq-features"
    needed = {"patch_weight": 0.5} if name == "patch_scope" else {}  # without it the scope changes nothing
    calibrations = (needed, needed | changed)
    (before,), (after,) = (expand(request(method=[method], calibration=each)) for each in calibrations)
    assert getattr(after.passes[0], name) == OTHER_AXES[name]
    assert key(before) != key(after)


@pytest.mark.parametrize("name", [f.name for f in fields(QuantSpec) if f.name != "bits"])
def test_the_key_changes_with_every_axis_of_the_grid(name: str) -> None:
    (before,), (after,) = expand(request()), expand(request(spec={name: OTHER_SPECS[name]}))
    assert getattr(after.spec, name) == OTHER_SPECS[name]
    assert key(before) != key(after)


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": [1]},
        {"samples": [9]},
        {"bits": [3]},
        {"merge": ["task-arithmetic"]},
        {"method": ["rtn"]},
        {"target": ["expert"]},
        {"merge_options": [{"scale": 0.4}]},
        {"merge_options": [{"keep": 0.4}]},
    ],
    ids=str,
)
def test_the_key_changes_with_what_is_asked(change: dict[str, Any]) -> None:
    (before,), (after,) = expand(request()), expand(request(**change))
    assert key(before) != key(after)


@pytest.mark.parametrize(
    "change",
    [{"version": 2}, {"revisions": {"base": "abd"}}, {"device": "cuda"}, {"dtype": "bfloat16"}],
    ids=str,
)
def test_the_key_changes_with_the_context(change: dict[str, Any]) -> None:
    (cell,) = expand(request())
    assert cell.key(CONTEXT) != cell.key({**CONTEXT, **change})


def test_the_key_does_not_change_with_the_company_of_a_cell() -> None:
    (alone,) = expand(request())
    company = expand(request(method=["awq", "gptq"], target=["expert", "merged"], controls=["experts"]))
    assert key(alone) in {key(cell) for cell in company}


@pytest.mark.parametrize(
    ("method", "axes"),
    [
        ("gptq", {"anchor": 0.5, "mixing": 0.5, "anchor_scale": "absolute", "teacher": "merged"}),
        ("gptq", {"anchor_point": 2.0, "biases": "closed-form", "norms": "closed-form"}),
    ],
)
def test_an_axis_that_a_target_does_not_read_gives_no_second_key(method: str, axes: dict[str, Any]) -> None:
    (plain,) = expand(request(method=[method]))
    both = expand(request(method=["gptq", "epmq", "epmq-features"], calibration=axes))
    assert key(plain) in {key(cell) for cell in both}


def test_damping_gives_what_is_not_rounded_no_second_key() -> None:
    asked = {"controls": ["epmq-fp", "two-step"]}
    (plain, before, _), (other, after, _) = (
        expand(request(**asked, calibration=axes)) for axes in ({}, {"damping": 0.5})
    )
    assert key(plain) == key(other)
    assert before.passes[0] == after.passes[0]
    assert before.passes[1] != after.passes[1]


def test_a_suites_own_axes_are_defaults_of_their_reading() -> None:
    chosen = {"weights": {"anchor": 0.5}, "features": {"mixing": 0.25, "patch_weight": 0.0}}
    asked = {"method": ["gptq", "epmq", "epmq-features", "epmq-features-no-anchor"], "chosen": chosen}
    found = {cell.method: cell.passes[0] for cell in expand(request(**asked))}
    assert (found["gptq"], found["epmq"]) == (Calibration(), Calibration("expert", anchor=0.5))
    assert found["epmq-features"] == Calibration("expert", mixing=0.25, patch_weight=0.0)
    assert found["epmq-features-no-anchor"] == replace(found["epmq-features"], anchor=0.0)
    given = expand(request(**asked, calibration={"patch_weight": 1.0, "anchor": 0.1}))
    assert {cell.passes[0].anchor for cell in given} == {0.1, 0.001, 0.0}


def test_sizes_seeds_and_factors_are_crossed() -> None:
    several = request(samples=[8, 16], seeds=[0, 1], merge_options=[{"scale": 0.3}, {"scale": 0.4}])
    assert [(c.merge_options["scale"], c.samples, c.seed) for c in expand(several)] == list(
        product((0.3, 0.4), (8, 16), (0, 1))
    )
    averaged = request(merge=["simple-average"], merge_options=several.merge_options, controls=["merged"])
    with pytest.raises(UserError, match=r"scale 0\.3 changes no cell"):
        expand(averaged)


def test_a_familiar_name_keeps_what_makes_it_that_method() -> None:
    axes = {"mixing": 0.5, "anchor": 0.5}
    cells = {c.method: c for c in expand(request(method=["epmq*"], calibration=axes))}
    found = {n: (c.passes[0].mixing, c.passes[0].anchor) for n, c in cells.items()}
    assert found["epmq"] == (0.0, 0.5)
    assert found["epmq-no-anchor"] == (0.0, 0.0)
    assert found["epmq-features"] == (0.5, 0.5)
    assert found["epmq-features-no-anchor"] == (0.5, 0.0)


# Only inputs from the model quantised so far are taken group by group or block by block, or are shifted.
@pytest.mark.parametrize("left_out", [("source",), ("sequential", "asymmetry")])
def test_regmean_stays_regmean_whatever_the_axes(left_out: tuple[str, ...]) -> None:
    plain = expand(request(controls=["regmean"]))[0]
    axes = {k: v for k, v in OTHER_AXES.items() if k not in ("layers", *left_out)}
    company = ["gptq", "epmq-features"]  # methods that take the axes
    changed = expand(request(method=company, controls=["regmean"], calibration=axes))[0]
    assert plain == changed
    assert plain.start == "simple-average"
    assert plain.passes == (
        Calibration("expert", source="expert", mixing=0.0, anchor=0.0, off_diagonal=0.95),
    )


@pytest.mark.parametrize("left_out", [("source",), ("sequential", "asymmetry")])
def test_featcal_stays_featcal_whatever_the_axes(left_out: tuple[str, ...]) -> None:
    plain = expand(request(controls=["featcal"]))[0]
    axes = {k: v for k, v in OTHER_AXES.items() if k not in ("layers", *left_out)}
    changed = expand(request(method=["gptq", "epmq-features"], controls=["featcal"], calibration=axes))[0]
    assert plain == changed
    assert (plain.start, plain.rounding) == ("ties", None)


def test_where_there_is_no_class_token_featcals_tokens_count_alike() -> None:
    image, text = (
        expand(request(controls=["featcal"], pooled=pooled))[0].passes[0] for pooled in (True, False)
    )
    assert (image.patch_weight, image.patch_scope) == (0.01, "queries")
    assert text == replace(image, patch_weight=1.0, patch_scope="outputs")


@pytest.mark.parametrize("control", ["two-step", "regmean-gptq", "featcal-gptq"])
def test_the_second_step_of_a_control_is_the_plain_gptq_that_was_asked_for(control: str) -> None:
    axes = {"damping": 0.05, "layers": "*.mlp.*", "task_weight": "frobenius"}
    two_steps, plain = expand(request(controls=[control], calibration=axes))
    first, then = two_steps.passes
    assert first.layers == "*.mlp.*"
    assert (then,) == plain.passes
    assert (two_steps.rounding, two_steps.spec) == ("gptq", plain.spec)


def test_merge_options_are_those_of_the_merge() -> None:
    cells = expand(
        request(merge=["simple-average", "task-arithmetic", "ties"], merge_options=[{"scale": 0.5}])
    )
    assert [c.merge_options for c in cells] == [{}, {"scale": 0.5}, {"scale": 0.5, "keep": 0.2}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge": ["tie"]}, "merge 'tie' is unknown; did you mean 'ties'"),
        ({"method": ["gtpq"]}, "method 'gtpq' is unknown; did you mean 'gptq'"),
        ({"method": ["epmq-feature"]}, "did you mean 'epmq-features'"),
        ({"target": ["experts"]}, "target 'experts' is unknown; did you mean 'expert'"),
        ({"controls": ["expert"]}, "control 'expert' is unknown; did you mean 'experts'"),
        ({"bits": [1]}, "bits 1 is out of range; give 2 to 8"),
        ({"bits": [4, 9]}, "bits 9 is out of range; give 2 to 8"),
        ({"seeds": [-1]}, "seed -1 is negative"),
        ({"spec": {"group_size": 0}}, "group size 0 is not positive"),
        ({"spec": {"scale_dtype": "float"}}, "scale_dtype 'float' is unknown; did you mean 'float"),
        ({"calibration": {"source": "merge"}}, "source 'merge' is unknown; did you mean 'merged'"),
        ({"calibration": {"damping": -1.0}}, "damping -1.0 is out of range"),
        ({"merge_options": [{"keep": 0.0}]}, r"keep 0.0 is out of range; give a share in \(0, 1\]"),
        ({"merge_options": [{"scale": float("nan")}]}, "ties: scale nan is not a finite number"),
        ({"merge": ["task-arithmetic"], "merge_options": [{"keep": 0.1}]}, "keep 0.1 changes no cell"),
        ({"calibration": {"anchor": 0.1}}, "anchor 0.1 changes no cell that is asked for; leave it out"),
        ({"calibration": {"norms": "closed-form"}}, "norms 'closed-form' changes no cell"),
        ({"calibration": {"patch_scope": "queries"}}, "patch_scope 'queries' changes no cell"),
        ({"calibration": {"source": "merged", "sequential": "block"}}, "sequential 'block' changes no cell"),
        ({"method": ["epmq"], "calibration": {"mixing": 0.5}}, "mixing 0.5 changes no cell"),
        ({"merge": []}, "nothing is asked for"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        expand(request(**change))


def test_a_key_is_never_made_of_what_has_no_stable_form() -> None:
    (cell,) = expand(request())
    with pytest.raises(TypeError, match="not JSON serializable"):
        cell.key({**CONTEXT, "stray": object()})


def test_a_new_control_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    three = (Pass("expert"), Pass("expert", {"anchor": 0.5}), Pass("merged"))
    monkeypatch.setitem(CONTROLS, "mine", Recipe("mine", "three passes", three, "rtn", kind="control"))
    cell, _ = expand(request(controls=["mine"]))
    assert [each.target for each in cell.passes] == ["expert", "expert", "merged"]
    assert (cell.kind, cell.start, cell.rounding, cell.bits) == ("control", "ties", "rtn", 4)


def test_cells_are_values() -> None:
    assert replace(expand(request())[0]) == expand(request())[0]
