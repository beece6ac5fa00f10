"""Writing a model as a checkpoint folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
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
        file_bytes: its size.
        packed_bytes, dense_bytes: those of its packed layers, and of all else.
        packed_weights: how many weights are packed.
        method_bits: of the same layers the stored bits that methods are compared by (scales in float16).
        dense: why a layer that is quantised is stored dense, by its name.
        transformers_unpacks: whether transformers is told to make the model dense as it loads it.
    """

    folder: Path
    format: Format
    sha256: str
    file_bytes: int
    packed_bytes: int
    dense_bytes: int
    packed_weights: int
    method_bits: int
    dense: dict[str, str] = field(default_factory=dict)
    transformers_unpacks: bool = False


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
    card: str | Callable[[Written], str] | None = None,
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
        card: the text of ``README.md``, or what makes it of what was written.
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
        unfit = {name: pack_quantized.lacking(weight) for name, weight in content.layers.items()}
        content.reasons |= {name: reason for name, reason in unfit.items() if reason is not None}
        content.layers = {name: weight for name, weight in content.layers.items() if unfit[name] is None}
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
                content.reasons[module] = "its rows have different grids, input scales or rotations"
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
    card: str | Callable[[Written], str] | None,
    note: Mapping[str, Any],
) -> Written:
    config, layers = dict(layout.config), {} if format == "dense" else content.layers
    quantised = {f"{name}.weight" for name in layers}
    dense = {name: _alone(tensor) for name, tensor in content.dense.items() if name not in quantised}
    packed: dict[str, Tensor] = {}
    metadata, unpacks = {"format": "pt"}, False
    if format == "epmq":
        packed, told = own.encoded({f"{name}.weight": weight for name, weight in layers.items()})
        metadata |= told
    elif format == "compressed-tensors":
        for name, weight in tqdm(layers.items(), desc="packing", leave=False, delay=2):
            packed |= {f"{name}.{part}": x for part, x in pack_quantized.packed(weight).items()}
        unpacks = _only_dense(config, layers)
        config["quantization_config"] = pack_quantized.configuration(
            layers, content.linear, dequantise=unpacks
        )
    packed = {name: _alone(tensor) for name, tensor in packed.items()}
    file = work / (OWN_WEIGHTS if format == "epmq" else WEIGHTS)
    save_file({**dense, **packed}, file, metadata)
    written = Written(
        folder=folder,
        format=format,
        sha256=sha256(file),
        file_bytes=file.stat().st_size,
        packed_bytes=sum(tensor.nbytes for tensor in packed.values()),
        dense_bytes=sum(tensor.nbytes for tensor in dense.values()),
        packed_weights=sum(weight.codes.numel() for weight in layers.values()),
        method_bits=sum(weight.packed_bits for weight in layers.values()),
        dense={} if format == "dense" else content.reasons,
        transformers_unpacks=unpacks,
    )
    _copy(source, work)
    texts = {**layout.files, "config.json": _json(config)}
    if card is not None:
        texts["README.md"] = card if isinstance(card, str) else card(written)
    about = {"format": format, "weights": file.name, "weights_sha256": written.sha256, "dense": written.dense}
    texts[NOTE] = _json({**note, **about})
    for name, text in texts.items():
        (work / name).write_text(text, encoding="utf-8")
    return written


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


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
