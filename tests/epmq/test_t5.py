"""The T5 adapter computes what transformers computes, and the walk treats its layers as any others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5EncoderModel,
)

import baselines
from epmq.calibration import Calibration
from epmq.errors import UserError
from epmq.layer.problem import LayerProblem
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight
from epmq.models.layers import layer_groups
from epmq.models.t5 import TIED, tower
from epmq.walk import LayerReport, centre, walk
from tests.fixtures.tiny_t5 import SIZES, TinyT5, batch, copied, experts, tiny_t5, tiny_t5_setting, weights

__all__ = ["tiny_t5_setting"]
KINDS: dict[str, dict[str, Any]] = {
    "flan": {},
    "first t5": {"tied": True, "feed_forward_proj": "relu"},
    "t5 1.1 scaled": {"feed_forward_proj": "gated-gelu", "num_layers": 1, "num_decoder_layers": 1},
}


def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**inputs, use_cache=False).logits
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding", [0, 7])
def test_the_tower_gives_the_model_s_own_logits_exactly(kind: str, padding: int) -> None:
    model, inputs = tiny_t5(**KINDS[kind]), batch(1, 5, padding)
    counts = inputs["decoder_attention_mask"].bool()
    with torch.no_grad():
        found = tower(model)(inputs)
    assert torch.equal(found[counts], logits(model, inputs)[counts])


def test_other_attention_kernels_agree_to_rounding() -> None:
    model, inputs = tiny_t5(attention="sdpa"), batch(1, 5)
    counts = inputs["decoder_attention_mask"].bool()
    with torch.no_grad():
        torch.testing.assert_close(tower(model)(inputs)[counts], logits(model, inputs)[counts])


def test_a_tied_output_layer_is_the_embedding_and_scaled(tiny_t5_setting: TinyT5) -> None:
    built = tower(tiny_t5(tied=True))
    assert built.get_parameter("head.lm_head.weight") is built.get_parameter("stem.shared.weight")
    assert built.multiplicity == {"shared.weight": 4}
    assert built.outer == ("stem.shared",)
    assert tiny_t5_setting.tower.multiplicity == {"shared.weight": 3}


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_names_are_those_of_the_state_dict(kind: str) -> None:
    model = tiny_t5(**KINDS[kind])
    built = tower(model)
    expected = {k: v.shape for k, v in model.state_dict().items() if k not in TIED}
    if "tied" in KINDS[kind]:
        expected.pop("lm_head.weight")
    assert {built.keys[name]: p.shape for name, p in built.named_parameters()} == expected


def test_the_whole_model_is_no_part_of_the_tower_and_a_copy_has_its_own() -> None:
    built = tower(tiny_t5())
    assert not [name for name in built.state_dict() if name.startswith(("model", "_whole"))]
    copied = copy.deepcopy(built)
    assert copied.model is not built.model
    assert copied.model.shared.weight is copied.get_parameter("stem.shared.weight")


def test_loading_a_checkpoint_fills_the_model_itself(tiny_t5_setting: TinyT5) -> None:
    made, inputs = tiny_t5_setting, batch(3, 4)
    other = tiny_t5(seed=5)
    made.tower.load_all(weights(other))
    assert torch.equal(logits(made.model, inputs), logits(other, inputs))


def test_position_bias_is_computed_once_for_each_stack(tiny_t5_setting: TinyT5) -> None:
    made, calls = tiny_t5_setting, list[tuple[int, ...]]()
    for block in [*made.model.encoder.block, *made.model.decoder.block]:
        attention = block.layer[0].SelfAttention
        kept = attention.compute_bias

        def counted(*sizes: int, kept: Callable[..., Tensor] = kept) -> Tensor:
            calls.append(sizes)
            return kept(*sizes)

        attention.compute_bias = counted
    made.tower(batch(1, 3))
    assert calls == [(9, 9), (5, 5)]


def problems(made: TinyT5, calibration: Calibration) -> tuple[list[LayerReport], list[LayerProblem]]:
    """Reports and problems of a walk that leaves the weights as they are."""
    posed: list[LayerProblem] = []

    def solve(problem: LayerProblem) -> Tensor:
        posed.append(problem)
        return problem.reference

    return list(walk(made.tower, made.experts, made.inputs, calibration, solve)), posed


def seen_by_the_model(made: TinyT5, path: str) -> Tensor:
    """Inputs of a linear layer in transformers' own forward passes, without padding, over one task."""
    parts: list[Tensor] = []
    for inputs in made.inputs["first"]:
        source = path.startswith("encoder") or path.endswith(("EncDecAttention.k", "EncDecAttention.v"))
        counts = inputs["attention_mask" if source else "decoder_attention_mask"].bool()

        def hook(_: Any, args: tuple[Tensor, ...], counts: Tensor = counts) -> None:
            parts.append(args[0][counts])

        handle = made.model.get_submodule(path).register_forward_pre_hook(hook)
        logits(made.model, inputs)
        handle.remove()
    return torch.cat(parts).double()


def test_every_gram_is_that_of_the_model_s_own_layer_inputs(tiny_t5_setting: TinyT5) -> None:
    made = tiny_t5_setting
    made.experts, made.inputs = ({"first": x["first"]} for x in (made.experts, made.inputs))  # type: ignore[assignment]
    reports, posed = problems(made, Calibration(source="merged", damping=0.0))
    for report, problem in zip(reports, posed, strict=True):
        part, first = report.name.split("+")[0].split(".block.", 1)
        number = int(part.rpartition(".")[2])
        stack, index = ("encoder", number) if number < 2 else ("decoder", number - 2)
        x = seen_by_the_model(made, f"{stack}.block.{index}.{first}")
        gram = x.T @ x / len(x)
        torch.testing.assert_close(problem.hessian, gram, rtol=1e-5, atol=1e-5 * float(gram.abs().max()))


def test_stacked_layers_are_q_k_v_of_self_attention_and_k_v_of_cross_attention(
    tiny_t5_setting: TinyT5,
) -> None:
    names = [name.split(".block.", 1)[1] for name in layer_groups(tiny_t5_setting.tower)]
    attention = "layer.0.SelfAttention"
    cross = "layer.1.EncDecAttention"
    own = [f"{attention}.q+block.{attention}.k+block.{attention}.v", f"{attention}.o"]
    outer = [f"{cross}.q", f"{cross}.k+block.{cross}.v", f"{cross}.o"]

    def inside(i: int) -> list[str]:
        dense = f"layer.{i}.DenseReluDense"
        return [f"{dense}.wi_0+block.{dense}.wi_1", f"{dense}.wo"]

    assert names == 2 * [*own, *inside(1)] + 3 * [*own, *outer, *inside(2)]


@pytest.mark.parametrize("source", ["merged", "quantised", "expert"])
def test_padding_counts_in_no_gram(tiny_t5_setting: TinyT5, source: Any) -> None:
    made = tiny_t5_setting
    padded = copied(made)
    padded.inputs = {
        task: [batch(10 * i + k, 6, padding=135) for k in range(2)] for i, task in enumerate(made.inputs)
    }
    assert padded.inputs["first"][0]["input_ids"].shape == (6, 144)  # beyond all relative positions
    calibration = Calibration("expert", source=source, mixing=0.5)
    for a, b in zip(problems(made, calibration)[1], problems(padded, calibration)[1], strict=True):
        torch.testing.assert_close(a.hessian, b.hessian, rtol=1e-5, atol=1e-6 * float(a.hessian.abs().max()))
        torch.testing.assert_close(a.centre, b.centre, rtol=1e-4, atol=1e-4 * float(a.centre.abs().max()))


@pytest.mark.parametrize("source", ["merged", "quantised"])
def test_a_walk_in_full_precision_reproduces_the_model_s_output_exactly(
    tiny_t5_setting: TinyT5, source: Any
) -> None:
    made, inputs = tiny_t5_setting, batch(7, 5)
    before = logits(made.model, inputs)
    for _ in walk(made.tower, made.experts, made.inputs, Calibration(source=source), centre):
        pass
    assert torch.equal(logits(made.model, inputs), before)


def rounded(made: TinyT5, calibration: Calibration, method: str = "gptq") -> list[QuantizedWeight]:
    """What a walk's rounding returned, layer by layer."""
    found: list[QuantizedWeight] = []

    def solve(problem: LayerProblem) -> QuantizedWeight:
        found.append(baselines.get(method)(problem, QuantSpec(3)))
        return found[-1]

    for _ in walk(made.tower, made.experts, made.inputs, calibration, solve):
        pass
    return found


@pytest.mark.parametrize("mixing", [0.0, 1.0])
def test_experts_that_all_equal_the_merged_model_give_gptq_s_codes(
    tiny_t5_setting: TinyT5, mixing: float
) -> None:
    made = tiny_t5_setting
    made.experts = {task: weights(made.model) for task in made.experts}
    plain = rounded(copied(made), Calibration(source="merged", damping=0.01))
    guided = rounded(
        copied(made), Calibration("expert", source="merged", mixing=mixing, anchor=0.004, damping=0.006)
    )
    assert len(plain) == 2 * 4 + 3 * 7
    for a, b in zip(plain, guided, strict=True):
        assert torch.equal(a.codes, b.codes)
        torch.testing.assert_close(a.scale, b.scale, rtol=1e-5, atol=0)


def test_expert_centres_are_regmean_s_without_an_anchor(tiny_t5_setting: TinyT5) -> None:
    made = tiny_t5_setting
    reports, posed = problems(made, Calibration("expert", source="merged", anchor=0.0))
    name = next(r.name for r in reports if r.name.endswith("DenseReluDense.wo"))
    at = [r.name for r in reports].index(name)
    key = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
    grams = []
    for task in made.inputs:
        only = copied(made)
        only.experts, only.inputs = {task: made.experts[task]}, {task: made.inputs[task]}
        grams.append(problems(only, Calibration(source="merged", damping=0.0))[1][at].hessian)
    targets = sum(made.experts[t][key].double() @ g for t, g in zip(made.inputs, grams, strict=True))
    assert isinstance(targets, Tensor)
    expected = torch.linalg.solve(sum(grams), targets, left=False)
    torch.testing.assert_close(posed[at].centre, expected, rtol=1e-6, atol=1e-8)


def test_the_output_layer_and_the_embedding_are_quantised_only_when_named(tiny_t5_setting: TinyT5) -> None:
    made = tiny_t5_setting
    before = weights(made.model)
    rounded(made, Calibration())
    for name in ("lm_head.weight", "shared.weight"):
        assert torch.equal(weights(made.model)[name], before[name])
    found = rounded(copied(made), Calibration(layers="*,stem.shared,head.lm_head"))
    assert len(found) == 2 * 4 + 3 * 7 + 2
    assert [tuple(x.codes.shape) for x in (found[0], found[-1])] == [(40, 16), (40, 16)]
    only = copied(made)
    reports = list(
        walk(
            only.tower, only.experts, only.inputs, Calibration(layers="head.*"), lambda p: p.reference.round()
        )
    )
    assert [r.name for r in reports] == ["head.lm_head"]
    assert torch.equal(weights(only.model)["lm_head.weight"], before["lm_head.weight"].round())


def test_a_quantised_embedding_is_on_its_grid_and_used_by_both_stacks(tiny_t5_setting: TinyT5) -> None:
    made = tiny_t5_setting
    (found,) = rounded(made, Calibration(layers="stem.shared"), "rtn")
    assert torch.equal(made.model.shared.weight, found.dequantize())
    assert made.model.encoder.embed_tokens.weight is made.model.shared.weight


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)), "LlamaForCausalLM (decoder-only, type 'llama')"),
        (lambda: GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=16)), "decoder-only"),
        (lambda: T5EncoderModel(T5Config(**SIZES)), "T5EncoderModel"),
    ],
    ids=["llama", "gpt2", "encoder"],
)
def test_other_models_are_refused_by_name(make: Callable[[], Any], said: str) -> None:
    with torch.random.fork_rng(), pytest.raises(UserError, match="need a T5 model") as caught:
        tower(make())
    assert said in str(caught.value)


LLAMA: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def test_experts_move_the_output_layer_too_when_it_is_named(tiny_t5_setting: TinyT5) -> None:
    made = tiny_t5_setting
    made.experts = experts(made.model, list(made.inputs), spread=0.5)
    before = weights(made.model)["lm_head.weight"]
    for _ in walk(
        made.tower, made.experts, made.inputs, Calibration("expert", layers="head.lm_head"), centre
    ):
        pass
    assert not torch.equal(weights(made.model)["lm_head.weight"], before)
