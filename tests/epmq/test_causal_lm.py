"""The adapter of causal language models computes what transformers computes, and is walked like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)

import baselines
from epmq.calibration import Calibration
from epmq.errors import UserError
from epmq.layer.problem import LayerProblem
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight
from epmq.models.causal_lm import EMBEDDING, OUTPUT, tower
from epmq.models.layers import layer_groups
from epmq.walk import LayerReport, centre, walk
from tests.fixtures.tiny_lm import FAMILIES, TinyLm, batch, copied, setting, tiny_lm, weights


def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**inputs, use_cache=False).logits
    return found


def of_tower(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found: Tensor = tower(model)(inputs)
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "inputs", [batch(1, 5), batch(1, 5, padding=7), batch(1, 5, uneven=False)], ids=["uneven", "long", "even"]
)
def test_the_tower_gives_the_models_own_logits_exactly(
    family: str, attention: str, inputs: dict[str, Tensor]
) -> None:
    model = tiny_lm(family, attention)
    assert model.config._attn_implementation == attention
    counts = inputs["attention_mask"].bool()
    found = of_tower(model, inputs)
    assert torch.equal(found[counts], logits(model, inputs)[counts])
    assert float(found[counts].std()) > 0.1


@pytest.mark.parametrize("family", ["mistral, sliding", "qwen2, one layer sliding"])
def test_a_sliding_window_hides_what_is_far_back(family: str) -> None:
    """The same weights without a window compute something else, so the windows above were put to use."""
    inputs = batch(1, 5, uneven=False)
    with_window = tiny_lm(family)
    without = tiny_lm(family.partition(",")[0])
    without.load_state_dict(with_window.state_dict())
    difference = (of_tower(with_window, inputs) - of_tower(without, inputs)).abs().amax((0, 2))
    assert float(difference[:3].max()) == 0
    assert float(difference[4:].min()) > 1e-3


def test_scaled_rotary_embeddings_are_the_models() -> None:
    model, inputs = tiny_lm(rope_scaling={"rope_type": "linear", "factor": 4.0}), batch(1, 5)
    counts = inputs["attention_mask"].bool()
    assert torch.equal(of_tower(model, inputs)[counts], logits(model, inputs)[counts])
    assert not torch.equal(of_tower(model, inputs), of_tower(tiny_lm(), inputs))


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpoint_names_are_those_of_the_state_dict(family: str) -> None:
    model = tiny_lm(family)
    built = tower(model)
    named = {built.keys[name]: p.shape for name, p in built.named_parameters()}
    assert named == {name: x.shape for name, x in weights(model).items()}
    assert built.shared == frozenset()


def test_a_tied_output_layer_is_the_embedding() -> None:
    tied, own = tower(tiny_lm("tied llama")), tower(tiny_lm())
    assert tied.get_parameter("head.lm_head.weight") is tied.get_parameter("stem.embed_tokens.weight")
    assert (tied.tied, tied.outer) == ({EMBEDDING: (OUTPUT,)}, ("stem.embed_tokens",))
    assert (own.tied, own.outer) == ({}, ("stem.embed_tokens", "head.lm_head"))
    assert OUTPUT not in tied.merged_parameters()


@pytest.mark.parametrize("family", ["llama", "tied llama"])
def test_loading_a_checkpoint_fills_the_model_itself(family: str) -> None:
    model, other, inputs = tiny_lm(family), tiny_lm(family, seed=5), batch(3, 4)
    tower(model).load_all(weights(other))
    assert torch.equal(logits(model, inputs), logits(other, inputs))


def problems(made: TinyLm, calibration: Calibration) -> tuple[list[LayerReport], list[LayerProblem]]:
    """Reports and problems of a walk that leaves the weights as they are."""
    posed: list[LayerProblem] = []

    def solve(problem: LayerProblem) -> Tensor:
        posed.append(problem)
        return problem.reference

    return list(walk(made.tower, made.experts, made.inputs, calibration, solve)), posed


def test_layers_that_read_one_input_share_a_problem() -> None:
    inside = ["self_attn.{}".format("_proj+self_attn.".join("qkv") + "_proj"), "self_attn.o_proj"]
    inside += ["mlp.gate_proj+mlp.up_proj", "mlp.down_proj"]
    expected = [f"blocks.{i}.{name}" for i in range(2) for name in inside]
    assert list(layer_groups(setting().tower)) == expected


def read_by(layer: Any, model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """What a layer reads in transformers' own forward pass, without padding."""
    read: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    logits(model, inputs)
    handle.remove()
    return read[0][inputs["attention_mask"].bool()]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_every_gram_is_that_of_the_models_own_layer_inputs(family: str) -> None:
    made = setting(family)
    made.experts, made.inputs = {"first": made.experts["first"]}, {"first": made.inputs["first"]}
    reports, posed = problems(made, Calibration(source="merged", damping=0.0))
    for report, problem in zip(reports, posed, strict=True):
        layer = made.model.get_submodule(report.name.split("+")[0].replace("blocks.", "model.layers."))
        x = torch.cat([read_by(layer, made.model, inputs) for inputs in made.inputs["first"]]).double()
        assert len(x) == sum(int(inputs["attention_mask"].sum()) for inputs in made.inputs["first"])
        gram = x.T @ x / len(x)
        torch.testing.assert_close(problem.hessian, gram, rtol=1e-5, atol=1e-5 * float(gram.abs().max()))


@pytest.mark.parametrize("source", ["merged", "quantised", "expert"])
def test_padding_counts_in_no_gram(source: Any) -> None:
    made = setting()
    padded = copied(made)
    padded.inputs = {
        task: [batch(10 * i + k, 6, padding=50) for k in range(2)] for i, task in enumerate(made.inputs)
    }
    assert padded.inputs["first"][0]["input_ids"].shape == (6, 59)
    calibration = Calibration("expert", source=source, mixing=0.5)
    for a, b in zip(problems(made, calibration)[1], problems(padded, calibration)[1], strict=True):
        torch.testing.assert_close(a.hessian, b.hessian, rtol=1e-5, atol=1e-6 * float(a.hessian.abs().max()))
        torch.testing.assert_close(a.centre, b.centre, rtol=1e-4, atol=1e-4 * float(a.centre.abs().max()))


@pytest.mark.parametrize("family", ["llama with biases", "tied llama", "qwen3"])
@pytest.mark.parametrize("source", ["merged", "quantised"])
def test_a_walk_in_full_precision_leaves_the_models_logits(family: str, source: Any) -> None:
    made, inputs = setting(family), batch(7, 5)
    before = logits(made.model, inputs)
    for _ in walk(made.tower, made.experts, made.inputs, Calibration(source=source), centre):
        pass
    torch.testing.assert_close(logits(made.model, inputs), before)


def rounded(made: TinyLm, calibration: Calibration, bits: int = 3) -> list[QuantizedWeight]:
    """What GPTQ returned, layer by layer."""
    found: list[QuantizedWeight] = []

    def solve(problem: LayerProblem) -> QuantizedWeight:
        found.append(baselines.get("gptq")(problem, QuantSpec(bits)))
        return found[-1]

    for _ in walk(made.tower, made.experts, made.inputs, calibration, solve):
        pass
    return found


@pytest.mark.parametrize("mixing", [0.0, 1.0])
@pytest.mark.parametrize("family", ["llama", "tied llama", "qwen2"])
def test_experts_that_all_equal_the_merged_model_give_gptqs_codes(family: str, mixing: float) -> None:
    made = setting(family)
    made.experts = {task: weights(made.model) for task in made.experts}
    plain = rounded(copied(made), Calibration(source="merged", damping=0.01))
    guided = rounded(
        copied(made), Calibration("expert", source="merged", mixing=mixing, anchor=0.004, damping=0.006)
    )
    assert len(plain) == 2 * 4
    for a, b in zip(plain, guided, strict=True):
        assert torch.equal(a.codes, b.codes)
        torch.testing.assert_close(a.scale, b.scale, rtol=1e-5, atol=0)


def test_experts_of_their_own_give_other_codes() -> None:
    made = setting()
    plain = rounded(copied(made), Calibration(source="merged"))
    guided = rounded(copied(made), Calibration("expert", source="merged"))
    assert not all(torch.equal(a.codes, b.codes) for a, b in zip(plain, guided, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_quantising_the_tower_quantises_the_model_which_loads_as_it_was_saved(
    family: str, tmp_path: Path
) -> None:
    made, inputs = setting(family), batch(7, 5)
    before, start = logits(made.model, inputs), weights(made.model)
    found = rounded(made, Calibration("expert"))
    after, end = logits(made.model, inputs), weights(made.model)
    assert float((after - before).abs().max()) > 1e-2
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert changed == {n for n in start if n.endswith("_proj.weight")}
    queries = end["model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(queries, found[0].dequantize()[: len(queries)])
    made.model.save_pretrained(tmp_path)
    loaded = type(made.model).from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert torch.equal(logits(loaded, inputs), after)


def test_generation_goes_through_the_quantised_weights() -> None:
    made = setting()
    rounded(made, Calibration("expert"), bits=2)
    prompt = batch(7, 1, uneven=False)
    said = made.model.generate(**prompt, max_new_tokens=6, do_sample=False, eos_token_id=None)
    ids = prompt["input_ids"]
    for _ in range(6):
        found = of_tower(made.model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        ids = torch.cat([ids, found[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(said, ids)


def test_embedding_and_output_layer_are_quantised_only_when_named() -> None:
    made = setting()
    before = weights(made.model)
    found = rounded(made, Calibration(layers="*,stem.embed_tokens,head.lm_head"))
    assert [tuple(x.codes.shape) for x in (found[0], found[-1])] == [(40, 16), (40, 16)]
    assert torch.equal(weights(made.model)[EMBEDDING], found[0].dequantize())
    assert torch.equal(weights(made.model)[OUTPUT], found[-1].dequantize())
    other = setting()
    rounded(other, Calibration())
    assert all(torch.equal(weights(other.model)[name], before[name]) for name in (EMBEDDING, OUTPUT))


@pytest.mark.keeps_rng
def test_making_a_tower_draws_no_random_number() -> None:
    of_tower(tiny_lm(), batch(1, 2))


GPT2 = {"n_embd": 8, "n_head": 2, "n_layer": 1, "vocab_size": 16}
GEMMA = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
T5 = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 16}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GPT2LMHeadModel(GPT2Config(**GPT2)), "GPT2LMHeadModel (type 'gpt2')"),
        (
            lambda: GemmaForCausalLM(GemmaConfig(**GEMMA, vocab_size=16, head_dim=4)),
            "GemmaForCausalLM (type 'gemma')",
        ),
        (lambda: T5ForConditionalGeneration(T5Config(**T5)), "T5ForConditionalGeneration (type 't5')"),
        (lambda: LlamaModel(tiny_lm().config), "LlamaModel (type 'llama')"),
    ],
    ids=["gpt2", "gemma", "t5", "no output layer"],
)
def test_other_models_are_refused_by_name(make: Callable[[], Any], said: str) -> None:
    with torch.random.fork_rng(), pytest.raises(UserError, match="of type llama, mistral, qwen2, qwen3") as e:
        tower(make())
    assert said in str(e.value)


def test_other_kinds_of_attention_are_refused() -> None:
    model = tiny_lm()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(UserError, match="computes attention by 'flex_attention'; load it with attn_impl"):
        tower(model)
