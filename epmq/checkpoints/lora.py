"""LoRA experts (PEFT adapter folders), merged into their base tensor by tensor as tensors are asked for.

LoRA (Hu et al. 2021, arXiv 2106.09685) trains W + s B A with a frozen W; s = alpha / r, or alpha / sqrt(r)
for rank-stabilised LoRA (Kalajdzievski 2023, arXiv 2312.03732). A task vector needs the sum.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from epmq.checkpoints.lazy import LazyCheckpoint, shape_of
from epmq.checkpoints.pickled import converted
from epmq.errors import UserError
from epmq.models import causal_lm, t5

CONFIG = "adapter_config.json"
SAFE, PICKLED = "adapter_model.safetensors", "adapter_model.bin"  # the weights; the second is the old form
PREFIX = "base_model.model."
VISION = "vision_model."  # of a CLIP model's image tower, whose own names have no prefix
LOW_RANK = re.compile(r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(\.default)?(\.weight)?")
WRAPPED = re.compile(r"\.(base_layer|modules_to_save(\.default)?)(?=\.[^.]+$)")
# Fields that leave the sum W + s B A as it is, whatever they hold, or that this module reads.
READ = {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out"}
READ |= {"bias", "modules_to_save", "init_lora_weights"}
HARMLESS = {"task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}
HARMLESS |= {"inference_mode", "target_modules", "exclude_modules", "lora_dropout", "layers_to_transform"}
HARMLESS |= {"layers_pattern", "megatron_core", "loftq_config", "eva_config", "corda_config"}
HARMLESS |= {"lora_ga_config", "runtime_config", "qalora_group_size", "ensure_weight_tying"}
KEEP_THE_BASE = (True, False, None, "gaussian", "orthogonal", "eva")  # starts that do not change W
T5_TIED = (t5.EMBEDDING, *t5.TIED)
EMBEDDING, HEAD = causal_lm.EMBEDDING, causal_lm.OUTPUT


@dataclass
class _Update:
    """What an adapter does to one tensor: the names of its own tensors, and s."""

    sides: dict[str, str] = field(default_factory=dict)
    full: str | None = None
    scale: float = 1.0
    transposed: bool = False


class LoraMerged(Mapping[str, Tensor]):
    """A base checkpoint with an adapter merged in: the base's names and shapes, computed on access.

    Tensors that the adapter changes are float32, all others are the base's own. Made by :func:`lora_merged`.
    """

    def __init__(
        self, base: Mapping[str, Tensor], adapter: Mapping[str, Tensor], updates: Mapping[str, _Update]
    ) -> None:
        self._base, self._adapter, self._updates = base, adapter, updates

    @property
    def changed(self) -> frozenset[str]:
        """Names of the tensors that the adapter changes."""
        return frozenset(self._updates)

    def __getitem__(self, name: str) -> Tensor:
        update = self._updates.get(name)
        if update is None:
            return self._base[name]
        weight = (self._adapter[update.full] if update.full else self._base[name]).float()
        return weight + self._product(update) if update.sides else weight

    def _product(self, update: _Update) -> Tensor:
        a, b = (self._adapter[update.sides[side]].float() for side in "AB")
        product = b @ a
        return (product.T if update.transposed else product) * update.scale

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without computing the tensor."""
        return shape_of(self._base, name)


def lora_merged(base: Mapping[str, Tensor], folder: Path) -> LoraMerged:
    """The tensors of ``base`` with the LoRA adapter of ``folder`` merged in, each computed when asked for.

    Modules that were trained whole (``modules_to_save``) replace the base's. Pickled adapters are loaded
    without running code.

    Args:
        base: the checkpoint that the adapter was trained on, under the names of its model's state dict. A
            tensor that ``tie_word_embeddings`` ties must be there under one name only.

    Raises:
        UserError: the folder holds no adapter, or it is damaged, of a kind that is no plain sum (DoRA, other
            PEFT methods, trained biases, another start of W), or does not fit the base.
    """
    settings = _settings(folder)
    adapter = _weights(folder)
    updates: dict[str, _Update] = {}
    for stored in adapter:
        _note(updates, stored, folder)
    merged = _of_tower(updates, base)
    for name, update in merged.items():
        _complete(name, update, settings, adapter, base, folder)
    _refuse_absent(settings, updates, folder)
    return LoraMerged(base, adapter, merged)


def _of_tower(updates: Mapping[str, _Update], base: Mapping[str, Tensor]) -> dict[str, _Update]:
    """The updates of what is merged, by the base's own names: of a CLIP model's, those of its image tower."""
    if updates.keys() & base.keys() or not any(name.startswith(VISION) for name in updates):
        return dict(updates)
    return {n.removeprefix(VISION): update for n, update in updates.items() if n.startswith(VISION)}


def _settings(folder: Path) -> dict[str, Any]:
    """The adapter's configuration; raises UserError for what is not a plain sum."""
    path = folder / CONFIG
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); is it a LoRA adapter's folder?"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON; download the adapter again") from error
    if not isinstance(found, dict) or found.get("peft_type") != "LORA":
        kind = found.get("peft_type") if isinstance(found, dict) else None
        raise UserError(f"{path}: peft_type is {kind!r}, expected 'LORA'; merge the expert with PEFT first")
    if found.get("bias", "none") != "none":
        raise UserError(
            f"{path}: bias is {found['bias']!r}, expected 'none'; merge the expert with PEFT first"
        )
    if found.get("init_lora_weights", True) not in KEEP_THE_BASE:
        raise UserError(
            f"{path}: init_lora_weights is {found['init_lora_weights']!r}, which changes the base's weights; "
            "merge the expert with PEFT first"
        )
    if unknown := [name for name in sorted(found.keys() - READ - HARMLESS) if found[name]]:
        raise UserError(
            f"{path}: {unknown[0]} is set, which plain LoRA does not have; merge the expert with PEFT first"
        )
    return found


def _weights(folder: Path) -> Mapping[str, Tensor]:
    if (folder / SAFE).is_file() or not (folder / PICKLED).is_file():
        return LazyCheckpoint(folder / SAFE)
    with tempfile.TemporaryDirectory() as copies:
        return dict(LazyCheckpoint(converted(folder / PICKLED, Path(copies))))


def _note(updates: dict[str, _Update], stored: str, folder: Path) -> None:
    """Enter one of the adapter's tensors at the tensor of the base that it changes."""
    name = stored.removeprefix(PREFIX)
    if found := LOW_RANK.fullmatch(name):
        update = updates.setdefault(f"{found['module']}.weight", _Update())
        update.transposed = bool(found["kind"])
        update.sides[found["side"]] = stored
    elif stored == name or "lora_" in name:
        raise UserError(
            f"{folder}: tensor {stored!r} is no part of plain LoRA; merge the expert with PEFT first"
        )
    else:
        updates.setdefault(WRAPPED.sub("", name), _Update()).full = stored


def _complete(
    name: str,
    update: _Update,
    settings: Mapping[str, Any],
    adapter: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    folder: Path,
) -> None:
    """Set an update's scale; raises UserError if it lacks a part or does not fit the base."""
    _refuse_tied(name, base, folder)
    if name not in base:
        raise UserError(f"{folder}: adapts {name!r}, which the base lacks; give the base it was trained on")
    wanted = shape_of(base, name)
    if update.full and (found := shape_of(adapter, update.full)) != wanted:
        raise UserError(f"{folder}: tensor {name!r} is {found}, the base's is {wanted}; give its own base")
    if not update.sides:
        return
    if absent := {"A", "B"} - update.sides.keys():
        raise UserError(f"{folder}: {name!r} has no lora_{min(absent)}; the adapter is damaged, get it again")
    rank, update.scale = _rank_and_scale(name.removesuffix(".weight"), settings, folder)
    update.transposed |= bool(settings.get("fan_in_fan_out"))
    a, b = (shape_of(adapter, update.sides[side]) for side in "AB")
    if (len(a), len(b)) != (2, 2):
        raise UserError(
            f"{folder}: lora_A of {name!r} is {a}; only linear layers and embeddings are supported"
        )
    if not a[0] == b[1] == rank:
        ranks = f"lora_A of {name!r} has rank {a[0]}, lora_B {b[1]}, {CONFIG} says {rank}"
        raise UserError(f"{folder}: {ranks}; the adapter is damaged, get it again")
    product = (a[1], b[0]) if update.transposed else (b[0], a[1])
    if product != wanted:
        raise UserError(f"{folder}: B A for {name!r} is {product}, the base's is {wanted}; give its own base")


def _refuse_tied(name: str, base: Mapping[str, Tensor], folder: Path) -> None:
    """PEFT adapts one end of a tied tensor, so that no single tensor is the adapted model's."""
    if name in T5_TIED or (name in (EMBEDDING, HEAD) and EMBEDDING in base and HEAD not in base):
        raise UserError(
            f"{folder}: adapts {name!r}, which the base ties to another tensor, so no merge equals the "
            "adapted model; give a full checkpoint"
        )


def _rank_and_scale(module: str, settings: Mapping[str, Any], folder: Path) -> tuple[int, float]:
    rank = _matching(module, "rank_pattern", settings, folder) or settings.get("r")
    alpha = _matching(module, "alpha_pattern", settings, folder)
    alpha = settings.get("lora_alpha") if alpha is None else alpha
    if type(rank) is not int or rank < 1:
        raise UserError(f"{folder / CONFIG}: r is {rank!r}, expected a whole number from 1 on; correct it")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise UserError(f"{folder / CONFIG}: lora_alpha is {alpha!r}, expected a number; correct it")
    return rank, alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _matching(module: str, pattern: str, settings: Mapping[str, Any], folder: Path) -> Any:
    """The value of the first key that the end of a module's path matches, as PEFT reads its patterns."""
    given = settings.get(pattern) or {}
    try:
        return next((given[key] for key in given if re.match(rf"(.*\.)?({key})$", module)), None)
    except (re.error, TypeError) as error:
        raise UserError(f"{folder / CONFIG}: {pattern} holds no patterns ({error}); correct it") from error


def _refuse_absent(settings: Mapping[str, Any], updates: Mapping[str, _Update], folder: Path) -> None:
    if not any(update.sides for update in updates.values()):
        raise UserError(f"{folder}: holds no LoRA tensors (lora_A, lora_B); get the adapter again")
    modules = settings.get("modules_to_save") or []
    if not isinstance(modules, list):
        raise UserError(f"{folder / CONFIG}: modules_to_save is {modules!r}, expected a list; correct it")
    whole = [name.rpartition(".")[0] for name, update in updates.items() if update.full]
    for module in modules:
        if not any(f".{path}".endswith(f".{module}") for path in whole):
            raise UserError(
                f"{folder}: modules_to_save names {module!r}, but no tensor is its; get the adapter again"
            )
