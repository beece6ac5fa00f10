"""Checkpoints read tensor by tensor from memory-mapped safetensors, and the checks before any work."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from epmq.errors import UserError


class LazyCheckpoint(Mapping[str, Tensor]):
    """A safetensors file as a read-only mapping; a tensor is read when it is asked for.

    Args:
        path: the file.
        prefix: only names with this prefix are seen, and it is stripped (``"visual."``).

    Raises:
        UserError: the file is missing, truncated, not safetensors, or nothing has the prefix.
    """

    def __init__(self, path: Path | str, prefix: str = "") -> None:
        self.path = Path(path)
        self._prefix = prefix
        try:
            self._file = safe_open(self.path, framework="pt")
            found = [k[len(prefix) :] for k in self._file.keys() if k.startswith(prefix)]  # noqa: SIM118
            self._names = dict.fromkeys(found)
        except FileNotFoundError as error:
            raise UserError(f"{self.path}: no such checkpoint file; check the path") from error
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self.path}: {_diagnose(self.path, error)}") from error
        if not self._names:
            raise UserError(f"{self.path}: no tensor name starts with {prefix!r}; is it the right model?")

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(self._prefix + name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header alone."""
        return tuple(self._file.get_slice(self._prefix + name).get_shape())


def _diagnose(path: Path, error: Exception) -> str:
    if path.is_dir():
        return "is a folder; give the .safetensors file in it"
    try:
        with path.open("rb") as file:
            head = file.read(2)
    except OSError as denied:
        return f"cannot be read ({denied.strerror}); check its permissions"
    if head == b"PK" or head[:1] == b"\x80":
        return "is a pickled checkpoint, which can run code; convert it to safetensors first"
    return f"is corrupt, truncated or not safetensors ({error}); download or export it again"


class Without(Mapping[str, Tensor]):
    """A checkpoint without some names (tensors that are not merged, as CLIP's projection)."""

    def __init__(self, source: Mapping[str, Tensor], left_out: frozenset[str]) -> None:
        self._source, self._left_out = source, left_out

    def __getitem__(self, name: str) -> Tensor:
        if name in self._left_out:
            raise KeyError(name)
        return self._source[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._source if name not in self._left_out)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def check_expert(base: Mapping[str, Tensor], expert: Mapping[str, Tensor], where: str) -> None:
    """Refuse an expert that does not fit its base.

    Raises:
        UserError: a tensor is missing, extra, of another shape, not finite (the base's too), or every tensor
            equals the base's (a silent key mismatch leaves base weights in place and looks like a merge).
    """
    missing, extra = sorted(set(base) - set(expert)), sorted(set(expert) - set(base))
    remedy = "give an expert fine-tuned from this base"
    if missing:
        raise UserError(f"{where}: tensor {missing[0]!r} is missing ({len(missing)} in all); {remedy}")
    if extra:
        raise UserError(f"{where}: tensor {extra[0]!r} is not in the base ({len(extra)} in all); {remedy}")
    differs = False
    for name in base:
        ours, theirs = base[name], expert[name]
        if ours.shape != theirs.shape:
            shapes = f"{tuple(theirs.shape)}, the base's is {tuple(ours.shape)}"
            raise UserError(f"{where}: tensor {name!r} is {shapes}; {remedy}")
        if not ours.is_floating_point():
            continue
        for owner, tensor in ((where, theirs), ("base", ours)):
            if not bool(torch.isfinite(tensor).all()):
                raise UserError(
                    f"{owner}: tensor {name!r} holds NaN or Inf; the checkpoint is damaged, get it again"
                )
        differs = differs or not torch.equal(ours.float(), theirs.float())
    if not differs:
        raise UserError(f"{where}: every tensor equals the base's; {remedy}")


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
