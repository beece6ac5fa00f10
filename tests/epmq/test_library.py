"""The library's front door against the long way (a tower, the walk, the registry), and what it refuses."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from torch import Tensor, nn
from transformers import BertConfig, BertModel, CLIPVisionModelWithProjection

import baselines
import epmq
from epmq.calibration import Calibration
from epmq.models import causal_lm, open_clip_vision, t5, transformers_vision
from epmq.models.tower import Tower
from epmq.walk import LayerReport, walk
from tests.fixtures import tiny_clip, tiny_lm, tiny_t5
from tests.fixtures.tiny_clip import State

ROOT = Path(__file__).parents[2]
TASKS = ("fruit", "birds")
SPEC = epmq.QuantSpec(bits=3, group_size=8)
FEATURES = Calibration(target="expert", mixing=0.75)  # what epmq-features stands for


def images(count: int, seed: int = 3) -> Tensor:
    side = tiny_clip.IMAGE
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def inputs() -> dict[str, Any]:
    return {"fruit": images(24, 4), "birds": images(17, 5)}


@pytest.fixture
def model() -> Any:
    return tiny_clip.model()


@pytest.fixture
def experts(model: Any) -> dict[str, State]:
    return tiny_clip.whole_experts(model, TASKS)


def long_way(
    tower: Tower,
    experts: Mapping[str, State],
    inputs: Mapping[str, Any],
    calibration: Calibration,
    rounding: str = "gptq",
    spec: epmq.QuantSpec = SPEC,
) -> tuple[list[LayerReport], list[epmq.QuantizedWeight]]:
    """Reports and quantised weights of a walk that is put together by hand; the tower is quantised."""
    solved: list[epmq.QuantizedWeight] = []

    def solve(problem: epmq.LayerProblem) -> epmq.QuantizedWeight:
        solved.append(baselines.get(rounding)(problem, spec))
        return solved[-1]

    return list(walk(tower, experts, inputs, calibration, solve)), solved


def told(report: LayerReport) -> dict[str, Any]:
    """All that a report says but how long it took, and the weight, which is compared by itself."""
    said = asdict(replace(report, solution=None))
    return {name: value for name, value in said.items() if "seconds" not in name}


def same(report: epmq.Quantised, expected: tuple[list[LayerReport], list[epmq.QuantizedWeight]]) -> bool:
    """Bit for bit: objectives, deviations, codes, scales and zero points of every layer."""
    reports, weights = expected
    assert [told(layer) for layer in report.layers] == [told(layer) for layer in reports]
    assert list(report.weights) == [layer.name for layer in reports]
    return all(
        torch.equal(getattr(ours, part), getattr(theirs, part))
        for ours, theirs in zip(report.weights.values(), weights, strict=True)
        for part in ("codes", "scale", "zero")
    )


def example() -> str:
    """The first block of Python on the page."""
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    found = re.search(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def test_the_example_of_the_page_is_the_long_way(capsys: pytest.CaptureFixture[str]) -> None:
    code, names = example(), dict[str, Any]()
    assert len(code.splitlines()) <= 25
    with torch.random.fork_rng():
        exec(code, names)
    long = CLIPVisionModelWithProjection(names["config"]).eval()
    long.load_state_dict(names["merged"])
    tower = transformers_vision.tower(long)
    bare = {task: tiny_clip.bare(state) for task, state in names["experts"].items()}
    expected = long_way(tower, bare, names["images"], FEATURES, spec=epmq.QuantSpec(bits=4))
    assert same(names["report"], expected)
    with torch.no_grad():
        found = names["model"](names["images"]["cars"]).image_embeds
        torch.testing.assert_close(found, tower(names["images"]["cars"]), rtol=1e-5, atol=1e-5)
        assert float((found - long(names["images"]["cars"]).image_embeds).abs().max()) > 1e-3
    assert capsys.readouterr().out.splitlines()[-1] == f"{names['report'].bits_per_weight:.2f} bits a weight"


@pytest.mark.parametrize("base", ["model", "tower"])
@pytest.mark.parametrize(
    ("method", "axes", "rounding"),
    [
        ("gptq", {}, "gptq"),
        ("rtn", {"target": "expert", "mixing": 0.5}, "rtn"),
        ("epmq", {"anchor": 0.02}, "gptq"),
        ("epmq-awq", {"source": "merged", "layers": "*mlp*"}, "awq"),
    ],
)
def test_a_method_by_name_is_its_rounding_on_its_axes(
    base: str, method: str, axes: dict[str, Any], rounding: str, model: Any, experts: dict[str, State]
) -> None:
    bare = {task: tiny_clip.bare(state) for task, state in experts.items()}
    calibration = Calibration(**{"target": "expert" if "epmq" in method else "merged", **axes})
    tower = transformers_vision.tower(model)
    expected = long_way(tower, bare, inputs(), calibration, rounding)
    given = model if base == "model" else transformers_vision.tower(model)
    report = epmq.quantise(given, experts, inputs(), method, SPEC, calibration=axes)
    assert same(report, expected)
    assert report.calibration == calibration
    bits = sum(x.packed_bits for x in expected[1]) / sum(x.codes.numel() for x in expected[1])
    assert report.bits_per_weight == pytest.approx(bits)
    parts = transformers_vision.tower(given) if base == "model" else given
    for name, parameter in tower.merged_parameters().items():
        assert torch.equal(parts.merged_parameters()[name], parameter), name


def test_a_whole_calibration_serves_a_function(model: Any, experts: dict[str, State]) -> None:
    calibration = Calibration(target="expert", mixing=1.0, anchor=0.1, task_weight="frobenius")
    by_name = epmq.quantise(
        copy.deepcopy(model),
        experts,
        inputs(),
        "gptq",
        SPEC,
        calibration={"target": "expert", "mixing": 1.0, "anchor": 0.1, "task_weight": "frobenius"},
    )
    report = epmq.quantise(model, experts, inputs(), baselines.get("gptq"), SPEC, calibration=calibration)
    assert same(report, (list(by_name.layers), list(by_name.weights.values())))


def test_merging_on_the_way_is_merging_before(model: Any, experts: dict[str, State]) -> None:
    """Of all tensors that are merged: TIES keeps a share of them together."""
    bare = {task: tiny_clip.bare(state) for task, state in experts.items()}
    base, options = tiny_clip.bare(tiny_clip.tensors(model)), {"scale": 0.5, "keep": 0.9}
    tower = transformers_vision.tower(model)
    tower.load_all(epmq.merge("ties", base, list(bare.values()), **options))
    expected = long_way(tower, bare, inputs(), Calibration())
    report = epmq.quantise(model, experts, inputs(), "gptq", SPEC, merge="ties", merge_options=options)
    assert same(report, expected)
    now = tiny_clip.bare(tiny_clip.tensors(model))
    assert all(torch.equal(now[name], parameter) for name, parameter in tower.merged_parameters().items())


def test_a_tied_tensor_counts_in_ties_as_often_as_it_is_listed() -> None:
    built = tiny_t5.tiny_t5(tied=True)
    states = tiny_t5.experts(built, list(TASKS))
    batches = {task: tiny_t5.batch(i, 6) for i, task in enumerate(TASKS)}
    tower = t5.tower(copy.deepcopy(built))
    base = {name: p.clone() for name, p in tower.merged_parameters().items()}
    merged = epmq.merge("ties", base, list(states.values()), keep=0.3, multiplicity={"shared.weight": 4})
    expected = long_way(tower.load_all(merged), states, {t: [x] for t, x in batches.items()}, Calibration())
    report = epmq.quantise(built, states, batches, "gptq", SPEC, merge="ties", merge_options={"keep": 0.3})
    assert same(report, expected)


@pytest.mark.parametrize("given", [True, False], ids=["base given", "merged on the way"])
def test_the_anchors_point_is_between_the_model_and_its_base(
    given: bool, model: Any, experts: dict[str, State]
) -> None:
    bare = {task: tiny_clip.bare(state) for task, state in experts.items()}
    base = tiny_clip.bare(tiny_clip.tensors(model))
    axes: dict[str, Any] = {"anchor_point": 2.0, "anchor": 0.1}
    tower = transformers_vision.tower(model)
    tower.load_all(epmq.merge("task-arithmetic", base, list(bare.values())))
    solved: list[epmq.QuantizedWeight] = []

    def solve(problem: epmq.LayerProblem) -> epmq.QuantizedWeight:
        solved.append(baselines.get("gptq")(problem, SPEC))
        return solved[-1]

    merged = copy.deepcopy(tower)
    reports = list(walk(tower, bare, inputs(), Calibration("expert", **axes), solve, base=base))
    asked: dict[str, Any] = {"base": model} if given else {"merge": "task-arithmetic"}
    start = merged if given else model
    report = epmq.quantise(start, bare, inputs(), "epmq", SPEC, calibration=axes, **asked)
    assert same(report, (reports, solved))


def test_open_clip_models_are_quantised(model: Any, experts: dict[str, State]) -> None:
    whole = CLIP(**copy.deepcopy(tiny_clip.OPEN_CLIP)).eval()
    whole.load_state_dict(tiny_clip.as_open_clip(tiny_clip.tensors(model)), strict=False)
    states = {task: tiny_clip.as_open_clip(state) for task, state in experts.items()}
    visual = {
        task: {k.removeprefix("visual."): x for k, x in state.items() if k.startswith("visual.")}
        for task, state in states.items()
    }
    tower = open_clip_vision.tower(whole.visual)
    expected = long_way(tower, visual, inputs(), FEATURES)
    alone = copy.deepcopy(whole.visual)
    text = whole.token_embedding.weight.clone()
    for given in (whole, alone):
        assert same(epmq.quantise(given, states, inputs(), "epmq-features", SPEC), expected)
    with torch.no_grad():
        for found in (whole.visual(images(5)), alone(images(5))):
            torch.testing.assert_close(found, tower(images(5)), rtol=1e-5, atol=1e-5)
    assert torch.equal(whole.token_embedding.weight, text)


@pytest.mark.parametrize("family", ["llama", "tied llama", "tied t5", "t5"])
def test_language_models_are_quantised(family: str) -> None:
    kind: Any = tiny_t5 if "t5" in family else tiny_lm
    adapter = t5.tower if "t5" in family else causal_lm.tower
    built = tiny_t5.tiny_t5(tied="tied" in family) if "t5" in family else tiny_lm.tiny_lm(family)
    built.train().requires_grad_(True)
    found = kind.experts(built, list(TASKS))
    batches = {task: [kind.batch(10 * i + k, 6) for k in range(2)] for i, task in enumerate(TASKS)}
    other = copy.deepcopy(built)
    expected = long_way(adapter(other), found, batches, FEATURES)
    assert same(epmq.quantise(built, found, batches, "epmq-features", SPEC), expected)
    for name, parameter in other.named_parameters():
        assert torch.equal(built.get_parameter(name), parameter), name
    assert built.training
    assert all(parameter.requires_grad for parameter in built.parameters())


def test_models_serve_as_experts_and_one_mapping_as_inputs() -> None:
    built = tiny_lm.tiny_lm()
    states = tiny_lm.experts(built, list(TASKS))
    whole = {task: tiny_lm.batch(i, 6) for i, task in enumerate(TASKS)}
    models = {}
    for task, state in states.items():
        models[task] = copy.deepcopy(built)
        models[task].load_state_dict(state)
    batches = {
        task: [{k: v[:4] for k, v in x.items()}, {k: v[4:] for k, v in x.items()}]
        for task, x in whole.items()
    }
    expected = long_way(causal_lm.tower(copy.deepcopy(built)), states, batches, Calibration())
    backwards = {task: whole[task] for task in reversed(TASKS)}
    assert same(epmq.quantise(built, models, backwards, "gptq", SPEC, batch_size=4), expected)


def dense(problem: epmq.LayerProblem, spec: epmq.QuantSpec) -> Tensor:
    return problem.centre


def nans(x: Tensor) -> Tensor:
    return torch.full_like(x, torch.nan)


def bert() -> Any:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return BertModel(BertConfig(vocab_size=16, **sizes))


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(method="gptqq"), "method 'gptqq' is unknown; did you mean 'gptq'"),
        (lambda a: a.update(method="gpt*"), r"method 'gpt\*' is unknown"),
        (lambda a: a.update(method=3), "method is a int; give a name, or a function"),
        (lambda a: a.update(method=dense), "method returned a Tensor, expected a QuantizedWeight of shape"),
        (lambda a: a.update(spec=4), r"spec is a int; give a QuantSpec, as QuantSpec\(bits=4\)"),
        (lambda a: a.update(spec=epmq.QuantSpec(4, 7)), "group size 7 does not divide a layer's 16 input"),
        (
            lambda a: a.update(calibration={"ankor": 1}),
            "calibration axis 'ankor' is unknown; did you mean 'an",
        ),
        (lambda a: a.update(calibration={"anchor": -1.0}), "anchor -1.0 is out of range"),
        (lambda a: a.update(calibration={"target": "merged"}), "target 'merged' changes nothing in 'epmq'"),
        (lambda a: a.update(calibration={"mixing": 0.5}), "mixing 0.5 changes nothing in 'epmq'"),
        (lambda a: a.update(calibration=Calibration()), "method 'epmq' has a calibration of its own"),
        (lambda a: a.update(calibration="expert"), "calibration is a str; give axes by name"),
        (lambda a: a.update(calibration={"layers": "x*"}), r"layers 'x\*' matches no layer; the first is"),
        (lambda a: a.update(method="gptq", calibration={"target": "both"}), "target 'both' is unknown"),
        (
            lambda a: a.update(calibration={"anchor_point": 2.0}),
            "anchor_point 2.0 needs the base model's wei",
        ),
        (lambda a: a.update(calibration={"norms": "on"}), "norms 'on' is unknown"),
        (lambda a: a.update(base=a["model"]), "base changes nothing where anchor_point is 1; leave it out"),
        (
            lambda a: a.update(calibration={"anchor_point": 2.0}, base={"w": images(1)}),
            "base: no tensor is named like",
        ),
        (lambda a: a.update(merge="tyes"), "merge 'tyes' is unknown; did you mean 'ties'"),
        (
            lambda a: a.update(merge="ties", merge_options={"scal": 1}),
            "option of ties 'scal' is unknown; did",
        ),
        (lambda a: a.update(merge_options={"scale": 1}), "merge_options without a merge change nothing"),
        (lambda a: a.update(batch_size=0), "batch_size 0 is out of range; give 1 or more"),
        (lambda a: a.update(model=nn.Linear(2, 2)), "model Linear is not supported; need a Tower, a CLIP"),
        (lambda a: a.update(model=bert()), "model BertModel is not supported"),
        (lambda a: a["model"].half(), "is torch.float16, expected float32; call model.float()"),
        (lambda a: a.update(experts=list(a["experts"])), "experts is a list; give a mapping from tasks"),
        (
            lambda a: a["experts"].pop("fruit"),
            r"experts are of tasks \['birds'\], inputs of \['birds', 'fruit'\]",
        ),
        (lambda a: a.update(experts={}, inputs={}), r"experts are of tasks \[\], inputs of \[\]"),
        (
            lambda a: a["experts"].update(birds="models/birds"),
            "expert of 'birds' is a str, expected a state dict",
        ),
        (lambda a: a["experts"].update(birds={"w": images(1)}), "expert of 'birds': no tensor is named like"),
        (
            lambda a: a["experts"]["birds"].popitem(),
            "expert of 'birds' has no tensor 'post_layernorm.weight'",
        ),
        (
            lambda a: a["experts"]["birds"].update({"post_layernorm.weight": images(1)}),
            r"is \(1, 3, 16, 16\), the",
        ),
        (
            lambda a: a["experts"]["birds"].update({"post_layernorm.weight": nans(torch.ones(16))}),
            "holds NaN or In",
        ),
        (
            lambda a: a["inputs"].update(birds=images(0)),
            "inputs of 'birds' hold no sample; give at least one",
        ),
        (lambda a: a["inputs"].update(birds=[]), "inputs of 'birds' hold no sample"),
        (lambda a: a["inputs"].update(birds=3), "inputs of 'birds' are a int; give a tensor"),
        (
            lambda a: a["inputs"].update(birds=images(4)[:, :2]),
            "inputs of 'birds' cannot be read by the model",
        ),
        (lambda a: a["inputs"].update(birds=["a crow"]), "inputs of 'birds' cannot be read by the model"),
        (
            lambda a: a["inputs"].update(birds=nans(images(4))),
            "inputs of 'birds' give NaN or Inf in the model",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_the_model(
    change: Change, message: str, model: Any, experts: dict[str, State]
) -> None:
    bare = {task: tiny_clip.bare(x) for task, x in experts.items()}
    for state in bare.values():  # the last is the one that a case takes out
        state["post_layernorm.weight"] = state.pop("post_layernorm.weight")
    arguments = {"model": model, "experts": bare, "inputs": inputs(), "method": "epmq", "spec": SPEC}
    change(arguments)
    before = tiny_clip.tensors(model)
    with pytest.raises(epmq.UserError, match=message) as caught:
        epmq.quantise(**arguments)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_every_name_is_there_and_says_what_it_is() -> None:
    assert set(epmq.__all__) <= set(dir(epmq))
    for name in epmq.__all__:
        assert inspect.getdoc(getattr(epmq, name)), name
        assert not inspect.ismodule(getattr(epmq, name)), name
    with pytest.raises(AttributeError, match="module 'epmq' has no attribute 'quantize'"):
        epmq.quantize  # noqa: B018
    assert (ROOT / "epmq" / "py.typed").is_file()
