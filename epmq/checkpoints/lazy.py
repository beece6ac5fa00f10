"""Checkpoints read tensor by tensor from safetensors files, and the checks before any work."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from epmq.errors import UserError

INDEX = ".safetensors.index.json"
WEIGHTS = (  # what a model folder may call its weights, the preferred first
    "model.safetensors",
    f"model{INDEX}",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "finetuned.pt",
    "nonlinear_finetuned.pt",
)
PICKLES = frozenset({".bin", ".pt", ".pth"})
SUFFIXES = PICKLES | {".safetensors"}
REMEDY = "give an expert fine-tuned from this base"


class LazyCheckpoint(Mapping[str, Tensor]):
    """Safetensors weights as a read-only mapping; a tensor is read when it is asked for.

    Names and shapes are read once. No file stays open or mapped between reads and every tensor owns its
    memory, so a walk over 20 checkpoints takes no more memory than one over 5.

    Args:
        path: a ``.safetensors`` file, the ``.safetensors.index.json`` of shards, or a folder with either.
        prefix: only names with this prefix are seen, and it is stripped (``"visual."``).
        without: names (after stripping) that are not seen, as CLIP's projection, which is not merged.

    Raises:
        UserError: a file is missing, truncated, not safetensors, or nothing has the prefix. Reading a tensor
            raises it too when the file was changed since.
    """

    def __init__(self, path: Path | str, prefix: str = "", without: Collection[str] = frozenset()) -> None:
        self.path = weights_file(Path(path)) if Path(path).is_dir() else Path(path)
        self._prefix = prefix
        self._found: dict[str, tuple[Path, tuple[int, ...]]] = {}
        for shard in _shards(self.path):
            with _opened(shard) as file:
                for full in file.keys():  # noqa: SIM118, it is no mapping
                    name = full.removeprefix(prefix)
                    if full.startswith(prefix) and name not in without:
                        self._found[name] = shard, tuple(file.get_slice(full).get_shape())
        if not self._found:
            raise UserError(f"{self.path}: no tensor name starts with {prefix!r}; is it the right model?")

    def __getitem__(self, name: str) -> Tensor:
        shard, _ = self._found[name]
        with _opened(shard) as file:
            tensor: Tensor = file.get_tensor(self._prefix + name)
            return tensor.clone()  # the file's own is a view of the mapping

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading the tensor."""
        return self._found[name][1]


def weights_file(folder: Path, names: Collection[str] | None = None) -> Path:
    """The file of a model folder (or of those ``names`` in it) that holds the weights; pickles come last.

    Raises:
        UserError: there is none, or several of names that nothing prefers.
    """
    there = sorted(file.name for file in folder.iterdir()) if names is None else sorted(names)
    found = [name for name in WEIGHTS if name in there] or [n for n in there if Path(n).suffix in SUFFIXES]
    if not found:
        raise UserError(f"{folder}: holds no weights; expected one of {', '.join(WEIGHTS)}")
    if len(found) > 1 and found[0] not in WEIGHTS:
        raise UserError(f"{folder}: holds {', '.join(found)}; name the right one {WEIGHTS[0]}")
    return folder / found[0]


def prefix_of(names: Collection[str], wanted: Collection[str], where: str) -> str:
    """The prefix under which a checkpoint's ``names`` hold the most of the ``wanted`` names.

    A tower is stored bare, below ``vision_model.``, or beside a text tower with the same block names.

    Raises:
        UserError: no prefix leads to any wanted name.
    """
    stored = set(names)
    endings = tuple(wanted)
    found = {name.removesuffix(end) for name in stored for end in _ending(name, endings)}
    score = {prefix: sum(prefix + name in stored for name in endings) for prefix in sorted(found)}
    if not score:
        raise UserError(
            f"{where}: no tensor is named like {min(endings)!r}, only like {min(stored)!r}; "
            "is it the right model?"
        )
    return max(score, key=lambda prefix: score[prefix])


def _ending(name: str, wanted: tuple[str, ...]) -> Iterator[str]:
    return (end for end in wanted if name == end or name.endswith("." + end))


def _shards(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint: the file itself, or those that its index names."""
    if not path.name.endswith(INDEX):
        return [path]
    try:
        names = set(json.loads(path.read_bytes())["weight_map"].values())
        leads_out = [name for name in sorted(names) if Path(name).name != name]
    except OSError as error:
        raise UserError(f"{path}: no such checkpoint file; check the path") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: is not an index of safetensors files; download it again") from error
    if leads_out:
        raise UserError(f"{path}: names {leads_out[0]!r}, which is no file beside it; download it again")
    return [path.parent / name for name in sorted(names)]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such checkpoint file; check the path") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: {_diagnose(path, error)}") from error


def _diagnose(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(2)
    except OSError as denied:
        return f"cannot be read ({denied.strerror}); check its permissions"
    if head == b"PK" or head[:1] == b"\x80":
        return "is a pickled checkpoint, which can run code; convert it to safetensors first"
    return f"is corrupt, truncated or not safetensors ({error}); download or export it again"


def check_finite(checkpoint: Mapping[str, Tensor], where: str) -> None:
    """Raise UserError when a tensor holds NaN or Inf."""
    for name, tensor in checkpoint.items():
        _refuse_damage(tensor, name, where)


def check_expert(base: Mapping[str, Tensor], expert: Mapping[str, Tensor], where: str) -> None:
    """Refuse an expert that does not fit its base; every tensor of the expert is read once.

    Integer tensors are no weights (the ``position_ids`` buffer, which only some versions stored) and may be
    in one and not in the other.

    Raises:
        UserError: another architecture; a tensor is missing, extra, of another shape or kind or not finite;
            every tensor equals the base's (a silent key mismatch leaves base weights, which looks merged).
    """
    ours, theirs = _outline(base), _outline(expert)
    if ours != theirs:
        raise UserError(f"{where}: has {theirs}, the base has {ours}: another architecture; {REMEDY}")
    _check_names(base, expert, where)
    differs = False
    for name in sorted(base.keys() & expert.keys()):
        tensor = expert[name]
        if tensor.shape != shape_of(base, name):
            shapes = f"{tuple(tensor.shape)}, the base's is {shape_of(base, name)}"
            raise UserError(f"{where}: tensor {name!r} is {shapes}; {REMEDY}")
        _refuse_damage(tensor, name, where)
        if not tensor.is_floating_point() and base[name].is_floating_point():
            raise UserError(
                f"{where}: tensor {name!r} holds {tensor.dtype}, the base's real numbers; {REMEDY}"
            )
        if tensor.is_floating_point() and not differs:
            differs = not torch.equal(base[name].float(), tensor.float())
    if not differs:
        raise UserError(f"{where}: every tensor equals the base's; {REMEDY}")


def _check_names(base: Mapping[str, Tensor], expert: Mapping[str, Tensor], where: str) -> None:
    missing = [name for name in sorted(base.keys() - expert.keys()) if base[name].is_floating_point()]
    extra = [name for name in sorted(expert.keys() - base.keys()) if expert[name].is_floating_point()]
    if missing:
        raise UserError(f"{where}: tensor {missing[0]!r} is missing ({len(missing)} in all); {REMEDY}")
    if extra:
        raise UserError(f"{where}: tensor {extra[0]!r} is not in the base ({len(extra)} in all); {REMEDY}")


def _refuse_damage(tensor: Tensor, name: str, where: str) -> None:
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise UserError(f"{where}: tensor {name!r} holds NaN or Inf; the checkpoint is damaged, get it again")


def _outline(checkpoint: Mapping[str, Tensor]) -> str:
    """Depth, and of an image tower width and patch size: what sets ViT-B/32 and ViT-L/14 apart."""
    numbers = [int(match[1]) for name in checkpoint if (match := re.search(r"\.(\d+)\.", name))]
    kernels = [shape for name in checkpoint if len(shape := shape_of(checkpoint, name)) == 4]
    blocks = f"{max(numbers, default=-1) + 1} blocks"
    return ", ".join([blocks, *(f"width {k[0]} and patches of {k[2]}" for k in kernels)])


def shape_of(checkpoint: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """A tensor's shape; a checkpoint with a ``shape`` of its own neither reads nor computes the tensor."""
    known = getattr(checkpoint, "shape", None)
    return tuple(checkpoint[name].shape) if known is None else tuple(known(name))


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
