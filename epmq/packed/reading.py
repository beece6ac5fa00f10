"""Reading checkpoint folders, whichever of the formats they are in, as dense tensors by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from epmq.checkpoints.described import json_object
from epmq.checkpoints.lazy import PICKLES, LazyCheckpoint, check_finite, prefix_of, weights_file
from epmq.errors import UserError
from epmq.models.adapters import opened
from epmq.models.tower import Tower
from epmq.packed import own, pack_quantized
from epmq.packed.layouts import Layout
from epmq.packed.writing import NOTE, OWN_WEIGHTS

_PARTS = (pack_quantized.PACKED, pack_quantized.SCALE, pack_quantized.ZERO, pack_quantized.SHAPE)
_UNFIT = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
AGAIN = "export or download it again"


class Checkpoint(Mapping[str, Tensor]):
    """The dense tensors of a checkpoint folder by name; what is packed is dequantised when it is asked for.

    A folder in pack-quantized, in our own packed form, or dense: in transformers' layout or open_clip's.

    Raises:
        UserError: the folder holds no weights, a file is damaged, or the weights are packed otherwise;
            reading a tensor, too.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such folder of a checkpoint; check the path")
        own_file = self.folder / OWN_WEIGHTS
        self.path = own_file if own_file.is_file() else weights_file(self.folder)
        if self.path.suffix in PICKLES:
            raise UserError(f"{self.path}: is pickled, which can run code; give a folder with safetensors")
        self._raw = LazyCheckpoint(self.path)
        self._grids = self._own_grids() if self.path == own_file else {}
        self._schemes = {} if self.path == own_file else self._packed_schemes()
        hidden = {f"{name}.{part}" for name in self._grids for part in own.PARTS}
        hidden |= {f"{name}.{part}" for name in self._schemes for part in _PARTS}
        self._names = [n for n in self._raw if n not in hidden]
        self._names += [*self._grids, *(f"{name}.weight" for name in self._schemes)]

    def __getitem__(self, name: str) -> Tensor:
        try:
            if name in self._grids:
                parts = {f"{name}.{part}" for part in own.PARTS} & self._raw.keys()
                held = {part: self._raw[part] for part in parts}
                return own.decoded(name, self._grids[name], held).dequantize()
            if (module := name.removesuffix(".weight")) in self._schemes and name.endswith(".weight"):
                tensors = {
                    part: self._raw[f"{module}.{part}"] for part in _PARTS if f"{module}.{part}" in self._raw
                }
                return pack_quantized.unpacked(tensors, self._schemes[module])
        except (UserError, *_UNFIT) as error:
            raise UserError(f"{self.path}: {name!r} cannot be unpacked ({error}); {AGAIN}") from error
        return self._raw[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def config(self) -> dict[str, Any]:
        """The content of ``config.json``, empty without one; raises UserError where it is damaged."""
        file = self.folder / "config.json"
        return json_object(file, AGAIN) if file.is_file() else {}

    def _own_grids(self) -> dict[str, Any]:
        try:
            with safe_open(self.path, framework="pt") as file:
                return own.grids_of(file.metadata())
        except (OSError, SafetensorError, ValueError) as error:
            raise UserError(f"{self.path}: cannot be read ({error}); {AGAIN}") from error

    def _packed_schemes(self) -> dict[str, Mapping[str, Any]]:
        """The scheme of every packed layer, by the name of its module."""
        packed = [n.removesuffix(f".{_PARTS[0]}") for n in self._raw if n.endswith(f".{_PARTS[0]}")]
        described = self.config.get("quantization_config")
        if described is None and not packed:
            return {}
        file = self.folder / "config.json"
        if not isinstance(described, dict) or described.get("format") != "pack-quantized":
            kind = described.get("quant_method") if isinstance(described, dict) else None
            raise UserError(
                f"{file}: describes weights packed as {str(kind)[:40]!r}; expected pack-quantized of "
                "compressed-tensors"
            )
        try:
            groups = [(g["targets"], g["weights"]) for g in described["config_groups"].values()]
            return {name: next(w for targets, w in groups if _targeted(name, targets)) for name in packed}
        except (*_UNFIT, StopIteration) as error:
            raise UserError(f"{file}: its quantization_config is damaged; {AGAIN}") from error


def _targeted(name: str, targets: list[str]) -> bool:
    return any(
        target in ("Linear", name) or (target.startswith("re:") and re.match(target[3:], name))
        for target in targets
    )


def fitting(checkpoint: Checkpoint, tower: Tower) -> dict[str, Tensor]:
    """A checkpoint's tensors under a tower's names: all that are not shared with the base.

    Raises:
        UserError: it is of another model.
    """
    wanted = dict(tower.merged_parameters())
    where = str(checkpoint.path)
    fused = tower.keys.get("head.proj") == "proj" and any("q_proj" in name for name in checkpoint)
    layout = Layout({}, fused=fused)
    names = {key: layout.names(key) for key in wanted}
    prefix = "" if fused else prefix_of(checkpoint, wanted, where)
    found = {}
    for key, parameter in wanted.items():
        if missing := [name for name in names[key] if prefix + name not in checkpoint]:
            raise UserError(
                f"{where}: has no tensor {prefix + missing[0]!r}; is it a checkpoint of this model?"
            )
        tensor = torch.cat([checkpoint[prefix + name] for name in names[key]]).float()
        if tuple(tensor.shape) != tuple(parameter.shape):
            shapes = f"{tuple(tensor.shape)}, the model's is {tuple(parameter.shape)}"
            raise UserError(
                f"{where}: {prefix + names[key][0]!r} is {shapes}; is it a checkpoint of this model?"
            )
        found[key] = tensor
    check_finite(found, where)
    return found


def load_weights(model: Tower | nn.Module, folder: Path | str) -> None:
    """Fill a model with a checkpoint folder, in any of the formats, dequantised; of a CLIP its image tower.

    Raises:
        UserError: the folder is damaged or of another model. The model is then as it was.
    """
    with opened(model) as tower:
        tensors = fitting(Checkpoint(folder), tower)
        tower.load_all(tensors)
        if tower is not model and tower.model is None:
            theirs = dict(model.named_parameters())
            prefix = prefix_of(theirs, tensors, f"model {type(model).__name__}")
            with torch.no_grad():
                for name, tensor in tensors.items():
                    theirs[prefix + name].copy_(tensor)


def note(folder: Path | str) -> dict[str, Any]:
    """What ``epmq.json`` of a checkpoint folder says; empty where there is none.

    Raises:
        UserError: it is damaged.
    """
    file = Path(folder) / NOTE
    return json_object(file, AGAIN) if file.is_file() else {}
