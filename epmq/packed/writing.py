"""Writing a model as a checkpoint folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from epmq.checkpoints.lazy import sha256
from epmq.errors import UserError, choose
from epmq.layer.weight import QuantizedWeight
from epmq.models.adapters import opened
from epmq.models.tower import Tower
from epmq.packed import own, pack_quantized
from epmq.packed.folding import fold
from epmq.packed.layers import by_parameter, rows_of
from epmq.packed.layouts import Layout, layout_of, like
from epmq.packed.new_folder import new_folder, refuse_taken

Format = Literal["compressed-tensors", "dense", "epmq"]
WEIGHTS = "model.safetensors"
OWN_WEIGHTS = "epmq_model.safetensors"  # another name, so that nothing else takes it for a model of its own
NOTE = "epmq.json"
COPIED = (  # what of the source folder goes along
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        folder: where.
        format: how.
        sha256: SHA-256 of the file of weights.
        packed_bits: stored bits of the packed layers, with scales, zero points and input scales.
        packed_weights: how many weights they are.
        dense: why a layer that is quantised is stored dense, by its name.
    """

    folder: Path
    format: Format
    sha256: str
    packed_bits: int
    packed_weights: int
    dense: dict[str, str] = field(default_factory=dict)


@dataclass
class _Content:
    """What goes into the file of weights; ``dense`` has every tensor, also those of ``layers``."""

    layers: dict[str, QuantizedWeight]
    dense: dict[str, Tensor]
    reasons: dict[str, str]
    linear: set[str]


def write_checkpoint(
    folder: Path | str,
    *,
    model: Tower | nn.Module,
    weights: Mapping[str, QuantizedWeight],
    source: Path | None = None,
    format: Format = "compressed-tensors",  # noqa: A002, the command line's word
    card: str | None = None,
    note: Mapping[str, Any] | None = None,
) -> Written:
    """Write a quantised model as a new folder, which is whole or not there.

    Args:
        folder: must not be there.
        model: holds what ``weights`` dequantise to, and all that is not quantised: a CLIP model of
            transformers or open_clip, a T5, a causal language model built like Llama, or a tower of one. An
            open_clip image tower is written in transformers' layout.
        weights: codes and grids by group, as :attr:`epmq.Quantised.weights`; may be empty for ``"dense"``.
        source: the folder of the base: its tokenizer, processor and generation configuration are copied, and
            its dtypes are kept where they lose nothing. A CLIP tower without its model needs it.
        format: ``"compressed-tensors"`` (pack-quantized), ``"dense"`` (dequantised) or ``"epmq"``.
        card: the text of ``README.md``.
        note: what ``epmq.json`` says besides format and hash; JSON.

    Raises:
        UserError: the folder is there, the disk refuses, the weights are not the model's, nothing is
            quantised, or the format cannot hold the model.
    """
    folder = Path(folder)
    choose("format", format, get_args(Format))
    refuse_taken(folder)
    if not weights and format != "dense":
        raise UserError(
            f"nothing is quantised, so there is nothing to pack as {format}; use the format dense"
        )
    with opened(model) as tower:
        layout = layout_of(tower, model, source)
        content = _content(tower, layout, weights)
    _refuse_lost_ties(content, layout)
    if format == "compressed-tensors":
        relu = layout.config.get("feed_forward_proj", "relu") == "relu"
        content.reasons |= fold(content.layers, content.dense, relu=relu)
        if not content.layers:
            raise UserError(
                f"no layer can be packed as compressed-tensors: {next(iter(content.reasons.values()))}; use "
                "the format epmq, or dense"
            )
    with new_folder(folder) as work:
        return _write(work, folder, content, layout, source, format, card, note or {})


def _content(tower: Tower, layout: Layout, weights: Mapping[str, QuantizedWeight]) -> _Content:
    """Everything under the names that it is stored by."""
    modules = dict(tower.named_modules())
    content = _Content({}, dict(layout.rest), {}, set(layout.linear))
    for name, parameter in tower.named_parameters():
        key = tower.keys[name]
        held = parameter.detach().cpu()
        content.dense |= layout.tensors(key, like(held, layout.stored.get(key)))
        if isinstance(modules[name.rpartition(".")[0]], nn.Linear) and parameter.dim() == 2:
            content.linear |= {each.removesuffix(".weight") for each in layout.names(key)}
    for key, pieces in by_parameter(tower, weights).items():
        names = layout.names(key)
        rows = sum(len(piece.weight.codes) for piece in pieces) // len(names)
        for number, name in enumerate(names):
            module = name.removesuffix(".weight")
            whole = rows_of(pieces, number * rows, (number + 1) * rows)
            if module not in content.linear:
                content.reasons[module] = "only linear layers are packed"
            elif whole is None:
                content.reasons[module] = "its rows have different grids or input scales"
            else:
                content.layers[module] = whole
    content.dense = {name: tensor.contiguous() for name, tensor in content.dense.items()}
    if "visual_projection.weight" in content.dense:
        content.linear.add("visual_projection")
    return content


def _refuse_lost_ties(content: _Content, layout: Layout) -> None:
    """A packed layer cannot be tied to an embedding, which stays dense; raises UserError."""
    tied = layout.config.get("tie_word_embeddings", False)
    if tied and "lm_head" in content.layers:
        raise UserError(
            "lm_head is quantised and tied to the word embeddings by config.json; untie it, or use dense"
        )


def _write(
    work: Path,
    folder: Path,
    content: _Content,
    layout: Layout,
    source: Path | None,
    format: Format,  # noqa: A002
    card: str | None,
    note: Mapping[str, Any],
) -> Written:
    config, layers = dict(layout.config), {} if format == "dense" else content.layers
    packed = {f"{name}.weight" for name in layers}
    tensors = {name: tensor for name, tensor in content.dense.items() if name not in packed}
    metadata = {"format": "pt"}
    if format == "epmq":
        found, told = own.encoded({f"{name}.weight": weight for name, weight in layers.items()})
        tensors |= found
        metadata |= told
    elif format == "compressed-tensors":
        for name, weight in tqdm(layers.items(), desc="packing", leave=False, delay=2):
            tensors |= {f"{name}.{part}": x for part, x in pack_quantized.packed(weight).items()}
        config["quantization_config"] = pack_quantized.configuration(
            layers, content.linear, dequantise=_only_dense(config, layers)
        )
    file = OWN_WEIGHTS if format == "epmq" else WEIGHTS
    save_file({name: _alone(tensor) for name, tensor in tensors.items()}, work / file, metadata)
    digest = sha256(work / file)
    _copy(source, work)
    for name, text in layout.files.items():
        (work / name).write_text(text, encoding="utf-8")
    (work / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if card is not None:
        (work / "README.md").write_text(card, encoding="utf-8")
    reasons = {} if format == "dense" else content.reasons
    about = {**note, "format": format, "weights": file, "weights_sha256": digest, "dense": reasons}
    (work / NOTE).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    bits = sum(weight.packed_bits for weight in layers.values())
    return Written(folder, format, digest, bits, sum(w.codes.numel() for w in layers.values()), reasons)


def _alone(tensor: Tensor) -> Tensor:
    """The tensor with memory of its own; parts of a parameter, and input scales, may share theirs."""
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.dim() > 1
    return tensor if whole and tensor.is_contiguous() else tensor.clone().contiguous()


def _only_dense(config: Mapping[str, Any], layers: Mapping[str, QuantizedWeight]) -> bool:
    """Whether transformers is told to make the model dense as it loads it.

    It must be for a T5 and for asymmetric grids; of a CLIP only ``forward`` would unpack the layers, so that
    ``get_image_features`` would fail.
    """
    packed_runs = config.get("model_type") not in ("t5", "clip", "clip_vision_model")
    return not packed_runs or not all(weight.spec.symmetric for weight in layers.values())


def _copy(source: Path | None, work: Path) -> None:
    for name in COPIED if source is not None else ():
        assert source is not None
        if (source / name).is_file():
            shutil.copyfile(source / name, work / name)
