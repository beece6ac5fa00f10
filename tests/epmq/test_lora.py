"""LoRA experts: merged tensors compute W x + s B A x; what is no plain sum is refused by its field."""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from epmq.checkpoints.lazy import LazyCheckpoint, check_expert
from epmq.checkpoints.lora import CONFIG, PICKLED, PREFIX, SAFE, lora_merged
from epmq.errors import UserError
from epmq.merging import merge

State = dict[str, Tensor]
RANK, ALPHA = 3, 5
Q, EMBEDDING = "layer.q_proj.weight", "model.embed_tokens.weight"


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


BASE: State = {
    Q: numbers(6, 4),
    "layer.v_proj.weight": numbers(2, 4).half(),
    "layer.norm.weight": numbers(4),
    EMBEDDING: numbers(9, 4),
    "lm_head.weight": numbers(9, 4, seed=1),
    "layer.position_ids": torch.arange(3),
}


def pair(module: str, rank: int = RANK, shape: tuple[int, int] | None = None) -> State:
    out, columns = shape or BASE[f"{module}.weight"].shape
    where = f"{PREFIX}{module}.lora_"
    return {f"{where}A.weight": numbers(rank, columns), f"{where}B.weight": numbers(out, rank)}


def write(folder: Path, tensors: State, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    stated = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", **config}
    (folder / CONFIG).write_text(json.dumps(stated))
    save_file(tensors, folder / SAFE)
    return folder


def product(tensors: State, module: str) -> Tensor:
    """B A, entry by entry."""
    a, b = (tensors[f"{PREFIX}{module}.lora_{side}.weight"] for side in "AB")
    return torch.einsum("or,rc->oc", b, a)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, ALPHA / RANK),
        ({"use_rslora": True}, ALPHA / math.sqrt(RANK)),
        ({"alpha_pattern": {"q_proj": 7}}, 7 / RANK),
        ({"alpha_pattern": {"proj": 7}}, ALPHA / RANK),  # a pattern matches whole parts of a path
        ({"alpha_pattern": {"layer.[a-q]_proj": 0}}, 0),
        ({"r": 64, "rank_pattern": {"layer.q_proj": RANK}}, ALPHA / RANK),
    ],
    ids=str,
)
def test_the_factor_of_the_product(config: dict[str, Any], scale: float, tmp_path: Path) -> None:
    tensors = pair("layer.q_proj")
    merged = lora_merged(BASE, write(tmp_path, tensors, **config))
    torch.testing.assert_close(merged[Q], BASE[Q] + scale * product(tensors, "layer.q_proj"))
    assert merged.changed == {Q}


def test_other_tensors_are_the_bases_own(tmp_path: Path) -> None:
    merged = lora_merged(BASE, write(tmp_path, pair("layer.q_proj")))
    assert list(merged) == list(BASE)
    assert len(merged) == len(BASE)
    assert all(merged[name] is tensor for name, tensor in BASE.items() if name != Q)
    assert {name: merged.shape(name) for name in merged} == {n: tuple(x.shape) for n, x in BASE.items()}
    with pytest.raises(KeyError):
        merged["nothing"]


def test_half_precision_is_merged_in_float32(tmp_path: Path) -> None:
    tensors = pair("layer.v_proj")
    folder = write(tmp_path, {name: x.bfloat16() for name, x in tensors.items()})
    found = lora_merged(BASE, folder)["layer.v_proj.weight"]
    assert found.dtype == torch.float32
    rounded = product({name: x.bfloat16().float() for name, x in tensors.items()}, "layer.v_proj")
    torch.testing.assert_close(found, BASE["layer.v_proj.weight"].float() + ALPHA / RANK * rounded)


def test_transposed_layers_take_the_transposed_product(tmp_path: Path) -> None:
    """GPT-2's layers store W transposed, which PEFT notes as fan_in_fan_out."""
    tensors = pair("layer.q_proj", shape=(4, 6))
    merged = lora_merged(BASE, write(tmp_path, tensors, fan_in_fan_out=True))
    torch.testing.assert_close(merged[Q], BASE[Q] + ALPHA / RANK * product(tensors, "layer.q_proj").T)


def embedding_pair() -> State:
    where = f"{PREFIX}model.embed_tokens.lora_embedding_"
    return {f"{where}A": numbers(RANK, 9), f"{where}B": numbers(4, RANK)}


def test_a_words_embedding_is_the_sum_of_two_lookups(tmp_path: Path) -> None:
    tensors = embedding_pair()
    merged = lora_merged(BASE, write(tmp_path, tensors))
    a, b = tensors.values()
    words = torch.tensor([8, 0, 3])
    expected = BASE[EMBEDDING][words] + ALPHA / RANK * nn.functional.embedding(words, a.T) @ b.T
    torch.testing.assert_close(merged[EMBEDDING][words], expected)


@pytest.mark.parametrize("suffix", ["", ".modules_to_save", ".modules_to_save.default"])
def test_modules_that_were_trained_whole_replace_the_bases(suffix: str, tmp_path: Path) -> None:
    whole = numbers(9, 4, seed=7)
    tensors = {**pair("layer.q_proj"), f"{PREFIX}lm_head{suffix}.weight": whole}
    merged = lora_merged(BASE, write(tmp_path, tensors, modules_to_save=["lm_head"]))
    assert torch.equal(merged["lm_head.weight"], whole)


def test_a_stored_base_layer_is_what_the_product_is_added_to(tmp_path: Path) -> None:
    whole = numbers(9, 4, seed=7)
    tensors = {**pair("lm_head"), f"{PREFIX}lm_head.base_layer.weight": whole}
    merged = lora_merged(BASE, write(tmp_path, tensors))
    expected = whole + ALPHA / RANK * product(tensors, "lm_head")
    torch.testing.assert_close(merged["lm_head.weight"], expected)


def test_a_pickled_adapter_is_read_without_running_code(tmp_path: Path) -> None:
    tensors = pair("layer.q_proj")
    safe = write(tmp_path / "safe", tensors)
    old = write(tmp_path / "old", tensors)
    (old / SAFE).unlink()
    torch.save(tensors, old / PICKLED)
    assert torch.equal(lora_merged(BASE, old)[Q], lora_merged(BASE, safe)[Q])
    torch.save({"model": nn.Linear(2, 2)}, old / PICKLED)
    with pytest.raises(UserError, match="loading this pickle would run code, which is refused"):
        lora_merged(BASE, old)


def tiny_t5() -> Any:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=32, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0
        )
    )


def tiny_llama() -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )


MODELS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "t5": (tiny_t5, ("SelfAttention.q", "EncDecAttention.v", "DenseReluDense.wo")),
    "llama": (tiny_llama, ("q_proj", "v_proj", "down_proj")),
}


@pytest.mark.parametrize("family", MODELS)
@torch.no_grad()
def test_the_merged_model_computes_what_the_adapted_one_computes(family: str, tmp_path: Path) -> None:
    """Every adapted layer of the reference runs x -> W x + s B (A x), nothing merged."""
    build, targets = MODELS[family]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = build().eval()
    adapted = copy.deepcopy(model)
    tensors: State = {}
    for name, layer in adapted.named_modules():
        if name.endswith(targets):
            a, b = 0.3 * numbers(RANK, layer.in_features), 0.3 * numbers(layer.out_features, RANK)
            tensors |= {f"{PREFIX}{name}.lora_A.weight": a, f"{PREFIX}{name}.lora_B.weight": b}
            layer.register_forward_hook(lambda _, x, y, a=a, b=b: y + ALPHA / RANK * (x[0] @ a.T) @ b.T)
    model.save_pretrained(tmp_path / "base")
    base = LazyCheckpoint(tmp_path / "base")
    merged = lora_merged(base, write(tmp_path / "adapter", tensors))
    assert len(merged.changed) == len(tensors) / 2 > 5
    words = torch.tensor([[3, 7, 1, 30]])
    arguments = {"input_ids": words} | ({"decoder_input_ids": words} if family == "t5" else {})
    before, expected = model(**arguments).logits, adapted(**arguments).logits
    model.load_state_dict(dict(merged), strict=False)
    torch.testing.assert_close(model(**arguments).logits, expected, rtol=1e-5, atol=1e-5)
    assert float((before - expected).abs().max()) > 1e-2
    check_expert(base, merged, "adapter")


def test_task_arithmetic_adds_the_product(tmp_path: Path) -> None:
    one, other = pair("layer.q_proj"), pair("lm_head")
    experts = [lora_merged(BASE, write(tmp_path / name, x)) for name, x in (("one", one), ("other", other))]
    found = merge("task-arithmetic", BASE, experts, scale=0.5)
    torch.testing.assert_close(found[Q], BASE[Q] + 0.5 * ALPHA / RANK * product(one, "layer.q_proj"))
    expected = BASE["lm_head.weight"] + 0.5 * ALPHA / RANK * product(other, "lm_head")
    torch.testing.assert_close(found["lm_head.weight"], expected)
    torch.testing.assert_close(found["layer.norm.weight"], BASE["layer.norm.weight"])


def test_nothing_is_computed_before_it_is_asked_for(tmp_path: Path) -> None:
    """A tensor is read when it is asked for, so the file may even change in between (and is then missed)."""
    merged = lora_merged(BASE, write(tmp_path, pair("layer.q_proj")))
    (tmp_path / SAFE).unlink()
    assert merged["layer.norm.weight"] is BASE["layer.norm.weight"]
    with pytest.raises(UserError, match="no such checkpoint file"):
        merged[Q]


FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "another method": ({"peft_type": "IA3"}, "peft_type is 'IA3', expected 'LORA'"),
    "no method": ({"peft_type": None}, "peft_type is None, expected 'LORA'"),
    "DoRA": ({"use_dora": True}, "use_dora is set, which plain LoRA does not have"),
    "trained biases": ({"bias": "lora_only"}, "bias is 'lora_only', expected 'none'"),
    "biases of LoRA": ({"lora_bias": True}, "lora_bias is set"),
    "replicated layers": ({"layer_replication": [[0, 2]]}, "layer_replication is set"),
    "a field of the future": ({"use_zlora": 1}, "use_zlora is set"),
    "PiSSA's start": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', which"),
    "rank 0": ({"r": 0}, "r is 0, expected a whole number from 1 on"),
    "rank in words": ({"r": "8"}, "r is '8', expected a whole number"),
    "no alpha": ({"lora_alpha": None}, "lora_alpha is None, expected a number"),
    "infinite alpha": ({"lora_alpha": math.inf}, "lora_alpha is inf, expected a number"),
    "another rank": ({"r": 8}, "lora_A of 'layer.q_proj.weight' has rank 3, lora_B 3, .* says 8"),
    "a bad pattern": ({"rank_pattern": {"q_(proj": 2}}, "rank_pattern holds no patterns"),
    "patterns in a list": ({"alpha_pattern": ["q_proj"]}, "alpha_pattern holds no patterns"),
    "an absent module": (
        {"modules_to_save": ["score"]},
        "modules_to_save names 'score', but no tensor is its",
    ),
    "transposed": ({"fan_in_fan_out": True}, r"'layer.q_proj.weight' is \(4, 6\), the base's is \(6, 4\)"),
}


@pytest.mark.parametrize("case", FIELDS)
def test_what_is_not_plain_lora_is_refused_by_its_field(case: str, tmp_path: Path) -> None:
    config, complaint = FIELDS[case]
    with pytest.raises(UserError, match=complaint) as caught:
        lora_merged(BASE, write(tmp_path, pair("layer.q_proj"), **config))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


WHERE = f"{PREFIX}layer.q_proj"
TENSORS: dict[str, tuple[State, str]] = {
    "no adapter": ({f"{PREFIX}lm_head.weight": BASE["lm_head.weight"]}, r"holds no LoRA tensors"),
    "a layer that the base lacks": (
        pair("layer.z_proj", shape=(6, 4)),
        "adapts 'layer.z_proj.weight', which the base lacks",
    ),
    "no B": ({f"{WHERE}.lora_A.weight": numbers(RANK, 4)}, "'layer.q_proj.weight' has no lora_B"),
    "no A": ({f"{WHERE}.lora_B.weight": numbers(6, RANK)}, "'layer.q_proj.weight' has no lora_A"),
    "B of another rank": (
        {f"{WHERE}.lora_A.weight": numbers(RANK, 4), f"{WHERE}.lora_B.weight": numbers(6, 2)},
        "has rank 3, lora_B 2, adapter_config.json says 3",
    ),
    "another width": (pair("layer.q_proj", shape=(6, 5)), r"is \(6, 5\), the base's is \(6, 4\)"),
    "a convolution": (
        {f"{WHERE}.lora_A.weight": numbers(RANK, 4, 1, 1), f"{WHERE}.lora_B.weight": numbers(6, RANK, 1, 1)},
        "only linear layers and embeddings are supported",
    ),
    "DoRA's magnitudes": (
        {**pair("layer.q_proj"), f"{WHERE}.lora_magnitude_vector": numbers(6)},
        "lora_magnitude_vector' is no part of plain LoRA",
    ),
    "biases": (
        {**pair("layer.q_proj"), f"{WHERE}.lora_B.bias": numbers(6)},
        "lora_B.bias' is no part of plain LoRA",
    ),
    "names that are not PEFT's": ({"layer.q_proj.weight": numbers(6, 4)}, "is no part of plain LoRA"),
    "a resized embedding": (
        {**pair("layer.q_proj"), f"{PREFIX}model.embed_tokens.weight": numbers(12, 4)},
        r"tensor 'model.embed_tokens.weight' is \(12, 4\), the base's is \(9, 4\)",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_refused_by_name(case: str, tmp_path: Path) -> None:
    tensors, complaint = TENSORS[case]
    with pytest.raises(UserError, match=complaint):
        lora_merged(BASE, write(tmp_path, tensors))


def test_one_end_of_a_tied_tensor_cannot_be_merged(tmp_path: Path) -> None:
    """The input embedding alone is adapted, but the merged tensor would be the output layer's as well."""
    tied = {name: x for name, x in BASE.items() if name != "lm_head.weight"}
    for number, tensors in enumerate((embedding_pair(), pair("lm_head"))):
        folder = write(tmp_path / str(number), tensors)
        lora_merged(BASE, folder)
        with pytest.raises(UserError, match="which the base ties to another tensor"):
            lora_merged(tied, folder)


def test_t5s_embedding_is_always_tied(tmp_path: Path) -> None:
    base = {"shared.weight": numbers(9, 4), **BASE}
    whole = {**pair("layer.q_proj"), f"{PREFIX}shared.weight": numbers(9, 4)}
    with pytest.raises(UserError, match=r"adapts 'shared\.weight', which the base ties"):
        lora_merged(base, write(tmp_path, whole, modules_to_save=["shared"]))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read .*; is it a LoRA adapter's folder"),
        ("{", "is not JSON"),
        ("[]", "peft_type is None"),
    ],
)
def test_a_bad_configuration_is_refused(content: str | None, complaint: str, tmp_path: Path) -> None:
    folder = write(tmp_path, pair("layer.q_proj"))
    (folder / CONFIG).unlink()
    if content is not None:
        (folder / CONFIG).write_text(content)
    with pytest.raises(UserError, match=f"{CONFIG}: {complaint}"):
        lora_merged(BASE, folder)


def test_absent_weights_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, pair("layer.q_proj"))
    (folder / SAFE).unlink()
    with pytest.raises(UserError, match=f"{SAFE}: no such checkpoint file"):
        lora_merged(BASE, folder)


def test_an_adapter_of_a_clip_model_reaches_its_image_tower_alone() -> None:
    """PEFT names what it adapts by the whole model; the tower that is merged has no prefix."""
    name = "encoder.layers.0.self_attn.q_proj"
    base = {f"{name}.weight": numbers(6, 4)}
    tensors = pair(f"vision_model.{name}", shape=(6, 4)) | pair(f"text_model.{name}", shape=(6, 4))
    with tempfile.TemporaryDirectory() as folder:
        merged = lora_merged(base, write(Path(folder), tensors))
        assert merged.changed == {f"{name}.weight"}
        expected = base[f"{name}.weight"] + ALPHA / RANK * product(tensors, f"vision_model.{name}")
        torch.testing.assert_close(merged[f"{name}.weight"], expected)
