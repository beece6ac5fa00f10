"""Input scales (AWQ) folded into the layer before, where that changes nothing but the last bits.

A layer W diag(1/s) reads x; W reads x / s. What gives x can give x / s instead: a norm, by its scale and
shift; the values of attention and the ungated half of a feed-forward layer, by their rows. What lies behind a
non-linearity, or is read by others too, cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import replace

import torch
from torch import Tensor

from epmq.layer.weight import QuantizedWeight

QKV = ("q_proj", "k_proj", "v_proj")
ATTENTION, SELF, CROSS = "self_attn.", "layer.0.SelfAttention.", "layer.1.EncDecAttention."
RULES: tuple[tuple[str, tuple[str, ...]], ...] = (  # what gives an input, and who reads it, inside a block
    *((norm, tuple(ATTENTION + x for x in QKV)) for norm in ("layer_norm1", "input_layernorm")),
    *((ATTENTION + "v_proj", (ATTENTION + out,)) for out in ("out_proj", "o_proj")),
    ("layer_norm2", ("mlp.fc1",)),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ("mlp.up_proj", ("mlp.down_proj",)),
    ("layer.0.layer_norm", tuple(SELF + x for x in "qkv")),
    (SELF + "v", (SELF + "o",)),
    ("layer.1.layer_norm", (CROSS + "q",)),
    (CROSS + "v", (CROSS + "o",)),
    *(
        (f"layer.{i}.layer_norm", tuple(f"layer.{i}.DenseReluDense.{x}" for x in ("wi", "wi_0", "wi_1")))
        for i in (1, 2)
    ),
    *((f"layer.{i}.DenseReluDense.wi_1", (f"layer.{i}.DenseReluDense.wo",)) for i in (1, 2)),
)
RELU = tuple((f"layer.{i}.DenseReluDense.wi", (f"layer.{i}.DenseReluDense.wo",)) for i in (1, 2))


def fold(
    layers: MutableMapping[str, QuantizedWeight], dense: MutableMapping[str, Tensor], *, relu: bool
) -> dict[str, str]:
    """Fold every input scale away, in place; a layer whose scale cannot be folded is left to ``dense``.

    Args:
        layers: quantised layers by module name.
        dense: every tensor by name, those of ``layers`` dequantised.
        relu: whether feed-forward layers without a gate have a ReLU.

    Returns:
        Why a layer is dense, by module name.
    """
    for name, weight in layers.items():
        if weight.input_scale is not None and bool((weight.input_scale == 1).all()):
            layers[name] = replace(weight, input_scale=None)
    for giver, readers in _pairs(dense, relu):
        scale = _common(layers, readers)
        if scale is None or not _divide(giver, scale, layers, dense):
            continue
        for name in readers:
            weight = layers[name] = replace(layers[name], input_scale=None)
            dense[f"{name}.weight"] = weight.dequantize()
    left = [name for name, weight in layers.items() if weight.input_scale is not None]
    for name in left:
        del layers[name]
    return dict.fromkeys(left, "its input scale cannot be folded into what comes before")


def _pairs(dense: Mapping[str, Tensor], relu: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Givers that are there, each with those of its readers that are there."""
    for rule, readers in (*RULES, *(RELU if relu else ())):
        for name in [n for n in dense if n.endswith(f".{rule}.weight")]:
            block = name.removesuffix(f"{rule}.weight")
            there = tuple(block + reader for reader in readers if f"{block}{reader}.weight" in dense)
            if there:
                yield block + rule, there


def _common(layers: Mapping[str, QuantizedWeight], readers: tuple[str, ...]) -> Tensor | None:
    """The input scale that all readers have; ``None`` where there is none, or not one."""
    found = [layers[name].input_scale if name in layers else None for name in readers]
    first = found[0]
    if first is None or any(other is None or not torch.equal(first, other) for other in found):
        return None
    return first


def _divide(
    giver: str,
    scale: Tensor,
    layers: MutableMapping[str, QuantizedWeight],
    dense: MutableMapping[str, Tensor],
) -> bool:
    """Divide what a norm or a linear layer gives by a scale; whether it gives as many numbers."""
    weight, bias = dense[f"{giver}.weight"], dense.get(f"{giver}.bias")
    if len(weight) != len(scale):  # grouped heads: a value is read by several
        return False
    divisor = scale.float()
    if giver in layers:
        held = layers[giver]
        spec = replace(held.spec, scale_dtype="float32")
        layers[giver] = replace(held, scale=held.scale.float() / divisor[:, None], spec=spec)
        dense[f"{giver}.weight"] = layers[giver].dequantize()
    else:
        dense[f"{giver}.weight"] = weight / (divisor if weight.dim() == 1 else divisor[:, None])
    if bias is not None:
        dense[f"{giver}.bias"] = bias / divisor
    return True
