"""How transformers stores the models that are exported: names, configuration, what surrounds a tower.

An open_clip image tower is stored as transformers' ``CLIPVisionModelWithProjection``: open_clip holds
queries, keys and values as one parameter, which no packed format knows.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from epmq.checkpoints.described import json_object
from epmq.checkpoints.lazy import PICKLES, LazyCheckpoint, prefix_of, weights_file
from epmq.errors import UserError
from epmq.models.tower import Tower

VISION = "vision_model."
FUSED = ("q_proj", "k_proj", "v_proj")
OPEN_CLIP = (  # patterns of an open_clip tower's names, and what transformers calls them
    (r"^class_embedding$", "embeddings.class_embedding"),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^conv1\.", "embeddings.patch_embedding."),
    (r"^ln_pre\.", "pre_layrnorm."),
    (r"^ln_post\.", "post_layernorm."),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.in_proj_", ".self_attn.qkv_proj."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
NAMED = {"proj": "visual_projection.weight"}


@dataclass(frozen=True)
class Layout:
    """How a model is stored.

    Attributes:
        config: the content of ``config.json``.
        prefix: before the names of the tower's merged tensors.
        rest: tensors that are no part of the tower, as they are stored.
        stored: the tower's tensors in the source, whose dtypes are kept where they lose nothing.
        linear: linear modules outside the tower, by name.
        fused: whether names are those of an open_clip tower.
        files: further small files by name.
    """

    config: dict[str, Any]
    prefix: str = ""
    rest: Mapping[str, Tensor] = field(default_factory=dict)
    stored: Mapping[str, Tensor] = field(default_factory=dict)
    linear: tuple[str, ...] = ()
    fused: bool = False
    files: Mapping[str, str] = field(default_factory=dict)

    def names(self, key: str) -> tuple[str, ...]:
        """What a tower's tensor is called, by its checkpoint name; several names share its rows evenly."""
        if not self.fused:
            return (self.prefix + key,) if key not in _PROJECTIONS else (key,)
        if key in NAMED:
            return (NAMED[key],)
        for pattern, name in OPEN_CLIP:
            key = re.sub(pattern, name, key)
        parts = FUSED if ".qkv_proj." in key else ("",)
        return tuple(VISION + key.replace("qkv_proj", part) for part in parts)

    def tensors(self, key: str, tensor: Tensor) -> dict[str, Tensor]:
        """A tower's tensor as it is stored, by name."""
        if self.fused and key in NAMED:
            tensor = tensor.T
        elif self.fused and key == "class_embedding":
            tensor = tensor.flatten()
        names = self.names(key)
        return dict(zip(names, tensor.chunk(len(names)), strict=True))


_PROJECTIONS = {"visual_projection.weight"}


def layout_of(tower: Tower, model: Any, source: Path | None) -> Layout:
    """The layout of a model that is to be written.

    Args:
        model: the tower, or the model that it is of.
        source: the folder that the base came from, ``None`` where there is none.

    Raises:
        UserError: neither the model nor the folder says what configuration the model has.
    """
    if tower.keys.get("head.proj") == "proj":
        return _open_clip(tower, model, source)
    whole = tower.model if tower.model is not None else None if model is tower else model
    config = _of_model(whole) if whole is not None else _of_folder(source)
    for part in (config, *(each for each in config.values() if isinstance(each, dict))):
        for name in ("torch_dtype", "dtype"):
            part.pop(name, None)
    config["dtype"] = "float32"
    if tower.model is not None:
        if "lm_head.weight" in tower.keys.values():  # transformers 5 calls every T5 tied, and 4 believes it
            config["tie_word_embeddings"] = False
        return Layout(config, stored=_stored(source, tower))
    rest, linear = _surroundings(whole, source)
    stored = _stored(source, tower)
    return Layout(config, VISION, rest, stored, linear)


def _of_model(model: Any) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=True))
    config["architectures"] = [type(model).__name__]
    for part in (config, *(each for each in config.values() if isinstance(each, dict))):
        part.pop("quantization_config", None)
        part.pop("_attn_implementation", None)
    return config


def _of_folder(source: Path | None) -> dict[str, Any]:
    file = None if source is None else source / "config.json"
    if file is None or not file.is_file():
        raise UserError(f"{source or 'model'}: has no config.json; give the folder of the base as source")
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: is no JSON ({error}); download it again") from error
    if not isinstance(config, dict) or "auto_map" in config:
        raise UserError(f"{file}: is no configuration, or names code of its own, which is never shipped")
    if "architectures" not in config:
        clip = config.get("model_type") == "clip"
        config["architectures"] = ["CLIPModel" if clip else "CLIPVisionModelWithProjection"]
    return config


def weights_of(source: Path | None) -> LazyCheckpoint | None:
    """The weights of a model folder; ``None`` without one, or where they are pickled."""
    if source is None:
        return None
    file = weights_file(source)
    return None if file.suffix in PICKLES else LazyCheckpoint(file)


def _stored(source: Path | None, tower: Tower) -> dict[str, Tensor] | _Below:
    found = weights_of(source)
    if found is None:
        return {}
    return _Below(found, prefix_of(found, tower.merged_parameters(), str(source)), tower)


class _Below(Mapping[str, Tensor]):
    """A tower's tensors in a checkpoint, by checkpoint name."""

    def __init__(self, checkpoint: LazyCheckpoint, prefix: str, tower: Tower) -> None:
        names = {key: key if key in tower.shared else prefix + key for key in tower.keys.values()}
        self._checkpoint = checkpoint
        self._names = {key: name for key, name in names.items() if name in checkpoint}

    def __getitem__(self, key: str) -> Tensor:
        return self._checkpoint[self._names[key]]

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _surroundings(model: Any, source: Path | None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors and linear modules of a CLIP model besides its image tower and the tower's projection."""
    if model is not None:
        state: Mapping[str, Tensor] = model.state_dict()
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    else:
        found = weights_of(source)
        if found is None:
            raise UserError(f"{source}: has no safetensors; convert its weights first")
        state = found
        linear = [
            n.removesuffix(".weight") for n in found if re.search(r"(_proj|fc[12]|_projection)\.weight$", n)
        ]
    outside = [n for n in state if not n.startswith(VISION) and n not in _PROJECTIONS]
    outside = [n for n in outside if not n.endswith("position_ids")]  # a buffer that is no weight
    away = tuple(name for name in linear if not name.startswith(VISION))
    return {name: state[name].detach().cpu() for name in outside}, away


def _open_clip(tower: Tower, model: Any, source: Path | None) -> Layout:
    stem, block = tower.stem, tower.blocks[0]
    conv: Any = stem.conv1
    width, patch = conv.weight.shape[0], conv.weight.shape[-1]
    attention: Any = block.attn
    mlp: Any = block.mlp
    config = {
        "model_type": "clip_vision_model",
        "architectures": ["CLIPVisionModelWithProjection"],
        "hidden_size": width,
        "intermediate_size": mlp.c_fc.weight.shape[0],
        "num_hidden_layers": len(tower.blocks),
        "num_attention_heads": attention.heads,
        "image_size": patch * math.isqrt(_positions(tower) - 1),
        "patch_size": patch,
        "projection_dim": tower.get_parameter("head.proj").shape[1],
        "hidden_act": _activation(mlp.gelu),
        "layer_norm_eps": _eps(tower),
        "dtype": "float32",
    }
    return Layout(config, stored=_stored(source, tower), fused=True, files=_processor(model, source, config))


def _positions(tower: Tower) -> int:
    embedding: Any = tower.stem.positional_embedding
    return int(embedding.shape[0])


def _activation(module: nn.Module) -> str:
    if isinstance(module, nn.GELU) and module.approximate == "none":
        return "gelu"
    if type(module).__name__ == "QuickGELU":
        return "quick_gelu"
    raise UserError(f"activation {module} of the image tower has no name in transformers; use the library")


def _eps(tower: Tower) -> float:
    found = {m.eps for m in tower.modules() if isinstance(m, nn.LayerNorm)}
    if len(found) != 1:
        raise UserError(f"the image tower's norms have different eps ({sorted(found)}), transformers has one")
    return float(found.pop())


def _processor(model: Any, source: Path | None, config: Mapping[str, Any]) -> dict[str, str]:
    """``preprocessor_config.json`` as CLIP's image processor reads it, from what open_clip says."""
    file = None if source is None else source / "open_clip_config.json"
    found: Any = getattr(getattr(model, "visual", model), "preprocess_cfg", None)
    if file is not None and file.is_file():
        found = json_object(file, "download it again").get("preprocess_cfg")
    if not isinstance(found, dict):
        return {}
    size = config["image_size"]
    described = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": {"bicubic": 3, "bilinear": 2}.get(found.get("interpolation", "bicubic"), 3),
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": list(found.get("mean", (0.48145466, 0.4578275, 0.40821073))),
        "image_std": list(found.get("std", (0.26862954, 0.26130258, 0.27577711))),
    }
    return {"preprocessor_config.json": json.dumps(described, indent=2) + "\n"}


def like(tensor: Tensor, stored: Tensor | None) -> Tensor:
    """The tensor in the dtype that it is stored in by its source, where that loses nothing."""
    if stored is None or stored.shape != tensor.shape or not stored.is_floating_point():
        return tensor
    narrow = tensor.to(stored.dtype)
    return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor
